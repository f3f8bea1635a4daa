//! DrainPlans, with and without carrying them out. Machines are moved by what others would have
//! written.

use std::sync::Arc;

use godwit_ledger::{NewReservation, NodeRow, ObjectKey, Reserved};
use godwit_model::placement::Room;
use godwit_model::{Bytes, MachineId, NodeName};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{MAINTENANCES, Scene, connect, moves, new, told, worker};
use crate::drain_plan::{PLANS, Plans};

struct PlanScene {
    scene: Scene,
    plans: Plans,
}

impl PlanScene {
    /// Three nodes with room for everybody.
    async fn new() -> Self {
        let scene = Scene::new().await;
        scene.node("worker3").await;
        for name in ["worker1", "worker2", "worker3"] {
            let facts = json!({ "machineTypes": [""], "cpuModels": [""] });
            let row = scene.others.nodes().await.unwrap();
            let row = row
                .into_iter()
                .find(|row| row.name.as_str() == name)
                .unwrap();
            scene
                .write(async |tx| tx.node_put(NodeRow { facts, ..row }).await)
                .await;
            let labels = json!({ "kubernetes.io/hostname": name, "rack": name });
            let key = ObjectKey::new("nodes", "", name);
            scene
                .edit(&key, |node| node.metadata["labels"] = labels)
                .await;
        }
        let plans = Plans::new(
            connect(&scene.url).await,
            Arc::new(Notify::new()),
            CancellationToken::new(),
        );
        Self { scene, plans }
    }

    /// A machine on `node` with so much memory held there.
    async fn machine(&self, name: &str, node: &str, spec: Value, mib: u64) -> MachineId {
        let machine = self.scene.machine(name, spec).await;
        self.scene.move_to(&machine, node).await;
        self.hold(&machine, node, mib).await;
        machine
    }

    async fn hold(&self, machine: &MachineId, node: &str, mib: u64) {
        let new = NewReservation {
            machine: machine.clone(),
            node: worker(node),
            job: None,
            room: Room {
                memory: Bytes::mib(mib),
                cpu_milli: 100,
                ..Room::default()
            },
        };
        let held = self.scene.write(async |tx| tx.reserve(new).await).await;
        assert_eq!(held, Reserved::Held);
    }

    /// The machine arrives on `target`, and its migration is over.
    async fn arrive(&self, machine: &MachineId, (from, target): (&str, &str), mib: u64) {
        let from: NodeName = worker(from);
        self.scene
            .write(async |tx| tx.reservation_release(machine, &from).await)
            .await;
        self.scene.move_to(machine, target).await;
        self.hold(machine, target, mib).await;
    }

    async fn plan(&self, spec: Value) {
        let new = new(plan(), json!({}), json!({ "spec": spec }));
        self.scene.write(async |tx| tx.create(new).await).await;
    }

    async fn respec(&self, change: impl FnOnce(&mut Value)) {
        self.scene
            .edit(&plan(), |plan| change(&mut plan.body["spec"]))
            .await;
    }

    async fn status(&mut self) -> Value {
        self.plans.round().await.unwrap();
        self.scene.get(&plan()).await.status.unwrap_or_default()
    }

    /// The status as it is before anything was looked at again.
    async fn fresh(&mut self) -> Value {
        self.plans = Plans::new(
            connect(&self.scene.url).await,
            Arc::new(Notify::new()),
            CancellationToken::new(),
        );
        self.status().await
    }

    /// Names and nodes of the maintenances that there are.
    async fn maintenances(&self) -> Vec<(String, String)> {
        let all = self.scene.others.list(MAINTENANCES).await.unwrap();
        let pair = |one: &godwit_ledger::Object| {
            let node = one.spec()["nodeName"].as_str().unwrap().to_owned();
            (one.key.name.clone(), node)
        };
        all.iter().map(pair).collect()
    }

    async fn maintenance_says(&self, name: &str, status: Value) {
        let key = ObjectKey::new(MAINTENANCES, "", name);
        self.scene
            .edit(&key, |object| object.status = Some(status))
            .await;
    }

    async fn open(&self, name: &str) {
        let key = ObjectKey::new(MAINTENANCES, "", name);
        self.scene.write(async |tx| tx.remove(&key).await).await;
    }
}

fn plan() -> ObjectKey {
    ObjectKey::new(PLANS, "", "monday")
}

fn lines<'a>(status: &'a Value, list: &str, keys: &[&str]) -> Vec<Vec<&'a str>> {
    let list = status[list].as_array().into_iter().flatten();
    list.map(|line| {
        let words = keys
            .iter()
            .map(|key| line[*key].as_str().unwrap_or_default());
        words.collect()
    })
    .collect()
}

fn is(status: &Value, kind: &str) -> Option<bool> {
    let conditions = status["conditions"].as_array()?;
    let found = conditions.iter().find(|one| one["type"] == kind)?;
    Some(found["status"] == "True")
}

#[tokio::test]
async fn a_plan_says_who_goes_where_and_who_stays_and_does_nothing() {
    let mut scene = PlanScene::new().await;
    scene.machine("large", "worker2", moves(), 2048).await;
    scene.machine("small", "worker2", moves(), 512).await;
    let stays = json!({ "evictionStrategy": "None" });
    scene.machine("stays", "worker2", stays, 512).await;
    scene.machine("other", "worker3", moves(), 4096).await;
    scene.plan(json!({ "nodes": ["worker2"] })).await;
    let status = scene.status().await;
    assert_eq!(status["phase"], "Planned", "{status:#}");
    assert_eq!(
        lines(&status, "moves", &["name", "source", "target", "method"]),
        [
            ["large", "worker2", "worker1", "Live"],
            ["small", "worker2", "worker1", "Live"],
        ]
    );
    assert_eq!(
        lines(&status, "blockers", &["node", "name", "reason"]),
        [["worker2", "stays", "EvictionStrategyNone"]]
    );
    assert!(!status["blockers"][0]["remedy"].as_str().unwrap().is_empty());
    let totals = ["nodesTotal", "movesTotal", "blockersTotal", "wavesTotal"];
    assert_eq!(
        totals.map(|key| status[key].as_u64()),
        [1, 2, 1, 1].map(Some)
    );
    let forecast = &status["forecast"];
    let [earliest, likely, latest] =
        ["earliestSeconds", "seconds", "latestSeconds"].map(|key| forecast[key].as_f64().unwrap());
    assert!(
        0.0 < earliest && earliest < likely && likely < latest,
        "{forecast}"
    );
    assert!(status["inventoryRevision"].as_u64().unwrap() > 0);
    assert_eq!(status["observedGeneration"], 1);
    assert!(scene.maintenances().await.is_empty());
    let before = scene.scene.others.revision().await.unwrap();
    assert_eq!(scene.fresh().await, status);
    assert_eq!(
        scene.scene.others.revision().await.unwrap(),
        before,
        "it wrote again"
    );
}

#[tokio::test]
async fn a_plan_says_why_of_each_move_and_of_each_node_that_takes_nobody() {
    let mut scene = PlanScene::new().await;
    scene.machine("large", "worker2", moves(), 6144).await;
    scene.machine("small", "worker2", moves(), 256).await;
    scene.machine("first", "worker1", moves(), 4096).await;
    scene.machine("second", "worker3", moves(), 3072).await;
    scene.plan(json!({ "nodes": ["worker2"] })).await;
    let status = scene.status().await;
    assert_eq!(
        lines(&status, "moves", &["name", "target"]),
        [["small", "worker3"]]
    );
    let why = status["moves"][0]["why"].as_str().unwrap();
    assert!(why.contains(" points, worker1 is next with "), "{why}");
    assert_eq!(lines(&status, "blockers", &["name"]), [["large"]]);
    let told = &status["blockers"][0]["verdicts"];
    let full = json!(["Insufficient memory"]);
    assert_eq!(
        told[0],
        json!({ "node": "worker1", "reasons": full }),
        "{told}"
    );
    assert_eq!(
        told[1],
        json!({ "node": "worker3", "reasons": full }),
        "{told}"
    );
    assert_eq!(told[2]["node"], "worker2");
    assert_eq!(status["blockers"][0]["verdictsNotShown"], Value::Null);
}

#[tokio::test]
async fn a_plan_stays_as_it_was_made_and_says_when_it_is_stale() {
    let mut scene = PlanScene::new().await;
    let machine = scene.machine("vm1", "worker2", moves(), 512).await;
    scene
        .plan(json!({ "nodeSelector": { "matchLabels": { "rack": "worker2" } } }))
        .await;
    let made = scene.status().await;
    assert_eq!(is(&made, "Stale"), Some(false));
    assert_eq!(made["movesTotal"], 1);
    scene.arrive(&machine, ("worker2", "worker1"), 512).await;
    let stale = scene.fresh().await;
    assert_eq!(is(&stale, "Stale"), Some(true));
    let text = stale["conditions"][0]["message"].as_str().unwrap();
    assert!(text.contains("1 moves, blockers or nodes differ"), "{text}");
    assert_eq!(stale["moves"], made["moves"]);
    scene.respec(|spec| spec["refresh"] = json!("again")).await;
    let anew = scene.status().await;
    assert_eq!(
        (is(&anew, "Stale"), &anew["movesTotal"]),
        (Some(false), &json!(0))
    );
    assert_eq!(anew["observedGeneration"], 2);
}

#[tokio::test]
async fn waves_are_carried_out_one_after_the_other_to_the_planned_targets() {
    let mut scene = PlanScene::new().await;
    let first = scene.machine("vm1", "worker1", moves(), 512).await;
    scene.machine("vm2", "worker2", moves(), 1024).await;
    let nodes = json!({ "nodes": ["worker2", "worker1"], "maxUnavailable": 1 });
    scene.plan(nodes).await;
    let planned = scene.status().await;
    assert_eq!(planned["wavesTotal"], 2);
    assert!(scene.maintenances().await.is_empty());
    scene.respec(|spec| spec["execute"] = json!(true)).await;
    let begun = scene.fresh().await;
    assert_eq!(begun["moves"], planned["moves"]);
    assert_eq!(begun["phase"], "Draining");
    assert_eq!(is(&begun, "Replanned"), None, "{begun:#}");
    let made = scene.maintenances().await;
    assert_eq!(made, [("monday-worker1".to_owned(), "worker1".to_owned())]);
    let key = ObjectKey::new(MAINTENANCES, "", "monday-worker1");
    let maintenance = scene.scene.get(&key).await;
    let owner = &maintenance.metadata["ownerReferences"][0];
    let uid = scene.scene.get(&plan()).await.uid;
    assert_eq!(
        (&owner["kind"], &owner["uid"]),
        (&json!("DrainPlan"), &json!(uid))
    );
    assert_eq!(
        *told(&maintenance, "machines"),
        json!([{
            "namespace": "default", "name": "vm1", "uid": first, "targetNode": "worker3",
        }])
    );
    assert_eq!(
        lines(&planned, "moves", &["name", "target"])[0],
        ["vm1", "worker3"]
    );
    // It waits while the node is emptied, and while as many are closed as may be.
    assert_eq!(scene.fresh().await["phase"], "Draining");
    scene.arrive(&first, ("worker1", "worker3"), 512).await;
    scene
        .maintenance_says("monday-worker1", json!({ "phase": "Succeeded" }))
        .await;
    let full = scene.fresh().await;
    assert_eq!(full["phase"], "Waiting");
    let message = full["message"].as_str().unwrap();
    assert!(
        message.contains("worker1 is empty and still closed"),
        "{message}"
    );
    scene.open("monday-worker1").await;
    let second = scene.fresh().await;
    assert_eq!(scene.maintenances().await[0].1, "worker2");
    assert_eq!(
        lines(&second, "nodes", &["name", "state"]),
        [["worker1", "Released"], ["worker2", "Draining"]]
    );
    assert_eq!(is(&second, "Replanned"), None, "{second:#}");
    assert_eq!(second["moves"][1]["order"], 2);
    scene
        .maintenance_says("monday-worker2", json!({ "phase": "Succeeded" }))
        .await;
    assert_eq!(scene.fresh().await["phase"], "Succeeded");
    let events = scene.scene.events("monday").await;
    let reasons: Vec<&str> = events.iter().map(|(reason, ..)| reason.as_str()).collect();
    assert_eq!(
        reasons,
        ["Planned", "Succeeded", "WaveBegins", "WaveBegins"]
    );
}

#[tokio::test]
async fn what_changed_before_a_wave_is_planned_anew_and_told() {
    let mut scene = PlanScene::new().await;
    let machine = scene.machine("vm1", "worker2", moves(), 512).await;
    scene
        .plan(json!({ "nodes": ["worker1", "worker2"], "together": true, "execute": true }))
        .await;
    let planned = scene.status().await;
    assert_eq!(lines(&planned, "moves", &["target"]), [["worker3"]]);
    scene.arrive(&machine, ("worker2", "worker3"), 512).await;
    scene.machine("vm2", "worker1", moves(), 512).await;
    let begun = scene.status().await;
    assert_eq!(is(&begun, "Replanned"), Some(true));
    assert_eq!(
        lines(&begun, "moves", &["name", "target"]),
        [["vm2", "worker3"]]
    );
    assert_eq!(scene.maintenances().await.len(), 2);
    let events = scene.scene.events("monday").await;
    assert!(events.iter().any(|(reason, ..)| reason == "Replanned"));
    // Turned off, it begins nothing more, and what has begun goes on.
    scene.respec(|spec| spec["execute"] = json!(false)).await;
    assert_eq!(scene.fresh().await["phase"], "Draining");
}

#[tokio::test]
async fn a_plan_that_is_stopped_between_waves_begins_no_other() {
    let mut scene = PlanScene::new().await;
    scene
        .plan(json!({ "nodes": ["worker1", "worker2"], "maxUnavailable": 1, "execute": true }))
        .await;
    scene.status().await;
    scene.fresh().await;
    let [(name, _)] = scene.maintenances().await.try_into().unwrap();
    scene.respec(|spec| spec["execute"] = json!(false)).await;
    scene
        .maintenance_says(&name, json!({ "phase": "Succeeded" }))
        .await;
    let stopped = scene.fresh().await;
    assert_eq!(
        (&stopped["phase"], &stopped["observedGeneration"]),
        (&json!("Paused"), &json!(2))
    );
    scene.open(&name).await;
    assert_eq!(scene.fresh().await["phase"], "Paused");
    assert!(scene.maintenances().await.is_empty());
}
