//! The change log: every change of every API object, in commit order. It feeds the watches.

use crate::convert::{self, At, bigint, interval};
use crate::{Ledger, LedgerError, Object, Tx};
use godwit_model::Revision;
use jiff::Timestamp;
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
    /// When it was made, by the database's clock.
    pub at: Timestamp,
}

/// How far a reader is in the change log, and how that is told from another log of the same
/// length: a database that was restored, or a replica that was behind and took over, counts on
/// from an older revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Everything up to this revision was read.
    pub revision: Revision,
    /// When its change was made; `None` when that isn't known, and not compared.
    pub at: Option<Timestamp>,
}

impl From<Revision> for Mark {
    fn from(revision: Revision) -> Self {
        Self { revision, at: None }
    }
}

impl Change {
    /// Where a reader is that has read this change.
    pub fn mark(&self) -> Mark {
        Mark {
            revision: self.revision,
            at: Some(self.at),
        }
    }
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
    /// What the reader has read is not in this log: the database lost its newest changes. Nothing
    /// that was read from it can be relied on; start again from a snapshot.
    Lost {
        /// The newest revision of the log.
        newest: Revision,
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
    pub async fn changes_after(
        &self,
        after: impl Into<Mark>,
        limit: i64,
    ) -> Result<Changes, LedgerError> {
        let (changes, _) = self.changes_since(after.into(), limit).await?;
        Ok(changes)
    }

    /// As [`Self::changes_after`], with the newest revision of that moment: where all changes fit
    /// into `limit`, everything up to it was read. It may be later than that of the last change,
    /// since a transaction can take a revision and then change nothing.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn changes_since(
        &self,
        after: Mark,
        limit: i64,
    ) -> Result<(Changes, Revision), LedgerError> {
        let statement = sqlx::query(include_str!("../queries/change_after.sql"))
            .bind(bigint(after.revision.0))
            .bind(after.at.map(At))
            .bind(limit);
        let rows = self.fetch_all(statement).await?;
        let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
        let newest = Revision(convert::count(first, "newest")?);
        let oldest = Revision(convert::count(first, "horizon")?);
        if after.revision < oldest {
            return Ok((Changes::Compacted { oldest }, newest));
        }
        if !first.try_get::<bool, _>("known")? {
            return Ok((Changes::Lost { newest }, newest));
        }
        let mut changes = Vec::with_capacity(rows.len());
        for row in &rows {
            if row.try_get::<Option<i64>, _>("revision")?.is_some() {
                changes.push(read(row)?);
            }
        }
        Ok((Changes::Rows(changes), newest))
    }

    /// Goes on far behind `past`, and forgets all changes: for a database that lost changes which
    /// were read. Their revisions are never given to others, and whoever reads on from any that
    /// there was is told to start again.
    ///
    /// # Errors
    /// `Unavailable`; `Database` for a role that may not prune changes.
    pub async fn revisions_skip(&self, past: Revision) -> Result<Revision, LedgerError> {
        let statement = sqlx::query("SELECT revisions_skip($1) AS newest").bind(bigint(past.0));
        let row = self.fetch_one(statement).await?;
        Ok(Revision(convert::count(&row, "newest")?))
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

impl Tx {
    /// Whether the change under `revision` is that which made `object` what it is, or removed it.
    /// Inside a transaction that has the lock, so an earlier one whose commit was not answered has
    /// come to its end.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn is_changed(
        &mut self,
        revision: Revision,
        object: &Object,
    ) -> Result<bool, LedgerError> {
        let statement = sqlx::query(
            "SELECT FROM change WHERE revision = $1 AND uid = $2::uuid AND metadata = $3 \
             AND body = $4 AND status IS NOT DISTINCT FROM $5",
        )
        .bind(bigint(revision.0))
        .bind(&object.uid)
        .bind(&object.metadata)
        .bind(&object.body)
        .bind(&object.status);
        Ok(self.fetch_optional(statement).await?.is_some())
    }
}

fn read(row: &PgRow) -> Result<Change, LedgerError> {
    let object = Object::read(row)?;
    Ok(Change {
        at: row.try_get::<At, _>("changed_at")?.0,
        revision: object.revision,
        kind: convert::word(row, "kind", ChangeKind::from_name)?,
        object,
    })
}
