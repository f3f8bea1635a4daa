//! What a drain looks at: the machines of some nodes, and their migrations, each with its object.
//! One statement each, however large the fleet is.

use crate::convert::machine_uuid;
use crate::tx::Statement;
use crate::{InstanceRow, JobRow, Ledger, LedgerError, Object, ObjectKey, Tx, instance};
use godwit_model::MachineId;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

/// Which machines are asked for: those for which any of this holds.
#[derive(Debug, Clone, Default)]
pub struct MachinesWanted {
    /// On one of these nodes, on the way there or away, or marked to leave it.
    pub nodes: Vec<String>,
    /// One of these.
    pub machines: Vec<MachineId>,
    /// With the name of one of these instances.
    pub keys: Vec<ObjectKey>,
}

/// A machine as the ledger has it.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineFound {
    /// Where it is; `None` when the scheduler has not taken it in.
    pub row: Option<InstanceRow>,
    /// Its instance; `None` when that is gone.
    pub object: Option<Object>,
}

/// An open migration as the ledger has it.
#[derive(Debug, Clone, PartialEq)]
pub struct JobFound {
    /// The job.
    pub job: JobRow,
    /// What users see of it; `None` when that is gone.
    pub object: Option<Object>,
}

const MACHINES: &str = include_str!("../queries/machines_about.sql");
const JOBS: &str = include_str!("../queries/jobs_about.sql");
const FAILED: &str = "SELECT object.uid, resource, object.namespace, object.name, metadata, body, \
    status, revision FROM migration JOIN object ON object.uid = migration.id \
    WHERE machine = ANY($1) AND state = 'Failed'";
const OF_KEYS: &str = "SELECT uid, object.resource, object.namespace, object.name, metadata, body, \
    status, revision FROM unnest($1::text[], $2::text[], $3::text[]) \
    AS wanted (resource, namespace, name) JOIN object \
    ON object.resource = wanted.resource AND object.namespace = wanted.namespace \
    AND object.name = wanted.name";

impl Ledger {
    /// The machines that are asked for, by UID.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn machines_about(
        &self,
        wanted: &MachinesWanted,
    ) -> Result<Vec<MachineFound>, LedgerError> {
        machines(&self.fetch_all(machines_about(wanted)).await?)
    }

    /// All open jobs, by priority and age.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn jobs_shown(&self) -> Result<Vec<JobFound>, LedgerError> {
        jobs(&self.fetch_all(jobs_shown()).await?)
    }

    /// The open jobs from or to one of `nodes` or of one of `machines`, by priority and age.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn jobs_about(
        &self,
        nodes: &[String],
        machines: &[MachineId],
    ) -> Result<Vec<JobFound>, LedgerError> {
        jobs(&self.fetch_all(jobs_about(nodes, machines)).await?)
    }

    /// The migrations of these machines that failed, as users see them.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn migrations_failed(
        &self,
        machines: &[MachineId],
    ) -> Result<Vec<Object>, LedgerError> {
        objects(&self.fetch_all(migrations_failed(machines)).await?)
    }

    /// Those of these objects that there are, in no order; for no events.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn get_all(&self, keys: &[ObjectKey]) -> Result<Vec<Object>, LedgerError> {
        objects(&self.fetch_all(get_all(keys)).await?)
    }
}

impl Tx {
    /// The machines that are asked for, by UID.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn machines_about(
        &mut self,
        wanted: &MachinesWanted,
    ) -> Result<Vec<MachineFound>, LedgerError> {
        machines(&self.fetch_all(machines_about(wanted)).await?)
    }

    /// All open jobs, by priority and age.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn jobs_shown(&mut self) -> Result<Vec<JobFound>, LedgerError> {
        jobs(&self.fetch_all(jobs_shown()).await?)
    }

    /// The open jobs from or to one of `nodes` or of one of `machines`, by priority and age.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn jobs_about(
        &mut self,
        nodes: &[String],
        machines: &[MachineId],
    ) -> Result<Vec<JobFound>, LedgerError> {
        jobs(&self.fetch_all(jobs_about(nodes, machines)).await?)
    }

    /// The migrations of these machines that failed, as users see them.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn migrations_failed(
        &mut self,
        machines: &[MachineId],
    ) -> Result<Vec<Object>, LedgerError> {
        objects(&self.fetch_all(migrations_failed(machines)).await?)
    }

    /// Those of these objects that there are, in no order; for no events.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn get_all(&mut self, keys: &[ObjectKey]) -> Result<Vec<Object>, LedgerError> {
        objects(&self.fetch_all(get_all(keys)).await?)
    }
}

fn machines_about(wanted: &MachinesWanted) -> Statement<'_> {
    let namespaces = wanted.keys.iter().map(|key| key.namespace.as_str());
    let names = wanted.keys.iter().map(|key| key.name.as_str());
    sqlx::query(MACHINES)
        .bind(&wanted.nodes)
        .bind(uuids(&wanted.machines))
        .bind(namespaces.collect::<Vec<_>>())
        .bind(names.collect::<Vec<_>>())
}

fn jobs_shown() -> Statement<'static> {
    let nobody: (Option<Vec<String>>, Option<Vec<Uuid>>) = (None, None);
    sqlx::query(JOBS).bind(nobody.0).bind(nobody.1)
}

fn jobs_about<'q>(nodes: &'q [String], machines: &[MachineId]) -> Statement<'q> {
    sqlx::query(JOBS).bind(nodes).bind(uuids(machines))
}

fn migrations_failed(machines: &[MachineId]) -> Statement<'_> {
    sqlx::query(FAILED).bind(uuids(machines))
}

fn get_all(keys: &[ObjectKey]) -> Statement<'_> {
    let each = |part: fn(&ObjectKey) -> &str| keys.iter().map(part).collect::<Vec<_>>();
    sqlx::query(OF_KEYS)
        .bind(each(|key| &key.resource))
        .bind(each(|key| &key.namespace))
        .bind(each(|key| &key.name))
}

fn uuids(machines: &[MachineId]) -> Vec<Uuid> {
    machines.iter().map(machine_uuid).collect()
}

fn machines(rows: &[PgRow]) -> Result<Vec<MachineFound>, LedgerError> {
    let found = rows.iter().map(|row| {
        let epoch: Option<i64> = row.try_get("epoch")?;
        Ok(MachineFound {
            row: epoch.map(|_| instance::read(row)).transpose()?,
            object: object_maybe(row)?,
        })
    });
    found.collect()
}

fn jobs(rows: &[PgRow]) -> Result<Vec<JobFound>, LedgerError> {
    let found = rows.iter().map(|row| {
        Ok(JobFound {
            job: JobRow::read(row)?,
            object: object_maybe(row)?,
        })
    });
    found.collect()
}

fn object_maybe(row: &PgRow) -> Result<Option<Object>, LedgerError> {
    let revision: Option<i64> = row.try_get("revision")?;
    revision.map(|_| Object::read(row)).transpose()
}

fn objects(rows: &[PgRow]) -> Result<Vec<Object>, LedgerError> {
    rows.iter().map(Object::read).collect()
}
