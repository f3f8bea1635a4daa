//! Configuration of the scheduler.

use std::net::SocketAddr;
use std::time::Duration;

use godwit_runtime::ServiceConfig;
use godwit_runtime::config::Common;
use serde::{Deserialize, Serialize};

/// Every key of the scheduler.
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
    /// A host that is silent for so long is not ready, milliseconds.
    pub(crate) node_silence_ms: u64,
    /// Machine type for machines that name none; must be versioned.
    pub(crate) machine_type: String,
    /// CPU model for machines that name none; every host must be able to run it.
    pub(crate) cpu_model: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            common: Common::at(8101),
            bind: SocketAddr::from(([127, 0, 0, 1], 7101)),
            database_url: "postgres:///godwit".to_owned(),
            database_connections_max: 8,
            node_silence_ms: 5_000,
            machine_type: "pc-q35-7.2".to_owned(),
            cpu_model: "qemu64".to_owned(),
        }
    }
}

impl ServiceConfig for Config {
    fn common(&self) -> &Common {
        &self.common
    }
}

impl Config {
    /// How long a host may be silent and still be ready.
    pub(crate) const fn node_silence(&self) -> Duration {
        Duration::from_millis(self.node_silence_ms)
    }
}
