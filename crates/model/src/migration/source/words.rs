//! What the source host's half is told and tells: its states, events and effects.

use crate::Epoch;
use serde::{Deserialize, Serialize};

/// How far the source host's half is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SourceState {
    /// No copy of this job was started here.
    Absent,
    /// The guest runs and is being copied.
    Copying,
    /// The guest is stopped; the last pages travel.
    Switching,
    /// Post-copy: the guest is the target's, and QEMU serves what that has not got yet. It never runs
    /// here again, and its end before the target has everything costs the memory.
    Serving,
    /// QEMU died, or gave up, while it served: what the target has not got is lost.
    ServerLost,
    /// QEMU stopped complete: this copy runs again only by revert.
    Completed,
    /// The copy ended without completing and never will; the guest runs here.
    Resumed,
    /// What was left of the machine is removed.
    Retired,
    /// QEMU died, and nobody saw it complete.
    Lost,
}

impl SourceState {
    /// Name for people and journals.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "Absent",
            Self::Copying => "Copying",
            Self::Switching => "Switching",
            Self::Serving => "Serving",
            Self::ServerLost => "ServerLost",
            Self::Completed => "Completed",
            Self::Resumed => "Resumed",
            Self::Retired => "Retired",
            Self::Lost => "Lost",
        }
    }
}

/// What QEMU says of its outgoing copy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CopyStatus {
    /// No copy was begun.
    None,
    /// The guest runs, memory travels.
    Active,
    /// The guest is stopped and QEMU waits for `migrate-continue`.
    PreSwitchover,
    /// The last pages and the devices travel.
    Device,
    /// Post-copy: the devices travelled, the rest is served. Also while the link is broken.
    Serving,
    /// Everything arrived; the guest is stopped for good.
    Completed,
    /// Ended with an error; QEMU resumed the guest.
    Failed(String),
    /// Cancelled; QEMU resumed the guest.
    Cancelled,
}

/// Something that happened to this half.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SourceEvent {
    /// The coordinator wants the copy to start.
    Start {
        /// The coordinator's epoch.
        epoch: Epoch,
    },
    /// The coordinator recorded `SwitchAllowed`.
    Allow {
        /// The coordinator's epoch.
        epoch: Epoch,
    },
    /// The copy may end by post-copy, and is to do so at once.
    Postcopy {
        /// The coordinator's epoch, or the one that the order was kept under.
        epoch: Epoch,
    },
    /// The coordinator wants the copy undone.
    Cancel {
        /// The coordinator's epoch.
        epoch: Epoch,
    },
    /// The target has a tombstone: the stopped guest may go on here.
    Revert {
        /// The coordinator's epoch.
        epoch: Epoch,
    },
    /// The machine is the target's: remove what is left here.
    Retire {
        /// The coordinator's epoch.
        epoch: Epoch,
    },
    /// QEMU's migration status changed.
    Copy(CopyStatus),
    /// This agent started again and asked QEMU.
    Adopted(CopyStatus),
    /// The QEMU process ended.
    Gone,
    /// The target's host has the proof on disk.
    ProofTaken,
    /// A deadline may have passed.
    Tick,
}

/// What the host must do, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceEffect {
    /// Make the present state durable.
    Journal,
    /// Begin the copy in QEMU.
    BeginCopy,
    /// Stop the guest, and then let QEMU end the copy by post-copy.
    SwitchToPostcopy,
    /// Let QEMU go from pre-switchover to its end.
    ContinueSwitchover,
    /// Cancel the copy in QEMU.
    CancelCopy,
    /// Send the proof to the target's host, again and again until it is taken.
    SendProof,
    /// Continue the stopped guest.
    ResumeGuest,
    /// End the QEMU process of a guest whose memory is of no use any more: it crashed here.
    EndGuest,
    /// End the QEMU process and wait until it is gone.
    EndQemu,
    /// Remove the machine from this host: devices, files, state.
    DropMachine,
}
