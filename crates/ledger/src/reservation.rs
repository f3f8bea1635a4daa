//! Room held on nodes: by a job for its target, or, without a job, by the machine that is there.

use crate::{Ledger, LedgerError, Tx};
use godwit_model::{Bytes, JobId, MachineId, NodeName};

/// Room to be held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewReservation {
    /// For which machine; its instance must exist.
    pub machine: MachineId,
    /// On which node.
    pub node: NodeName,
    /// For which migration; `None` binds the machine to the node.
    pub job: Option<JobId>,
    /// Memory of the guest and its QEMU.
    pub memory_bytes: Bytes,
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
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
    /// Memory of the guest and its QEMU.
    pub memory_bytes: Bytes,
    /// Thousandths of a CPU.
    pub cpu_milli: u64,
}

/// How a reservation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Reserved {
    /// The room is held.
    Held,
    /// The node has too little.
    NoRoom {
        /// Memory that is free there.
        memory_free: Bytes,
        /// Thousandths of a CPU that are free there.
        cpu_milli_free: u64,
    },
    /// The machine holds room there already, or on two other nodes.
    Duplicate,
}

impl Ledger {
    /// All reservations, by node and machine.
    pub async fn reservations(&self) -> Result<Vec<ReservationRow>, LedgerError> {
        todo!()
    }
}

impl Tx {
    /// All reservations, by node and machine.
    pub async fn reservations(&mut self) -> Result<Vec<ReservationRow>, LedgerError> {
        todo!()
    }

    /// Holds room on a node.
    ///
    /// # Errors
    /// `NotFound` when there is no such node; `Refused` when the machine has no instance.
    pub async fn reserve(&mut self, new: NewReservation) -> Result<Reserved, LedgerError> {
        todo!()
    }

    /// Gives the room back. Answers whether some was held.
    pub async fn reservation_release(
        &mut self,
        machine: &MachineId,
        node: &NodeName,
    ) -> Result<bool, LedgerError> {
        todo!()
    }
}
