//! What a cluster tells the servers that extend it: the ConfigMap
//! `kube-system/extension-apiserver-authentication`.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use http::HeaderName;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use serde_json::Value;

use super::front_proxy::FrontProxy;
use crate::tls;

/// The settings, understood.
pub(super) struct Settings {
    /// Makes the certificates of the cluster's users; `None` if it has none.
    clients: Option<Arc<dyn ClientCertVerifier>>,
    /// `None` if the cluster has none.
    pub(super) front_proxy: Option<FrontProxy>,
}

impl Settings {
    /// Reads the ConfigMap's `data`.
    ///
    /// # Errors
    /// When an entry that is there can't be used: half of it is not believed either.
    pub(super) fn parse(data: &Value) -> anyhow::Result<Self> {
        let clients = authority(data, "client-ca-file")?;
        let front_proxy = match authority(data, "requestheader-client-ca-file")? {
            None => None,
            Some(authority) => Some(FrontProxy {
                authority,
                names: list(data, "requestheader-allowed-names")?,
                users: headers(data, "requestheader-username-headers")?,
                groups: headers(data, "requestheader-group-headers")?,
                uids: headers(data, "requestheader-uid-headers")?,
                extras: prefixes(data, "requestheader-extra-headers-prefix")?,
            }),
        };
        Ok(Self {
            clients,
            front_proxy,
        })
    }

    /// Whether the authority of the cluster's users vouches for this client.
    pub(super) fn knows_client(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> bool {
        let authority = self.clients.as_ref();
        authority.is_some_and(|authority| vouches(authority.as_ref(), chain, now))
    }
}

/// Whether `authority` made the first certificate, by way of the others.
pub(super) fn vouches(
    authority: &dyn ClientCertVerifier,
    chain: &[CertificateDer<'_>],
    now: UnixTime,
) -> bool {
    let Some((client, between)) = chain.split_first() else {
        return false;
    };
    authority.verify_client_cert(client, between, now).is_ok()
}

fn authority(data: &Value, key: &str) -> anyhow::Result<Option<Arc<dyn ClientCertVerifier>>> {
    let Some(pem) = data[key].as_str().filter(|pem| !pem.trim().is_empty()) else {
        return Ok(None);
    };
    let authority = tls::client_authority(pem.as_bytes());
    Ok(Some(authority.with_context(|| format!("use {key}"))?))
}

/// A list of texts, which is JSON in a text; empty if it isn't there.
fn list(data: &Value, key: &str) -> anyhow::Result<Vec<String>> {
    match data[key].as_str().filter(|text| !text.trim().is_empty()) {
        None => Ok(vec![]),
        Some(text) => serde_json::from_str(text).with_context(|| format!("understand {key}")),
    }
}

fn headers(data: &Value, key: &str) -> anyhow::Result<Vec<HeaderName>> {
    let names = list(data, key)?;
    let names = names.iter().map(|name| name.trim().parse());
    let names: Result<_, _> = names.collect();
    names.with_context(|| format!("understand {key}"))
}

fn prefixes(data: &Value, key: &str) -> anyhow::Result<Vec<String>> {
    let prefixes = list(data, key)?;
    let prefixes = prefixes.into_iter().map(|prefix| {
        let prefix = prefix.trim().to_lowercase();
        // Every header would begin with it.
        ensure!(!prefix.is_empty(), "understand {key}: a prefix is empty");
        Ok(prefix)
    });
    prefixes.collect()
}
