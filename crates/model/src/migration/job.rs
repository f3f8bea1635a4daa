//! States of a migration job as the ledger keeps them, and the legal edges between them.
//!
//! ```text
//! Pending -> Placing -> Reserved -> Preparing -> Prepared -> Copying -> SwitchAllowed -> HandedOver -> Succeeded
//!    |          |           |           |            |          |            |    ^
//!    +----------+--> Failed +-----------+------------+----------+------------+    |
//!                      ^                             v                            |
//!                      +------------------------- Aborting <-> NeedsFencing ------+
//! ```
//!
//! A job that is handed over fails only by post-copy: when the memory was lost with its source.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How far a job is. The public phase is derived from it in `view.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum JobState {
    /// Accepted, waiting for its turn.
    Pending,
    /// Its turn: a target is being chosen.
    Placing,
    /// Room is held on the target.
    Reserved,
    /// The target host starts a paused, listening QEMU.
    Preparing,
    /// The target listens.
    Prepared,
    /// Memory is being copied; nobody may stop the guest for good.
    Copying,
    /// The source may stop complete and pass the machine on.
    SwitchAllowed,
    /// The machine is the target's; in post-copy the rest of its memory follows, then the source's
    /// leftovers are removed.
    HandedOver,
    /// Being undone: the machine stays on its source.
    Aborting,
    /// Neither host's word can be had; a person or a fence decides.
    NeedsFencing,
    /// Moved.
    Succeeded,
    /// Not moved, and the machine is where it was; or moved by post-copy, and its memory lost on the
    /// way: then it is the target's, and crashed there.
    Failed,
}

impl JobState {
    /// All states, in the order of a good run.
    pub const ALL: [Self; 12] = [
        Self::Pending,
        Self::Placing,
        Self::Reserved,
        Self::Preparing,
        Self::Prepared,
        Self::Copying,
        Self::SwitchAllowed,
        Self::HandedOver,
        Self::Aborting,
        Self::NeedsFencing,
        Self::Succeeded,
        Self::Failed,
    ];

    /// Name in the ledger.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Placing => "Placing",
            Self::Reserved => "Reserved",
            Self::Preparing => "Preparing",
            Self::Prepared => "Prepared",
            Self::Copying => "Copying",
            Self::SwitchAllowed => "SwitchAllowed",
            Self::HandedOver => "HandedOver",
            Self::Aborting => "Aborting",
            Self::NeedsFencing => "NeedsFencing",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    /// Reads a name from the ledger; `None` for a name that no state has.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }

    /// Whether nothing will happen any more.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }

    /// Whether the job holds a slot of the cluster's and the nodes' limits.
    pub const fn holds_slot(self) -> bool {
        !matches!(self, Self::Pending | Self::Succeeded | Self::Failed)
    }

    /// Whether a transition to `next` is legal. The ledger holds the same table; a test compares.
    pub const fn may_become(self, next: Self) -> bool {
        use JobState as S;
        match self {
            S::Pending => matches!(next, S::Placing | S::Failed),
            S::Placing => matches!(next, S::Reserved | S::Failed),
            S::Reserved => matches!(next, S::Preparing | S::Aborting),
            S::Preparing => matches!(next, S::Prepared | S::Aborting),
            S::Prepared => matches!(next, S::Copying | S::Aborting),
            S::Copying => matches!(next, S::SwitchAllowed | S::Aborting),
            S::SwitchAllowed => matches!(next, S::HandedOver | S::Aborting),
            S::HandedOver => matches!(next, S::Succeeded | S::Failed),
            S::Aborting => matches!(next, S::Failed | S::HandedOver | S::NeedsFencing),
            S::NeedsFencing => matches!(next, S::Aborting | S::HandedOver | S::Failed),
            S::Succeeded | S::Failed => false,
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        for state in JobState::ALL {
            assert_eq!(JobState::from_name(state.as_str()), Some(state));
        }
        assert_eq!(JobState::from_name("Running"), None);
    }

    #[test]
    fn every_state_that_is_not_final_has_a_way_to_an_end() {
        for state in JobState::ALL.into_iter().filter(|state| !state.is_final()) {
            let mut reached = vec![state];
            for at in 0.. {
                let Some(from) = reached.get(at).copied() else {
                    break;
                };
                for next in JobState::ALL
                    .into_iter()
                    .filter(|next| from.may_become(*next))
                {
                    if !reached.contains(&next) {
                        reached.push(next);
                    }
                }
            }
            assert!(reached.iter().any(|s| s.is_final()), "{state} never ends");
        }
    }

    #[test]
    fn a_final_state_never_changes() {
        for end in [JobState::Succeeded, JobState::Failed] {
            assert!(JobState::ALL.into_iter().all(|next| !end.may_become(next)));
        }
    }
}
