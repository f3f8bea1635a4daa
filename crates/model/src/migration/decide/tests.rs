//! Every case of a job against every word of its hosts.

use super::*;

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

fn next(job: &Job, s: Option<(SourceState, bool)>, t: Option<TargetState>) -> Action {
    decide(
        job,
        s.map(|(state, allowed)| SourceFact::bare(state, allowed))
            .as_ref(),
        t.map(TargetFact::bare).as_ref(),
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
        S::Serving,
        S::ServerLost,
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
        Some(T::Fetching),
        Some(T::Running),
        Some(T::Discarded),
        Some(T::Lost { continued: false }),
        Some(T::Lost { continued: true }),
        Some(T::MemoryLost),
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
fn a_source_is_retired_only_after_the_hand_over_or_a_fence() {
    every_case(|job, s, t| {
        if next(job, s, t) == Action::Command(Command::RetireSource) {
            let aborting = job.state == JobState::Aborting;
            let fenced = aborting && t.is_none() && job.target_fenced;
            assert!(job.state == JobState::HandedOver || fenced, "{job:?} {t:?}");
        }
    });
}

/// A revert may be on its way since before the target died, and must not find a stopped copy
/// when the machine starts again.
#[test]
fn a_machine_starts_again_only_when_its_source_has_nothing_to_continue() {
    every_case(|job, s, t| {
        if next(job, s, t) == record(JobState::Failed, TARGET_MAY_HAVE_RUN) {
            let nothing = [SourceState::Retired, SourceState::Lost];
            assert!(s.is_some_and(|(s, _)| nothing.contains(&s)), "{s:?}");
        }
    });
}

/// The order to retire is given while the hand-over is written, which may fail.
#[test]
fn a_target_that_ran_unrecorded_and_is_fenced_ends_the_job() {
    let retired = Some((SourceState::Retired, true));
    let fenced = |state| Job {
        target_fenced: true,
        ..job(state)
    };
    let at = next(&fenced(JobState::SwitchAllowed), retired, None);
    assert_eq!(to(&at), Some(JobState::Aborting));
    let at = next(&fenced(JobState::Aborting), retired, None);
    assert_eq!(at, record(JobState::Failed, TARGET_MAY_HAVE_RUN));
    assert_eq!(
        next(&job(JobState::Aborting), retired, None),
        Action::Wait(WaitReason::TargetSilent)
    );
}

#[test]
fn a_hand_over_needs_a_target_that_ran() {
    every_case(|job, s, t| {
        if to(&next(job, s, t)) == Some(JobState::HandedOver) {
            let ran = [
                TargetState::Fetching,
                TargetState::Running,
                TargetState::Lost { continued: true },
                TargetState::MemoryLost,
            ];
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
            Action::Command(command) => {
                let ending = [
                    Command::DiscardTarget,
                    Command::RetireSource,
                    Command::AbandonTarget,
                ];
                ending.contains(command)
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
fn a_complete_source_stays_stopped_when_the_target_is_fenced() {
    every_case(|job, s, t| {
        let complete = s.is_some_and(|(s, _)| s == SourceState::Completed);
        if job.state == JobState::Aborting && job.target_fenced && t.is_none() && complete {
            assert_eq!(next(job, s, t), Action::Command(Command::RetireSource));
        }
    });
}

#[test]
fn only_a_fenced_silent_target_starts_a_machine_again_from_its_disk() {
    every_case(|job, s, t| {
        if next(job, s, t) == record(JobState::Failed, TARGET_MAY_HAVE_RUN) {
            assert_eq!(job.state, JobState::Aborting);
            let fenced = job.target_fenced && t.is_none();
            let retired = s.is_some_and(|(s, _)| s == SourceState::Retired);
            // Only a fence retires a source while its job is undone.
            let came_back = retired && t == Some(TargetState::Discarded);
            assert!(fenced || came_back, "{job:?} {s:?} {t:?}");
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
            Some(TargetState::Running | TargetState::Fetching) => {
                record(JobState::HandedOver, "too late to undo")
            }
            Some(TargetState::Lost { continued: true } | TargetState::MemoryLost) => {
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

/// What the target has not fetched is in the source's QEMU alone.
#[test]
fn a_server_of_pages_is_ended_only_when_the_target_needs_it_no_more() {
    every_case(|job, s, t| {
        let serves = s.is_some_and(|(s, _)| s == SourceState::Serving);
        let step = next(job, s, t);
        if serves && step == Action::Command(Command::RetireSource) {
            let has_all_or_nothing = [
                TargetState::Running,
                TargetState::Lost { continued: true },
                TargetState::MemoryLost,
            ];
            let ended = t.is_some_and(|t| has_all_or_nothing.contains(&t));
            assert!(ended || (t.is_none() && job.target_fenced), "{job:?} {t:?}");
        }
        let orders = [Command::CancelCopy, Command::StartCopy].map(Action::Command);
        assert!(!serves || !orders.contains(&step), "{job:?} {t:?}");
    });
}

#[test]
fn a_guest_that_went_over_by_post_copy_is_not_called_back() {
    let serving = Some((SourceState::Serving, true));
    for t in [TargetState::Prepared, TargetState::Loaded] {
        for state in [JobState::SwitchAllowed, JobState::Aborting] {
            let wanted = next(&job(state), serving, Some(t));
            assert_eq!(wanted, Action::Wait(WaitReason::ProofUnderWay), "{state}");
        }
        let cancelled = next(&cancelled(JobState::Aborting), serving, Some(t));
        assert_eq!(cancelled, Action::Wait(WaitReason::ProofUnderWay));
    }
}

#[test]
fn a_guest_is_abandoned_only_when_its_source_is_lost() {
    every_case(|job, s, t| {
        if next(job, s, t) == Action::Command(Command::AbandonTarget) {
            assert_eq!(t, Some(TargetState::Fetching));
            assert_eq!(job.state, JobState::HandedOver);
            let lost = [
                SourceState::ServerLost,
                SourceState::Lost,
                SourceState::Retired,
            ];
            let gone = s.is_some_and(|(s, _)| lost.contains(&s));
            assert!(gone || (s.is_none() && job.source_fenced), "{job:?} {s:?}");
        }
    });
}

#[test]
fn a_post_copy_succeeds_with_the_word_of_the_target_and_fails_where_the_memory_is_lost() {
    let over = job(JobState::HandedOver);
    let serving = Some((SourceState::Serving, true));
    assert_eq!(
        next(&over, serving, Some(TargetState::Fetching)),
        Action::Wait(WaitReason::MemoryFollowing)
    );
    assert_eq!(
        next(&over, serving, None),
        Action::Wait(WaitReason::TargetSilent)
    );
    assert_eq!(
        next(&over, serving, Some(TargetState::Running)),
        Action::Command(Command::RetireSource)
    );
    let retired = Some((SourceState::Retired, true));
    assert_eq!(
        next(&over, retired, Some(TargetState::MemoryLost)),
        record(JobState::Failed, MEMORY_LOST)
    );
    let silent = SourceFact {
        post_copied: true,
        ..SourceFact::bare(SourceState::Retired, true)
    };
    assert_eq!(
        decide(&over, Some(&silent), None),
        Action::Wait(WaitReason::TargetSilent)
    );
}

#[test]
fn a_job_that_is_handed_over_fails_only_when_the_memory_is_lost() {
    every_case(|job, s, t| {
        let step = next(job, s, t);
        if job.state == JobState::HandedOver && to(&step) == Some(JobState::Failed) {
            assert_eq!(t, Some(TargetState::MemoryLost), "{s:?}");
        }
    });
}
