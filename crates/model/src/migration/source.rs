//! Source host's half of a migration: from events to effects, in order.
//!
//! Never waits, never reads a clock, never talks. Driven by `node-agent/src/source.rs`, which keeps
//! a snapshot of [`Source`] on disk: [`SourceEffect::Journal`] means "this state, durably, before
//! any effect that follows". After a restart the snapshot is loaded and [`SourceEvent::Adopted`]
//! tells it what QEMU says; there is no other recovery.
//!
//! QEMU resumes the guest by itself when a copy fails or is cancelled, so this half never has to.
//! It stops complete only after [`SourceEvent::Allow`], and that permission is on disk first.

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

/// How far the source host's half is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SourceState {
    /// No copy of this job was started here.
    Absent,
    /// The guest runs and is being copied.
    Copying,
    /// The guest is stopped; the last pages travel.
    Switching,
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
    /// Let QEMU go from pre-switchover to its end.
    ContinueSwitchover,
    /// Cancel the copy in QEMU.
    CancelCopy,
    /// Send the proof to the target's host, again and again until it is taken.
    SendProof,
    /// Continue the stopped guest.
    ResumeGuest,
    /// End the QEMU process and wait until it is gone.
    EndQemu,
    /// Remove the machine from this host: devices, files, state.
    DropMachine,
}

/// The source host's half of one job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Source {
    fence: Fence,
    state: SourceState,
    allowed: bool,
    cancelling: bool,
    proof_taken: bool,
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
            SourceState::Completed
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
            SourceState::Completed
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
            SourceState::Resumed => Ok(vec![]),
            SourceState::Absent
            | SourceState::Copying
            | SourceState::Switching
            | SourceState::Retired
            | SourceState::Lost => Err(self.not_now()),
        }
    }

    fn retire(&mut self) -> Result<Vec<SourceEffect>, Refusal> {
        match self.state {
            SourceState::Completed | SourceState::Lost => {
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
            // Ended: what QEMU repeats changes nothing.
            SourceState::Absent
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
            CopyStatus::Completed => self.completed(),
            CopyStatus::Failed(reason) => self.resumed(reason),
            CopyStatus::Cancelled if self.reason.is_empty() => {
                self.resumed("the copy was cancelled".to_owned())
            }
            CopyStatus::Cancelled => {
                let reason = std::mem::take(&mut self.reason);
                self.resumed(reason)
            }
        }
    }

    fn pre_switchover(&mut self, now: Duration) -> Vec<SourceEffect> {
        let first = self.state == SourceState::Copying;
        self.state = SourceState::Switching;
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
            // The revert was on disk; whether the guest was continued was not.
            (SourceState::Resumed, CopyStatus::Completed) => vec![SourceEffect::ResumeGuest],
            (SourceState::Retired, _) => vec![SourceEffect::EndQemu, SourceEffect::DropMachine],
            (
                SourceState::Absent
                | SourceState::Copying
                | SourceState::Switching
                | SourceState::Completed
                | SourceState::Resumed
                | SourceState::Lost,
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
            SourceState::Absent
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
mod tests {
    use super::*;
    use SourceEffect as Do;

    const E1: Epoch = Epoch(1);
    const NOW: Duration = Duration::from_secs(100);

    fn copying() -> Source {
        let mut half = Source::default();
        half.handle(SourceEvent::Start { epoch: E1 }, NOW)
            .expect("a fresh half starts");
        half
    }

    fn after(half: &mut Source, event: SourceEvent) -> Vec<SourceEffect> {
        half.handle(event, NOW).expect("not refused")
    }

    #[test]
    fn a_good_run_journals_the_permission_before_it_uses_it() {
        let mut half = copying();
        assert_eq!(
            after(&mut half, SourceEvent::Allow { epoch: E1 }),
            [Do::Journal]
        );
        assert_eq!(
            after(&mut half, SourceEvent::Copy(CopyStatus::PreSwitchover)),
            [Do::ContinueSwitchover]
        );
        assert_eq!(after(&mut half, SourceEvent::Copy(CopyStatus::Device)), []);
        assert_eq!(
            after(&mut half, SourceEvent::Copy(CopyStatus::Completed)),
            [Do::SendProof, Do::Journal]
        );
        assert_eq!(
            after(&mut half, SourceEvent::Retire { epoch: E1 }),
            [Do::Journal, Do::EndQemu, Do::DropMachine]
        );
    }

    #[test]
    fn without_permission_the_guest_is_not_switched_and_the_pause_is_bounded() {
        let mut half = copying();
        assert_eq!(
            after(&mut half, SourceEvent::Copy(CopyStatus::PreSwitchover)),
            []
        );
        assert_eq!(half.next_deadline(), Some(NOW + PAUSE_MAX));
        let effects = half
            .handle(SourceEvent::Tick, NOW + PAUSE_MAX)
            .expect("a tick");
        assert_eq!(effects, [Do::Journal, Do::CancelCopy]);
        after(&mut half, SourceEvent::Copy(CopyStatus::Cancelled));
        assert_eq!(half.state(), SourceState::Resumed);
        assert!(half.reason().contains("no permission"));
    }

    #[test]
    fn a_guest_that_may_stand_still_for_long_gets_the_time_that_its_last_pages_need() {
        let mut half = copying();
        let expected = Duration::from_secs(60);
        half.bear(expected);
        after(&mut half, SourceEvent::Allow { epoch: E1 });
        after(&mut half, SourceEvent::Copy(CopyStatus::PreSwitchover));
        after(&mut half, SourceEvent::Copy(CopyStatus::Device));
        let due = NOW + DEVICE_MAX + expected;
        assert_eq!(half.next_deadline(), Some(due));
        let effects = half.handle(SourceEvent::Tick, due).expect("a tick");
        assert_eq!(effects, [Do::Journal, Do::CancelCopy]);
    }

    #[test]
    fn a_late_permission_lets_a_waiting_guest_switch() {
        let mut half = copying();
        after(&mut half, SourceEvent::Copy(CopyStatus::PreSwitchover));
        assert_eq!(
            after(&mut half, SourceEvent::Allow { epoch: E1 }),
            [Do::Journal, Do::ContinueSwitchover]
        );
    }

    #[test]
    fn a_source_that_completed_without_permission_proves_nothing() {
        let mut half = copying();
        assert_eq!(
            after(&mut half, SourceEvent::Copy(CopyStatus::Completed)),
            [Do::Journal]
        );
        assert_eq!(
            after(&mut half, SourceEvent::Adopted(CopyStatus::Completed)),
            []
        );
    }

    #[test]
    fn a_cancelled_job_never_starts_later() {
        let mut half = Source::default();
        after(&mut half, SourceEvent::Cancel { epoch: E1 });
        assert_eq!(after(&mut half, SourceEvent::Start { epoch: E1 }), []);
        assert_eq!(half.state(), SourceState::Resumed);
    }

    #[test]
    fn an_older_owner_is_refused_and_changes_nothing() {
        let mut half = copying();
        after(&mut half, SourceEvent::Allow { epoch: Epoch(4) });
        let before = half.clone();
        let refused = half.handle(SourceEvent::Cancel { epoch: Epoch(3) }, NOW);
        assert_eq!(
            refused,
            Err(Refusal::Fenced {
                mine: Epoch(3),
                seen: Epoch(4)
            })
        );
        assert_eq!(half, before);
    }

    #[test]
    fn a_running_guest_is_never_retired() {
        let mut half = copying();
        after(
            &mut half,
            SourceEvent::Copy(CopyStatus::Failed("socket closed".into())),
        );
        assert!(half.handle(SourceEvent::Retire { epoch: E1 }, NOW).is_err());
    }

    #[test]
    fn a_restarted_agent_sends_the_proof_again_until_it_is_taken() {
        let mut half = copying();
        after(&mut half, SourceEvent::Allow { epoch: E1 });
        after(&mut half, SourceEvent::Copy(CopyStatus::Completed));
        assert_eq!(
            after(&mut half, SourceEvent::Adopted(CopyStatus::Completed)),
            [Do::SendProof]
        );
        after(&mut half, SourceEvent::ProofTaken);
        assert_eq!(
            after(&mut half, SourceEvent::Adopted(CopyStatus::Completed)),
            []
        );
    }

    #[test]
    fn a_restarted_agent_lets_a_guest_go_on_that_waits_with_the_permission_on_disk() {
        let mut half = copying();
        after(&mut half, SourceEvent::Copy(CopyStatus::PreSwitchover));
        after(&mut half, SourceEvent::Allow { epoch: E1 });
        let mut restarted = Source {
            deadline: None,
            ..half
        };
        assert_eq!(
            after(
                &mut restarted,
                SourceEvent::Adopted(CopyStatus::PreSwitchover)
            ),
            [Do::ContinueSwitchover]
        );
        assert_eq!(restarted.state(), SourceState::Switching);
        assert_eq!(restarted.next_deadline(), Some(NOW + DEVICE_MAX));
    }

    #[test]
    fn a_source_that_dies_before_it_completes_is_lost_and_can_only_be_retired() {
        let mut half = copying();
        after(&mut half, SourceEvent::Gone);
        assert_eq!(half.state(), SourceState::Lost);
        assert!(half.handle(SourceEvent::Revert { epoch: E1 }, NOW).is_err());
        assert!(half.handle(SourceEvent::Retire { epoch: E1 }, NOW).is_ok());
    }
}
