//! What a maintenance plans and tells: targets, forecasts, the node's conditions and its lease.

use super::*;

const LEASES: &str = "leases.coordination.k8s.io";

fn lease() -> ObjectKey {
    ObjectKey::new(LEASES, "medik8s-leases", "node-worker2")
}

fn held_by(node: &Object) -> Vec<String> {
    let conditions = told(node, "conditions").as_array().cloned();
    let conditions = conditions.unwrap_or_default().into_iter();
    let held = conditions.filter(|condition| condition["status"] == "True");
    held.map(|condition| condition["type"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn each_machine_is_sent_where_the_plan_says_and_again_after_a_failure() {
    let scene = Scene::new().await;
    scene.node("worker3").await;
    for name in ["vm1", "vm2"] {
        let machine = scene.machine(name, moves()).await;
        scene.holds(&machine, "worker2", 1000).await;
    }
    scene.maintain().await;
    scene.round().await;
    let planned = [scene.entry("vm1").await, scene.entry("vm2").await];
    let targets = planned.each_ref().map(|entry| entry["targetNode"].clone());
    assert_ne!(targets[0], targets[1], "spread over both: {planned:?}");
    for migration in scene.migrations().await {
        let entry = scene
            .entry(migration.spec()["vmiName"].as_str().unwrap())
            .await;
        let target = migration.annotation("godwit.io/target-node");
        assert_eq!(target, entry["targetNode"].as_str());
        assert_ne!(target, Some("worker2"));
    }
    scene.fail_job(SignedDuration::from_secs(30)).await;
    scene.round().await;
    scene.round().await;
    let again = [scene.entry("vm1").await, scene.entry("vm2").await];
    let now = again.each_ref().map(|entry| entry["targetNode"].clone());
    assert_eq!(now, targets);
    assert_eq!(scene.migrations().await.len(), 3);
    // It can't be kept: the node is closed.
    let closed = targets[0].as_str().unwrap();
    scene
        .edit(&ObjectKey::new("nodes", "", closed), |node| {
            node.body["spec"]["unschedulable"] = json!(true);
        })
        .await;
    scene.fail_job(SignedDuration::from_secs(90)).await;
    scene.fail_job(SignedDuration::from_secs(90)).await;
    scene.round().await;
    assert_eq!(scene.entry("vm1").await["targetNode"], targets[1]);
}

#[tokio::test]
async fn a_drain_tells_when_it_will_be_over_and_where_everybody_went() {
    let scene = Scene::new().await;
    let machine = scene.machine("vm1", moves()).await;
    scene.holds(&machine, "worker2", 1000).await;
    scene
        .machine("stays", json!({ "evictionStrategy": "None" }))
        .await;
    scene.maintain().await;
    scene.round().await;
    let forecast = scene.status().await["forecast"].clone();
    let time = |field: &str| {
        forecast[field]
            .as_str()
            .unwrap()
            .parse::<Timestamp>()
            .unwrap()
    };
    assert!(
        time("earliest") <= time("end") && time("end") <= time("latest"),
        "{forecast}"
    );
    assert_eq!(
        (&forecast["machinesTotal"], &forecast["machinesRemaining"]),
        (&json!(2), &json!(2))
    );
    let states = [scene.entry("vm1").await, scene.entry("stays").await];
    assert_eq!(
        states.each_ref().map(|entry| entry["state"].clone()),
        ["Waiting", "Blocked"]
    );
    scene.fail_job(SignedDuration::ZERO).await;
    scene.move_to(&machine, "worker1").await;
    scene.round().await;
    let entry = scene.entry("vm1").await;
    assert_eq!(
        (&entry["state"], &entry["targetNode"]),
        (&json!("Moved"), &json!("worker1"))
    );
    let forecast = scene.status().await["forecast"].clone();
    assert_eq!(forecast["machinesRemaining"], 1);
    assert!(
        forecast["end"].is_null(),
        "the other one never leaves by itself: {forecast}"
    );
    scene.rests().await;
}

#[tokio::test]
async fn a_node_tells_in_its_conditions_how_far_its_maintenance_is() {
    let scene = Scene::new().await;
    let machine = scene.machine("vm1", moves()).await;
    scene.maintain().await;
    scene.round().await;
    let draining = scene.get(&node()).await;
    assert_eq!(
        held_by(&draining),
        ["MaintenancePlanned", "DrainInProgress"]
    );
    let excluded = draining.label("remediation.medik8s.io/exclude-from-remediation");
    assert_eq!(excluded, Some("true"));
    scene.fail_job(SignedDuration::ZERO).await;
    scene.move_to(&machine, "worker1").await;
    scene.round().await;
    let drained = scene.get(&node()).await;
    assert_eq!(held_by(&drained), ["Drained", "MaintenanceInProgress"]);
    assert_eq!(
        scene.get(&lease()).await.spec()["holderIdentity"],
        "node-maintenance"
    );
    scene.remove().await;
    scene.round().await;
    let open = scene.get(&node()).await;
    assert_eq!(told(&open, "conditions"), &json!([]));
    assert_eq!(open.metadata["labels"], json!({}));
    assert_eq!(scene.others.get(&lease()).await.unwrap(), None);
}

impl Scene {
    async fn take_lease(&self, holder: &str, ago: i64) {
        let renewed = Timestamp::now() - SignedDuration::from_secs(ago);
        let spec = json!({
            "holderIdentity": holder, "leaseDurationSeconds": 60, "renewTime": renewed.to_string(),
        });
        self.write(async |tx| match tx.get(&lease()).await? {
            Some(mut held) => {
                held.body["spec"] = spec.clone();
                tx.put(&held).await
            }
            None => {
                tx.create(new(lease(), json!({}), json!({ "spec": spec.clone() })))
                    .await
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_node_that_somebody_else_holds_is_left_alone_until_the_lease_runs_out() {
    let scene = Scene::new().await;
    scene.machine("vm1", moves()).await;
    scene.take_lease("healthcheck", 0).await;
    scene.maintain().await;
    scene.round().await;
    assert!(scene.migrations().await.is_empty());
    assert_eq!(*scene.get(&node()).await.spec(), json!({}));
    let text = "can't update valid lease held by different owner: healthcheck";
    assert_eq!(scene.status().await["lastError"], text);
    scene.rests().await;
    scene.take_lease("healthcheck", 61).await;
    scene.round().await;
    assert_eq!(scene.migrations().await.len(), 1);
    assert_eq!(
        scene.get(&lease()).await.spec()["holderIdentity"],
        "node-maintenance"
    );
    assert!(scene.status().await["lastError"].is_null());
}

#[tokio::test]
async fn a_maintenance_that_loses_its_lease_opens_the_node_and_fails() {
    let scene = Scene::new().await;
    scene.machine("vm1", moves()).await;
    scene.maintain().await;
    scene.round().await;
    scene.take_lease("healthcheck", 0).await;
    for look in 1..=4_u64 {
        scene.round().await;
        assert_eq!(scene.status().await["errorOnLeaseCount"], look);
        scene.is_still().await;
        scene
            .edit(&maintenance(), |object| {
                let ago = seconds(Timestamp::now() - SignedDuration::from_secs(6));
                object.status.as_mut().unwrap()["lastUpdate"] = json!(ago);
            })
            .await;
    }
    let status = scene.status().await;
    assert_eq!(status["phase"], "Failed");
    let text = "maintenance failed: lease could not be extended after 3 attempts";
    assert_eq!(status["lastError"], text);
    assert_eq!(*scene.get(&node()).await.spec(), json!({}));
    let [job] = scene.open_jobs().await.try_into().unwrap();
    assert_eq!(job.cancel.as_deref(), Some(text));
    scene.rests().await;
    scene.remove().await;
    scene.round().await;
    let theirs = scene.get(&lease()).await;
    assert_eq!(theirs.spec()["holderIdentity"], "healthcheck");
}

#[tokio::test]
async fn a_tainted_node_is_emptied_by_the_key_that_was_set() {
    let scene = Scene::new().await;
    scene.machine("vm1", moves()).await;
    let taint = |key: &str| json!([{ "key": key, "effect": "NoSchedule" }]);
    scene
        .edit(&node(), |node| {
            node.body["spec"]["taints"] = taint("example.com/drain")
        })
        .await;
    scene.drains.evictions().await.unwrap();
    assert!(scene.migrations().await.is_empty());
    let migrations = json!({ "nodeDrainTaintKey": "example.com/drain" });
    let body = json!({ "spec": { "configuration": { "migrations": migrations } } });
    let cluster = ObjectKey::new("kubevirts.kubevirt.io", "kubevirt", "kubevirt");
    scene
        .write(async |tx| tx.create(new(cluster, json!({}), body)).await)
        .await;
    scene.drains.evictions().await.unwrap();
    scene.drains.evictions().await.unwrap();
    let [migration] = scene.migrations().await.try_into().unwrap();
    assert_eq!(
        migration.annotation("kubevirt.io/evacuationMigration"),
        Some("worker2")
    );
    scene.maintain().await;
    scene.round().await;
    assert!(taints(&scene.get(&node()).await).contains(&"example.com/drain"));
    assert!(!taints(&scene.get(&node()).await).contains(&"kubevirt.io/drain"));
}
