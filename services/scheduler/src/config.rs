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
    /// How a silent node is made sure to be dead; without it only a person's NodeFence does.
    pub(crate) fence_command: Option<FenceCommand>,
}

/// A program that ends with 0 only when the node is off and stays off, or has been reset. It finds
/// the node's name in `GODWIT_NODE` and the boot that was last heard in `GODWIT_BOOT_ID`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FenceCommand {
    /// Path of the program.
    pub(crate) program: String,
    /// Its arguments; no shell reads them.
    #[serde(default)]
    pub(crate) arguments: Vec<String>,
    /// A node that is not ready for so long is fenced, milliseconds; also the first pause before
    /// it is tried again.
    #[serde(default = "fence_after_ms")]
    pub(crate) after_ms: u64,
    /// The program has failed when it takes longer, milliseconds.
    #[serde(default = "fence_limit_ms")]
    pub(crate) limit_ms: u64,
}

const fn fence_after_ms() -> u64 {
    60_000
}

const fn fence_limit_ms() -> u64 {
    60_000
}

impl FenceCommand {
    /// How long a node has to be not ready.
    pub(crate) const fn after(&self) -> Duration {
        Duration::from_millis(self.after_ms)
    }

    /// How long the program may take.
    pub(crate) const fn limit(&self) -> Duration {
        Duration::from_millis(self.limit_ms)
    }
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
            fence_command: None,
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
