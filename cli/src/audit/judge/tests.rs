//! Each check finds a world that is broken in just its way, and nothing in one that is whole.

use godwit_ledger::{
    Capacity, Cordon, InstanceRow, InstanceState, JobHistory, JobRow, NodeRow, Object, ObjectKey,
    ReservationRow, TransitionRow,
};
use godwit_model::machine::PageSize;
use godwit_model::migration::job::JobState as S;
use godwit_model::migration::queue::QueueLimits;
use godwit_model::migration::view;
use godwit_model::placement::{Hugepages, Room};
use godwit_model::{Bytes, Epoch, JobId, MachineId, NodeName, Revision};
use godwit_rpc::agent::v1::{
    FoundDirectory, FoundFence, FoundHalf, FoundQemu, FoundRecord, FoundTap, HostInspection,
    SourceState, TargetState,
};
use jiff::Timestamp;
use serde_json::json;

use super::{judge, judge_history};
use crate::audit::finding::{Check, Finding};
use crate::audit::world::World;

const VM: &str = "11111111-94b4-4cda-9a69-cca8d4b4c587";
const STRANGER: &str = "99999999-94b4-4cda-9a69-cca8d4b4c587";
const JOB: &str = "22222222-94b4-4cda-9a69-cca8d4b4c587";

fn node(name: &str) -> NodeName {
    NodeName::parse(name).unwrap()
}

fn vm() -> MachineId {
    MachineId::parse(VM).unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn object(uid: &str, resource: &str, status: serde_json::Value) -> (String, Object) {
    let object = Object {
        key: ObjectKey::new(resource, "default", "x"),
        uid: uid.to_owned(),
        metadata: json!({}),
        body: json!({}),
        status: Some(status),
        revision: Revision(1),
    };
    (uid.to_owned(), object)
}

fn room(node_name: &str, job: Option<&str>) -> ReservationRow {
    ReservationRow {
        machine: vm(),
        node: node(node_name),
        job: job.map(|id| JobId::parse(id).unwrap()),
        room: Room {
            memory: Bytes::mib(512),
            cpu_milli: 1000,
            ..Room::default()
        },
    }
}

fn qemu(pid: u32, run_state: &str) -> FoundQemu {
    FoundQemu {
        pid,
        machine: VM.to_owned(),
        run_state: run_state.to_owned(),
        running: run_state == "running",
        ..FoundQemu::default()
    }
}

fn record(epoch: u64) -> FoundRecord {
    FoundRecord {
        machine: VM.to_owned(),
        epoch,
        pid: 7,
        ended: false,
    }
}

fn half(source: SourceState, target: TargetState) -> FoundHalf {
    FoundHalf {
        machine: VM.to_owned(),
        job: JOB.to_owned(),
        source: source.into(),
        target: target.into(),
        epoch: 1,
    }
}

/// A machine that runs on the first of two nodes, and nothing else.
fn quiet() -> World {
    let row = InstanceRow {
        uid: vm(),
        key: ObjectKey::new("virtualmachineinstances.kubevirt.io", "default", "vm1"),
        node: Some(node("worker1")),
        epoch: Epoch(1),
        state: InstanceState::Running,
        machine: None,
    };
    let shown = json!({"phase": "Running", "nodeName": "worker1"});
    let nodes = ["worker1", "worker2"].map(|name| NodeRow {
        name: node(name),
        agent_address: "https://10.77.0.11:7110".to_owned(),
        boot_id: "b".to_owned(),
        ready: true,
        capacity: Capacity {
            memory: Bytes::mib(1024),
            cpu_milli: 2000,
            hugepages: Hugepages::default(),
        },
        facts: json!({}),
        heartbeat_at: at(0),
    });
    let mut hosts = nodes.clone().map(|row| HostInspection {
        node: row.name.to_string(),
        ..HostInspection::default()
    });
    hosts[0].qemus = vec![qemu(7, "running")];
    hosts[0].records = vec![record(1)];
    let names = nodes.clone().map(|row| row.name);
    World {
        nodes: nodes.to_vec(),
        instances: [(vm(), row)].into(),
        reservations: vec![room("worker1", None)],
        jobs: [].into(),
        limits: Ok(QueueLimits {
            per_cluster: 1,
            outbound_per_node: 1,
            inbound_per_node: 1,
        }),
        instance_objects: [object(VM, "virtualmachineinstances.kubevirt.io", shown)].into(),
        migration_objects: [].into(),
        cordons: vec![],
        hosts: names.into_iter().zip(hosts.map(Ok)).collect(),
    }
}

fn job(state: S) -> JobRow {
    JobRow {
        id: JobId::parse(JOB).unwrap(),
        key: ObjectKey::new(
            "virtualmachineinstancemigrations.kubevirt.io",
            "default",
            "m",
        ),
        machine: vm(),
        vmi: ObjectKey::new("virtualmachineinstances.kubevirt.io", "default", "vm1"),
        state,
        source: Some(node("worker1")),
        target: Some(node("worker2")),
        target_address: None,
        priority: 0,
        created_at: at(0),
        state_since: at(0),
        finished_at: state.is_final().then(|| at(9)),
        epoch: Epoch(1),
        owner: None,
        cancel: None,
        failure: None,
        trace: String::new(),
        history: json!({}),
        switch_allowed: state >= S::SwitchAllowed,
    }
}

/// The same machine on its way to the second node.
fn moving(state: S) -> World {
    let mut world = quiet();
    let job = job(state);
    let phase = view::phase(state).unwrap_or("Running");
    world.migration_objects = [object(
        JOB,
        "virtualmachineinstancemigrations.kubevirt.io",
        json!({ "phase": phase }),
    )]
    .into();
    world.jobs = [(job.id.clone(), job)].into();
    if !state.is_final() {
        world.reservations.push(room("worker2", Some(JOB)));
    }
    world
}

fn host<'a>(world: &'a mut World, name: &str) -> &'a mut HostInspection {
    world.hosts.get_mut(&node(name)).unwrap().as_mut().unwrap()
}

/// Breaks a world; exactly one check says so, in words that hold `word`.
fn breaks(mut world: World, check: Check, word: &str, damage: impl FnOnce(&mut World)) {
    assert_eq!(judge(&world), [], "before the damage");
    damage(&mut world);
    let found = judge(&world);
    let [finding] = found.as_slice() else {
        panic!("{check:?} {word}: {found:#?}");
    };
    assert_eq!(finding.check, check, "{finding:?}");
    let text = format!("{}: {}", finding.subject, finding.seen);
    assert!(text.contains(word), "{text}");
}

#[test]
fn a_machine_may_move_and_nothing_is_broken_on_the_way() {
    assert_eq!(judge(&quiet()), []);
    for state in S::ALL {
        let mut world = moving(state);
        host(&mut world, "worker2").halves =
            vec![half(SourceState::Unspecified, TargetState::Lost)];
        assert_eq!(judge(&world), [], "{state}");
    }
    // The hosts have handed it over, and the ledger doesn't know yet.
    let mut world = moving(S::SwitchAllowed);
    host(&mut world, "worker1").qemus = vec![qemu(7, "postmigrate")];
    let target = host(&mut world, "worker2");
    target.qemus = vec![qemu(8, "running")];
    target.records = vec![record(2)];
    target.halves = vec![half(SourceState::Unspecified, TargetState::Continuing)];
    assert_eq!(judge(&world), []);
}

#[test]
fn two_running_copies_are_found_at_every_state() {
    for state in [S::Copying, S::SwitchAllowed, S::HandedOver, S::NeedsFencing] {
        let damage = |world: &mut World| {
            host(world, "worker2").qemus.push(qemu(8, "running"));
        };
        breaks(moving(state), Check::OneRuns, "worker2 (process 8)", damage);
    }
}

#[test]
fn a_machine_that_is_not_where_the_ledger_says_is_found() {
    breaks(quiet(), Check::InPlace, "no QEMU on worker1", |world| {
        host(world, "worker1").qemus.clear();
    });
    breaks(
        moving(S::SwitchAllowed),
        Check::InPlace,
        "nor on worker2",
        |world| {
            host(world, "worker1").qemus.clear();
        },
    );
    breaks(quiet(), Check::InPlace, "processes 7 and 8", |world| {
        host(world, "worker1").qemus.push(qemu(8, "paused"));
    });
    breaks(quiet(), Check::InPlace, "postmigrate", |world| {
        host(world, "worker1").qemus = vec![qemu(7, "postmigrate")];
    });
    breaks(quiet(), Check::InPlace, "no record", |world| {
        host(world, "worker1").records.clear();
    });
    breaks(quiet(), Check::InPlace, "epoch 1, not 2", |world| {
        world.instances.get_mut(&vm()).unwrap().epoch = Epoch(2);
    });
}

#[test]
fn a_qemu_of_nobody_and_one_of_elsewhere_are_found() {
    breaks(quiet(), Check::Known, STRANGER, |world| {
        let mut stranger = qemu(8, "running");
        stranger.machine = STRANGER.to_owned();
        host(world, "worker2").qemus.push(stranger);
    });
    breaks(quiet(), Check::Leftovers, "QEMU 8 on worker2", |world| {
        host(world, "worker2").qemus.push(qemu(8, "postmigrate"));
    });
}

#[test]
fn room_that_is_too_much_or_for_nothing_is_found() {
    breaks(quiet(), Check::Capacity, "node worker1", |world| {
        world.nodes[0].capacity.memory = Bytes::mib(511);
    });
    breaks(quiet(), Check::Capacity, "1000 of 999", |world| {
        world.nodes[0].capacity.cpu_milli = 999;
    });
    let pages = |mib| Hugepages::of(PageSize::Mi2, Bytes::mib(mib));
    breaks(quiet(), Check::Capacity, "in pages of 2Mi", |world| {
        world.nodes[0].capacity.hugepages = pages(254);
        world.reservations[0].room.hugepages = pages(256);
    });
    breaks(quiet(), Check::Reserved, "without room", |world| {
        world.reservations.clear();
    });
    breaks(quiet(), Check::Reserved, "isn't there", |world| {
        world.reservations.push(room("worker2", None));
    });
    breaks(
        moving(S::Failed),
        Check::Reserved,
        "which is over",
        |world| {
            world.reservations.push(room("worker2", Some(JOB)));
        },
    );
    breaks(quiet(), Check::Reserved, "no migration", |world| {
        world.reservations.push(room("worker2", Some(JOB)));
    });
    breaks(
        moving(S::Copying),
        Check::Reserved,
        "something else",
        |world| {
            world.reservations[1].node = node("worker3");
        },
    );
}

#[test]
fn a_second_open_migration_is_found() {
    breaks(moving(S::Copying), Check::OneOpen, STRANGER, |world| {
        let second = JobRow {
            id: JobId::parse(STRANGER).unwrap(),
            ..job(S::Pending)
        };
        let shown = json!({"phase": "Pending"});
        let (uid, object) = object(
            STRANGER,
            "virtualmachineinstancemigrations.kubevirt.io",
            shown,
        );
        world.migration_objects.insert(uid, object);
        world.jobs.insert(second.id.clone(), second);
    });
}

#[test]
fn a_limit_that_is_exceeded_is_found() {
    type Lower = fn(&mut QueueLimits);
    let limits: [(&str, Lower); 3] = [
        ("cluster", |limits| limits.per_cluster = 0),
        ("away from worker1", |limits| limits.outbound_per_node = 0),
        ("towards worker2", |limits| limits.inbound_per_node = 0),
    ];
    for (word, lower) in limits {
        // A job that neither host can answer for counts, too.
        for state in [S::Copying, S::NeedsFencing] {
            breaks(moving(state), Check::Limits, word, |world| {
                lower(world.limits.as_mut().unwrap());
            });
        }
    }
}

#[test]
fn a_host_that_is_ahead_of_the_ledger_is_found() {
    breaks(
        moving(S::Copying),
        Check::Epochs,
        "epoch 2, the newest is 1",
        |world| {
            let mut ahead = half(SourceState::Copying, TargetState::Unspecified);
            ahead.epoch = 2;
            host(world, "worker1").halves.push(ahead);
        },
    );
    breaks(moving(S::Copying), Check::Epochs, "runs epoch 2", |world| {
        host(world, "worker2").records.push(record(2));
    });
    breaks(quiet(), Check::Epochs, "refused below epoch 2", |world| {
        let machine = VM.to_owned();
        host(world, "worker2")
            .fences
            .push(FoundFence { machine, epoch: 2 });
    });
}

#[test]
fn whatever_is_left_behind_is_found() {
    breaks(quiet(), Check::Leftovers, "tap gw0123456789a", |world| {
        let device = "gw0123456789a".to_owned();
        host(world, "worker1")
            .taps
            .push(FoundTap { device, pid: 0 });
    });
    breaks(quiet(), Check::Leftovers, "qmp.sock", |world| {
        host(world, "worker1").directories.push(FoundDirectory {
            name: "0123456789abcdef".to_owned(),
            pid: 0,
            files: vec!["qmp.sock".to_owned()],
        });
    });
    breaks(
        moving(S::Succeeded),
        Check::Leftovers,
        "listens on 4711",
        |world| {
            host(world, "worker1").qemus[0].listening = vec![4711];
        },
    );
    breaks(quiet(), Check::Leftovers, "record of machine", |world| {
        host(world, "worker2").records.push(record(1));
    });
    breaks(quiet(), Check::Leftovers, "file other", |world| {
        host(world, "worker2").strays.push("other".to_owned());
    });
    breaks(moving(S::Failed), Check::Leftovers, "COPYING", |world| {
        let source = half(SourceState::Copying, TargetState::Unspecified);
        host(world, "worker1").halves.push(source);
    });
    breaks(
        moving(S::Succeeded),
        Check::Leftovers,
        "CONTINUING",
        |world| {
            let target = half(SourceState::Unspecified, TargetState::Continuing);
            host(world, "worker2").halves.push(target);
        },
    );
    breaks(quiet(), Check::Leftovers, "knows no such job", |world| {
        let target = half(SourceState::Unspecified, TargetState::Loaded);
        host(world, "worker2").halves.push(target);
    });
}

#[test]
fn what_users_are_told_wrongly_is_found() {
    let status = |world: &mut World, status| {
        world.instance_objects.get_mut(VM).unwrap().status = Some(status);
    };
    breaks(quiet(), Check::InstanceShown, "Succeeded", |world| {
        status(world, json!({"phase": "Succeeded", "nodeName": "worker1"}));
    });
    breaks(quiet(), Check::InstanceShown, "worker2", |world| {
        status(world, json!({"phase": "Running", "nodeName": "worker2"}));
    });
    breaks(quiet(), Check::InstanceShown, "no object", |world| {
        world.instance_objects.clear();
    });
    let told = |state: S, phase: &'static str| {
        breaks(moving(state), Check::MigrationShown, phase, |world| {
            let shown = world.migration_objects.get_mut(JOB).unwrap();
            shown.status = Some(json!({ "phase": phase }));
        });
    };
    told(S::Copying, "TargetReady");
    told(S::Failed, "Succeeded");
    told(S::Aborting, "Failed");
    breaks(
        moving(S::Copying),
        Check::MigrationShown,
        "no object",
        |world| {
            world.migration_objects.clear();
        },
    );
    breaks(
        moving(S::Succeeded),
        Check::MigrationShown,
        "no job",
        |world| {
            world.jobs.clear();
        },
    );
}

#[test]
fn what_can_not_be_asked_is_said() {
    breaks(quiet(), Check::Asked, "no answer", |world| {
        world
            .hosts
            .insert(node("worker1"), Err("no answer".to_owned()));
    });
    breaks(quiet(), Check::Asked, "worker2", |world| {
        world.hosts.remove(&node("worker2"));
    });
    breaks(quiet(), Check::Asked, "worker9", |world| {
        host(world, "worker2").node = "worker9".to_owned();
    });
    breaks(quiet(), Check::Asked, "log of", |world| {
        host(world, "worker2")
            .unreadable
            .push("log of job".to_owned());
    });
    breaks(quiet(), Check::Asked, "CPUs", |world| {
        host(world, "worker1").qemus[0].error = "no greeting".to_owned();
    });
    breaks(quiet(), Check::Asked, "many", |world| {
        world.limits = Err("\"many\" is no number".to_owned());
    });
}

/// A migration that went well, one step a second.
fn history() -> JobHistory {
    let way = [
        S::Pending,
        S::Placing,
        S::Reserved,
        S::Preparing,
        S::Prepared,
        S::Copying,
        S::SwitchAllowed,
        S::HandedOver,
        S::Succeeded,
    ];
    let transitions = way.iter().enumerate().map(|(place, to)| TransitionRow {
        job: JobId::parse(JOB).unwrap(),
        seq: u32::try_from(place + 1).unwrap(),
        from: place.checked_sub(1).map(|before| way[before]),
        to: *to,
        epoch: Epoch(u64::from(place > 0)),
        actor: "coordinator-1".to_owned(),
        reason: "because".to_owned(),
        at: at(i64::try_from(place).unwrap()),
    });
    JobHistory {
        transitions: transitions.collect(),
        job: job(S::Succeeded),
    }
}

fn only(found: &[Finding]) -> (Check, &str) {
    let [finding] = found else {
        panic!("{found:#?}");
    };
    (finding.check, &finding.seen)
}

#[test]
fn a_history_that_is_not_whole_is_found() {
    assert_eq!(judge_history(&history(), &[]), []);
    type Damage = fn(&mut JobHistory);
    let cases: [(&str, Damage); 9] = [
        ("none", |past| past.transitions.clear()),
        ("place 3 has number 4", |past| past.transitions[2].seq = 4),
        ("step 4 goes from Reserved", |past| {
            past.transitions.remove(2);
        }),
        ("Pending to Reserved", |past| {
            past.transitions[1].to = S::Reserved
        }),
        ("epoch shrinks to 0 at step 5", |past| {
            past.transitions[4].epoch = Epoch(0);
        }),
        ("above the newest, 0", |past| past.job.epoch = Epoch(0)),
        ("step 3 has no actor", |past| {
            past.transitions[2].actor.clear()
        }),
        ("step 1 has no reason", |past| {
            past.transitions[0].reason = " ".to_owned();
        }),
        ("finished never", |past| past.job.finished_at = None),
    ];
    for (words, damage) in cases {
        let mut past = history();
        damage(&mut past);
        let found = judge_history(&past, &[]);
        let (check, seen) = only(&found);
        assert_eq!(check, Check::History);
        assert!(seen.contains(words), "{words}: {seen}");
    }
    let mut past = history();
    past.job = job(S::Failed);
    let found = judge_history(&past, &[]);
    assert!(
        only(&found).1.contains("leads to Succeeded, not to Failed"),
        "{found:?}"
    );
}

#[test]
fn a_turn_that_led_to_a_closed_node_is_found() {
    // It got its turn in second 1, and its target in second 2.
    let cordon = |name: &str, from, until: Option<i64>| Cordon {
        node: node(name),
        from: at(from),
        until: until.map(at),
    };
    let judged = |cordon: Cordon| judge_history(&history(), &[cordon]);
    for closed in [cordon("worker2", 0, None), cordon("worker2", 1, Some(3))] {
        assert_eq!(only(&judged(closed)).0, Check::Cordon);
    }
    for harmless in [
        cordon("worker1", 0, None),
        cordon("worker2", 0, Some(1)),
        // Nobody knows which was first: the cordon, or the choice.
        cordon("worker2", 2, None),
    ] {
        assert_eq!(judged(harmless), []);
    }
}
