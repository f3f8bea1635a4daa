//! What a decision is made by, and what comes of it.

use std::collections::BTreeMap;

use super::budget::Mover;
use super::hooks::Heard;
use super::order::{Budget, Hook};
use super::record::{Record, Stage};
use super::time::Moment;
use crate::{MachineId, NodeName};

/// What is true, as far as it matters.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// UID of the rolling maintenance.
    pub uid: &'a str,
    /// The moment.
    pub now: Moment,
    /// All nodes of the cluster.
    pub nodes: &'a BTreeMap<NodeName, NodeFact>,
    /// All machines of the cluster.
    pub machines: &'a BTreeMap<MachineId, Place>,
    /// All budgets in force, those of others too.
    pub budgets: &'a [Budget],
    /// What was heard of hooks, by [`call_key`](super::call_key).
    pub heard: &'a BTreeMap<String, Heard>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFact {
    /// Whether the selector means it.
    pub selected: bool,
    /// Whether its agent is heard.
    pub ready: bool,
    /// Its failure domain; `None` when it has none.
    pub domain: Option<String>,
    /// What is known of its NodeMaintenance.
    pub maintenance: Maintenance,
}

/// The NodeMaintenance of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Maintenance {
    /// There is none.
    None,
    /// Somebody else's, with its name.
    Foreign(String),
    /// Ours; the node is not empty yet.
    Draining,
    /// Ours; the node is empty.
    Drained,
    /// Ours; it failed, and why.
    Failed(String),
    /// Ours, and it is being taken away.
    Ending,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// For people.
    pub name: String,
    /// Where it runs; `None` when it doesn't.
    pub node: Option<NodeName>,
    /// Whether it may move and can.
    pub moves: bool,
    /// Whether a migration of it is open.
    pub migrating: bool,
    /// What budgets know it by.
    pub mover: Mover,
}

/// What is to be recorded, and then done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The new record.
    pub record: Record,
    /// What belongs to it.
    pub actions: Vec<Action>,
}

/// What is done about a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make its NodeMaintenance, with the record.
    Close(NodeName),
    /// Take its NodeMaintenance away, with the record.
    Reopen(NodeName),
    /// Ask for a migration of a machine to the node, with the record.
    FailBack {
        /// The machine.
        machine: MachineId,
        /// Its home.
        node: NodeName,
    },
    /// Call a webhook once, after the record.
    Call(Call),
}

/// One call of a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Under what its answer is found.
    pub key: String,
    /// The node that it is about.
    pub node: NodeName,
    /// Whom to call.
    pub hook: Hook,
    /// When it runs.
    pub stage: Stage,
    /// Which call of it this is, from 1.
    pub attempt: u32,
}
