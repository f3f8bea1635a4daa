//! A node of eight machines with mixed strategies: what the maintenance says before it moves them
//! is what happens, and who stays leaves once the remedy is applied.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::lab_env::{Env, Machine, maintenance, wait};
use crate::lab_suite::say;

const MAINTENANCE: &str = "nodemaintenances.kubevirt.io/plan-worker1";
/// Slow enough that a copy can be watched.
const BANDWIDTH: &str = "8Mi";

/// Eight machines leave, one of them only after it is allowed to.
pub(crate) fn as_planned(env: &Env) -> Result<()> {
    let apart = [Machine::small("pair-b", 178), Machine::small("pair-a", 177)];
    let stays = Machine {
        example: "vm-stays.yaml",
        ..Machine::small("stays", 170)
    };
    let plain: Vec<Machine> = (1..=6)
        .map(|n| Machine::small(&format!("plan-{n}"), 170 + n))
        .collect();
    env.only(Some("worker2"))?;
    start(env, &apart[..1], &json!({ "affinity": keeps_apart() }))?;
    env.only(Some("worker1"))?;
    start(env, &apart[1..], &json!({ "affinity": keeps_apart() }))?;
    start(env, &plain[..4], &json!({}))?;
    start(
        env,
        &plain[4..],
        &json!({ "evictionStrategy": "LiveMigrateIfPossible" }),
    )?;
    env.run(&[stays])?;
    env.only(None)?;
    env.apply(&[slowly()])?;
    let before = boots(env, 170..=177)?;
    env.apply(&[maintenance("plan-worker1", "worker1")])?;
    let planned = wait("the plan", || planned(env))?;
    say(&format!("planned: {planned:?}"));
    ensure!(planned["pair-a"] == "worker3", "its pair is on worker2");
    blocked(env)?;
    measure(env)?;
    for (name, node) in &planned {
        let there = env.node_of(name)?;
        ensure!(
            there == *node,
            "{name} was to go to {node} and is on {there}"
        );
    }
    let remedy = r#"{"spec":{"template":{"spec":{"evictionStrategy":"LiveMigrate"}}}}"#;
    env.kubectl(&format!("patch vm/stays --type=merge -p '{remedy}'"))?;
    wait("the node to be empty", || {
        let done = env.json(MAINTENANCE)?["status"]["phase"] == "Succeeded";
        Ok(done.then_some(()))
    })?;
    let told = env.json(MAINTENANCE)?;
    let machines = told["status"]["machines"]
        .as_array()
        .context("no machines")?;
    ensure!(
        machines.len() == 8 && machines.iter().all(|one| one["state"] == "Moved"),
        "{told:#}"
    );
    ensure!(boots(env, 170..=177)? == before, "a guest booted again");
    let node = env.json("node/worker1")?;
    ensure!(
        holds(&node, "Drained") && !holds(&node, "DrainInProgress"),
        "{node:#}"
    );
    env.kubectl(&format!("delete {MAINTENANCE} --timeout=60s"))?;
    let node = env.json("node/worker1")?;
    ensure!(!holds(&node, "Drained"), "{node:#}");
    Ok(())
}

/// Starts machines whose instances have these fields, too.
fn start(env: &Env, machines: &[Machine], fields: &Value) -> Result<()> {
    for machine in machines {
        let mut object = env.machine(machine)?;
        let template = &mut object["spec"]["template"];
        for (key, value) in fields.as_object().into_iter().flatten() {
            template["spec"][key] = value.clone();
        }
        if machine.name.starts_with("pair") {
            template["metadata"]["labels"]["group"] = json!("pair");
        }
        env.apply(&[object])?;
        env.ask(machine.last)?;
    }
    Ok(())
}

fn keeps_apart() -> Value {
    json!({ "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [{
        "labelSelector": { "matchLabels": { "group": "pair" } },
        "topologyKey": "kubernetes.io/hostname",
    }] } })
}

pub(crate) fn slowly() -> Value {
    json!({
        "apiVersion": "kubevirt.io/v1",
        "kind": "KubeVirt",
        "metadata": { "name": "kubevirt", "namespace": "kubevirt" },
        "spec": { "configuration": { "migrations": { "bandwidthPerMigration": BANDWIDTH } } },
    })
}

fn boots(env: &Env, lasts: std::ops::RangeInclusive<u8>) -> Result<Vec<[u8; 16]>> {
    lasts.map(|last| Ok(env.ask(last)?.boot_id)).collect()
}

/// Where the machines go that can leave, once that was told of all seven.
fn planned(env: &Env) -> Result<Option<BTreeMap<String, String>>> {
    let told = env.json(MAINTENANCE)?;
    let machines = told["status"]["machines"].as_array();
    let targets = machines.into_iter().flatten().filter_map(|machine| {
        let name = machine["name"].as_str()?.to_owned();
        Some((name, machine["targetNode"].as_str()?.to_owned()))
    });
    let targets: BTreeMap<String, String> = targets.collect();
    Ok((targets.len() == 7).then_some(targets))
}

/// The machine that may not move is named, with what would help.
fn blocked(env: &Env) -> Result<()> {
    let told = env.json(MAINTENANCE)?;
    let blockers = told["status"]["blockers"]
        .as_array()
        .context("no blockers")?;
    let [blocker] = &blockers[..] else {
        anyhow::bail!("{blockers:#?}");
    };
    let remedy = blocker["remedy"].as_str().unwrap_or_default();
    ensure!(
        blocker["name"] == "stays" && remedy.contains("set evictionStrategy: LiveMigrate"),
        "{blocker:#}"
    );
    Ok(())
}

/// What was forecast once a tenth of the bytes had left, beside what it took.
fn measure(env: &Env) -> Result<()> {
    let began = Instant::now();
    let tenth: Cell<Option<(f64, f64, f64)>> = Cell::new(None);
    wait("all that can leave", || {
        let told = env.json(MAINTENANCE)?;
        let (status, now) = (&told["status"], began.elapsed().as_secs_f64());
        let forecast = &status["forecast"];
        let bytes = |field: &str| forecast[field].as_f64().unwrap_or(0.0);
        // The one that stays is an eighth of them.
        let (total, left) = (bytes("bytesTotal") * 7.0 / 8.0, bytes("bytesRemaining"));
        let left = left - bytes("bytesTotal") / 8.0;
        if tenth.get().is_none() && left < 0.9 * total && left > 0.0 {
            let seconds = |field: &str| until(status, field);
            if let Some(end) = seconds("end") {
                let band = seconds("latest").unwrap_or(end) - seconds("earliest").unwrap_or(end);
                tenth.set(Some((now, now + end, band)));
            }
        }
        Ok((forecast["machinesRemaining"] == 1).then_some(()))
    })?;
    let took = began.elapsed().as_secs_f64();
    let (at, end, band) = tenth.get().context("no forecast at a tenth of the bytes")?;
    say(&format!(
        "at a tenth of the bytes ({at:.0} s): {end:.0} s in all were forecast, within a band of \
         {band:.0} s; it took {took:.0} s ({:+.0} %)",
        (end - took) / (took - at) * 100.0
    ));
    Ok(())
}

/// Seconds from now until a point in time of the forecast.
fn until(status: &Value, field: &str) -> Option<f64> {
    let end: jiff::Timestamp = status["forecast"][field].as_str()?.parse().ok()?;
    Some(end.duration_since(jiff::Timestamp::now()).as_secs_f64())
}

fn holds(node: &Value, kind: &str) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition["type"] == kind && condition["status"] == "True")
}
