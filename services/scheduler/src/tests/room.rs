//! How much of a node a machine takes: overcommitted or not, and in huge pages.

use std::sync::atomic::Ordering;

use godwit_ledger::{InstanceState, NewObject, ObjectKey};
use godwit_model::{Bytes, MachineId};
use serde_json::{Value, json};

use super::reasons;
use super::scene::{Scene, node, reserve, spec, vmi};
use crate::json::condition;

/// What a guest of 256 MiB takes: its memory, and what QEMU needs beside it.
const WHOLE: u64 = (256 << 20) + OWN;
const HALF: u64 = (128 << 20) + OWN;
const OWN: u64 = (64 << 20) + (512 << 10);

fn kubevirt() -> ObjectKey {
    ObjectKey::new("kubevirts.kubevirt.io", "kubevirt", "kubevirt")
}

fn configured(developer: &Value) -> Value {
    json!({ "spec": { "configuration": { "developerConfiguration": developer } } })
}

async fn configure(scene: &Scene, developer: Value) {
    let new = NewObject {
        key: kubevirt(),
        uid: None,
        metadata: json!({}),
        body: configured(&developer),
        status: None,
    };
    scene.write(async |tx| tx.create(new).await).await;
}

/// What each machine holds, by node.
async fn held(scene: &Scene, name: &str) -> Vec<(String, u64, u64)> {
    let machine = scene.row(name).await.uid;
    let rows = scene.reservations().await;
    let rows = rows.into_iter().filter(|row| row.machine == machine);
    rows.map(|row| {
        let room = row.room;
        (row.node.to_string(), room.memory.0, room.cpu_milli)
    })
    .collect()
}

#[tokio::test]
async fn nodes_are_overcommitted_from_the_next_placement_on_and_what_is_booked_stays() {
    // Room for one machine, and for half of another.
    let scene = Scene::new(520).await;
    for name in ["vm1", "vm2", "vm3"] {
        scene.wish(name).await;
        scene.settle().await;
    }
    assert_eq!(scene.row("vm3").await.state, InstanceState::Unplaced);
    assert_eq!(
        held(&scene, "vm1").await,
        [("worker1".to_owned(), WHOLE, 100)]
    );

    let settings = json!({ "memoryOvercommit": 200, "cpuAllocationRatio": 4 });
    configure(&scene, settings).await;
    let lease = scene.migrate("vm1", "m1").await;
    let id = MachineId::parse(scene.instance("vm1").await.uid).unwrap();
    let job = (&id, &lease.job.id);
    let target = reserve(&scene.machines, job, lease.epoch.0).await.unwrap();
    assert_eq!(target, "worker2");
    assert_eq!(
        held(&scene, "vm1").await,
        [
            ("worker1".to_owned(), WHOLE, 100),
            ("worker2".to_owned(), HALF, 250)
        ]
    );
    scene.settle().await;
    assert_eq!(
        held(&scene, "vm3").await,
        [("worker1".to_owned(), HALF, 250)]
    );
    assert_eq!(scene.row("vm3").await.state, InstanceState::Running);

    // It doesn't free what the other took.
    scene.fail(&lease).await;
    scene.settle().await;
    assert_eq!(
        held(&scene, "vm1").await,
        [("worker1".to_owned(), WHOLE, 100)]
    );

    // Nonsense changes nothing, for whoever knew the last good value.
    scene
        .edit(&kubevirt(), |object| {
            object.body = configured(&json!({ "memoryOvercommit": 0, "cpuAllocationRatio": 4 }));
        })
        .await;
    scene.wish("vm4").await;
    scene.settle().await;
    assert_eq!(
        held(&scene, "vm4").await,
        [("worker2".to_owned(), HALF, 250)]
    );
}

#[tokio::test]
async fn what_a_machine_requests_by_name_is_what_it_holds() {
    let scene = Scene::new(520).await;
    configure(&scene, json!({ "memoryOvercommit": 200 })).await;
    let mut spec = spec();
    spec["domain"]["resources"] = json!({ "requests": { "memory": "300Mi", "cpu": "1500m" } });
    scene.wish_for("vm1", spec).await;
    scene.settle().await;
    let booked = ("worker1".to_owned(), (300 << 20) + OWN, 1500);
    assert_eq!(held(&scene, "vm1").await, [booked]);
}

#[tokio::test]
async fn two_copies_of_the_service_never_book_a_huge_page_twice() {
    let scene = Scene::new(8192).await;
    for host in &scene.hosts {
        host.hugepages.store(512 << 20, Ordering::Relaxed);
    }
    scene.hear(&scene.machines).await;
    let other = scene.another().await;
    let mut spec = spec();
    spec["domain"]["memory"]["hugepages"] = json!({ "pageSize": "2Mi" });
    for number in 0..6 {
        scene.wish_for(&format!("vm{number}"), spec.clone()).await;
    }
    for _ in 0..8 {
        let (here, there) = tokio::join!(scene.machines.round(), other.round());
        here.and(there).unwrap();
    }
    scene.settle().await;
    let held = scene.reservations().await;
    assert_eq!(held.len(), 4, "{held:?}");
    for row in &held {
        assert_eq!(row.room.hugepages.mi2, Bytes::mib(256));
        // The guest's memory is nowhere else.
        assert_eq!(row.room.memory.0, OWN);
    }
    let status = scene.get(&node("worker1")).await.status.unwrap();
    for list in ["capacity", "allocatable"] {
        assert_eq!(status[list]["hugepages-2Mi"], "524288Ki");
        assert_eq!(status[list]["hugepages-1Gi"], "0Ki");
    }
    let events = scene.events("VirtualMachineInstance").await;
    let said = "0/2 nodes are available: 2 Insufficient hugepages-2Mi.";
    assert!(events.iter().any(|(_, note)| note == said), "{events:?}");
}

#[tokio::test]
async fn a_machine_that_waits_says_why_of_each_node_until_it_has_one() {
    let scene = Scene::new(100).await;
    scene.wish("vm1").await;
    scene.settle().await;
    let close = |object: &mut godwit_ledger::Object| {
        object.body["spec"]["unschedulable"] = json!(true);
    };
    scene.edit(&node("worker2"), close).await;
    scene.settle().await;
    let status = scene.instance("vm1").await.status.unwrap();
    assert_eq!(condition(&status, "PodScheduled"), Some("False"));
    let verdicts = json!([
        { "node": "worker1", "reasons": ["Insufficient memory"] },
        { "node": "worker2", "reasons": ["node(s) were unschedulable", "Insufficient memory"] },
    ]);
    assert_eq!(status["placement"], json!({ "verdicts": verdicts }));
    let before = scene.others.revision().await.unwrap();
    scene.machines.round().await.unwrap();
    assert_eq!(
        scene.others.revision().await.unwrap(),
        before,
        "it is said once"
    );
    let events = scene.events("VirtualMachineInstance").await;
    assert!(reasons(&events).contains(&"FailedScheduling"), "{events:?}");

    // A tenth of its memory will do.
    configure(&scene, json!({ "memoryOvercommit": 1000 })).await;
    scene.settle().await;
    let status = scene.get(&vmi("vm1")).await.status.unwrap();
    assert_eq!(status["nodeName"], "worker1");
    assert_eq!(status["placement"], Value::Null);
}
