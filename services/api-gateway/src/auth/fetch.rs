//! Small JSON documents over HTTPS: an issuer's configuration and keys.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;

/// Longest time for one document.
const TIME_MAX: Duration = Duration::from_secs(5);
/// Most bytes of one document.
const BYTES_MAX: usize = 1 << 20;

/// Fetches documents. Follows no redirects, and speaks no plain HTTP.
pub(crate) struct Fetcher(Client<HttpsConnector<HttpConnector>, Empty<Bytes>>);

impl Fetcher {
    /// Believes the authorities in `ca_file`, or else those of the host.
    ///
    /// # Errors
    /// When there are none, or the file can't be read.
    pub(crate) fn new(ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let builder = HttpsConnectorBuilder::new();
        let builder = match ca_file {
            Some(path) => builder.with_tls_config(trusting(path)?),
            None => builder
                .with_provider_and_native_roots(ring::default_provider())
                .context("read the authorities of this host")?,
        };
        let connector = builder.https_only().enable_http1().build();
        Ok(Self(Client::builder(TokioExecutor::new()).build(connector)))
    }

    /// The document at `url`.
    ///
    /// # Errors
    /// When it can't be had in time, is too large, or is not what was expected.
    pub(crate) async fn get<T: DeserializeOwned>(&self, url: &str) -> anyhow::Result<T> {
        let fetched = tokio::time::timeout(TIME_MAX, self.bytes(url)).await;
        let fetched = fetched.unwrap_or_else(|_| bail!("no answer within {TIME_MAX:?}"));
        let bytes = fetched.with_context(|| format!("fetch {url}"))?;
        serde_json::from_slice(&bytes).with_context(|| format!("understand {url}"))
    }

    async fn bytes(&self, url: &str) -> anyhow::Result<Bytes> {
        let uri: Uri = url.parse().context("it is no URL")?;
        let request = http::Request::get(uri)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "godwit-api-gateway")
            .body(Empty::new())?;
        let response = self.0.request(request).await?;
        let status = response.status();
        ensure!(status == StatusCode::OK, "the answer is {status}");
        let body = Limited::new(response.into_body(), BYTES_MAX)
            .collect()
            .await;
        match body {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) => bail!("read the answer: {error}"),
        }
    }
}

fn trusting(path: &Path) -> anyhow::Result<ClientConfig> {
    let name = || format!("read the authorities in {}", path.display());
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_file_iter(path).with_context(name)? {
        roots
            .add(authority.with_context(name)?)
            .with_context(name)?;
    }
    ensure!(!roots.is_empty(), "{} has no certificate", path.display());
    let config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}
