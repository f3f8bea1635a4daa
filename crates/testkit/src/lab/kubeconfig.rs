//! The file with which kubectl finds the lab's API and says who it is.

use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::certs::{Ca, Subject, write_private};

/// Writes a kubeconfig for `user` in `group`, unless there is one.
///
/// # Errors
/// When no certificate can be made, or the file not written.
pub(super) fn write(ca: &Ca, path: &Path, server: &str, (user, group): (&str, &str)) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let pem = ca.issue(Subject {
        name: user,
        organizations: &[group],
        served_as: &[],
    })?;
    let encode = |text: &str| STANDARD.encode(text);
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "godwit-lab",
        "clusters": [{
            "name": "godwit-lab",
            "cluster": { "server": server, "certificate-authority-data": encode(&ca.cert()) },
        }],
        "users": [{
            "name": user,
            "user": {
                "client-certificate-data": encode(&pem.cert),
                "client-key-data": encode(&pem.key),
            },
        }],
        "contexts": [{
            "name": "godwit-lab",
            "context": { "cluster": "godwit-lab", "user": user, "namespace": "default" },
        }],
    });
    write_private(path, &serde_json::to_string_pretty(&config)?).context("write the kubeconfig")
}
