//! Instances: which machine is on which node, and under which ownership epoch.

use crate::{Lease, Ledger, LedgerError, ObjectKey, Tx};
use godwit_model::machine::MachineSpec;
use godwit_model::{Epoch, MachineId, NodeName};

/// How far the life of a machine is, as the scheduler sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceState {
    /// No node was found yet.
    Unplaced,
    /// Its node was told to start it.
    Starting,
    /// It runs.
    Running,
    /// Its node was told to stop it.
    Stopping,
    /// It ended as wished.
    Stopped,
    /// It ended otherwise.
    Failed,
}

/// One machine.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceRow {
    /// UID of the VirtualMachineInstance.
    pub uid: MachineId,
    /// Key of the VirtualMachineInstance.
    pub key: ObjectKey,
    /// Where it is; `None` before it was placed.
    pub node: Option<NodeName>,
    /// Ownership epoch: grows with every start and every hand-over, from 1.
    pub epoch: Epoch,
    /// How far it is.
    pub state: InstanceState,
    /// What hosts build; `None` before it was placed.
    pub machine: Option<MachineSpec>,
}

impl Ledger {
    /// All instances, by UID.
    pub async fn instances(&self) -> Result<Vec<InstanceRow>, LedgerError> {
        todo!()
    }

    /// One instance.
    pub async fn instance(&self, uid: &MachineId) -> Result<Option<InstanceRow>, LedgerError> {
        todo!()
    }
}

impl Tx {
    /// All instances, by UID.
    pub async fn instances(&mut self) -> Result<Vec<InstanceRow>, LedgerError> {
        todo!()
    }

    /// One instance.
    pub async fn instance(&mut self, uid: &MachineId) -> Result<Option<InstanceRow>, LedgerError> {
        todo!()
    }

    /// Writes a new instance.
    ///
    /// # Errors
    /// `AlreadyExists`; the transaction goes on.
    pub async fn instance_create(&mut self, row: InstanceRow) -> Result<(), LedgerError> {
        todo!()
    }

    /// Writes node, epoch, state and machine of an instance.
    ///
    /// # Errors
    /// `NotFound`, or `Conflict` when the stored epoch is newer; the transaction goes on.
    pub async fn instance_put(&mut self, row: &InstanceRow) -> Result<(), LedgerError> {
        todo!()
    }

    /// Removes an instance and gives back all room it holds. Answers whether there was one.
    pub async fn instance_remove(&mut self, uid: &MachineId) -> Result<bool, LedgerError> {
        todo!()
    }

    /// Makes `to` the owner of a machine under the next epoch: the room on `from` is given back
    /// and the room on `to` is bound. Answers the new epoch.
    ///
    /// # Errors
    /// `Conflict` when the lease is lost or the machine isn't on `from`; nothing is written then.
    pub async fn hand_over(
        &mut self,
        lease: &Lease,
        uid: &MachineId,
        from: &NodeName,
        to: &NodeName,
    ) -> Result<Epoch, LedgerError> {
        todo!()
    }
}
