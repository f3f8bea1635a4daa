//! Building clients: one lazy, warm channel to a service or an agent.

use std::time::Duration;

use godwit_runtime::Identity;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// Longest wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// How often an idle connection is checked, and how long an answer may take.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Longest wait for the answer to a check.
const KEEPALIVE_MAX: Duration = Duration::from_secs(3);

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
        source: tonic::transport::Error,
    },
    /// A certificate or key could not be read.
    #[error("read the certificates")]
    Identity(#[source] std::io::Error),
    /// A certificate or key makes no sense.
    #[error("use the certificates")]
    Tls(#[source] tonic::transport::Error),
}

/// A channel to `address` (`https://HOST:PORT`, or `http://` without identity).
///
/// It connects at its first use and again whenever it breaks.
///
/// # Errors
/// When the address or the certificates can't be used.
pub fn connect(address: &str, identity: Option<&Identity>) -> Result<Channel, ConnectError> {
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(|source| ConnectError::Address {
            address: address.to_owned(),
            source,
        })?
        .connect_timeout(CONNECT_MAX)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_MAX)
        .keep_alive_while_idle(true);
    let Some(identity) = identity else {
        return Ok(endpoint.connect_lazy());
    };
    let pem = identity.read().map_err(ConnectError::Identity)?;
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(pem.ca))
        .identity(tonic::transport::Identity::from_pem(pem.cert, pem.key));
    Ok(endpoint
        .tls_config(tls)
        .map_err(ConnectError::Tls)?
        .connect_lazy())
}

/// Brings `channel` up before it is needed: connection, TLS and HTTP/2 settings.
///
/// # Errors
/// When nobody serves there.
pub async fn warm(channel: Channel) -> Result<(), tonic::Status> {
    let request = tonic_health::pb::HealthCheckRequest::default();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    health.check(request).await.map(drop)
}
