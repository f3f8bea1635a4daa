//! Configuration of the maintenance-service.

use std::net::SocketAddr;

use godwit_runtime::ServiceConfig;
use godwit_runtime::config::Common;
use serde::{Deserialize, Serialize};

/// Every key of the maintenance-service.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// What every service has.
    pub(crate) common: Common,
    /// Where gRPC listens.
    pub(crate) bind: SocketAddr,
    /// Postgres URL of the ledger.
    pub(crate) database_url: String,
    /// Connections to Postgres at most.
    pub(crate) database_connections_max: u32,
    /// The migration-coordinator: `https://HOST:PORT`.
    pub(crate) coordinator: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            common: Common::at(8103),
            bind: SocketAddr::from(([127, 0, 0, 1], 7103)),
            database_url: "postgres:///godwit".to_owned(),
            database_connections_max: 4,
            coordinator: "https://127.0.0.1:7102".to_owned(),
        }
    }
}

impl ServiceConfig for Config {
    fn common(&self) -> &Common {
        &self.common
    }
}
