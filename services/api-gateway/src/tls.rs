//! The TLS side of the door: our certificate, and whom the client proved to be.

use std::io;
use std::sync::Arc;

use axum::Extension;
use axum::middleware::AddExtension;
use axum_server::accept::Accept;
use futures::future::BoxFuture;
use godwit_rpc::Credentials;
use godwit_runtime::metrics::Metrics;
use godwit_runtime::{Identity, Pem, Reloaded};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::Layer;

use crate::aggregation::{Clients, Cluster};
use crate::auth::PeerCertificate;
use crate::limits::{Gate, Guarded, Line};

/// Why the certificates can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file is no PEM of what it should be.
    #[error("decode {0}")]
    Pem(&'static str, #[source] rustls::pki_types::pem::Error),
    /// The authority can't be used.
    #[error("use the authority of client certificates")]
    Authority(#[source] rustls::server::VerifierBuilderError),
    /// Certificate and key don't go together.
    #[error("use the server's certificate")]
    Server(#[source] rustls::Error),
}

/// What a new connection gets: our certificate, and whose certificates are taken.
pub(crate) struct Tls {
    server: Arc<ServerConfig>,
    clients: Clients,
}

/// HTTP/2 and HTTP/1.1 over TLS; a client certificate is asked for and not required. Taken are those
/// of our authorities, and those that `cluster` vouches for. Renewed files count from the next
/// connection on; where `shared` with our part among the services, only if that takes them, too.
pub(crate) fn follow(
    (identity, shared): (&Identity, bool),
    cluster: Option<Arc<Cluster>>,
    life: (&Metrics, &CancellationToken),
) -> anyhow::Result<Reloaded<Tls>> {
    identity.follow(life, move |pem, reading| {
        if shared {
            Credentials::check(pem, reading)?;
        }
        Ok(read(pem, cluster.clone())?)
    })
}

fn read(pem: &Pem, cluster: Option<Arc<Cluster>>) -> Result<Tls, TlsError> {
    let chain = certificates(&pem.cert, "the certificate")?;
    let key = PrivateKeyDer::from_pem_slice(&pem.key)
        .map_err(|error| TlsError::Pem("the private key", error))?;
    let clients = Clients::new(client_authority(&pem.ca)?, cluster);
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Server)?
        .with_client_cert_verifier(clients.verifier())
        .with_single_cert(chain, key)
        .map_err(TlsError::Server)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Tls {
        server: Arc::new(config),
        clients,
    })
}

/// Takes the client certificates that the authorities in `pem` made; none is required.
pub(crate) fn client_authority(pem: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(pem, "the authority")? {
        roots.add(authority).map_err(TlsError::Server)?;
    }
    let provider = Arc::new(ring::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(TlsError::Authority)
}

fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::Pem(what, error))
}

/// Accepts a connection, if there is a place, and tells each of its requests who is at the other
/// end.
#[derive(Clone)]
pub(crate) struct Acceptor {
    tls: Reloaded<Tls>,
    gate: Arc<Gate>,
}

impl Acceptor {
    pub(crate) fn new(tls: Reloaded<Tls>, gate: Arc<Gate>) -> Self {
        Self { tls, gate }
    }
}

impl<I, S> Accept<I, S> for Acceptor
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Send + 'static,
{
    type Stream = TlsStream<Guarded<I>>;
    type Service = AddExtension<AddExtension<S, Arc<Line>>, PeerCertificate>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let (tls, gate) = (self.tls.get(), Arc::clone(&self.gate));
        Box::pin(async move {
            let place = gate.enter().ok_or(io::ErrorKind::ConnectionRefused)?;
            let stream = gate.guard(stream, place);
            let line = stream.line();
            let accepted = TlsAcceptor::from(Arc::clone(&tls.server)).accept(stream);
            let handshake = tokio::time::timeout(gate.handshake_time(), accepted).await;
            if !matches!(handshake, Ok(Ok(_))) {
                gate.handshake_failed(handshake.is_err());
            }
            let stream = handshake.map_err(|_| io::ErrorKind::TimedOut)??;
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let certificate = tls.clients.peer(chain);
            if !gate.may_stay(stream.get_ref().0.place(), certificate.user().as_ref()) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let service = Extension(line).layer(service);
            Ok((stream, Extension(certificate).layer(service)))
        })
    }
}
