//! Serving gRPC: mutual TLS, health, reflection, graceful end.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use godwit_runtime::metrics::Metrics;
use godwit_runtime::telemetry;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Status};
use tracing::{Span, debug, info_span};

use crate::Credentials;
use crate::calls::Calls;
use crate::client::{CONNECT_MAX, TRACEPARENT};
use crate::peer::Unauthenticated;

/// How often an idle connection is checked.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Longest wait for the answer to a check.
const KEEPALIVE_MAX: Duration = Duration::from_secs(5);
/// Calls at once on one connection: far more than one service makes, far less than would hurt.
const STREAMS_MAX: u32 = 1024;
/// Longest handshake; who says nothing must not hold a place for ever, and who means it is gone then.
const HANDSHAKE_MAX: Duration = CONNECT_MAX;
/// Handshakes at once: a whole fleet that comes back after an outage, within two rounds.
const HANDSHAKES_MAX: usize = 512;
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
    pub credentials: Option<Credentials>,
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
    /// The port could not be bound.
    #[error("bind {bind}")]
    Bind {
        /// Where.
        bind: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The listener broke.
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
/// When the port can't be used.
pub async fn serve(parts: ServerParts) -> Result<(), ServeError> {
    let bind = parts.bind;
    let listener = TcpListener::bind(bind).await;
    let listener = listener.map_err(|source| ServeError::Bind { bind, source })?;
    serve_on(listener, parts).await
}

/// Serves on a listener that is bound already, whatever `parts.bind` says, until shutdown.
///
/// # Errors
/// When the listener breaks.
pub async fn serve_on(listener: TcpListener, parts: ServerParts) -> Result<(), ServeError> {
    let ServerParts {
        bind,
        credentials,
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
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_MAX))
        .max_concurrent_streams(Some(STREAMS_MAX))
        .trace_fn(span);
    let insecure = credentials.is_none();
    let mark = move |mut request: Request<()>| -> Result<Request<()>, Status> {
        if insecure {
            request.extensions_mut().insert(Unauthenticated);
        }
        Ok(request)
    };
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let router = server
        .layer(Calls::new(&metrics))
        .layer(tonic::service::InterceptorLayer::new(mark))
        .add_routes(routes)
        .add_service(reflection)
        .add_service(health);
    let over = shutdown.clone().cancelled_owned();
    let serving = async {
        match credentials {
            None => router.serve_with_incoming_shutdown(incoming, over).await,
            Some(credentials) => {
                let incoming = secured(incoming, credentials);
                router.serve_with_incoming_shutdown(incoming, over).await
            }
        }
    };
    tokio::select! {
        ended = serving => ended.map_err(failed),
        () = drained(&shutdown) => Ok(()),
    }
}

/// Connections after their handshake, each with the certificate that was in force then.
fn secured(
    incoming: TcpIncoming,
    credentials: Credentials,
) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> {
    let handshakes = incoming.map(move |accepted| {
        let tls = credentials.acceptor();
        async move {
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => return Some(Err(error)),
            };
            // On a thread that is free: each one costs a signature.
            let handshake = tokio::spawn(timeout(HANDSHAKE_MAX, tls.accept(stream)));
            let why = match handshake.await {
                Ok(Ok(Ok(stream))) => return Some(Ok(stream)),
                Ok(Ok(Err(error))) => error,
                Ok(Err(_)) => io::ErrorKind::TimedOut.into(),
                Err(error) => io::Error::other(error),
            };
            debug!(error = %why, "handshake failed");
            None
        }
    });
    let handshakes = handshakes.buffer_unordered(HANDSHAKES_MAX);
    handshakes.filter_map(std::future::ready)
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
