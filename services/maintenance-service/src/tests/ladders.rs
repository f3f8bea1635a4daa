//! Machines that leave by another way than live migration, and deadlines.

use godwit_ledger::NewReservation;
use godwit_model::placement::Room;

use super::*;

const LADDER: &str = "godwit.io/evacuation-ladder";

impl Scene {
    /// The virtual machine of an instance.
    async fn owner(&self, name: &str, spec: Value) {
        let key = ObjectKey::new(MACHINES, "default", name);
        let new = new(key, json!({ "generation": 1 }), json!({ "spec": spec }));
        self.write(async |tx| tx.create(new).await).await;
    }

    async fn vm(&self, name: &str) -> Object {
        self.get(&ObjectKey::new(MACHINES, "default", name)).await
    }

    /// A machine with a ladder of its own.
    async fn climber(&self, name: &str, spec: Value, ladder: &str) -> MachineId {
        let machine = self.machine(name, spec).await;
        let key = ObjectKey::new(INSTANCES, "default", name);
        self.edit(&key, |object| {
            object.metadata["annotations"] = json!({ LADDER: ladder });
        })
        .await;
        machine
    }

    /// The machine holds its room where it is.
    pub(super) async fn holds(&self, machine: &MachineId, node: &str, mib: u64) {
        let room = NewReservation {
            machine: machine.clone(),
            node: worker(node),
            job: None,
            room: Room {
                memory: Bytes::mib(mib),
                cpu_milli: 100,
                ..Room::default()
            },
        };
        self.write(async |tx| tx.reserve(room).await.map(drop))
            .await;
    }

    /// What the maintenance tells of a machine.
    pub(super) async fn entry(&self, name: &str) -> Value {
        let status = self.status().await;
        let entries = status["machines"].as_array().unwrap().clone();
        let found = entries.into_iter().find(|entry| entry["name"] == name);
        found.expect("an entry")
    }

    /// Puts back a time that the maintenance's status tells.
    async fn backdate(&self, pointer: &str, ago: i64) {
        self.edit(&maintenance(), |object| {
            let at = Timestamp::now() - SignedDuration::from_secs(ago);
            let status = object.status.as_mut().unwrap();
            *status.pointer_mut(pointer).expect(pointer) = json!(seconds(at));
        })
        .await;
    }

    async fn ask(&self, spec: Value) {
        self.edit(&maintenance(), |object| {
            for (key, value) in spec.as_object().unwrap() {
                object.body["spec"][key] = value.clone();
            }
        })
        .await;
    }

    async fn reasons(&self, name: &str) -> Vec<String> {
        let events = self.events(name).await.into_iter();
        events.map(|(reason, ..)| reason).collect()
    }
}

#[tokio::test]
async fn a_machine_climbs_its_ladder_rung_by_rung_and_each_step_is_told() {
    use JobState as S;
    let scene = Scene::new().await;
    scene.owner("vm1", json!({ "runStrategy": "Always" })).await;
    scene
        .climber("vm1", moves(), "Live=10m,Pause,Shutdown")
        .await;
    scene.maintain().await;
    scene.round().await;
    assert!(
        scene.entry("vm1").await["timedFrom"].is_null(),
        "it waits for its turn"
    );
    scene.advance(&[S::Pending, S::Placing], "worker1").await;
    scene.round().await;
    assert!(scene.entry("vm1").await["timedFrom"].is_string());
    scene.rests().await;

    scene.backdate("/machines/0/timedFrom", 601).await;
    scene.round().await;
    let [job] = scene.open_jobs().await.try_into().unwrap();
    let why = "the machine's ladder goes on to Pause";
    assert_eq!(job.cancel.as_deref(), Some(why));
    assert_eq!(scene.entry("vm1").await["method"], "Pause");
    let step = "Live did not come to an end within 10m: Pause is next, rung 2 of 3";
    assert!(
        scene
            .events("vm1")
            .await
            .contains(&normal("EvacuationLadder", step))
    );
    let told = scene.instance("vm1").await;
    let told = condition(&told, "EvacuationLadder").expect("a condition");
    assert_eq!(told["reason"], "Pause");
    scene.rests().await;

    scene.advance(&[S::Placing, S::Failed], "worker1").await;
    scene.round().await;
    let [job] = scene.open_jobs().await.try_into().unwrap();
    let migration = scene.get(&job.key).await;
    assert_eq!(migration.annotation("godwit.io/method"), Some("Pause"));

    scene.fail_job(SignedDuration::ZERO).await;
    scene.round().await;
    let vm = scene.vm("vm1").await;
    assert_eq!(vm.spec()["runStrategy"], "Halted");
    assert_eq!(vm.metadata["generation"], 2);
    let reasons = scene.reasons("worker2-maintenance").await;
    assert!(
        reasons.contains(&"EvacuationShutdown".to_owned()),
        "{reasons:?}"
    );
    scene.rests().await;
    // The scheduler has ended it.
    scene.remove_machine("vm1").await;
    scene.round().await;
    assert_eq!(scene.entry("vm1").await["state"], "ShutDown");
    assert_eq!(scene.status().await["phase"], "Succeeded");
    scene.remove().await;
    scene.round().await;
    assert_eq!(
        scene.vm("vm1").await.spec()["runStrategy"],
        "Halted",
        "until it is started"
    );
}

impl Scene {
    /// The machine has ended, and its object is gone.
    async fn remove_machine(&self, name: &str) {
        let key = ObjectKey::new(INSTANCES, "default", name);
        let uid = MachineId::parse(self.get(&key).await.uid).unwrap();
        self.write(async |tx| {
            tx.instance_remove(&uid).await?;
            tx.remove(&key).await
        })
        .await;
    }
}

#[tokio::test]
async fn a_machine_is_restarted_only_when_it_can_start_elsewhere() {
    let scene = Scene::new().await;
    scene.owner("vm1", json!({ "runStrategy": "Always" })).await;
    let mut spec = moves();
    spec["evictionStrategy"] = json!("None");
    let machine = scene.climber("vm1", spec, "Restart").await;
    scene.holds(&machine, "worker2", 6000).await;
    let full = scene.machine("full", json!({})).await;
    scene.move_to(&full, "worker1").await;
    scene.holds(&full, "worker1", 6000).await;
    scene.maintain().await;
    scene.round().await;
    let entry = scene.entry("vm1").await;
    let message = entry["message"].as_str().unwrap();
    assert!(message.contains("Insufficient memory"), "{entry}");
    assert!(told(&scene.vm("vm1").await, "stateChangeRequests").is_null());
    scene.rests().await;

    scene
        .write(async |tx| {
            tx.reservation_release(&full, &worker("worker1"))
                .await
                .map(drop)
        })
        .await;
    scene.round().await;
    let vm = scene.vm("vm1").await;
    assert_eq!(
        told(&vm, "stateChangeRequests"),
        &json!([{ "action": "Stop", "uid": machine }, { "action": "Start" }])
    );
    assert!(
        scene
            .reasons("vm1")
            .await
            .contains(&"EvacuationRestart".to_owned())
    );
    scene.round().await;
    scene.rests().await;
    assert!(scene.migrations().await.is_empty());
}

#[tokio::test]
async fn a_ladder_of_the_maintenance_overrules_no_strategy() {
    let scene = Scene::new().await;
    scene
        .owner("stays", json!({ "runStrategy": "Always" }))
        .await;
    scene
        .machine("stays", json!({ "evictionStrategy": "None" }))
        .await;
    let mut local = moves();
    local["volumes"][0]["hostDisk"]["shared"] = json!(false);
    scene
        .owner("local", json!({ "runStrategy": "Always" }))
        .await;
    scene.machine("local", local).await;
    scene.maintain().await;
    let ladder = json!([{ "method": "Live", "forSeconds": 60 }, { "method": "Restart" },
        { "method": "Shutdown" }]);
    scene.ask(json!({ "ladder": ladder })).await;
    scene.round().await;
    assert_eq!(scene.vm("stays").await.spec()["runStrategy"], "Always");
    assert_eq!(scene.entry("stays").await["state"], "Blocked");
    // Disks of one host rule out moving and restarting.
    assert_eq!(scene.vm("local").await.spec()["runStrategy"], "Halted");
    assert_eq!(scene.entry("local").await["method"], "Shutdown");
    scene.rests().await;
}

#[tokio::test]
async fn a_deadline_warns_and_the_drain_goes_on() {
    let scene = Scene::new().await;
    scene.machine("vm1", moves()).await;
    scene.maintain().await;
    scene.ask(json!({ "deadlineSeconds": 60 })).await;
    scene.round().await;
    scene.backdate("/startedAt", 61).await;
    scene.round().await;
    let status = scene.get(&maintenance()).await;
    let told = condition(&status, "DeadlineExceeded").expect("a condition");
    assert_eq!(told["reason"], "Continue");
    assert_eq!(scene.status().await["phase"], "Running");
    let text = "1 machine is still on the node 1m after the maintenance began; the drain goes on";
    let events = scene.events("worker2-maintenance").await;
    assert!(
        events.contains(&normal("DeadlineExceeded", text)),
        "{events:?}"
    );
    scene.rests().await;
    // Somebody puts it off.
    scene.ask(json!({ "deadlineSeconds": 600 })).await;
    scene.round().await;
    let status = scene.get(&maintenance()).await;
    assert_eq!(condition(&status, "DeadlineExceeded"), None);
}

#[tokio::test]
async fn a_deadline_that_aborts_calls_off_what_has_not_begun_and_leaves_the_node_closed() {
    let scene = Scene::new().await;
    scene.machine("vm1", moves()).await;
    scene.maintain().await;
    scene
        .ask(json!({ "deadlineSeconds": 60, "onDeadline": "Abort" }))
        .await;
    scene.round().await;
    scene.backdate("/startedAt", 61).await;
    scene.round().await;
    let [job] = scene.open_jobs().await.try_into().unwrap();
    let why = "the deadline of the maintenance of node worker2 came";
    assert_eq!(job.cancel.as_deref(), Some(why));
    let status = scene.status().await;
    assert_eq!(status["phase"], "Failed");
    assert!(
        status["lastError"]
            .as_str()
            .unwrap()
            .starts_with("1 machine is still on")
    );
    assert!(told(&scene.instance("vm1").await, "evacuationNodeName").is_null());
    let node = scene.get(&node()).await;
    assert_eq!(node.spec()["unschedulable"], true);
    assert_eq!(
        condition(&node, "DrainInProgress").unwrap()["status"],
        "False"
    );
    scene.fail_job(SignedDuration::from_secs(999)).await;
    scene.round().await;
    assert!(
        scene.open_jobs().await.is_empty(),
        "nobody is asked any more"
    );
    scene.rests().await;
}

#[tokio::test]
async fn a_deadline_that_escalates_drives_each_machine_one_rung_on() {
    let scene = Scene::new().await;
    scene.owner("vm1", json!({ "runStrategy": "Always" })).await;
    scene
        .climber("vm1", moves(), "Live=9h,Pause=9h,Shutdown")
        .await;
    scene.maintain().await;
    scene
        .ask(json!({ "deadlineSeconds": 60, "onDeadline": "Escalate" }))
        .await;
    scene.round().await;
    scene.backdate("/startedAt", 61).await;
    scene.backdate("/machines/0/since", 61).await;
    scene.round().await;
    scene.round().await;
    assert_eq!(scene.entry("vm1").await["method"], "Pause");
    let [job] = scene.open_jobs().await.try_into().unwrap();
    assert_eq!(
        job.cancel.as_deref(),
        Some("the machine's ladder goes on to Pause")
    );
    scene.rests().await;
}
