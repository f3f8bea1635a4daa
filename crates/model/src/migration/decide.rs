//! Coordinator's half of a migration: from what is recorded and reported to the next action.
//!
//! Never waits, never reads a clock, never talks. Driven by `migration-coordinator/src/drive.rs`.
//! Asked again after a crash it answers the same, so recovery needs no code of its own.

mod over;
mod undo;

use super::convergence::Verdict;
use super::fact::{SourceFact, TargetFact};
use super::job::JobState;
use super::source::SourceState;
use super::target::TargetState;
use over::handed_over;
use std::fmt;
use undo::aborting;

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

/// Why a job failed that was handed over: by post-copy, whose source was lost too early.
pub const MEMORY_LOST: &str =
    "the guest ended before all its memory had arrived; the machine starts again from its disk";

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
    /// Target: end the guest that went on, because the rest of its memory is lost.
    AbandonTarget,
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
    /// The guest runs on the target, and the rest of its memory follows.
    MemoryFollowing,
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
            Self::MemoryFollowing => "MemoryFollowing",
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
            Self::MemoryFollowing => {
                "the guest runs on the target, and the rest of its memory follows"
            }
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
        JobState::HandedOver => handed_over(job, source, target_state),
        JobState::Aborting => aborting(job, source, target_state),
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
        TargetState::Loaded
        | TargetState::Continuing
        | TargetState::Fetching
        | TargetState::Running
        | TargetState::MemoryLost => abort("the target is further than the ledger"),
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
        SourceState::Completed | SourceState::Serving => {
            abort("the source stopped without permission")
        }
        SourceState::Resumed
        | SourceState::Lost
        | SourceState::Retired
        | SourceState::ServerLost => abort(&source_ended(source)),
    }
}

fn switch_allowed(job: &Job, source: Option<&SourceFact>, target: Option<&TargetFact>) -> Action {
    if let Some(target) = target {
        if let Some(settled) = went_on(target.state, "the target runs") {
            return settled;
        }
        if is_lost(target.state) {
            return abort(&copy_lost(source, target));
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
        SourceState::Completed | SourceState::Serving if source.allowed && target.is_none() => {
            Action::Wait(WaitReason::TargetSilent)
        }
        SourceState::Completed | SourceState::Serving if source.allowed => {
            Action::Wait(WaitReason::ProofUnderWay)
        }
        SourceState::Completed | SourceState::Serving => {
            abort("the source stopped without permission")
        }
        SourceState::Absent => abort("the source has no record of the copy"),
        SourceState::Resumed | SourceState::Lost | SourceState::ServerLost => {
            abort(&source_ended(source))
        }
        SourceState::Retired => Action::Wait(WaitReason::Contradiction),
    }
}

/// What follows from a target that is past the point of no return; `None` from one that is not.
fn went_on(target: TargetState, runs: &str) -> Option<Action> {
    Some(match target {
        TargetState::Running | TargetState::Fetching => record(JobState::HandedOver, runs),
        TargetState::Lost { continued: true } | TargetState::MemoryLost => {
            record(JobState::HandedOver, "the target ran, and died")
        }
        TargetState::Continuing => Action::Wait(WaitReason::TargetContinuing),
        TargetState::Absent
        | TargetState::Preparing
        | TargetState::Prepared
        | TargetState::Loaded
        | TargetState::Discarded
        | TargetState::Lost { continued: false } => return None,
    })
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
