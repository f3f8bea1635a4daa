//! The control group of a QEMU, in the kernel of this machine. Needs root and a cgroup2.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr
)]
#![allow(dead_code, unreachable_pub)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Agent, NOBODY, confined, counting, eventually, place};
use godwit_rpc::agent::v1::*;
use godwit_testkit::untried;

const MACHINE: &str = "11111111-94b4-4cda-9a69-cca8d4b4c587";

/// A group for this test alone; removed at its end.
struct Root {
    mount: PathBuf,
    path: PathBuf,
}

impl Root {
    /// `None` where this machine has no cgroup2 that can be written.
    fn new() -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let line = mounts.lines().find(|line| line.contains(" cgroup2 "))?;
        let mount = PathBuf::from(line.split(' ').nth(1)?);
        let path = mount.join(format!("godwit-held-{}", std::process::id()));
        std::fs::create_dir(&path).ok()?;
        Some(Self { mount, path })
    }

    fn group_of(&self, pid: u32) -> PathBuf {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let own = text.lines().find_map(|line| line.strip_prefix("0::/"));
        self.mount.join(own.unwrap())
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.path)
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = std::fs::remove_dir(entry.path());
        }
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// A machine whose disk is in `dir`.
async fn started(agent: &Agent, dir: &Path) -> u32 {
    let request = StartMachineRequest {
        spec: Some(counting(dir, MACHINE)),
        epoch: 1,
        paused: false,
    };
    let report = agent.client().start_machine(request).await.unwrap();
    report.into_inner().pid
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_has_a_group_until_it_ends_also_after_a_restart_of_its_agent() {
    let Some(root) = Root::new() else {
        untried("no cgroup2 can be written on this machine");
        return;
    };
    let dir = place();
    let keys = vec![format!("cgroup_root={}", root.path.display())];
    let mut agent = confined("worker1", dir.path(), keys).await;
    let pid = started(&agent, &dir.path().join("pool")).await;
    let group = root.group_of(pid);
    assert!(group.starts_with(&root.path), "{group:?}");
    let above = group.parent().unwrap();
    for (limit, file) in [
        ("memory", "memory.max"),
        ("pids", "pids.max"),
        ("cpu", "cpu.weight"),
    ] {
        let given = std::fs::read_to_string(above.join("cgroup.subtree_control")).unwrap();
        let given = given.split_whitespace().any(|name| name == limit);
        let held = std::fs::read_to_string(group.join(file)).ok();
        assert_eq!(held.is_some(), given, "{file}: {held:?}");
        assert_ne!(held.as_deref(), Some("max\n"), "{file}");
    }
    assert!(
        agent
            .log()
            .contains("qemus have control groups of their own")
    );

    agent.restart().await;
    assert_eq!(root.group_of(pid), group);
    let request = StopMachineRequest {
        machine: MACHINE.to_owned(),
        epoch: 1,
        grace_seconds: 0,
    };
    agent.client().stop_machine(request).await.unwrap();
    eventually("the group to be gone", async || {
        (!group.exists()).then_some(())
    })
    .await;
    assert!(agent.qemus().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_groups_machines_run_and_the_log_says_so() {
    let dir = place();
    let keys = vec!["cgroup_root=/proc/no/such/place".to_owned()];
    let agent = confined("worker1", dir.path(), keys).await;
    started(&agent, &dir.path().join("pool")).await;
    eventually("the guest to count", async || {
        agent.counters().last().copied()
    })
    .await;
    assert!(
        agent
            .log()
            .contains("qemus have no control groups of their own")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_is_root_stays_in_the_group_of_its_agent() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start("worker1", dir.path()).await;
    let pid = started(&agent, dir.path()).await;
    let group = |of: &str| std::fs::read_to_string(format!("/proc/{of}/cgroup")).unwrap();
    assert_eq!(group(&pid.to_string()), group("self"));
    assert!(agent.log().contains("qemu_user is not set"));
}

#[test]
fn an_agent_that_requires_groups_does_not_start_without() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_godwit-node-agent"))
        .args(["--set", "node=worker1", "--set", "common.insecure=true"])
        .args(["--set", "accel=tcg", "--set", "cgroups=require"])
        .args(["--set", "cgroup_root=/proc/no/such/place"])
        .args(["--set", &format!("qemu_user={NOBODY}")])
        .args([
            "--set",
            &format!("state_dir={}", dir.path().join("state").display()),
        ])
        .args([
            "--set",
            &format!("run_dir={}", dir.path().join("run").display()),
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(!output.status.success());
    assert!(said.contains("find control groups"), "{said}");
}
