//! What must be refused, in KubeVirt's words and with its status code, and changes nothing.

use anyhow::{Context, Result, ensure};
use godwit_testkit::kubectl::Release;
use serde_json::{Value, json};

use crate::lab_env::{Env, Machine, maintenance, migration, wait};

const VM: &str = "busy";
const LAST: u8 = 95;
/// Where migrations and maintenances are made.
const MIGRATIONS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstancemigrations";
const MAINTENANCES: &str = "/apis/kubevirt.io/v1alpha1/nodemaintenances";

/// Characters of a line that are worth reading.
const LINE_MAX: usize = 500;

/// Something that must be refused.
struct Bad {
    path: String,
    object: Value,
    code: u16,
    says: String,
}

/// The section.
pub(crate) fn refused(env: &Env) -> Result<()> {
    env.run(&[Machine::small(VM, LAST)])?;
    let elsewhere = if env.node_of(VM)? == "worker3" {
        "worker2"
    } else {
        "worker3"
    };
    env.apply(&[maintenance("first", elsewhere)])?;
    let job = slow_migration(env)?;
    let bad = cases(elsewhere, &job);
    let before = cluster(env)?;
    for release in Release::ENDS {
        for bad in &bad {
            refuses(env, release, bad)?;
        }
        refuses_a_wrong_field(env, release)?;
    }
    let after = cluster(env)?;
    ensure!(before == after, "before\n{before:#}\nafter\n{after:#}");
    // Taking the slow one back leaves the machine where it is.
    let place = env.node_of(VM)?;
    env.kubectl("delete vmim/slow --timeout=60s")?;
    ensure!(
        env.node_of(VM)? == place,
        "a cancelled migration moved the machine"
    );
    env.ask(LAST).map(drop)
}

/// A migration that stays under way: its copy is slow. Answers its UID.
fn slow_migration(env: &Env) -> Result<String> {
    let limits = json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "KubeVirt",
        "metadata": { "name": "kubevirt", "namespace": "kubevirt" },
        "spec": { "configuration": { "migrations": { "bandwidthPerMigration": "100Ki" } } },
    });
    env.apply(&[limits])?;
    env.apply(&[migration("slow", VM, None)])?;
    let job = wait("the slow migration", || {
        let job = env.json("vmim/slow")?;
        Ok((job["status"]["phase"] == "Running").then_some(job))
    })?;
    let uid = job["metadata"]["uid"].as_str().context("no UID")?;
    Ok(uid.to_owned())
}

fn cases(closed: &str, job: &str) -> Vec<Bad> {
    let bad = |path: &str, object: Value, code, says: &str| Bad {
        path: path.to_owned(),
        object,
        code,
        says: says.to_owned(),
    };
    let mut nameless = migration("bad", VM, None);
    nameless["spec"] = json!({});
    let mut misspelt = migration("bad", VM, None);
    misspelt["spec"]["vmiNam"] = json!(VM);
    let mut large = migration("bad", VM, None);
    large["metadata"]["annotations"] = json!({ "note": "x".repeat(2 << 20) });
    vec![
        bad(MIGRATIONS, nameless, 422, "vmiName is missing"),
        bad(
            MIGRATIONS,
            migration("bad", "nobody", None),
            400,
            "the VMI \"default/nobody\" does not exist",
        ),
        bad(
            MIGRATIONS,
            migration("bad", VM, None),
            400,
            &format!(
                "in-flight migration detected. Active migration job ({job}) is currently already \
                 in progress for VMI {VM}."
            ),
        ),
        bad(
            &format!("{MIGRATIONS}?fieldValidation=Strict"),
            misspelt,
            400,
            "strict decoding error: unknown field \"spec.vmiNam\"",
        ),
        bad(MIGRATIONS, large, 422, "Too long"),
        bad(
            MAINTENANCES,
            maintenance("bad", "worker9"),
            403,
            "invalid nodeName, no node with name worker9 found",
        ),
        bad(
            MAINTENANCES,
            maintenance("bad", closed),
            403,
            &format!("invalid nodeName, a NodeMaintenance for node {closed} already exists"),
        ),
    ]
}

/// Sends it as it is: kubectl's own checks would refuse some of it before the server can.
fn refuses(env: &Env, release: Release, bad: &Bad) -> Result<()> {
    let file = env.file("bad.json", &bad.object.to_string())?;
    let file = file.display();
    let said = env.shell(
        release,
        &format!("kubectl create --raw '{}' -f {file} -v=6", bad.path),
    )?;
    let heard = shortened(&said.stderr);
    ensure!(!said.ok, "{release:?} accepted it, wanted {}", bad.says);
    ensure!(
        heard.contains(&bad.says),
        "{release:?}, wanted {}:\n{heard}",
        bad.says
    );
    // One release writes `POST URL 403 Forbidden in`, the other `verb="POST" ... status="403 `.
    let code = bad.code.to_string();
    let answered = heard.lines().any(|line| {
        let mut words = line.split([' ', '"']);
        line.contains("POST") && words.any(|word| word == code)
    });
    ensure!(answered, "{release:?}, wanted {code}:\n{heard}");
    Ok(())
}

/// As a person meets it: by `kubectl apply`.
fn refuses_a_wrong_field(env: &Env, release: Release) -> Result<()> {
    let mut object = migration("bad", VM, None);
    object["spec"]["vmiNam"] = json!(VM);
    let file = env.file("bad.json", &object.to_string())?;
    let said = env.shell(release, &format!("kubectl apply -f {}", file.display()))?;
    ensure!(!said.ok, "{release:?} accepted a wrong field");
    ensure!(
        said.stderr.contains("unknown field"),
        "{release:?}: {said:?}"
    );
    Ok(())
}

/// All that users made, with what they wish and where machines are.
fn cluster(env: &Env) -> Result<Value> {
    let kinds = "vm,vmi,vmim,nodemaintenances.kubevirt.io,kubevirt,nodes,configmaps,namespaces";
    let list = env.json(&format!("{kinds} -A"))?;
    let items = list["items"].as_array().context("no list")?;
    let kept = items.iter().map(|item| {
        let metadata = &item["metadata"];
        json!({
            "kind": item["kind"],
            "name": metadata["name"],
            "uid": metadata["uid"],
            "generation": metadata["generation"],
            "labels": metadata["labels"],
            "annotations": metadata["annotations"],
            "spec": item["spec"],
            "data": item["data"],
            "phase": item["status"]["phase"],
            "node": item["status"]["nodeName"],
        })
    });
    Ok(kept.collect())
}

fn shortened(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| line.chars().take(LINE_MAX).collect::<String>());
    lines.collect::<Vec<_>>().join("\n")
}
