//! The target's half, event by event.

use super::*;
use crate::migration::grant::ProcessIdentity;
use crate::{JobId, MachineId, NodeName};
use TargetEffect as Do;

const E1: Epoch = Epoch(1);
const NOW: Duration = Duration::from_secs(100);

fn proof() -> Proof {
    Proof {
        machine: MachineId::parse("11111111-94b4-4cda-9a69-cca8d4b4c587").expect("a uuid"),
        job: JobId::parse("22222222-94b4-4cda-9a69-cca8d4b4c587").expect("a uuid"),
        source: NodeName::parse("worker1").expect("a name"),
        process: ProcessIdentity {
            pid: 7,
            start_ticks: 9,
            boot_id: "b".into(),
        },
    }
}

fn prepared() -> Target {
    let mut half = Target::default();
    half.handle(TargetEvent::Prepare { epoch: E1 }, NOW)
        .expect("prepares");
    let address = TargetAddress {
        uri: "tcp:10.77.0.12:39037".into(),
        address: "10.77.0.12".into(),
        ports: vec![39037],
    };
    half.handle(TargetEvent::Listening(address), NOW)
        .expect("listens");
    half
}

fn after(half: &mut Target, event: TargetEvent) -> Vec<TargetEffect> {
    half.handle(event, NOW).expect("not refused")
}

#[test]
fn only_a_proof_lets_a_loaded_copy_go_on_and_the_journal_comes_first() {
    let mut half = prepared();
    assert_eq!(
        after(&mut half, TargetEvent::Load(LoadStatus::Completed)),
        []
    );
    assert_eq!(half.state(), TargetState::Loaded);
    assert_eq!(
        after(&mut half, TargetEvent::Proof(proof())),
        [Do::Journal, Do::Continue]
    );
    assert_eq!(half.state(), TargetState::Continuing);
}

#[test]
fn a_proof_that_is_early_waits_for_the_load() {
    let mut half = prepared();
    assert_eq!(after(&mut half, TargetEvent::Proof(proof())), []);
    assert_eq!(
        after(&mut half, TargetEvent::Load(LoadStatus::Completed)),
        [Do::Journal, Do::Continue]
    );
}

#[test]
fn a_tombstone_refuses_every_later_proof() {
    let mut half = prepared();
    after(&mut half, TargetEvent::Load(LoadStatus::Completed));
    assert_eq!(
        after(&mut half, TargetEvent::Discard { epoch: E1 }),
        [Do::Journal, Do::EndQemu]
    );
    assert_eq!(after(&mut half, TargetEvent::Proof(proof())), []);
    assert_eq!(half.state(), TargetState::Discarded);
}

#[test]
fn after_the_point_of_no_return_a_discard_changes_nothing() {
    let mut half = prepared();
    after(&mut half, TargetEvent::Load(LoadStatus::Completed));
    after(&mut half, TargetEvent::Proof(proof()));
    assert_eq!(after(&mut half, TargetEvent::Discard { epoch: E1 }), []);
    assert_eq!(half.state(), TargetState::Continuing);
}

#[test]
fn a_tombstone_can_be_set_before_anything_was_prepared() {
    let mut half = Target::default();
    after(&mut half, TargetEvent::Discard { epoch: Epoch(2) });
    assert_eq!(
        after(&mut half, TargetEvent::Prepare { epoch: Epoch(2) }),
        []
    );
    assert_eq!(half.state(), TargetState::Discarded);
}

#[test]
fn a_restarted_agent_continues_what_was_about_to_continue() {
    let mut half = prepared();
    after(&mut half, TargetEvent::Load(LoadStatus::Completed));
    after(&mut half, TargetEvent::Proof(proof()));
    assert_eq!(
        after(&mut half, TargetEvent::Adopted(LoadStatus::Completed)),
        [Do::Continue]
    );
    assert_eq!(
        after(&mut half, TargetEvent::Adopted(LoadStatus::Running)),
        [Do::Announce, Do::KeepMachine, Do::Journal]
    );
}

#[test]
fn a_copy_that_dies_says_whether_it_may_have_run() {
    let mut half = prepared();
    after(&mut half, TargetEvent::Gone);
    assert_eq!(half.state(), TargetState::Lost { continued: false });
    let mut half = prepared();
    after(&mut half, TargetEvent::Load(LoadStatus::Completed));
    after(&mut half, TargetEvent::Proof(proof()));
    assert_eq!(
        after(&mut half, TargetEvent::Gone),
        [Do::KeepMachine, Do::Journal]
    );
    assert_eq!(half.state(), TargetState::Lost { continued: true });
}

#[test]
fn an_unused_copy_is_discarded_and_a_loaded_one_never_by_time() {
    let mut half = prepared();
    let effects = half
        .handle(TargetEvent::Tick, NOW + UNUSED_MAX)
        .expect("a tick");
    assert_eq!(effects, [Do::Journal, Do::EndQemu]);
    let mut half = prepared();
    after(&mut half, TargetEvent::Load(LoadStatus::Completed));
    assert_eq!(half.next_deadline(), None);
}

fn fetching() -> Target {
    let mut half = prepared();
    after(&mut half, TargetEvent::Load(LoadStatus::Postcopy));
    assert_eq!(half.state(), TargetState::Loaded);
    assert_eq!(
        after(&mut half, TargetEvent::Proof(proof())),
        [Do::Journal, Do::Continue]
    );
    assert_eq!(
        after(&mut half, TargetEvent::Continued),
        [Do::Announce, Do::KeepMachine, Do::Journal]
    );
    assert_eq!(half.state(), TargetState::Fetching);
    half
}

#[test]
fn a_guest_that_goes_on_before_its_memory_runs_only_when_that_has_come() {
    let mut half = fetching();
    assert_eq!(after(&mut half, TargetEvent::Discard { epoch: E1 }), []);
    assert_eq!(
        after(&mut half, TargetEvent::Load(LoadStatus::Completed)),
        [Do::Journal]
    );
    assert_eq!(half.state(), TargetState::Running);
    assert_eq!(after(&mut half, TargetEvent::Abandon { epoch: E1 }), []);
}

#[test]
fn a_guest_whose_memory_came_before_it_went_on_runs_at_once() {
    let mut half = prepared();
    after(&mut half, TargetEvent::Load(LoadStatus::Postcopy));
    after(&mut half, TargetEvent::Load(LoadStatus::Completed));
    after(&mut half, TargetEvent::Proof(proof()));
    after(&mut half, TargetEvent::Continued);
    assert_eq!(half.state(), TargetState::Running);
}

#[test]
fn a_guest_that_is_abandoned_is_ended_also_by_an_agent_that_comes_back() {
    let mut half = fetching();
    assert_eq!(
        after(&mut half, TargetEvent::Abandon { epoch: E1 }),
        [Do::Journal, Do::EndGuest]
    );
    assert_eq!(half.state(), TargetState::MemoryLost);
    assert_eq!(
        after(&mut half, TargetEvent::Adopted(LoadStatus::Fetching)),
        [Do::EndGuest]
    );
    assert_eq!(after(&mut half, TargetEvent::Gone), []);
}

#[test]
fn a_guest_that_dies_before_its_memory_came_says_so() {
    let mut half = fetching();
    assert_eq!(after(&mut half, TargetEvent::Gone), [Do::Journal]);
    assert_eq!(half.state(), TargetState::MemoryLost);
    let mut half = prepared();
    after(&mut half, TargetEvent::Load(LoadStatus::Postcopy));
    after(&mut half, TargetEvent::Proof(proof()));
    assert_eq!(
        after(&mut half, TargetEvent::Gone),
        [Do::KeepMachine, Do::Journal]
    );
    assert_eq!(half.state(), TargetState::MemoryLost);
}

#[test]
fn only_a_guest_that_went_on_is_abandoned() {
    let mut half = prepared();
    let refused = half.handle(TargetEvent::Abandon { epoch: E1 }, Duration::ZERO);
    assert!(
        matches!(refused, Err(Refusal::NotNow { .. })),
        "{refused:?}"
    );
    assert_eq!(half.state(), TargetState::Prepared);
}
