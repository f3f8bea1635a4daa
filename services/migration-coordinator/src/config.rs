//! Configuration of the migration-coordinator.

use std::net::SocketAddr;
use std::time::Duration;

use godwit_runtime::ServiceConfig;
use godwit_runtime::config::Common;
use serde::{Deserialize, Serialize};

/// Every key of the migration-coordinator.
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
    /// The scheduler: `https://HOST:PORT`.
    pub(crate) scheduler: String,
    /// A job whose owner is silent for so long is taken over, milliseconds.
    pub(crate) lease_ttl_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            common: Common::at(8102),
            bind: SocketAddr::from(([127, 0, 0, 1], 7102)),
            database_url: "postgres:///godwit".to_owned(),
            database_connections_max: 8,
            scheduler: "https://127.0.0.1:7101".to_owned(),
            lease_ttl_ms: 750,
        }
    }
}

impl ServiceConfig for Config {
    fn common(&self) -> &Common {
        &self.common
    }
}

impl Config {
    /// How long a lease lives without renewal.
    pub(crate) const fn lease_ttl(&self) -> Duration {
        Duration::from_millis(self.lease_ttl_ms)
    }

    /// How often a lease is renewed: a lost renewal or two must not lose the job.
    pub(crate) const fn lease_renew(&self) -> Duration {
        Duration::from_millis(self.lease_ttl_ms / 3)
    }
}
