//! What each host says is true of a job. Facts are asked for again, never remembered as events.

use crate::Bytes;
use crate::migration::source::SourceState;
use crate::migration::target::TargetState;
use serde::{Deserialize, Serialize};

/// The source host's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFact {
    /// How far its half is.
    pub state: SourceState,
    /// Whether it holds the permission to stop the guest for good.
    pub allowed: bool,
    /// Why the copy ended, when it did without completing; empty otherwise.
    pub reason: String,
    /// The copy's numbers; zero before it started.
    pub progress: Progress,
    /// When the guest stopped, microseconds since the Unix epoch by the source's clock.
    pub stopped_at_us: Option<u64>,
    /// When QEMU reached `completed`, same clock; in post-copy, when it began to serve.
    pub completed_at_us: Option<u64>,
    /// Whether the guest went over by post-copy.
    pub post_copied: bool,
}

impl SourceFact {
    /// How far a half is, and nothing more.
    pub fn bare(state: SourceState, allowed: bool) -> Self {
        Self {
            state,
            allowed,
            reason: String::new(),
            progress: Progress::default(),
            stopped_at_us: None,
            completed_at_us: None,
            post_copied: matches!(state, SourceState::Serving | SourceState::ServerLost),
        }
    }
}

/// The target host's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetFact {
    /// How far its half is.
    pub state: TargetState,
    /// Why it was lost or discarded; empty otherwise.
    pub reason: String,
    /// Where its QEMU listens; `None` before it does.
    pub address: Option<TargetAddress>,
    /// When the guest went on here, microseconds since the Unix epoch by the target's clock.
    pub running_at_us: Option<u64>,
    /// Why a copy that may end by post-copy can't do so here; empty where it can.
    pub no_post_copy: String,
}

impl TargetFact {
    /// How far a half is, and nothing more.
    pub fn bare(state: TargetState) -> Self {
        Self {
            state,
            reason: String::new(),
            address: None,
            running_at_us: None,
            no_post_copy: String::new(),
        }
    }
}

/// Where the target's QEMU listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetAddress {
    /// For the source's QEMU, for example `tcp:10.77.0.12:39037`.
    pub uri: String,
    /// Address of the migration network.
    pub address: String,
    /// Listening TCP ports.
    pub ports: Vec<u16>,
}

/// Numbers of a copy under way or done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes sent so far.
    pub transferred: Bytes,
    /// Bytes that still differ.
    pub remaining: Bytes,
    /// Guest memory in all.
    pub total: Bytes,
    /// Bytes per second at present.
    pub throughput: u64,
    /// Bytes per second that the guest dirties.
    pub dirty_rate: u64,
    /// Passes over dirty memory so far.
    pub passes: u32,
    /// How much the guest's CPUs are slowed, percent.
    pub throttle_percent: u32,
    /// QEMU's estimate of the stop, milliseconds.
    pub expected_downtime_ms: u64,
    /// QEMU's own count of the stop, milliseconds (source's view only); 0 before the end.
    pub downtime_ms: u64,
    /// Milliseconds since the copy began.
    pub elapsed_ms: u64,
}
