//! Small JSON documents over HTTPS: an issuer's configuration and keys, a cluster's answers.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
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
pub(crate) struct Fetcher(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Fetcher {
    /// Believes the authorities in `ca_file`, or else those of the host.
    ///
    /// # Errors
    /// When there are none, or the file can't be read.
    pub(crate) fn new(ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = ca_file else {
            let builder = HttpsConnectorBuilder::new()
                .with_provider_and_native_roots(ring::default_provider())
                .context("read the authorities of this host")?;
            return Ok(Self::over(builder.https_only().enable_http1().build()));
        };
        let name = || format!("read the authorities in {}", path.display());
        let pem = std::fs::read(path).with_context(name)?;
        Self::trusting(&pem).with_context(name)
    }

    /// Believes these authorities, PEM, and no others.
    ///
    /// # Errors
    /// When there are none, or one can't be used.
    pub(crate) fn trusting(pem: &[u8]) -> anyhow::Result<Self> {
        let builder = HttpsConnectorBuilder::new().with_tls_config(trusting(pem)?);
        Ok(Self::over(builder.https_only().enable_http1().build()))
    }

    fn over(connector: HttpsConnector<HttpConnector>) -> Self {
        Self(Client::builder(TokioExecutor::new()).build(connector))
    }

    /// The document at `url`.
    ///
    /// # Errors
    /// When it can't be had in time, is too large, or is not what was expected.
    pub(crate) async fn get<T: DeserializeOwned>(&self, url: &str) -> anyhow::Result<T> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is no URL"))?;
        let request = Request::get(uri).body(Full::default())?;
        self.call(request).await
    }

    /// The document that answers `request`.
    ///
    /// # Errors
    /// When it can't be had in time, is too large, or is not what was expected.
    pub(crate) async fn call<T: DeserializeOwned>(
        &self,
        request: Request<Full<Bytes>>,
    ) -> anyhow::Result<T> {
        let url = request.uri().clone();
        let fetched = tokio::time::timeout(TIME_MAX, self.bytes(request)).await;
        let fetched = fetched.unwrap_or_else(|_| bail!("no answer within {TIME_MAX:?}"));
        let bytes = fetched.with_context(|| format!("fetch {url}"))?;
        serde_json::from_slice(&bytes).with_context(|| format!("understand {url}"))
    }

    async fn bytes(&self, mut request: Request<Full<Bytes>>) -> anyhow::Result<Bytes> {
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let agent = HeaderValue::from_static("godwit-api-gateway");
        headers.insert(header::USER_AGENT, agent);
        let response = self.0.request(request).await?;
        let status = response.status();
        ensure!(status.is_success(), "the answer is {status}");
        let body = Limited::new(response.into_body(), BYTES_MAX)
            .collect()
            .await;
        match body {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) => bail!("read the answer: {error}"),
        }
    }
}

fn trusting(pem: &[u8]) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(pem) {
        roots.add(authority?)?;
    }
    ensure!(!roots.is_empty(), "there is no certificate");
    let config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}
