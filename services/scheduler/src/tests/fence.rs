//! Nodes that somebody declared dead.

use std::time::Duration;

use godwit_ledger::{InstanceState, NewObject, ObjectKey};
use godwit_model::Epoch;
use serde_json::{Value, json};

use super::scene::{Host, Scene, node, vm};
use crate::config::{Config, FenceCommand};
use crate::fence_command;
use crate::inventory::look_for_silence;
use crate::stale;
use crate::world::FENCES;

const PLENTY: u64 = 8192;

impl Scene {
    /// Only `host` still reports.
    async fn only(&self, host: &Host) {
        let machines = &self.machines;
        machines.inventory.hush();
        self.hear_one(machines, host).await;
        let up = Duration::from_secs(60);
        look_for_silence(&machines.inventory, &machines.ledger, up)
            .await
            .unwrap();
    }

    async fn declare_dead(&self, host: &Host, boot_id: &str) {
        let spec = json!({
            "nodeName": host.name, "bootID": boot_id, "statement": "its power is cut",
        });
        let new = NewObject {
            key: ObjectKey::new(FENCES, "", "dead"),
            uid: None,
            metadata: json!({ "annotations": { "godwit.io/fenced-by": "ada" } }),
            body: json!({ "spec": spec }),
            status: None,
        };
        self.write(async |tx| tx.create(new).await).await;
    }

    /// Rounds while only `host` reports.
    async fn rounds(&self, host: &Host) {
        for _ in 0..8 {
            self.machines.round().await.unwrap();
            while self.machines.orders.are_busy() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            self.hear_one(&self.machines, host).await;
        }
    }

    async fn fence_status(&self) -> Value {
        let fence = self.get(&ObjectKey::new(FENCES, "", "dead")).await;
        fence.status.unwrap_or_default()
    }

    /// The host that the machine is on, and the other.
    async fn sides(&self, name: &str) -> (&Host, &Host) {
        let home = self.host_of(name).await;
        let other = self.hosts.iter().find(|host| host.name != home.name);
        (home, other.unwrap())
    }
}

#[tokio::test]
async fn a_machine_of_a_fenced_node_starts_elsewhere_and_ends_where_it_was() {
    let scene = Scene::new(PLENTY).await;
    scene.wish("vm1").await;
    scene.settle().await;
    let before = scene.row("vm1").await;
    let (dead, alive) = scene.sides("vm1").await;
    scene.only(alive).await;
    scene.rounds(alive).await;
    assert_eq!(
        scene.row("vm1").await,
        before,
        "silence alone moves nothing"
    );

    scene.declare_dead(dead, "").await;
    scene.rounds(alive).await;
    let row = scene.row("vm1").await;
    assert_eq!(
        (row.node.as_ref(), row.epoch),
        (Some(&alive.name), Epoch(3))
    );
    assert_eq!(row.state, InstanceState::Running);
    assert_eq!(scene.reservations().await.len(), 1);
    let instance = scene.instance("vm1").await;
    assert_eq!(instance.status.unwrap()["nodeName"], json!(alive.name));
    let told = scene.fence_status().await;
    assert_eq!(
        (&told["phase"], &told["machines"]),
        (&json!("Fenced"), &json!(["default/vm1"]))
    );
    let kept = scene.others.node_fences(&dead.name).await.unwrap();
    assert_eq!(kept[0].by, "ada");
    let events = scene.events("Node").await;
    assert!(
        events.iter().any(|(reason, _)| reason == "NodeFenced"),
        "{events:?}"
    );

    // The dead node comes back with the old machine, and is told to end it.
    let stale = stale::find(
        (&scene.machines.ledger, &scene.machines.epochs),
        &dead.report().machines,
    )
    .await
    .unwrap();
    assert_eq!(stale.len(), 1);
    assert_eq!(
        (stale[0].machine.as_str(), stale[0].epoch),
        (row.uid.as_str(), 3)
    );
    let fresh = stale::find(
        (&scene.machines.ledger, &scene.machines.epochs),
        &alive.report().machines,
    )
    .await
    .unwrap();
    assert_eq!(fresh, vec![]);
}

#[tokio::test]
async fn a_fence_of_a_node_that_answers_is_void_also_when_it_falls_silent_later() {
    let scene = Scene::new(PLENTY).await;
    scene.wish("vm1").await;
    scene.settle().await;
    let before = scene.row("vm1").await;
    let (host, alive) = scene.sides("vm1").await;
    scene.declare_dead(host, "").await;
    scene.settle().await;
    assert_eq!(scene.fence_status().await["phase"], "Void");
    scene.only(alive).await;
    scene.rounds(alive).await;
    assert_eq!(scene.row("vm1").await, before);
    assert_eq!(scene.fence_status().await["phase"], "Void");
    assert_eq!(scene.others.node_fences(&host.name).await.unwrap(), vec![]);
}

#[tokio::test]
async fn a_fence_of_another_boot_is_void() {
    let scene = Scene::new(PLENTY).await;
    scene.wish("vm1").await;
    scene.settle().await;
    let before = scene.row("vm1").await;
    let (dead, alive) = scene.sides("vm1").await;
    scene.only(alive).await;
    scene.declare_dead(dead, "an older boot").await;
    scene.rounds(alive).await;
    assert_eq!(scene.row("vm1").await, before);
    let told = scene.fence_status().await;
    assert_eq!(told["phase"], "Void");
    assert!(
        told["message"].as_str().unwrap().contains("last boot"),
        "{told}"
    );
}

#[tokio::test]
async fn a_machine_that_nobody_starts_again_has_failed() {
    let scene = Scene::new(PLENTY).await;
    scene.wish("vm1").await;
    scene.settle().await;
    let manual = |vm: &mut godwit_ledger::Object| vm.body["spec"]["runStrategy"] = json!("Manual");
    scene.edit(&vm("vm1"), manual).await;
    scene.settle().await;
    let (dead, alive) = scene.sides("vm1").await;
    scene.only(alive).await;
    scene.declare_dead(dead, "").await;
    scene.rounds(alive).await;
    let row = scene.row("vm1").await;
    assert_eq!(
        (row.state, row.node, row.epoch),
        (InstanceState::Failed, None, Epoch(3))
    );
    let told = scene.instance("vm1").await.status.unwrap();
    assert_eq!(told["phase"], "Failed");
    assert!(
        told["message"].as_str().unwrap().contains("was fenced"),
        "{told}"
    );
}

#[tokio::test]
async fn a_machine_with_an_open_migration_waits_for_its_end() {
    let scene = Scene::new(PLENTY).await;
    scene.wish("vm1").await;
    scene.settle().await;
    let lease = scene.migrate("vm1", "move").await;
    let (dead, alive) = scene.sides("vm1").await;
    scene.only(alive).await;
    scene.declare_dead(dead, "").await;
    scene.rounds(alive).await;
    assert_eq!(scene.row("vm1").await.node.as_ref(), Some(&dead.name));
    assert_eq!(scene.fence_status().await["phase"], "Pending");
    scene.fail(&lease).await;
    scene.rounds(alive).await;
    assert_eq!(scene.row("vm1").await.node.as_ref(), Some(&alive.name));
    assert_eq!(scene.fence_status().await["phase"], "Fenced");
    let _ = scene.get(&node(dead.name.as_str())).await;
}

#[tokio::test]
async fn a_fence_command_is_called_until_it_works_and_then_the_machines_move() {
    let scene = Scene::new(PLENTY).await;
    scene.wish("vm1").await;
    scene.settle().await;
    let (dead, alive) = scene.sides("vm1").await;
    // The first call fails, as with a BMC that is just restarting.
    let mark = tempfile::tempdir().unwrap();
    let script = "if mkdir $0 2>&1; then echo no route to the BMC >&2; exit 3; fi; \
                  echo $GODWIT_NODE is off";
    let mark = mark.path().join("called").display().to_string();
    let config = Config {
        fence_command: Some(FenceCommand {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into(), mark],
            after_ms: 100,
            limit_ms: 5_000,
        }),
        ..Config::default()
    };
    let caller = scene.deaf_with(config).await;
    scene.hear_one(&caller, alive).await;
    let calls = tokio::spawn(fence_command::run(caller));
    scene.only(alive).await;
    let is_declared = async || !scene.others.list(FENCES).await.unwrap().is_empty();
    let declared = async {
        while !is_declared().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), declared)
        .await
        .expect("the command worked");
    calls.abort();
    let events = scene.events("Node").await;
    let failed = events.iter().find(|(reason, _)| reason == "FencingFailed");
    let (_, note) = failed.expect("the first call failed");
    assert!(note.contains("no route to the BMC"), "{note}");

    scene.rounds(alive).await;
    assert_eq!(scene.row("vm1").await.node.as_ref(), Some(&alive.name));
    let kept = scene.others.node_fences(&dead.name).await.unwrap();
    let statement = format!("/bin/sh made sure of it: {} is off", dead.name);
    assert_eq!(
        (kept[0].by.as_str(), &kept[0].statement),
        ("godwit-scheduler", &statement)
    );
}
