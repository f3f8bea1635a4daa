//! Source host's half of a migration: from events to effects, in order.
//!
//! Never waits, never reads a clock, never talks. Driven by `node-agent/src/source.rs`, which keeps
//! a snapshot of [`Source`] on disk: [`SourceEffect::Journal`] means "this state, durably, before
//! any effect that follows". After a restart the snapshot is loaded and [`SourceEvent::Adopted`]
//! tells it what QEMU says; there is no other recovery.
//!
//! QEMU resumes the guest by itself when a copy fails or is cancelled, so this half never has to.
//! It stops complete only after [`SourceEvent::Allow`], and that permission is on disk first.
//!
//! A copy may end by post-copy instead: this half stops the guest itself before QEMU switches, so that
//! QEMU has no running guest to go back to, whatever becomes of the copy. Until its QEMU serves pages
//! the guest may go on here, by [`SourceEffect::ResumeGuest`] alone; afterwards never.

mod postcopy;
mod words;

pub use words::{CopyStatus, SourceEffect, SourceEvent, SourceState};

use super::grant::{Fence, Refusal};
use crate::Epoch;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Longest stop in pre-switchover without permission before the copy is cancelled.
///
/// QEMU has no timer of its own here and would keep the guest stopped for ever.
pub const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Longest stop while the last pages and the devices travel before the copy is cancelled; more is
/// given to a guest that was allowed a long blackout, see [`Source::bear`].
///
/// QEMU waits without end for a silent target; a cancelled source resumes and can never complete.
pub const DEVICE_MAX: Duration = Duration::from_secs(10);

/// How far a post-copy is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
enum Postcopy {
    /// The copy ends without one.
    #[default]
    No,
    /// The guest is being stopped for it.
    Stopping,
    /// QEMU was let go on.
    Going,
    /// QEMU became a server of pages.
    Served,
}

/// The source host's half of one job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Source {
    fence: Fence,
    state: SourceState,
    allowed: bool,
    cancelling: bool,
    proof_taken: bool,
    #[serde(default)]
    postcopy: Postcopy,
    reason: String,
    /// What is added to [`DEVICE_MAX`].
    #[serde(default)]
    borne: Duration,
    /// Monotonic time at which a stop without end is cancelled.
    #[serde(skip)]
    deadline: Option<Duration>,
}

impl Default for Source {
    fn default() -> Self {
        Self {
            fence: Fence::new(Epoch(0)),
            state: SourceState::Absent,
            allowed: false,
            cancelling: false,
            proof_taken: false,
            postcopy: Postcopy::No,
            reason: String::new(),
            borne: Duration::ZERO,
            deadline: None,
        }
    }
}

impl Source {
    /// How far this half is.
    pub const fn state(&self) -> SourceState {
        self.state
    }

    /// Whether it may stop the guest for good.
    pub const fn allowed(&self) -> bool {
        self.allowed
    }

    /// Whether the target's host has the proof.
    pub const fn proof_taken(&self) -> bool {
        self.proof_taken
    }

    /// Whether the copy is being cancelled.
    pub const fn cancelling(&self) -> bool {
        self.cancelling
    }

    /// Whether the guest went over by post-copy.
    pub fn post_copied(&self) -> bool {
        self.postcopy == Postcopy::Served
    }

    /// Highest epoch that commanded this half.
    pub const fn epoch(&self) -> Epoch {
        self.fence.seen()
    }

    /// Why the copy ended without completing; empty when it didn't.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Monotonic time of the next [`SourceEvent::Tick`]; `None` when none is needed.
    pub const fn next_deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Gives the last pages so much more time: what they are expected to need on their link. A
    /// switchover that has begun keeps its deadline.
    pub const fn bear(&mut self, blackout: Duration) {
        self.borne = blackout;
    }

    const fn device_max(&self) -> Duration {
        DEVICE_MAX.saturating_add(self.borne)
    }

    /// Takes one event at monotonic time `now`.
    ///
    /// # Errors
    /// A [`Refusal`] when the command is from a replaced owner or not possible in this state;
    /// the state is unchanged then.
    pub fn handle(
        &mut self,
        event: SourceEvent,
        now: Duration,
    ) -> Result<Vec<SourceEffect>, Refusal> {
        match event {
            SourceEvent::Start { epoch } => self.command(epoch, Self::start),
            SourceEvent::Allow { epoch } => self.command(epoch, |half| half.allow(now)),
            SourceEvent::Postcopy { epoch } => self.command(epoch, |half| half.postcopy(now)),
            SourceEvent::Cancel { epoch } => self.command(epoch, Self::cancel),
            SourceEvent::Revert { epoch } => self.command(epoch, Self::revert),
            SourceEvent::Retire { epoch } => self.command(epoch, Self::retire),
            SourceEvent::Copy(status) => Ok(self.copy(status, now)),
            SourceEvent::Adopted(status) => Ok(self.adopted(status, now)),
            SourceEvent::Gone => Ok(self.gone()),
            SourceEvent::ProofTaken => {
                self.proof_taken = true;
                Ok(vec![SourceEffect::Journal])
            }
            SourceEvent::Tick => Ok(self.tick(now)),
        }
    }

    /// Passes the fence, then acts; a new epoch is on disk before anything is done under it.
    fn command(
        &mut self,
        epoch: Epoch,
        act: impl FnOnce(&mut Self) -> Result<Vec<SourceEffect>, Refusal>,
    ) -> Result<Vec<SourceEffect>, Refusal> {
        let mut next = self.clone();
        let newer = next.fence.pass(epoch)?;
        let mut effects = act(&mut next)?;
        if newer && effects.first() != Some(&SourceEffect::Journal) {
            effects.insert(0, SourceEffect::Journal);
        }
        *self = next;
        Ok(effects)
    }

    fn start(&mut self) -> Result<Vec<SourceEffect>, Refusal> {
        match self.state {
            SourceState::Absent => {
                self.state = SourceState::Copying;
                Ok(vec![SourceEffect::Journal, SourceEffect::BeginCopy])
            }
            SourceState::Copying
            | SourceState::Switching
            | SourceState::Serving
            | SourceState::ServerLost
            | SourceState::Completed
            | SourceState::Resumed
            | SourceState::Retired
            | SourceState::Lost => Ok(vec![]),
        }
    }

    fn allow(&mut self, now: Duration) -> Result<Vec<SourceEffect>, Refusal> {
        match self.state {
            SourceState::Absent => Err(self.not_now()),
            SourceState::Copying | SourceState::Switching if self.cancelling || self.allowed => {
                Ok(vec![])
            }
            SourceState::Copying => {
                self.allowed = true;
                Ok(vec![SourceEffect::Journal])
            }
            SourceState::Switching => {
                self.allowed = true;
                self.deadline = Some(now + self.device_max());
                Ok(vec![
                    SourceEffect::Journal,
                    SourceEffect::ContinueSwitchover,
                ])
            }
            SourceState::Serving
            | SourceState::ServerLost
            | SourceState::Completed
            | SourceState::Resumed
            | SourceState::Retired
            | SourceState::Lost => Ok(vec![]),
        }
    }

    fn cancel(&mut self) -> Result<Vec<SourceEffect>, Refusal> {
        match self.state {
            // Never started: say so for ever, so that a late start under this epoch does nothing.
            SourceState::Absent => Ok(self.resumed("cancelled before the copy began".to_owned())),
            SourceState::Copying | SourceState::Switching => {
                self.cancelling = true;
                Ok(vec![SourceEffect::Journal, SourceEffect::CancelCopy])
            }
            // What the target has not got is here alone.
            SourceState::Serving
            | SourceState::ServerLost
            | SourceState::Completed
            | SourceState::Resumed
            | SourceState::Retired
            | SourceState::Lost => Ok(vec![]),
        }
    }

    fn revert(&mut self) -> Result<Vec<SourceEffect>, Refusal> {
        match self.state {
            SourceState::Completed => {
                let mut effects = self.resumed("the target was discarded".to_owned());
                effects.push(SourceEffect::ResumeGuest);
                Ok(effects)
            }
            // QEMU has no way back from post-copy: the guest starts again from its disk.
            SourceState::Serving | SourceState::ServerLost => {
                self.state = SourceState::Lost;
                "the target was discarded during post-copy, and the memory is lost"
                    .clone_into(&mut self.reason);
                Ok(vec![SourceEffect::Journal, SourceEffect::EndGuest])
            }
            SourceState::Resumed => Ok(vec![]),
            // A repetition, late or not.
            SourceState::Lost | SourceState::Retired if self.post_copied() => Ok(vec![]),
            SourceState::Absent
            | SourceState::Copying
            | SourceState::Switching
            | SourceState::Retired
            | SourceState::Lost => Err(self.not_now()),
        }
    }

    fn retire(&mut self) -> Result<Vec<SourceEffect>, Refusal> {
        match self.state {
            SourceState::Completed
            | SourceState::Lost
            | SourceState::Serving
            | SourceState::ServerLost => {
                self.state = SourceState::Retired;
                self.deadline = None;
                Ok(vec![
                    SourceEffect::Journal,
                    SourceEffect::EndQemu,
                    SourceEffect::DropMachine,
                ])
            }
            SourceState::Retired => Ok(vec![]),
            // A guest that may run here is never removed.
            SourceState::Absent
            | SourceState::Copying
            | SourceState::Switching
            | SourceState::Resumed => Err(self.not_now()),
        }
    }

    fn copy(&mut self, status: CopyStatus, now: Duration) -> Vec<SourceEffect> {
        match self.state {
            SourceState::Copying | SourceState::Switching => {}
            SourceState::Serving => return self.served(status),
            // Ended: what QEMU repeats changes nothing.
            SourceState::Absent
            | SourceState::ServerLost
            | SourceState::Completed
            | SourceState::Resumed
            | SourceState::Retired
            | SourceState::Lost => return vec![],
        }
        match status {
            CopyStatus::None | CopyStatus::Active => vec![],
            CopyStatus::PreSwitchover => self.pre_switchover(now),
            CopyStatus::Device => {
                self.state = SourceState::Switching;
                let due = now + self.device_max();
                self.deadline.get_or_insert(due);
                vec![]
            }
            CopyStatus::Serving => self.serving(),
            CopyStatus::Completed => self.completed(),
            CopyStatus::Failed(reason) => self.ended(reason),
            CopyStatus::Cancelled if self.reason.is_empty() => {
                self.ended("the copy was cancelled".to_owned())
            }
            CopyStatus::Cancelled => {
                let reason = std::mem::take(&mut self.reason);
                self.ended(reason)
            }
        }
    }

    fn pre_switchover(&mut self, now: Duration) -> Vec<SourceEffect> {
        let first = self.state == SourceState::Copying || self.postcopy == Postcopy::Stopping;
        self.state = SourceState::Switching;
        if self.postcopy == Postcopy::Stopping {
            self.postcopy = Postcopy::Going;
        }
        if self.cancelling {
            return vec![SourceEffect::CancelCopy];
        }
        if self.allowed && first {
            self.deadline = Some(now + self.device_max());
            return vec![SourceEffect::ContinueSwitchover];
        }
        if first {
            self.deadline = Some(now + PAUSE_MAX);
        }
        vec![]
    }

    fn completed(&mut self) -> Vec<SourceEffect> {
        self.state = SourceState::Completed;
        self.deadline = None;
        if !self.allowed {
            // Never asked for: hold the stopped guest, prove nothing, let the coordinator revert.
            return vec![SourceEffect::Journal];
        }
        // The proof may leave before it is on this disk: it is true of a process that never runs
        // again by itself, and `allowed` on disk already forbids denying that it was sent.
        vec![SourceEffect::SendProof, SourceEffect::Journal]
    }

    fn resumed(&mut self, reason: String) -> Vec<SourceEffect> {
        self.state = SourceState::Resumed;
        self.reason = reason;
        self.deadline = None;
        vec![SourceEffect::Journal]
    }

    fn adopted(&mut self, status: CopyStatus, now: Duration) -> Vec<SourceEffect> {
        match (self.state, &status) {
            // The start was on disk, the order to QEMU was not given.
            (SourceState::Copying, CopyStatus::None) if self.cancelling => {
                self.resumed("cancelled before the copy began".to_owned())
            }
            (SourceState::Copying, CopyStatus::None) => vec![SourceEffect::BeginCopy],
            // The permission was on disk, the order to QEMU was not given, and the timer is gone:
            // the guest would stay stopped for ever.
            (SourceState::Switching, CopyStatus::PreSwitchover) if !self.cancelling => {
                self.state = SourceState::Copying;
                self.pre_switchover(now)
            }
            // Whether the guest was stopped for the post-copy is not known: it is now.
            (SourceState::Switching, CopyStatus::Active)
                if !self.cancelling && self.postcopy != Postcopy::No =>
            {
                self.stop_for_postcopy(now)
            }
            (SourceState::Copying | SourceState::Switching, _) if self.cancelling => {
                let mut effects = self.copy(status, now);
                if matches!(self.state, SourceState::Copying | SourceState::Switching) {
                    effects.push(SourceEffect::CancelCopy);
                }
                effects
            }
            (SourceState::Completed, _) if self.allowed && !self.proof_taken => {
                vec![SourceEffect::SendProof]
            }
            (SourceState::Serving, _) if self.allowed && !self.proof_taken => {
                let mut effects = self.served(status);
                if self.state != SourceState::ServerLost {
                    effects.push(SourceEffect::SendProof);
                }
                effects
            }
            // The revert was on disk; whether the guest was continued was not.
            (SourceState::Resumed, CopyStatus::Completed) => vec![SourceEffect::ResumeGuest],
            (SourceState::Resumed, CopyStatus::Failed(_) | CopyStatus::Cancelled)
                if self.postcopy != Postcopy::No =>
            {
                vec![SourceEffect::ResumeGuest]
            }
            (SourceState::Lost, _) => vec![SourceEffect::EndGuest],
            (SourceState::Retired, _) => vec![SourceEffect::EndQemu, SourceEffect::DropMachine],
            (
                SourceState::Absent
                | SourceState::Copying
                | SourceState::Switching
                | SourceState::Serving
                | SourceState::ServerLost
                | SourceState::Completed
                | SourceState::Resumed,
                _,
            ) => self.copy(status, now),
        }
    }

    fn gone(&mut self) -> Vec<SourceEffect> {
        match self.state {
            SourceState::Copying | SourceState::Switching => {
                self.state = SourceState::Lost;
                self.deadline = None;
                "QEMU ended before the copy did".clone_into(&mut self.reason);
                vec![SourceEffect::Journal]
            }
            SourceState::Serving => self.server_lost("QEMU ended during post-copy".to_owned()),
            SourceState::Absent
            | SourceState::ServerLost
            | SourceState::Completed
            | SourceState::Resumed
            | SourceState::Retired
            | SourceState::Lost => vec![],
        }
    }

    fn tick(&mut self, now: Duration) -> Vec<SourceEffect> {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return vec![];
        }
        self.deadline = None;
        if self.state != SourceState::Switching {
            return vec![];
        }
        self.reason = if self.allowed {
            format!(
                "the target did not confirm within {} s",
                self.device_max().as_secs()
            )
        } else {
            format!(
                "no permission to switch over within {} s",
                PAUSE_MAX.as_secs()
            )
        };
        self.cancelling = true;
        vec![SourceEffect::Journal, SourceEffect::CancelCopy]
    }

    const fn not_now(&self) -> Refusal {
        Refusal::NotNow {
            state: self.state.as_str(),
        }
    }
}

#[cfg(test)]
mod tests;
