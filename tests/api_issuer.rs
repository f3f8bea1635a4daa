//! A little OpenID issuer over HTTPS: its configuration, its keys, and tokens that it signs.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use godwit_testkit::certs::{Ca, Subject};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A key of an issuer.
pub(crate) struct Key {
    id: String,
    pair: EcdsaKeyPair,
}

impl Key {
    pub(crate) fn new(id: &str) -> Result<Self> {
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let random = SystemRandom::new();
        let made = EcdsaKeyPair::generate_pkcs8(algorithm, &random);
        let made = made.ok().context("make a key")?;
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, made.as_ref(), &random);
        Ok(Self {
            id: id.to_owned(),
            pair: pair.ok().context("read a key")?,
        })
    }

    fn public(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        json!({
            "kty": "EC", "crv": "P-256", "kid": self.id, "use": "sig", "alg": "ES256",
            "x": b64(&point[1..33]), "y": b64(&point[33..]),
        })
    }

    /// A token with these claims.
    pub(crate) fn sign(&self, claims: &Value) -> Result<String> {
        let header = json!({"alg": "ES256", "typ": "JWT", "kid": self.id}).to_string();
        let message = format!("{}.{}", b64(header), b64(claims.to_string()));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes());
        let signature = signature.ok().context("sign a token")?;
        Ok(format!("{message}.{}", b64(signature)))
    }
}

/// A running issuer.
pub(crate) struct Issuer {
    pub(crate) url: String,
    /// Authority of its certificate.
    pub(crate) ca_file: PathBuf,
    state: Arc<State>,
}

struct State {
    key: Mutex<Arc<Key>>,
    asked_for_keys: AtomicUsize,
}

impl Issuer {
    /// Serves below `dir` until the runtime ends.
    pub(crate) async fn start(dir: &Path) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("https://{}", listener.local_addr()?);
        let ca_dir = dir.join("issuer-ca");
        let ca = Ca::load_or_create(&ca_dir)?;
        let served_as = ["127.0.0.1".to_owned()];
        let pem = ca.issue(Subject {
            name: "issuer",
            organizations: &[],
            served_as: &served_as,
        })?;
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(pem.cert.as_bytes()).collect();
        let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain?, key)?;
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let state = Arc::new(State {
            key: Mutex::new(Arc::new(Key::new("k1")?)),
            asked_for_keys: AtomicUsize::new(0),
        });
        let issuer = Self {
            url: url.clone(),
            ca_file: ca_dir.join("ca.crt"),
            state: Arc::clone(&state),
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, url, state) = (acceptor.clone(), url.clone(), Arc::clone(&state));
                tokio::spawn(async move {
                    // A client that went away is its own matter.
                    let _ = serve(stream, &acceptor, (&url, &state)).await;
                });
            }
        });
        Ok(issuer)
    }

    /// A new key takes the place of the old one. Answers the new one.
    pub(crate) fn replace_key(&self, id: &str) -> Result<Arc<Key>> {
        let key = Arc::new(Key::new(id)?);
        *self.state.key.lock().unwrap() = Arc::clone(&key);
        Ok(key)
    }

    pub(crate) fn key(&self) -> Arc<Key> {
        Arc::clone(&self.state.key.lock().unwrap())
    }

    /// The keys as they are served.
    pub(crate) fn key_set(&self) -> Value {
        self.state.key_set()
    }

    /// How often somebody asked for the keys.
    pub(crate) fn asked_for_keys(&self) -> usize {
        self.state.asked_for_keys.load(Ordering::SeqCst)
    }
}

impl State {
    fn key_set(&self) -> Value {
        json!({"keys": [self.key.lock().unwrap().public()]})
    }
}

async fn serve(stream: TcpStream, acceptor: &TlsAcceptor, of: (&str, &State)) -> Result<()> {
    let (url, state) = of;
    let mut stream = BufReader::new(acceptor.accept(stream).await?);
    let mut first = String::new();
    stream.read_line(&mut first).await?;
    let mut line = first.clone();
    while line.trim() != "" {
        line.clear();
        stream.read_line(&mut line).await?;
    }
    let path = first.split(' ').nth(1).unwrap_or_default();
    let (code, body) = match path {
        "/.well-known/openid-configuration" => (
            "200 OK",
            json!({"issuer": url, "jwks_uri": format!("{url}/keys")}),
        ),
        "/keys" => {
            state.asked_for_keys.fetch_add(1, Ordering::SeqCst);
            ("200 OK", state.key_set())
        }
        _ => ("404 Not Found", json!({})),
    };
    let body = body.to_string();
    let answer = format!(
        "HTTP/1.1 {code}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
