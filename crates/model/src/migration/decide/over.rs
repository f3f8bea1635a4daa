//! A job whose machine is the target's: what is left at the source, and in post-copy what is left to fetch.

use super::super::fact::SourceFact;
use super::super::job::JobState;
use super::super::source::SourceState;
use super::super::target::TargetState;
use super::{Action, Command, Job, MEMORY_LOST, SOURCE_FENCED, WaitReason, record};

/// In post-copy the source is needed until the target has everything, and so is the target's word.
pub(super) fn handed_over(
    job: &Job,
    source: Option<&SourceFact>,
    target: Option<TargetState>,
) -> Action {
    match target {
        Some(TargetState::Fetching) => fetching(job, source),
        Some(TargetState::MemoryLost) => leave(job, source, (JobState::Failed, MEMORY_LOST)),
        None if !job.target_fenced => unheard(job, source),
        // It went on, or the job would not be here.
        Some(
            TargetState::Absent
            | TargetState::Preparing
            | TargetState::Prepared
            | TargetState::Loaded
            | TargetState::Continuing
            | TargetState::Discarded
            | TargetState::Lost { continued: false },
        ) if source.is_some_and(is_server) => Action::Wait(WaitReason::Contradiction),
        Some(
            TargetState::Absent
            | TargetState::Preparing
            | TargetState::Prepared
            | TargetState::Loaded
            | TargetState::Continuing
            | TargetState::Running
            | TargetState::Discarded
            | TargetState::Lost { .. },
        )
        | None => leave(job, source, (JobState::Succeeded, "the source is clean")),
    }
}

/// The target is silent: whether it has everything is known of a source that didn't post-copy.
fn unheard(job: &Job, source: Option<&SourceFact>) -> Action {
    match source {
        None if job.source_fenced => Action::Wait(WaitReason::TargetSilent),
        Some(source) if source.post_copied && source.state != SourceState::Completed => {
            Action::Wait(WaitReason::TargetSilent)
        }
        Some(_) | None => leave(job, source, (JobState::Succeeded, "the source is clean")),
    }
}

/// The guest runs on the target, and needs what its source still has.
fn fetching(job: &Job, source: Option<&SourceFact>) -> Action {
    match source.map(|fact| fact.state) {
        None if job.source_fenced => Action::Command(Command::AbandonTarget),
        None => Action::Wait(WaitReason::SourceSilent),
        Some(SourceState::Serving | SourceState::Completed) => {
            Action::Wait(WaitReason::MemoryFollowing)
        }
        Some(SourceState::ServerLost | SourceState::Lost | SourceState::Retired) => {
            Action::Command(Command::AbandonTarget)
        }
        Some(
            SourceState::Absent
            | SourceState::Copying
            | SourceState::Switching
            | SourceState::Resumed,
        ) => Action::Wait(WaitReason::Contradiction),
    }
}

fn is_server(source: &SourceFact) -> bool {
    matches!(source.state, SourceState::Serving | SourceState::ServerLost)
}

/// Nothing of the source is needed any more: it goes, and the job ends so.
fn leave(job: &Job, source: Option<&SourceFact>, (end, why): (JobState, &str)) -> Action {
    match source.map(|fact| fact.state) {
        // What it left is an old epoch's; its agent removes that if the host ever comes back.
        None if job.source_fenced && end == JobState::Succeeded => record(end, SOURCE_FENCED),
        None if job.source_fenced => record(end, why),
        None => Action::Wait(WaitReason::SourceSilent),
        Some(
            SourceState::Completed
            | SourceState::Lost
            | SourceState::Serving
            | SourceState::ServerLost,
        ) => Action::Command(Command::RetireSource),
        Some(SourceState::Retired | SourceState::Absent) => record(end, why),
        Some(SourceState::Copying | SourceState::Switching | SourceState::Resumed) => {
            Action::Wait(WaitReason::Contradiction)
        }
    }
}
