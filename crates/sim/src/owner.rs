//! The coordinators: each owner of the job under its epoch, deciding by the real code.
//!
//! As in `migration-coordinator/src/{drive,step}.rs`. An owner that lost its lease isn't told: it
//! acts on what it knows, at any time, for ever. One that crashes just never acts again.

use godwit_model::migration::convergence::Verdict;
use godwit_model::migration::decide::{self, Action, Command};
use godwit_model::migration::fact::{SourceFact, TargetFact};
use godwit_model::migration::job::JobState;
use godwit_model::migration::source::SourceState;
use godwit_model::migration::target::TargetState;

use crate::Migration;
use crate::config::Guard;
use crate::state::{Owner, State, View};

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Where the machine was.
    Source,
    /// Where it goes.
    Target,
}

impl Side {
    /// Who follows this order.
    pub(crate) const fn of(command: Command) -> Self {
        match command {
            Command::PrepareTarget | Command::DiscardTarget | Command::AbandonTarget => {
                Self::Target
            }
            Command::StartCopy
            | Command::AllowSwitchover
            | Command::CancelCopy
            | Command::RevertSource
            | Command::RetireSource => Self::Source,
        }
    }
}

/// Which hosts an owner hears just before it acts; the others are silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ears {
    /// The source's.
    pub source: bool,
    /// The target's.
    pub target: bool,
    /// Whether it has read which hosts were declared dead.
    pub fences: bool,
}

impl Ears {
    /// Neither; with memory, what was heard before.
    pub(crate) const NONE: Self = Self::new(false, false);
    pub(crate) const ALL: [Self; 4] = [
        Self::new(true, true),
        Self::new(true, false),
        Self::new(false, true),
        Self::NONE,
    ];

    const fn new(source: bool, target: bool) -> Self {
        Self {
            source,
            target,
            fences: false,
        }
    }

    /// The same, with the fences read or not.
    pub(crate) const fn with(self, fences: bool) -> Self {
        Self { fences, ..self }
    }
}

/// What an owner can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OwnerStep {
    /// Decides and acts.
    Acts(Ears),
    /// Decides that the copy takes too long, and acts.
    GivesUp(Ears),
    /// As `Acts`, and doesn't learn that its transition was written.
    ActsUnanswered(Ears),
    /// Orders what may be ordered before the transition is written, and stops there.
    ActsHalf(Ears),
    /// Hears that the target refused to prepare, and acts.
    HearsRefusal,
    /// Reads the job again.
    Reads,
    /// Hears what a host says at present, and remembers it.
    Hears(Side),
    /// Loses its connection.
    Loses(Side),
}

impl std::fmt::Display for OwnerStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (what, ears) = match self {
            Self::Acts(ears) => ("acts", ears),
            Self::GivesUp(ears) => ("gives up the copy", ears),
            Self::ActsUnanswered(ears) => ("acts, its commit stays unanswered", ears),
            Self::ActsHalf(ears) => ("acts, and dies before it writes", ears),
            Self::HearsRefusal => return f.write_str("hears that the target refused"),
            Self::Reads => return f.write_str("reads the job"),
            Self::Hears(side) => return write!(f, "hears the {side:?}"),
            Self::Loses(side) => return write!(f, "loses the {side:?}"),
        };
        f.write_str(what)?;
        match (ears.source, ears.target) {
            (true, true) => f.write_str(" (hears both hosts)"),
            (true, false) => f.write_str(" (hears the source)"),
            (false, true) => f.write_str(" (hears the target)"),
            (false, false) => Ok(()),
        }?;
        f.write_str(if ears.fences { " (sees the fence)" } else { "" })
    }
}

/// What an owner knows, while it acts.
pub(crate) fn view(owner: &mut Owner) -> Option<&mut View> {
    match owner {
        Owner::Acting(view) => Some(view),
        Owner::Done => None,
    }
}

impl Migration {
    /// The lease has run out, or was never taken: a new owner claims the job.
    pub(crate) fn claim(&self, state: &mut State) -> Option<()> {
        let ledger = &mut state.ledger;
        if ledger.state.is_final() || ledger.epoch > self.config.takeovers {
            return None;
        }
        ledger.epoch += 1;
        if let Some(last) = state.owners.last_mut() {
            self.replace(last);
        }
        state.owners.push(new_owner(state));
        Some(())
    }

    /// A replaced owner learns nothing new of the row; one that could only write is out of it.
    fn replace(&self, owner: &mut Owner) {
        let Owner::Acting(view) = owner else { return };
        let orders = match view.state {
            JobState::Preparing | JobState::Copying => !view.cancel,
            JobState::SwitchAllowed | JobState::HandedOver | JobState::Aborting => true,
            JobState::Pending
            | JobState::Placing
            | JobState::Reserved
            | JobState::Prepared
            | JobState::NeedsFencing
            | JobState::Succeeded
            | JobState::Failed => false,
        };
        if !orders && self.config.keeps(Guard::LedgerEpoch) {
            *owner = Owner::Done;
        }
    }

    /// A step of the owner under `epoch`; `None` when it can't happen.
    pub(crate) fn owner_step(&self, state: &mut State, epoch: u8, step: OwnerStep) -> Option<()> {
        let at = usize::from(epoch) - 1;
        match step {
            OwnerStep::Acts(ears)
            | OwnerStep::GivesUp(ears)
            | OwnerStep::ActsUnanswered(ears)
            | OwnerStep::ActsHalf(ears) => {
                let known = self.known(state, at, ears)?;
                self.act_on(state, epoch, &known, step)
            }
            OwnerStep::HearsRefusal => {
                let asked = state.orders.holds(Command::PrepareTarget, epoch);
                let known = self.known(state, at, Ears::NONE)?;
                if !asked || known.state != JobState::Preparing {
                    return None;
                }
                let (to, reason) = (JobState::Aborting, String::new());
                self.act(state, epoch, &Action::Record { to, reason }, (step, None))
            }
            OwnerStep::Reads => reread(state, epoch),
            OwnerStep::Hears(side) => {
                let ears = Ears::new(side == Side::Source, side == Side::Target);
                let known = self.known(state, at, ears)?;
                state.owners[at] = Owner::Acting(known);
                Some(())
            }
            OwnerStep::Loses(side) => lose(state.owners.get_mut(at)?, side),
        }
    }

    fn act_on(&self, state: &mut State, epoch: u8, known: &View, step: OwnerStep) -> Option<()> {
        let verdict = if matches!(step, OwnerStep::GivesUp(_)) {
            known.source.filter(|word| word.0 == SourceState::Copying)?;
            Verdict::GiveUp(String::new())
        } else {
            Verdict::GoOn
        };
        let action = self.decide(known, verdict, fences(state, step));
        let writes = matches!(
            action,
            Action::TakeTurn | Action::Reserve | Action::Record { .. }
        );
        let cut = matches!(step, OwnerStep::ActsUnanswered(_) | OwnerStep::ActsHalf(_));
        if cut && !writes {
            return None;
        }
        let before = state.orders;
        self.act(state, epoch, &action, (step, known.target))?;
        // That its write is refused teaches a replaced owner what it may as well never learn.
        let replaced = epoch < state.ledger.epoch && self.config.keeps(Guard::LedgerEpoch);
        if replaced && writes {
            if state.orders == before {
                return None;
            }
            state.owners[usize::from(epoch) - 1] = Owner::Acting(known.clone());
        }
        if !self.config.memory
            && let Some(Owner::Acting(view)) = state.owners.get_mut(usize::from(epoch) - 1)
        {
            (view.source, view.target) = (None, None);
        }
        Some(())
    }

    /// What an owner knows when it listens. A fact that is late needs no step of its own: whatever
    /// an owner does may have been done earlier and arrive late, and hosts know nothing of the
    /// ledger.
    fn known(&self, state: &State, at: usize, ears: Ears) -> Option<View> {
        let Owner::Acting(view) = state.owners.get(at)? else {
            return None;
        };
        let mut known = view.clone();
        if (ears.source || ears.target) && !hosts_are_known(known.state) {
            return None;
        }
        if ears.source {
            known.source = Some(self.source_word(state.source.agent.as_ref()?.half));
        }
        if ears.target {
            known.target = Some(self.target_word(state.target.agent.as_ref()?.half));
        }
        Some(known)
    }

    fn decide(&self, view: &View, verdict: Verdict, fences: (bool, bool)) -> Action {
        let (source_fenced, target_fenced) = fences;
        let job = decide::Job {
            state: view.state,
            cancel: view.cancel.then(String::new),
            switch_allowed: view.switch_allowed,
            verdict,
            source_fenced,
            target_fenced,
        };
        let source = view.source.map(|(state, allowed, post_copied)| SourceFact {
            post_copied,
            ..SourceFact::bare(state, allowed)
        });
        let mut heard = view.target;
        let undone = view.state == JobState::Aborting
            && matches!(view.source, Some((SourceState::Completed, ..)));
        if undone && !self.config.keeps(Guard::Tombstone) {
            heard = heard.map(|_| TargetState::Discarded);
        }
        let target = heard.map(TargetFact::bare);
        decide::decide(&job, source.as_ref(), target.as_ref())
    }

    fn act(
        &self,
        state: &mut State,
        epoch: u8,
        action: &Action,
        (step, heard): (OwnerStep, Option<TargetState>),
    ) -> Option<()> {
        let step = (step, heard);
        match action {
            Action::TakeTurn => self.record(state, epoch, (JobState::Placing, ""), step),
            Action::Reserve => self.record(state, epoch, (JobState::Reserved, ""), step),
            Action::Record { to, reason } => self.record(state, epoch, (*to, reason), step),
            Action::Command(command) => state.orders.give(*command, epoch).then_some(()),
            Action::Wait(_) => None,
            Action::Done => {
                *state.owners.get_mut(usize::from(epoch) - 1)? = Owner::Done;
                Some(())
            }
        }
    }

    /// Writes a transition, guarded as by `crates/ledger/queries/job_record.sql`.
    fn record(
        &self,
        state: &mut State,
        epoch: u8,
        (to, reason): (JobState, &str),
        (step, heard): (OwnerStep, Option<TargetState>),
    ) -> Option<()> {
        let at = usize::from(epoch) - 1;
        let needed = heard == Some(TargetState::Fetching) && self.config.keeps(Guard::NeededServer);
        let moves = to == JobState::HandedOver;
        let early = moves && !needed;
        if early {
            // The source may clean up while this is written: the target runs, whatever is recorded.
            state.orders.give(Command::RetireSource, epoch);
        }
        if matches!(step, OwnerStep::ActsHalf(_)) {
            return early.then_some(());
        }
        let known = view(state.owners.get_mut(at)?)?;
        let from = known.state;
        let ledger = &mut state.ledger;
        let mine = ledger.epoch == epoch;
        if ledger.state != from || (!mine && self.config.keeps(Guard::LedgerEpoch)) {
            // Its lease is lost. If nobody else has it, it is claimed again, and known anew.
            let next = if mine { new_owner(state) } else { Owner::Done };
            state.owners[at] = next;
            return Some(());
        }
        state.wrongs.old_write |= !mine;
        state.wrongs.edge |= !from.may_become(to);
        ledger.state = to;
        ledger.switch_allowed |= to == JobState::SwitchAllowed;
        ledger.handed_over |= moves;
        ledger.released |= reason == decide::TARGET_MAY_HAVE_RUN;
        if matches!(step, OwnerStep::ActsUnanswered(_)) {
            return Some(());
        }
        known.state = to;
        known.switch_allowed |= to == JobState::SwitchAllowed;
        if to.is_final() {
            state.owners[at] = Owner::Done;
        }
        Some(())
    }
}

/// What an owner knows of the fences when it acts: of the source's, and of the target's.
const fn fences(state: &State, step: OwnerStep) -> (bool, bool) {
    let read = match step {
        OwnerStep::Acts(ears)
        | OwnerStep::GivesUp(ears)
        | OwnerStep::ActsUnanswered(ears)
        | OwnerStep::ActsHalf(ears) => ears.fences,
        OwnerStep::HearsRefusal | OwnerStep::Reads | OwnerStep::Hears(_) | OwnerStep::Loses(_) => {
            false
        }
    };
    let ledger = &state.ledger;
    (read && ledger.source_fenced, read && ledger.target_fenced)
}

/// Before a target is reserved nobody is asked.
const fn hosts_are_known(state: JobState) -> bool {
    !matches!(
        state,
        JobState::Pending | JobState::Placing | JobState::Succeeded | JobState::Failed
    )
}

fn new_owner(state: &State) -> Owner {
    Owner::Acting(View {
        state: state.ledger.state,
        cancel: state.ledger.cancel,
        switch_allowed: state.ledger.switch_allowed,
        source: None,
        target: None,
    })
}

/// Only the present owner learns anything from the row but that it isn't its own.
fn reread(state: &mut State, epoch: u8) -> Option<()> {
    let ledger = state.ledger;
    if ledger.epoch != epoch {
        return None;
    }
    let view = view(state.owners.get_mut(usize::from(epoch) - 1)?)?;
    view.state = ledger.state;
    view.cancel = ledger.cancel;
    view.switch_allowed = ledger.switch_allowed;
    Some(())
}

fn lose(owner: &mut Owner, side: Side) -> Option<()> {
    let view = view(owner)?;
    match side {
        Side::Source => view.source.take().map(drop),
        Side::Target => view.target.take().map(drop),
    }
}
