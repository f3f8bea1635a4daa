//! `godwit pki init --secrets`: what was issued, in Secrets of Kubernetes.
//!
//! For the hook of the Helm chart. Three Secrets, since they have different readers: the authority
//! with its key is for this command alone, the second for the services, the third for the hosts.

use std::path::Path;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::file::write_private;
use super::issue::{ADMIN, Init, SERVICES, init};
use crate::api;
use crate::kubeconfig::Access;

/// The authority's files.
const AUTHORITY: [&str; 2] = ["ca.crt", "ca.key"];
/// Who owns what is written, for server-side apply.
const MANAGER: &str = "godwit-certificates";

/// Where the Secrets are.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// Which cluster, and as whom.
    pub access: &'a Access,
    /// In which namespace.
    pub namespace: &'a str,
    /// What their names begin with.
    pub prefix: &'a str,
}

/// As [`init`], with the authority that the Secrets hold, if any; then keeps all in the Secrets.
///
/// # Errors
/// As [`init`], and when the cluster refuses. Another that made an authority at the same time
/// wins: asked again, its authority is used.
pub async fn init_into(place: Place<'_>, wanted: &Init) -> anyhow::Result<Vec<String>> {
    let known = take_authority(place, &wanted.dir).await?;
    let files = init(wanted)?;
    if !known {
        let secret = secret(place, "authority", &read(&wanted.dir, AUTHORITY)?);
        let created = api::create(place.access, &collection(place), &secret).await;
        created.context("keep the authority")?;
    }
    let pairs = |name: &str| [format!("{name}.crt"), format!("{name}.key")];
    let mut served = vec!["ca.crt".to_owned(), "kubeconfig".to_owned()];
    served.extend(SERVICES.into_iter().chain([ADMIN]).flat_map(pairs));
    apply(place, "tls", &read(&wanted.dir, served)?).await?;
    let mut hosts = vec!["ca.crt".to_owned()];
    hosts.extend(wanted.nodes.iter().flat_map(|node| pairs(&node.name)));
    apply(place, "node-tls", &read(&wanted.dir, hosts)?).await?;
    Ok(files)
}

/// Writes the authority that is kept to `dir`; answers whether there is one.
async fn take_authority(place: Place<'_>, dir: &Path) -> anyhow::Result<bool> {
    let path = format!("{}/{}-authority", collection(place), place.prefix);
    let found = api::find(place.access, &path).await;
    let Some(body) = found.context("look for an authority")? else {
        return Ok(false);
    };
    let secret: Value = serde_json::from_slice(&body).context("understand the authority")?;
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    for file in AUTHORITY {
        let Some(data) = secret["data"][file].as_str() else {
            bail!("the Secret {}-authority has no {file}", place.prefix);
        };
        let text = String::from_utf8(STANDARD.decode(data)?)?;
        write_private(&dir.join(file), &text)?;
    }
    Ok(true)
}

async fn apply(place: Place<'_>, name: &str, data: &Map<String, Value>) -> anyhow::Result<()> {
    let path = format!(
        "{}/{}-{name}?fieldManager={MANAGER}&force=true",
        collection(place),
        place.prefix
    );
    let kept = api::apply(place.access, &path, &secret(place, name, data)).await;
    kept.with_context(|| format!("keep {}-{name}", place.prefix))?;
    Ok(())
}

fn secret(place: Place<'_>, name: &str, data: &Map<String, Value>) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": format!("{}-{name}", place.prefix),
            "namespace": place.namespace,
            "labels": {"app.kubernetes.io/part-of": "godwit"},
        },
        "type": "Opaque",
        "data": data,
    })
}

fn collection(place: Place<'_>) -> String {
    format!("/api/v1/namespaces/{}/secrets", place.namespace)
}

fn read(
    dir: &Path,
    files: impl IntoIterator<Item = impl AsRef<str>>,
) -> anyhow::Result<Map<String, Value>> {
    let encode = |file: &str| -> anyhow::Result<(String, Value)> {
        let bytes = std::fs::read(dir.join(file)).with_context(|| format!("read {file}"))?;
        Ok((file.to_owned(), STANDARD.encode(bytes).into()))
    };
    files
        .into_iter()
        .map(|file| encode(file.as_ref()))
        .collect()
}
