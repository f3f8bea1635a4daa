//! Migration jobs: what was requested and how far it is.

use crate::{Ledger, LedgerError, NewObject, Object, ObjectKey, Tx};
use godwit_model::migration::job::JobState;
use godwit_model::{Epoch, JobId, MachineId, NodeName};
use jiff::Timestamp;
use serde_json::Value;

/// W3C `traceparent` of the request, so that later steps join its trace; may be empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceContext(pub String);

/// A migration that a user, or a drain, asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct MigrationRequest {
    /// The VirtualMachineInstanceMigration.
    pub object: NewObject,
    /// Which machine shall move.
    pub machine: MachineId,
    /// Key of its VirtualMachineInstance.
    pub vmi: ObjectKey,
    /// Higher goes first.
    pub priority: i32,
    /// Trace of the request.
    pub trace: TraceContext,
}

/// One migration job.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRow {
    /// UID of the VirtualMachineInstanceMigration.
    pub id: JobId,
    /// Key of the VirtualMachineInstanceMigration.
    pub key: ObjectKey,
    /// Which machine.
    pub machine: MachineId,
    /// Key of its VirtualMachineInstance.
    pub vmi: ObjectKey,
    /// How far it is.
    pub state: JobState,
    /// Where the machine was when the job was requested, or, later, when it left `Pending`.
    pub source: Option<NodeName>,
    /// Where it goes; `None` before a node was chosen.
    pub target: Option<NodeName>,
    /// Where the target listens; `None` before it was prepared.
    pub target_address: Option<String>,
    /// Higher goes first.
    pub priority: i32,
    /// When it was requested, by the database's clock.
    pub created_at: Timestamp,
    /// When it came into `state`, by the database's clock.
    pub state_since: Timestamp,
    /// When it came to its end; `None` before.
    pub finished_at: Option<Timestamp>,
    /// Fencing token: grows with each owner, from 0 for a job that nobody claimed yet.
    pub epoch: Epoch,
    /// Who has the lease, or had it last; `None` when nobody has.
    pub owner: Option<String>,
    /// Why it shall be cancelled; `None` when nobody wishes so.
    pub cancel: Option<String>,
    /// Why it failed or is being undone.
    pub failure: Option<String>,
    /// `traceparent` of the request; may be empty.
    pub trace: String,
    /// Numbers gathered on the way.
    pub history: Value,
    /// Whether `SwitchAllowed` was ever reached: the source may have passed the machine on.
    pub switch_allowed: bool,
}

impl Ledger {
    /// All jobs that aren't final, by priority and age: who goes first is first.
    pub async fn jobs_open(&self) -> Result<Vec<JobRow>, LedgerError> {
        todo!()
    }

    /// One job, final or not.
    pub async fn job(&self, id: &JobId) -> Result<Option<JobRow>, LedgerError> {
        todo!()
    }
}

impl Tx {
    /// All jobs that aren't final, by priority and age: who goes first is first.
    pub async fn jobs_open(&mut self) -> Result<Vec<JobRow>, LedgerError> {
        todo!()
    }

    /// One job, final or not.
    pub async fn job(&mut self, id: &JobId) -> Result<Option<JobRow>, LedgerError> {
        todo!()
    }

    /// Creates the VirtualMachineInstanceMigration, its job in `Pending` and the first transition.
    ///
    /// # Errors
    /// `AlreadyExists`, or `MigrationInProgress` when the machine has an open job; nothing is
    /// written then and the transaction goes on.
    pub async fn migration_request(
        &mut self,
        request: MigrationRequest,
    ) -> Result<Object, LedgerError> {
        todo!()
    }

    /// Records the wish that a job be cancelled; the first reason stays. Answers whether the job
    /// is open.
    pub async fn job_cancel(&mut self, id: &JobId, reason: &str) -> Result<bool, LedgerError> {
        todo!()
    }
}
