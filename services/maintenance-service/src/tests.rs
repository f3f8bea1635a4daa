//! Drains against a real Postgres, with the rights that the service has in production. Hosts and
//! the other services are played by what they would have written.

use std::sync::Arc;

use godwit_ledger::{
    Capacity, Experience, FloorKeeper, InstanceRow, InstanceState, JobChange, JobRow, JobStep,
    Ledger, LedgerConfig, LedgerError, MigrationRequest, NewObject, NodeRow, Object, ObjectKey,
    TraceContext, Tx,
};
use godwit_model::migration::job::JobState;
use godwit_model::migration::view::launcher_name;
use godwit_model::placement::Hugepages;
use godwit_model::{Bytes, Epoch, MachineId, NodeName};
use godwit_testkit::postgres::Postgres;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::drain::Drains;
use crate::json::{condition, seconds, told};
use crate::look::{MAINTENANCES, MIGRATIONS};
use crate::telemetry::Telemetry;

mod evictions;
mod ladders;
mod plans;
mod rolling;
mod told;

const INSTANCES: &str = "virtualmachineinstances.kubevirt.io";
const MACHINES: &str = "virtualmachines.kubevirt.io";

struct Scene {
    /// Everybody else.
    others: Ledger,
    /// The service itself.
    drains: Drains,
    url: String,
    _postgres: Postgres,
}

impl Scene {
    /// Two nodes, nothing on them.
    async fn new() -> Self {
        let postgres = Postgres::ephemeral().unwrap();
        let admin = postgres.create_database().unwrap();
        postgres.open_service_logins().unwrap();
        let database = admin.split(['/', '?']).nth(3).unwrap();
        let url = postgres.url_as(database, "godwit_maintenance");
        let scene = Self {
            others: connect(&admin).await,
            drains: drains(&url).await,
            url,
            _postgres: postgres,
        };
        for name in ["worker1", "worker2"] {
            scene.node(name).await;
        }
        scene
    }

    async fn write<T>(&self, work: impl AsyncFnOnce(&mut Tx) -> Result<T, LedgerError>) -> T {
        let mut tx = self.others.begin().await.unwrap();
        let done = work(&mut tx).await.unwrap();
        tx.commit().await.unwrap();
        done
    }

    async fn node(&self, name: &str) {
        let row = NodeRow {
            name: NodeName::parse(name).unwrap(),
            agent_address: "https://10.77.0.11:7110".into(),
            boot_id: "b".into(),
            ready: true,
            capacity: Capacity {
                memory: Bytes::mib(8192),
                cpu_milli: 8000,
                hugepages: Hugepages::default(),
            },
            // The machines here are of no known kind, and every host can run that.
            facts: json!({ "machineTypes": [""], "cpuModels": [""] }),
            heartbeat_at: Timestamp::UNIX_EPOCH,
        };
        self.write(async |tx| {
            tx.node_put(row).await?;
            let key = ObjectKey::new("nodes", "", name);
            tx.create(new(key, json!({}), json!({ "spec": {} }))).await
        })
        .await;
    }

    /// A machine that runs on worker2.
    async fn machine(&self, name: &str, spec: Value) -> MachineId {
        let key = ObjectKey::new(INSTANCES, "default", name);
        let metadata = json!({ "ownerReferences": [{ "kind": "VirtualMachine", "name": name }] });
        let object = NewObject {
            status: Some(json!({ "phase": "Running", "nodeName": "worker2" })),
            ..new(key.clone(), metadata, json!({ "spec": spec }))
        };
        self.write(async |tx| {
            let object = tx.create(object).await?;
            let uid = MachineId::parse(object.uid).unwrap();
            let row = InstanceRow {
                uid: uid.clone(),
                key,
                node: Some(worker("worker2")),
                epoch: Epoch(1),
                state: InstanceState::Running,
                machine: None,
            };
            tx.instance_create(row).await?;
            Ok(uid)
        })
        .await
    }

    /// The machine is on `node` from now on, without a migration.
    async fn move_to(&self, machine: &MachineId, node: &str) {
        self.write(async |tx| {
            let mut row = tx.instance(machine).await?.unwrap();
            row.node = Some(worker(node));
            tx.instance_put(&row).await
        })
        .await;
    }

    async fn maintain(&self) {
        let metadata = json!({ "finalizers": ["foregroundDeleteNodeMaintenance"] });
        let body = json!({ "spec": { "nodeName": "worker2", "reason": "new memory" } });
        let new = new(maintenance(), metadata, body);
        self.write(async |tx| tx.create(new).await).await;
    }

    /// What the API does at a deletion.
    async fn remove(&self) {
        self.edit(&maintenance(), |object| {
            object.metadata["deletionTimestamp"] = json!(seconds(Timestamp::now()));
        })
        .await;
    }

    async fn edit(&self, key: &ObjectKey, change: impl FnOnce(&mut Object)) {
        self.write(async |tx| {
            let mut object = tx.get(key).await?.unwrap();
            change(&mut object);
            tx.put(&object).await
        })
        .await;
    }

    async fn round(&self) {
        self.drains.round().await.unwrap();
    }

    /// What the last round did is told, if it isn't yet; and then there is nothing to do.
    async fn rests(&self) {
        if let Some(mut object) = self.others.get(&maintenance()).await.unwrap() {
            // As if a second had gone by.
            let ago = seconds(Timestamp::now() - SignedDuration::from_secs(9));
            if let Some(told) = &mut object.status {
                told["lastUpdate"] = json!(ago);
            }
            self.write(async |tx| tx.put(&object).await).await;
        }
        self.round().await;
        self.is_still().await;
    }

    /// A round that has nothing to do.
    async fn is_still(&self) {
        let before = self.others.revision().await.unwrap();
        self.round().await;
        assert_eq!(
            self.others.revision().await.unwrap(),
            before,
            "it wrote again"
        );
    }

    async fn get(&self, key: &ObjectKey) -> Object {
        self.others.get(key).await.unwrap().expect("an object")
    }

    async fn status(&self) -> Value {
        self.get(&maintenance()).await.status.unwrap()
    }

    async fn instance(&self, name: &str) -> Object {
        self.get(&ObjectKey::new(INSTANCES, "default", name)).await
    }

    async fn migrations(&self) -> Vec<Object> {
        self.others.list(MIGRATIONS).await.unwrap()
    }

    /// The events about the object `name`: reasons, texts and counts.
    async fn events(&self, name: &str) -> Vec<(String, String, u64)> {
        let events = self.others.list("events").await.unwrap();
        let about = |event: &&Object| event.body["involvedObject"]["name"] == name;
        let mut events: Vec<_> = events
            .iter()
            .filter(about)
            .map(|event| {
                let text = |field: &str| event.body[field].as_str().unwrap().to_owned();
                let count = event.body["count"].as_u64().unwrap();
                (text("reason"), text("message"), count)
            })
            .collect();
        events.sort();
        events
    }

    /// Ends the only open job without moving its machine; so long ago does it say.
    async fn fail_job(&self, ago: SignedDuration) {
        let claimed = self
            .others
            .job_claim("me", std::time::Duration::from_secs(60));
        let lease = claimed.await.unwrap().expect("an open job");
        let step = JobStep {
            from: JobState::Pending,
            to: JobState::Failed,
            reason: "no".into(),
            set: JobChange::default(),
        };
        self.write(async |tx| {
            assert!(tx.job_record(&lease, step).await?.is_now());
            Ok(())
        })
        .await;
        self.edit(&lease.job.key, |object| {
            let at = seconds(Timestamp::now() - ago);
            object.status = Some(json!({
                "phase": "Failed",
                "phaseTransitionTimestamps": [
                    { "phase": "Failed", "phaseTransitionTimestamp": at },
                ],
                "conditions": [{
                    "type": "migrationFailed", "status": "True", "message": "the host said no",
                }],
            }));
        })
        .await;
    }

    /// Takes the only open job through `states`, from the first, towards `target`.
    async fn advance(&self, states: &[JobState], target: &str) {
        let claimed = self
            .others
            .job_claim("me", std::time::Duration::from_secs(60));
        let lease = claimed.await.unwrap().expect("an open job");
        for pair in states.windows(2) {
            let target = (pair[1] == JobState::Reserved).then(|| worker(target));
            let step = JobStep {
                from: pair[0],
                to: pair[1],
                reason: "so be it".into(),
                set: JobChange {
                    target,
                    ..JobChange::default()
                },
            };
            self.write(async |tx| {
                assert!(tx.job_record(&lease, step).await?.is_now());
                Ok(())
            })
            .await;
        }
        self.others.job_lease_release(&lease).await.unwrap();
    }

    async fn open_jobs(&self) -> Vec<JobRow> {
        self.others.jobs_open().await.unwrap()
    }
}

async fn connect(url: &str) -> Ledger {
    let config = LedgerConfig {
        url: url.to_owned(),
        connections_max: 4,
    };
    Ledger::connect(config).await.unwrap()
}

async fn drains(url: &str) -> Drains {
    Drains {
        ledger: connect(url).await,
        changed: Arc::new(Notify::new()),
        requested: Arc::new(Notify::new()),
        telemetry: Telemetry::default(),
        shutdown: CancellationToken::new(),
        experience: Experience::default(),
        floor: FloorKeeper::default(),
    }
}

fn worker(name: &str) -> NodeName {
    NodeName::parse(name).unwrap()
}

fn maintenance() -> ObjectKey {
    ObjectKey::new(MAINTENANCES, "", "worker2-maintenance")
}

fn node() -> ObjectKey {
    ObjectKey::new("nodes", "", "worker2")
}

fn new(key: ObjectKey, metadata: Value, body: Value) -> NewObject {
    NewObject {
        key,
        uid: None,
        metadata,
        body,
        status: None,
    }
}

fn moves() -> Value {
    let disk = json!({ "name": "root", "hostDisk": { "path": "/a", "shared": true } });
    json!({ "evictionStrategy": "LiveMigrate", "volumes": [disk] })
}

fn taints(node: &Object) -> Vec<&str> {
    let taints = node.spec()["taints"].as_array();
    let keys = taints.into_iter().flatten();
    keys.filter_map(|taint| taint["key"].as_str()).collect()
}

fn normal(reason: &str, note: &str) -> (String, String, u64) {
    (reason.to_owned(), note.to_owned(), 1)
}

#[tokio::test]
async fn a_node_is_closed_and_each_machine_is_asked_to_leave_once() {
    let scene = Scene::new().await;
    let machine = scene.machine("vm1", moves()).await;
    scene.maintain().await;
    scene.round().await;

    let closed = scene.get(&node()).await;
    assert_eq!(closed.spec()["unschedulable"], true);
    assert_eq!(
        taints(&closed),
        [
            "node.kubernetes.io/unschedulable",
            "kubevirt.io/drain",
            "medik8s.io/drain"
        ]
    );
    let [migration] = scene.migrations().await.try_into().unwrap();
    let name = migration.key.name.clone();
    assert!(
        name.starts_with("kubevirt-evacuation-") && name.len() == 25,
        "{name}"
    );
    assert_eq!(migration.spec()["vmiName"], "vm1");
    assert_eq!(migration.label("kubevirt.io/vmi-name"), Some("vm1"));
    assert_eq!(
        migration.annotation("kubevirt.io/evacuationMigration"),
        Some("worker2")
    );
    let [job] = scene.open_jobs().await.try_into().unwrap();
    assert_eq!((job.machine, job.priority), (machine.clone(), 100));
    let instance = scene.instance("vm1").await;
    assert_eq!(*told(&instance, "evacuationNodeName"), "worker2");
    assert_eq!(
        scene.events("vm1").await,
        [normal(
            "SuccessfulCreate",
            &format!("Created Migration {name}")
        )]
    );
    let status = scene.status().await;
    let pod = launcher_name("vm1", machine.as_str());
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["pendingPods"], json!([pod]));
    assert_eq!(
        status["pendingPodsRefs"],
        json!([{ "namespace": "default", "name": pod }])
    );
    assert_eq!(
        (&status["totalpods"], &status["evictionPods"]),
        (&json!(1), &json!(1))
    );
    assert!(status["lastUpdate"].is_string() && status["lastError"].is_null());
    scene.rests().await;
}

#[tokio::test]
async fn a_maintenance_succeeds_when_the_last_machine_has_left() {
    let scene = Scene::new().await;
    let (first, second) = (
        scene.machine("vm1", moves()).await,
        scene.machine("vm2", moves()).await,
    );
    scene.maintain().await;
    scene.round().await;
    scene.fail_job(SignedDuration::from_secs(0)).await;
    scene.fail_job(SignedDuration::from_secs(0)).await;
    scene.move_to(&first, "worker1").await;
    scene.round().await;
    assert_eq!(scene.status().await["drainProgress"], 50);
    scene.move_to(&second, "worker1").await;
    scene.round().await;
    let status = scene.status().await;
    assert_eq!(
        (&status["phase"], &status["drainProgress"]),
        (&json!("Succeeded"), &json!(100))
    );
    assert!(status["pendingPods"].is_null() && status["lastError"].is_null());
    assert_eq!(
        scene.events("worker2-maintenance").await,
        [
            normal("BeginMaintenance", "Begin a node maintenance"),
            normal("SucceedMaintenance", "Node maintenance was succeeded"),
        ]
    );
    assert_eq!(scene.migrations().await.len(), 2);
    scene.rests().await;
}

/// Three machines that can't leave, each for a reason of its own.
async fn scene_of_the_stuck() -> Scene {
    let scene = Scene::new().await;
    let local = json!({ "name": "root", "hostDisk": { "path": "/a" } });
    scene
        .machine("stays", json!({ "evictionStrategy": "None" }))
        .await;
    let stuck = json!({ "evictionStrategy": "LiveMigrate", "volumes": [local] });
    scene.machine("stuck", stuck).await;
    scene.machine("unset", json!({})).await;
    scene.maintain().await;
    scene.round().await;
    scene
}

#[tokio::test]
async fn who_cannot_leave_is_named_with_a_remedy() {
    let scene = scene_of_the_stuck().await;
    let status = scene.status().await;
    let reasons: Vec<_> = (0..3).map(|at| &status["blockers"][at]["reason"]).collect();
    assert_eq!(
        reasons,
        [
            "EvictionStrategyNone",
            "DisksNotLiveMigratable",
            "EvictionStrategyNone"
        ]
    );
    let why = "evictionStrategy None: the machine stays on node worker2 until it is stopped or \
               its strategy changed";
    assert_eq!(
        status["lastError"],
        format!(
            "default/stays: {why}; default/stuck: cannot migrate VMI with non-shared HostDisk; \
             default/unset: {why}"
        )
    );
    assert_eq!(
        scene.events("stays").await,
        [normal("EvictionBlocked", why)]
    );
    assert_eq!(
        scene.events("stuck").await,
        [normal(
            "Migrated",
            "EvictionStrategy is set but vmi is not migratable; cannot migrate VMI with \
             non-shared HostDisk"
        )]
    );
    assert_eq!(scene.events("worker2-maintenance").await.len(), 4);
    let stays = scene.instance("stays").await;
    let blocked = condition(&stays, "EvictionBlocked").expect("a condition");
    assert_eq!(
        (&blocked["status"], &blocked["reason"]),
        (&json!("True"), reasons[0])
    );
    assert!(scene.migrations().await.is_empty());
    scene.rests().await;
}

#[tokio::test]
async fn who_could_not_leave_leaves_when_the_remedy_is_applied() {
    let scene = scene_of_the_stuck().await;
    // One is told to move, another gets the cluster's default.
    let template = json!({ "spec": { "evictionStrategy": "LiveMigrate" } });
    let owner = ObjectKey::new(MACHINES, "default", "stays");
    let owner = new(
        owner,
        json!({}),
        json!({ "spec": { "template": template } }),
    );
    let default = json!({ "spec": { "configuration": { "evictionStrategy": "LiveMigrate" } } });
    let cluster = ObjectKey::new("kubevirts.kubevirt.io", "kubevirt", "kubevirt");
    let cluster = new(cluster, json!({}), default);
    scene
        .write(async |tx| {
            tx.create(owner).await?;
            tx.create(cluster).await
        })
        .await;
    scene.round().await;
    let asked: Vec<Value> = scene
        .migrations()
        .await
        .iter()
        .map(|migration| migration.spec()["vmiName"].clone())
        .collect();
    assert!(
        asked.contains(&json!("stays")) && asked.contains(&json!("unset")),
        "{asked:?}"
    );
    assert_eq!(
        condition(&scene.instance("stays").await, "EvictionBlocked"),
        None
    );
    assert_eq!(
        scene.status().await["blockers"].as_array().unwrap().len(),
        1
    );
    scene.rests().await;
}

#[tokio::test]
async fn a_failed_evacuation_is_repeated_after_a_pause() {
    let scene = Scene::new().await;
    scene.machine("vm1", moves()).await;
    scene.maintain().await;
    scene.round().await;
    scene.fail_job(SignedDuration::from_secs(30)).await;
    scene.round().await;
    assert_eq!(scene.open_jobs().await.len(), 1, "20 s are over");
    scene.fail_job(SignedDuration::from_secs(30)).await;
    scene.round().await;
    assert!(scene.open_jobs().await.is_empty(), "40 s are not");
    let events = scene.events("vm1").await;
    let backs_off = normal("MigrationBackoff", "backoff migrating vmi default/vm1");
    assert!(events.contains(&backs_off), "{events:?}");
    let error = scene.status().await["lastError"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        error.starts_with("default/vm1: evacuation failed 2 times, next attempt at 2")
            && error.ends_with("Z; last failure: the host said no"),
        "{error}"
    );
    scene.rests().await;
}

#[tokio::test]
async fn the_end_of_a_maintenance_takes_back_what_it_did_and_nothing_else() {
    let scene = Scene::new().await;
    let foreign = json!({ "key": "dedicated", "value": "lab", "effect": "NoSchedule" });
    scene
        .edit(&node(), |node| {
            node.body["spec"]["taints"] = json!([foreign])
        })
        .await;
    scene.machine("vm1", moves()).await;
    scene
        .machine("stays", json!({ "evictionStrategy": "None" }))
        .await;
    scene.maintain().await;
    scene.round().await;
    scene.remove().await;
    scene.round().await;

    assert_eq!(scene.others.get(&maintenance()).await.unwrap(), None);
    let node = scene.get(&node()).await;
    assert_eq!(*node.spec(), json!({ "taints": [foreign] }));
    assert!(told(&scene.instance("vm1").await, "evacuationNodeName").is_null());
    assert_eq!(
        condition(&scene.instance("stays").await, "EvictionBlocked"),
        None
    );
    let [job] = scene.open_jobs().await.try_into().unwrap();
    assert_eq!(
        job.cancel.as_deref(),
        Some("the maintenance of node worker2 was removed")
    );
    assert_eq!(
        scene.events("worker2").await,
        [normal("UncordonNode", "Uncordon a node")]
    );
    let events = scene.events("worker2-maintenance").await;
    let removed = normal("RemovedMaintenance", "Removed a node maintenance");
    assert!(events.contains(&removed), "{events:?}");
    scene.rests().await;
}

#[tokio::test]
async fn a_node_that_a_person_had_closed_stays_closed() {
    let scene = Scene::new().await;
    scene
        .edit(&node(), |node| {
            node.body["spec"]["unschedulable"] = json!(true)
        })
        .await;
    scene.maintain().await;
    scene.round().await;
    assert_eq!(scene.status().await["phase"], "Succeeded");
    assert_eq!(taints(&scene.get(&node()).await).len(), 3);
    scene.remove().await;
    scene.round().await;
    let node = scene.get(&node()).await;
    assert_eq!(*node.spec(), json!({ "unschedulable": true }));
}

#[tokio::test]
async fn a_cordon_alone_moves_nobody() {
    let scene = Scene::new().await;
    scene.machine("vm1", moves()).await;
    scene
        .edit(&node(), |node| {
            node.body["spec"]["unschedulable"] = json!(true)
        })
        .await;
    scene.round().await;
    assert_eq!(scene.open_jobs().await.len(), 0);
    scene.maintain().await;
    scene.round().await;
    assert_eq!(scene.open_jobs().await.len(), 1);
}

#[tokio::test]
async fn a_node_is_not_empty_before_a_moved_machines_leftovers_are_gone() {
    use JobState as S;
    let scene = Scene::new().await;
    let machine = scene.machine("vm1", moves()).await;
    scene.maintain().await;
    scene.round().await;
    let way = [
        S::Pending,
        S::Placing,
        S::Reserved,
        S::Preparing,
        S::Prepared,
        S::Copying,
        S::SwitchAllowed,
        S::HandedOver,
    ];
    scene.advance(&way, "worker1").await;
    scene.move_to(&machine, "worker1").await;
    scene.round().await;
    assert_eq!(scene.status().await["phase"], "Running");
    scene
        .advance(&[S::HandedOver, S::Succeeded], "worker1")
        .await;
    scene.round().await;
    assert_eq!(scene.status().await["phase"], "Succeeded");
}

#[tokio::test]
async fn a_machine_on_its_way_to_the_node_is_sent_back_when_it_has_come() {
    use JobState as S;
    let scene = Scene::new().await;
    let machine = scene.machine("vm1", moves()).await;
    scene.move_to(&machine, "worker1").await;
    let key = ObjectKey::new(MIGRATIONS, "default", "by-hand");
    let request = MigrationRequest {
        object: new(key, json!({}), json!({ "spec": { "vmiName": "vm1" } })),
        machine: machine.clone(),
        vmi: ObjectKey::new(INSTANCES, "default", "vm1"),
        priority: 0,
        trace: TraceContext::default(),
    };
    let job = scene
        .write(async |tx| tx.migration_request(request).await)
        .await;
    scene
        .advance(&[S::Pending, S::Placing, S::Reserved], "worker2")
        .await;
    scene.maintain().await;
    scene.round().await;
    let status = scene.status().await;
    assert_eq!(status["phase"], "Running");
    assert_eq!(
        status["pendingPods"],
        json!([launcher_name("vm1", &job.uid)])
    );
    scene
        .advance(&[S::Reserved, S::Aborting, S::Failed], "worker2")
        .await;
    scene.move_to(&machine, "worker2").await;
    scene.round().await;
    assert_eq!(scene.open_jobs().await.len(), 1);
    assert_eq!(scene.migrations().await.len(), 2);
}

#[tokio::test]
async fn a_maintenance_that_lost_its_finalizer_gets_it_back() {
    let scene = Scene::new().await;
    scene.maintain().await;
    scene.round().await;
    scene
        .edit(&maintenance(), |object| {
            object.metadata["finalizers"] = json!([]);
        })
        .await;
    scene.round().await;
    let finalizers = scene.get(&maintenance()).await.metadata["finalizers"].clone();
    assert_eq!(finalizers, json!(["foregroundDeleteNodeMaintenance"]));
    scene.rests().await;
}

#[tokio::test]
async fn a_node_that_vanished_fails_its_maintenance_and_lets_it_go() {
    let scene = Scene::new().await;
    scene.maintain().await;
    scene.write(async |tx| tx.remove(&node()).await).await;
    scene.round().await;
    assert_eq!(scene.status().await["phase"], "Failed");
    assert_eq!(
        scene.events("worker2-maintenance").await,
        [normal("FailedMaintenance", "Failed a node maintenance")]
    );
    scene.rests().await;
    scene.remove().await;
    scene.round().await;
    assert_eq!(scene.others.get(&maintenance()).await.unwrap(), None);
}

#[tokio::test]
async fn two_copies_of_the_service_do_nothing_twice() {
    let scene = Scene::new().await;
    for number in 0..8 {
        scene.machine(&format!("vm{number}"), moves()).await;
    }
    scene.maintain().await;
    let other = drains(&scene.url).await;
    let (here, there) = tokio::join!(scene.drains.round(), other.round());
    here.and(there).unwrap();
    assert_eq!(scene.migrations().await.len(), 8);
    assert_eq!(
        scene.events("worker2-maintenance").await,
        [normal("BeginMaintenance", "Begin a node maintenance")]
    );
    scene.rests().await;
}

#[tokio::test]
async fn more_machines_than_one_transaction_takes_are_asked_one_batch_after_another() {
    let scene = Scene::new().await;
    for number in 0..40 {
        scene.machine(&format!("vm{number}"), moves()).await;
    }
    scene.maintain().await;
    scene.round().await;
    assert_eq!(scene.migrations().await.len(), 32);
    scene.round().await;
    assert_eq!(scene.migrations().await.len(), 40);
    assert_eq!(scene.status().await["evictionPods"], 40);
    scene.rests().await;
}
