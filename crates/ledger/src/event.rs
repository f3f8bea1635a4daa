//! Events: what happened to an object, in words for people. Same words again are counted.

use crate::{Ledger, LedgerError, Tx};
use std::time::Duration;

/// Which object an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRef {
    /// API version, such as `kubevirt.io/v1`.
    pub api_version: String,
    /// Kind, such as `VirtualMachineInstance`.
    pub kind: String,
    /// Resource key, such as `virtualmachineinstances.kubevirt.io`.
    pub resource: String,
    /// Namespace; empty for a cluster-scoped object.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID; may be empty when it isn't known.
    pub uid: String,
}

/// Whether somebody should look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// As it should be.
    Normal,
    /// Somebody may want to look.
    Warning,
}

/// An event to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRecord {
    /// What it is about.
    pub regarding: ObjectRef,
    /// One CamelCase word for machines.
    pub reason: String,
    /// A sentence for people; cut after 1024 bytes.
    pub note: String,
    /// Normal or warning.
    pub kind: EventKind,
    /// Who saw it, such as `migration-coordinator`.
    pub component: String,
    /// On which node; empty when it is about none.
    pub host: String,
}

impl Tx {
    /// Records an event in the object's namespace (`default` for a cluster-scoped object).
    ///
    /// The same event again raises the count and the last time of the first.
    pub async fn event(&mut self, record: EventRecord) -> Result<(), LedgerError> {
        todo!()
    }
}

impl Ledger {
    /// Removes events last seen longer ago than `keep`. Answers how many.
    pub async fn events_prune(&self, keep: Duration) -> Result<u64, LedgerError> {
        todo!()
    }
}
