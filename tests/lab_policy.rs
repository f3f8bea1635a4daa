//! A MigrationPolicy on a real machine, and a machine deleted without its instance.

use anyhow::{Result, ensure};
use godwit_testkit::kubectl::Release;

use crate::lab_env::{Env, Machine, wait};

const LAST: u8 = 96;
const VM: &str = "by-policy";
const POLICY: &str = "apiVersion: migrations.kubevirt.io/v1alpha1
kind: MigrationPolicy
metadata: {name: gentle}
spec:
  bandwidthPerMigration: 512Mi
  allowAutoConverge: true
  selectors:
    namespaceSelector: {kubernetes.io/metadata.name: default}
";

/// Moves the machine and answers what its `migrationState` says of policy, bandwidth and throttling.
fn moved_under(env: &Env) -> Result<String> {
    let before = env.node_of(VM)?;
    let job = format!(
        "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstanceMigration\n\
         metadata: {{generateName: gentle-}}\nspec: {{vmiName: {VM}}}\n"
    );
    env.ok(
        Release::Newest,
        &format!("echo '{job}' | kubectl create -f -"),
    )?;
    wait("the machine to move", || {
        let phases = env.kubectl("get vmim -o 'jsonpath={.items[*].status.phase}'")?;
        let over = phases.split(' ').all(|phase| phase == "Succeeded");
        Ok((over && env.node_of(VM)? != before).then_some(()))
    })?;
    let state = ".status.migrationState";
    let configuration = format!("{state}.migrationConfiguration");
    env.kubectl(&format!(
        "get vmi/{VM} -o 'jsonpath={{{state}.migrationPolicyName}} \
         {{{configuration}.bandwidthPerMigration}} {{{configuration}.allowAutoConverge}}'"
    ))
}

/// The policy is in force while it is there.
pub(crate) fn under_a_policy(env: &Env) -> Result<()> {
    env.run(&[Machine::small(VM, LAST)])?;
    env.ok(
        Release::Newest,
        &format!("echo '{POLICY}' | kubectl apply -f -"),
    )?;
    // The coordinator hears of it by itself; nothing shows that it has.
    let shown = wait("a migration under the policy", || {
        let shown = moved_under(env)?;
        Ok((shown == "gentle 536870912 true").then_some(shown))
    });
    ensure!(shown.is_ok(), "{shown:?}");
    env.ok(Release::Newest, "kubectl delete migrationpolicy gentle")?;
    wait("a migration without it", || {
        let shown = moved_under(env)?;
        Ok(shown.starts_with(' ').then_some(()))
    })?;
    alone(env)
}

/// The instance runs on when its machine is deleted alone, and belongs to nobody.
fn alone(env: &Env) -> Result<()> {
    let first = env.ask(LAST)?;
    env.ok(
        Release::Newest,
        &format!("kubectl delete vm {VM} --cascade=orphan"),
    )?;
    let owners = env.kubectl(&format!(
        "get vmi/{VM} -o 'jsonpath={{.metadata.ownerReferences}}{{.status.phase}}'"
    ))?;
    ensure!(owners == "Running", "{owners}");
    ensure!(env.ask(LAST)?.boot_id == first.boot_id, "it booted again");
    env.ok(Release::Newest, &format!("kubectl delete vmi {VM}"))
        .map(drop)
}
