//! Machines' lives against a real Postgres, with the rights that the service has in production, on
//! hosts that only pretend.

mod fence;
mod room;
mod scene;
mod targets;

use std::time::Duration;

use godwit_ledger::{InstanceState, NewObject};
use godwit_rpc::Code;
use godwit_rpc::agent::v1::MachineState;
use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::inventory::look_for_silence;
use crate::json::condition;
use crate::place::HOME;
use scene::{Scene, node, reserve, spec, vm, vmi, worker};

/// Room for the guest and its QEMU.
const ONE: u64 = 400;
const PLENTY: u64 = 8192;

fn phases(status: &Value) -> Vec<&str> {
    let times = status["phaseTransitionTimestamps"].as_array().unwrap();
    times
        .iter()
        .map(|time| time["phase"].as_str().unwrap())
        .collect()
}

fn reasons(events: &[(String, String)]) -> Vec<&str> {
    events.iter().map(|(reason, _)| reason.as_str()).collect()
}

#[tokio::test]
async fn a_wanted_machine_is_placed_started_and_told_of() {
    let scene = Scene::new(PLENTY).await;
    scene.wish("vm1").await;
    scene.settle().await;

    let instance = scene.instance("vm1").await;
    let status = instance.status.as_ref().unwrap();
    assert_eq!(
        phases(status),
        ["Pending", "Scheduling", "Scheduled", "Running"]
    );
    assert_eq!(status["nodeName"], "worker1");
    assert_eq!(instance.label("kubevirt.io/nodeName"), Some("worker1"));
    assert_eq!(instance.label("app"), Some("lab"));
    assert_eq!(status["activePods"], json!({ (&instance.uid): "worker1" }));
    assert_eq!(status["interfaces"][0]["ipAddress"], "192.168.123.62");
    assert_eq!(status["migrationMethod"], "LiveMigration");
    assert_eq!(status["machine"]["type"], "pc-q35-7.2");
    assert_eq!(condition(status, "Ready"), Some("True"));
    assert_eq!(condition(status, "LiveMigratable"), Some("True"));
    assert_eq!(
        reasons(&scene.events("VirtualMachineInstance").await),
        ["Created", "Scheduled", "Started"]
    );
    let told = scene.vm_status("vm1").await;
    assert_eq!(
        (&told["printableStatus"], &told["ready"], &told["created"]),
        (&json!("Running"), &json!(true), &json!(true))
    );
    assert_eq!(condition(&told, "LiveMigratable"), Some("True"));
    let [held] = scene.reservations().await.try_into().unwrap();
    assert_eq!((held.node, held.job), (worker("worker1"), None));
    let row = scene.row("vm1").await;
    assert_eq!(row.state, InstanceState::Running);
    assert_eq!(scene.host_of("vm1").await.pretence.count("start"), 1);
}

#[tokio::test]
async fn two_copies_of_the_service_never_book_room_twice() {
    let scene = Scene::new(2 * ONE).await;
    let other = scene.another().await;
    for number in 0..6 {
        scene.wish(&format!("vm{number}")).await;
    }
    for _ in 0..8 {
        let (here, there) = tokio::join!(scene.machines.round(), other.round());
        here.and(there).unwrap();
    }
    scene.settle().await;

    let held = scene.reservations().await;
    assert_eq!(held.len(), 4, "{held:?}");
    let running =
        [0, 1].map(|host: usize| scene.hosts[host].pretence.machines.lock().unwrap().len());
    assert_eq!(running, [2, 2]);
    let mut waiting = 0;
    for number in 0..6 {
        let instance = scene.instance(&format!("vm{number}")).await;
        let status = instance.status.unwrap();
        if status["phase"] != "Scheduling" {
            continue;
        }
        waiting += 1;
        assert_eq!(condition(&status, "PodScheduled"), Some("False"));
        let told = scene.vm_status(&format!("vm{number}")).await;
        assert_eq!(told["printableStatus"], "ErrorUnschedulable");
    }
    assert_eq!(waiting, 2);
    let events = scene.events("VirtualMachineInstance").await;
    let said = (
        "FailedScheduling".to_owned(),
        "0/2 nodes are available: 2 Insufficient memory.".to_owned(),
    );
    assert!(events.contains(&said), "{events:?}");
}

#[tokio::test]
async fn a_machine_that_waits_for_room_gets_it_when_another_leaves() {
    let scene = Scene::new(ONE).await;
    for name in ["vm1", "vm2", "vm3"] {
        scene.wish(name).await;
        scene.settle().await;
    }
    assert_eq!(scene.row("vm3").await.state, InstanceState::Unplaced);
    scene
        .edit(&vm("vm1"), |vm| {
            vm.body["spec"]["runStrategy"] = json!("Halted")
        })
        .await;
    scene.settle().await;
    assert_eq!(scene.others.get(&vmi("vm1")).await.unwrap(), None);
    assert_eq!(scene.vm_status("vm1").await["printableStatus"], "Stopped");
    assert_eq!(scene.row("vm3").await.state, InstanceState::Running);
    let instance = scene.instance("vm3").await;
    assert_eq!(condition(&instance.status.unwrap(), "PodScheduled"), None);
}

#[tokio::test]
async fn a_guest_is_asked_to_power_off_once_and_given_its_time() {
    let scene = Scene::new(PLENTY).await;
    scene.wish("vm1").await;
    scene.settle().await;
    let host = &scene.hosts[0].pretence;
    *host.stubborn.lock().unwrap() = true;
    scene.write(async |tx| tx.remove(&vm("vm1")).await).await;
    scene.settle().await;
    let instance = scene.instance("vm1").await;
    assert!(instance.deleting());
    assert_eq!(scene.row("vm1").await.state, InstanceState::Stopping);
    assert_eq!((host.count("stop"), host.count("forget")), (1, 0));

    host.become_all(MachineState::Stopped);
    *host.stubborn.lock().unwrap() = false;
    scene.hear(&scene.machines).await;
    scene.settle().await;
    assert_eq!(scene.others.get(&vmi("vm1")).await.unwrap(), None);
    assert!(scene.reservations().await.is_empty());
    assert_eq!(host.count("forget"), 1);
    let events = scene.events("VirtualMachineInstance").await;
    for text in [
        "VirtualMachineInstance stopping",
        "Signaled Graceful Shutdown",
        "Signaled Deletion",
    ] {
        assert!(events.iter().any(|(_, note)| note == text), "{text}");
    }
}

#[tokio::test]
async fn a_machine_that_crashes_at_once_is_started_again_after_a_pause() {
    let scene = Scene::new(PLENTY).await;
    scene.wish("vm1").await;
    scene.settle().await;
    let first = scene.instance("vm1").await.uid;
    scene.hosts[0].pretence.become_all(MachineState::Crashed);
    scene.hear(&scene.machines).await;
    scene.settle().await;
    assert_eq!(scene.others.get(&vmi("vm1")).await.unwrap(), None);
    assert!(scene.reservations().await.is_empty());
    let told = scene.vm_status("vm1").await;
    assert_eq!(told["printableStatus"], "CrashLoopBackOff");
    assert_eq!(told["startFailure"]["consecutiveFailCount"], 1);
    assert_eq!(told["startFailure"]["lastFailedVMIUID"], json!(first));
    let events = scene.events("VirtualMachineInstance").await;
    let crashed = (
        "Stopped".to_owned(),
        "The VirtualMachineInstance crashed.".to_owned(),
    );
    assert!(events.contains(&crashed), "{events:?}");

    scene
        .edit(&vm("vm1"), |vm| {
            let failure = &mut vm.status.as_mut().unwrap()["startFailure"];
            failure["retryAfterTimestamp"] = json!("2026-01-01T00:00:00Z");
        })
        .await;
    scene.settle().await;
    assert_ne!(scene.instance("vm1").await.uid, first);
    assert_eq!(scene.vm_status("vm1").await["printableStatus"], "Running");
}

#[tokio::test]
async fn nothing_is_started_elsewhere_because_a_host_is_silent() {
    let scene = Scene::new(PLENTY).await;
    scene.wish("vm1").await;
    scene.settle().await;
    let (machines, up) = (&scene.machines, Duration::from_secs(60));
    // Hosts that have nothing new to say for long.
    for mut node in scene.others.nodes().await.unwrap() {
        node.heartbeat_at -= SignedDuration::from_hours(1);
        scene.write(async |tx| tx.node_put(node).await).await;
    }
    look_for_silence(&machines.inventory, &machines.ledger, up)
        .await
        .unwrap();
    // A copy of the service that heard no host is not believed: this one hears them.
    let deaf = scene.deaf().await;
    look_for_silence(&deaf.inventory, &deaf.ledger, up)
        .await
        .unwrap();
    assert!(
        scene
            .others
            .nodes()
            .await
            .unwrap()
            .iter()
            .all(|node| node.ready)
    );

    machines.inventory.hush();
    look_for_silence(&machines.inventory, &machines.ledger, up)
        .await
        .unwrap();
    scene.machines.round().await.unwrap();
    let instance = scene.instance("vm1").await;
    let status = instance.status.unwrap();
    assert_eq!(
        (&status["phase"], condition(&status, "Ready")),
        (&json!("Unknown"), Some("False"))
    );
    let object = scene.get(&node("worker1")).await;
    let told = object.status.as_ref().unwrap();
    assert_eq!(condition(told, "Ready"), Some("Unknown"));
    assert_eq!(object.label("kubevirt.io/schedulable"), Some("false"));
    assert_eq!(scene.reservations().await.len(), 1);
    let events = scene.events("VirtualMachineInstance").await;
    assert!(reasons(&events).contains(&"NodeUnresponsive"), "{events:?}");

    scene.settle().await;
    let status = scene.instance("vm1").await.status.unwrap();
    assert_eq!(
        (&status["phase"], condition(&status, "Ready")),
        (&json!("Running"), Some("True"))
    );
    let starts: usize = scene
        .hosts
        .iter()
        .map(|host| host.pretence.count("start"))
        .sum();
    assert_eq!(starts, 1);
}

#[tokio::test]
async fn only_the_owners_word_of_its_own_time_ends_a_machine() {
    let scene = Scene::new(PLENTY).await;
    scene.wish("vm1").await;
    scene.settle().await;
    let lease = scene.migrate("vm1", "m1").await;
    let host = &scene.hosts[0].pretence;
    host.become_all(MachineState::Stopped);
    scene.settle().await;
    assert_eq!(
        scene.row("vm1").await.state,
        InstanceState::Running,
        "a migration is open"
    );

    for report in host.machines.lock().unwrap().values_mut() {
        report.epoch = 0;
    }
    scene.hear(&scene.machines).await;
    scene.fail(&lease).await;
    scene.settle().await;
    assert_eq!(
        scene.row("vm1").await.state,
        InstanceState::Running,
        "the word is old"
    );

    for report in host.machines.lock().unwrap().values_mut() {
        report.epoch = 1;
    }
    let first = scene.instance("vm1").await.uid;
    scene.hear(&scene.machines).await;
    scene.machines.round().await.unwrap();
    let instance = scene.instance("vm1").await;
    assert_eq!(instance.status.unwrap()["phase"], "Succeeded");
    scene.settle().await;
    assert_ne!(
        scene.instance("vm1").await.uid,
        first,
        "it shall always run"
    );
}

#[tokio::test]
async fn a_machine_that_its_host_does_not_name_is_not_taken_for_dead() {
    let scene = Scene::new(PLENTY).await;
    scene.wish("vm1").await;
    scene.settle().await;
    scene.hosts[0].pretence.machines.lock().unwrap().clear();
    scene.settle().await;
    tokio::time::sleep(Duration::from_millis(3100)).await;
    scene.settle().await;
    let status = scene.instance("vm1").await.status.unwrap();
    let conditions = status["conditions"].as_array().unwrap();
    let ready = conditions.iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!(ready["reason"], "MachineUnknown");
    assert_eq!(status["phase"], "Unknown");
    assert_eq!(scene.hosts[1].pretence.count("start"), 0);
}

#[tokio::test]
async fn a_start_that_fails_is_told_and_repeated_after_a_pause() {
    let scene = Scene::new(PLENTY).await;
    *scene.hosts[0].pretence.refusal.lock().unwrap() = Some("disk /srv/root.img is missing");
    scene.wish("vm1").await;
    scene.settle().await;
    let events = scene.events("VirtualMachineInstance").await;
    let said = (
        "SyncFailed".to_owned(),
        "disk /srv/root.img is missing".to_owned(),
    );
    assert!(events.contains(&said), "{events:?}");
    assert_eq!(scene.hosts[0].pretence.count("start"), 1, "no pause");
    *scene.hosts[0].pretence.refusal.lock().unwrap() = None;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    scene.settle().await;
    let status = scene.instance("vm1").await.status.unwrap();
    assert_eq!(status["phase"], "Running");
    assert_eq!(condition(&status, "Synchronized"), None);
}

#[tokio::test]
async fn what_no_host_can_build_is_refused_once_with_its_path() {
    let scene = Scene::new(PLENTY).await;
    let mut odd = spec();
    odd["domain"]["machine"] = json!({ "type": "microvm" });
    scene.wish_for("vm1", odd).await;
    scene.settle().await;
    let said = "spec.domain.machine.type: \"microvm\" is not a q35 type, for example pc-q35-7.2";
    let events = scene.events("VirtualMachineInstance").await;
    assert_eq!(events, [("FailedCreate".to_owned(), said.to_owned())]);
    let status = scene.instance("vm1").await.status.unwrap();
    assert_eq!(condition(&status, "Synchronized"), Some("False"));
}

#[tokio::test]
async fn a_target_is_held_for_one_job_alone_and_the_same_when_asked_again() {
    let scene = Scene::new(2 * ONE).await;
    scene.wish("vm1").await;
    scene.settle().await;
    let machine = scene.row("vm1").await.uid;
    let machines = &scene.machines;
    let first = scene.migrate("vm1", "m1").await;
    let (job, epoch) = (first.job.id.clone(), first.epoch.0);
    for _ in 0..2 {
        let target = reserve(machines, (&machine, &job), epoch).await.unwrap();
        assert_eq!(target, "worker2");
    }
    assert_eq!(scene.reservations().await.len(), 2);
    let stale = reserve(machines, (&machine, &job), epoch - 1).await;
    assert_eq!(stale.unwrap_err().code(), Code::Aborted);

    // Its driver died before it learned where: the room goes to the next job.
    scene.fail(&first).await;
    let over = reserve(machines, (&machine, &job), epoch).await;
    assert_eq!(over.unwrap_err().code(), Code::FailedPrecondition);
    let second = scene.migrate("vm1", "m2").await;
    let (job, epoch) = (second.job.id.clone(), second.epoch.0);
    let target = reserve(machines, (&machine, &job), epoch).await.unwrap();
    assert_eq!(target, "worker2");
    let held = scene.reservations().await;
    assert!(
        held.iter().any(|row| row.job.as_ref() == Some(&job)),
        "{held:?}"
    );

    scene.fail(&second).await;
    scene.settle().await;
    assert_eq!(scene.reservations().await.len(), 1, "it was not given back");
}

#[tokio::test]
async fn a_machine_that_only_a_closed_node_may_have_starts_when_it_is_opened() {
    let scene = Scene::new(PLENTY).await;
    let close = async |closed: bool| {
        let set = |node: &mut godwit_ledger::Object| {
            node.body["spec"]["unschedulable"] = json!(closed);
        };
        scene.edit(&node("worker1"), set).await;
    };
    close(true).await;
    let mut bound = spec();
    bound["nodeSelector"] = json!({"kubernetes.io/hostname": "worker1"});
    scene.wish_for("vm1", bound).await;
    scene.settle().await;
    assert_eq!(scene.row("vm1").await.state, InstanceState::Unplaced);
    let said = (
        "FailedScheduling".to_owned(),
        "0/2 nodes are available: 1 node(s) were unschedulable, \
         1 node(s) didn't match Pod's node affinity/selector."
            .to_owned(),
    );
    let events = scene.events("VirtualMachineInstance").await;
    assert!(events.contains(&said), "{events:?}");
    close(false).await;
    scene.settle().await;
    let row = scene.row("vm1").await;
    assert_eq!(
        (row.state, row.node),
        (InstanceState::Running, Some(worker("worker1")))
    );
}

#[tokio::test]
async fn a_machine_that_is_marked_for_eviction_shows_it_until_the_mark_goes() {
    let scene = Scene::new(PLENTY).await;
    scene.wish("vm1").await;
    scene.settle().await;
    for mark in [Some("worker1"), None] {
        scene
            .edit(&vmi("vm1"), |instance| {
                let told = instance.status.as_mut().unwrap().as_object_mut().unwrap();
                match mark {
                    Some(node) => told.insert("evacuationNodeName".to_owned(), json!(node)),
                    None => told.remove("evacuationNodeName"),
                };
            })
            .await;
        scene.settle().await;
        let status = scene.instance("vm1").await.status.unwrap();
        assert_eq!(
            condition(&status, "EvictionRequested"),
            mark.map(|_| "True")
        );
    }
}

#[tokio::test]
async fn machines_that_bear_each_other_not_never_share_a_node() {
    let scene = Scene::new(PLENTY).await;
    let mut apart = spec();
    apart["affinity"] = json!({"podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{
            "labelSelector": {"matchLabels": {"app": "lab"}},
            "topologyKey": "kubernetes.io/hostname",
        }],
    }});
    for name in ["vm1", "vm2", "vm3"] {
        scene.wish_for(name, apart.clone()).await;
        scene.settle().await;
    }
    let nodes = [scene.row("vm1").await.node, scene.row("vm2").await.node];
    assert_eq!(nodes, [Some(worker("worker1")), Some(worker("worker2"))]);
    assert_eq!(scene.row("vm3").await.state, InstanceState::Unplaced);
    let said = (
        "FailedScheduling".to_owned(),
        "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules, \
         2 node(s) didn't satisfy existing pods anti-affinity rules."
            .to_owned(),
    );
    let events = scene.events("VirtualMachineInstance").await;
    assert!(events.contains(&said), "{events:?}");

    let lease = scene.migrate("vm1", "m1").await;
    let machine = scene.row("vm1").await.uid;
    let target = async || reserve(&scene.machines, (&machine, &lease.job.id), lease.epoch.0).await;
    assert_eq!(target().await.unwrap(), "");
    // The other isn't one of them any more.
    scene
        .edit(&vmi("vm2"), |instance| {
            instance.metadata["labels"]["app"] = json!("else");
            instance.body["spec"]["affinity"] = json!({});
        })
        .await;
    assert_eq!(target().await.unwrap(), "worker2");
}

#[tokio::test]
async fn a_closed_or_removed_node_takes_nobody() {
    let scene = Scene::new(PLENTY).await;
    scene
        .edit(&node("worker1"), |node| {
            node.body["spec"]["unschedulable"] = json!(true)
        })
        .await;
    scene.wish("vm1").await;
    scene.settle().await;
    assert_eq!(scene.row("vm1").await.node, Some(worker("worker2")));
    let lease = scene.migrate("vm1", "m1").await;
    let machine = scene.row("vm1").await.uid;
    let none = reserve(&scene.machines, (&machine, &lease.job.id), lease.epoch.0).await;
    assert_eq!(none.unwrap(), "");
}

#[tokio::test]
async fn a_machine_with_a_local_disk_comes_back_to_it() {
    let scene = Scene::new(PLENTY).await;
    let mut local = spec();
    local["volumes"][0]["hostDisk"]["shared"] = json!(false);
    scene.wish_for("vm1", local).await;
    scene.settle().await;
    assert_eq!(
        scene.get(&vm("vm1")).await.annotation(HOME),
        Some("worker1")
    );
    let status = scene.instance("vm1").await.status.unwrap();
    assert_eq!(condition(&status, "LiveMigratable"), Some("False"));

    scene
        .edit(&node("worker1"), |node| {
            node.body["spec"]["unschedulable"] = json!(true)
        })
        .await;
    let first = scene.instance("vm1").await.uid;
    scene.hosts[0].pretence.become_all(MachineState::Stopped);
    scene.hear(&scene.machines).await;
    scene.settle().await;
    let instance = scene.instance("vm1").await;
    assert_ne!(instance.uid, first);
    assert_eq!(scene.row("vm1").await.state, InstanceState::Unplaced);
    let events = scene.events("VirtualMachineInstance").await;
    let said = "0/2 nodes are available: 1 node(s) were unschedulable, \
                1 node(s) didn't have the machine's local disks.";
    assert!(events.iter().any(|(_, note)| note == said), "{events:?}");
}

#[tokio::test]
async fn an_instance_without_a_virtual_machine_lives_and_goes_by_itself() {
    let scene = Scene::new(PLENTY).await;
    let new = NewObject {
        key: vmi("bare"),
        uid: None,
        metadata: json!({ "finalizers": [crate::vm::FINALIZER] }),
        body: json!({ "spec": spec() }),
        status: None,
    };
    scene.write(async |tx| tx.create(new).await).await;
    scene.settle().await;
    assert_eq!(scene.row("bare").await.state, InstanceState::Running);
    scene
        .edit(&vmi("bare"), |instance| {
            instance.metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        })
        .await;
    scene.settle().await;
    assert_eq!(scene.others.get(&vmi("bare")).await.unwrap(), None);
    assert!(scene.others.instances().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_node_shows_what_its_host_says_and_keeps_what_users_did() {
    let scene = Scene::new(PLENTY).await;
    scene
        .edit(&node("worker1"), |node| {
            node.metadata["labels"]["mine"] = json!("yes")
        })
        .await;
    let before = scene.others.revision().await.unwrap();
    scene.hear(&scene.machines).await;
    assert_eq!(
        scene.others.revision().await.unwrap(),
        before,
        "a heartbeat was written"
    );
    let object = scene.get(&node("worker1")).await;
    assert_eq!(object.label("mine"), Some("yes"));
    assert_eq!(object.label("rack"), Some("a"));
    assert_eq!(object.label("node-role.kubernetes.io/worker"), Some(""));
    let status = object.status.unwrap();
    assert_eq!(status["nodeInfo"]["kubeletVersion"], "v0.1.0");
    assert_eq!(
        status["nodeInfo"]["containerRuntimeVersion"],
        "qemu://7.2.22"
    );

    scene
        .write(async |tx| tx.remove(&node("worker1")).await)
        .await;
    let (machines, up) = (&scene.machines, Duration::ZERO);
    look_for_silence(&machines.inventory, &machines.ledger, up)
        .await
        .unwrap();
    scene.hear(machines).await;
    assert_eq!(scene.get(&node("worker1")).await.label("rack"), Some("a"));
}
