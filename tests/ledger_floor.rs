//! The floor that a process keeps in memory is the one that the ledger has, whatever happens to both.

use std::collections::BTreeSet;

use crate::ledger_setup::{Setup, node, reservation};
use godwit_ledger::{
    FloorKeeper, InstanceState, MachineKeeper, NewObject, ObjectKey, ReservationRow, Reserved,
};
use godwit_model::NodeName;
use godwit_model::placement::Overcommit;
use serde_json::json;

/// Nodes by name with whether each is ready, and what is held where.
type Stand = (
    BTreeSet<(NodeName, bool)>,
    BTreeSet<(String, NodeName, bool)>,
);

fn held(row: &ReservationRow) -> (String, NodeName, bool) {
    (row.machine.to_string(), row.node.clone(), row.job.is_some())
}

/// What is kept, after a look, beside what the ledger says.
async fn both(setup: &Setup, keeper: &FloorKeeper) -> (Stand, Stand) {
    let nodes = setup.ledger.nodes().await.unwrap();
    let rows = setup.ledger.reservations().await.unwrap();
    let floor = keeper.glance(&setup.ledger).await.unwrap();
    let kept = (
        floor
            .nodes()
            .map(|node| (node.name.clone(), node.ready))
            .collect(),
        floor.reservations().map(held).collect(),
    );
    let read = (
        nodes
            .iter()
            .map(|node| (node.name.clone(), node.ready))
            .collect(),
        rows.iter().map(held).collect(),
    );
    (kept, read)
}

async fn agree(setup: &Setup, keeper: &FloorKeeper) {
    let (kept, read) = both(setup, keeper).await;
    assert_eq!(kept, read);
}

#[tokio::test]
async fn a_floor_that_is_kept_follows_each_change_of_room_and_of_nodes() {
    let setup = Setup::new().await;
    let keeper = FloorKeeper::default();
    agree(&setup, &keeper).await;
    let worker1 = setup.node("worker1", 2).await;
    let worker2 = setup.node("worker2", 2).await;
    let vm1 = setup.machine("vm1", &worker1).await;
    agree(&setup, &keeper).await;

    let held = setup.change(async |tx| tx.reserve(reservation(&vm1, &worker2)).await);
    assert_eq!(held.await, Reserved::Held);
    agree(&setup, &keeper).await;
    let frees = setup.change(async |tx| tx.reservation_release(&vm1, &worker1).await);
    frees.await;
    let silent = godwit_ledger::NodeRow {
        ready: false,
        ..node("worker2", 2)
    };
    setup.change(async |tx| tx.node_put(silent).await).await;
    agree(&setup, &keeper).await;
    setup
        .change(async |tx| tx.instance_remove(&vm1).await)
        .await;
    setup
        .change(async |tx| tx.node_remove(&worker1).await)
        .await;
    agree(&setup, &keeper).await;
}

#[tokio::test]
async fn a_transaction_that_rolls_back_leaves_nothing_on_the_floor() {
    let setup = Setup::new().await;
    let keeper = FloorKeeper::default();
    let worker1 = setup.node("worker1", 2).await;
    let worker2 = setup.node("worker2", 2).await;
    let vm1 = setup.machine("vm1", &worker1).await;
    let mut tx = setup.ledger.begin().await.unwrap();
    assert_eq!(
        keeper.current(&mut tx).await.unwrap().held_by(&vm1).len(),
        1
    );
    let held = tx.reserve(reservation(&vm1, &worker2)).await.unwrap();
    assert_eq!(held, Reserved::Held);
    drop(tx);
    agree(&setup, &keeper).await;
}

#[tokio::test]
async fn who_is_too_far_behind_the_floor_reads_all_of_it_again() {
    let setup = Setup::new().await;
    let keeper = FloorKeeper::default();
    let worker1 = setup.node("worker1", 4).await;
    agree(&setup, &keeper).await;
    for name in ["vm1", "vm2", "vm3"] {
        setup.machine(name, &worker1).await;
    }
    setup.ledger.floor_changes_prune(1).await.unwrap();
    agree(&setup, &keeper).await;
}

#[tokio::test]
async fn a_node_that_is_closed_takes_nobody_on_the_kept_floor() {
    let setup = Setup::new().await;
    let keeper = FloorKeeper::default();
    setup.node("worker1", 4).await;
    let open = NewObject {
        key: ObjectKey::new("nodes", "", "worker1"),
        uid: None,
        metadata: json!({}),
        body: json!({"spec": {}}),
        status: None,
    };
    let mut object = setup.change(async |tx| tx.create(open).await).await;
    let spare = async |keeper: &FloorKeeper| {
        let mut floor = keeper.glance(&setup.ledger).await.unwrap();
        floor.fleet().spare(false).map(|room| room.memory.0)
    };
    assert!(spare(&keeper).await.is_some_and(|memory| memory > 0));
    object.body["spec"]["unschedulable"] = json!(true);
    setup.change(async |tx| tx.put(&object).await).await;
    assert_eq!(spare(&keeper).await.unwrap_or_default(), 0);
}

#[tokio::test]
async fn a_floor_that_is_kept_hears_how_far_nodes_are_overcommitted() {
    let setup = Setup::new().await;
    let keeper = FloorKeeper::default();
    let told = async |keeper: &FloorKeeper| {
        let floor = keeper.glance(&setup.ledger).await.unwrap();
        let Overcommit {
            cpu_ratio,
            memory_percent,
        } = floor.overcommit();
        [cpu_ratio, memory_percent]
    };
    let configured = |percent: u32| {
        let developer = json!({ "memoryOvercommit": percent });
        json!({ "spec": { "configuration": { "developerConfiguration": developer } } })
    };
    assert_eq!(told(&keeper).await, [10, 100]);
    let kubevirt = NewObject {
        key: ObjectKey::new("kubevirts.kubevirt.io", "kubevirt", "kubevirt"),
        uid: None,
        metadata: json!({}),
        body: configured(150),
        status: None,
    };
    let mut kubevirt = setup.change(async |tx| tx.create(kubevirt).await).await;
    assert_eq!(told(&keeper).await, [10, 150]);
    let mut map = setup.create("kubevirt-config").await;
    map.body = json!({ "data": { "cpu-allocation-ratio": "2", "memory-overcommit": "400" } });
    let map = setup.change(async |tx| tx.put(&map).await).await;
    assert_eq!(told(&keeper).await, [2, 150]);
    kubevirt.body = configured(0);
    let kubevirt = setup.change(async |tx| tx.put(&kubevirt).await).await;
    assert_eq!(told(&keeper).await, [2, 150], "the last good one");
    assert_eq!(
        told(&FloorKeeper::default()).await,
        [2, 100],
        "nobody knows"
    );
    setup
        .change(async |tx| tx.remove(&kubevirt.key).await)
        .await;
    assert_eq!(told(&keeper).await, [2, 400]);
    setup.change(async |tx| tx.remove(&map.key).await).await;
    assert_eq!(told(&keeper).await, [10, 100]);
    agree(&setup, &keeper).await;
}

/// What is kept of machines, after a look, is what the ledger says.
async fn machines_agree(setup: &Setup, keeper: &mut MachineKeeper) {
    let rows = setup.ledger.instances().await.unwrap();
    let objects = setup.ledger.list("configmaps").await.unwrap();
    let kept = keeper.follow(&setup.ledger).await.unwrap();
    let mut found: Vec<_> = kept.rows.values().cloned().collect();
    found.sort_by(|a, b| a.uid.cmp(&b.uid));
    assert_eq!(found, rows);
    let found: Vec<_> = kept.objects.values().cloned().collect();
    assert_eq!(found, objects);
}

#[tokio::test]
async fn machines_that_are_kept_follow_each_change_of_their_rows_and_objects() {
    let setup = Setup::new().await;
    let mut keeper = MachineKeeper::new(&["configmaps"]);
    machines_agree(&setup, &mut keeper).await;
    let worker1 = setup.node("worker1", 2).await;
    let vm1 = setup.machine("vm1", &worker1).await;
    let (first, second) = (setup.create("first").await, setup.create("second").await);
    machines_agree(&setup, &mut keeper).await;

    setup
        .change(async |tx| {
            let mut row = tx.instance(&vm1).await?.unwrap();
            row.state = InstanceState::Stopped;
            tx.instance_put(&row).await
        })
        .await;
    let mut blue = first.clone();
    blue.body = json!({"data": {"colour": "blue"}});
    setup.change(async |tx| tx.put(&blue).await).await;
    machines_agree(&setup, &mut keeper).await;

    setup
        .change(async |tx| tx.instance_remove(&vm1).await)
        .await;
    setup.change(async |tx| tx.remove(&second.key).await).await;
    machines_agree(&setup, &mut keeper).await;

    // What was forgotten of both logs can't be followed, and all is read again.
    setup.machine("vm2", &worker1).await;
    setup.create("third").await;
    setup.ledger.floor_changes_prune(0).await.unwrap();
    let none = std::time::Duration::ZERO;
    setup.ledger.changes_prune(none, 0).await.unwrap();
    machines_agree(&setup, &mut keeper).await;
}
