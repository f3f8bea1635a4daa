//! Target host's half of a migration: from events to effects, in order.
//!
//! Never waits, never reads a clock, never talks. Driven by `node-agent/src/target.rs`, which keeps
//! a snapshot of [`Target`] on disk, as for the source's half.
//!
//! The copy starts paused and only a [`Proof`] lets it continue. The durable `Continuing` is the
//! point of no return: before it a tombstone is possible, after it never.
//!
//! In post-copy the guest goes on while memory is still at its source: then it runs here, and dies if
//! that source is lost before all of it has arrived.

use super::fact::TargetAddress;
use super::grant::{Fence, Proof, Refusal};
use crate::Epoch;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a copy that nobody uses is kept before it is discarded.
pub const UNUSED_MAX: Duration = Duration::from_secs(600);

/// How far the target host's half is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TargetState {
    /// Nothing was prepared here for this job.
    Absent,
    /// QEMU is being started.
    Preparing,
    /// QEMU listens, or is loading.
    Prepared,
    /// Completely loaded and paused, without permission.
    Loaded,
    /// Permission is on disk; the guest is about to go on, or has.
    Continuing,
    /// The guest went on here, and a part of its memory is still at its source.
    Fetching,
    /// The guest went on here, with all its memory.
    Running,
    /// Tombstone: destroyed, and refused for ever.
    Discarded,
    /// QEMU died.
    Lost {
        /// Whether the guest may have gone on here before.
        continued: bool,
    },
    /// The guest may have gone on here, and ended before all its memory had arrived.
    MemoryLost,
}

impl TargetState {
    /// Name for people and journals.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "Absent",
            Self::Preparing => "Preparing",
            Self::Prepared => "Prepared",
            Self::Loaded => "Loaded",
            Self::Continuing => "Continuing",
            Self::Fetching => "Fetching",
            Self::Running => "Running",
            Self::Discarded => "Discarded",
            Self::Lost { .. } => "Lost",
            Self::MemoryLost => "MemoryLost",
        }
    }
}

/// What QEMU says of its incoming copy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LoadStatus {
    /// Waiting for data, or loading.
    Active,
    /// Loaded but for memory that follows from the source, the guest paused.
    Postcopy,
    /// Completely loaded, the guest paused.
    Completed,
    /// The guest runs while memory follows. Seen only after this host continued it.
    Fetching,
    /// The guest runs, completely loaded. Seen only after this host continued it.
    Running,
    /// Ended with an error.
    Failed(String),
}

/// Something that happened to this half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetEvent {
    /// The coordinator wants a listening copy.
    Prepare {
        /// The coordinator's epoch.
        epoch: Epoch,
    },
    /// The source is gone, and with it what is not here: the guest can't go on.
    Abandon {
        /// The coordinator's epoch.
        epoch: Epoch,
    },
    /// QEMU is up and listens.
    Listening(TargetAddress),
    /// QEMU could not be brought up.
    PrepareFailed(String),
    /// QEMU's incoming status changed.
    Load(LoadStatus),
    /// This agent started again and asked QEMU.
    Adopted(LoadStatus),
    /// The source's host says that its QEMU stopped complete.
    Proof(Proof),
    /// The guest was continued.
    Continued,
    /// The coordinator wants this copy destroyed.
    Discard {
        /// The coordinator's epoch.
        epoch: Epoch,
    },
    /// The QEMU process ended.
    Gone,
    /// A deadline may have passed.
    Tick,
}

/// What the host must do, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TargetEffect {
    /// Make the present state durable.
    Journal,
    /// Build devices, start QEMU paused, let it listen.
    StartQemu,
    /// Continue the loaded guest.
    Continue,
    /// Announce the guest on its networks.
    Announce,
    /// The machine is this host's: keep it like one that was started here, or like one that
    /// crashed here when its QEMU is gone.
    KeepMachine,
    /// End the QEMU process, wait until it is gone, remove its devices.
    EndQemu,
    /// End the QEMU of a guest that this host keeps and that can't go on: it crashed here.
    EndGuest,
}

/// The target host's half of one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    fence: Fence,
    state: TargetState,
    address: Option<TargetAddress>,
    reason: String,
    /// A proof that arrived before QEMU said that it is loaded.
    proof: Option<Proof>,
    /// Whether memory follows that is still at the source.
    #[serde(default)]
    postcopy: bool,
    /// Monotonic time at which an unused copy is discarded.
    #[serde(skip)]
    deadline: Option<Duration>,
}

impl Default for Target {
    fn default() -> Self {
        Self {
            fence: Fence::new(Epoch(0)),
            state: TargetState::Absent,
            address: None,
            reason: String::new(),
            proof: None,
            postcopy: false,
            deadline: None,
        }
    }
}

impl Target {
    /// How far this half is.
    pub const fn state(&self) -> TargetState {
        self.state
    }

    /// Where QEMU listens; `None` before it does.
    pub const fn address(&self) -> Option<&TargetAddress> {
        self.address.as_ref()
    }

    /// Highest epoch that commanded this half.
    pub const fn epoch(&self) -> Epoch {
        self.fence.seen()
    }

    /// Why this half was lost or discarded; empty otherwise.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Monotonic time of the next [`TargetEvent::Tick`]; `None` when none is needed.
    pub const fn next_deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Takes one event at monotonic time `now`.
    ///
    /// # Errors
    /// A [`Refusal`] when the command is from a replaced owner or not possible in this state;
    /// the state is unchanged then.
    pub fn handle(
        &mut self,
        event: TargetEvent,
        now: Duration,
    ) -> Result<Vec<TargetEffect>, Refusal> {
        match event {
            TargetEvent::Prepare { epoch } => self.command(epoch, |half| Ok(half.prepare(now))),
            TargetEvent::Discard { epoch } => self.command(epoch, |half| Ok(half.discard())),
            TargetEvent::Abandon { epoch } => self.command(epoch, Self::abandon),
            TargetEvent::Listening(address) => Ok(self.listening(address, now)),
            TargetEvent::PrepareFailed(reason) => Ok(self.lost(reason)),
            TargetEvent::Load(status) => Ok(self.load(status)),
            TargetEvent::Adopted(status) => Ok(self.adopted(status, now)),
            TargetEvent::Proof(proof) => self.take_proof(proof),
            TargetEvent::Continued => Ok(self.continued()),
            TargetEvent::Gone => Ok(self.lost("QEMU ended".to_owned())),
            TargetEvent::Tick => Ok(self.tick(now)),
        }
    }

    fn command(
        &mut self,
        epoch: Epoch,
        act: impl FnOnce(&mut Self) -> Result<Vec<TargetEffect>, Refusal>,
    ) -> Result<Vec<TargetEffect>, Refusal> {
        let mut next = self.clone();
        let newer = next.fence.pass(epoch)?;
        let mut effects = act(&mut next)?;
        if newer && effects.first() != Some(&TargetEffect::Journal) {
            effects.insert(0, TargetEffect::Journal);
        }
        *self = next;
        Ok(effects)
    }

    fn prepare(&mut self, now: Duration) -> Vec<TargetEffect> {
        match self.state {
            TargetState::Absent => {
                self.state = TargetState::Preparing;
                self.deadline = Some(now + UNUSED_MAX);
                vec![TargetEffect::Journal, TargetEffect::StartQemu]
            }
            TargetState::Preparing
            | TargetState::Prepared
            | TargetState::Loaded
            | TargetState::Continuing
            | TargetState::Fetching
            | TargetState::Running
            | TargetState::Discarded
            | TargetState::Lost { .. }
            | TargetState::MemoryLost => vec![],
        }
    }

    fn listening(&mut self, address: TargetAddress, now: Duration) -> Vec<TargetEffect> {
        match self.state {
            TargetState::Preparing => {
                self.state = TargetState::Prepared;
                self.address = Some(address);
                self.deadline = Some(now + UNUSED_MAX);
                vec![TargetEffect::Journal]
            }
            // Discarded while QEMU was starting.
            TargetState::Discarded => vec![TargetEffect::EndQemu],
            TargetState::Absent
            | TargetState::Prepared
            | TargetState::Loaded
            | TargetState::Continuing
            | TargetState::Fetching
            | TargetState::Running
            | TargetState::Lost { .. }
            | TargetState::MemoryLost => vec![],
        }
    }

    fn load(&mut self, status: LoadStatus) -> Vec<TargetEffect> {
        match (self.state, status) {
            (TargetState::Prepared, LoadStatus::Completed) => self.loaded(false),
            (TargetState::Prepared, LoadStatus::Postcopy) => self.loaded(true),
            (TargetState::Loaded | TargetState::Continuing, LoadStatus::Completed) => {
                self.postcopy = false;
                vec![]
            }
            (TargetState::Prepared | TargetState::Loaded, LoadStatus::Failed(reason)) => {
                let mut effects = self.lost(reason);
                effects.push(TargetEffect::EndQemu);
                effects
            }
            (TargetState::Continuing, LoadStatus::Running) => {
                self.postcopy = false;
                self.continued()
            }
            (TargetState::Continuing, LoadStatus::Fetching) => self.continued(),
            (TargetState::Fetching, LoadStatus::Completed | LoadStatus::Running) => {
                self.state = TargetState::Running;
                self.postcopy = false;
                vec![TargetEffect::Journal]
            }
            (TargetState::Fetching, LoadStatus::Failed(reason)) => self.memory_lost(reason),
            (
                TargetState::Absent
                | TargetState::Preparing
                | TargetState::Prepared
                | TargetState::Loaded
                | TargetState::Continuing
                | TargetState::Fetching
                | TargetState::Running
                | TargetState::Discarded
                | TargetState::Lost { .. }
                | TargetState::MemoryLost,
                _,
            ) => vec![],
        }
    }

    fn loaded(&mut self, postcopy: bool) -> Vec<TargetEffect> {
        self.state = TargetState::Loaded;
        self.postcopy = postcopy;
        self.deadline = None;
        if self.proof.is_some() {
            self.go_on()
        } else {
            vec![]
        }
    }

    fn take_proof(&mut self, proof: Proof) -> Result<Vec<TargetEffect>, Refusal> {
        match self.state {
            TargetState::Loaded => {
                self.proof = Some(proof);
                Ok(self.go_on())
            }
            TargetState::Prepared => {
                self.proof = Some(proof);
                Ok(vec![])
            }
            // Too late or known already: the fact in the answer says which.
            TargetState::Continuing
            | TargetState::Fetching
            | TargetState::Running
            | TargetState::Discarded
            | TargetState::Lost { .. }
            | TargetState::MemoryLost => Ok(vec![]),
            TargetState::Absent | TargetState::Preparing => Err(self.not_now()),
        }
    }

    fn go_on(&mut self) -> Vec<TargetEffect> {
        self.state = TargetState::Continuing;
        vec![TargetEffect::Journal, TargetEffect::Continue]
    }

    fn continued(&mut self) -> Vec<TargetEffect> {
        if self.state != TargetState::Continuing {
            return vec![];
        }
        self.state = match self.postcopy {
            true => TargetState::Fetching,
            false => TargetState::Running,
        };
        vec![
            TargetEffect::Announce,
            TargetEffect::KeepMachine,
            TargetEffect::Journal,
        ]
    }

    fn discard(&mut self) -> Vec<TargetEffect> {
        match self.state {
            TargetState::Absent
            | TargetState::Preparing
            | TargetState::Prepared
            | TargetState::Loaded
            | TargetState::Lost { continued: false } => {
                self.state = TargetState::Discarded;
                self.deadline = None;
                self.proof = None;
                // Refusal first: a crash between the two leaves a copy that can't continue.
                vec![TargetEffect::Journal, TargetEffect::EndQemu]
            }
            TargetState::Discarded
            | TargetState::Continuing
            | TargetState::Fetching
            | TargetState::Running
            | TargetState::Lost { continued: true }
            | TargetState::MemoryLost => vec![],
        }
    }

    /// Only for a guest that went on: before that it is discarded, and with all its memory it stays.
    fn abandon(&mut self) -> Result<Vec<TargetEffect>, Refusal> {
        match self.state {
            TargetState::Fetching => Ok(
                self.memory_lost("the source was lost before all memory had arrived".to_owned())
            ),
            TargetState::Absent
            | TargetState::Preparing
            | TargetState::Prepared
            | TargetState::Loaded
            | TargetState::Continuing => Err(self.not_now()),
            TargetState::Running
            | TargetState::Discarded
            | TargetState::Lost { .. }
            | TargetState::MemoryLost => Ok(vec![]),
        }
    }

    const fn not_now(&self) -> Refusal {
        Refusal::NotNow {
            state: self.state.as_str(),
        }
    }

    fn memory_lost(&mut self, reason: String) -> Vec<TargetEffect> {
        self.state = TargetState::MemoryLost;
        self.reason = reason;
        vec![TargetEffect::Journal, TargetEffect::EndGuest]
    }

    fn lost(&mut self, reason: String) -> Vec<TargetEffect> {
        let continued = match self.state {
            TargetState::Preparing | TargetState::Prepared | TargetState::Loaded => false,
            TargetState::Continuing => true,
            TargetState::Fetching => {
                self.state = TargetState::MemoryLost;
                self.reason = reason;
                return vec![TargetEffect::Journal];
            }
            TargetState::Absent
            | TargetState::Running
            | TargetState::Discarded
            | TargetState::Lost { .. }
            | TargetState::MemoryLost => return vec![],
        };
        self.state = match continued && self.postcopy {
            true => TargetState::MemoryLost,
            false => TargetState::Lost { continued },
        };
        self.reason = reason;
        self.deadline = None;
        if continued {
            // It may have run, so it is this host's machine, that crashed. Kept before it is said.
            vec![TargetEffect::KeepMachine, TargetEffect::Journal]
        } else {
            vec![TargetEffect::Journal]
        }
    }

    fn adopted(&mut self, status: LoadStatus, now: Duration) -> Vec<TargetEffect> {
        match (self.state, &status) {
            (TargetState::Discarded | TargetState::Lost { .. }, _) => vec![TargetEffect::EndQemu],
            (TargetState::MemoryLost, _) => vec![TargetEffect::EndGuest],
            // On disk before the guest was continued; doing it again is harmless.
            (TargetState::Continuing, LoadStatus::Completed | LoadStatus::Postcopy) => {
                self.postcopy &= status == LoadStatus::Postcopy;
                vec![TargetEffect::Continue]
            }
            (TargetState::Preparing, _) => {
                let mut effects = self.lost("the agent ended while QEMU was starting".to_owned());
                effects.push(TargetEffect::EndQemu);
                effects
            }
            (TargetState::Prepared, _) => {
                self.deadline = Some(now + UNUSED_MAX);
                self.load(status)
            }
            (
                TargetState::Absent
                | TargetState::Loaded
                | TargetState::Continuing
                | TargetState::Fetching
                | TargetState::Running,
                _,
            ) => self.load(status),
        }
    }

    fn tick(&mut self, now: Duration) -> Vec<TargetEffect> {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return vec![];
        }
        self.deadline = None;
        format!("not used within {} s", UNUSED_MAX.as_secs()).clone_into(&mut self.reason);
        self.discard()
    }
}

#[cfg(test)]
mod tests;
