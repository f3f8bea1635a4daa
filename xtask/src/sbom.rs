//! `cargo xtask sbom`: what each program is made of, as a bill of materials in CycloneDX's JSON.
//!
//! Made from what cargo resolved, with the checksums of Cargo.lock; checked against `cargo tree`,
//! which reckons for itself what a program is built of. The same sources make the same files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Node, Package, PackageId};
use clap::Args;
use cyclonedx_bom::models::component::Classification;
use cyclonedx_bom::models::dependency::{Dependencies, Dependency};
use cyclonedx_bom::models::hash::{Hash, HashAlgorithm, HashValue, Hashes};
use cyclonedx_bom::models::license::{LicenseChoice, Licenses};
use cyclonedx_bom::models::tool::{Tool, Tools};
use cyclonedx_bom::prelude::{
    Bom, Component, Components, Metadata as About, Purl, SpdxExpression, SpecVersion, Validate,
};
use toml::Value;

use crate::tools;

/// What the programs are built for.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// Where the bills go.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Folder for a `PROGRAM.cdx.json` each [default: target/sbom].
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Writes a bill for each program, after it was checked.
///
/// # Errors
/// When cargo can't tell what a program is made of, or a bill is not complete.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let folder = arguments.output.clone();
    let folder = folder.unwrap_or_else(|| tools::bin_dir("dev").join("../sbom"));
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let sources = Sources::read()?;
    for program in tools::PROGRAMS {
        let text = json(sources.bill(program)?)?;
        let count = check(&text, &sources, program).with_context(|| program.to_owned())?;
        let path = folder.join(format!("{program}.cdx.json"));
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        println!("{}: {count} packages", path.display());
    }
    Ok(())
}

/// Makes and checks every bill, and writes none.
///
/// # Errors
/// As [`run`].
pub(crate) fn check_all() -> Result<()> {
    let sources = Sources::read()?;
    for program in tools::PROGRAMS {
        let text = json(sources.bill(program)?)?;
        let count = check(&text, &sources, program).with_context(|| program.to_owned())?;
        println!("{program}: {count} packages");
    }
    Ok(())
}

/// A package by its name and version.
type Key = (String, String);

/// What cargo knows.
struct Sources {
    metadata: Metadata,
    /// Of what comes from a registry.
    checksums: BTreeMap<Key, String>,
}

impl Sources {
    fn read() -> Result<Self> {
        let options = ["--locked", "--filter-platform", PLATFORM].map(str::to_owned);
        let metadata = MetadataCommand::new()
            .manifest_path(tools::root().join("Cargo.toml"))
            .other_options(options)
            .exec()
            .context("read the workspace")?;
        let lock = std::fs::read_to_string(tools::root().join("Cargo.lock"));
        let lock: Value = toml::from_str(&lock.context("read Cargo.lock")?)?;
        let packages = lock["package"].as_array().context("read Cargo.lock")?;
        let checksums = packages.iter().filter_map(|package| {
            let text = |key: &str| package.get(key)?.as_str().map(str::to_owned);
            Some(((text("name")?, text("version")?), text("checksum")?))
        });
        Ok(Self {
            checksums: checksums.collect(),
            metadata,
        })
    }

    fn bill(&self, program: &str) -> Result<Bom> {
        let nodes = self.nodes()?;
        let mut packages = self.metadata.packages.iter();
        let root = packages.find(|package| package.name.as_str() == program);
        let root = root.with_context(|| format!("there is no package {program}"))?;
        let mut found = BTreeSet::from([&root.id]);
        let mut next = vec![&root.id];
        while let Some(id) = next.pop() {
            next.extend(built_of(&nodes, id)?.filter(|one| found.insert(*one)));
        }
        let packages = found.iter().map(|id| Ok(&self.metadata[*id]));
        let packages: Vec<&Package> = packages.collect::<Result<_>>()?;
        let parts = packages.iter().filter(|package| package.id != root.id);
        let parts = parts.map(|package| self.component(package, Classification::Library));
        let links = packages.iter().map(|package| {
            let parts = built_of(&nodes, &package.id)?;
            let mut parts: Vec<String> = parts
                .map(|id| Ok(purl(&self.metadata[id])?.to_string()))
                .collect::<Result<_>>()?;
            parts.sort();
            parts.dedup();
            Ok(Dependency {
                dependency_ref: purl(package)?.to_string(),
                dependencies: parts,
            })
        });
        Ok(Bom {
            serial_number: None,
            metadata: Some(About {
                tools: Some(Tools::List(vec![Tool::new(
                    "Godwit",
                    "cargo xtask sbom",
                    &root.version.to_string(),
                )])),
                component: Some(self.component(root, Classification::Application)?),
                ..About::default()
            }),
            components: Some(Components(parts.collect::<Result<_>>()?)),
            dependencies: Some(Dependencies(links.collect::<Result<_>>()?)),
            spec_version: SpecVersion::V1_5,
            ..Bom::default()
        })
    }

    fn nodes(&self) -> Result<BTreeMap<&PackageId, &Node>> {
        let resolved = self.metadata.resolve.as_ref();
        let resolved = resolved.context("cargo resolved nothing")?;
        Ok(resolved.nodes.iter().map(|node| (&node.id, node)).collect())
    }

    fn component(&self, package: &Package, kind: Classification) -> Result<Component> {
        let (name, version) = key(package);
        let purl = purl(package)?;
        let licence = package.license.clone();
        let licence = licence.with_context(|| format!("{name} has no licence"))?;
        let licence = SpdxExpression::parse_lax(licence)
            .map_err(|error| anyhow::anyhow!("the licence of {name}: {error}"))?;
        let mut component = Component::new(kind, &name, &version, Some(purl.to_string()));
        component.purl = Some(purl);
        component.licenses = Some(Licenses(vec![LicenseChoice::Expression(licence)]));
        component.hashes = self.checksums.get(&(name, version)).map(|checksum| {
            Hashes(vec![Hash {
                alg: HashAlgorithm::SHA_256,
                content: HashValue(checksum.clone()),
            }])
        });
        Ok(component)
    }
}

/// What is built into `id`; tests and build scripts are not.
fn built_of<'a>(
    nodes: &BTreeMap<&'a PackageId, &'a Node>,
    id: &PackageId,
) -> Result<impl Iterator<Item = &'a PackageId> + use<'a>> {
    let node = nodes
        .get(id)
        .with_context(|| format!("{id} is not resolved"))?;
    let normal = node.deps.iter().filter(|dependency| {
        let mut kinds = dependency.dep_kinds.iter();
        kinds.any(|kind| kind.kind == DependencyKind::Normal)
    });
    Ok(normal.map(|dependency| &dependency.pkg))
}

fn key(package: &Package) -> Key {
    (package.name.to_string(), package.version.to_string())
}

/// Our own packages are in no registry.
fn purl(package: &Package) -> Result<Purl> {
    let kind = match package.source {
        Some(_) => "cargo",
        None => "generic",
    };
    let (name, version) = key(package);
    Purl::new(kind, &name, &version).with_context(|| format!("name {name}"))
}

fn json(bill: Bom) -> Result<String> {
    let mut text = vec![];
    bill.output_as_json_v1_5(&mut text)
        .context("write the bill")?;
    Ok(String::from_utf8(text)?)
}

/// Reads a bill as anybody would, and answers how many packages it names.
fn check(text: &str, sources: &Sources, program: &str) -> Result<usize> {
    let bill = Bom::parse_from_json_v1_5(text.as_bytes()).context("read the bill again")?;
    let valid = bill.validate();
    ensure!(valid.passed(), "the bill is not valid: {valid:?}");
    let parts = bill.components.map(|parts| parts.0).unwrap_or_default();
    let about = bill.metadata.and_then(|about| about.component);
    let mut named = BTreeSet::new();
    for part in parts.iter().chain(&about) {
        let name = part.name.to_string();
        let version = part.version.as_ref().map(ToString::to_string);
        let key = (name.clone(), version.unwrap_or_default());
        ensure!(!key.1.is_empty(), "{name} has no version");
        ensure!(part.purl.is_some(), "{name} has no purl");
        let licences = part.licenses.as_ref().map_or(0, |all| all.0.len());
        ensure!(licences == 1, "{name} has no licence");
        let hash = part.hashes.as_ref().and_then(|hashes| hashes.0.first());
        let hash = hash.map(|hash| &hash.content.0);
        ensure!(
            hash == sources.checksums.get(&key),
            "{name} has another hash than Cargo.lock"
        );
        named.insert(key);
    }
    let built = tree(program)?;
    let missing: Vec<_> = built.difference(&named).collect();
    ensure!(missing.is_empty(), "the bill does not name {missing:?}");
    Ok(named.len())
}

/// What `program` is built of, as `cargo tree` knows it.
fn tree(program: &str) -> Result<BTreeSet<Key>> {
    let output = tools::cargo_command()
        .args([
            "tree",
            "--locked",
            "--package",
            program,
            "--edges",
            "normal",
        ])
        .args(["--target", PLATFORM, "--prefix", "none", "--format", "{p}"])
        .output()
        .context("run cargo tree")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo tree: {}", said.trim());
    let text = String::from_utf8(output.stdout)?;
    // NAME vVERSION (WHERE)
    let packages = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
        Some((name.to_owned(), version.to_owned()))
    });
    let packages: BTreeSet<Key> = packages.collect();
    ensure!(packages.len() > 1, "cargo tree named nothing");
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_sources_make_the_same_complete_bill() {
        let sources = Sources::read().unwrap();
        let program = "godwit-node-agent";
        let text = json(sources.bill(program).unwrap()).unwrap();
        assert_eq!(json(sources.bill(program).unwrap()).unwrap(), text);
        assert!(check(&text, &sources, program).unwrap() > 100);
    }

    #[test]
    fn a_bill_that_lacks_something_is_not_taken() {
        let sources = Sources::read().unwrap();
        let program = "godwit-cli";
        let refused = |change: &dyn Fn(&mut Component)| {
            let mut bill = sources.bill(program).unwrap();
            let parts = bill.components.as_mut().unwrap();
            let part = parts
                .0
                .iter_mut()
                .find(|part| part.name.to_string() == "ring");
            change(part.unwrap());
            let refused = check(&json(bill).unwrap(), &sources, program);
            refused.unwrap_err().to_string()
        };
        assert!(refused(&|part| part.hashes = None).contains("hash"));
        assert!(refused(&|part| part.licenses = None).contains("licence"));
        assert!(refused(&|part| part.purl = None).contains("purl"));
        let mut less = sources.bill(program).unwrap();
        let parts = less.components.as_mut().unwrap();
        parts.0.retain(|part| part.name.to_string() != "ring");
        let refused = check(&json(less).unwrap(), &sources, program).unwrap_err();
        assert!(refused.to_string().contains("ring"), "{refused}");
    }
}
