//! What virtctl asks of a machine, carried out on a real one.

use anyhow::{Result, ensure};
use godwit_testkit::kubectl::Release;

use crate::lab_env::{Env, Machine, wait};

const LAST: u8 = 95;
const VM: &str = "by-hand";

/// Calls an endpoint as virtctl does, with an empty body's worth of options.
fn call(env: &Env, path: &str) -> Result<()> {
    let path = format!("/apis/subresources.kubevirt.io/v1/namespaces/default/{path}");
    let script = format!("echo '{{}}' | kubectl replace --raw {path} -f -");
    env.ok(Release::Newest, &script).map(drop)
}

fn reads(env: &Env, what: &str, path: &str, value: &str) -> Result<()> {
    wait(&format!("{what} to show {value}"), || {
        // The instance of a machine just started may not be there yet.
        let get = format!("get {what} --ignore-not-found -o 'jsonpath={{{path}}}'");
        let shown = env.kubectl(&get)?;
        Ok((shown == value).then_some(()))
    })
}

/// Paused, continued, moved, restarted, stopped and started.
pub(crate) fn by_hand(env: &Env) -> Result<()> {
    env.run(&[Machine::small(VM, LAST)])?;
    let (vm, vmi) = (format!("vm/{VM}"), format!("vmi/{VM}"));
    let paused = ".status.conditions[?(@.type==\"Paused\")].status";
    call(env, &format!("virtualmachineinstances/{VM}/pause"))?;
    reads(env, &vmi, paused, "True")?;
    reads(env, &vm, ".status.printableStatus", "Paused")?;
    call(env, &format!("virtualmachineinstances/{VM}/unpause"))?;
    reads(env, &vmi, paused, "")?;
    let first = env.ask(LAST)?;

    let before = env.node_of(VM)?;
    call(env, &format!("virtualmachines/{VM}/migrate"))?;
    wait("the machine to move", || {
        Ok((env.node_of(VM)? != before).then_some(()))
    })?;
    ensure!(env.ask(LAST)?.boot_id == first.boot_id, "it booted again");
    reads(env, "vmim", ".items[*].status.phase", "Succeeded")?;

    let uid = env.uid_of(VM)?;
    call(env, &format!("virtualmachines/{VM}/restart"))?;
    wait("another instance", || {
        let new = env.uid_of(VM).unwrap_or_default();
        Ok((!new.is_empty() && new != uid).then_some(()))
    })?;
    reads(env, &vmi, ".status.phase", "Running")?;
    ensure!(
        env.ask(LAST)?.boot_id != first.boot_id,
        "it did not boot again"
    );

    call(env, &format!("virtualmachines/{VM}/stop"))?;
    reads(env, &vm, ".status.printableStatus", "Stopped")?;
    call(env, &format!("virtualmachines/{VM}/start"))?;
    reads(env, &vmi, ".status.phase", "Running")?;
    env.ask(LAST).map(drop)
}
