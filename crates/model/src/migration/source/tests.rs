//! The source's half, event by event.

use super::*;
use SourceEffect as Do;

const E1: Epoch = Epoch(1);
const NOW: Duration = Duration::from_secs(100);

fn copying() -> Source {
    let mut half = Source::default();
    half.handle(SourceEvent::Start { epoch: E1 }, NOW)
        .expect("a fresh half starts");
    half
}

fn after(half: &mut Source, event: SourceEvent) -> Vec<SourceEffect> {
    half.handle(event, NOW).expect("not refused")
}

#[test]
fn a_good_run_journals_the_permission_before_it_uses_it() {
    let mut half = copying();
    assert_eq!(
        after(&mut half, SourceEvent::Allow { epoch: E1 }),
        [Do::Journal]
    );
    assert_eq!(
        after(&mut half, SourceEvent::Copy(CopyStatus::PreSwitchover)),
        [Do::ContinueSwitchover]
    );
    assert_eq!(after(&mut half, SourceEvent::Copy(CopyStatus::Device)), []);
    assert_eq!(
        after(&mut half, SourceEvent::Copy(CopyStatus::Completed)),
        [Do::SendProof, Do::Journal]
    );
    assert_eq!(
        after(&mut half, SourceEvent::Retire { epoch: E1 }),
        [Do::Journal, Do::EndQemu, Do::DropMachine]
    );
}

#[test]
fn without_permission_the_guest_is_not_switched_and_the_pause_is_bounded() {
    let mut half = copying();
    assert_eq!(
        after(&mut half, SourceEvent::Copy(CopyStatus::PreSwitchover)),
        []
    );
    assert_eq!(half.next_deadline(), Some(NOW + PAUSE_MAX));
    let effects = half
        .handle(SourceEvent::Tick, NOW + PAUSE_MAX)
        .expect("a tick");
    assert_eq!(effects, [Do::Journal, Do::CancelCopy]);
    after(&mut half, SourceEvent::Copy(CopyStatus::Cancelled));
    assert_eq!(half.state(), SourceState::Resumed);
    assert!(half.reason().contains("no permission"));
}

#[test]
fn a_guest_that_may_stand_still_for_long_gets_the_time_that_its_last_pages_need() {
    let mut half = copying();
    let expected = Duration::from_secs(60);
    half.bear(expected);
    after(&mut half, SourceEvent::Allow { epoch: E1 });
    after(&mut half, SourceEvent::Copy(CopyStatus::PreSwitchover));
    after(&mut half, SourceEvent::Copy(CopyStatus::Device));
    let due = NOW + DEVICE_MAX + expected;
    assert_eq!(half.next_deadline(), Some(due));
    let effects = half.handle(SourceEvent::Tick, due).expect("a tick");
    assert_eq!(effects, [Do::Journal, Do::CancelCopy]);
}

#[test]
fn a_late_permission_lets_a_waiting_guest_switch() {
    let mut half = copying();
    after(&mut half, SourceEvent::Copy(CopyStatus::PreSwitchover));
    assert_eq!(
        after(&mut half, SourceEvent::Allow { epoch: E1 }),
        [Do::Journal, Do::ContinueSwitchover]
    );
}

#[test]
fn a_source_that_completed_without_permission_proves_nothing() {
    let mut half = copying();
    assert_eq!(
        after(&mut half, SourceEvent::Copy(CopyStatus::Completed)),
        [Do::Journal]
    );
    assert_eq!(
        after(&mut half, SourceEvent::Adopted(CopyStatus::Completed)),
        []
    );
}

#[test]
fn a_cancelled_job_never_starts_later() {
    let mut half = Source::default();
    after(&mut half, SourceEvent::Cancel { epoch: E1 });
    assert_eq!(after(&mut half, SourceEvent::Start { epoch: E1 }), []);
    assert_eq!(half.state(), SourceState::Resumed);
}

#[test]
fn an_older_owner_is_refused_and_changes_nothing() {
    let mut half = copying();
    after(&mut half, SourceEvent::Allow { epoch: Epoch(4) });
    let before = half.clone();
    let refused = half.handle(SourceEvent::Cancel { epoch: Epoch(3) }, NOW);
    assert_eq!(
        refused,
        Err(Refusal::Fenced {
            mine: Epoch(3),
            seen: Epoch(4)
        })
    );
    assert_eq!(half, before);
}

#[test]
fn a_running_guest_is_never_retired() {
    let mut half = copying();
    after(
        &mut half,
        SourceEvent::Copy(CopyStatus::Failed("socket closed".into())),
    );
    assert!(half.handle(SourceEvent::Retire { epoch: E1 }, NOW).is_err());
}

#[test]
fn a_restarted_agent_sends_the_proof_again_until_it_is_taken() {
    let mut half = copying();
    after(&mut half, SourceEvent::Allow { epoch: E1 });
    after(&mut half, SourceEvent::Copy(CopyStatus::Completed));
    assert_eq!(
        after(&mut half, SourceEvent::Adopted(CopyStatus::Completed)),
        [Do::SendProof]
    );
    after(&mut half, SourceEvent::ProofTaken);
    assert_eq!(
        after(&mut half, SourceEvent::Adopted(CopyStatus::Completed)),
        []
    );
}

#[test]
fn a_restarted_agent_lets_a_guest_go_on_that_waits_with_the_permission_on_disk() {
    let mut half = copying();
    after(&mut half, SourceEvent::Copy(CopyStatus::PreSwitchover));
    after(&mut half, SourceEvent::Allow { epoch: E1 });
    let mut restarted = Source {
        deadline: None,
        ..half
    };
    assert_eq!(
        after(
            &mut restarted,
            SourceEvent::Adopted(CopyStatus::PreSwitchover)
        ),
        [Do::ContinueSwitchover]
    );
    assert_eq!(restarted.state(), SourceState::Switching);
    assert_eq!(restarted.next_deadline(), Some(NOW + DEVICE_MAX));
}

#[test]
fn a_source_that_dies_before_it_completes_is_lost_and_can_only_be_retired() {
    let mut half = copying();
    after(&mut half, SourceEvent::Gone);
    assert_eq!(half.state(), SourceState::Lost);
    assert!(half.handle(SourceEvent::Revert { epoch: E1 }, NOW).is_err());
    assert!(half.handle(SourceEvent::Retire { epoch: E1 }, NOW).is_ok());
}

fn stopped_for_postcopy() -> Source {
    let mut half = copying();
    after(&mut half, SourceEvent::Allow { epoch: E1 });
    assert_eq!(
        after(&mut half, SourceEvent::Postcopy { epoch: E1 }),
        [Do::Journal, Do::SwitchToPostcopy]
    );
    half
}

fn serving() -> Source {
    let mut half = stopped_for_postcopy();
    assert_eq!(
        after(&mut half, SourceEvent::Copy(CopyStatus::PreSwitchover)),
        [Do::ContinueSwitchover]
    );
    assert_eq!(
        after(&mut half, SourceEvent::Copy(CopyStatus::Serving)),
        [Do::Journal, Do::SendProof]
    );
    half
}

#[test]
fn a_guest_is_stopped_for_post_copy_only_with_permission() {
    let mut half = copying();
    let refused = half.handle(SourceEvent::Postcopy { epoch: E1 }, NOW);
    assert!(matches!(refused, Err(Refusal::NotNow { .. })));
    assert_eq!(half.state(), SourceState::Copying);
    assert!(!serving().proof_taken());
}

#[test]
fn a_server_of_pages_is_never_cancelled_nor_resumed() {
    let mut half = serving();
    assert_eq!(after(&mut half, SourceEvent::Cancel { epoch: E1 }), []);
    assert_eq!(half.next_deadline(), None);
    let failed = SourceEvent::Copy(CopyStatus::Failed("broken pipe".into()));
    assert_eq!(after(&mut half, failed.clone()), [Do::Journal]);
    assert_eq!(half.state(), SourceState::ServerLost);
    assert_eq!(after(&mut half, failed), []);
    let mut half = serving();
    assert_eq!(after(&mut half, SourceEvent::Gone), [Do::Journal]);
    assert_eq!(half.state(), SourceState::ServerLost);
}

#[test]
fn a_post_copy_that_ends_before_it_serves_leaves_a_guest_that_goes_on() {
    let mut half = stopped_for_postcopy();
    let due = half.next_deadline().expect("a stop has an end");
    let effects = half.handle(SourceEvent::Tick, due).expect("a tick");
    assert_eq!(effects, [Do::Journal, Do::CancelCopy]);
    assert_eq!(
        after(&mut half, SourceEvent::Copy(CopyStatus::Cancelled)),
        [Do::Journal, Do::ResumeGuest]
    );
    assert_eq!(half.state(), SourceState::Resumed);
    assert_eq!(
        after(&mut half, SourceEvent::Adopted(CopyStatus::Cancelled)),
        [Do::ResumeGuest]
    );
}

#[test]
fn a_restarted_agent_stops_a_guest_that_was_to_be_stopped() {
    let mut half = Source {
        deadline: None,
        ..stopped_for_postcopy()
    };
    assert_eq!(
        after(&mut half, SourceEvent::Adopted(CopyStatus::Active)),
        [Do::Journal, Do::SwitchToPostcopy]
    );
    assert!(half.next_deadline().is_some());
    assert_eq!(
        after(&mut half, SourceEvent::Adopted(CopyStatus::PreSwitchover)),
        [Do::ContinueSwitchover]
    );
    assert_eq!(
        after(&mut half, SourceEvent::Adopted(CopyStatus::Serving)),
        [Do::Journal, Do::SendProof]
    );
    assert_eq!(
        after(&mut half, SourceEvent::Adopted(CopyStatus::Serving)),
        [Do::SendProof]
    );
}

#[test]
fn a_server_whose_target_was_discarded_is_a_crash_here() {
    let mut half = serving();
    assert_eq!(
        after(&mut half, SourceEvent::Revert { epoch: E1 }),
        [Do::Journal, Do::EndGuest]
    );
    assert_eq!(half.state(), SourceState::Lost);
    assert_eq!(
        after(&mut half, SourceEvent::Adopted(CopyStatus::Serving)),
        [Do::EndGuest]
    );
    assert_eq!(after(&mut half, SourceEvent::Revert { epoch: E1 }), []);
}

#[test]
fn a_server_that_completed_is_like_any_complete_source() {
    let mut half = serving();
    assert_eq!(
        after(&mut half, SourceEvent::Copy(CopyStatus::Completed)),
        [Do::Journal]
    );
    assert_eq!(half.state(), SourceState::Completed);
    assert!(half.post_copied());
    assert_eq!(
        after(&mut half, SourceEvent::Retire { epoch: E1 }),
        [Do::Journal, Do::EndQemu, Do::DropMachine]
    );
}
