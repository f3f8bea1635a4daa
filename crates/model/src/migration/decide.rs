//! Coordinator's half of a migration: from what is recorded and reported to the next action.
//!
//! Never waits, never reads a clock, never talks. Driven by `migration-coordinator/src/drive.rs`.
//! Asked again after a crash it answers the same, so recovery needs no code of its own.

use super::convergence::Verdict;
use super::fact::{SourceFact, TargetFact};
use super::job::JobState;
use super::source::SourceState;
use super::target::TargetState;
use std::fmt;

/// What the decision needs of the recorded job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Recorded state.
    pub state: JobState,
    /// Why the job is to be undone; `None` while nobody wants that.
    pub cancel: Option<String>,
    /// Whether the permission to switch over was ever recorded.
    pub switch_allowed: bool,
    /// Whether the copy may go on, by its measurements.
    pub verdict: Verdict,
    /// Whether the source host was declared dead since the job began. It only counts while the
    /// host is silent: one that answers speaks for itself.
    pub source_fenced: bool,
    /// Whether the target host was declared dead since the job began; counts likewise.
    pub target_fenced: bool,
}

/// Why a job failed whose machine may have run on a target that was then fenced: its memory is
/// gone on both sides, so whoever records this also takes the machine from its source.
pub const TARGET_MAY_HAVE_RUN: &str =
    "the target was fenced and may have run; the machine starts again from its disk";

const SOURCE_FENCED: &str = "the source was fenced";
const TARGET_FENCED: &str = "the target was fenced";
const BOTH_FENCED: &str = "both hosts were fenced";

/// The next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask the queue; record `Placing` when it is this job's turn.
    TakeTurn,
    /// Ask the scheduler for a target; record `Reserved` when it holds one.
    Reserve,
    /// Record a transition.
    Record {
        /// The next state.
        to: JobState,
        /// Why, for the history.
        reason: String,
    },
    /// Tell a host.
    Command(Command),
    /// Nothing to do until a fact changes.
    Wait(WaitReason),
    /// Nothing to do ever again.
    Done,
}

/// What a host is told. Every command may be repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Target: start a paused, listening copy.
    PrepareTarget,
    /// Source: start the copy.
    StartCopy,
    /// Source: the machine may stop for good.
    AllowSwitchover,
    /// Source: undo the copy.
    CancelCopy,
    /// Target: destroy the copy and refuse the job for ever.
    DiscardTarget,
    /// Source: go on after the target's tombstone.
    RevertSource,
    /// Source: remove what is left.
    RetireSource,
}

/// What a job waits for; said in its condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WaitReason {
    /// The source host doesn't answer.
    SourceSilent,
    /// The target host doesn't answer.
    TargetSilent,
    /// The target's QEMU is starting.
    TargetStarting,
    /// Memory is being copied.
    CopyInProgress,
    /// The guest is stopped and the last pages travel.
    Switchover,
    /// The source stopped complete; its proof is on the way to the target.
    ProofUnderWay,
    /// The target is about to continue.
    TargetContinuing,
    /// The source host is cancelling.
    SourceCancelling,
    /// Neither side can be resumed without a fence.
    Fencing,
    /// The hosts' words contradict the ledger: a person must look.
    Contradiction,
}

impl WaitReason {
    /// For the condition's `reason`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SourceSilent => "SourceSilent",
            Self::TargetSilent => "TargetSilent",
            Self::TargetStarting => "TargetStarting",
            Self::CopyInProgress => "CopyInProgress",
            Self::Switchover => "Switchover",
            Self::ProofUnderWay => "ProofUnderWay",
            Self::TargetContinuing => "TargetContinuing",
            Self::SourceCancelling => "SourceCancelling",
            Self::Fencing => "NeedsFencing",
            Self::Contradiction => "Contradiction",
        }
    }
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SourceSilent => "the source host does not answer",
            Self::TargetSilent => "the target host does not answer",
            Self::TargetStarting => "the target is starting QEMU",
            Self::CopyInProgress => "memory is being copied",
            Self::Switchover => "the last pages are being copied",
            Self::ProofUnderWay => "the source's proof is on its way to the target",
            Self::TargetContinuing => "the target is continuing the guest",
            Self::SourceCancelling => "the source is cancelling the copy",
            Self::Fencing => "neither host can be resumed safely; a fence must decide",
            Self::Contradiction => "the hosts contradict the ledger; a person must look",
        })
    }
}

/// The next action for `job`, given what each host last said; `None` is a host that is silent.
pub fn decide(job: &Job, source: Option<&SourceFact>, target: Option<&TargetFact>) -> Action {
    let source_state = source.map(|fact| fact.state);
    let target_state = target.map(|fact| fact.state);
    match job.state {
        JobState::Pending | JobState::Placing if job.source_fenced && source.is_none() => {
            record(JobState::Failed, SOURCE_FENCED)
        }
        JobState::Pending => unplaced(job, Action::TakeTurn),
        JobState::Placing => unplaced(job, Action::Reserve),
        JobState::Reserved => or_abort(job, record(JobState::Preparing, "a target is reserved")),
        JobState::Preparing => preparing(job, target),
        JobState::Prepared => or_abort(job, record(JobState::Copying, "the target listens")),
        JobState::Copying => copying(job, source, target),
        JobState::SwitchAllowed => switch_allowed(job, source, target),
        JobState::HandedOver => handed_over(job, source_state),
        JobState::Aborting => aborting(job, source_state, target_state),
        JobState::NeedsFencing => needs_fencing(job, source_state, target_state),
        JobState::Succeeded | JobState::Failed => Action::Done,
    }
}

fn unplaced(job: &Job, otherwise: Action) -> Action {
    match &job.cancel {
        Some(why) => record(JobState::Failed, &aborted(why)),
        None => otherwise,
    }
}

fn or_abort(job: &Job, otherwise: Action) -> Action {
    match &job.cancel {
        Some(why) => abort(&aborted(why)),
        None => otherwise,
    }
}

fn preparing(job: &Job, target: Option<&TargetFact>) -> Action {
    if let Some(why) = &job.cancel {
        return abort(&aborted(why));
    }
    let Some(target) = target else {
        return silent_target(job);
    };
    match target.state {
        TargetState::Absent => Action::Command(Command::PrepareTarget),
        TargetState::Preparing => Action::Wait(WaitReason::TargetStarting),
        TargetState::Prepared => record(JobState::Prepared, "the target listens"),
        TargetState::Discarded | TargetState::Lost { .. } => abort(&target_lost(target)),
        // Nothing was copied, so nothing can be loaded.
        TargetState::Loaded | TargetState::Continuing | TargetState::Running => {
            abort("the target is further than the ledger")
        }
    }
}

fn copying(job: &Job, source: Option<&SourceFact>, target: Option<&TargetFact>) -> Action {
    if let Some(why) = &job.cancel {
        return abort(&aborted(why));
    }
    if let Some(target) = target.filter(|fact| is_lost(fact.state)) {
        return abort(&copy_lost(source, target));
    }
    if job.target_fenced && target.is_none() {
        return abort(TARGET_FENCED);
    }
    let Some(source) = source else {
        return silent_source(job);
    };
    match source.state {
        SourceState::Absent => Action::Command(Command::StartCopy),
        SourceState::Copying => match &job.verdict {
            Verdict::GiveUp(why) => abort(why),
            // Allowed early: the source stops only when the rest fits its downtime limit.
            Verdict::GoOn => record(JobState::SwitchAllowed, "the copy is under way"),
        },
        SourceState::Switching => record(JobState::SwitchAllowed, "the rest fits the limit"),
        SourceState::Completed => abort("the source stopped without permission"),
        SourceState::Resumed | SourceState::Lost | SourceState::Retired => {
            abort(&source_ended(source))
        }
    }
}

fn switch_allowed(job: &Job, source: Option<&SourceFact>, target: Option<&TargetFact>) -> Action {
    if let Some(target) = target {
        match target.state {
            TargetState::Running => return record(JobState::HandedOver, "the target runs"),
            TargetState::Lost { continued: true } => {
                return record(JobState::HandedOver, "the target ran, and died");
            }
            TargetState::Continuing => return Action::Wait(WaitReason::TargetContinuing),
            TargetState::Discarded | TargetState::Lost { continued: false } => {
                return abort(&copy_lost(source, target));
            }
            TargetState::Absent
            | TargetState::Preparing
            | TargetState::Prepared
            | TargetState::Loaded => {}
        }
    } else if job.target_fenced {
        return abort(TARGET_FENCED);
    }
    if let Some(why) = &job.cancel {
        return abort(&aborted(why));
    }
    let Some(source) = source else {
        return silent_source(job);
    };
    match source.state {
        SourceState::Copying => match &job.verdict {
            Verdict::GiveUp(why) => abort(why),
            Verdict::GoOn if source.allowed => Action::Wait(WaitReason::CopyInProgress),
            Verdict::GoOn => Action::Command(Command::AllowSwitchover),
        },
        SourceState::Switching if source.allowed => Action::Wait(WaitReason::Switchover),
        SourceState::Switching => Action::Command(Command::AllowSwitchover),
        SourceState::Completed if source.allowed && target.is_none() => {
            Action::Wait(WaitReason::TargetSilent)
        }
        SourceState::Completed if source.allowed => Action::Wait(WaitReason::ProofUnderWay),
        SourceState::Completed => abort("the source stopped without permission"),
        SourceState::Absent => abort("the source has no record of the copy"),
        SourceState::Resumed | SourceState::Lost => abort(&source_ended(source)),
        SourceState::Retired => Action::Wait(WaitReason::Contradiction),
    }
}

fn silent_source(job: &Job) -> Action {
    if job.source_fenced {
        abort(SOURCE_FENCED)
    } else {
        Action::Wait(WaitReason::SourceSilent)
    }
}

fn silent_target(job: &Job) -> Action {
    if job.target_fenced {
        abort(TARGET_FENCED)
    } else {
        Action::Wait(WaitReason::TargetSilent)
    }
}

fn handed_over(job: &Job, source: Option<SourceState>) -> Action {
    match source {
        // What it left is an old epoch's; its agent removes that if the host ever comes back.
        None if job.source_fenced => record(JobState::Succeeded, SOURCE_FENCED),
        None => Action::Wait(WaitReason::SourceSilent),
        Some(SourceState::Completed | SourceState::Lost) => Action::Command(Command::RetireSource),
        Some(SourceState::Retired | SourceState::Absent) => {
            record(JobState::Succeeded, "the source is clean")
        }
        Some(SourceState::Copying | SourceState::Switching | SourceState::Resumed) => {
            Action::Wait(WaitReason::Contradiction)
        }
    }
}

/// The source first: once it has resumed it can never complete, and the target never get a proof.
fn aborting(job: &Job, source: Option<SourceState>, target: Option<TargetState>) -> Action {
    match target {
        Some(TargetState::Running) => return record(JobState::HandedOver, "too late to undo"),
        Some(TargetState::Lost { continued: true }) => {
            return record(JobState::HandedOver, "the target ran, and died");
        }
        Some(TargetState::Continuing) => return Action::Wait(WaitReason::TargetContinuing),
        Some(
            TargetState::Absent
            | TargetState::Preparing
            | TargetState::Prepared
            | TargetState::Loaded
            | TargetState::Discarded
            | TargetState::Lost { continued: false },
        )
        | None => {}
    }
    match source {
        None if job.source_fenced => undo_fenced(job, target),
        None if target.is_none() && job.switch_allowed => record(
            JobState::NeedsFencing,
            "neither host answers after the switch was allowed",
        ),
        None => Action::Wait(WaitReason::SourceSilent),
        Some(SourceState::Absent | SourceState::Copying | SourceState::Switching) => {
            Action::Command(Command::CancelCopy)
        }
        Some(SourceState::Completed) => undo_completed(job, target),
        Some(SourceState::Resumed | SourceState::Lost) => undo_ended(job, source, target),
        Some(SourceState::Retired) => undo_retired(job, target),
    }
}

/// The source is fenced: its machine is lost, and the target's copy too unless that continued.
fn undo_fenced(job: &Job, target: Option<TargetState>) -> Action {
    match target {
        Some(TargetState::Discarded) => record(JobState::Failed, SOURCE_FENCED),
        Some(_) => Action::Command(Command::DiscardTarget),
        None if job.target_fenced => record(JobState::Failed, BOTH_FENCED),
        None if job.switch_allowed => record(
            JobState::NeedsFencing,
            "the source was fenced and the target is silent",
        ),
        None => Action::Wait(WaitReason::TargetSilent),
    }
}

/// The source is stopped complete: it may go on only after the target's tombstone. A fence is
/// none: the target may have run before it died, and have written to the machine's disks.
///
/// What is left on the source goes before the machine starts again: a revert that was ordered after
/// a tombstone may still be on its way, and must find nothing that it could continue.
fn undo_completed(job: &Job, target: Option<TargetState>) -> Action {
    match target {
        None if job.target_fenced => Action::Command(Command::RetireSource),
        None => record(
            JobState::NeedsFencing,
            "the target is silent and may hold the proof",
        ),
        Some(TargetState::Discarded) => Action::Command(Command::RevertSource),
        Some(
            TargetState::Absent
            | TargetState::Preparing
            | TargetState::Prepared
            | TargetState::Loaded
            | TargetState::Lost { .. },
        ) => Action::Command(Command::DiscardTarget),
        Some(TargetState::Continuing | TargetState::Running) => {
            Action::Wait(WaitReason::TargetContinuing)
        }
    }
}

/// The source removed what it had, because the target is fenced, or because it ran and nobody wrote
/// that down. Without the target the machine has only its disk.
fn undo_retired(job: &Job, target: Option<TargetState>) -> Action {
    match target {
        Some(TargetState::Discarded) => record(JobState::Failed, TARGET_MAY_HAVE_RUN),
        None if job.target_fenced => record(JobState::Failed, TARGET_MAY_HAVE_RUN),
        None => Action::Wait(WaitReason::TargetSilent),
        // It came back after its fence, and its log says that it never ran.
        Some(
            TargetState::Preparing
            | TargetState::Prepared
            | TargetState::Loaded
            | TargetState::Lost { continued: false },
        ) => Action::Command(Command::DiscardTarget),
        // A target without a log may have run.
        Some(
            TargetState::Absent
            | TargetState::Continuing
            | TargetState::Running
            | TargetState::Lost { continued: true },
        ) => Action::Wait(WaitReason::Contradiction),
    }
}

/// The source's copy ended: the target can't continue unless the source died after its proof left.
fn undo_ended(job: &Job, source: Option<SourceState>, target: Option<TargetState>) -> Action {
    match target {
        Some(TargetState::Discarded) => record(JobState::Failed, "undone"),
        // No proof can ever be made, so what the silent target holds is waste that it reaps itself.
        None if source == Some(SourceState::Resumed) => record(JobState::Failed, "undone"),
        None if job.target_fenced => record(JobState::Failed, TARGET_MAY_HAVE_RUN),
        None => Action::Wait(WaitReason::TargetSilent),
        Some(
            TargetState::Absent
            | TargetState::Preparing
            | TargetState::Prepared
            | TargetState::Loaded
            | TargetState::Lost { .. },
        ) => Action::Command(Command::DiscardTarget),
        Some(TargetState::Continuing | TargetState::Running) => {
            Action::Wait(WaitReason::TargetContinuing)
        }
    }
}

/// A target that continued is handed over by `aborting`, which also weighs the fences.
fn needs_fencing(job: &Job, source: Option<SourceState>, target: Option<TargetState>) -> Action {
    if source.is_some() && target.is_some() {
        return record(JobState::Aborting, "both hosts answer again");
    }
    let source_known = source.is_some() || job.source_fenced;
    let target_known = target.is_some() || job.target_fenced;
    if source_known && target_known {
        return record(JobState::Aborting, "a fence decides for the silent host");
    }
    Action::Wait(WaitReason::Fencing)
}

const fn is_lost(state: TargetState) -> bool {
    matches!(state, TargetState::Discarded | TargetState::Lost { .. })
}

fn target_lost(target: &TargetFact) -> String {
    if target.reason.is_empty() {
        "the target lost its copy".to_owned()
    } else {
        format!("the target lost its copy: {}", target.reason)
    }
}

/// A target also loses its copy when its source gave up, and the source knows why.
fn copy_lost(source: Option<&SourceFact>, target: &TargetFact) -> String {
    let lost = target_lost(target);
    match source {
        Some(source) if !source.reason.is_empty() => format!("{}; {lost}", source.reason),
        Some(_) | None => lost,
    }
}

fn source_ended(source: &SourceFact) -> String {
    if source.reason.is_empty() {
        "the copy ended before it was complete".to_owned()
    } else {
        source.reason.clone()
    }
}

/// KubeVirt's words, and why.
fn aborted(why: &str) -> String {
    format!("Live migration has been aborted: {why}")
}

fn record(to: JobState, reason: &str) -> Action {
    Action::Record {
        to,
        reason: reason.to_owned(),
    }
}

fn abort(reason: &str) -> Action {
    record(JobState::Aborting, reason)
}

#[cfg(test)]
mod tests;
