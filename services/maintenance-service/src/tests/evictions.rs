//! Machines that leave one by one: the API marked them, and there is no maintenance.

use super::*;

impl Scene {
    async fn mark(&self, name: &str, node: &str) {
        let key = ObjectKey::new(INSTANCES, "default", name);
        self.write(async |tx| {
            tx.status_merge(&key, json!({ "evacuationNodeName": node }))
                .await
        })
        .await;
    }

    async fn evictions(&self) {
        self.drains.evictions().await.unwrap();
    }
}

#[tokio::test]
async fn a_marked_machine_is_asked_to_leave_once_and_no_other() {
    let scene = Scene::new().await;
    let machine = scene.machine("vm1", moves()).await;
    scene.machine("vm2", moves()).await;
    scene.mark("vm1", "worker2").await;
    scene.evictions().await;
    scene.evictions().await;
    let [migration] = scene.migrations().await.try_into().unwrap();
    assert_eq!(migration.spec()["vmiName"], "vm1");
    let annotations = json!({ "kubevirt.io/evacuationMigration": "worker2" });
    assert_eq!(migration.metadata["annotations"], annotations);
    let [job] = scene.open_jobs().await.try_into().unwrap();
    assert_eq!((job.machine, job.priority), (machine, 100));
    let (reason, note, _) = &scene.events("vm1").await[0];
    assert_eq!(reason, "SuccessfulCreate");
    assert_eq!(*note, format!("Created Migration {}", migration.key.name));
    // The node stays as its owner left it.
    assert!(taints(&scene.get(&node()).await).is_empty());
}

#[tokio::test]
async fn a_machine_stays_that_moved_or_may_not_or_cannot() {
    let scene = Scene::new().await;
    let moved = scene.machine("moved", moves()).await;
    scene.move_to(&moved, "worker1").await;
    let mut external = moves();
    external["evictionStrategy"] = json!("External");
    scene.machine("external", external).await;
    let mut local = moves();
    local["volumes"][0]["hostDisk"]["shared"] = json!(false);
    scene.machine("local", local).await;
    for name in ["moved", "external", "local"] {
        scene.mark(name, "worker2").await;
    }
    scene.evictions().await;
    assert!(scene.migrations().await.is_empty());
}

#[tokio::test]
async fn a_failed_eviction_is_tried_again_after_its_pause() {
    let scene = Scene::new().await;
    scene.machine("vm1", moves()).await;
    scene.mark("vm1", "worker2").await;
    scene.evictions().await;
    scene.fail_job(SignedDuration::from_secs(5)).await;
    scene.evictions().await;
    assert!(scene.open_jobs().await.is_empty());
    let [failed] = scene.migrations().await.try_into().unwrap();
    scene
        .edit(&failed.key, |object| {
            let at = seconds(Timestamp::now() - SignedDuration::from_secs(25));
            let status = object.status.as_mut().unwrap();
            status["phaseTransitionTimestamps"][0]["phaseTransitionTimestamp"] = json!(at);
        })
        .await;
    scene.evictions().await;
    assert_eq!(scene.open_jobs().await.len(), 1);
}

#[tokio::test]
async fn a_maintenance_of_the_node_takes_care_of_its_marked_machines() {
    let scene = Scene::new().await;
    scene.machine("vm1", moves()).await;
    scene.mark("vm1", "worker2").await;
    scene.maintain().await;
    scene.evictions().await;
    assert!(scene.migrations().await.is_empty());
    scene.round().await;
    assert_eq!(scene.migrations().await.len(), 1);
    scene.evictions().await;
    assert_eq!(scene.migrations().await.len(), 1);
}
