//! The change log: every change of every API object, in commit order. It feeds the watches.

use crate::convert::{self, bigint, interval};
use crate::{Ledger, LedgerError, Object};
use godwit_model::Revision;
use sqlx::Row;
use sqlx::postgres::PgRow;
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

/// Most rows that one statement of a pruning deletes.
const PRUNE_BATCH: i64 = 10_000;

impl ChangeKind {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "Added" => Some(Self::Added),
            "Modified" => Some(Self::Modified),
            "Deleted" => Some(Self::Deleted),
            _ => None,
        }
    }
}

impl Ledger {
    /// At most `limit` changes after `after`, in commit order and without a gap.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn changes_after(&self, after: Revision, limit: i64) -> Result<Changes, LedgerError> {
        let statement = sqlx::query(include_str!("../queries/change_after.sql"))
            .bind(bigint(after.0))
            .bind(limit);
        let rows = self.fetch_all(statement).await?;
        let mut changes = Vec::with_capacity(rows.len());
        for row in &rows {
            let oldest = Revision(convert::count(row, "horizon")?);
            if after < oldest {
                return Ok(Changes::Compacted { oldest });
            }
            if row.try_get::<Option<i64>, _>("revision")?.is_some() {
                changes.push(read(row)?);
            }
        }
        Ok(Changes::Rows(changes))
    }

    /// The newest revision.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn revision(&self) -> Result<Revision, LedgerError> {
        let row = self
            .fetch_one(sqlx::query("SELECT value FROM revision_counter"))
            .await?;
        Ok(Revision(convert::count(&row, "value")?))
    }

    /// Forgets changes older than `keep`, but never the newest `rows_min`. Answers how many.
    ///
    /// # Errors
    /// `Unavailable`; what was forgotten until then stays so.
    pub async fn changes_prune(&self, keep: Duration, rows_min: u64) -> Result<u64, LedgerError> {
        // Raised before anything is deleted: a reader never sees a gap that isn't announced.
        let statement = sqlx::query(include_str!("../queries/change_horizon_raise.sql"))
            .bind(interval(keep))
            .bind(bigint(rows_min));
        let horizon: i64 = self.fetch_one(statement).await?.try_get("revision")?;
        let mut total = 0;
        loop {
            let statement = sqlx::query(
                "DELETE FROM change WHERE revision IN (SELECT revision FROM change \
                 WHERE revision <= $1 ORDER BY revision LIMIT $2)",
            )
            .bind(horizon)
            .bind(PRUNE_BATCH);
            let deleted = self.execute(statement).await?;
            total += deleted;
            if deleted == 0 {
                return Ok(total);
            }
        }
    }
}

fn read(row: &PgRow) -> Result<Change, LedgerError> {
    let object = Object::read(row)?;
    Ok(Change {
        revision: object.revision,
        kind: convert::word(row, "kind", ChangeKind::from_name)?,
        object,
    })
}
