//! Two agents and a guest whose memory is made of huge pages, which it keeps when it moves.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr
)]
#![allow(dead_code, unreachable_pub, clippy::wildcard_enum_match_arm)]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Agent, counting, eventually};
use godwit_rpc::Code;
use godwit_rpc::agent::v1::*;

const MACHINE: &str = "11111111-94b4-4cda-9a69-cca8d4b4c587";
const JOB: &str = "22222222-94b4-4cda-9a69-cca8d4b4c587";
const POOL: &str = "/proc/sys/vm/nr_hugepages";
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
const PROMISED: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages";
const PAGE: u64 = 2 << 20;
/// Pages of the machine.
const PAGES: u64 = 16;

fn number(file: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Pages that nobody has or was promised.
fn free() -> u64 {
    number(FREE) - number(PROMISED)
}

/// Huge pages for the time of a test.
struct Granted {
    before: u64,
    mount: tempfile::TempDir,
}

impl Granted {
    /// `None`, and a word about it, where this machine grants none.
    fn new(pages: u64) -> Option<Self> {
        let before = number(POOL);
        let wanted = before + pages;
        let granted = Self {
            before,
            mount: tempfile::tempdir().unwrap(),
        };
        let set = std::fs::write(POOL, wanted.to_string());
        if set.is_err() || number(POOL) < wanted || !granted.mounted() {
            println!("skipped: this machine grants no huge pages, or no mount");
            return None;
        }
        Some(granted)
    }

    fn mounted(&self) -> bool {
        let mut mount = Command::new("mount");
        mount.args(["-t", "hugetlbfs", "-o", "pagesize=2M", "none"]);
        let done = mount.arg(self.mount.path()).status();
        done.is_ok_and(|status| status.success())
    }

    fn path(&self) -> &Path {
        self.mount.path()
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        // A QEMU that was killed may not be gone yet.
        let mut umount = Command::new("umount");
        let _ = umount.arg("-l").arg(self.mount.path()).status();
        let _ = std::fs::write(POOL, self.before.to_string());
    }
}

fn job() -> JobRef {
    JobRef {
        machine: MACHINE.to_owned(),
        job: JOB.to_owned(),
        epoch: 1,
    }
}

fn spec(dir: &Path) -> MachineSpec {
    MachineSpec {
        memory_bytes: PAGES * PAGE,
        hugepage_bytes: PAGE,
        ..counting(dir, MACHINE)
    }
}

fn prepare(dir: &Path) -> PrepareTargetRequest {
    PrepareTargetRequest {
        job: Some(job()),
        spec: Some(spec(dir)),
        source_node: "worker1".to_owned(),
    }
}

async fn start(agent: &Agent, dir: &Path) {
    let request = StartMachineRequest {
        spec: Some(spec(dir)),
        epoch: 1,
        paused: false,
    };
    let report = agent.client().start_machine(request).await.unwrap();
    assert_eq!(report.into_inner().state(), MachineState::Running);
    eventually("the guest to count", async || {
        agent.counters().last().copied()
    })
    .await;
}

/// Bytes in huge pages that a QEMU of this agent has touched.
fn touched(agent: &Agent) -> u64 {
    let kib = agent.qemus().into_iter().map(|pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("HugetlbPages:"));
        let kib = line.unwrap_or("0").trim().trim_end_matches("kB").trim();
        kib.parse::<u64>().unwrap_or(0)
    });
    kib.sum::<u64>() << 10
}

async fn state(agent: &Agent) -> JobFacts {
    let facts = agent.client().watch_job(job()).await.unwrap();
    facts.into_inner().message().await.unwrap().unwrap()
}

// One test, since the pages are the whole machine's.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_has_its_memory_in_huge_pages_on_both_hosts_and_takes_no_more_than_booked() {
    let dir = tempfile::tempdir().unwrap();
    let Some(granted) = Granted::new(2 * PAGES) else {
        return;
    };
    let all = free();
    let source = Agent::start("worker1", dir.path()).await;
    let target = Agent::start("worker2", dir.path()).await;
    start(&source, dir.path()).await;
    assert_eq!(
        all - free(),
        PAGES,
        "all of it is set apart, and no page more"
    );
    assert!(touched(&source) > 0);

    let prepared = target.client().prepare_target(prepare(dir.path())).await;
    let prepared = prepared.unwrap().into_inner();
    assert_eq!(all - free(), 2 * PAGES);
    let copy = StartCopyRequest {
        job: Some(job()),
        target_node: "worker2".to_owned(),
        target_uri: prepared.uri.clone(),
        target_agent: target.address.clone(),
        limits: Some(CopyLimits {
            bandwidth: 0,
            downtime_limit_ms: 2000,
            auto_converge: false,
        }),
    };
    source.client().start_copy(copy).await.unwrap();
    source.client().allow_switchover(job()).await.unwrap();
    eventually("the target to run", async || {
        let fact = state(&target).await.target?;
        (fact.state() == TargetState::Running).then_some(())
    })
    .await;
    let left = *source.counters().last().unwrap();
    source.client().retire_source(job()).await.unwrap();
    let first = eventually("the guest on the target", async || {
        let counters = target.counters();
        (counters.len() > 3).then(|| counters[0])
    })
    .await;
    assert!(first > left, "the guest went back from {left} to {first}");
    assert!(touched(&target) > 0);
    eventually("the source's pages to be free again", async || {
        (all - free() == PAGES).then_some(())
    })
    .await;
    let left_behind = std::fs::read_dir(granted.path()).unwrap().count();
    assert_eq!(left_behind, 0, "directories on the mount");

    is_refused_when_there_are_too_few(&source, dir.path()).await;
    drop((source, target));
    drop(granted);
}

/// Before anything is started.
async fn is_refused_when_there_are_too_few(source: &Agent, dir: &Path) {
    let _ = std::fs::write(POOL, (number(POOL) - PAGES / 2).to_string());
    let again = PrepareTargetRequest {
        job: Some(JobRef {
            job: "33333333-94b4-4cda-9a69-cca8d4b4c587".to_owned(),
            ..job()
        }),
        ..prepare(dir)
    };
    let refused = source.client().prepare_target(again).await.unwrap_err();
    assert_ne!(refused.code(), Code::Ok);
    assert!(
        refused.message().contains("pages of 2Mi are free"),
        "{refused}"
    );
}
