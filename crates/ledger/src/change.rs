//! The change log: every change of every API object, in commit order. It feeds the watches.

use crate::{Ledger, LedgerError, Object};
use godwit_model::Revision;
use std::time::Duration;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was created.
    Added,
    /// It differs from before.
    Modified,
    /// It is gone; the change holds its last state.
    Deleted,
}

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Its place in the order of all changes.
    pub revision: Revision,
    /// What happened.
    pub kind: ChangeKind,
    /// The object as of this revision.
    pub object: Object,
}

/// What came after a revision.
#[derive(Debug, Clone, PartialEq)]
pub enum Changes {
    /// The next changes, oldest first; none when the reader is up to date.
    Rows(Vec<Change>),
    /// Some of them are pruned: start again from a snapshot.
    Compacted {
        /// The oldest revision that can be read on from.
        oldest: Revision,
    },
}

impl Ledger {
    /// At most `limit` changes after `after`, in commit order and without a gap.
    pub async fn changes_after(&self, after: Revision, limit: i64) -> Result<Changes, LedgerError> {
        todo!()
    }

    /// The newest revision.
    pub async fn revision(&self) -> Result<Revision, LedgerError> {
        todo!()
    }

    /// Forgets changes older than `keep`, but never the newest `rows_min`. Answers how many.
    pub async fn changes_prune(&self, keep: Duration, rows_min: u64) -> Result<u64, LedgerError> {
        todo!()
    }
}
