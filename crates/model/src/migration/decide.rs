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

/// The source's copy was ended after its target was fenced; the target may have been heard since.
fn undo_retired(job: &Job, target: Option<TargetState>) -> Action {
    match target {
        Some(TargetState::Discarded) => record(JobState::Failed, TARGET_MAY_HAVE_RUN),
        None if job.target_fenced => record(JobState::Failed, TARGET_MAY_HAVE_RUN),
        None => record(
            JobState::NeedsFencing,
            "the target is silent and may have run",
        ),
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
/// none: the target may have run before it died, and have written to the machine's disks. What the
/// source has is worth nothing then.
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
mod tests {
    use super::*;
    use crate::migration::fact::Progress;

    fn job(state: JobState) -> Job {
        let switch_allowed = matches!(state, JobState::SwitchAllowed | JobState::HandedOver);
        Job {
            state,
            cancel: None,
            switch_allowed,
            verdict: Verdict::GoOn,
            source_fenced: false,
            target_fenced: false,
        }
    }

    fn cancelled(state: JobState) -> Job {
        Job {
            cancel: Some("cancelled".into()),
            ..job(state)
        }
    }

    fn source(state: SourceState, allowed: bool) -> SourceFact {
        SourceFact {
            state,
            allowed,
            reason: String::new(),
            progress: Progress::default(),
            stopped_at_us: None,
            completed_at_us: None,
        }
    }

    fn target(state: TargetState) -> TargetFact {
        TargetFact {
            state,
            reason: String::new(),
            address: None,
            running_at_us: None,
        }
    }

    fn next(job: &Job, s: Option<(SourceState, bool)>, t: Option<TargetState>) -> Action {
        decide(
            job,
            s.map(|(state, allowed)| source(state, allowed)).as_ref(),
            t.map(target).as_ref(),
        )
    }

    fn to(action: &Action) -> Option<JobState> {
        match action {
            Action::Record { to, .. } => Some(*to),
            Action::TakeTurn
            | Action::Reserve
            | Action::Command(_)
            | Action::Wait(_)
            | Action::Done => None,
        }
    }

    fn sources() -> Vec<Option<(SourceState, bool)>> {
        use SourceState as S;
        let states = [
            S::Absent,
            S::Copying,
            S::Switching,
            S::Completed,
            S::Resumed,
            S::Retired,
            S::Lost,
        ];
        let mut all = vec![None];
        all.extend(
            states
                .into_iter()
                .flat_map(|s| [Some((s, false)), Some((s, true))]),
        );
        all
    }

    fn targets() -> Vec<Option<TargetState>> {
        use TargetState as T;
        vec![
            None,
            Some(T::Absent),
            Some(T::Preparing),
            Some(T::Prepared),
            Some(T::Loaded),
            Some(T::Continuing),
            Some(T::Running),
            Some(T::Discarded),
            Some(T::Lost { continued: false }),
            Some(T::Lost { continued: true }),
        ]
    }

    /// Every record of a job: with and without the wish to cancel, permission and each fence.
    fn jobs() -> Vec<Job> {
        let mut all = Vec::new();
        for state in JobState::ALL {
            for bits in 0..16_u8 {
                let wish = if bits & 1 == 0 { job } else { cancelled };
                let recorded = wish(state);
                all.push(Job {
                    switch_allowed: recorded.switch_allowed || bits & 2 != 0,
                    source_fenced: bits & 4 != 0,
                    target_fenced: bits & 8 != 0,
                    ..recorded
                });
            }
        }
        all
    }

    /// Every combination of record and facts.
    fn every_case(mut check: impl FnMut(&Job, Option<(SourceState, bool)>, Option<TargetState>)) {
        for job in jobs() {
            for s in sources() {
                for t in targets() {
                    check(&job, s, t);
                }
            }
        }
    }

    #[test]
    fn every_recorded_step_is_a_legal_edge() {
        every_case(|job, s, t| {
            if let Some(to) = to(&next(job, s, t)) {
                assert!(
                    job.state.may_become(to),
                    "{:?} {s:?} {t:?} -> {to}",
                    job.state
                );
            }
        });
    }

    #[test]
    fn a_source_is_reverted_only_after_the_targets_tombstone() {
        every_case(|job, s, t| {
            if next(job, s, t) == Action::Command(Command::RevertSource) {
                assert_eq!(t, Some(TargetState::Discarded));
            }
        });
    }

    #[test]
    fn permission_is_given_only_after_it_is_recorded() {
        every_case(|job, s, t| {
            if next(job, s, t) == Action::Command(Command::AllowSwitchover) {
                assert_eq!(job.state, JobState::SwitchAllowed);
            }
        });
    }

    #[test]
    fn a_source_is_retired_only_after_the_hand_over_or_its_targets_fence() {
        every_case(|job, s, t| {
            if next(job, s, t) == Action::Command(Command::RetireSource) {
                let fenced = job.target_fenced && t.is_none();
                assert!(fenced || job.state == JobState::HandedOver);
            }
        });
    }

    #[test]
    fn a_hand_over_needs_a_target_that_ran() {
        every_case(|job, s, t| {
            if to(&next(job, s, t)) == Some(JobState::HandedOver) {
                let ran = [TargetState::Running, TargetState::Lost { continued: true }];
                assert!(t.is_some_and(|t| ran.contains(&t)), "{s:?} {t:?}");
            }
        });
    }

    #[test]
    fn a_job_never_fails_while_its_target_may_run() {
        every_case(|job, s, t| {
            if to(&next(job, s, t)) == Some(JobState::Failed) && job.state == JobState::Aborting {
                let silent_but_refuted =
                    t.is_none() && s.is_some_and(|(s, _)| s == SourceState::Resumed);
                let dead = t.is_none() && job.target_fenced;
                assert!(
                    silent_but_refuted || dead || t == Some(TargetState::Discarded),
                    "{job:?} {s:?} {t:?}"
                );
            }
        });
    }

    fn without_fences(job: &Job) -> Job {
        Job {
            source_fenced: false,
            target_fenced: false,
            ..job.clone()
        }
    }

    #[test]
    fn a_fence_says_nothing_about_a_host_that_answers() {
        every_case(|job, s, t| {
            let source_counts = job.source_fenced && s.is_none();
            let target_counts = job.target_fenced && t.is_none();
            if !source_counts && !target_counts {
                assert_eq!(
                    next(job, s, t),
                    next(&without_fences(job), s, t),
                    "{job:?} {s:?} {t:?}"
                );
            }
        });
    }

    #[test]
    fn a_fence_never_reverts_a_source_nor_lets_a_machine_move_on() {
        every_case(|job, s, t| {
            let fenced = next(job, s, t);
            if fenced == next(&without_fences(job), s, t) {
                return;
            }
            let undoing = [
                JobState::Aborting,
                JobState::Failed,
                // The hand-over was recorded before the fence.
                JobState::Succeeded,
                JobState::NeedsFencing,
            ];
            let fine = match &fenced {
                Action::Record { to, .. } => undoing.contains(to),
                Action::Command(Command::DiscardTarget) => true,
                // What is stopped on the source is older than what the target may have done.
                Action::Command(command) => {
                    let complete = s.is_some_and(|(s, _)| s == SourceState::Completed);
                    *command == Command::RetireSource && job.target_fenced && complete
                }
                Action::Wait(reason) => *reason == WaitReason::TargetSilent,
                Action::TakeTurn | Action::Reserve | Action::Done => false,
            };
            assert!(fine, "{job:?} {s:?} {t:?} -> {fenced:?}");
        });
    }

    #[test]
    fn a_silent_fenced_target_never_gets_permission_nor_a_copy() {
        every_case(|job, s, t| {
            let under_way = [
                JobState::Preparing,
                JobState::Copying,
                JobState::SwitchAllowed,
            ];
            if job.target_fenced && t.is_none() && under_way.contains(&job.state) {
                let step = next(job, s, t);
                assert_eq!(
                    to(&step),
                    Some(JobState::Aborting),
                    "{job:?} {s:?} {step:?}"
                );
            }
        });
    }

    #[test]
    fn a_machine_stays_on_its_source_when_the_target_is_fenced_before_the_copy_is_complete() {
        for switch_allowed in [false, true] {
            let job = Job {
                target_fenced: true,
                switch_allowed,
                ..job(JobState::Aborting)
            };
            for state in [
                SourceState::Absent,
                SourceState::Copying,
                SourceState::Switching,
            ] {
                assert_eq!(
                    next(&job, Some((state, switch_allowed)), None),
                    Action::Command(Command::CancelCopy)
                );
            }
            assert_eq!(
                next(&job, Some((SourceState::Resumed, false)), None),
                record(JobState::Failed, "undone")
            );
        }
    }

    #[test]
    fn a_complete_source_never_goes_on_when_the_target_is_fenced() {
        every_case(|job, s, t| {
            let complete = s.is_some_and(|(s, _)| s == SourceState::Completed);
            if job.state == JobState::Aborting && job.target_fenced && t.is_none() && complete {
                assert_eq!(next(job, s, t), Action::Command(Command::RetireSource));
            }
        });
    }

    #[test]
    fn what_a_fenced_target_holds_when_it_is_heard_again_is_weighed_by_whether_it_ran() {
        let job = job(JobState::Aborting);
        let after = |t| next(&job, Some((SourceState::Retired, true)), t);
        let ran = [TargetState::Running, TargetState::Lost { continued: true }];
        for state in ran {
            assert_eq!(to(&after(Some(state))), Some(JobState::HandedOver));
        }
        let discard = Action::Command(Command::DiscardTarget);
        assert_eq!(after(Some(TargetState::Loaded)), discard);
        assert_eq!(
            after(Some(TargetState::Discarded)),
            record(JobState::Failed, TARGET_MAY_HAVE_RUN)
        );
        assert_eq!(to(&after(None)), Some(JobState::NeedsFencing));
    }

    #[test]
    fn a_machine_starts_again_from_its_disk_only_when_no_host_has_a_copy() {
        every_case(|job, s, t| {
            if next(job, s, t) == record(JobState::Failed, TARGET_MAY_HAVE_RUN) {
                let dead = job.target_fenced && t.is_none();
                assert!(dead || t == Some(TargetState::Discarded), "{t:?}");
                let over = [SourceState::Retired, SourceState::Lost];
                assert!(s.is_some_and(|(s, _)| over.contains(&s)), "{s:?}");
            }
        });
    }

    #[test]
    fn a_fenced_sources_copy_is_discarded_unless_it_continued() {
        every_case(|job, s, t| {
            if job.state != JobState::Aborting || !job.source_fenced || s.is_some() {
                return;
            }
            let expected = match t {
                Some(TargetState::Running) => record(JobState::HandedOver, "too late to undo"),
                Some(TargetState::Lost { continued: true }) => {
                    record(JobState::HandedOver, "the target ran, and died")
                }
                Some(TargetState::Continuing) => Action::Wait(WaitReason::TargetContinuing),
                Some(TargetState::Discarded) => record(JobState::Failed, SOURCE_FENCED),
                Some(_) => Action::Command(Command::DiscardTarget),
                None if job.target_fenced => record(JobState::Failed, BOTH_FENCED),
                None if job.switch_allowed => record(
                    JobState::NeedsFencing,
                    "the source was fenced and the target is silent",
                ),
                None => Action::Wait(WaitReason::TargetSilent),
            };
            assert_eq!(next(job, s, t), expected, "{job:?} {t:?}");
        });
    }

    /// Facts that stay as they are never send a job round in a circle.
    #[test]
    fn a_fence_settles_a_job() {
        every_case(|job, s, t| {
            let mut job = job.clone();
            let mut steps = 0;
            while let Action::Record { to, .. } = next(&job, s, t) {
                job.state = to;
                job.switch_allowed |= to == JobState::SwitchAllowed;
                steps += 1;
                assert!(steps <= JobState::ALL.len(), "{job:?} {s:?} {t:?}");
            }
            let silent = s.is_none() && t.is_none();
            let started = !matches!(
                job.state,
                JobState::Pending | JobState::Placing | JobState::HandedOver
            );
            if silent && job.source_fenced && job.target_fenced && started {
                assert!(job.state.is_final(), "{job:?}");
            }
        });
    }

    #[test]
    fn a_cancelled_job_gives_no_order_that_moves_it_on() {
        every_case(|job, s, t| {
            let onward = [
                Command::PrepareTarget,
                Command::StartCopy,
                Command::AllowSwitchover,
            ]
            .map(Action::Command);
            if job.cancel.is_some() {
                assert!(
                    !onward.contains(&next(job, s, t)),
                    "{:?} {s:?} {t:?}",
                    job.state
                );
            }
        });
    }

    #[test]
    fn a_source_that_stopped_without_permission_is_reverted_not_handed_over() {
        let at = next(
            &job(JobState::Copying),
            Some((SourceState::Completed, false)),
            None,
        );
        assert_eq!(to(&at), Some(JobState::Aborting));
        let completed = Some((SourceState::Completed, false));
        let aborting = job(JobState::Aborting);
        assert_eq!(
            next(&aborting, completed, Some(TargetState::Prepared)),
            Action::Command(Command::DiscardTarget)
        );
        assert_eq!(
            next(&aborting, completed, Some(TargetState::Discarded)),
            Action::Command(Command::RevertSource)
        );
    }

    #[test]
    fn a_cancel_that_comes_too_late_ends_in_a_hand_over() {
        let at = next(
            &cancelled(JobState::Aborting),
            Some((SourceState::Completed, true)),
            Some(TargetState::Running),
        );
        assert_eq!(to(&at), Some(JobState::HandedOver));
    }
}
