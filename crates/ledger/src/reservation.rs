//! Room held on nodes: by a job for its target, or, without a job, by the machine that is there.

use crate::convert::{self, bigint, interval, job_uuid, machine_uuid};
use crate::{Ledger, LedgerError, Tx};
use godwit_model::placement::Room;
use godwit_model::{Bytes, JobId, MachineId, NodeName};
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::time::Duration;

/// Room to be held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewReservation {
    /// For which machine; its instance must exist.
    pub machine: MachineId,
    /// On which node.
    pub node: NodeName,
    /// For which migration; `None` binds the machine to the node.
    pub job: Option<JobId>,
    /// How much.
    pub room: Room,
}

/// Room that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReservationRow {
    /// For which machine.
    pub machine: MachineId,
    /// On which node.
    pub node: NodeName,
    /// For which migration; `None` when the machine is bound to the node.
    pub job: Option<JobId>,
    /// How much.
    pub room: Room,
}

/// How a reservation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Reserved {
    /// The room is held.
    Held,
    /// The node has too little.
    NoRoom {
        /// What is free there.
        free: Room,
    },
    /// The machine holds room there already, or on two other nodes.
    Duplicate,
}

pub(crate) const LIST: &str = "SELECT machine, node, job, memory_bytes, cpu_milli, \
    hugepages_2mi_bytes, hugepages_1gi_bytes FROM reservation ORDER BY node, machine";

impl Ledger {
    /// All reservations, by node and machine.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn reservations(&self) -> Result<Vec<ReservationRow>, LedgerError> {
        let rows = self.fetch_all(sqlx::query(LIST)).await?;
        rows.iter().map(read).collect()
    }
}

impl Tx {
    /// All reservations, by node and machine.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn reservations(&mut self) -> Result<Vec<ReservationRow>, LedgerError> {
        let rows = self.fetch_all(sqlx::query(LIST)).await?;
        rows.iter().map(read).collect()
    }

    /// Holds room on a node.
    ///
    /// # Errors
    /// `NotFound` when there is no such node; the transaction goes on. `Refused` when the machine
    /// has no instance.
    pub async fn reserve(&mut self, new: NewReservation) -> Result<Reserved, LedgerError> {
        let statement = sqlx::query(include_str!("../queries/reservation_hold.sql"))
            .bind(machine_uuid(&new.machine))
            .bind(new.node.as_str())
            .bind(new.job.as_ref().map(job_uuid))
            .bind(bigint(new.room.memory.0))
            .bind(bigint(new.room.cpu_milli))
            .bind(bigint(new.room.hugepages.mi2.0))
            .bind(bigint(new.room.hugepages.gi1.0));
        let row = self.fetch_optional(statement).await?;
        let row = row.ok_or(LedgerError::NotFound)?;
        if row.try_get("held")? {
            self.wrote(None);
            return Ok(Reserved::Held);
        }
        if row.try_get("taken")? {
            return Ok(Reserved::Duplicate);
        }
        Ok(Reserved::NoRoom {
            free: Room {
                memory: Bytes(convert::count(&row, "memory_free")?),
                cpu_milli: convert::count(&row, "cpu_milli_free")?,
                hugepages: convert::hugepages(&row)?,
            },
        })
    }

    /// Where migrations of `machine` failed that ended in the last `age`, each once. One that
    /// somebody cancelled says nothing of its target.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn failed_targets(
        &mut self,
        machine: &MachineId,
        age: Duration,
    ) -> Result<Vec<NodeName>, LedgerError> {
        let statement = sqlx::query(
            "SELECT DISTINCT target FROM migration \
             WHERE machine = $1 AND state = 'Failed' AND finished_at > clock_timestamp() - $2 \
             AND target IS NOT NULL AND cancel IS NULL ORDER BY target",
        )
        .bind(machine_uuid(machine))
        .bind(interval(age));
        let rows = self.fetch_all(statement).await?;
        rows.iter()
            .map(|row| convert::name(row, "target"))
            .collect()
    }

    /// Gives the room back. Answers whether some was held.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn reservation_release(
        &mut self,
        machine: &MachineId,
        node: &NodeName,
    ) -> Result<bool, LedgerError> {
        let statement = sqlx::query("DELETE FROM reservation WHERE machine = $1 AND node = $2")
            .bind(machine_uuid(machine))
            .bind(node.as_str());
        let released = self.execute(statement).await?;
        self.wrote(None);
        Ok(released > 0)
    }
}

pub(crate) fn read(row: &PgRow) -> Result<ReservationRow, LedgerError> {
    Ok(ReservationRow {
        machine: convert::id(row, "machine")?,
        node: convert::name(row, "node")?,
        job: convert::id_maybe(row, "job")?,
        room: Room {
            memory: Bytes(convert::count(row, "memory_bytes")?),
            cpu_milli: convert::count(row, "cpu_milli")?,
            hugepages: convert::hugepages(row)?,
        },
    })
}
