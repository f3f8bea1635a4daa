//! The write transaction.

use crate::LedgerError;
use crate::convert::At;
use crate::error::may_have_committed;
use crate::numbers::Numbers;
pub(crate) use crate::session::Statement;
use crate::session::{Session, Sessions};
use crate::wakeup::Notifier;
use godwit_model::Revision;
use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::time::Instant;
use tokio::sync::OwnedSemaphorePermit;

/// A write transaction under the cluster-wide revision lock. Dropping it rolls back.
///
/// Unless a method says otherwise, an error ends the transaction: drop it.
#[derive(Debug)]
pub struct Tx {
    session: Session,
    _turn: OwnedSemaphorePermit,
    notifier: Notifier,
    numbers: Numbers,
    /// When it got the revision lock, by this process's clock.
    begun: Instant,
    now: Timestamp,
    revision: Revision,
    wrote: bool,
    made: Option<Revision>,
}

/// A transaction that has the revision lock, and nothing else.
pub(crate) struct Locked {
    session: Session,
    now: Timestamp,
    revision: Revision,
}

impl Locked {
    pub(crate) async fn begin(sessions: &Sessions) -> Result<Self, LedgerError> {
        let mut session = sessions.get().await?;
        let row = session
            .begin_with("BEGIN; SELECT revision, locked_at FROM revision_lock()")
            .await?;
        Ok(Self {
            session,
            now: row.try_get::<At, _>("locked_at")?.0,
            revision: Revision(crate::convert::count(&row, "revision")?),
        })
    }
}

impl Tx {
    pub(crate) fn new(
        locked: Locked,
        turn: OwnedSemaphorePermit,
        (notifier, numbers): (Notifier, Numbers),
    ) -> Self {
        Self {
            session: locked.session,
            _turn: turn,
            notifier,
            numbers,
            begun: Instant::now(),
            now: locked.now,
            revision: locked.revision,
            wrote: false,
            made: None,
        }
    }

    /// When this transaction got the revision lock, by the database's clock.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    /// The newest revision, changes of this transaction included.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The newest change of an API object that this transaction made; `None` when it made none.
    pub fn made(&self) -> Option<Revision> {
        self.made
    }

    /// Commits, and wakes up who listens. Answers the newest revision.
    ///
    /// # Errors
    /// `Conflict` when a statement of this transaction failed: nothing is written. `Unknown` when
    /// the connection broke during the commit.
    pub async fn commit(mut self) -> Result<Revision, LedgerError> {
        let done = self.end().await;
        self.numbers.committed(self.begun, &done);
        done
    }

    async fn end(&mut self) -> Result<Revision, LedgerError> {
        // Postgres would answer COMMIT with success, and roll back.
        if !self.session.is_sound() {
            return Err(LedgerError::Conflict);
        }
        match self.session.commit().await {
            Ok(()) => {}
            Err(error) if self.wrote && may_have_committed(&error) => {
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
        self.made = self.made.max(revision);
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
        Ok(self.session.execute(statement).await?)
    }

    pub(crate) async fn fetch_one(
        &mut self,
        statement: Statement<'_>,
    ) -> Result<PgRow, LedgerError> {
        Ok(self.session.fetch_one(statement).await?)
    }

    pub(crate) async fn fetch_optional(
        &mut self,
        statement: Statement<'_>,
    ) -> Result<Option<PgRow>, LedgerError> {
        Ok(self.session.fetch_optional(statement).await?)
    }

    pub(crate) async fn fetch_all(
        &mut self,
        statement: Statement<'_>,
    ) -> Result<Vec<PgRow>, LedgerError> {
        Ok(self.session.fetch_all(statement).await?)
    }
}
