//! The handle that services hold: a pool of connections, the migrations, the wake-ups.

use crate::{LedgerError, Tx, Wakeups};
use jiff::Timestamp;

/// How to reach the ledger.
#[derive(Debug, Clone)]
pub struct LedgerConfig {
    /// Postgres URL; may name a unix socket as `postgres:///db?host=/path`.
    pub url: String,
    /// Most connections of this process, the listener's not counted.
    pub connections_max: u32,
}

/// The ledger. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {}

impl Ledger {
    /// Connects.
    ///
    /// # Errors
    /// `Unavailable` when the database does not answer, `Database` when the URL is malformed.
    pub async fn connect(config: LedgerConfig) -> Result<Self, LedgerError> {
        todo!()
    }

    /// Applies the embedded migrations that are missing, one process at a time.
    ///
    /// A database that is newer than this program is left alone, so that an old and a new version
    /// can run together. Without the right to create tables it only checks.
    pub async fn migrate(&self) -> Result<(), LedgerError> {
        todo!()
    }

    /// Begins a write transaction and takes the cluster-wide revision lock.
    ///
    /// Never hold it across a call to another process. Dropping it rolls back.
    pub async fn begin(&self) -> Result<Tx, LedgerError> {
        todo!()
    }

    /// Wake-ups after commits of any process.
    pub fn wakeups(&self) -> Wakeups {
        todo!()
    }

    /// The database's clock.
    pub async fn now(&self) -> Result<Timestamp, LedgerError> {
        todo!()
    }
}
