//! One question to the API, as the user of a kubeconfig.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::kubeconfig::Access;

/// Longest wait for the API.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Largest answer that is read: one object.
const BODY_MAX: usize = 4 << 20;

/// Asks for `path`, such as `/version`. Answers the body, JSON.
///
/// # Errors
/// When the API can't be reached within 10 s, is not whom the authority vouches for, or refuses;
/// then the text says why in its words.
pub async fn get(access: &Access, path: &str) -> anyhow::Result<Bytes> {
    let answer = tokio::time::timeout(ANSWER_MAX, ask(access, path)).await;
    answer.context("no answer within 10 s")?
}

async fn ask(access: &Access, path: &str) -> anyhow::Result<Bytes> {
    let uri: Uri = access
        .server
        .parse()
        .context("understand the server's URL")?;
    ensure!(
        uri.scheme_str() == Some("https"),
        "{} is not https",
        access.server
    );
    let host = uri.host().context("the server's URL has no host")?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(443);
    let stream = TcpStream::connect((bare, port)).await;
    let stream = stream.with_context(|| format!("connect to {host}:{port}"))?;
    let name = ServerName::try_from(bare.to_owned())?;
    let tls = TlsConnector::from(Arc::new(tls(access)?));
    let stream = tls.connect(name, stream).await.context("talk TLS")?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::get(format!("{}{path}", uri.path().trim_end_matches('/')))
        .header(header::HOST, format!("{host}:{port}"))
        .header(header::ACCEPT, "application/json");
    if let Some(token) = &access.token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let answer = sender
        .send_request(request.body(Empty::<Bytes>::new())?)
        .await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), BODY_MAX).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("read the answer: {error}"))?;
    let body = body.to_bytes();
    if !status.is_success() {
        let said: Value = serde_json::from_slice(&body).unwrap_or_default();
        match said["message"].as_str() {
            Some(message) => bail!("{message}"),
            None => bail!("the server answers {status}"),
        }
    }
    Ok(body)
}

fn tls(access: &Access) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(&access.authority) {
        roots.add(authority.context("understand the authority")?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &access.certificate else {
        return Ok(config.with_no_client_auth());
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.context("understand the user's certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key).context("understand the user's key")?;
    Ok(config.with_client_auth_cert(chain, key)?)
}
