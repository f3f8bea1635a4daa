//! Post-copy on a real machine that writes faster than its link carries: asked for on the migration, and as
//! the last resort of a policy.

use anyhow::{Context, Result, ensure};
use godwit_testkit::guest::heartbeat::Report;
use godwit_testkit::kubectl::Release;
use serde_json::{Value, json};

use crate::lab_continuity::beating_under;
use crate::lab_env::{Env, Machine, migration, wait};
use crate::lab_suite::say;

const VM: &str = "follows";
const LAST: u8 = 97;
/// More than the policies' links carry.
const WRITES: &str = "godwit.tick=5 godwit.dirty=48000000 godwit.dirtyset=32000000";

/// A policy for all machines; `timeout` in seconds for up to 1 GiB.
fn policy(post_copy: bool, timeout: u64) -> Value {
    json!({
        "apiVersion": "migrations.kubevirt.io/v1alpha1",
        "kind": "MigrationPolicy",
        "metadata": {"name": "narrow"},
        "spec": {
            "bandwidthPerMigration": "16Mi",
            "allowPostCopy": post_copy,
            "completionTimeoutPerGiB": timeout,
            "selectors": {"namespaceSelector": {"kubernetes.io/metadata.name": "default"}},
        },
    })
}

/// The section.
pub(crate) fn memory_follows(env: &Env) -> Result<()> {
    let (listener, machine) = beating_under(env, Machine::small(VM, LAST), WRITES)?;
    env.run(std::slice::from_ref(&machine))?;
    let boot = env.ask(LAST)?;

    env.apply(&[policy(false, 600)])?;
    let mut asked = migration("follows-asked", VM, None);
    asked["metadata"]["annotations"] = json!({"godwit.io/method": "PostCopy"});
    moved(env, "follows-asked", &asked)?;

    // Longer than all memory takes once.
    env.apply(&[policy(true, 10)])?;
    moved(env, "follows-late", &migration("follows-late", VM, None))?;
    let told = env.kubectl("events --for vmim/follows-late")?;
    ensure!(told.contains("PostCopyToComplete"), "{told}");

    let report = listener.report();
    same_guest(&report, boot.boot_id)?;
    env.ok(Release::Newest, "kubectl delete migrationpolicy narrow")?;
    env.kubectl(&format!("delete vm/{VM} --timeout=60s"))?;
    wait("the machine to stop", || {
        let left = env.kubectl("get vmi -o name")?;
        Ok(left.trim().is_empty().then_some(()))
    })
}

/// Makes the migration; its machine has to come over by post-copy.
fn moved(env: &Env, name: &str, migration: &Value) -> Result<()> {
    let before = env.node_of(VM)?;
    env.apply(std::slice::from_ref(migration))?;
    let state = env.succeeded(name)?;
    ensure!(state["mode"] == "PostCopy", "{state:#}");
    ensure!(state["completed"] == true, "{state:#}");
    ensure!(env.node_of(VM)? != before, "{VM} is still on {before}");
    Ok(())
}

/// One guest, that never went back nor said anything twice.
fn same_guest(report: &Report, boot_id: [u8; 16]) -> Result<()> {
    let heard = &report.heard;
    let (longest, _) = report.longest_gap().context("no heartbeats")?;
    say(&format!(
        "two post-copies: {} heartbeats heard, {} missing, longest gap {} ms",
        heard.len(),
        report.missing(),
        longest.as_millis(),
    ));
    let repeats = report.repeats();
    ensure!(repeats.is_empty(), "said again: {:?}", repeats.first());
    let stranger = heard.iter().find(|heard| heard.record.boot_id != boot_id);
    ensure!(stranger.is_none(), "the guest booted again: {stranger:?}");
    Ok(())
}
