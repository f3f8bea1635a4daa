//! Undoing a job: in which order both hosts give up what they have, and when it is too late for that.

use super::super::fact::SourceFact;
use super::super::job::JobState;
use super::super::source::SourceState;
use super::super::target::TargetState;
use super::{
    Action, BOTH_FENCED, Command, Job, SOURCE_FENCED, TARGET_MAY_HAVE_RUN, WaitReason, record,
    went_on,
};

/// The source first: once it has resumed it can never complete, and the target never get a proof.
pub(super) fn aborting(
    job: &Job,
    source: Option<&SourceFact>,
    target: Option<TargetState>,
) -> Action {
    if let Some(settled) = target.and_then(|target| went_on(target, "too late to undo")) {
        return settled;
    }
    match source.map(|fact| fact.state) {
        None if job.source_fenced => undo_fenced(job, target),
        None if target.is_none() && job.switch_allowed => record(
            JobState::NeedsFencing,
            "neither host answers after the switch was allowed",
        ),
        None => Action::Wait(WaitReason::SourceSilent),
        Some(SourceState::Absent | SourceState::Copying | SourceState::Switching) => {
            Action::Command(Command::CancelCopy)
        }
        // Its guest can go on nowhere but at the target, so what wants to undo that is too late.
        Some(SourceState::Serving)
            if source.is_some_and(|fact| fact.allowed)
                && matches!(target, Some(TargetState::Prepared | TargetState::Loaded)) =>
        {
            Action::Wait(WaitReason::ProofUnderWay)
        }
        Some(SourceState::Completed | SourceState::Serving | SourceState::ServerLost) => {
            undo_completed(job, target)
        }
        Some(state @ (SourceState::Resumed | SourceState::Lost)) => {
            undo_ended(job, Some(state), target)
        }
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
        Some(target) => discard(target),
    }
}

/// A target that continues is let be; any other leaves a tombstone.
fn discard(target: TargetState) -> Action {
    match target {
        TargetState::Absent
        | TargetState::Preparing
        | TargetState::Prepared
        | TargetState::Loaded
        | TargetState::Lost { .. }
        | TargetState::Discarded => Action::Command(Command::DiscardTarget),
        TargetState::Continuing
        | TargetState::Fetching
        | TargetState::Running
        | TargetState::MemoryLost => Action::Wait(WaitReason::TargetContinuing),
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
            | TargetState::Fetching
            | TargetState::Running
            | TargetState::Lost { continued: true }
            | TargetState::MemoryLost,
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
        Some(target) => discard(target),
    }
}
