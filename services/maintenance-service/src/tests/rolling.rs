//! Rolling maintenances on the same scene: the service's rolling rounds and its drains, against a real
//! Postgres and hosts that only pretend.

use std::collections::BTreeMap;
use std::sync::Mutex;

use godwit_ledger::{NewReservation, Reserved};
use godwit_model::placement::Room;
use godwit_rpc::agent::v1::hooks_server::{Hooks, HooksServer};
use godwit_rpc::agent::v1::{HookReport, HookState, RunHookRequest};
use godwit_rpc::server::{self, ServerParts};
use godwit_rpc::{Request, Response, Routes, Status};
use godwit_runtime::metrics::Metrics;
use tokio::net::TcpListener;

use super::*;
use crate::rolling::{ROLLINGS, Rollings};
use crate::telemetry::RollingTelemetry;

/// More rounds than any of these takes.
const ROUNDS_MAX: usize = 200;
const LEAVING: &str = "godwit.io/leaving";

/// A host that pretends to run hooks: each ends when it is asked for the third time.
#[derive(Debug, Default)]
struct Pretence {
    asked: Mutex<BTreeMap<String, (RunHookRequest, usize)>>,
    /// What they end with.
    code: Mutex<i32>,
}

#[derive(Debug)]
struct Door(Arc<Pretence>);

#[godwit_rpc::async_trait]
impl Hooks for Door {
    async fn run_hook(
        &self,
        request: Request<RunHookRequest>,
    ) -> Result<Response<HookReport>, Status> {
        let request = request.into_inner();
        let mut asked = self.0.asked.lock().unwrap();
        let entry = asked.entry(request.run.clone()).or_insert((request, 0));
        entry.1 += 1;
        let ended = entry.1 >= 3;
        Ok(Response::new(HookReport {
            state: if ended {
                HookState::Ended
            } else {
                HookState::Running
            }
            .into(),
            exit_code: if ended {
                *self.0.code.lock().unwrap()
            } else {
                0
            },
            output: if ended {
                "that is all".to_owned()
            } else {
                String::new()
            },
        }))
    }
}

struct Fleet {
    scene: Scene,
    rollings: Rollings,
    hosts: BTreeMap<&'static str, Arc<Pretence>>,
}

impl Fleet {
    async fn new() -> Self {
        let scene = Scene::new().await;
        let mut hosts = BTreeMap::new();
        for name in ["worker1", "worker2"] {
            let pretence = Arc::new(Pretence::default());
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let bind = listener.local_addr().unwrap();
            let parts = ServerParts {
                metrics: Metrics::default(),
                bind,
                identity: None,
                routes: Routes::new(HooksServer::new(Door(Arc::clone(&pretence)))),
                shutdown: CancellationToken::new(),
            };
            tokio::spawn(server::serve_on(listener, parts));
            let nodes = scene.others.nodes().await.unwrap();
            let mut row = nodes
                .into_iter()
                .find(|row| row.name == worker(name))
                .unwrap();
            row.agent_address = format!("http://{bind}");
            row.facts = json!({ "machineTypes": [""], "cpuModels": [""] });
            scene.write(async |tx| tx.node_put(row).await).await;
            hosts.insert(name, pretence);
        }
        Self {
            rollings: rollings(&scene).await,
            scene,
            hosts,
        }
    }

    async fn order(&self, spec: Value) {
        let mut spec = spec;
        spec["nodeSelector"] = json!({});
        let metadata = json!({ "finalizers": ["godwit.io/rolling-maintenance"] });
        let new = new(rolling(), metadata, json!({ "spec": spec }));
        self.scene.write(async |tx| tx.create(new).await).await;
    }

    async fn edit(&self, change: impl FnOnce(&mut Value)) {
        let change = |object: &mut Object| change(&mut object.body["spec"]);
        self.scene.edit(&rolling(), change).await;
    }

    /// A round of everything.
    async fn round(&self) {
        self.rollings.round().await.unwrap();
        self.scene.round().await;
    }

    /// Rounds until the status is so.
    async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..ROUNDS_MAX {
            let status = self.status().await;
            if holds(&status) {
                return status;
            }
            self.round().await;
        }
        panic!("waited in vain for {what}: {:#}", self.status().await);
    }

    async fn ends(&self, phase: &str) -> Value {
        self.until(phase, |status| status["phase"] == phase).await
    }

    async fn status(&self) -> Value {
        self.scene.get(&rolling()).await.status.unwrap_or_default()
    }

    async fn maintenances(&self) -> Vec<String> {
        let all = self.scene.others.list(MAINTENANCES).await.unwrap();
        let node = |one: &Object| one.spec()["nodeName"].as_str().unwrap().to_owned();
        all.iter().map(node).collect()
    }

    /// The nodes are as they were before all of it.
    async fn nodes_are_open(&self) {
        for name in ["worker1", "worker2"] {
            let node = self.scene.get(&ObjectKey::new("nodes", "", name)).await;
            assert_eq!(node.spec()["unschedulable"], Value::Null, "{node:?}");
            assert_eq!(node.annotation(LEAVING), None, "{node:?}");
        }
        assert_eq!(self.maintenances().await, [""; 0]);
    }

    fn runs(&self) -> Vec<(&'static str, RunHookRequest)> {
        let all = self.hosts.iter().flat_map(|(&name, host)| {
            let asked = host.asked.lock().unwrap();
            let runs: Vec<_> = asked.values().map(|(run, _)| (name, run.clone())).collect();
            runs
        });
        all.collect()
    }
}

async fn rollings(scene: &Scene) -> Rollings {
    let (made, requested) = (Arc::default(), Arc::default());
    Rollings::new(
        connect(&scene.url).await,
        None,
        (made, requested),
        (RollingTelemetry::default(), CancellationToken::new()),
    )
}

fn rolling() -> ObjectKey {
    ObjectKey::new(ROLLINGS, "", "kernel")
}

fn update() -> Value {
    json!({ "drained": [{ "name": "update", "command": "update", "args": ["now"] }] })
}

fn state<'a>(status: &'a Value, node: &str) -> &'a Value {
    let mut nodes = status["nodes"].as_array().into_iter().flatten();
    nodes
        .find(|one| one["name"] == node)
        .map_or(&Value::Null, |node| &node["state"])
}

#[tokio::test]
async fn each_node_is_closed_worked_on_and_opened_in_its_turn_whoever_dies() {
    let fleet = Fleet::new().await;
    fleet.order(json!({ "hooks": update() })).await;
    let mut ended = Value::Null;
    for _ in 0..ROUNDS_MAX {
        // A copy that was just born, and one that lives on, at the same time.
        let other = rollings(&fleet.scene).await;
        let (one, two) = tokio::join!(fleet.rollings.round(), other.round());
        one.unwrap();
        two.unwrap();
        fleet.scene.round().await;
        assert!(fleet.maintenances().await.len() <= 1);
        ended = fleet.status().await;
        if ended["phase"] == "Succeeded" {
            break;
        }
    }
    assert_eq!(ended["phase"], "Succeeded", "{ended:#}");
    assert_eq!(ended["message"], "2 of 2 nodes done, 0 skipped, 0 failed");
    let hooks = ended["nodes"][0]["hooks"].as_array().unwrap();
    assert_eq!(hooks[0]["exitCode"], 0, "{ended:#}");
    assert_eq!(hooks[0]["output"], "that is all");
    assert!(
        hooks[0]["startedAt"].as_str().unwrap().ends_with('Z'),
        "{ended:#}"
    );
    let runs = fleet.runs();
    let by_host: Vec<&str> = runs.iter().map(|(host, _)| *host).collect();
    assert_eq!(by_host, ["worker1", "worker2"]);
    assert_eq!(runs[0].1.arguments, ["now"]);
    fleet.nodes_are_open().await;
    let closed = fleet.scene.events("kernel").await;
    let drains = closed
        .iter()
        .filter(|(reason, ..)| reason == "NodeDraining");
    assert_eq!(
        drains.map(|(_, _, count)| count).sum::<u64>(),
        2,
        "{closed:#?}"
    );
    let before = fleet.scene.others.revision().await.unwrap();
    fleet.round().await;
    assert_eq!(
        fleet.scene.others.revision().await.unwrap(),
        before,
        "it wrote again"
    );
}

#[tokio::test]
async fn nothing_begins_before_a_person_lets_it_and_the_status_says_so() {
    let fleet = Fleet::new().await;
    fleet
        .order(json!({ "approval": "Wave", "paused": true }))
        .await;
    let status = fleet.ends("Paused").await;
    assert_eq!(status["message"], "spec.paused is set");
    let marked = fleet.scene.get(&node()).await;
    assert_eq!(marked.annotation(LEAVING), Some("kernel"));
    fleet.edit(|spec| spec["paused"] = json!(false)).await;
    let status = fleet.ends("Waiting").await;
    let asks = "worker1: AwaitingApproval: add wave-1 to spec.approved";
    assert_eq!(status["message"], asks);
    let daily = json!([{ "from": "00:00", "to": "00:00" }]);
    let approved = |spec: &mut Value| {
        spec["approved"] = json!(["wave-1"]);
        spec["freezeWindows"] = daily;
    };
    fleet.edit(approved).await;
    let frozen = "worker1: Waiting: a freeze window: nothing begins in it";
    fleet
        .until("the freeze", |status| status["message"] == frozen)
        .await;
    assert_eq!(fleet.maintenances().await, [""; 0]);
    fleet.edit(|spec| spec["freezeWindows"] = json!([])).await;
    let done = |status: &Value| state(status, "worker1") == "Done";
    let status = fleet.until("the first wave", done).await;
    assert_eq!(state(&status, "worker2"), "AwaitingApproval");
}

#[tokio::test]
async fn a_hook_that_fails_keeps_its_node_closed_and_the_others_out() {
    let fleet = Fleet::new().await;
    *fleet.hosts["worker1"].code.lock().unwrap() = 3;
    fleet.order(json!({ "hooks": update() })).await;
    let status = fleet.ends("Failed").await;
    let message = status["nodes"][0]["message"].as_str().unwrap();
    let expected = "hook update failed with exit code 3: that is all; the node stays closed";
    assert!(message.starts_with(expected), "{message}");
    assert_eq!(state(&status, "worker2"), "Skipped");
    assert_eq!(fleet.maintenances().await, ["worker1"]);
    let second = fleet.scene.get(&node()).await;
    assert_eq!(second.annotation(LEAVING), None);
}

#[tokio::test]
async fn a_hook_may_leave_its_node_out_and_the_next_goes_on() {
    let fleet = Fleet::new().await;
    *fleet.hosts["worker1"].code.lock().unwrap() = 70;
    let hooks = json!({ "beforeDrain": [{ "name": "check", "command": "check" }] });
    fleet.order(json!({ "hooks": hooks })).await;
    let status = fleet.ends("Succeeded").await;
    assert_eq!(state(&status, "worker1"), "Skipped");
    assert_eq!(state(&status, "worker2"), "Done");
    fleet.nodes_are_open().await;
}

#[tokio::test]
async fn its_deletion_opens_what_is_closed_and_leaves_nothing_behind() {
    let fleet = Fleet::new().await;
    fleet.order(json!({ "hooks": update() })).await;
    let draining = |status: &Value| state(status, "worker1") == "Drained";
    fleet.until("an empty node", draining).await;
    let delete = |object: &mut Object| {
        object.metadata["deletionTimestamp"] = json!(seconds(Timestamp::now()));
    };
    fleet.scene.edit(&rolling(), delete).await;
    for _ in 0..ROUNDS_MAX {
        if fleet.scene.others.get(&rolling()).await.unwrap().is_none() {
            break;
        }
        fleet.round().await;
    }
    assert!(fleet.scene.others.get(&rolling()).await.unwrap().is_none());
    fleet.nodes_are_open().await;
}

#[tokio::test]
async fn a_node_waits_while_the_others_could_not_bear_a_loss() {
    let fleet = Fleet::new().await;
    let machine = fleet.scene.machine("vm1", moves()).await;
    reserve(&fleet.scene, (&machine, "worker2")).await;
    fleet.order(json!({})).await;
    let spared = |status: &Value| {
        let message = status["message"].as_str().unwrap_or_default();
        message.contains("could not bear the loss of a node")
    };
    let status = fleet.until("the reason", spared).await;
    assert_eq!(status["phase"], "Waiting");
    assert_eq!(fleet.maintenances().await, [""; 0]);
    fleet.edit(|spec| spec["spareNode"] = json!(false)).await;
    fleet
        .until("a start", |status| status["phase"] == "Running")
        .await;
}

#[tokio::test]
async fn machines_go_home_where_that_is_wished_for() {
    let fleet = Fleet::new().await;
    let machine = fleet.scene.machine("vm1", moves()).await;
    reserve(&fleet.scene, (&machine, "worker2")).await;
    fleet
        .order(json!({ "spareNode": false, "failBack": true }))
        .await;
    let reopens = |status: &Value| state(status, "worker1") == "Reopening";
    fleet.until("the end of the first", reopens).await;
    fleet.round().await;
    for _ in 0..5 {
        fleet.rollings.round().await.unwrap();
    }
    assert_eq!(state(&fleet.status().await, "worker2"), "Draining");
    // It has moved before the drain looks.
    fleet.scene.move_to(&machine, "worker1").await;
    fleet
        .scene
        .write(async |tx| tx.reservation_release(&machine, &worker("worker2")).await)
        .await;
    reserve(&fleet.scene, (&machine, "worker1")).await;
    let home = |status: &Value| state(status, "worker2") == "FailBack";
    fleet.until("the way home", home).await;
    fleet.round().await;
    let [migration] = fleet.scene.migrations().await.try_into().unwrap();
    assert_eq!(
        migration.annotation("godwit.io/target-node"),
        Some("worker2")
    );
    fleet.round().await;
    assert_eq!(fleet.scene.migrations().await.len(), 1, "asked for twice");
    fleet.scene.fail_job(SignedDuration::from_secs(1)).await;
    fleet.ends("Succeeded").await;
}

#[tokio::test]
async fn of_a_group_no_more_machines_move_at_once_than_its_budget_says() {
    let scene = Scene::new().await;
    let budgets = json!([{ "name": "all", "namespaces": ["default"], "maxMoving": 1 }]);
    let spec = json!({ "nodeSelector": {}, "paused": true, "budgets": budgets });
    let new = new(rolling(), json!({}), json!({ "spec": spec }));
    scene.write(async |tx| tx.create(new).await).await;
    scene.machine("vm1", moves()).await;
    scene.machine("vm2", moves()).await;
    scene.maintain().await;
    for _ in 0..3 {
        scene.round().await;
    }
    assert_eq!(scene.migrations().await.len(), 1);
    scene
        .edit(&rolling(), |object| {
            object.body["spec"]["budgets"] = json!([])
        })
        .await;
    scene.round().await;
    assert_eq!(scene.migrations().await.len(), 2);
}

async fn reserve(scene: &Scene, (machine, node): (&MachineId, &str)) {
    let new = NewReservation {
        machine: machine.clone(),
        node: worker(node),
        job: None,
        room: Room {
            memory: Bytes::mib(512),
            cpu_milli: 100,
            ..Room::default()
        },
    };
    let reserved = scene.write(async |tx| tx.reserve(new).await).await;
    assert!(matches!(reserved, Reserved::Held));
}

#[tokio::test]
async fn a_webhook_that_is_not_answered_is_called_again_under_another_number() {
    let fleet = Fleet::new().await;
    let (url, calls) = webhook().await;
    let hook = json!({ "name": "tell", "webhook": { "url": url } });
    fleet
        .order(json!({ "hooks": { "afterReopen": [hook] } }))
        .await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while state(&fleet.status().await, "worker1") != "Done" {
        assert!(
            std::time::Instant::now() < deadline,
            "{:#}",
            fleet.status().await
        );
        fleet.round().await;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await; // poll
    }
    let calls: Vec<Value> = calls.lock().unwrap().clone();
    let told = |attempt| {
        json!({
            "rollingMaintenance": "kernel",
            "node": "worker1",
            "phase": "afterReopen",
            "hook": "tell",
            "attempt": attempt,
        })
    };
    assert_eq!(calls[..2], [told(1), told(2)]);
}

/// Answers its first call with 503 and all others with 204; and what it was told.
async fn webhook() -> (String, Arc<Mutex<Vec<Value>>>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let calls: Arc<Mutex<Vec<Value>>> = Arc::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/told", listener.local_addr().unwrap());
    let told = Arc::clone(&calls);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut text = String::new();
            let body = loop {
                let mut bytes = [0; 4096];
                let read = stream.read(&mut bytes).await.unwrap();
                text.push_str(&String::from_utf8_lossy(&bytes[..read]));
                let body = text.split_once("\r\n\r\n").map(|(_, body)| body);
                if let Some(Ok(body)) = body.map(serde_json::from_str::<Value>) {
                    break body;
                }
            };
            let first = {
                let mut told = told.lock().unwrap();
                told.push(body);
                told.len() == 1
            };
            let status = if first { "503 Busy" } else { "204 No Content" };
            let answer =
                format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, calls)
}
