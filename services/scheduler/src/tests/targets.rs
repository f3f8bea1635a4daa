//! Which of the nodes that will do a migration gets.

use godwit_ledger::{JobChange, Lease};
use godwit_rpc::placement::v1::{ReserveRequest, ReserveResponse};

use super::scene::{Scene, worker};

const PLENTY: u64 = 8192;

async fn reserve(scene: &Scene, lease: &Lease, preferred: &str) -> ReserveResponse {
    let job = &lease.job;
    let request = ReserveRequest {
        machine: job.machine.to_string(),
        job: job.id.to_string(),
        epoch: lease.epoch.0,
        inbound_max: 2,
        preferred_node: preferred.to_owned(),
        ..ReserveRequest::default()
    };
    let machines = &scene.machines;
    let service = (&machines.ledger, &*machines.floor);
    let reserved = crate::place::reserve(service, (&job.machine, &job.id), request);
    reserved.await.unwrap()
}

#[tokio::test]
async fn a_plan_names_the_target_until_a_migration_failed_there() {
    let scene = Scene::with(&["worker1", "worker2", "worker3", "worker4"], PLENTY).await;
    scene.wish("vm1").await;
    scene.settle().await;
    let mut target = String::new();
    // Nobody knows the first; the others are what a plan would name.
    for (migration, preferred, chosen) in [
        ("m1", "nowhere", "worker2"),
        ("m2", "worker4", "worker4"),
        ("m3", "worker4", "worker3"),
    ] {
        let lease = scene.migrate("vm1", migration).await;
        let answer = reserve(&scene, &lease, preferred).await;
        assert_eq!(answer.node, chosen, "{migration}");
        assert_eq!(answer.memory_bytes, 256 << 20);
        let said = answer.verdicts.iter().find(|one| one.node == target);
        let reasons = said.map(|verdict| verdict.reasons.clone());
        let held = vec!["a migration there failed in the last 10 min".to_owned()];
        assert_eq!(reasons, (!target.is_empty()).then_some(held), "{migration}");
        target = answer.node;
        let set = JobChange {
            target: Some(worker(&target)),
            ..JobChange::default()
        };
        scene.fail_with(&lease, set).await;
    }
    // Every one of them has failed: the plan's word decides no more than any other's.
    let lease = scene.migrate("vm1", "m4").await;
    assert_eq!(reserve(&scene, &lease, "worker3").await.node, "worker2");
}

#[tokio::test]
async fn a_migration_that_somebody_cancelled_is_not_held_against_its_target() {
    let scene = Scene::with(&["worker1", "worker2", "worker3"], PLENTY).await;
    scene.wish("vm1").await;
    scene.settle().await;
    let lease = scene.migrate("vm1", "m1").await;
    assert_eq!(reserve(&scene, &lease, "worker3").await.node, "worker3");
    let set = JobChange {
        target: Some(worker("worker3")),
        cancel: Some("no more".to_owned()),
        ..JobChange::default()
    };
    scene.fail_with(&lease, set).await;
    let lease = scene.migrate("vm1", "m2").await;
    assert_eq!(reserve(&scene, &lease, "worker3").await.node, "worker3");
}
