//! What is recorded of a rolling maintenance: its status.

use serde::{Deserialize, Serialize};

use super::time::Moment;
use crate::{MachineId, NodeName};

/// How far all of it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Record {
    /// How it stands.
    pub phase: Phase,
    /// What happens, or what it waits for, in words.
    pub message: String,
    /// Groups of nodes, each after the one before it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waves: Vec<Wave>,
    /// Every node, in the order of the waves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeRecord>,
}

/// How a rolling maintenance stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Its nodes aren't chosen yet.
    #[default]
    Planning,
    /// A node is under way.
    Running,
    /// No node may begin at the moment.
    Waiting,
    /// No node begins, as a person wishes.
    Paused,
    /// A person ended it, and nodes are still being opened.
    Aborting,
    /// A person ended it.
    Aborted,
    /// Every node was visited, or left out on purpose.
    Succeeded,
    /// A node failed.
    Failed,
}

impl Phase {
    /// Whether nothing will happen any more.
    pub const fn is_over(self) -> bool {
        match self {
            Self::Planning | Self::Running | Self::Waiting | Self::Paused | Self::Aborting => false,
            Self::Aborted | Self::Succeeded | Self::Failed => true,
        }
    }
}

/// Nodes that go together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wave {
    /// `wave-1`, ...
    pub name: String,
    /// Its nodes.
    pub nodes: Vec<NodeName>,
}

/// How far one node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRecord {
    /// Which node.
    pub name: NodeName,
    /// The name of its wave.
    pub wave: String,
    /// How far it is.
    pub state: NodeState,
    /// What it waits for, or how it ended.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When it began; `None` while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Moment>,
    /// When it was closed; `None` before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Moment>,
    /// When it ended; `None` before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Moment>,
    /// How it ends once it is open again; `None` when all went well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Outcome>,
    /// What was run for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<HookRecord>,
    /// Machines that were on it when it was closed, where they are to go back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub homes: Vec<MachineId>,
    /// Those of them that need not be asked any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<MachineId>,
}

/// How a node ends, other than well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Skipped or Failed.
    pub state: NodeState,
    /// Why.
    pub message: String,
}

/// How far a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    /// Its turn has not come.
    Waiting,
    /// A person has to approve of it.
    AwaitingApproval,
    /// Its hooks before it is closed run.
    BeforeDrain,
    /// It is closed and being emptied.
    Draining,
    /// It is empty, and its hooks run.
    Drained,
    /// It is being opened again.
    Reopening,
    /// It is open, and its last hooks run.
    AfterReopen,
    /// Its machines go back to it.
    FailBack,
    /// It was visited.
    Done,
    /// It was left out.
    Skipped,
    /// It failed.
    Failed,
}

impl NodeState {
    /// Whether nothing will happen to the node any more.
    pub const fn is_over(self) -> bool {
        match self {
            Self::Waiting
            | Self::AwaitingApproval
            | Self::BeforeDrain
            | Self::Draining
            | Self::Drained
            | Self::Reopening
            | Self::AfterReopen
            | Self::FailBack => false,
            Self::Done | Self::Skipped | Self::Failed => true,
        }
    }

    /// Whether its machines are still to leave it: no machine should be put there.
    pub const fn is_leaving(self) -> bool {
        match self {
            Self::Waiting | Self::AwaitingApproval | Self::BeforeDrain => true,
            Self::Draining
            | Self::Drained
            | Self::Reopening
            | Self::AfterReopen
            | Self::FailBack
            | Self::Done
            | Self::Skipped
            | Self::Failed => false,
        }
    }

    /// Whether it counts as out: closed, or about to be.
    pub const fn is_out(self) -> bool {
        match self {
            Self::BeforeDrain | Self::Draining | Self::Drained | Self::Reopening => true,
            Self::Waiting
            | Self::AwaitingApproval
            | Self::AfterReopen
            | Self::FailBack
            | Self::Done
            | Self::Skipped
            | Self::Failed => false,
        }
    }

    /// Whether it has begun and not ended.
    pub const fn is_under_way(self) -> bool {
        match self {
            Self::BeforeDrain
            | Self::Draining
            | Self::Drained
            | Self::Reopening
            | Self::AfterReopen
            | Self::FailBack => true,
            Self::Waiting | Self::AwaitingApproval | Self::Done | Self::Skipped | Self::Failed => {
                false
            }
        }
    }
}

/// When hooks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Before the node is closed.
    #[serde(rename = "beforeDrain")]
    BeforeDrain,
    /// When it is empty.
    #[serde(rename = "drained")]
    Drained,
    /// When it is open again.
    #[serde(rename = "afterReopen")]
    AfterReopen,
}

impl Stage {
    /// Its name in the spec.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BeforeDrain => "beforeDrain",
            Self::Drained => "drained",
            Self::AfterReopen => "afterReopen",
        }
    }
}

/// One run of a hook for one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HookRecord {
    /// Its name in the spec.
    pub name: String,
    /// When it runs.
    pub stage: Stage,
    /// Name of the run: a host never runs one twice.
    pub run: String,
    /// When it was ordered.
    pub started_at: Moment,
    /// When its end was heard of; `None` before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Moment>,
    /// How it ended; `None` before. 124: out of time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The end of what it wrote, or why nothing is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// Calls of a webhook so far.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempt: u32,
    /// Until then, whoever recorded the last call makes it; `None` when it was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub called_until_at: Option<Moment>,
    /// No call before then; `None` is at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_call_at: Option<Moment>,
}

const fn is_zero(count: &u32) -> bool {
    *count == 0
}
