//! The services' configuration as the chart and `packaging` write it, read by the services
//! themselves: a key that they don't know is an error to them.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::render::{Manifest, component, pod, title};
use crate::tools;

/// Every program that has a configuration.
const ROLES: [&str; 5] = [
    "api-gateway",
    "scheduler",
    "migration-coordinator",
    "maintenance-service",
    "node-agent",
];
/// What stands for a value that only a running pod has.
const FROM_FIELD: [(&str, &str); 2] =
    [("spec.nodeName", "worker1"), ("status.hostIP", "10.0.0.11")];

/// Where the chart and a service don't understand each other.
pub(super) fn violations(manifests: &[Manifest]) -> Result<Vec<String>> {
    let mut wrong = vec![];
    for manifest in manifests {
        let file = &manifest["data"]["godwit.toml"];
        let Some(text) = file.as_str().filter(|_| manifest["kind"] == "ConfigMap") else {
            continue;
        };
        let role = component(manifest);
        let workload = manifests.iter().find(|other| {
            matches!(
                other["kind"].as_str(),
                Some("Deployment" | "StatefulSet" | "DaemonSet")
            ) && component(other) == role
        });
        let workload = workload.with_context(|| format!("nothing runs {role}"))?;
        if let Err(error) = read_by_service(role, text, environment(workload)) {
            wrong.push(format!("{}: {error:#}", title(manifest)));
        }
    }
    Ok(wrong)
}

/// Where the examples in `packaging` and a service don't understand each other.
pub(super) fn packaged() -> Result<Vec<String>> {
    let mut wrong = vec![];
    for role in ROLES {
        let path = tools::root().join(format!("packaging/config/{role}.toml"));
        let text = std::fs::read_to_string(&path);
        let text = text.with_context(|| format!("read {}", path.display()))?;
        if let Err(error) = read_by_service(role, &text, BTreeMap::new()) {
            wrong.push(format!("{}: {error:#}", path.display()));
        }
    }
    Ok(wrong)
}

fn read_by_service(role: &str, text: &str, environment: BTreeMap<String, String>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("godwit.toml");
    std::fs::write(&file, text)?;
    let program = tools::bin_dir("dev").join(format!("godwit-{role}"));
    let mut command = Command::new(&program);
    command.args(["--print-config", "--config"]).arg(&file);
    let output = command.envs(environment).output();
    let output = output.with_context(|| format!("run {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{}", said.trim());
    Ok(())
}

/// What the container's environment has for the service, as the kubelet would expand it.
fn environment(workload: &Manifest) -> BTreeMap<String, String> {
    let mut known = BTreeMap::new();
    let Some(pod) = pod(workload) else {
        return known;
    };
    for entry in pod["containers"][0]["env"].as_array().into_iter().flatten() {
        let name = entry["name"].as_str().unwrap_or_default().to_owned();
        known.insert(name, value_of(entry, &known));
    }
    known
}

fn value_of(entry: &Value, known: &BTreeMap<String, String>) -> String {
    let Some(text) = entry["value"].as_str() else {
        let path = &entry["valueFrom"]["fieldRef"]["fieldPath"];
        let found = FROM_FIELD.iter().find(|(field, _)| path == field);
        return found.map_or("from-outside", |(_, value)| value).to_owned();
    };
    let expand = |text: String, (name, value): (&String, &String)| {
        text.replace(&format!("$({name})"), value)
    };
    known.iter().fold(text.to_owned(), expand)
}
