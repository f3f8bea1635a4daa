//! Fences: nodes that somebody declared dead, and machines that were taken from their hosts.

use crate::convert::{self, At, job_uuid, machine_uuid};
use crate::{Ledger, LedgerError, Tx};
use godwit_model::{Epoch, JobId, MachineId, NodeName};
use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

/// A declaration that a node is dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceRow {
    /// UID of the NodeFence.
    pub uid: String,
    /// Which node.
    pub node: NodeName,
    /// The boot that ended; empty when nobody said which.
    pub boot_id: String,
    /// What was done to be sure.
    pub statement: String,
    /// Who says so.
    pub by: String,
    /// When it was recorded, by the database's clock.
    pub at: Timestamp,
}

/// Which hosts of a job are fenced, and were not heard since.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JobFences {
    /// The source, since the job was requested.
    pub source: bool,
    /// The target, since its room was reserved.
    pub target: bool,
}

/// A machine that was taken from its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outdated {
    /// Which machine.
    pub machine: MachineId,
    /// The first epoch that is not outdated.
    pub epoch: Epoch,
}

impl Ledger {
    /// Fences of `node`, oldest first.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn node_fences(&self, node: &NodeName) -> Result<Vec<FenceRow>, LedgerError> {
        let statement = sqlx::query(
            "SELECT uid, node, boot_id, statement, \"by\", at FROM node_fence \
             WHERE node = $1 ORDER BY at, uid",
        )
        .bind(node.as_str());
        let rows = self.fetch_all(statement).await?;
        rows.iter().map(read).collect()
    }

    /// Which hosts of a job are fenced; none when there is no such job.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn job_fences(&self, job: &JobId) -> Result<JobFences, LedgerError> {
        let statement = sqlx::query(include_str!("../queries/job_fences.sql")).bind(job_uuid(job));
        match self.fetch_optional(statement).await? {
            None => Ok(JobFences::default()),
            Some(row) => Ok(JobFences {
                source: row.try_get("source")?,
                target: row.try_get("target")?,
            }),
        }
    }

    /// The first epochs of those of `machines` that are known: one that runs under an older epoch
    /// is somebody else's. Counts instances that are gone if a fence took them from their host.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn machine_epochs(
        &self,
        machines: &[MachineId],
    ) -> Result<Vec<Outdated>, LedgerError> {
        let uids: Vec<Uuid> = machines.iter().map(machine_uuid).collect();
        let statement = sqlx::query(
            "SELECT uid, max(epoch) AS epoch FROM (\
             SELECT uid, epoch FROM instance WHERE uid = ANY($1) \
             UNION ALL SELECT uid, epoch FROM instance_release WHERE uid = ANY($1)\
             ) AS known GROUP BY uid ORDER BY uid",
        )
        .bind(uids);
        let rows = self.fetch_all(statement).await?;
        let read = |row: &PgRow| {
            Ok(Outdated {
                machine: convert::id(row, "uid")?,
                epoch: Epoch(convert::count(row, "epoch")?),
            })
        };
        rows.iter().map(read).collect()
    }
}

impl Tx {
    /// Records that a node is dead. Answers whether it was not recorded before; `row.at` is
    /// replaced by the time of this transaction.
    ///
    /// # Errors
    /// `Refused` when the statement is empty.
    pub async fn node_fence(&mut self, row: &FenceRow) -> Result<bool, LedgerError> {
        let uid = Uuid::parse_str(&row.uid).map_err(|error| convert::broken("uid", error))?;
        let statement = sqlx::query(
            "INSERT INTO node_fence (uid, node, boot_id, statement, \"by\", at) \
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        )
        .bind(uid)
        .bind(row.node.as_str())
        .bind(&row.boot_id)
        .bind(&row.statement)
        .bind(&row.by)
        .bind(At(self.now()));
        let new = self.execute(statement).await? > 0;
        self.wrote(None);
        Ok(new)
    }

    /// Takes a machine from its host for good: the next epoch, no node, `Unplaced`, no room.
    /// Answers the new epoch. Only for a machine that can't act any more, or that its host is
    /// about to end for its old epoch.
    ///
    /// # Errors
    /// `NotFound` when there is no such instance; the transaction goes on.
    pub async fn instance_release(&mut self, uid: &MachineId) -> Result<Epoch, LedgerError> {
        let statement = sqlx::query(include_str!("../queries/instance_release.sql"))
            .bind(machine_uuid(uid))
            .bind(At(self.now()));
        let row = self.fetch_optional(statement).await?;
        let row = row.ok_or(LedgerError::NotFound)?;
        self.wrote(None);
        Ok(Epoch(convert::count(&row, "epoch")?))
    }
}

fn read(row: &PgRow) -> Result<FenceRow, LedgerError> {
    Ok(FenceRow {
        uid: row.try_get::<Uuid, _>("uid")?.to_string(),
        node: convert::name(row, "node")?,
        boot_id: row.try_get("boot_id")?,
        statement: row.try_get("statement")?,
        by: row.try_get("by")?,
        at: row.try_get::<At, _>("at")?.0,
    })
}
