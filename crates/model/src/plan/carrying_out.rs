//! Carrying out a plan, wave by wave: what comes next, from how each node stands.
//!
//! Called by `maintenance-service/src/drain_plan` with what is recorded of the plan and what the
//! ledger says of its nodes' maintenances. Asked again it answers the same.

use serde::{Deserialize, Serialize};

/// How far a node of a plan is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    /// Its wave has not begun.
    #[default]
    Waiting,
    /// It is under maintenance, and machines are on it.
    Draining,
    /// It is under maintenance, and empty.
    Emptied,
    /// Its maintenance failed.
    Failed,
    /// Its maintenance was removed: it is open again, and the plan is done with it.
    Released,
}

/// What a node's maintenance says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maintained {
    /// There is none.
    No,
    /// Machines are on the node.
    Draining,
    /// The node is empty.
    Emptied,
    /// It can't be maintained.
    Failed,
}

impl NodeState {
    /// How far a node is that was so far, by what its maintenance says.
    #[must_use]
    pub fn seen(self, maintained: Maintained) -> Self {
        match (self, maintained) {
            (Self::Waiting, Maintained::No) => Self::Waiting,
            (Self::Released, _)
            | (Self::Draining | Self::Emptied | Self::Failed, Maintained::No) => Self::Released,
            (
                Self::Waiting | Self::Draining | Self::Emptied | Self::Failed,
                Maintained::Draining,
            ) => Self::Draining,
            (
                Self::Waiting | Self::Draining | Self::Emptied | Self::Failed,
                Maintained::Emptied,
            ) => Self::Emptied,
            (Self::Waiting | Self::Draining | Self::Emptied | Self::Failed, Maintained::Failed) => {
                Self::Failed
            }
        }
    }

    /// Whether the plan keeps the node closed.
    pub fn is_out(self) -> bool {
        match self {
            Self::Draining | Self::Emptied | Self::Failed => true,
            Self::Waiting | Self::Released => false,
        }
    }
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nodes are being emptied.
    Drain,
    /// A wave of at most so many nodes may begin; `None` is no limit.
    Begin {
        /// Most nodes of it.
        nodes_max: Option<usize>,
    },
    /// As many nodes are out as may be: one must be opened again before another is closed.
    Full,
    /// Every node was emptied.
    Done,
}

/// What comes next for nodes that stand so; 0 is no limit of nodes that are out at once.
pub fn next(nodes: &[NodeState], out_max: usize) -> Next {
    let count = |of: fn(NodeState) -> bool| nodes.iter().filter(|node| of(**node)).count();
    if count(|node| matches!(node, NodeState::Draining | NodeState::Failed)) > 0 {
        return Next::Drain;
    }
    if count(|node| node == NodeState::Waiting) == 0 {
        return Next::Done;
    }
    let nodes_max = match out_max {
        0 => None,
        most => match most.saturating_sub(count(NodeState::is_out)) {
            0 => return Next::Full,
            left => Some(left),
        },
    };
    Next::Begin { nodes_max }
}

#[cfg(test)]
mod tests {
    use super::*;
    use NodeState::{Draining, Emptied, Failed, Released, Waiting};

    #[test]
    fn a_wave_begins_when_the_one_before_is_empty_and_few_enough_are_out() {
        let begin = |nodes_max| Next::Begin { nodes_max };
        for (nodes, out_max, expected) in [
            (vec![], 0, Next::Done),
            (vec![Waiting, Waiting], 0, begin(None)),
            (vec![Waiting, Waiting], 1, begin(Some(1))),
            (vec![Draining, Waiting], 0, Next::Drain),
            (vec![Failed, Waiting], 0, Next::Drain),
            (vec![Emptied, Waiting], 0, begin(None)),
            (vec![Emptied, Waiting], 1, Next::Full),
            (vec![Emptied, Waiting], 3, begin(Some(2))),
            (vec![Released, Waiting], 1, begin(Some(1))),
            (vec![Released, Emptied], 1, Next::Done),
        ] {
            assert_eq!(next(&nodes, out_max), expected, "{nodes:?} {out_max}");
        }
    }

    #[test]
    fn a_node_whose_maintenance_was_removed_is_not_closed_again() {
        assert_eq!(Waiting.seen(Maintained::No), Waiting);
        assert_eq!(Waiting.seen(Maintained::Draining), Draining);
        assert_eq!(Draining.seen(Maintained::Emptied), Emptied);
        assert_eq!(
            Emptied.seen(Maintained::Draining),
            Draining,
            "one came back"
        );
        for state in [Draining, Emptied, Failed, Released] {
            assert_eq!(state.seen(Maintained::No), Released);
        }
        assert_eq!(Released.seen(Maintained::Draining), Released);
    }
}
