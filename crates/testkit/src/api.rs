//! The API over connections that stay open: starting a kubectl costs more than what is measured.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::client::conn::http2;
use hyper::header::HeaderValue;
pub use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ConfigBuilder;
use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::lab::Lab;

/// What clients ask for that understand plain objects.
const JSON: &str = "application/json";

/// Where a lab's API is, and who we are there.
#[derive(Clone)]
pub struct Api {
    tls: TlsConnector,
    address: SocketAddr,
    token: Option<String>,
}

/// A connection to say anything on, also what no client library would.
pub type Raw = TlsStream<TcpStream>;

/// One HTTP/2 connection.
pub type Http2 = http2::SendRequest<Full<Bytes>>;

/// One connection, open and warm.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    token: Option<String>,
}

impl Api {
    /// The API of `lab`, as its admin.
    ///
    /// # Errors
    /// When the lab's kubeconfig can't be read.
    pub fn of(lab: &Lab) -> Result<Self> {
        let text = std::fs::read_to_string(lab.kubeconfig()).context("read the kubeconfig")?;
        let config: Value = serde_json::from_str(&text).context("understand the kubeconfig")?;
        let field = |pointer: &str| -> Result<Vec<u8>> {
            let text = config.pointer(pointer).and_then(Value::as_str);
            let text = text.with_context(|| format!("the kubeconfig has no {pointer}"))?;
            Ok(STANDARD.decode(text)?)
        };
        let ca = field("/clusters/0/cluster/certificate-authority-data")?;
        let cert = field("/users/0/user/client-certificate-data")?;
        let key = field("/users/0/user/client-key-data")?;
        Self::at(&lab.server(), &ca, (&cert, &key))
    }

    /// The API at `server` (`https://ADDRESS:PORT`) that shows a certificate of `ca`, as whom the
    /// certificate and key are of. All three are PEM.
    ///
    /// # Errors
    /// When one of them can't be understood.
    pub fn at(server: &str, ca: &[u8], (cert, key): (&[u8], &[u8])) -> Result<Self> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert).collect();
        let key = PrivateKeyDer::from_pem_slice(key)?;
        let tls = trusting(ca)?.with_client_auth_cert(chain?, key)?;
        Self::over(tls, server, None)
    }

    /// The API at `server` that shows a certificate of `ca` (PEM), as whom the token is of, or as
    /// nobody.
    ///
    /// # Errors
    /// When one of them can't be understood.
    pub fn with_token(server: &str, ca: &[u8], token: Option<&str>) -> Result<Self> {
        Self::over(trusting(ca)?.with_no_client_auth(), server, token)
    }

    fn over(tls: rustls::ClientConfig, server: &str, token: Option<&str>) -> Result<Self> {
        let address = server.trim_start_matches("https://").parse();
        Ok(Self {
            tls: TlsConnector::from(Arc::new(tls)),
            address: address.with_context(|| format!("understand {server}"))?,
            token: token.map(str::to_owned),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Opens a connection on which nothing is said yet. What isn't read of it waits at the server,
    /// but for about `receive_buffer` bytes.
    ///
    /// # Errors
    /// When nobody listens, or TLS fails.
    pub async fn open(&self, receive_buffer: u32) -> Result<Raw> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(receive_buffer)?;
        let stream = socket.connect(self.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::from(self.address.ip());
        Ok(self.tls.connect(name, stream).await?)
    }

    /// Opens an HTTP/2 connection. What isn't read of an answer waits at the server, but for
    /// `window` bytes.
    ///
    /// # Errors
    /// When nobody listens, or TLS fails.
    pub async fn http2(&self, window: u32) -> Result<Http2> {
        let stream = TokioIo::new(self.open(1 << 20).await?);
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(window)
            .handshake(stream)
            .await?;
        tokio::spawn(async move {
            // Whoever uses the connection sees that it ended.
            let _ = connection.await;
        });
        Ok(sender)
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// When nobody listens, or TLS fails.
    pub async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::from(self.address.ip());
        let stream = self.tls.connect(name, stream).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // Whoever uses the connection sees that it ended.
            let _ = connection.await;
        });
        Ok(Connection {
            sender,
            token: self.token.clone(),
        })
    }

    /// Opens an HTTP/2 connection, on which many requests run at once.
    ///
    /// # Errors
    /// When nobody listens, or TLS fails, or HTTP/2 isn't spoken.
    pub async fn multiplexed(&self) -> Result<Multiplexed> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let mut config = rustls::ClientConfig::clone(self.tls.config());
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::from(self.address.ip());
        let tls = TlsConnector::from(Arc::new(config));
        let stream = tls.connect(name, stream).await?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        // As Go's client, which all of Kubernetes' are made with.
        builder
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(1 << 30);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // Whoever uses the connection sees that it ended.
            let _ = connection.await;
        });
        Ok(Multiplexed {
            sender,
            authority: self.address.to_string(),
            token: self.token.clone(),
        })
    }

    /// Watches objects, from those that there are on. Each watch has its own connection.
    ///
    /// # Errors
    /// When it is refused, or there is no answer.
    pub async fn watch(&self, path: &str) -> Result<Watch> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}watch=true&allowWatchBookmarks=false");
        match self.stream(&path, JSON).await? {
            Opened::Watch(watch) => Ok(watch),
            Opened::Refused(answer) => bail!("watch {path}: {}: {}", answer.status, answer.body),
        }
    }

    /// Asks for `path`, a watch by its parameters, in the form that `accept` names. Each watch has
    /// its own connection.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn stream(&self, path: &str, accept: &str) -> Result<Opened> {
        let mut connection = self.connect().await?;
        let response = connection.send(Method::GET, (path, accept), None).await?;
        if !response.status().is_success() {
            return Ok(Opened::Refused(Answer::read(response).await?));
        }
        Ok(Opened::Watch(Watch {
            body: response.into_body(),
            read: BytesMut::new(),
            at: Instant::now(),
        }))
    }
}

/// An HTTP/2 connection. Cheap to clone; all clones share it.
#[derive(Clone)]
pub struct Multiplexed {
    sender: http2::SendRequest<Full<Bytes>>,
    authority: String,
    token: Option<String>,
}

impl Multiplexed {
    /// One request; the answer's body comes as it arrives. A body of a PATCH is a merge patch.
    ///
    /// # Errors
    /// When there is no answer: the request may have been carried out.
    pub async fn send(&self, method: &str, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let mut request = Request::builder();
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request
            .method(method)
            .uri(format!("https://{}{path}", self.authority))
            .header("accept", "application/json")
            .header("content-type", content_type(method))
            .body(Full::new(body))?;
        let mut sender = self.sender.clone();
        sender.ready().await?;
        Ok(sender.send_request(request).await?)
    }
}

fn content_type(method: &str) -> &'static str {
    match method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    }
}

/// A client that believes in certificates of `ca`.
fn trusting(ca: &[u8]) -> Result<ConfigBuilder<rustls::ClientConfig, WantsClientCert>> {
    let mut roots = rustls::RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(ca) {
        roots.add(authority?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider);
    Ok(tls
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots))
}

/// What the API said.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The `Retry-After` header, when there is one.
    pub retry_after: Option<String>,
    /// The object, or the Status; a text when it isn't JSON.
    pub body: Value,
}

/// What became of a watch that was asked for.
pub enum Opened {
    /// It runs.
    Watch(Watch),
    /// It never began.
    Refused(Answer),
}

impl Answer {
    async fn read(response: Response<Incoming>) -> Result<Self> {
        let status = response.status().as_u16();
        let header = response.headers().get("retry-after");
        let retry_after = header
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let bytes = response.into_body().collect().await?.to_bytes();
        Ok(Self {
            status,
            retry_after,
            body: serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into()),
        })
    }

    /// The object, when the request was carried out.
    ///
    /// # Errors
    /// With the Status of a refusal.
    pub fn object(self) -> Result<Value> {
        let ok = (200..300).contains(&self.status);
        ensure!(ok, "{}: {}", self.status, self.body);
        Ok(self.body)
    }
}

impl Connection {
    /// Creates an object.
    ///
    /// # Errors
    /// As [`Self::call`], and when it is refused.
    pub async fn post(&mut self, path: &str, body: &Value) -> Result<Value> {
        let answer = self.call(Method::POST, path, Some(body)).await?;
        answer.object().with_context(|| format!("POST {path}"))
    }

    /// One request; a refusal is no error.
    ///
    /// # Errors
    /// When there is no answer: the request may have been carried out.
    pub async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer> {
        Answer::read(self.send(method, (path, JSON), body).await?).await
    }

    /// Reads in the form that `accept` names; a refusal is no error.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn get(&mut self, path: &str, accept: &str) -> Result<Answer> {
        Answer::read(self.send(Method::GET, (path, accept), None).await?).await
    }

    /// One request as it is given, with headers of one's own; its answer as a text.
    ///
    /// # Errors
    /// When there is no answer: the request may have been carried out.
    pub async fn exchange(&mut self, request: Request<String>) -> Result<Response<String>> {
        let (mut parts, body) = request.into_parts();
        let host = HeaderValue::from_static("godwit");
        parts.headers.entry("host").or_insert(host);
        let request = Request::from_parts(parts, Full::new(Bytes::from(body)));
        self.sender.ready().await?;
        let (parts, body) = self.sender.send_request(request).await?.into_parts();
        let bytes = body.collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok(Response::from_parts(parts, text))
    }

    async fn send(
        &mut self,
        method: Method,
        (path, accept): (&str, &str),
        body: Option<&Value>,
    ) -> Result<Response<Incoming>> {
        let body = body.map(ToString::to_string).unwrap_or_default();
        let kind = content_type(method.as_str());
        let mut request = Request::builder();
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request
            .method(method)
            .uri(path)
            .header("host", "godwit")
            .header("accept", accept)
            .header("content-type", kind)
            .body(Full::new(Bytes::from(body)))?;
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }
}

/// An answer whose body waits to be read.
pub struct Unread(Response<Incoming>);

/// Asks for a path; the answer's body stays where it is.
///
/// # Errors
/// When there is no answer.
pub async fn ask(connection: &mut Http2, path: &str) -> Result<Unread> {
    let request = Request::get(format!("https://godwit{path}")).body(Full::default())?;
    connection.ready().await?;
    Ok(Unread(connection.send_request(request).await?))
}

impl Unread {
    /// HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.0.status().as_u16()
    }

    /// Reads the rest.
    ///
    /// # Errors
    /// When it is cut off.
    pub async fn read(self) -> Result<Bytes> {
        Ok(self.0.into_body().collect().await?.to_bytes())
    }
}

/// A stream of changes.
pub struct Watch {
    body: Incoming,
    read: BytesMut,
    at: Instant,
}

impl Watch {
    /// The next change and when it was here.
    ///
    /// # Errors
    /// When the watch ended.
    pub async fn next(&mut self) -> Result<(Instant, Value)> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.split_to(end + 1);
                return Ok((self.at, serde_json::from_slice(&line)?));
            }
            let frame = self.body.frame().await.context("the watch ended")??;
            self.at = Instant::now();
            if let Ok(data) = frame.into_data() {
                self.read.extend_from_slice(&data);
            }
        }
    }

    /// Waits until `wanted` answers something for an object.
    ///
    /// # Errors
    /// When the watch ended, and what `wanted` answers.
    pub async fn until<T>(
        &mut self,
        mut wanted: impl FnMut(&Value) -> Option<Result<T>>,
    ) -> Result<(Instant, T)> {
        loop {
            let (at, change) = self.next().await?;
            if let Some(found) = wanted(&change["object"]) {
                return Ok((at, found?));
            }
        }
    }
}
