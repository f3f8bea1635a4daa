//! The write transaction.

use crate::LedgerError;
use crate::convert::At;
use crate::error::is_unavailable;
use crate::wakeup::Notifier;
use godwit_model::Revision;
use jiff::Timestamp;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{PgPool, Postgres, Row, Transaction};
use tokio::sync::OwnedSemaphorePermit;

/// A statement with its arguments.
pub(crate) type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// A write transaction under the cluster-wide revision lock. Dropping it rolls back.
///
/// Unless a method says otherwise, an error ends the transaction: drop it.
#[derive(Debug)]
pub struct Tx {
    inner: Transaction<'static, Postgres>,
    _turn: OwnedSemaphorePermit,
    notifier: Notifier,
    now: Timestamp,
    revision: Revision,
    wrote: bool,
    /// A statement failed or was abandoned. Postgres would answer COMMIT with success, and roll
    /// back.
    broken: bool,
}

impl Tx {
    pub(crate) async fn begin(
        pool: &PgPool,
        turn: OwnedSemaphorePermit,
        notifier: Notifier,
    ) -> Result<Self, LedgerError> {
        let mut inner = pool.begin().await?;
        let row = sqlx::query("SELECT revision, locked_at FROM revision_lock()")
            .fetch_one(&mut *inner)
            .await?;
        Ok(Self {
            inner,
            _turn: turn,
            notifier,
            now: row.try_get::<At, _>("locked_at")?.0,
            revision: Revision(crate::convert::count(&row, "revision")?),
            wrote: false,
            broken: false,
        })
    }

    /// When this transaction got the revision lock, by the database's clock.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The newest revision, changes of this transaction included.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Commits, and wakes up who listens. Answers the newest revision.
    ///
    /// # Errors
    /// `Conflict` when a statement of this transaction failed: nothing is written. `Unknown` when
    /// the connection broke during the commit.
    pub async fn commit(self) -> Result<Revision, LedgerError> {
        if self.broken {
            return Err(LedgerError::Conflict);
        }
        match self.inner.commit().await {
            Ok(()) => {}
            Err(error) if self.wrote && is_unavailable(&error) => {
                return Err(LedgerError::Unknown(error));
            }
            Err(error) => return Err(error.into()),
        }
        if self.wrote {
            self.notifier.poke(self.revision);
        }
        Ok(self.revision)
    }

    /// Says that rows were written, and under which revision if they are API objects.
    pub(crate) fn wrote(&mut self, revision: Option<Revision>) {
        self.wrote = true;
        self.revision = self.revision.max(revision.unwrap_or_default());
    }

    /// Reads the newest revision after a deletion, which cannot return it.
    pub(crate) async fn wrote_deletion(&mut self) -> Result<(), LedgerError> {
        let row = self
            .fetch_one(sqlx::query("SELECT value FROM revision_counter"))
            .await?;
        let revision = crate::convert::count(&row, "value")?;
        self.wrote(Some(Revision(revision)));
        Ok(())
    }

    pub(crate) async fn execute(&mut self, statement: Statement<'_>) -> Result<u64, LedgerError> {
        self.broken = true;
        let done = statement.execute(&mut *self.inner).await?;
        self.broken = false;
        Ok(done.rows_affected())
    }

    pub(crate) async fn fetch_one(
        &mut self,
        statement: Statement<'_>,
    ) -> Result<PgRow, LedgerError> {
        self.broken = true;
        let row = statement.fetch_one(&mut *self.inner).await?;
        self.broken = false;
        Ok(row)
    }

    pub(crate) async fn fetch_optional(
        &mut self,
        statement: Statement<'_>,
    ) -> Result<Option<PgRow>, LedgerError> {
        self.broken = true;
        let row = statement.fetch_optional(&mut *self.inner).await?;
        self.broken = false;
        Ok(row)
    }

    pub(crate) async fn fetch_all(
        &mut self,
        statement: Statement<'_>,
    ) -> Result<Vec<PgRow>, LedgerError> {
        self.broken = true;
        let rows = statement.fetch_all(&mut *self.inner).await?;
        self.broken = false;
        Ok(rows)
    }
}
