//! Everything that can happen next, in any state.

use godwit_model::migration::decide::Command;
use godwit_model::migration::job::JobState;
use godwit_model::migration::source::SourceState;

use crate::Migration;
use crate::config::{Config, Guard};
use crate::halves::{HalfId, source_input, target_input};
use crate::owner::{Ears, OwnerStep, Side};
use crate::source::{Cut, SourceStep};
use crate::state::{Orders, Owner, SourceQemu, State, TargetQemu};
use crate::target::TargetStep;

/// Most effects that an event of the source's half leads to, less one.
const SOURCE_CUTS: u8 = 3;
/// Most effects that an event of the target's half leads to, less one.
const TARGET_CUTS: u8 = 4;

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Another coordinator takes the job.
    Claim,
    /// A user wants it undone.
    Cancel,
    /// The owner under this epoch does something.
    Owner(u8, OwnerStep),
    /// An order given under this epoch arrives; the agent may crash while it follows.
    Order(Command, u8, Cut),
    /// Something happens on the source's host.
    Source(SourceStep, Cut),
    /// Something happens on the target's host.
    Target(TargetStep, Cut),
    /// After this job, the machine moves away by another one.
    Leaves,
    /// A host dies for good.
    HostDies(Side),
    /// A person declares a host dead.
    Fence(Side),
    /// After this job, the machine starts again from its disk, on another host.
    Restarts,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Claim => f.write_str("another coordinator claims the job"),
            Self::Cancel => f.write_str("a user cancels"),
            Self::Owner(epoch, step) => write!(f, "owner {epoch}: {step}"),
            Self::Order(command, epoch, cut) => {
                write!(f, "arrives: {command:?} of owner {epoch}{}", Crash(*cut))
            }
            Self::Source(step, cut) => write!(f, "source: {step:?}{}", Crash(*cut)),
            Self::Target(step, cut) => write!(f, "target: {step:?}{}", Crash(*cut)),
            Self::Leaves => f.write_str("another job moves the machine away"),
            Self::HostDies(side) => write!(f, "the {side:?}'s host dies for good"),
            Self::Fence(side) => write!(f, "a person declares the {side:?}'s host dead"),
            Self::Restarts => f.write_str("the machine starts again from its disk, elsewhere"),
        }
    }
}

struct Crash(Cut);

impl std::fmt::Display for Crash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(done) => write!(f, ", the agent crashes after effect {done}"),
            None => Ok(()),
        }
    }
}

/// Every step that is worth a try in `state`.
pub(crate) fn possible(config: &Config, state: &State, steps: &mut Vec<Step>) {
    steps.push(Step::Claim);
    if !state.ledger.cancel && !state.ledger.state.is_final() {
        steps.push(Step::Cancel);
    }
    for epoch in 1..=state.ledger.epoch {
        owner(config, state, epoch, steps);
        for command in Orders::COMMANDS {
            if state.orders.holds(command, epoch) {
                orders(state, (command, epoch), steps);
            }
        }
    }
    steps.extend(SourceStep::QEMU.map(|step| Step::Source(step, None)));
    if config.post_copy {
        steps.extend(SourceStep::POST_COPY.map(|step| Step::Source(step, None)));
        for cut in cuts(state, SOURCE_CUTS) {
            steps.push(Step::Source(SourceStep::TurnsToPostcopy, cut));
        }
        steps.push(Step::Target(TargetStep::Fetches, None));
    }
    steps.extend(TargetStep::QEMU.map(|step| Step::Target(step, None)));
    if state.source.agent.is_none() {
        steps.push(Step::Source(SourceStep::AgentStarts, None));
    } else {
        for cut in cuts(state, SOURCE_CUTS) {
            steps.extend(SourceStep::AGENT.map(|step| Step::Source(step, cut)));
        }
    }
    if state.target.agent.is_none() {
        steps.push(Step::Target(TargetStep::AgentStarts, None));
    } else {
        for cut in cuts(state, TARGET_CUTS) {
            steps.extend(TargetStep::AGENT.map(|step| Step::Target(step, cut)));
        }
    }
    if config.later_job {
        steps.push(Step::Leaves);
    }
    if config.losses > 0 || config.lies {
        for side in [Side::Source, Side::Target] {
            steps.extend([Step::HostDies(side), Step::Fence(side)]);
        }
        steps.push(Step::Restarts);
    }
}

fn owner(config: &Config, state: &State, epoch: u8, steps: &mut Vec<Step>) {
    if state.owners.get(usize::from(epoch) - 1) == Some(&Owner::Done) {
        return;
    }
    let mut can = |step| steps.push(Step::Owner(epoch, step));
    let present = epoch == state.ledger.epoch;
    let ears = if config.memory {
        &[Ears::NONE][..]
    } else {
        &Ears::ALL[..]
    };
    let fences = if state.ledger.has_fence() {
        &[false, true][..]
    } else {
        &[false][..]
    };
    let all = ears
        .iter()
        .flat_map(|ears| fences.iter().map(|fences| ears.with(*fences)));
    for ears in all {
        can(OwnerStep::Acts(ears));
        if present || !config.keeps(Guard::LedgerEpoch) {
            can(OwnerStep::GivesUp(ears));
            can(OwnerStep::ActsHalf(ears));
            if config.unknown_commits {
                can(OwnerStep::ActsUnanswered(ears));
            }
        }
    }
    if present {
        can(OwnerStep::HearsRefusal);
        can(OwnerStep::Reads);
    }
    if config.memory {
        for side in [Side::Source, Side::Target] {
            can(OwnerStep::Hears(side));
            can(OwnerStep::Loses(side));
        }
    }
}

fn orders(state: &State, (command, epoch): (Command, u8), steps: &mut Vec<Step>) {
    let (up, most) = match command {
        Command::PrepareTarget | Command::DiscardTarget | Command::AbandonTarget => {
            (state.target.agent.is_some(), TARGET_CUTS)
        }
        Command::StartCopy
        | Command::AllowSwitchover
        | Command::CancelCopy
        | Command::RevertSource
        | Command::RetireSource => (state.source.agent.is_some(), SOURCE_CUTS),
    };
    if up {
        steps.extend(cuts(state, most).map(|cut| Step::Order(command, epoch, cut)));
    }
}

fn cuts(state: &State, most: u8) -> impl Iterator<Item = Cut> {
    let most = if state.crashes == 0 { 0 } else { most };
    std::iter::once(None).chain((1..=most).map(Some))
}

impl Step {
    /// Whether it is a fault, or what nobody may rely on, rather than the normal course of things.
    pub fn is_fault(self, before: &State) -> bool {
        let target_lives = matches!(
            before.target.qemu,
            TargetQemu::Incoming
                | TargetQemu::Loaded
                | TargetQemu::Partial
                | TargetQemu::Fetching
                | TargetQemu::Running
        );
        match self {
            Self::Claim => before.ledger.epoch > 0,
            Self::Cancel | Self::Leaves | Self::HostDies(_) => true,
            // What a job whose host died for good waits for, unless it is a lie.
            Self::Fence(side) => !before.lost(side),
            Self::Restarts => false,
            Self::Owner(_, step) => match step {
                OwnerStep::Acts(_) | OwnerStep::Reads | OwnerStep::Hears(_) => false,
                OwnerStep::GivesUp(_)
                | OwnerStep::ActsUnanswered(_)
                | OwnerStep::ActsHalf(_)
                | OwnerStep::HearsRefusal => true,
                // A dead host is silent.
                OwnerStep::Loses(side) => !before.lost(side),
            },
            Self::Order(_, _, cut) => cut.is_some(),
            Self::Source(step, cut) => match step {
                SourceStep::AgentCrashes | SourceStep::Dies => true,
                SourceStep::Fails | SourceStep::Parts => target_lives,
                SourceStep::AgentStarts
                | SourceStep::Adopts
                | SourceStep::Reads(_)
                | SourceStep::SeesEnd
                | SourceStep::Ticks
                | SourceStep::Retries
                | SourceStep::ProofIsTaken
                | SourceStep::TurnsToPostcopy
                | SourceStep::Serves
                | SourceStep::Recovers
                | SourceStep::Converges
                | SourceStep::Completes => cut.is_some(),
            },
            Self::Target(step, cut) => match step {
                TargetStep::AgentCrashes | TargetStep::Dies => true,
                TargetStep::Breaks => before.source.qemu.copies() || before.source.package,
                // A copy in use is not discarded for its age.
                TargetStep::Ticks => {
                    let copy = before.source.qemu;
                    copy.copies() || copy.serves() || takes_for_used(before)
                }
                TargetStep::LaunchFails => before.target.qemu != TargetQemu::None,
                TargetStep::AgentStarts
                | TargetStep::Adopts
                | TargetStep::SeesListening
                | TargetStep::SeesLoaded
                | TargetStep::SeesAll
                | TargetStep::Fetches
                | TargetStep::SeesRunning
                | TargetStep::SeesEnd
                | TargetStep::Retries
                | TargetStep::ProofArrives
                | TargetStep::Listens
                | TargetStep::Loads => cut.is_some(),
            },
        }
    }
}

fn takes_for_used(state: &State) -> bool {
    state
        .target
        .agent
        .as_ref()
        .is_some_and(|agent| agent.loading)
}

impl Migration {
    /// Lets `step` happen; `None` when it can't.
    pub(crate) fn take(&self, state: &mut State, step: Step) -> Option<()> {
        match step {
            Step::Claim => self.claim(state),
            Step::Cancel => {
                state.ledger.cancel = true;
                Some(())
            }
            Step::Owner(epoch, step) => self.owner_step(state, epoch, step),
            Step::Order(command, epoch, cut) => match command {
                Command::PrepareTarget | Command::DiscardTarget | Command::AbandonTarget => {
                    self.target_order(state, (command, epoch), cut)
                }
                Command::StartCopy
                | Command::AllowSwitchover
                | Command::CancelCopy
                | Command::RevertSource
                | Command::RetireSource => self.source_order(state, (command, epoch), cut),
            },
            Step::Source(step, cut) => self.source_step(state, step, cut),
            Step::Target(step, cut) => self.target_step(state, step, cut),
            Step::Leaves => self.leave(state),
            Step::HostDies(side) => self.lose(state, side),
            Step::Fence(side) => self.fence(state, side),
            Step::Restarts => self.restart(state),
        }
    }

    /// Another job takes the machine away: it holds it, copies it, and it runs elsewhere. Only when
    /// this job is over and its half has let the guest go.
    fn leave(&self, state: &mut State) -> Option<()> {
        let agent = state
            .source
            .agent
            .as_ref()
            .filter(|agent| !agent.adopting)?;
        let (half, _, _) = self.source_word(agent.half);
        let free = matches!(half, SourceState::Absent | SourceState::Resumed);
        let over = state.ledger.state == JobState::Failed && !state.ledger.released;
        if !over || state.left || !free || agent.retry.is_some() || !state.source.runs() {
            return None;
        }
        state.source.held = false;
        state.source.qemu = SourceQemu::Completed;
        state.left = true;
        Some(())
    }
}

impl Migration {
    /// Forgets what can't matter any more, so that fewer states differ.
    pub(crate) fn settle(&self, state: &mut State) {
        state.settle();
        if !self.config.keeps(Guard::HostFence) {
            return;
        }
        let newest = state.ledger.epoch;
        let (source_lost, target_lost) = (state.source.lost, state.target.lost);
        // Nobody is there to take it.
        state.proof &= !target_lost;
        state.proof_taken &= !source_lost;
        let (source, target) = (source_halves(state), target_halves(state));
        state
            .orders
            .forget(newest, |command, epoch| match Side::of(command) {
                Side::Source => source_input(command, epoch).is_some_and(|input| {
                    let mut halves = source.iter().flatten();
                    source_lost || halves.all(|half| self.sources.is_dead(*half, input))
                }),
                Side::Target => target_input(command, epoch).is_some_and(|input| {
                    let mut halves = target.iter().flatten();
                    target_lost || halves.all(|half| self.targets.is_dead(*half, input))
                }),
            });
        if self.config.keeps(Guard::LedgerEpoch) {
            let fence = |half: HalfId| self.sources.ask(half, |half| half.epoch().0);
            let seen = match state.source.disk {
                _ if source_lost => u64::MAX,
                disk => disk.map_or(0, |(half, _)| fence(half)),
            };
            let fence = |half: HalfId| self.targets.ask(half, |half| half.epoch().0);
            let seen = seen.min(match state.target.disk {
                _ if target_lost => u64::MAX,
                disk => disk.map_or(0, |(half, _)| fence(half)),
            });
            for (owner, epoch) in state.owners.iter_mut().zip(1_u64..) {
                if epoch < seen.min(newest.into()) {
                    *owner = Owner::Done;
                }
            }
        }
    }
}

/// The half on disk, or a fresh one, and the one in memory.
fn source_halves(state: &State) -> [Option<HalfId>; 2] {
    let memory = state.source.agent.as_ref().map(|agent| agent.half);
    [
        Some(state.source.disk.map_or(HalfId::FRESH, |(half, _)| half)),
        memory,
    ]
}

fn target_halves(state: &State) -> [Option<HalfId>; 2] {
    let memory = state.target.agent.as_ref().map(|agent| agent.half);
    [
        Some(state.target.disk.map_or(HalfId::FRESH, |(half, _)| half)),
        memory,
    ]
}

impl State {
    fn settle(&mut self) {
        if self.target.qemu != TargetQemu::Incoming {
            self.source.sent &= self.source.qemu == SourceQemu::Device;
            self.source.package = false;
        }
        if self.source.qemu != SourceQemu::Device && !self.source.qemu.serves() {
            self.source.confirmed = false;
        }
        if !self.source.qemu.copies() {
            self.source.postcopy = false;
        }
    }
}
