//! The source's half in post-copy: from the stop of the guest to the end of a server of pages.

use super::{CopyStatus, Postcopy, Refusal, Source, SourceEffect, SourceState};
use std::time::Duration;

impl Source {
    /// With the permission on disk only: the guest stands still from here on.
    pub(super) fn postcopy(&mut self, now: Duration) -> Result<Vec<SourceEffect>, Refusal> {
        match self.state {
            SourceState::Copying if self.allowed && !self.cancelling => {
                self.state = SourceState::Switching;
                Ok(self.stop_for_postcopy(now))
            }
            SourceState::Absent | SourceState::Copying => Err(self.not_now()),
            SourceState::Switching
            | SourceState::Serving
            | SourceState::ServerLost
            | SourceState::Completed
            | SourceState::Resumed
            | SourceState::Retired
            | SourceState::Lost => Ok(vec![]),
        }
    }

    pub(super) fn stop_for_postcopy(&mut self, now: Duration) -> Vec<SourceEffect> {
        self.postcopy = Postcopy::Stopping;
        self.deadline = Some(now + self.device_max());
        vec![SourceEffect::Journal, SourceEffect::SwitchToPostcopy]
    }

    /// QEMU serves pages: the guest is the target's, and no failure of QEMU brings it back.
    pub(super) fn serving(&mut self) -> Vec<SourceEffect> {
        self.state = SourceState::Serving;
        self.postcopy = Postcopy::Served;
        self.deadline = None;
        if !self.allowed {
            return vec![SourceEffect::Journal];
        }
        // On disk before it is said, other than in pre-copy: a QEMU that fails later looks to an
        // agent that was restarted like one whose guest may go on.
        vec![SourceEffect::Journal, SourceEffect::SendProof]
    }

    /// What became of a server of pages.
    pub(super) fn served(&mut self, status: CopyStatus) -> Vec<SourceEffect> {
        match status {
            CopyStatus::Completed => {
                self.state = SourceState::Completed;
                vec![SourceEffect::Journal]
            }
            CopyStatus::Failed(reason) => self.server_lost(reason),
            CopyStatus::Cancelled => self.server_lost("QEMU gave the post-copy up".to_owned()),
            CopyStatus::None
            | CopyStatus::Active
            | CopyStatus::PreSwitchover
            | CopyStatus::Device
            | CopyStatus::Serving => vec![],
        }
    }

    pub(super) fn server_lost(&mut self, reason: String) -> Vec<SourceEffect> {
        self.state = SourceState::ServerLost;
        self.reason = reason;
        vec![SourceEffect::Journal]
    }

    /// The copy ended, and QEMU has resumed the guest, unless it was stopped for a post-copy.
    pub(super) fn ended(&mut self, reason: String) -> Vec<SourceEffect> {
        let mut effects = self.resumed(reason);
        if self.postcopy != Postcopy::No {
            effects.push(SourceEffect::ResumeGuest);
        }
        effects
    }
}
