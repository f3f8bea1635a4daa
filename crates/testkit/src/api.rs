//! The API over connections that stay open: starting a kubectl costs more than what is measured.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
pub use hyper::Method;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::lab::Lab;

/// Where a lab's API is, and who we are there.
pub struct Api {
    tls: TlsConnector,
    address: SocketAddr,
}

/// One connection, open and warm.
pub struct Connection(SendRequest<Full<Bytes>>);

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
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca)?)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert).collect();
        let key = PrivateKeyDer::from_pem_slice(key)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain?, key)?;
        let address = server.trim_start_matches("https://").parse();
        Ok(Self {
            tls: TlsConnector::from(Arc::new(tls)),
            address: address.with_context(|| format!("understand {server}"))?,
        })
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
        Ok(Connection(sender))
    }

    /// Watches objects, from those that there are on. Each watch has its own connection.
    ///
    /// # Errors
    /// When it is refused, or there is no answer.
    pub async fn watch(&self, path: &str) -> Result<Watch> {
        let mut connection = self.connect().await?;
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}watch=true&allowWatchBookmarks=false");
        let response = connection.send(Method::GET, &path, None).await?;
        let status = response.status();
        ensure!(status.is_success(), "watch {path}: {status}");
        Ok(Watch {
            body: response.into_body(),
            read: Vec::new(),
            at: Instant::now(),
        })
    }
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

impl Answer {
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
        let response = self.send(method, path, body).await?;
        let status = response.status().as_u16();
        let header = response.headers().get("retry-after");
        let retry_after = header
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let bytes = response.into_body().collect().await?.to_bytes();
        Ok(Answer {
            status,
            retry_after,
            body: serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into()),
        })
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>> {
        let body = body.map(ToString::to_string).unwrap_or_default();
        let kind = if method == Method::PATCH {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "godwit")
            .header("accept", "application/json")
            .header("content-type", kind)
            .body(Full::new(Bytes::from(body)))?;
        self.0.ready().await?;
        Ok(self.0.send_request(request).await?)
    }
}

/// A stream of changes.
pub struct Watch {
    body: Incoming,
    read: Vec<u8>,
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
                let line: Vec<u8> = self.read.drain(..=end).collect();
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
