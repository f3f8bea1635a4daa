//! `kubectl drain` and the pods that it looks at, with real kubectls. The services that move or stop
//! machines are played: they do what the gateway left for them in the ledger, and nothing else.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use godwit_ledger::{Ledger, Object, ObjectKey};
use godwit_testkit::api::Method;
use godwit_testkit::kubectl::Release;
use serde_json::{Value, json};

use crate::api_env::{Api, Kubectl, cells};
use crate::api_lab::INSTANCE;
use crate::api_play as play;

const DRAIN: [&str; 4] = [
    "drain",
    "worker1",
    "--ignore-daemonsets",
    "--delete-emptydir-data",
];
const STUCK: &str = "VMI local is configured with an eviction strategy but is not live-migratable";

/// Two nodes, and machines on the first: each a name and what is replaced in its manifest.
async fn lab(release: Release, machines: &[(&str, &str, &str)]) -> Result<(Api, Kubectl)> {
    let api = Api::start().await?;
    let kubectl = api.admin(release).await?;
    for node in ["worker1", "worker2"] {
        play::node(&api.ledger, node).await?;
    }
    for (name, from, to) in machines {
        let manifest = INSTANCE.replace("rhel8-server-nfs", name).replace(from, to);
        let file = api.file(&format!("{name}.yaml"), &manifest)?;
        kubectl.ok(&["apply", "-f", &file]).await?;
        play::running(&api.ledger, name, "worker1").await?;
    }
    Ok((api, kubectl))
}

fn instance(name: &str) -> ObjectKey {
    ObjectKey::new(play::INSTANCES, "default", name)
}

async fn get(ledger: &Ledger, name: &str) -> Result<Object> {
    ledger.get(&instance(name)).await?.context("no instance")
}

/// The maintenance-service and the coordinator: a marked machine arrives on the other node.
async fn move_when_marked(ledger: Ledger, name: &'static str) -> Result<()> {
    until(&ledger, name, |object| {
        let told = object.status.as_ref();
        told.is_some_and(|told| told["evacuationNodeName"] == "worker1")
    })
    .await?;
    let status = json!({
        "nodeName": "worker2", "activePods": {"job": "worker2"}, "evacuationNodeName": null,
    });
    play::status_merge(&ledger, &instance(name), status).await
}

/// The scheduler: an instance that shall go is gone.
async fn remove_when_deleted(ledger: Ledger, name: &'static str) -> Result<()> {
    until(&ledger, name, Object::deleting).await?;
    let mut tx = ledger.begin().await?;
    tx.remove(&instance(name)).await?;
    tx.commit().await?;
    Ok(())
}

async fn until(ledger: &Ledger, name: &str, is_so: impl Fn(&Object) -> bool) -> Result<()> {
    let wait = async {
        while !is_so(&get(ledger, name).await?) {
            tokio::time::sleep(Duration::from_millis(50)).await; // poll
        }
        Ok(())
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await?
}

async fn a_drain_moves_and_stops_machines_and_ends_well(release: Release) -> Result<()> {
    let strategy = "evictionStrategy: LiveMigrate";
    let machines = [
        ("moves", "", ""),
        ("stops", strategy, "evictionStrategy: None"),
    ];
    let (api, kubectl) = lab(release, &machines).await?;
    let pods = cells(&kubectl.ok(&["get", "pods", "-o", "wide"]).await?);
    assert_eq!(pods[0][..5], ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
    assert_eq!(pods[1][1..4], ["1/1", "Running", "0"]);
    assert_eq!(pods[1][5..7], ["192.168.123.62", "worker1"]);
    let before = pods[1][0].clone();

    let moved = tokio::spawn(move_when_marked(api.ledger.clone(), "moves"));
    let stopped = tokio::spawn(remove_when_deleted(api.ledger.clone(), "stops"));
    let drained = kubectl.run(&DRAIN).await?;
    assert!(drained.ok, "{drained:?}");
    let text = "Eviction triggered evacuation of VMI \"default/moves\"";
    assert!(drained.stderr.contains(text), "{drained:?}");
    assert!(drained.stdout.contains("evicted"), "{drained:?}");
    moved.await??;
    stopped.await??;

    let selector = "--field-selector=spec.nodeName=worker1";
    let left = kubectl.ok(&["get", "pods", selector, "-o", "name"]).await?;
    assert_eq!(left, "");
    let on_two = "--field-selector=spec.nodeName=worker2";
    let there = kubectl.ok(&["get", "pods", on_two, "-o", "name"]).await?;
    assert!(there.starts_with("pod/virt-launcher-moves-"), "{there}");
    assert!(!there.contains(&before), "{there} is still {before}");
    let nodes = cells(&kubectl.ok(&["get", "nodes"]).await?);
    assert_eq!(nodes[1][1], "Ready,SchedulingDisabled");
    kubectl.ok(&["uncordon", "worker1"]).await?;
    Ok(())
}

#[tokio::test]
async fn debians_kubectl_drains_a_node() -> Result<()> {
    a_drain_moves_and_stops_machines_and_ends_well(Release::Debian).await
}

#[tokio::test]
async fn the_newest_kubectl_drains_a_node() -> Result<()> {
    a_drain_moves_and_stops_machines_and_ends_well(Release::Newest).await
}

async fn a_machine_that_cannot_move_holds_a_drain_up(release: Release) -> Result<()> {
    let machines = [("local", "shared: true", "shared: false")];
    let (api, kubectl) = lab(release, &machines).await?;
    let mut drain = DRAIN.to_vec();
    drain.push("--timeout=7s");
    let error = kubectl.fails(&drain).await?;
    assert!(error.contains(STUCK), "{error}");
    assert!(error.contains("will retry after 5s"), "{error}");
    let local = get(&api.ledger, "local").await?;
    ensure!(!local.deleting(), "{local:?}");
    let mark = &local.status.context("no status")?["evacuationNodeName"];
    assert_eq!(*mark, Value::Null);
    Ok(())
}

#[tokio::test]
async fn debians_kubectl_waits_for_a_machine_that_cannot_move() -> Result<()> {
    a_machine_that_cannot_move_holds_a_drain_up(Release::Debian).await
}

#[tokio::test]
async fn the_newest_kubectl_waits_for_a_machine_that_cannot_move() -> Result<()> {
    a_machine_that_cannot_move_holds_a_drain_up(Release::Newest).await
}

#[tokio::test]
async fn what_only_asks_changes_nothing() -> Result<()> {
    let (api, kubectl) = lab(Release::Newest, &[("moves", "", "")]).await?;
    let before = api.ledger.revision().await?;
    let name = kubectl.ok(&["get", "pods", "-o", "name"]).await?;
    let name = name.trim().trim_start_matches("pod/").to_owned();
    let mut client = api.client()?.connect().await?;
    let path = format!("/api/v1/namespaces/default/pods/{name}/eviction");
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name},
        "deleteOptions": {"dryRun": ["All"]},
    });
    let said = client.call(Method::POST, &path, Some(&eviction)).await?;
    assert_eq!(said.status, 429, "{}", said.body);
    assert_eq!(said.retry_after, None);
    assert_eq!(api.ledger.revision().await?, before);
    // Nobody deletes a machine by its pod.
    let refused = kubectl.fails(&["delete", "pod", &name]).await?;
    assert!(refused.contains("MethodNotAllowed"), "{refused}");
    let gone = path.replace(&name, "virt-launcher-moves-xxxxx");
    assert_eq!(client.call(Method::POST, &gone, None).await?.status, 404);
    Ok(())
}
