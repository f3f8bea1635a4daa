//! What became of a migration, told by real kubectls and by `godwit history`.

use anyhow::{Context, Result};
use godwit_cli::history::{History, history};
use godwit_cli::output::Output;
use godwit_testkit::kubectl::Release;
use serde_json::Value;

use crate::api_env::{Api, Kubectl, cells, example};
use crate::api_lab::INSTANCE;
use crate::api_play as play;

/// A migration that was asked for, failed, and was deleted. Answers its UID.
async fn bygone(api: &Api, kubectl: &Kubectl) -> Result<String> {
    let file = example("migration-job.yaml");
    let uid = ["create", "-f", &file, "-o", "jsonpath={.metadata.uid}"];
    let uid = kubectl.ok(&uid).await?;
    play::end_job(&api.ledger).await?;
    kubectl.ok(&["delete", "vmim", "migration-job"]).await?;
    Ok(uid)
}

async fn a_history_outlives_its_migration(release: Release) -> Result<()> {
    let api = Api::start().await?;
    let kubectl = api.admin(release).await?;
    let file = api.file("instance.yaml", INSTANCE)?;
    kubectl.ok(&["apply", "-f", &file]).await?;
    play::running(&api.ledger, "rhel8-server-nfs", "worker1").await?;
    let first = bygone(&api, &kubectl).await?;
    let second = bygone(&api, &kubectl).await?;

    let viewer = api.viewer(release).await?;
    told_by_kubectl(&viewer, &first, &second).await?;
    declared(&viewer).await?;
    kubectl
        .fails(&["delete", "migrationhistory", "migration-job"])
        .await?;
    told_by_godwit(&api).await
}

async fn told_by_kubectl(viewer: &Kubectl, first: &str, second: &str) -> Result<()> {
    let json = ["get", "migrationhistory", "migration-job", "-o", "json"];
    let shown: Value = serde_json::from_str(&viewer.ok(&json).await?)?;
    assert_eq!(shown["apiVersion"], "godwit.io/v1alpha1");
    assert_eq!(shown["kind"], "MigrationHistory");
    assert_eq!(shown["metadata"]["uid"], second);
    assert_eq!(
        (&shown["vmi"], &shown["state"]),
        (&"rhel8-server-nfs".into(), &"Failed".into())
    );
    let steps = shown["transitions"].as_array().cloned().unwrap_or_default();
    let said = |step: &Value| {
        let keys = ["seq", "from", "to", "actor", "epoch", "reason"];
        keys.map(|key| step[key].to_string()).join(" ")
    };
    let steps: Vec<String> = steps.iter().map(said).collect();
    let wanted = [
        r#"1 null "Pending" "request" 0 "requested""#,
        r#"2 "Pending" "Failed" "test" 1 "played""#,
    ];
    assert_eq!(steps, wanted);
    let yaml = ["get", "migrationhistory", first, "-o", "yaml"];
    let older = viewer.ok(&yaml).await?;
    assert!(older.contains(&format!("uid: {first}")), "{older}");
    assert!(older.contains("\nmigration: migration-job\n"), "{older}");

    let table = cells(&viewer.ok(&["get", "migrationhistories", "-A"]).await?);
    let head = "NAMESPACE NAME VMI SOURCE TARGET STATE BLACKOUT AGE";
    assert_eq!(table[0].join(" "), head);
    assert_eq!((table.len(), table[1][1].as_str()), (2, "migration-job"));
    let missing = viewer.fails(&["get", "migrationhistory", "nobody"]).await?;
    assert!(missing.contains("\"nobody\" not found"), "{missing}");
    Ok(())
}

async fn declared(viewer: &Kubectl) -> Result<()> {
    let resources = ["api-resources", "--api-group=godwit.io", "-o", "wide"];
    let resources = viewer.ok(&resources).await?;
    let mut lines = resources.lines();
    let resources = lines.find(|line| line.contains("MigrationHistory"));
    let resources = resources.context("it is served")?;
    for verb in ["watch", "create", "delete", "patch", "update"] {
        assert!(!resources.contains(verb), "{resources}");
    }
    let explained = viewer
        .ok(&["explain", "migrationhistory.transitions"])
        .await?;
    assert!(explained.contains("without a gap"), "{explained}");
    Ok(())
}

async fn told_by_godwit(api: &Api) -> Result<()> {
    let wanted = |name: &str, output| History {
        name: name.to_owned(),
        namespace: None,
        kubeconfig: Some(api.kubeconfig("viewer")),
        context: None,
        output,
    };
    let text = history(&wanted("migration-job", Output::Text)).await?;
    let steps: Vec<Vec<String>> = cells(&text);
    let step = steps
        .iter()
        .find(|step| step.get(2).is_some_and(|word| word == "Failed"));
    let step = step.unwrap_or_else(|| panic!("{text}"));
    assert_eq!(step[3..], ["test", "1", "played"], "{text}");
    let json: Value =
        serde_json::from_str(&history(&wanted("migration-job", Output::Json)).await?)?;
    assert_eq!(json["kind"], "MigrationHistory");
    let missing = history(&wanted("nobody", Output::Text)).await;
    let missing = missing.unwrap_err().to_string();
    assert!(missing.contains("\"nobody\" not found"), "{missing}");
    Ok(())
}

#[tokio::test]
async fn debians_kubectl_shows_a_history_that_outlives_its_migration() -> Result<()> {
    a_history_outlives_its_migration(Release::Debian).await
}

#[tokio::test]
async fn the_newest_kubectl_shows_a_history_that_outlives_its_migration() -> Result<()> {
    a_history_outlives_its_migration(Release::Newest).await
}
