//! Serving gRPC: mutual TLS, health, reflection, graceful end.

use std::net::SocketAddr;
use std::time::Duration;

use godwit_runtime::Identity;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::{Certificate, Server, ServerTlsConfig};
use tonic::{Request, Status};

use crate::peer::Unauthenticated;

/// How often an idle connection is checked.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Descriptors of all services, for reflection.
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/godwit.bin"));

/// What a server needs.
#[derive(Debug)]
pub struct ServerParts {
    /// Where to listen.
    pub bind: SocketAddr,
    /// This service's certificate; `None` serves everybody without TLS.
    pub identity: Option<Identity>,
    /// The services.
    pub routes: Routes,
    /// Ends the server; streams end with it.
    pub shutdown: CancellationToken,
}

/// Why a server could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A certificate or key could not be read.
    #[error("read the certificates")]
    Identity(#[source] std::io::Error),
    /// The certificates make no sense, or the port could not be bound.
    #[error("serve on {bind}")]
    Serve {
        /// Where.
        bind: SocketAddr,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
    /// The descriptors are broken: a defect of the build.
    #[error("offer reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
}

/// Serves until shutdown.
///
/// # Errors
/// When the port or the certificates can't be used.
pub async fn serve(parts: ServerParts) -> Result<(), ServeError> {
    let ServerParts {
        bind,
        identity,
        routes,
        shutdown,
    } = parts;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .build_v1()
        .map_err(ServeError::Reflection)?;
    let (_, health) = tonic_health::server::health_reporter();
    let mut server = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEPALIVE));
    let insecure = identity.is_none();
    if let Some(identity) = identity {
        let pem = identity.read().map_err(ServeError::Identity)?;
        let tls = ServerTlsConfig::new()
            .identity(tonic::transport::Identity::from_pem(pem.cert, pem.key))
            .client_ca_root(Certificate::from_pem(pem.ca));
        server = server
            .tls_config(tls)
            .map_err(|source| ServeError::Serve { bind, source })?;
    }
    let mark = move |mut request: Request<()>| -> Result<Request<()>, Status> {
        if insecure {
            request.extensions_mut().insert(Unauthenticated);
        }
        Ok(request)
    };
    server
        .layer(tonic::service::InterceptorLayer::new(mark))
        .add_routes(routes)
        .add_service(reflection)
        .add_service(health)
        .serve_with_shutdown(bind, shutdown.cancelled_owned())
        .await
        .map_err(|source| ServeError::Serve { bind, source })
}
