//! `kill -9` of each service in turn: no machine is harmed, nothing is lost, and the lab goes on.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab_continuity::beating;
use crate::lab_env::{Env, maintenance, migration, wait};
use crate::lab_plan::slowly;
use crate::lab_suite::say;

const VM: &str = "unharmed";
const LAST: u8 = 75;
/// How long a service stays dead.
const DEAD: Duration = Duration::from_secs(1);
/// Any longer silence of the guest is a fault, however busy the machine.
const GAP_MAX: Duration = Duration::from_secs(5);

/// The section.
pub(crate) fn each_service(env: &Env) -> Result<()> {
    let (listener, machine) = beating(env, VM, LAST)?;
    env.run(&[machine])?;
    let (uid, boot) = (env.uid_of(VM)?, env.ask(LAST)?);
    let mut known = BTreeSet::new();
    for service in env.lab().services() {
        let name = service.name;
        env.lab().kill(&name)?;
        std::thread::sleep(DEAD);
        let meanwhile = env.ask(LAST).context("the guest while a service is dead")?;
        ensure!(meanwhile.boot_id == boot.boot_id, "the guest booted again");
        env.lab().start(&name)?;
        env.migrate(&format!("after-{name}"), VM, None)?;
        known.insert(format!(
            "virtualmachineinstancemigration.kubevirt.io/after-{name}"
        ));
        ensure!(env.uid_of(VM)? == uid, "{name}: the instance is another");
        say(&format!("{name}: killed, and the machine moved again"));
    }
    kept(env, &known)?;
    in_the_middle(env)?;
    maintained(env)?;
    let report = listener.report();
    let repeats = report.repeats();
    ensure!(repeats.is_empty(), "said again: {:?}", repeats.first());
    let strangers = report
        .heard
        .iter()
        .any(|heard| heard.record.boot_id != boot.boot_id);
    ensure!(!strangers, "the guest booted again");
    let (gap, _) = report.longest_gap().context("no heartbeats")?;
    say(&format!(
        "longest gap of the heartbeats: {} ms",
        gap.as_millis()
    ));
    ensure!(gap < GAP_MAX, "silent for {gap:?}");
    Ok(())
}

/// The newest five migrations of a machine are kept, as KubeVirt does.
fn kept(env: &Env, known: &BTreeSet<String>) -> Result<()> {
    let listed = env.kubectl("get vmim -o name")?;
    let listed: BTreeSet<String> = listed.lines().map(str::to_owned).collect();
    ensure!(
        listed.is_subset(known),
        "{listed:?} but made were {known:?}"
    );
    ensure!(
        listed.len() >= known.len().min(5),
        "{listed:?} of {known:?}"
    );
    Ok(())
}

/// The coordinator dies while a machine is copied; the migration ends well all the same.
fn in_the_middle(env: &Env) -> Result<()> {
    env.apply(&[slowly(), migration("in-the-middle", VM, None)])?;
    let phase = || env.kubectl("get vmim/in-the-middle -o 'jsonpath={.status.phase}'");
    wait("the copy", || Ok((phase()? == "Running").then_some(())))?;
    env.lab().kill("migration-coordinator")?;
    let phase = phase()?;
    ensure!(phase == "Running", "{phase} when its owner died");
    std::thread::sleep(DEAD);
    env.lab().start("migration-coordinator")?;
    env.kubectl("delete kubevirts.kubevirt.io/kubevirt -n kubevirt --timeout=60s")?;
    env.succeeded("in-the-middle").map(drop)
}

/// A maintenance works as before.
fn maintained(env: &Env) -> Result<()> {
    let node = env.node_of(VM)?;
    env.apply(&[maintenance("after-all", &node)])?;
    wait("the machine to leave", || {
        Ok((env.node_of(VM)? != node).then_some(()))
    })?;
    env.kubectl("delete nodemaintenances.kubevirt.io/after-all --timeout=60s")
        .map(drop)
}
