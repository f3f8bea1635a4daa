//! The source's host: its agent around the real half, and its QEMU.
//!
//! As in `node-agent/src/source.rs`: effects are carried out in their order, and between any two
//! of them the agent may crash. QEMU behaves as measured: a copy that fails or is cancelled lets
//! the guest run by itself, one that is complete never does.

mod qemu;

use std::collections::VecDeque;

use godwit_model::migration::decide::Command;
use godwit_model::migration::source::{SourceEffect, SourceState};
use godwit_model::migration::target::TargetState;

use crate::Migration;
use crate::config::Guard;
use crate::fleet::retry_is_wanted;
use crate::halves::{HalfId, Outgoing, SourceInput, source_input};
use crate::state::{SourceAgent, SourceQemu, SourceWord, State};

/// After how many effects the agent crashes; `None` when it doesn't.
pub type Cut = Option<u8>;

/// What can happen on the source's host without an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceStep {
    /// The agent crashes between two events.
    AgentCrashes,
    /// The agent starts and reads its log.
    AgentStarts,
    /// The agent asks QEMU what became of the copy.
    Adopts,
    /// The agent reads what QEMU said, now or earlier.
    Reads(Outgoing),
    /// The agent sees that the process ended.
    SeesEnd,
    /// The agent's deadline passes.
    Ticks,
    /// The agent tries again what failed.
    Retries,
    /// The target's answer to the proof arrives.
    ProofIsTaken,
    /// The agent ends the copy by post-copy.
    TurnsToPostcopy,
    /// QEMU: the guest went over, its memory follows.
    Serves,
    /// QEMU: the link of a post-copy breaks.
    Parts,
    /// Both agents mend the link of a post-copy.
    Recovers,
    /// QEMU: the rest fits, the guest stops.
    Converges,
    /// QEMU: everything arrived.
    Completes,
    /// QEMU: the stream broke.
    Fails,
    /// QEMU dies.
    Dies,
}

impl SourceStep {
    pub(crate) const QEMU: [Self; 4] = [Self::Converges, Self::Completes, Self::Fails, Self::Dies];
    pub(crate) const POST_COPY: [Self; 3] = [Self::Serves, Self::Parts, Self::Recovers];
    pub(crate) const AGENT: [Self; 13] = [
        Self::Adopts,
        Self::Reads(Outgoing::Active),
        Self::Reads(Outgoing::PreSwitchover),
        Self::Reads(Outgoing::Device),
        Self::Reads(Outgoing::Serving),
        Self::Reads(Outgoing::Completed),
        Self::Reads(Outgoing::Failed),
        Self::Reads(Outgoing::Cancelled),
        Self::SeesEnd,
        Self::Ticks,
        Self::Retries,
        Self::ProofIsTaken,
        Self::AgentCrashes,
    ];
}

impl Migration {
    /// An agent that starts.
    pub(crate) fn source_agent(&self, disk: Option<(HalfId, bool)>) -> SourceAgent {
        SourceAgent {
            half: disk.map_or(HalfId::FRESH, |(half, _)| half),
            adopting: disk.is_some(),
            process: disk.is_some_and(|(_, process)| process),
            begun: false,
            shown: 0,
            retry: None,
        }
    }

    /// What the half says of itself.
    pub(crate) fn source_word(&self, half: HalfId) -> SourceWord {
        self.sources.ask(half, |half| {
            (half.state(), half.allowed(), half.post_copied())
        })
    }

    /// A step of the agent or of QEMU; `None` when it can't happen.
    pub(crate) fn source_step(&self, state: &mut State, step: SourceStep, cut: Cut) -> Option<()> {
        match step {
            SourceStep::Converges
            | SourceStep::Completes
            | SourceStep::Fails
            | SourceStep::Serves
            | SourceStep::Parts
            | SourceStep::Dies => qemu::source_qemu(state, step),
            SourceStep::Recovers => self.recover(state),
            SourceStep::AgentStarts => {
                if state.source.agent.is_some() || state.source.lost {
                    return None;
                }
                state.source.agent = Some(self.source_agent(state.source.disk));
                self.source_publish(state);
                Some(())
            }
            SourceStep::AgentCrashes if cut.is_none() => source_crash(state),
            SourceStep::AgentCrashes => None,
            SourceStep::Adopts => self.source_adopt(state, cut),
            SourceStep::Reads(_)
            | SourceStep::SeesEnd
            | SourceStep::Ticks
            | SourceStep::Retries
            | SourceStep::TurnsToPostcopy
            | SourceStep::ProofIsTaken => self.source_event(state, step, cut),
        }
    }

    fn source_event(&self, state: &mut State, step: SourceStep, cut: Cut) -> Option<()> {
        let agent = state
            .source
            .agent
            .as_ref()
            .filter(|agent| !agent.adopting)?;
        let (half, _, _) = self.source_word(agent.half);
        let copying = is_watched(half);
        match step {
            SourceStep::Reads(said) => {
                if !copying || agent.shown & bit(said) == 0 {
                    return None;
                }
                if said == Outgoing::Device && !self.config.keeps(Guard::CompletedProof) {
                    state.proof = true;
                }
                self.source_react(state, SourceInput::Copy(said), cut)
            }
            SourceStep::SeesEnd if copying && state.source.qemu == SourceQemu::Gone => {
                self.source_react(state, SourceInput::Gone, cut)
            }
            SourceStep::Ticks
                if self
                    .sources
                    .ask(agent.half, |h| h.next_deadline().is_some()) =>
            {
                self.source_react(state, SourceInput::Tick, cut)
            }
            SourceStep::ProofIsTaken
                if state.proof_taken
                    && matches!(half, SourceState::Completed | SourceState::Serving) =>
            {
                self.source_react(state, SourceInput::ProofTaken, cut)
            }
            SourceStep::TurnsToPostcopy
                if half == SourceState::Copying && self.target_confirms(state) =>
            {
                let by = self.sources.ask(agent.half, |half| half.epoch().0);
                let input = SourceInput::Postcopy(u8::try_from(by).ok()?);
                self.sources.take(agent.half, input)?;
                self.source_react(state, input, cut)
            }
            SourceStep::Retries if cut.is_none() => self.source_retry(state, half),
            SourceStep::SeesEnd
            | SourceStep::Ticks
            | SourceStep::ProofIsTaken
            | SourceStep::TurnsToPostcopy
            | SourceStep::Serves
            | SourceStep::Parts
            | SourceStep::Recovers
            | SourceStep::Retries
            | SourceStep::AgentCrashes
            | SourceStep::AgentStarts
            | SourceStep::Adopts
            | SourceStep::Converges
            | SourceStep::Completes
            | SourceStep::Fails
            | SourceStep::Dies => None,
        }
    }

    fn source_retry(&self, state: &mut State, half: SourceState) -> Option<()> {
        let effect = state.source.agent.as_mut()?.retry.take()?;
        if retry_is_wanted(effect, half) {
            self.source_perform(state, effect);
        }
        Some(())
    }

    /// An order arrives.
    pub(crate) fn source_order(
        &self,
        state: &mut State,
        (command, epoch): (Command, u8),
        cut: Cut,
    ) -> Option<()> {
        let agent = state
            .source
            .agent
            .as_ref()
            .filter(|agent| !agent.adopting)?;
        let complete = state.source.qemu == SourceQemu::Completed;
        let serving = self.source_word(agent.half).0 == SourceState::Serving;
        if command == Command::RevertSource && serving && complete {
            // Asked first, since that may not have been read yet.
            self.source_react(state, SourceInput::Copy(Outgoing::Completed), None)?;
        }
        let agent = state.source.agent.as_ref()?;
        let half = agent.half;
        let seen = u8::try_from(self.sources.ask(half, |half| half.epoch().0)).ok()?;
        let stale = epoch < state.source.spoken;
        let by = if self.config.keeps(Guard::HostFence) {
            epoch
        } else {
            epoch.max(seen)
        };
        let input = source_input(command, by)?;
        let (after, effects) = self.sources.take(half, input)?;
        if stale && (after != half || !effects.is_empty()) {
            state.wrongs.old_order = true;
        }
        let fresh = self.source_word(half).0 == SourceState::Absent;
        if command == Command::StartCopy && fresh {
            hold(state);
        }
        self.source_react(state, input, cut)?;
        if cut.is_none() {
            state.source.spoken = state.source.spoken.max(epoch);
        }
        Some(())
    }

    /// Feeds the half, carries out what it says, and tells what is true then. `None` when the half
    /// has nothing to say, or ends before the cut.
    fn source_react(&self, state: &mut State, input: SourceInput, cut: Cut) -> Option<()> {
        let mut queue = VecDeque::from([input]);
        let mut done = 0;
        while let Some(input) = queue.pop_front() {
            let agent = state.source.agent.as_mut()?;
            let Some((half, effects)) = self.sources.take(agent.half, input) else {
                continue;
            };
            agent.half = half;
            let mut effects = effects.to_vec();
            if effects == [SourceEffect::Journal, SourceEffect::SendProof]
                && !self.config.keeps(Guard::ServingIsWritten)
            {
                effects.reverse();
            }
            for effect in &effects {
                if cut == Some(done) {
                    return source_crash(state);
                }
                queue.extend(self.source_perform(state, *effect));
                done += 1;
            }
        }
        if cut.is_some() {
            return None;
        }
        self.source_publish(state);
        Some(())
    }

    /// Carries one effect out; its outcome may be an event in turn.
    fn source_perform(&self, state: &mut State, effect: SourceEffect) -> Option<SourceInput> {
        // A fenced target may have had it, and then its memory is nowhere.
        let committed = state.ran || state.ledger.target_fenced || self.target_is_committed(state);
        let fallen = state.died(&self.config);
        let lacks = state.target.qemu.lacks();
        let source = &mut state.source;
        let agent = source.agent.as_mut()?;
        if !matches!(effect, SourceEffect::Journal | SourceEffect::SendProof) {
            agent.retry = None;
        }
        let done = match effect {
            SourceEffect::Journal => {
                source.disk = Some((self.sources.restored(agent.half), agent.process));
                true
            }
            SourceEffect::SendProof => {
                state.proof = true;
                true
            }
            SourceEffect::BeginCopy => {
                if !agent.process || source.qemu != SourceQemu::Running {
                    return Some(SourceInput::Copy(Outgoing::Failed));
                }
                agent.begun = true;
                source.turn(SourceQemu::Active);
                true
            }
            SourceEffect::SwitchToPostcopy
            | SourceEffect::ContinueSwitchover
            | SourceEffect::CancelCopy
            | SourceEffect::ResumeGuest => {
                source.obey(effect, self.config.keeps(Guard::StoppedGuest))
            }
            SourceEffect::EndGuest => {
                if agent.process {
                    let served = source.completed && fallen;
                    let lost = committed || served || source.qemu == SourceQemu::Gone;
                    state.wrongs.ended_source |= !lost;
                    source.qemu = SourceQemu::Gone;
                }
                true
            }
            // With the machine, in the next effect.
            SourceEffect::EndQemu => true,
            SourceEffect::DropMachine => {
                if agent.process && source.machine {
                    state.wrongs.ended_source |= source.qemu != SourceQemu::Gone && !committed;
                    state.wrongs.ended_server |= source.qemu.serves() && lacks;
                    source.qemu = SourceQemu::Gone;
                    source.machine = false;
                }
                true
            }
        };
        if !done {
            state.source.agent.as_mut()?.retry = Some(effect);
        }
        None
    }

    /// What a started agent finds out, as in `node-agent/src/source/observed.rs`.
    fn source_adopt(&self, state: &mut State, cut: Cut) -> Option<()> {
        let last =
            state.source.machine && (state.source.held || !self.config.keeps(Guard::LastJob));
        let qemu = state.source.qemu;
        let agent = state.source.agent.as_mut().filter(|agent| agent.adopting)?;
        agent.adopting = false;
        let (half, _, _) = self.source_word(agent.half);
        if last && agent.process && qemu != SourceQemu::Gone {
            let said = said(qemu);
            agent.begun = said != Outgoing::None;
            agent.shown = bit(said);
            return self.source_react(state, SourceInput::Adopted(said), cut);
        }
        let input = match half {
            SourceState::Copying | SourceState::Switching | SourceState::Serving => {
                SourceInput::Gone
            }
            SourceState::Completed | SourceState::Retired if last => {
                SourceInput::Adopted(Outgoing::Completed)
            }
            SourceState::Absent
            | SourceState::ServerLost
            | SourceState::Completed
            | SourceState::Resumed
            | SourceState::Retired
            | SourceState::Lost => return cut.is_none().then_some(()),
        };
        self.source_react(state, input, cut)
    }

    /// Tells everyone who listens.
    fn source_publish(&self, state: &mut State) {
        let Some(agent) = &mut state.source.agent else {
            return;
        };
        let word = self.source_word(agent.half);
        if !is_watched(word.0) {
            agent.shown = 0;
            agent.begun = false;
        }
    }

    /// Whether the target's log says that the guest goes on there.
    pub(crate) fn target_is_committed(&self, state: &State) -> bool {
        state.target.disk.is_some_and(|(half, _)| {
            matches!(
                self.targets.ask(half, |half| half.state()),
                TargetState::Continuing
                    | TargetState::Fetching
                    | TargetState::Running
                    | TargetState::Lost { continued: true }
                    | TargetState::MemoryLost
            )
        })
    }
}

/// Whether what QEMU says of its copy matters to a half.
const fn is_watched(half: SourceState) -> bool {
    matches!(
        half,
        SourceState::Copying | SourceState::Switching | SourceState::Serving
    )
}

impl crate::state::SourceHost {
    /// QEMU's copy changes, and says so.
    fn turn(&mut self, to: SourceQemu) {
        self.qemu = to;
        if let Some(agent) = self.agent.as_mut().filter(|agent| agent.begun) {
            agent.shown |= bit(said(to));
        }
    }

    /// Does what QEMU alone is told; whether that was possible. `stops` the guest before post-copy.
    fn obey(&mut self, effect: SourceEffect, stops: bool) -> bool {
        match effect {
            SourceEffect::SwitchToPostcopy => {
                if self.qemu == SourceQemu::Active {
                    self.stopped = stops;
                    self.postcopy = true;
                }
                self.qemu != SourceQemu::Gone
            }
            SourceEffect::ContinueSwitchover => {
                let waits = self.qemu == SourceQemu::PreSwitchover;
                if waits {
                    self.sent = true;
                    self.turn(SourceQemu::Device);
                }
                waits
            }
            SourceEffect::CancelCopy => {
                if self.qemu.copies() {
                    self.turn(SourceQemu::Cancelled);
                }
                self.qemu != SourceQemu::Gone
            }
            SourceEffect::ResumeGuest => {
                if self.qemu == SourceQemu::Completed {
                    self.qemu = SourceQemu::Resumed;
                }
                self.stopped = false;
                self.runs()
            }
            SourceEffect::Journal
            | SourceEffect::SendProof
            | SourceEffect::BeginCopy
            | SourceEffect::EndGuest
            | SourceEffect::EndQemu
            | SourceEffect::DropMachine => false,
        }
    }
}

/// The agent takes hold of the guest; durable before the half hears of the start.
fn hold(state: &mut State) {
    let runs = state.source.machine && state.source.runs();
    if let Some(agent) = state.source.agent.as_mut().filter(|_| runs) {
        agent.process = true;
        state.source.held = true;
    }
}

pub(crate) fn source_crash(state: &mut State) -> Option<()> {
    state.source.agent.take()?;
    state.crashes = state.crashes.checked_sub(1)?;
    Some(())
}

/// What QEMU says in this state; of a copy that was reverted it says nothing of use.
const fn said(qemu: SourceQemu) -> Outgoing {
    match qemu {
        SourceQemu::Running | SourceQemu::Resumed | SourceQemu::Gone => Outgoing::None,
        SourceQemu::Active => Outgoing::Active,
        SourceQemu::PreSwitchover => Outgoing::PreSwitchover,
        SourceQemu::Device => Outgoing::Device,
        SourceQemu::Serving | SourceQemu::Parted => Outgoing::Serving,
        SourceQemu::Completed => Outgoing::Completed,
        SourceQemu::Failed => Outgoing::Failed,
        SourceQemu::Cancelled => Outgoing::Cancelled,
    }
}

const fn bit(said: Outgoing) -> u8 {
    match said {
        // Changes nothing, whenever it is read.
        Outgoing::None | Outgoing::Active => 0,
        Outgoing::PreSwitchover => 1,
        Outgoing::Device => 2,
        Outgoing::Completed => 4,
        Outgoing::Failed => 8,
        Outgoing::Cancelled => 16,
        Outgoing::Serving => 32,
    }
}
