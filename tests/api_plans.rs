//! DrainPlans over the wire: what is refused, what kubectl and `godwit plan` show, and that the
//! maintenances of a plan go with it. The service that makes plans is played.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit_cli::output::Output;
use godwit_cli::plan::{Plan, plan};
use godwit_ledger::{Ledger, ObjectKey};
use godwit_testkit::kubectl::Release;
use serde_json::{Value, json};

use crate::api_env::{Api, Kubectl, cells, example};
use crate::api_play as play;

const PLANS: &str = "drainplans.godwit.io";

fn made() -> Value {
    json!({
        "phase": "Planned", "observedGeneration": 1, "inventoryRevision": 7,
        "nodesTotal": 2, "movesTotal": 1, "blockersTotal": 1, "wavesTotal": 2,
        "forecast": {
            "seconds": 9.4, "earliestSeconds": 5.0, "latestSeconds": 18.2, "bytes": 268_435_456,
        },
        "nodes": [
            {"name": "worker1", "wave": 1, "state": "Waiting"},
            {"name": "worker2", "wave": 2, "state": "Waiting"},
        ],
        "moves": [{
            "order": 1, "namespace": "default", "name": "vm1", "source": "worker1",
            "target": "worker2", "wave": 1, "method": "Live", "beginsSeconds": 0.0,
            "takesSeconds": 9.4, "blackoutMilliseconds": 41.0, "converges": true,
        }],
        "blockers": [{
            "node": "worker2", "namespace": "default", "name": "stays",
            "reason": "EvictionStrategyNone", "message": "it stays", "remedy": "stop it",
        }],
    })
}

/// The maintenance-service: tells of the first plan that has no status.
async fn play_the_planner(ledger: Ledger) -> Result<()> {
    for _ in 0..600 {
        let plans = ledger.list(PLANS).await?;
        if let Some(new) = plans.iter().find(|plan| plan.status.is_none()) {
            return play::status_merge(&ledger, &new.key, made()).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("nobody made a plan")
}

async fn plans_are_made_shown_and_refused(release: Release) -> Result<()> {
    let api = Api::start().await?;
    let kubectl = api.admin(release).await?;
    for node in ["worker1", "worker2"] {
        play::node(&api.ledger, node).await?;
    }
    refused(&api, &kubectl).await?;
    kubectl
        .ok(&["apply", "-f", &example("drain-plan.yaml")])
        .await?;
    play_the_planner(api.ledger.clone()).await?;
    let viewer = api.viewer(release).await?;
    let table = cells(&viewer.ok(&["get", "dp"]).await?);
    let head = "NAME NODES MOVES BLOCKERS WAVES TIME PHASE AGE";
    assert_eq!(table[0].join(" "), head);
    assert_eq!(table[1][..7].join(" "), "monday 2 1 1 2 10s Planned");
    let described = viewer.ok(&["describe", "drainplan", "monday"]).await?;
    assert!(described.contains("Remedy:"), "{described}");
    viewer.fails(&["delete", "drainplan", "monday"]).await?;
    told_by_godwit(&api).await?;
    goes_with_its_maintenances(&api, &kubectl).await
}

async fn refused(api: &Api, kubectl: &Kubectl) -> Result<()> {
    for (spec, field) in [
        (
            "nodes: [worker9]",
            "spec.nodes[0]: Invalid value: \"worker9\": no such node",
        ),
        ("{}", "spec.nodes: Required value"),
        (
            "{nodes: [worker1], nodeSelector: {}}",
            "spec.nodeSelector: Forbidden",
        ),
        (
            "{nodes: [worker1], maxUnavailable: -1}",
            "spec.maxUnavailable",
        ),
    ] {
        let text = format!(
            "apiVersion: godwit.io/v1alpha1\nkind: DrainPlan\nmetadata: {{name: bad}}\nspec: {}\n",
            if spec.starts_with('{') {
                spec.to_owned()
            } else {
                format!("{{{spec}}}")
            }
        );
        let file = api.file("bad.yaml", &text)?;
        let said = kubectl.fails(&["create", "-f", &file]).await?;
        assert!(said.contains(field), "{said}");
    }
    Ok(())
}

async fn told_by_godwit(api: &Api) -> Result<()> {
    let wanted = Plan {
        nodes: vec!["worker1".to_owned(), "worker2".to_owned()],
        together: false,
        max_unavailable: Some(1),
        failure_domain: None,
        spare_nodes: false,
        explain: false,
        keep: false,
        kubeconfig: Some(api.kubeconfig("admin")),
        context: None,
        output: Output::Text,
    };
    let planner = tokio::spawn(play_the_planner(api.ledger.clone()));
    let text = plan(&wanted).await?;
    planner.await??;
    let table = cells(&text);
    let wanted_row = [
        "1",
        "default/vm1",
        "worker1",
        "worker2",
        "Live",
        "+0.0",
        "s",
        "9.4",
        "s",
    ];
    assert_eq!(table[1][..9], wanted_row, "{text}");
    assert!(text.contains("wave 2: worker2"), "{text}");
    assert!(text.contains("remedy: stop it"), "{text}");
    assert!(text.contains("about 9.4 s (5.0 s to 18.2 s)"), "{text}");
    let left = api.ledger.list(PLANS).await?;
    assert_eq!(left.len(), 1, "it deletes what it made");
    let unknown = Plan {
        nodes: vec!["worker9".to_owned()],
        ..wanted
    };
    let said = plan(&unknown).await.unwrap_err().to_string();
    assert!(said.contains("no such node"), "{said}");
    Ok(())
}

async fn goes_with_its_maintenances(api: &Api, kubectl: &Kubectl) -> Result<()> {
    let key = ObjectKey::new(PLANS, "", "monday");
    let owner = api.ledger.get(&key).await?.context("a plan")?;
    let text = json!({
        "apiVersion": "kubevirt.io/v1alpha1", "kind": "NodeMaintenance",
        "metadata": {
            "name": "monday-worker1",
            "ownerReferences": [{
                "apiVersion": "godwit.io/v1alpha1", "kind": "DrainPlan", "name": "monday",
                "uid": owner.uid, "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "spec": {"nodeName": "worker1"},
    });
    let file = api.file("maintenance.json", &text.to_string())?;
    kubectl.ok(&["create", "-f", &file]).await?;
    kubectl.ok(&["delete", "drainplan", "monday"]).await?;
    let key = ObjectKey::new("nodemaintenances", "", "monday-worker1");
    for _ in 0..200 {
        let maintenance = api
            .ledger
            .get(&key)
            .await?
            .context("it waits for its finalizer")?;
        if maintenance.deleting() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(false, "the maintenance outlives its plan");
    Ok(())
}

#[tokio::test]
async fn debians_kubectl_makes_and_shows_drain_plans() -> Result<()> {
    plans_are_made_shown_and_refused(Release::Debian).await
}

#[tokio::test]
async fn the_newest_kubectl_makes_and_shows_drain_plans() -> Result<()> {
    plans_are_made_shown_and_refused(Release::Newest).await
}
