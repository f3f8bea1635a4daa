//! Building clients: one lazy, warm channel to a service or an agent; deadlines and repetition.
//!
//! Every call carries the trace of the span it is made in, or of the step that it is told to be a part of.

use std::time::Duration;

use godwit_runtime::backoff::Backoff;
use godwit_runtime::telemetry;
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tower::{BoxError, ServiceExt as _};

use crate::Credentials;

/// Longest wait for a connection.
pub(crate) const CONNECT_MAX: Duration = Duration::from_secs(2);
/// How often an idle connection is checked, and how long an answer may take.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Longest wait for the answer to a check.
const KEEPALIVE_MAX: Duration = Duration::from_secs(3);
/// Shortest and longest pause before a call is repeated.
const REPEAT_PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Port of an address that has none.
const HTTPS: u16 = 443;

/// Metadata key of the trace context, W3C Trace Context.
pub(crate) const TRACEPARENT: &str = "traceparent";

/// A connection to one service or agent, cheap to clone.
pub type Channel = InterceptedService<tonic::transport::Channel, Outgoing>;

/// What is added to each call on its way out.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing;

impl Interceptor for Outgoing {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if !request.metadata().contains_key(TRACEPARENT) {
            part_of(&mut request, &telemetry::trace_context());
        }
        Ok(request)
    }
}

/// Makes a call a part of the span that `traceparent` names; empty text names none.
pub fn part_of<T>(request: &mut Request<T>, traceparent: &str) {
    if !traceparent.is_empty()
        && let Ok(value) = MetadataValue::try_from(traceparent)
    {
        request.metadata_mut().insert(TRACEPARENT, value);
    }
}

/// Why no channel could be built.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is no URL of a service.
    #[error("address {address:?} can't be used")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        #[source]
        source: BoxError,
    },
    /// TLS on one side only: whoever has a certificate speaks to nobody in the clear.
    #[error("address {0:?} must begin with https:// with certificates, and with http:// without")]
    Scheme(String),
}

/// A channel to `address` (`https://HOST:PORT`, or `http://` without credentials).
///
/// It connects at its first use and again whenever it breaks, each time with the certificate that is
/// in force then. The other side's certificate must name HOST, a DNS name or an IP address.
///
/// # Errors
/// When the address can't be used.
pub fn connect(address: &str, credentials: Option<&Credentials>) -> Result<Channel, ConnectError> {
    let unusable = |source: BoxError| ConnectError::Address {
        address: address.to_owned(),
        source,
    };
    let uri: Uri = address.parse().map_err(|error| unusable(Box::new(error)))?;
    let channel = match (credentials, uri.scheme_str()) {
        (None, Some("http")) => endpoint(uri).connect_lazy(),
        (Some(credentials), Some("https")) => {
            let secure = Secure::new(&uri, credentials).map_err(unusable)?;
            // TLS is the connector's: the endpoint would set it up once and for all.
            let below = in_the_clear(&uri).map_err(|error| unusable(Box::new(error)))?;
            let connector = tower::service_fn(move |to: Uri| secure.clone().connect(to));
            endpoint(below)
                .origin(uri)
                .connect_with_connector_lazy(connector)
        }
        _ => return Err(ConnectError::Scheme(address.to_owned())),
    };
    Ok(InterceptedService::new(channel, Outgoing))
}

fn endpoint(uri: Uri) -> Endpoint {
    Endpoint::from(uri)
        .connect_timeout(CONNECT_MAX)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_MAX)
        .keep_alive_while_idle(true)
}

/// Where TCP goes for `uri`.
fn in_the_clear(uri: &Uri) -> Result<Uri, http::Error> {
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(HTTPS);
    let authority = format!("{host}:{port}");
    let builder = Uri::builder().scheme("http").authority(authority);
    builder.path_and_query("/").build()
}

/// Makes connections to one server with TLS.
#[derive(Clone)]
struct Secure {
    name: ServerName<'static>,
    credentials: Credentials,
    tcp: HttpConnector,
}

impl Secure {
    fn new(uri: &Uri, credentials: &Credentials) -> Result<Self, BoxError> {
        let host = uri.host().unwrap_or_default();
        // An IPv6 address stands in brackets in a URL alone.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        Ok(Self {
            name: ServerName::try_from(host.to_owned())?,
            credentials: credentials.clone(),
            tcp,
        })
    }

    async fn connect(self, to: Uri) -> Result<TokioIo<TlsStream<TcpStream>>, BoxError> {
        let stream = self.tcp.oneshot(to).await?.into_inner();
        let tls = self.credentials.connector();
        Ok(TokioIo::new(tls.connect(self.name, stream).await?))
    }
}

/// A call that must be answered within `limit`; the server is told and gives up, too.
///
/// A call that ran out of time has an unknown result: ask what is true before you repeat it.
pub fn within<T>(limit: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

/// Repeats `call` while the other side can't be reached, with growing pauses, for `limit` at most.
///
/// `call` gets the time that is left. Only for calls that may be made twice.
///
/// # Errors
/// The last answer, when it is no success; `DeadlineExceeded` when there was none in time.
pub async fn repeat<T, F>(limit: Duration, mut call: impl FnMut(Duration) -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    let end = Instant::now() + limit;
    let mut pauses = Backoff::new(REPEAT_PAUSES.0, REPEAT_PAUSES.1);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let answer = tokio::time::timeout(left, call(left)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
        let pause = pauses.pause();
        match answer {
            Err(status) if status.code() == Code::Unavailable && Instant::now() + pause < end => {
                tokio::time::sleep(pause).await;
            }
            Ok(_) | Err(_) => return answer,
        }
    }
}

/// Brings `channel` up before it is needed: connection, TLS and HTTP/2 settings.
///
/// # Errors
/// When nobody serves there.
pub async fn warm(channel: Channel) -> Result<(), Status> {
    let request = tonic_health::pb::HealthCheckRequest::default();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    health.check(request).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_call_is_repeated_until_somebody_answers() {
        let mut attempts = 0;
        let answer = repeat(Duration::from_secs(10), |_| {
            attempts += 1;
            let answer = match attempts {
                1..=2 => Err(Status::unavailable("nobody listens")),
                _ => Ok(attempts),
            };
            async { answer }
        });
        assert_eq!(answer.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn an_answer_that_is_no_success_is_not_repeated() {
        let mut attempts = 0;
        let answer = repeat(Duration::from_secs(10), |_| {
            attempts += 1;
            async { Err::<(), _>(Status::aborted("replaced")) }
        });
        assert_eq!(answer.await.unwrap_err().code(), Code::Aborted);
        assert_eq!(attempts, 1);
    }

    #[tokio::test]
    async fn repetition_ends_with_its_limit() {
        let began = Instant::now();
        let limit = Duration::from_millis(100);
        let gone = repeat(limit, |_| async {
            Err::<(), _>(Status::unavailable("gone"))
        })
        .await;
        assert_eq!(gone.unwrap_err().code(), Code::Unavailable);
        let silent = repeat(limit, |_| std::future::pending::<Result<(), Status>>()).await;
        assert_eq!(silent.unwrap_err().code(), Code::DeadlineExceeded);
        assert!(began.elapsed() < limit * 100, "{:?}", began.elapsed());
    }
}
