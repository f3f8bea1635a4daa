//! Nodes as the scheduler knows them. The API's Node object stands beside it.

use crate::convert::{self, At, bigint};
use crate::{Ledger, LedgerError, Tx};
use godwit_model::placement::Hugepages;
use godwit_model::{Bytes, NodeName};
use jiff::Timestamp;
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;

/// Room on a node for machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Memory for guests and their QEMU.
    pub memory: Bytes,
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
    /// Huge pages for guests.
    pub hugepages: Hugepages,
}

/// One node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeRow {
    /// Its name.
    pub name: NodeName,
    /// Where its agent listens, as `https://ip:port`.
    pub agent_address: String,
    /// Kernel's boot id: differs after each boot.
    pub boot_id: String,
    /// Whether machines may be started there.
    pub ready: bool,
    /// Room for machines; the sum of the reservations never exceeds it.
    pub capacity: Capacity,
    /// What the agent reported: accelerator, machine types, QEMU version, pools, bridges.
    pub facts: Value,
    /// When its state was last known to be as it is here.
    pub heartbeat_at: Timestamp,
}

pub(crate) const LIST: &str = "SELECT name, agent_address, boot_id, ready, memory_bytes, cpu_milli, \
    hugepages_2mi_bytes, hugepages_1gi_bytes, facts, heartbeat_at FROM node ORDER BY name";
const GET: &str = "SELECT name, agent_address, boot_id, ready, memory_bytes, cpu_milli, \
    hugepages_2mi_bytes, hugepages_1gi_bytes, facts, heartbeat_at FROM node WHERE name = $1";

impl Ledger {
    /// All nodes, by name.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, LedgerError> {
        let rows = self.fetch_all(sqlx::query(LIST)).await?;
        rows.iter().map(read).collect()
    }

    /// One node.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn node(&self, name: &NodeName) -> Result<Option<NodeRow>, LedgerError> {
        let statement = sqlx::query(GET).bind(name.as_str());
        let row = self.fetch_optional(statement).await?;
        row.as_ref().map(read).transpose()
    }

    /// Notes that these nodes are as the ledger has them, by the database's clock now. Answers when
    /// that is, and which of them it was noted of: none that isn't ready, or is being written.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn nodes_heard(
        &self,
        nodes: &[NodeName],
    ) -> Result<Vec<(NodeName, Timestamp)>, LedgerError> {
        let names: Vec<&str> = nodes.iter().map(NodeName::as_str).collect();
        let statement = sqlx::query(
            "UPDATE node SET heartbeat_at = clock_timestamp() \
             WHERE name IN (SELECT name FROM node WHERE name = ANY($1) AND ready \
             FOR NO KEY UPDATE SKIP LOCKED) RETURNING name, heartbeat_at",
        )
        .bind(names);
        let rows = self.fetch_all(statement).await?;
        let heard = |row: &PgRow| {
            let at = row.try_get::<At, _>("heartbeat_at")?.0;
            Ok((convert::name(row, "name")?, at))
        };
        rows.iter().map(heard).collect()
    }
}

impl Tx {
    /// All nodes, by name.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn nodes(&mut self) -> Result<Vec<NodeRow>, LedgerError> {
        let rows = self.fetch_all(sqlx::query(LIST)).await?;
        rows.iter().map(read).collect()
    }

    /// Writes a node, new or known.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn node_put(&mut self, node: NodeRow) -> Result<(), LedgerError> {
        let statement = sqlx::query(
            "INSERT INTO node (name, agent_address, boot_id, ready, memory_bytes, cpu_milli, \
             facts, heartbeat_at, hugepages_2mi_bytes, hugepages_1gi_bytes) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
             ON CONFLICT ON CONSTRAINT node_pkey DO UPDATE SET \
             agent_address = excluded.agent_address, boot_id = excluded.boot_id, \
             ready = excluded.ready, memory_bytes = excluded.memory_bytes, \
             cpu_milli = excluded.cpu_milli, facts = excluded.facts, \
             heartbeat_at = excluded.heartbeat_at, \
             hugepages_2mi_bytes = excluded.hugepages_2mi_bytes, \
             hugepages_1gi_bytes = excluded.hugepages_1gi_bytes",
        )
        .bind(node.name.as_str())
        .bind(&node.agent_address)
        .bind(&node.boot_id)
        .bind(node.ready)
        .bind(bigint(node.capacity.memory.0))
        .bind(bigint(node.capacity.cpu_milli))
        .bind(&node.facts)
        .bind(At(node.heartbeat_at))
        .bind(bigint(node.capacity.hugepages.mi2.0))
        .bind(bigint(node.capacity.hugepages.gi1.0));
        self.execute(statement).await?;
        self.wrote(None);
        Ok(())
    }

    /// Removes a node. Answers whether there was one.
    ///
    /// # Errors
    /// `Refused` while a machine or a reservation is there.
    pub async fn node_remove(&mut self, name: &NodeName) -> Result<bool, LedgerError> {
        let statement = sqlx::query("DELETE FROM node WHERE name = $1").bind(name.as_str());
        let removed = self.execute(statement).await?;
        self.wrote(None);
        Ok(removed > 0)
    }
}

pub(crate) fn read(row: &PgRow) -> Result<NodeRow, LedgerError> {
    Ok(NodeRow {
        name: convert::name(row, "name")?,
        agent_address: row.try_get("agent_address")?,
        boot_id: row.try_get("boot_id")?,
        ready: row.try_get("ready")?,
        capacity: Capacity {
            memory: Bytes(convert::count(row, "memory_bytes")?),
            cpu_milli: convert::count(row, "cpu_milli")?,
            hugepages: convert::hugepages(row)?,
        },
        facts: row.try_get("facts")?,
        heartbeat_at: row.try_get::<At, _>("heartbeat_at")?.0,
    })
}
