//! Configuration of the api-gateway.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use godwit_runtime::config::Common;
use godwit_runtime::{Identity, ServiceConfig};
use serde::{Deserialize, Serialize};

const PORT: u16 = 6443;
const ADMIN_PORT: u16 = 7143;
/// Writes are serialised by the ledger, so more connections would only wait.
const CONNECTIONS_MAX: u32 = 8;

/// Everything that can be configured.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What every service has.
    pub common: Common,
    /// Where the API is served, HTTPS.
    pub bind: SocketAddr,
    /// Certificate shown to clients, and the authority of client certificates. Without it
    /// `common.identity` serves for both.
    pub tls: Option<Identity>,
    /// Bearer tokens, a line each: `token,user,uid,"group1,group2"`.
    pub token_file: Option<PathBuf>,
    /// Whether health and version may be read by anyone.
    pub anonymous_health: bool,
    /// The Kubernetes version that clients are told, for example `1.32.0`.
    pub kubernetes_version: String,
    /// Postgres URL of the ledger.
    pub database_url: String,
    /// Most connections to Postgres, the listener's not counted.
    pub connections_max: u32,
    /// The services that are woken up after a change.
    pub peers: PeerAddresses,
}

/// Where the other services listen, one URL for each replica.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeerAddresses {
    /// Schedulers.
    pub scheduler: Vec<String>,
    /// Migration-coordinators.
    pub coordinator: Vec<String>,
    /// Maintenance-services.
    pub maintenance: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            common: Common::at(ADMIN_PORT),
            bind: SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)),
            tls: None,
            token_file: None,
            anonymous_health: true,
            kubernetes_version: "1.32.0".to_owned(),
            database_url: "postgres:///godwit".to_owned(),
            connections_max: CONNECTIONS_MAX,
            peers: PeerAddresses::default(),
        }
    }
}

impl Default for PeerAddresses {
    fn default() -> Self {
        Self {
            scheduler: vec!["https://localhost:7101".to_owned()],
            coordinator: vec!["https://localhost:7102".to_owned()],
            maintenance: vec!["https://localhost:7103".to_owned()],
        }
    }
}

impl ServiceConfig for Config {
    fn common(&self) -> &Common {
        &self.common
    }
}
