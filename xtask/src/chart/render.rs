//! The chart through a real helm.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::programs::NEWEST;

/// One rendered object.
pub(super) type Manifest = Value;

/// The namespace and the name that the chart is rendered for.
const RELEASE: [&str; 4] = ["template", "godwit", "--namespace", "godwit-system"];
/// What a file of refused values begins with: a part of what helm must say.
const SAYS: &str = "# Says: ";

/// A helm and a chart.
pub(super) struct Helm {
    program: PathBuf,
    chart: PathBuf,
}

impl Helm {
    pub(super) fn new(program: &Path, chart: &Path) -> Self {
        Self {
            program: program.to_owned(),
            chart: chart.to_owned(),
        }
    }

    /// `helm lint --strict` with the default values.
    pub(super) fn lint(&self) -> Result<()> {
        self.lint_how(&[])
    }

    /// The same with a file of values.
    pub(super) fn lint_with(&self, values: &Path) -> Result<()> {
        self.lint_how(&["--values", &values.to_string_lossy()])
    }

    fn lint_how(&self, more: &[&str]) -> Result<()> {
        let output = self.run(&[&["lint", "--strict", "--quiet"], more].concat())?;
        ensure!(
            output.status.success(),
            "helm lint --strict {}: {}{}",
            more.join(" "),
            String::from_utf8_lossy(&output.stdout),
            said(&output)
        );
        Ok(())
    }

    /// Every object of `helm template` for a version of Kubernetes, hooks and tests too.
    pub(super) fn render(&self, values: &Path, kubernetes: &str) -> Result<Vec<Manifest>> {
        let output = self.template(values, kubernetes)?;
        ensure!(
            output.status.success(),
            "helm template --values {}: {}",
            values.display(),
            said(&output)
        );
        let text = String::from_utf8(output.stdout)?;
        let mut manifests = vec![];
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let manifest = Value::deserialize(document)
                .with_context(|| format!("read what came of {}", values.display()))?;
            if !manifest.is_null() {
                manifests.push(manifest);
            }
        }
        Ok(manifests)
    }

    /// What is wrong with how `values` are refused.
    pub(super) fn refuses(&self, values: &Path) -> Result<Option<String>> {
        let text = std::fs::read_to_string(values)?;
        let expected = text.lines().next().and_then(|line| line.strip_prefix(SAYS));
        let expected =
            expected.with_context(|| format!("{} does not begin with {SAYS}", values.display()))?;
        let output = self.template(values, NEWEST)?;
        let said = said(&output);
        if output.status.success() {
            return Ok(Some(format!("{} are not refused", values.display())));
        }
        Ok((!said.contains(expected))
            .then(|| format!("{} are refused by {said:?}", values.display())))
    }

    fn template(&self, values: &Path, kubernetes: &str) -> Result<Output> {
        let values = values.to_string_lossy();
        let more: [&str; 4] = ["--values", &values, "--kube-version", kubernetes];
        self.run(&[&RELEASE[..], &more[..]].concat())
    }

    fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg(&self.chart);
        command.output().context("run helm")
    }
}

/// What helm complained of: that the chart shares files with the repository is none.
fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = text.lines().filter(|line| !line.contains("symbolic link"));
    lines.collect::<Vec<_>>().join("\n")
}

/// What an object is called, for people.
pub(super) fn title(manifest: &Manifest) -> String {
    let part = |pointer: &str| {
        let part = manifest.pointer(pointer).and_then(Value::as_str);
        part.unwrap_or_default().to_owned()
    };
    format!("{} {}", part("/kind"), part("/metadata/name"))
}

/// The pod of a workload, or of a pod itself.
pub(super) fn pod(manifest: &Manifest) -> Option<&Value> {
    match manifest["kind"].as_str()? {
        "Pod" => Some(&manifest["spec"]),
        "Deployment" | "StatefulSet" | "DaemonSet" | "Job" => {
            Some(&manifest["spec"]["template"]["spec"])
        }
        _ => None,
    }
}

/// Which part of Godwit an object belongs to.
pub(super) fn component(manifest: &Manifest) -> &str {
    let label = &manifest["metadata"]["labels"]["app.kubernetes.io/component"];
    label.as_str().unwrap_or_default()
}
