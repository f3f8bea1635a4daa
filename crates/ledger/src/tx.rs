//! The write transaction.

use crate::LedgerError;
use godwit_model::Revision;
use jiff::Timestamp;

/// A write transaction under the cluster-wide revision lock. Dropping it rolls back.
///
/// Unless a method says otherwise, an error ends the transaction: drop it.
#[derive(Debug)]
pub struct Tx {}

impl Tx {
    /// When this transaction got the revision lock, by the database's clock.
    pub fn now(&self) -> Timestamp {
        todo!()
    }

    /// Commits, and wakes up who listens. Answers the newest revision.
    ///
    /// # Errors
    /// `Unknown` when the connection broke during the commit.
    pub async fn commit(self) -> Result<Revision, LedgerError> {
        todo!()
    }
}
