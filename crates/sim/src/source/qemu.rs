//! What the source's QEMU does by itself, and how the link of a post-copy is mended.

use godwit_model::migration::source::SourceState;
use godwit_model::migration::target::TargetState;

use super::SourceStep;
use crate::Migration;
use crate::state::{SourceQemu, State, TargetQemu};

impl Migration {
    /// Whether the target's agent, asked before a post-copy begins, still has its copy.
    pub(super) fn target_confirms(&self, state: &State) -> bool {
        let agent = state.target.agent.as_ref().filter(|a| !a.adopting);
        agent.is_some_and(|agent| {
            agent.attached && self.target_word(agent.half) == TargetState::Prepared
        })
    }

    /// The agents mend a broken link: as in `node-agent/src/source/postcopy.rs`.
    pub(super) fn recover(&self, state: &mut State) -> Option<()> {
        let source = state.source.agent.as_ref().filter(|a| !a.adopting)?;
        let target = state.target.agent.as_ref().filter(|a| !a.adopting)?;
        let serves = self.source_word(source.half).0 == SourceState::Serving;
        let fetches = matches!(
            self.target_word(target.half),
            TargetState::Loaded | TargetState::Continuing | TargetState::Fetching
        );
        let parted = state.source.qemu == SourceQemu::Parted;
        if !(serves && fetches && parted && target.attached && state.target.qemu.lacks()) {
            return None;
        }
        state.source.qemu = SourceQemu::Serving;
        Some(())
    }
}

pub(super) fn source_qemu(state: &mut State, step: SourceStep) -> Option<()> {
    let source = &mut state.source;
    let listens = matches!(state.target.qemu, TargetQemu::Incoming | TargetQemu::Loaded);
    match (step, source.qemu) {
        (SourceStep::Converges, SourceQemu::Active) if listens => {
            source.turn(SourceQemu::PreSwitchover);
        }
        (SourceStep::Completes, SourceQemu::Device) if source.confirmed => {
            source.turn(SourceQemu::Completed);
            source.completed = true;
        }
        (SourceStep::Fails, qemu) if qemu.copies() => source.turn(SourceQemu::Failed),
        // What was sent as a whole is loaded as a whole.
        (SourceStep::Serves, SourceQemu::Device)
            if source.postcopy && !source.confirmed && state.target.qemu != TargetQemu::Loaded =>
        {
            source.sent = false;
            // A target that is gone when QEMU switches: the one moment in which a link costs memory.
            source.package = state.target.qemu == TargetQemu::Incoming;
            state.broke |= !source.package;
            source.turn(SourceQemu::Serving);
            source.completed = true;
        }
        (SourceStep::Completes, SourceQemu::Serving) if source.confirmed => {
            source.turn(SourceQemu::Completed);
        }
        (SourceStep::Parts, SourceQemu::Serving) => {
            state.broke = true;
            source.package = false;
            source.qemu = SourceQemu::Parted;
        }
        (SourceStep::Fails, SourceQemu::Serving | SourceQemu::Parted) => {
            state.broke = true;
            source.package = false;
            source.turn(SourceQemu::Failed);
        }
        (SourceStep::Dies, qemu) if qemu != SourceQemu::Gone => {
            state.deaths = state.deaths.checked_sub(1)?;
            source.qemu = SourceQemu::Gone;
        }
        _ => return None,
    }
    Some(())
}
