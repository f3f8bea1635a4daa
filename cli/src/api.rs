//! One question to the API, as the user of a kubeconfig or of a pod.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
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

/// What is asked for.
struct Ask<'a> {
    method: Method,
    path: &'a str,
    /// The body and its form; `None` when there is none.
    body: Option<(&'a str, &'a Value)>,
}

/// Asks for `path`, such as `/version`. Answers the body, JSON.
///
/// # Errors
/// When the API can't be reached within 10 s, is not whom the authority vouches for, or refuses;
/// then the text says why in its words.
pub async fn get(access: &Access, path: &str) -> anyhow::Result<Bytes> {
    call(access, (Method::GET, path), None).await
}

/// As [`get`], and answers `None` when there is no such thing.
///
/// # Errors
/// As [`get`].
pub async fn find(access: &Access, path: &str) -> anyhow::Result<Option<Bytes>> {
    let ask = Ask {
        method: Method::GET,
        path,
        body: None,
    };
    match answer(access, ask).await? {
        (StatusCode::NOT_FOUND, _) => Ok(None),
        (status, body) => accepted(status, body).map(Some),
    }
}

/// Makes an object of the collection at `path`. Answers it as it is stored.
///
/// # Errors
/// As [`get`]. After a silence of 10 s it may have been made all the same.
pub async fn create(access: &Access, path: &str, object: &Value) -> anyhow::Result<Bytes> {
    let body = ("application/json", object);
    call(access, (Method::POST, path), Some(body)).await
}

/// Makes the object at `path`, which has a query, or changes it: server-side apply.
///
/// # Errors
/// As [`create`].
pub async fn apply(access: &Access, path: &str, object: &Value) -> anyhow::Result<Bytes> {
    // JSON is YAML.
    let body = ("application/apply-patch+yaml", object);
    call(access, (Method::PATCH, path), Some(body)).await
}

/// Deletes the object at `path`.
///
/// # Errors
/// As [`get`].
pub async fn delete(access: &Access, path: &str) -> anyhow::Result<()> {
    call(access, (Method::DELETE, path), None).await.map(drop)
}

async fn call(
    access: &Access,
    (method, path): (Method, &str),
    body: Option<(&str, &Value)>,
) -> anyhow::Result<Bytes> {
    let (status, body) = answer(access, Ask { method, path, body }).await?;
    accepted(status, body)
}

fn accepted(status: StatusCode, body: Bytes) -> anyhow::Result<Bytes> {
    if status.is_success() {
        return Ok(body);
    }
    match message(&body) {
        Some(message) => bail!("{message}"),
        None => bail!("the server answers {status}"),
    }
}

/// What a Status says.
fn message(body: &Bytes) -> Option<String> {
    let said: Value = serde_json::from_slice(body).ok()?;
    said["message"].as_str().map(str::to_owned)
}

async fn answer(access: &Access, ask: Ask<'_>) -> anyhow::Result<(StatusCode, Bytes)> {
    let answer = tokio::time::timeout(ANSWER_MAX, exchange(access, ask)).await;
    answer.context("no answer within 10 s")?
}

async fn exchange(access: &Access, ask: Ask<'_>) -> anyhow::Result<(StatusCode, Bytes)> {
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
    let path = format!("{}{}", uri.path().trim_end_matches('/'), ask.path);
    let mut request = Request::builder()
        .method(ask.method)
        .uri(path)
        .header(header::HOST, format!("{host}:{port}"))
        .header(header::ACCEPT, "application/json");
    if let Some((form, _)) = ask.body {
        request = request.header(header::CONTENT_TYPE, form);
    }
    if let Some(token) = &access.token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let body = ask.body.map(|(_, object)| object.to_string());
    let body = Full::new(Bytes::from(body.unwrap_or_default()));
    let answer = sender.send_request(request.body(body)?).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), BODY_MAX).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("read the answer: {error}"))?;
    Ok((status, body.to_bytes()))
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
