//! `oc project NAME` for those who have no oc: makes a project the one that kubectl works in.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// The name under which kubectl, and an `oc` that is a link to it, find this as a plugin.
pub const PLUGIN: &str = "kubectl-project";

/// Changes the current context of the kubeconfig to `project`. Answers what to tell the user.
///
/// # Errors
/// When there is no such project, or kubectl can't be run.
pub fn switch(project: &str) -> Result<String> {
    let path = format!("/apis/project.openshift.io/v1/projects/{project}");
    kubectl(&["get", "--raw", &path])?;
    let namespace = format!("--namespace={project}");
    kubectl(&["config", "set-context", "--current", &namespace])?;
    let server = "jsonpath={.clusters[0].cluster.server}";
    let server = kubectl(&["config", "view", "--minify", "--output", server])?;
    Ok(format!(
        "Now using project {project:?} on server {:?}.",
        server.trim()
    ))
}

fn kubectl(arguments: &[&str]) -> Result<String> {
    let output = Command::new("kubectl")
        .args(arguments)
        .output()
        .context("run kubectl")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}
