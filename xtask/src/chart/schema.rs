//! Manifests against the schemas of their kinds, which know no field that Kubernetes doesn't.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use jsonschema::{Resource, Validator};
use serde_json::Value;

use super::render::{Manifest, title};

/// Where all definitions of a version are, beside the kinds.
const DEFINITIONS: &str = "_definitions.json";
/// How the kinds refer to them.
const DEFINITIONS_URI: &str = "https://kubernetes.io/api/_definitions.json";

/// Schemas of every kind that the chart may render for one version of Kubernetes.
pub(super) struct Schemas {
    kubernetes: &'static str,
    folder: PathBuf,
    definitions: Value,
    crds: BTreeMap<String, Validator>,
}

impl Schemas {
    /// Those of the version `kubernetes`, and of what it doesn't have itself.
    pub(super) fn load(all: &Path, kubernetes: &'static str, crds: &Path) -> Result<Self> {
        let folder = all.join(format!("v{kubernetes}-local-strict"));
        Ok(Self {
            kubernetes,
            definitions: read(&folder.join(DEFINITIONS))?,
            folder,
            crds: load_crds(crds)?,
        })
    }

    /// What is wrong with `manifests`.
    pub(super) fn violations(&self, manifests: &[Manifest]) -> Result<Vec<String>> {
        let mut wrong = vec![];
        for manifest in manifests {
            let found = self.violations_of(manifest)?.into_iter();
            wrong.extend(found.map(|error| format!("v{}: {error}", self.kubernetes)));
        }
        Ok(wrong)
    }

    fn violations_of(&self, manifest: &Manifest) -> Result<Vec<String>> {
        let file = file_of(manifest)?;
        if let Some(validator) = self.crds.get(&file) {
            return Ok(errors(validator, manifest));
        }
        let path = self.folder.join(&file);
        ensure!(path.exists(), "there is no schema for {}", title(manifest));
        Ok(errors(&self.validator(&path)?, manifest))
    }

    fn validator(&self, path: &Path) -> Result<Validator> {
        let definitions = Resource::from_contents(self.definitions.clone())?;
        jsonschema::options()
            .with_resource(DEFINITIONS_URI, definitions)
            .build(&read(path)?)
            .map_err(|error| anyhow::anyhow!("use {}: {error}", path.display()))
    }
}

fn errors(validator: &Validator, manifest: &Manifest) -> Vec<String> {
    let errors = validator.iter_errors(manifest);
    let told = errors.map(|error| {
        let place = &error.instance_path;
        format!("{}: {place}: {error}", title(manifest))
    });
    told.collect()
}

/// The name of the file with a manifest's schema, such as `deployment-apps-v1.json`.
fn file_of(manifest: &Manifest) -> Result<String> {
    let (Some(version), Some(kind)) = (manifest["apiVersion"].as_str(), manifest["kind"].as_str())
    else {
        bail!("an object has no kind: {manifest}");
    };
    let kind = kind.to_lowercase();
    Ok(match version.split_once('/') {
        None => format!("{kind}-{version}.json"),
        Some((group, version)) => {
            let group = group.split('.').next().unwrap_or(group);
            format!("{kind}-{group}-{version}.json")
        }
    })
}

fn load_crds(folder: &Path) -> Result<BTreeMap<String, Validator>> {
    let mut crds = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let validator = jsonschema::validator_for(&read(&path)?)
            .map_err(|error| anyhow::anyhow!("use {}: {error}", path.display()))?;
        let name = path.file_name().unwrap_or_default();
        crds.insert(name.to_string_lossy().into_owned(), validator);
    }
    Ok(crds)
}

fn read(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))
}
