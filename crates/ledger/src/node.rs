//! Nodes as the scheduler knows them. The API's Node object stands beside it.

use crate::{Ledger, LedgerError, Tx};
use godwit_model::{Bytes, NodeName};
use jiff::Timestamp;
use serde_json::Value;

/// Room on a node for machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Memory for guests and their QEMU.
    pub memory: Bytes,
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
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

impl Ledger {
    /// All nodes, by name.
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, LedgerError> {
        todo!()
    }
}

impl Tx {
    /// All nodes, by name.
    pub async fn nodes(&mut self) -> Result<Vec<NodeRow>, LedgerError> {
        todo!()
    }

    /// Writes a node, new or known.
    pub async fn node_put(&mut self, node: NodeRow) -> Result<(), LedgerError> {
        todo!()
    }

    /// Removes a node. Answers whether there was one.
    ///
    /// # Errors
    /// `Refused` while a machine or a reservation is there.
    pub async fn node_remove(&mut self, name: &NodeName) -> Result<bool, LedgerError> {
        todo!()
    }
}
