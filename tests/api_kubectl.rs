//! Every verb of kubectl on every kind on which it makes sense, with three unmodified kubectls.
//!
//! The verbs and kinds that are checked stand in the tables at the end of this file.

use std::time::Duration;

use anyhow::{Context as _, Result};
use godwit_ledger::ObjectKey;
use godwit_testkit::kubectl::Release;

use crate::api_env::{Api, Kubectl};
use crate::api_kubectl_cases::{CLUSTER, EACH, GENERATED, KINDS, Sample, TO_NODES, Want};
use crate::api_play as play;

/// What is wrong with an answer; nothing when it is as wanted.
fn complaint(want: &Want, ended: (bool, &str, &str)) -> Option<String> {
    let (ok, stdout, stderr) = ended;
    let (right, wanted) = match want {
        Want::Ok => (ok, "success".to_owned()),
        Want::Is(text) => (
            ok && stdout.trim_end() == *text,
            format!("exactly {text:?}"),
        ),
        Want::Has(text) => (
            ok && (stdout.contains(text) || stderr.contains(text)),
            format!("{text:?}"),
        ),
        Want::Lacks(text) => (ok && !stdout.contains(text), format!("no {text:?}")),
        Want::Fails(text) => (
            !ok && (stderr.contains(text) || stdout.contains(text)),
            format!("a failure with {text:?}"),
        ),
    };
    (!right).then(|| format!("wanted {wanted}, got {ok} {stdout:?} {stderr:?}"))
}

/// Runs commands one after the other, and tells all that went wrong.
async fn run(
    kubectl: &Kubectl,
    cases: &[(u32, &str, Want)],
    fill: impl Fn(&str) -> String,
) -> Result<Vec<String>> {
    let minor = kubectl.minor().await?;
    let mut wrong = vec![];
    for (since, script, want) in cases.iter().filter(|(since, ..)| minor >= *since) {
        let script = fill(script);
        let ended = kubectl.shell(&script).await?;
        let filled = want.map(&fill);
        let found = complaint(&filled, (ended.ok, &ended.stdout, &ended.stderr));
        wrong.extend(found.map(|why| format!("1.{minor} {script} (since 1.{since}): {why}")));
    }
    Ok(wrong)
}

/// Every verb on one kind.
async fn verbs(api: &Api, kubectl: &Kubectl, sample: &Sample) -> Result<Vec<String>> {
    let name = sample.file_name();
    // kubectl takes what begins with a brace for JSON.
    let manifest = format!("# {}\n{}", sample.full, sample.manifest);
    let file = api.file(&format!("{name}.yaml"), &manifest)?;
    let changed = manifest.replace("note: one", "note: two");
    let changed = api.file(&format!("{name}-changed.yaml"), &changed)?;
    let fill = |text: &str| {
        text.replace("SHAPE", &format!("shape-{}", sample.kind))
            .replace("KIND", sample.kind)
            .replace("FULL", sample.full)
            .replace("CHANGED", &changed)
            .replace("FILE", &file)
    };
    let cases: Vec<(u32, &str, Want)> = EACH
        .iter()
        .filter(|(of, ..)| sample.can(of))
        .map(|(_, since, script, want)| (*since, *script, want.clone()))
        .collect();
    run(kubectl, &cases, fill).await
}

/// The maintenance service, for as long as it is polled: lets go of maintenances that are deleted.
async fn let_go(api: &Api) -> Result<()> {
    loop {
        for (resource, name) in [
            ("nodemaintenances", "one"),
            ("nodemaintenances", "other"),
            ("rollingmaintenances.godwit.io", "one"),
        ] {
            let key = ObjectKey::new(resource, "", name);
            let object = api.ledger.get(&key).await?;
            if object
                .is_some_and(|object| object.deleting() && object.finalizers().next().is_some())
            {
                play::release(&api.ledger, &key).await?;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn conforms(release: Release) -> Result<()> {
    let api = Api::start().await?;
    for node in ["worker1", "worker2"] {
        play::node(&api.ledger, node).await?;
    }
    let kubectl = api.admin(release).await?;
    let mut wrong = vec![];
    for cases in [CLUSTER, GENERATED, TO_NODES] {
        let kustomization = api.file("kustomization.yaml", "configMapGenerator: []\n")?;
        let folder = std::path::Path::new(&kustomization)
            .parent()
            .context("a file is in a folder")?;
        let folder = folder.display().to_string();
        let fill = |text: &str| text.replace("FOLDER", &folder);
        wrong.extend(run(&kubectl, cases, fill).await?);
    }
    let all = KINDS.iter().map(|sample| verbs(&api, &kubectl, sample));
    let all = futures::future::join_all(all);
    tokio::select! {
        all = all => for found in all {
            wrong.extend(found?);
        },
        ended = let_go(&api) => ended?,
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn debian_12s_kubectl_finds_nothing_amiss() -> Result<()> {
    conforms(Release::Debian).await
}

#[tokio::test(flavor = "multi_thread")]
async fn debian_13s_kubectl_finds_nothing_amiss() -> Result<()> {
    conforms(Release::Trixie).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_kubectl_finds_nothing_amiss() -> Result<()> {
    conforms(Release::Newest).await
}
