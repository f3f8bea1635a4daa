//! Serving gRPC: mutual TLS, health, reflection, graceful end.

use std::net::SocketAddr;
use std::time::Duration;

use godwit_runtime::metrics::Metrics;
use godwit_runtime::{Identity, telemetry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Server, ServerTlsConfig};
use tonic::{Request, Status};
use tracing::{Span, info_span};

use crate::calls::Calls;
use crate::client::TRACEPARENT;
use crate::peer::Unauthenticated;

/// How often an idle connection is checked.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Longest wait for the answer to a check.
const KEEPALIVE_MAX: Duration = Duration::from_secs(5);
/// Calls at once on one connection: far more than one service makes, far less than would hurt.
const STREAMS_MAX: u32 = 1024;
/// How long calls may take to end at a shutdown; streams never would.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Descriptors of all services, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/godwit.bin"));

/// What a server needs.
#[derive(Debug)]
pub struct ServerParts {
    /// Where to listen.
    pub bind: SocketAddr,
    /// This service's certificate; `None` serves everybody without TLS.
    pub identity: Option<Identity>,
    /// The services.
    pub routes: Routes,
    /// Where the calls are counted.
    pub metrics: Metrics,
    /// Ends the server: calls may take 2 s more, streams are cut.
    pub shutdown: CancellationToken,
}

/// Why a server could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A certificate or key could not be read.
    #[error("read the certificates")]
    Identity(#[source] std::io::Error),
    /// The port could not be bound.
    #[error("bind {bind}")]
    Bind {
        /// Where.
        bind: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The certificates make no sense, or the listener broke.
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
    let bind = parts.bind;
    let listener = TcpListener::bind(bind).await;
    let listener = listener.map_err(|source| ServeError::Bind { bind, source })?;
    serve_on(listener, parts).await
}

/// Serves on a listener that is bound already, whatever `parts.bind` says, until shutdown.
///
/// # Errors
/// When the certificates can't be used.
pub async fn serve_on(listener: TcpListener, parts: ServerParts) -> Result<(), ServeError> {
    let ServerParts {
        bind,
        identity,
        routes,
        metrics,
        shutdown,
    } = parts;
    let failed = |source| ServeError::Serve { bind, source };
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .build_v1()
        .map_err(ServeError::Reflection)?;
    let (_, health) = tonic_health::server::health_reporter();
    let mut server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_MAX))
        .max_concurrent_streams(Some(STREAMS_MAX))
        .trace_fn(span);
    if let Some(identity) = &identity {
        server = server.tls_config(tls(identity)?).map_err(failed)?;
    }
    let insecure = identity.is_none();
    let mark = move |mut request: Request<()>| -> Result<Request<()>, Status> {
        if insecure {
            request.extensions_mut().insert(Unauthenticated);
        }
        Ok(request)
    };
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = server
        .layer(Calls::new(&metrics))
        .layer(tonic::service::InterceptorLayer::new(mark))
        .add_routes(routes)
        .add_service(reflection)
        .add_service(health)
        .serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned());
    tokio::select! {
        ended = serving => ended.map_err(failed),
        () = drained(&shutdown) => Ok(()),
    }
}

fn tls(identity: &Identity) -> Result<ServerTlsConfig, ServeError> {
    let pem = identity.read().map_err(ServeError::Identity)?;
    Ok(ServerTlsConfig::new()
        .identity(tonic::transport::Identity::from_pem(pem.cert, pem.key))
        .client_ca_root(Certificate::from_pem(pem.ca)))
}

async fn drained(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(DRAIN_MAX).await;
}

/// The span of a call: a part of its caller's trace, and nothing when the caller is in none.
fn span(request: &http::Request<()>) -> Span {
    let context = request.headers().get(TRACEPARENT);
    let Some(context) = context.and_then(|context| context.to_str().ok()) else {
        return Span::none();
    };
    let method = request.uri().path().trim_start_matches('/');
    let span = info_span!(
        "rpc",
        otel.name = method,
        otel.kind = "server",
        rpc.system.name = "grpc",
        rpc.method = method,
    );
    telemetry::join(&span, context);
    span
}
