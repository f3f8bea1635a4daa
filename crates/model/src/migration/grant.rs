//! The rules both hosts share: epochs, proof and tombstone.
//!
//! Permission passes from host to host: the source's proof that its QEMU stopped complete is the
//! only thing that lets a target continue, and a tombstone on the target refuses it for ever.

use crate::{Epoch, JobId, MachineId, NodeName};
use serde::{Deserialize, Serialize};

/// Why a host refuses what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A newer owner of the job has spoken; the caller has lost its lease.
    #[error("epoch {mine} is older than {seen}")]
    Fenced {
        /// Epoch of the command.
        mine: Epoch,
        /// Highest epoch seen for this job.
        seen: Epoch,
    },
    /// The half is in a state in which this can't be done; its fact says which.
    #[error("not possible in state {state}")]
    NotNow {
        /// The state of this half.
        state: &'static str,
    },
    /// The proof is not about this job's source process.
    #[error("proof does not match: {why}")]
    Mismatch {
        /// What differs.
        why: &'static str,
    },
}

/// Refuses commands of owners that have been replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fence {
    seen: Epoch,
}

impl Fence {
    /// A fence that has seen `epoch`.
    #[must_use]
    pub const fn new(epoch: Epoch) -> Self {
        Self { seen: epoch }
    }

    /// The highest epoch seen.
    pub const fn seen(self) -> Epoch {
        self.seen
    }

    /// Lets a command of `epoch` pass, and remembers it. `Ok(true)` when it is a new highest.
    ///
    /// # Errors
    /// `Fenced` when a higher epoch was seen.
    pub fn pass(&mut self, epoch: Epoch) -> Result<bool, Refusal> {
        if epoch < self.seen {
            return Err(Refusal::Fenced {
                mine: epoch,
                seen: self.seen,
            });
        }
        let newer = epoch > self.seen;
        self.seen = epoch;
        Ok(newer)
    }
}

/// A process that can't be mistaken for a later one with the same id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot, from `/proc/PID/stat`.
    pub start_ticks: u64,
    /// The host's boot id.
    pub boot_id: String,
}

/// Evidence that a source QEMU of a job reached `completed` with its guest stopped, or serves its
/// memory by post-copy with a guest that was stopped before.
///
/// Death of the source is no such evidence: it may have resumed, run on, and died.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The machine.
    pub machine: MachineId,
    /// The job.
    pub job: JobId,
    /// The host that stopped.
    pub source: NodeName,
    /// The QEMU that stopped.
    pub process: ProcessIdentity,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_lets_equal_and_newer_epochs_pass_and_no_older() {
        let mut fence = Fence::new(Epoch(3));
        assert_eq!(fence.pass(Epoch(3)), Ok(false));
        assert_eq!(fence.pass(Epoch(5)), Ok(true));
        assert_eq!(
            fence.pass(Epoch(4)),
            Err(Refusal::Fenced {
                mine: Epoch(4),
                seen: Epoch(5)
            })
        );
    }
}
