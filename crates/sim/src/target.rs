//! The target's host: its agent around the real half, and its QEMU.
//!
//! As in `node-agent/src/target.rs`. QEMU starts paused, loads when the source has sent everything,
//! and ends by itself when the copy breaks before that.

use std::collections::VecDeque;

use godwit_model::migration::decide::Command;
use godwit_model::migration::target::{TargetEffect, TargetState};

use crate::Migration;
use crate::config::Guard;
use crate::halves::{HalfId, Incoming, TargetInput, target_input};
use crate::source::Cut;
use crate::state::{SourceQemu, State, TargetAgent, TargetQemu};

/// What can happen on the target's host without an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TargetStep {
    /// The agent crashes between two events.
    AgentCrashes,
    /// The agent starts and reads its log.
    AgentStarts,
    /// The agent asks QEMU what became of the copy.
    Adopts,
    /// The agent learns that its QEMU listens.
    SeesListening,
    /// The agent's launch of QEMU fails.
    LaunchFails,
    /// The agent reads that QEMU is loaded, now or earlier.
    SeesLoaded,
    /// The agent reads that all memory of a post-copy has come.
    SeesAll,
    /// The agent sees that the guest runs.
    SeesRunning,
    /// The agent sees that the process ended.
    SeesEnd,
    /// The agent's deadline passes.
    Ticks,
    /// The agent tries again what failed.
    Retries,
    /// The source's proof arrives.
    ProofArrives,
    /// QEMU listens.
    Listens,
    /// QEMU has loaded everything, or in post-copy what the guest needs to go on.
    Loads,
    /// QEMU has got all memory of a post-copy.
    Fetches,
    /// QEMU ends because the copy broke.
    Breaks,
    /// QEMU dies.
    Dies,
}

impl TargetStep {
    pub(crate) const QEMU: [Self; 4] = [Self::Listens, Self::Loads, Self::Breaks, Self::Dies];
    pub(crate) const AGENT: [Self; 11] = [
        Self::Adopts,
        Self::SeesListening,
        Self::LaunchFails,
        Self::SeesLoaded,
        Self::SeesAll,
        Self::SeesRunning,
        Self::SeesEnd,
        Self::Ticks,
        Self::Retries,
        Self::ProofArrives,
        Self::AgentCrashes,
    ];
}

impl Migration {
    /// An agent that starts.
    pub(crate) fn target_agent(&self, disk: Option<(HalfId, bool)>) -> TargetAgent {
        TargetAgent {
            half: disk.map_or(HalfId::FRESH, |(half, _)| half),
            adopting: disk.is_some(),
            process: disk.is_some_and(|(_, process)| process),
            launching: false,
            attached: false,
            loading: false,
            shown: false,
            retry: None,
        }
    }

    /// What the half says of itself.
    pub(crate) fn target_word(&self, half: HalfId) -> TargetState {
        self.targets.ask(half, |half| half.state())
    }

    /// A step of the agent or of QEMU; `None` when it can't happen.
    pub(crate) fn target_step(&self, state: &mut State, step: TargetStep, cut: Cut) -> Option<()> {
        match step {
            TargetStep::Listens
            | TargetStep::Loads
            | TargetStep::Fetches
            | TargetStep::Breaks
            | TargetStep::Dies => self.target_qemu(state, step),
            TargetStep::AgentStarts => {
                if state.target.agent.is_some() || state.target.lost {
                    return None;
                }
                state.target.agent = Some(self.target_agent(state.target.disk));
                self.target_publish(state);
                Some(())
            }
            TargetStep::AgentCrashes if cut.is_none() => target_crash(state),
            TargetStep::AgentCrashes => None,
            TargetStep::Adopts => self.target_adopt(state, cut),
            TargetStep::Retries => self.target_retry(state, cut),
            TargetStep::SeesListening
            | TargetStep::LaunchFails
            | TargetStep::SeesLoaded
            | TargetStep::SeesAll
            | TargetStep::SeesRunning
            | TargetStep::SeesEnd
            | TargetStep::Ticks
            | TargetStep::ProofArrives => {
                let input = self.target_event(state, step)?;
                // A target that loses patience with a copy under way: `node-agent/src/target.rs` has no
                // deadline for one in use.
                let under_way = state.source.qemu.copies() || state.source.qemu.serves();
                state.broke |= step == TargetStep::Ticks && self.config.post_copy && under_way;
                self.target_react(state, input, cut)?;
                self.answer_proof(state, step);
                Some(())
            }
        }
    }

    /// What the half hears when `step` happens; `None` when it can't.
    fn target_event(&self, state: &mut State, step: TargetStep) -> Option<TargetInput> {
        let qemu = state.target.qemu;
        let proof = state.proof;
        let agent = state
            .target
            .agent
            .as_mut()
            .filter(|agent| !agent.adopting)?;
        let half = self.target_word(agent.half);
        match step {
            TargetStep::SeesListening if agent.launching && qemu == TargetQemu::Incoming => {
                agent.launching = false;
                agent.attached = true;
                agent.process = true;
                Some(TargetInput::Listening)
            }
            TargetStep::LaunchFails if agent.launching => {
                agent.launching = false;
                state.target.qemu = TargetQemu::None;
                Some(TargetInput::PrepareFailed)
            }
            TargetStep::SeesLoaded if agent.shown && half == TargetState::Prepared => {
                Some(TargetInput::Load(loaded(qemu)))
            }
            TargetStep::SeesAll
                if agent.attached
                    && matches!(qemu, TargetQemu::Loaded | TargetQemu::Running)
                    && matches!(
                        half,
                        TargetState::Loaded | TargetState::Continuing | TargetState::Fetching
                    ) =>
            {
                Some(TargetInput::Load(Incoming::Completed))
            }
            TargetStep::SeesRunning
                if agent.attached && qemu.runs() && half == TargetState::Continuing =>
            {
                Some(TargetInput::Load(going_on(qemu)))
            }
            TargetStep::SeesEnd if agent.attached && qemu == TargetQemu::None => {
                agent.attached = false;
                Some(TargetInput::Gone)
            }
            TargetStep::Ticks
                if self
                    .targets
                    .ask(agent.half, |h| h.next_deadline().is_some()) =>
            {
                Some(TargetInput::Tick)
            }
            TargetStep::ProofArrives if proof => Some(TargetInput::Proof),
            TargetStep::SeesListening
            | TargetStep::LaunchFails
            | TargetStep::SeesLoaded
            | TargetStep::SeesAll
            | TargetStep::Fetches
            | TargetStep::SeesRunning
            | TargetStep::SeesEnd
            | TargetStep::Ticks
            | TargetStep::ProofArrives
            | TargetStep::AgentCrashes
            | TargetStep::AgentStarts
            | TargetStep::Adopts
            | TargetStep::Retries
            | TargetStep::Listens
            | TargetStep::Loads
            | TargetStep::Breaks
            | TargetStep::Dies => None,
        }
    }

    /// The target answers a proof when it is on its disk.
    fn answer_proof(&self, state: &mut State, step: TargetStep) {
        let Some(agent) = &state.target.agent else {
            return;
        };
        state.proof_taken |= step == TargetStep::ProofArrives
            && matches!(
                self.target_word(agent.half),
                TargetState::Continuing
                    | TargetState::Fetching
                    | TargetState::Running
                    | TargetState::Lost { continued: true }
                    | TargetState::MemoryLost
            );
    }

    fn target_retry(&self, state: &mut State, cut: Cut) -> Option<()> {
        let agent = state
            .target
            .agent
            .as_mut()
            .filter(|agent| !agent.adopting)?;
        let effect = agent.retry.take()?;
        let continuing = self.target_word(agent.half) == TargetState::Continuing;
        if effect == TargetEffect::Continue && !continuing {
            return cut.is_none().then_some(());
        }
        match self.target_perform(state, effect) {
            Some(input) => self.target_react(state, input, cut),
            None => cut.is_none().then_some(()),
        }
    }

    /// An order arrives.
    pub(crate) fn target_order(
        &self,
        state: &mut State,
        (command, epoch): (Command, u8),
        cut: Cut,
    ) -> Option<()> {
        let agent = state
            .target
            .agent
            .as_ref()
            .filter(|agent| !agent.adopting)?;
        let whole = matches!(state.target.qemu, TargetQemu::Loaded | TargetQemu::Running);
        if command == Command::AbandonTarget && agent.attached && whole && cut.is_none() {
            // Asked first, since what it has may not have been read yet.
            self.target_react(state, TargetInput::Load(Incoming::Completed), None)?;
        } else if command == Command::AbandonTarget && whole {
            return None;
        }
        let agent = state.target.agent.as_ref()?;
        let half = agent.half;
        let seen = u8::try_from(self.targets.ask(half, |half| half.epoch().0)).ok()?;
        let stale = epoch < state.target.spoken;
        let by = if self.config.keeps(Guard::HostFence) {
            epoch
        } else {
            epoch.max(seen)
        };
        let input = target_input(command, by)?;
        let (after, effects) = self.targets.take(half, input)?;
        if stale && (after != half || !effects.is_empty()) {
            state.wrongs.old_order = true;
        }
        self.target_react(state, input, cut)?;
        if cut.is_none() {
            state.target.spoken = state.target.spoken.max(epoch);
        }
        Some(())
    }

    /// Feeds the half, carries out what it says, and tells what is true then. `None` when that
    /// ends before the cut.
    fn target_react(&self, state: &mut State, input: TargetInput, cut: Cut) -> Option<()> {
        let mut queue = VecDeque::from([input]);
        let mut done = 0;
        while let Some(input) = queue.pop_front() {
            let agent = state.target.agent.as_mut()?;
            let Some((half, effects)) = self.targets.take(agent.half, input) else {
                continue;
            };
            agent.half = half;
            for effect in effects.iter() {
                if cut == Some(done) {
                    return target_crash(state);
                }
                queue.extend(self.target_perform(state, *effect));
                done += 1;
            }
        }
        if cut.is_some() {
            return None;
        }
        self.target_publish(state);
        Some(())
    }

    /// Carries one effect out; its outcome may be an event in turn.
    fn target_perform(&self, state: &mut State, effect: TargetEffect) -> Option<TargetInput> {
        let target = &mut state.target;
        let agent = target.agent.as_mut()?;
        match effect {
            TargetEffect::Journal => {
                target.disk = Some((self.targets.restored(agent.half), agent.process));
            }
            TargetEffect::StartQemu => {
                agent.launching = true;
                target.qemu = TargetQemu::Starting;
            }
            TargetEffect::Continue => {
                let next = match target.qemu {
                    TargetQemu::Loaded | TargetQemu::Running => Some(TargetQemu::Running),
                    TargetQemu::Partial | TargetQemu::Fetching => Some(TargetQemu::Fetching),
                    TargetQemu::None | TargetQemu::Starting | TargetQemu::Incoming => None,
                };
                let Some(next) = next.filter(|_| agent.attached) else {
                    agent.retry = Some(effect);
                    return None;
                };
                target.qemu = next;
                state.ran = true;
                state.wrongs.unproven |= !state.source.completed;
                return Some(TargetInput::Continued);
            }
            TargetEffect::Announce => {}
            // From here on it is a machine like any other, but for memory that follows.
            TargetEffect::KeepMachine => {
                agent.attached &= self.target_word(agent.half) == TargetState::Fetching;
            }
            TargetEffect::EndGuest => {
                if agent.attached {
                    agent.attached = false;
                    let serves = state.source.qemu.serves() && target.qemu.lacks();
                    state.wrongs.ended_target |= target.qemu == TargetQemu::Running || serves;
                    target.qemu = TargetQemu::None;
                }
            }
            TargetEffect::EndQemu => {
                if agent.attached {
                    agent.attached = false;
                    state.wrongs.ended_target |= target.qemu == TargetQemu::Running;
                    target.qemu = TargetQemu::None;
                }
            }
        }
        None
    }

    /// What a started agent finds out, as in `node-agent/src/target/observed.rs`.
    fn target_adopt(&self, state: &mut State, cut: Cut) -> Option<()> {
        let qemu = state.target.qemu;
        let agent = state.target.agent.as_mut().filter(|agent| agent.adopting)?;
        agent.adopting = false;
        let half = self.target_word(agent.half);
        let over = matches!(
            half,
            TargetState::Discarded | TargetState::Lost { .. } | TargetState::MemoryLost
        );
        if half == TargetState::Running {
            return cut.is_none().then_some(());
        }
        if agent.process && qemu != TargetQemu::None {
            agent.attached = true;
            agent.shown = matches!(qemu, TargetQemu::Loaded | TargetQemu::Partial);
            agent.loading = qemu == TargetQemu::Incoming;
            let said = match qemu {
                TargetQemu::Loaded if !over => Incoming::Completed,
                TargetQemu::Running if !over => Incoming::Running,
                TargetQemu::Partial if !over => Incoming::Postcopy,
                TargetQemu::Fetching if !over => Incoming::Fetching,
                TargetQemu::None
                | TargetQemu::Starting
                | TargetQemu::Incoming
                | TargetQemu::Partial
                | TargetQemu::Loaded
                | TargetQemu::Fetching
                | TargetQemu::Running => Incoming::Active,
            };
            return self.target_react(state, TargetInput::Adopted(said), cut);
        }
        // A process that was started and never known is found by its job, and ended.
        state.target.qemu = TargetQemu::None;
        let input = match half {
            TargetState::Preparing => TargetInput::Adopted(Incoming::Active),
            TargetState::Prepared
            | TargetState::Loaded
            | TargetState::Continuing
            | TargetState::Fetching => TargetInput::Gone,
            TargetState::Absent
            | TargetState::Running
            | TargetState::Discarded
            | TargetState::Lost { .. }
            | TargetState::MemoryLost => return cut.is_none().then_some(()),
        };
        self.target_react(state, input, cut)
    }

    /// Tells everyone who listens.
    fn target_publish(&self, state: &mut State) {
        let Some(agent) = &mut state.target.agent else {
            return;
        };
        let word = self.target_word(agent.half);
        agent.shown &= word == TargetState::Prepared;
        agent.loading &= word == TargetState::Prepared;
    }

    fn target_qemu(&self, state: &mut State, step: TargetStep) -> Option<()> {
        let source = state.source.qemu;
        let target = &mut state.target;
        match (step, target.qemu) {
            (TargetStep::Listens, TargetQemu::Starting) => {
                target.agent.as_ref().filter(|agent| agent.launching)?;
                target.qemu = TargetQemu::Incoming;
            }
            (TargetStep::Loads, TargetQemu::Incoming) if state.source.sent => {
                state.source.confirmed = true;
                target.qemu = TargetQemu::Loaded;
                if let Some(agent) = target.agent.as_mut().filter(|agent| agent.attached) {
                    agent.shown = true;
                }
                if !self.config.keeps(Guard::PausedTarget) {
                    target.qemu = TargetQemu::Running;
                    state.ran = true;
                    state.wrongs.unproven |= !state.source.completed;
                }
            }
            (TargetStep::Loads, TargetQemu::Incoming) if state.source.package => {
                state.source.package = false;
                target.qemu = TargetQemu::Partial;
                if let Some(agent) = target.agent.as_mut().filter(|agent| agent.attached) {
                    agent.shown = true;
                }
                if !self.config.keeps(Guard::PausedTarget) {
                    target.qemu = TargetQemu::Fetching;
                    state.ran = true;
                }
            }
            (TargetStep::Fetches, qemu) if qemu.lacks() && source == SourceQemu::Serving => {
                let runs = qemu == TargetQemu::Fetching;
                target.qemu = match runs {
                    true => TargetQemu::Running,
                    false => TargetQemu::Loaded,
                };
                state.source.confirmed = true;
            }
            (TargetStep::Breaks, TargetQemu::Incoming) if source != SourceQemu::Running => {
                state.broke |= source.serves();
                target.qemu = TargetQemu::None;
            }
            (TargetStep::Dies, qemu) if qemu != TargetQemu::None => {
                state.deaths = state.deaths.checked_sub(1)?;
                target.qemu = TargetQemu::None;
            }
            _ => return None,
        }
        Some(())
    }
}

pub(crate) fn target_crash(state: &mut State) -> Option<()> {
    state.target.agent.take()?;
    state.crashes = state.crashes.checked_sub(1)?;
    Some(())
}

/// What a QEMU says that has taken a copy and waits.
fn loaded(qemu: TargetQemu) -> Incoming {
    match qemu {
        TargetQemu::Partial => Incoming::Postcopy,
        TargetQemu::None
        | TargetQemu::Starting
        | TargetQemu::Incoming
        | TargetQemu::Loaded
        | TargetQemu::Fetching
        | TargetQemu::Running => Incoming::Completed,
    }
}

/// What a QEMU says whose guest goes on.
fn going_on(qemu: TargetQemu) -> Incoming {
    match qemu {
        TargetQemu::Fetching => Incoming::Fetching,
        TargetQemu::None
        | TargetQemu::Starting
        | TargetQemu::Incoming
        | TargetQemu::Partial
        | TargetQemu::Loaded
        | TargetQemu::Running => Incoming::Running,
    }
}
