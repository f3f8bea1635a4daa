//! The queue of the open jobs, narrow: who waits, who has a slot, and of whom there may be news.

use crate::convert::{self, At};
use crate::{Ledger, LedgerError, Tx};
use godwit_model::migration::job::JobState;
use godwit_model::migration::queue::{Entry, Slots};
use godwit_model::{JobId, NodeName};
use sqlx::Row;
use sqlx::postgres::PgRow;

/// An open job in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueRow {
    /// What the queue's order and limits go by.
    pub entry: Entry,
    /// Whether somebody wishes that it be cancelled.
    pub cancelled: bool,
    /// Whether a host of it was ever fenced; [`Ledger::job_fences`] says what that means for it.
    pub fenced: bool,
}

impl Ledger {
    /// All open jobs, who goes first is first.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn queue(&self) -> Result<Vec<QueueRow>, LedgerError> {
        let statement = sqlx::query(include_str!("../queries/queue.sql"));
        let rows = self.fetch_all(statement).await?;
        rows.iter().map(read).collect()
    }
}

impl Tx {
    /// The slots in use: of the cluster, and of those the ones away from `source`.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn queue_slots(&mut self, source: Option<&NodeName>) -> Result<Slots, LedgerError> {
        let statement = sqlx::query(include_str!("../queries/queue_slots.sql"))
            .bind(source.map(NodeName::as_str));
        let row = self.fetch_one(statement).await?;
        let count = |column| -> Result<usize, LedgerError> {
            let count = convert::count(&row, column)?;
            usize::try_from(count).map_err(|error| convert::broken(column, error))
        };
        Ok(Slots {
            cluster: count("cluster")?,
            outbound: count("outbound")?,
        })
    }
}

fn read(row: &PgRow) -> Result<QueueRow, LedgerError> {
    let id: JobId = convert::id(row, "id")?;
    Ok(QueueRow {
        entry: Entry {
            id,
            state: convert::word(row, "state", JobState::from_name)?,
            priority: row.try_get("priority")?,
            created_at_us: row.try_get::<At, _>("created_at")?.0.as_microsecond(),
            source: convert::name_maybe(row, "source")?,
            target: convert::name_maybe(row, "target")?,
        },
        cancelled: row.try_get("cancelled")?,
        fenced: row.try_get("fenced")?,
    })
}
