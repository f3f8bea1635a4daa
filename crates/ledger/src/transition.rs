//! Transitions of jobs: recorded once, guarded by state and epoch, never changed.

use crate::{Lease, Ledger, LedgerError, Tx};
use godwit_model::migration::job::JobState;
use godwit_model::{Epoch, JobId, NodeName};
use jiff::Timestamp;
use serde_json::Value;

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
    Now,
    /// Someone else moved the job. Stop, don't retry.
    Stale {
        /// The state it is in.
        found: JobState,
        /// The epoch of its newest owner.
        epoch: Epoch,
    },
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
    /// Why.
    pub reason: String,
    /// When, by the database's clock.
    pub at: Timestamp,
}

impl Ledger {
    /// A job's transitions, oldest first.
    pub async fn history(&self, job: &JobId) -> Result<Vec<TransitionRow>, LedgerError> {
        todo!()
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
        todo!()
    }
}
