//! Migration jobs: what was requested and how far it is.

use crate::convert::{self, At, job_uuid, machine_uuid};
use crate::{Ledger, LedgerError, NewObject, Object, ObjectKey, Tx};
use godwit_model::migration::job::JobState;
use godwit_model::migration::view;
use godwit_model::{Epoch, JobId, MachineId, NodeName, Revision};
use jiff::Timestamp;
use serde_json::{Value, json};
use sqlx::Row;
use sqlx::postgres::PgRow;

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
    /// Who has the lease; `None` when nobody has.
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

/// Resource key of the objects that jobs stand for.
const RESOURCE: &str = "virtualmachineinstancemigrations.kubevirt.io";
/// Resource key of the objects that jobs move.
const VMI_RESOURCE: &str = "virtualmachineinstances.kubevirt.io";

pub(crate) const OPEN: &str = "SELECT id, namespace, name, machine, vmi_namespace, vmi_name, state, source, \
    target, target_address, priority, created_at, state_since, finished_at, epoch, owner, cancel, \
    failure, trace, history, switch_allowed \
    FROM migration WHERE state NOT IN ('Succeeded', 'Failed') \
    ORDER BY priority DESC, created_at, id";
const GET: &str = "SELECT id, namespace, name, machine, vmi_namespace, vmi_name, state, source, \
    target, target_address, priority, created_at, state_since, finished_at, epoch, owner, cancel, \
    failure, trace, history, switch_allowed \
    FROM migration WHERE id = $1";

impl Ledger {
    /// All jobs that aren't final, by priority and age: who goes first is first.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn jobs_open(&self) -> Result<Vec<JobRow>, LedgerError> {
        let rows = self.fetch_all(sqlx::query(OPEN)).await?;
        rows.iter().map(JobRow::read).collect()
    }

    /// One job, final or not.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn job(&self, id: &JobId) -> Result<Option<JobRow>, LedgerError> {
        let row = self
            .fetch_optional(sqlx::query(GET).bind(job_uuid(id)))
            .await?;
        row.as_ref().map(JobRow::read).transpose()
    }
}

impl Tx {
    /// All jobs that aren't final, by priority and age: who goes first is first.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn jobs_open(&mut self) -> Result<Vec<JobRow>, LedgerError> {
        let rows = self.fetch_all(sqlx::query(OPEN)).await?;
        rows.iter().map(JobRow::read).collect()
    }

    /// One job, final or not.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn job(&mut self, id: &JobId) -> Result<Option<JobRow>, LedgerError> {
        let row = self
            .fetch_optional(sqlx::query(GET).bind(job_uuid(id)))
            .await?;
        row.as_ref().map(JobRow::read).transpose()
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
        let mut object = request.object.into_object(self.now())?;
        object.status = first_status(self.now());
        let statement = sqlx::query(include_str!("../queries/migration_request.sql"));
        let statement = object
            .bind_to(statement)
            .bind(machine_uuid(&request.machine))
            .bind(&request.vmi.namespace)
            .bind(&request.vmi.name)
            .bind(request.priority)
            .bind(&request.trace.0);
        let row = self.fetch_one(statement).await?;
        if let Some(job) = convert::id_maybe(&row, "busy")? {
            return Err(LedgerError::MigrationInProgress { job });
        }
        if row.try_get::<Option<i64>, _>("revision")?.is_none() {
            return Err(LedgerError::AlreadyExists);
        }
        let revision = Revision(convert::count(&row, "revision")?);
        self.wrote(Some(revision));
        Ok(Object { revision, ..object })
    }

    /// Records the wish that a job be cancelled; the first reason stays. Answers whether the job
    /// is open.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn job_cancel(&mut self, id: &JobId, reason: &str) -> Result<bool, LedgerError> {
        let statement = sqlx::query(
            "UPDATE migration SET cancel = COALESCE(cancel, $2) \
             WHERE id = $1 AND state NOT IN ('Succeeded', 'Failed')",
        )
        .bind(job_uuid(id))
        .bind(reason);
        let open = self.execute(statement).await? > 0;
        self.wrote(None);
        Ok(open)
    }
}

/// What users see of a job that was just requested.
fn first_status(now: Timestamp) -> Option<Value> {
    let phase = view::phase(JobState::Pending)?;
    let at = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    Some(json!({
        "phase": phase,
        "phaseTransitionTimestamps": [{ "phase": phase, "phaseTransitionTimestamp": at }],
    }))
}

impl JobRow {
    pub(crate) fn read(row: &PgRow) -> Result<Self, LedgerError> {
        let text = |column| row.try_get::<String, _>(column);
        Ok(Self {
            id: convert::id(row, "id")?,
            key: ObjectKey::new(RESOURCE, text("namespace")?, text("name")?),
            machine: convert::id(row, "machine")?,
            vmi: ObjectKey::new(VMI_RESOURCE, text("vmi_namespace")?, text("vmi_name")?),
            state: convert::word(row, "state", JobState::from_name)?,
            source: convert::name_maybe(row, "source")?,
            target: convert::name_maybe(row, "target")?,
            target_address: row.try_get("target_address")?,
            priority: row.try_get("priority")?,
            created_at: row.try_get::<At, _>("created_at")?.0,
            state_since: row.try_get::<At, _>("state_since")?.0,
            finished_at: row.try_get::<Option<At>, _>("finished_at")?.map(|at| at.0),
            epoch: Epoch(convert::count(row, "epoch")?),
            owner: row.try_get("owner")?,
            cancel: row.try_get("cancel")?,
            failure: row.try_get("failure")?,
            trace: row.try_get("trace")?,
            history: row.try_get("history")?,
            switch_allowed: row.try_get("switch_allowed")?,
        })
    }
}
