//! Transitions of jobs: recorded once, guarded by state and epoch, never changed.

use crate::convert::{self, At, bigint, job_uuid};
use crate::{Lease, Ledger, LedgerError, Tx};
use godwit_model::migration::job::JobState;
use godwit_model::{Epoch, JobId, NodeName};
use jiff::Timestamp;
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;

/// One step of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobStep {
    /// The state the job is believed to be in.
    pub from: JobState,
    /// The state it comes to. The same as `from` writes `set` without a transition.
    pub to: JobState,
    /// Why, for the history.
    pub reason: String,
    /// What else is known now.
    pub set: JobChange,
}

/// What a step makes known; `None` leaves a thing as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobChange {
    /// Where the machine goes.
    pub target: Option<NodeName>,
    /// Where the target listens.
    pub target_address: Option<String>,
    /// Why the job failed or is being undone.
    pub failure: Option<String>,
    /// Why the job shall be cancelled; the first reason stays.
    pub cancel: Option<String>,
    /// Numbers (passes, bytes, blackout_us, brownout_us, queued_us), merged by top-level key.
    pub history: Option<Value>,
}

/// How the recording of a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Recorded {
    /// It is recorded, once this transaction commits.
    Now {
        /// Since when the job is in its state, by the database's clock.
        since: Timestamp,
    },
    /// Someone else moved the job. Stop, don't retry.
    Stale {
        /// The state it is in.
        found: JobState,
        /// The epoch of its newest owner.
        epoch: Epoch,
    },
}

impl Recorded {
    /// Whether it is recorded, once the transaction commits.
    pub const fn is_now(&self) -> bool {
        matches!(self, Self::Now { .. })
    }
}

/// One line of a job's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransitionRow {
    /// Which job.
    pub job: JobId,
    /// Its place in the job's history, from 1 without a gap.
    pub seq: u32,
    /// The state before; `None` for the first.
    pub from: Option<JobState>,
    /// The state after.
    pub to: JobState,
    /// Epoch of the owner that recorded it; 0 for the request.
    pub epoch: Epoch,
    /// Who recorded it: the owner of the lease, or `request`.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// When, by the database's clock.
    pub at: Timestamp,
}

impl Ledger {
    /// A job's transitions, oldest first.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn history(&self, job: &JobId) -> Result<Vec<TransitionRow>, LedgerError> {
        let statement = sqlx::query(
            "SELECT migration_id, seq, from_state, to_state, epoch, actor, reason, at \
             FROM migration_transition WHERE migration_id = $1 ORDER BY seq",
        )
        .bind(job_uuid(job));
        let rows = self.fetch_all(statement).await?;
        rows.iter().map(read).collect()
    }
}

impl Tx {
    /// Records a step and its history row, if the job is in `step.from` and the lease is the
    /// newest. A final state ends the lease.
    ///
    /// # Errors
    /// `NotFound` when there is no such job; `Refused` when the edge is illegal.
    pub async fn job_record(
        &mut self,
        lease: &Lease,
        step: JobStep,
    ) -> Result<Recorded, LedgerError> {
        let set = &step.set;
        let statement = sqlx::query(include_str!("../queries/job_record.sql"))
            .bind(job_uuid(&lease.job.id))
            .bind(step.from.as_str())
            .bind(step.to.as_str())
            .bind(bigint(lease.epoch.0))
            .bind(&step.reason)
            .bind(set.target.as_ref().map(NodeName::as_str))
            .bind(&set.target_address)
            .bind(&set.failure)
            .bind(&set.cancel)
            .bind(&set.history)
            .bind(step.to.is_final() && step.from != step.to)
            .bind(&lease.owner);
        if let Some(since) = self
            .fetch_one(statement)
            .await?
            .try_get::<Option<At>, _>("since")?
        {
            self.wrote(None);
            return Ok(Recorded::Now { since: since.0 });
        }
        // Read anew: the statement above may have waited for a claim that it does not see.
        let job = self.job(&lease.job.id).await?;
        let job = job.ok_or(LedgerError::NotFound)?;
        Ok(Recorded::Stale {
            found: job.state,
            epoch: job.epoch,
        })
    }
}

pub(crate) fn read(row: &PgRow) -> Result<TransitionRow, LedgerError> {
    let from: Option<String> = row.try_get("from_state")?;
    let seq: i32 = row.try_get("seq")?;
    Ok(TransitionRow {
        job: convert::id(row, "migration_id")?,
        seq: u32::try_from(seq).map_err(|error| convert::broken("seq", error))?,
        from: match from {
            Some(_) => Some(convert::word(row, "from_state", JobState::from_name)?),
            None => None,
        },
        to: convert::word(row, "to_state", JobState::from_name)?,
        epoch: Epoch(convert::count(row, "epoch")?),
        actor: row.try_get("actor")?,
        reason: row.try_get("reason")?,
        at: row.try_get::<At, _>("at")?.0,
    })
}
