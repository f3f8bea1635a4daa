//! One consistent look at the whole ledger, for whoever checks it: the right to read is enough.
//!
//! Nothing is judged here.

use crate::convert::{self, At, job_uuid};
use crate::history::{self, JobHistory};
use crate::session::Session;
use crate::tx::Statement;
use crate::{
    InstanceRow, JobRow, Ledger, LedgerError, NodeRow, Object, ReservationRow, instance, job, node,
    object, reservation,
};
use godwit_model::{JobId, NodeName};
use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

/// Jobs read at a time, so that a long past takes no more memory than a short one.
const PAGE: i64 = 1000;

const JOBS: &str = "SELECT id, namespace, name, machine, vmi_namespace, vmi_name, state, source, \
    target, target_address, priority, created_at, state_since, finished_at, epoch, owner, cancel, \
    failure, trace, history, switch_allowed \
    FROM migration WHERE id = ANY($1) ORDER BY id";
const JOBS_AFTER: &str = "SELECT id, namespace, name, machine, vmi_namespace, vmi_name, state, \
    source, target, target_address, priority, created_at, state_since, finished_at, epoch, owner, \
    cancel, failure, trace, history, switch_allowed \
    FROM migration WHERE id > $1 ORDER BY id LIMIT $2";

/// A snapshot of the ledger. All answers are of the same moment.
#[derive(Debug)]
pub struct Audit {
    session: Session,
}

/// A time during which nothing new could be placed on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cordon {
    /// The node.
    pub node: NodeName,
    /// When it was closed, or a later moment when the change log doesn't go back so far.
    pub from: Timestamp,
    /// When it was opened again; `None` while it is closed.
    pub until: Option<Timestamp>,
}

impl Ledger {
    /// Begins a look that can't write.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn audit(&self) -> Result<Audit, LedgerError> {
        let mut session = self.session().await?;
        session.begin_look().await?;
        Ok(Audit { session })
    }
}

impl Audit {
    /// All nodes, by name.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn nodes(&mut self) -> Result<Vec<NodeRow>, LedgerError> {
        let rows = self.fetch_all(sqlx::query(node::LIST)).await?;
        rows.iter().map(node::read).collect()
    }

    /// All instances, by UID.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn instances(&mut self) -> Result<Vec<InstanceRow>, LedgerError> {
        let rows = self.fetch_all(sqlx::query(instance::LIST)).await?;
        rows.iter().map(instance::read).collect()
    }

    /// All reservations, by node and machine.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn reservations(&mut self) -> Result<Vec<ReservationRow>, LedgerError> {
        let rows = self.fetch_all(sqlx::query(reservation::LIST)).await?;
        rows.iter().map(reservation::read).collect()
    }

    /// All jobs that aren't final.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn jobs_open(&mut self) -> Result<Vec<JobRow>, LedgerError> {
        history::read_jobs(&self.fetch_all(sqlx::query(job::OPEN)).await?)
    }

    /// Those of `ids` that there are, final or not, by id.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn jobs(&mut self, ids: &[JobId]) -> Result<Vec<JobRow>, LedgerError> {
        let ids: Vec<Uuid> = ids.iter().map(job_uuid).collect();
        history::read_jobs(&self.fetch_all(sqlx::query(JOBS).bind(ids)).await?)
    }

    /// The next jobs and their transitions, by id: those after `after`, or the first. None at the
    /// end.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn histories(
        &mut self,
        after: Option<&JobId>,
    ) -> Result<Vec<JobHistory>, LedgerError> {
        let after = after.map_or(Uuid::nil(), job_uuid);
        let statement = sqlx::query(JOBS_AFTER).bind(after).bind(PAGE);
        let jobs = history::read_jobs(&self.fetch_all(statement).await?)?;
        let ids = history::ids(&jobs);
        let transitions = self.fetch_all(history::transitions(&ids)).await?;
        history::together(jobs, &transitions)
    }

    /// All objects of a resource, by namespace and name.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn objects(&mut self, resource: &str) -> Result<Vec<Object>, LedgerError> {
        let rows = self.fetch_all(object::list(resource)).await?;
        rows.iter().map(Object::read).collect()
    }

    /// When nodes were closed, as far back as the change log goes.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn cordons(&mut self) -> Result<Vec<Cordon>, LedgerError> {
        let statement = sqlx::query(include_str!("../queries/audit_cordon.sql"));
        let mut cordons: Vec<Cordon> = Vec::new();
        for row in self.fetch_all(statement).await? {
            let at = row.try_get::<At, _>("changed_at")?.0;
            if row.try_get("cordoned")? {
                cordons.push(Cordon {
                    node: convert::name(&row, "name")?,
                    from: at,
                    until: None,
                });
            } else if let Some(open) = cordons.last_mut() {
                // Of the same node: a node's first edge is always that it is closed.
                open.until = Some(at);
            }
        }
        Ok(cordons)
    }

    async fn fetch_all(&mut self, statement: Statement<'_>) -> Result<Vec<PgRow>, LedgerError> {
        Ok(self.session.fetch_all(statement).await?)
    }
}
