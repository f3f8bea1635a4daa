//! The boot sector on two QEMUs of this machine.

use crate::machine::{LIMIT, Machine, UNLIMITED, hand_over, spec, until_completed};
use godwit_model::machine::MachineSpec;
use godwit_model::migration::source::CopyStatus;
use godwit_model::{Bytes, BytesPerSecond};
use godwit_qemu::qmp::{MigrationStatus, RunState};
use godwit_qemu::{Continued, Event, Limits, MigrateError, Role, migrate};
use godwit_testkit::guest::boot_sector::{BootSector, counters};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use tempfile::TempDir;

/// A pass takes a few milliseconds, and stays interruptible.
const GUEST: BootSector = BootSector {
    first_page: 256,
    page_count: 2048,
    spin: 0,
    print_mask: 0xf,
};

fn image() -> (TempDir, MachineSpec) {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.raw");
    GUEST.write_disk(&disk).unwrap();
    let spec = spec(&disk, Bytes::mib(128));
    (folder, spec)
}

async fn running(spec: &MachineSpec) -> Machine {
    let source = Machine::start(spec, Role::Start).await;
    assert_eq!(source.run_state().await, RunState::PreLaunch);
    source.qmp.cont().await.unwrap();
    source
        .serial_until(|serial| counters(serial).len() >= 3)
        .await;
    source
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_moves_and_its_memory_goes_on_where_it_was() {
    let (_folder, spec) = image();
    let source = running(&spec).await;
    let target = Machine::start(&spec, Role::Incoming).await;

    hand_over(&source, &target).await;

    let last = *counters(&source.serial()).last().unwrap();
    let serial = target
        .serial_until(|serial| counters(serial).len() >= 3)
        .await;
    assert_eq!(counters(&serial)[0], last + GUEST.print_mask + 1);
    let stays = source.serial();
    target.qmp.stop().await.unwrap();
    assert_memory_is_whole(&target).await;
    assert_eq!(
        source.serial(),
        stays,
        "the source went on after it had completed"
    );
}

async fn memory(machine: &Machine, first_page: u32, page_count: u32) -> Vec<u8> {
    let file = machine.path("memory");
    let arguments = json!({
        "val": u64::from(first_page) * 4096,
        "size": u64::from(page_count) * 4096,
        "filename": file,
    });
    machine
        .qmp
        .execute::<Value>("pmemsave", arguments)
        .await
        .unwrap();
    std::fs::read(file).unwrap()
}

/// A guest whose few pages stay in the CPU's TLB: every write to them has to be seen, though none
/// but the first takes the slow path by itself.
#[tokio::test(flavor = "multi_thread")]
async fn no_write_of_a_guest_is_lost_on_the_way() {
    let (_folder, [source, target]) = copying(FEW, false).await;
    let passes = until_passes(&source, 5).await;
    let limits = migrate::set_limits(&source.qmp, UNLIMITED);
    limits.await.unwrap();
    migrate::settle(&source.qmp, LIMIT).await.unwrap();
    migrate::continue_switchover(&source.qmp).await.unwrap();
    until_completed(&source).await;
    until_completed(&target).await;

    let lost = differing(FEW, &source, &target).await;
    let count = FEW.page_count;
    assert_eq!(lost, 0, "of {count} pages, after {passes} passes");
}

/// The same by post-copy, which rests on the same record of what was written: a page that is not known
/// to be dirty isn't fetched.
#[tokio::test(flavor = "multi_thread")]
async fn no_write_of_a_guest_is_lost_by_post_copy() {
    let (_folder, [source, target]) = copying(SOME, true).await;
    let passes = until_passes(&source, 4).await;
    // Of a guest that runs: one that was stopped before leaves its pages no time to be dirty.
    source.qmp.migrate_start_postcopy().await.unwrap();
    let paused = migrate::settle(&source.qmp, LIMIT).await.unwrap();
    assert_eq!(paused.copy_status(), CopyStatus::PreSwitchover);
    migrate::continue_switchover(&source.qmp).await.unwrap();
    // The guest stays paused there, so that both memories can be compared.
    until_completed(&source).await;
    until_completed(&target).await;
    assert_eq!(target.run_state().await, RunState::Paused);
    let info = migrate::status(&source.qmp).await.unwrap();
    assert!(info.ram.unwrap().postcopy_bytes > 0, "it was a pre-copy");

    let lost = differing(SOME, &source, &target).await;
    let count = SOME.page_count;
    assert_eq!(lost, 0, "of {count} pages, after {passes} passes");
    let serial = counters(&source.serial());
    migrate::continue_guest(&target.qmp).await.unwrap();
    let there = target.serial_until(|serial| counters(serial).len() >= 3);
    let there = counters(&there.await);
    assert!(there[0] > *serial.last().unwrap(), "the guest went back");
}

const FEW: BootSector = BootSector {
    page_count: 16,
    ..GUEST
};

/// So many that sending them takes longer than writing them.
const SOME: BootSector = BootSector {
    page_count: 256,
    ..GUEST
};

/// A copy of a guest under way, over a slow link.
async fn copying(guest: BootSector, post_copy: bool) -> (TempDir, [Machine; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.raw");
    guest.write_disk(&disk).unwrap();
    let spec = spec(&disk, Bytes::mib(128));
    let source = running(&spec).await;
    let target = Machine::start(&spec, Role::Incoming).await;
    for side in [&source, &target] {
        let allowed = migrate::allow_postcopy(&side.qmp, post_copy).await;
        allowed.unwrap();
    }
    let incoming = migrate::prepare_incoming(&target.qmp, IpAddr::V4(Ipv4Addr::LOCALHOST), None);
    let uri = incoming.await.unwrap().uri;
    let slow = Limits {
        bandwidth: BytesPerSecond(Bytes::mib(4).0),
        downtime: Duration::from_millis(1),
        ..UNLIMITED
    };
    migrate::begin(&source.qmp, &uri, slow, None).await.unwrap();
    (folder, [source, target])
}

/// Of the pages that the guest writes, how many differ.
async fn differing(guest: BootSector, source: &Machine, target: &Machine) -> usize {
    let here = memory(source, guest.first_page, guest.page_count).await;
    let there = memory(target, guest.first_page, guest.page_count).await;
    let pairs = here.chunks(4096).zip(there.chunks(4096));
    pairs.filter(|(here, there)| here != there).count()
}

/// Waits for that many passes, or for the copy's end; answers how many there were.
async fn until_passes(machine: &Machine, enough: u32) -> u32 {
    loop {
        let info = migrate::status(&machine.qmp).await.unwrap();
        let passes = info.progress().passes;
        if passes >= enough || info.copy_status() == CopyStatus::PreSwitchover {
            return passes;
        }
        tokio::time::sleep(Duration::from_millis(2)).await; // poll
    }
}

async fn assert_memory_is_whole(machine: &Machine) {
    let memory = memory(machine, GUEST.first_page, GUEST.page_count).await;
    assert!(
        GUEST.check_memory(&memory).is_some(),
        "the guest's memory lost or repeats a write"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_came_moves_on_and_its_first_move_is_not_taken_for_the_second() {
    let (_folder, spec) = image();
    let first = running(&spec).await;
    let second = Machine::start(&spec, Role::Incoming).await;
    hand_over(&first, &second).await;
    first.qmp.quit().await.unwrap();

    // What QEMU says of the incoming copy looks like a completed outgoing one: see `copy_status`.
    let info = migrate::status(&second.qmp).await.unwrap();
    assert_eq!(info.copy_status(), CopyStatus::Completed);
    assert_eq!(second.run_state().await, RunState::Running);

    let third = Machine::start(&spec, Role::Incoming).await;
    hand_over(&second, &third).await;
    third
        .serial_until(|serial| !counters(serial).is_empty())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_is_continued_only_when_it_is_complete() {
    let (_folder, spec) = image();
    let source = running(&spec).await;
    let target = Machine::start(&spec, Role::Incoming).await;

    let refused = migrate::continue_guest(&target.qmp).await.unwrap_err();
    assert!(
        matches!(
            refused,
            MigrateError::State {
                runstate: RunState::InMigrate,
                ..
            }
        ),
        "{refused:?}"
    );

    hand_over(&source, &target).await;
    assert_eq!(
        migrate::continue_guest(&target.qmp).await.unwrap(),
        Continued::Already
    );
    assert_eq!(
        migrate::resume_source(&target.qmp).await.unwrap(),
        Continued::Already
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_copy_leaves_the_guest_running_and_can_be_tried_again() {
    let (_folder, spec) = image();
    let source = running(&spec).await;
    let target = Machine::start(&spec, Role::Incoming).await;
    let slow = Limits {
        bandwidth: BytesPerSecond(1 << 20),
        ..UNLIMITED
    };
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let incoming = migrate::prepare_incoming(&target.qmp, localhost, None)
        .await
        .unwrap();
    migrate::begin(&source.qmp, &incoming.uri, slow, None)
        .await
        .unwrap();

    migrate::cancel(&source.qmp).await.unwrap();

    let ended = migrate::settle(&source.qmp, LIMIT).await.unwrap();
    assert_eq!(ended.copy_status(), CopyStatus::Cancelled);
    assert_eq!(source.run_state().await, RunState::Running);
    tokio::time::timeout(LIMIT, target.process.exited())
        .await
        .unwrap();
    let second = Machine::start(&spec, Role::Incoming).await;
    hand_over(&source, &second).await;
    second
        .serial_until(|serial| !counters(serial).is_empty())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_completed_runs_again_once_its_target_is_gone() {
    let (_folder, spec) = image();
    let source = running(&spec).await;
    let target = Machine::start(&spec, Role::Incoming).await;
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let incoming = migrate::prepare_incoming(&target.qmp, localhost, None)
        .await
        .unwrap();
    migrate::begin(&source.qmp, &incoming.uri, UNLIMITED, None)
        .await
        .unwrap();
    migrate::settle(&source.qmp, LIMIT).await.unwrap();
    migrate::continue_switchover(&source.qmp).await.unwrap();
    while migrate::status(&source.qmp).await.unwrap().copy_status() != CopyStatus::Completed {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }

    target.process.kill().unwrap();
    target.process.exited().await;
    assert_eq!(
        migrate::resume_source(&source.qmp).await.unwrap(),
        Continued::Now
    );

    let before = counters(&source.serial()).len();
    source
        .serial_until(|serial| counters(serial).len() > before + 1)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_the_story_of_a_copy_in_order() {
    let (_folder, spec) = image();
    let mut source = running(&spec).await;
    let target = Machine::start(&spec, Role::Incoming).await;

    hand_over(&source, &target).await;

    let mut told = Vec::new();
    while told.last() != Some(&Event::Migration(MigrationStatus::Completed)) {
        let next = tokio::time::timeout(LIMIT, source.events.next())
            .await
            .unwrap()
            .unwrap();
        assert!(next.at.is_some());
        told.push(next.event);
    }
    told.retain(|event| !matches!(event, Event::MigrationPass(_) | Event::Other(_)));
    let expected = [
        Event::Resume,
        Event::Migration(MigrationStatus::Setup),
        Event::Migration(MigrationStatus::Active),
        Event::Stop,
        Event::Migration(MigrationStatus::PreSwitchover),
        Event::Migration(MigrationStatus::Device),
        Event::Migration(MigrationStatus::Completed),
    ];
    assert_eq!(told, expected);
}
