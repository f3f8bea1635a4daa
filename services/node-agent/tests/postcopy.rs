//! Post-copy between two agents, with a guest that writes faster than its link carries.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr
)]
#![allow(dead_code, unreachable_pub, clippy::wildcard_enum_match_arm)]

mod common;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::{Agent, counting, eventually};
use godwit_qemu::Qmp;
use godwit_rpc::Code;
use godwit_rpc::agent::v1::*;
use godwit_testkit::guest::boot_sector::BootSector;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const MACHINE: &str = "11111111-94b4-4cda-9a69-cca8d4b4c587";
const JOB: &str = "22222222-94b4-4cda-9a69-cca8d4b4c587";

/// Bytes a second: less than the guest writes.
const SLOW: u64 = 8 << 20;

fn job(epoch: u64) -> JobRef {
    JobRef {
        machine: MACHINE.to_owned(),
        job: JOB.to_owned(),
        epoch,
    }
}

/// Two hosts and a running machine on the first.
struct Lab {
    source: Agent,
    target: Agent,
    /// Last, so that it is still there when the agents end.
    dir: tempfile::TempDir,
}

impl Lab {
    async fn running() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Agent::start("worker1", dir.path()).await;
        let target = Agent::start("worker2", dir.path()).await;
        let lab = Self {
            source,
            target,
            dir,
        };
        let request = StartMachineRequest {
            spec: Some(counting(lab.dir.path(), MACHINE)),
            epoch: 1,
            paused: false,
        };
        lab.source.client().start_machine(request).await.unwrap();
        eventually("the guest to count", async || {
            lab.source.counters().last().copied()
        })
        .await;
        lab
    }

    async fn prepare(&self, post_copy: bool) -> TargetFact {
        let request = PrepareTargetRequest {
            job: Some(job(1)),
            spec: Some(counting(self.dir.path(), MACHINE)),
            source_node: "worker1".to_owned(),
            post_copy,
        };
        let answer = self.target.client().prepare_target(request).await;
        answer.unwrap().into_inner()
    }

    /// Starts a copy to `uri` that never ends by itself.
    async fn copy(&self, uri: &str, (may, at_once): (bool, bool)) {
        let request = StartCopyRequest {
            job: Some(job(1)),
            target_node: self.target.node.to_owned(),
            target_uri: uri.to_owned(),
            target_agent: self.target.address.clone(),
            limits: Some(CopyLimits {
                bandwidth: SLOW,
                downtime_limit_ms: 1,
                auto_converge: false,
                post_copy: may,
                post_copy_at_once: at_once,
            }),
        };
        let mut agent = self.source.client();
        agent.start_copy(request).await.unwrap();
        agent.allow_switchover(job(1)).await.unwrap();
    }

    async fn target_in(&self, state: TargetState) -> TargetFact {
        eventually("the target", async || {
            let facts = self.target.client().watch_job(job(1)).await.unwrap();
            let fact = facts
                .into_inner()
                .message()
                .await
                .unwrap()
                .unwrap()
                .target?;
            (fact.state() == state).then_some(fact)
        })
        .await
    }

    async fn source_fact(&self) -> SourceFact {
        let facts = self.source.client().watch_job(job(1)).await.unwrap();
        let facts = facts.into_inner().message().await.unwrap().unwrap();
        facts.source.unwrap()
    }

    async fn source_in(&self, state: SourceState) -> SourceFact {
        eventually("the source", async || {
            let fact = self.source_fact().await;
            (fact.state() == state).then_some(fact)
        })
        .await
    }

    /// The copy, still under way in this pass.
    async fn copies_in(&self, pass: u32) {
        let fact = eventually("the copy's passes", async || {
            let fact = self.source_fact().await;
            (fact.progress.as_ref()?.passes >= pass).then_some(fact)
        })
        .await;
        assert_eq!(fact.state(), SourceState::Copying);
    }

    /// The guest counts on the target, from where it was on the source, and no write of it is lost.
    async fn counts_on(&self, left: u32) {
        let counters = eventually("the guest on the target", async || {
            let counters = self.target.counters();
            (counters.len() > 3).then_some(counters)
        })
        .await;
        assert!(counters[0] > left, "from {left} to {}", counters[0]);
        assert!(counters.is_sorted(), "{counters:?}");
        let run = self.target.run_dir();
        let mut found = std::fs::read_dir(run).unwrap().flatten();
        let socket = found.find_map(|entry| {
            let socket = entry.path().join("debug.sock");
            socket.exists().then_some(socket)
        });
        let socket = socket.unwrap();
        let (qmp, _) = Qmp::connect(&socket, Duration::from_secs(5)).await.unwrap();
        qmp.stop().await.unwrap();
        let guest = BootSector::default();
        let file = self.dir.path().join("memory");
        let arguments = json!({
            "val": u64::from(guest.first_page) * 4096,
            "size": u64::from(guest.page_count) * 4096,
            "filename": file,
        });
        qmp.execute::<Value>("pmemsave", arguments).await.unwrap();
        let memory = std::fs::read(&file).unwrap();
        assert!(guest.check_memory(&memory).is_some(), "a write was lost");
        qmp.cont().await.unwrap();
    }

    fn kill_source_qemu(&self) {
        let pid = self.source.qemus()[0].to_string();
        let killed = Command::new("kill").args(["-9", &pid]).status().unwrap();
        assert!(killed.success());
    }
}

/// Carries a copy until it is cut, or nothing gets through any more.
struct Wire {
    uri: String,
    state: watch::Sender<WireState>,
}

#[derive(Clone, Copy, PartialEq)]
enum WireState {
    Whole,
    Cut,
    Silent,
}

impl Wire {
    async fn to(uri: &str) -> Self {
        let to: SocketAddr = uri.strip_prefix("tcp:").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("tcp:{}", listener.local_addr().unwrap());
        let (state, seen) = watch::channel(WireState::Whole);
        tokio::spawn(async move {
            while let Ok((mut here, _)) = listener.accept().await {
                let mut seen = seen.clone();
                tokio::spawn(async move {
                    let mut there = TcpStream::connect(to).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut here, &mut there) => {}
                        _ = seen.wait_for(|state| *state != WireState::Whole) => {}
                    }
                    let _ = seen.wait_for(|state| *state != WireState::Silent).await;
                });
            }
        });
        Self { uri, state }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_outruns_its_link_goes_on_before_its_memory() {
    let lab = Lab::running().await;
    let prepared = lab.prepare(true).await;
    assert_eq!(prepared.no_post_copy, "");
    lab.copy(&prepared.uri, (true, true)).await;
    lab.target_in(TargetState::Running).await;
    let left = *lab.source.counters().last().unwrap();
    let source = lab.source_in(SourceState::Completed).await;
    assert!(source.post_copied);
    let target = lab.target_in(TargetState::Running).await;
    println!(
        "stopped to serving {} us, to running {} us",
        source.completed_at_us - source.stopped_at_us,
        target.running_at_us - source.stopped_at_us
    );
    let retired = lab.source.client().retire_source(job(1)).await.unwrap();
    assert_eq!(retired.into_inner().state(), SourceState::Retired);
    let kept = lab.target.report(MACHINE).await.unwrap();
    assert_eq!((kept.state(), kept.epoch), (MachineState::Running, 2));
    lab.counts_on(left).await;
    for agent in [&lab.source, &lab.target] {
        let log = agent.log();
        println!("{log}");
        assert!(!log.contains(" WARN ") && !log.contains(" ERROR "));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_turns_to_post_copy_when_it_is_told_to_and_never_without_consent() {
    let lab = Lab::running().await;
    let prepared = lab.prepare(false).await;
    lab.copy(&prepared.uri, (false, false)).await;
    let mut agent = lab.source.client();
    let stale = agent.switch_to_postcopy(job(0)).await.unwrap_err();
    assert_eq!(stale.code(), Code::Aborted);
    agent.switch_to_postcopy(job(1)).await.unwrap();
    lab.copies_in(4).await;
    drop(lab);

    let lab = Lab::running().await;
    let prepared = lab.prepare(true).await;
    lab.copy(&prepared.uri, (true, false)).await;
    lab.copies_in(4).await;
    let mut agent = lab.source.client();
    for _ in 0..2 {
        agent.switch_to_postcopy(job(1)).await.unwrap();
    }
    lab.target_in(TargetState::Running).await;
    assert!(lab.source_in(SourceState::Completed).await.post_copied);
}

/// Where the guest runs and a part of its memory is still at its source, for some seconds more.
async fn fetching() -> (Lab, Wire, u32) {
    let lab = Lab::running().await;
    let prepared = lab.prepare(true).await;
    let wire = Wire::to(&prepared.uri).await;
    lab.copy(&wire.uri, (true, true)).await;
    lab.source_in(SourceState::Serving).await;
    lab.target_in(TargetState::Fetching).await;
    let left = *lab.source.counters().last().unwrap();
    (lab, wire, left)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_cut_during_post_copy_is_mended() {
    let (lab, wire, left) = fetching().await;
    let served = Arc::new(lab.source_fact().await);
    wire.state.send(WireState::Cut).unwrap();
    // Neither cancelled nor reverted, whoever asks.
    let cancelled = lab.source.client().cancel_copy(job(1)).await.unwrap();
    let state = cancelled.into_inner().state();
    assert!(matches!(
        state,
        SourceState::Serving | SourceState::Completed
    ));
    lab.target_in(TargetState::Running).await;
    let source = lab.source_in(SourceState::Completed).await;
    assert!(source.completed_at_us >= served.completed_at_us);
    let log = lab.source.log();
    assert!(log.contains("the link of the post-copy broke"), "{log}");
    lab.counts_on(left).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_falls_silent_during_post_copy_is_given_up_and_mended() {
    let (lab, wire, left) = fetching().await;
    wire.state.send(WireState::Silent).unwrap();
    lab.target_in(TargetState::Running).await;
    assert!(lab.source_in(SourceState::Completed).await.post_copied);
    let log = lab.source.log();
    assert!(log.contains("is silent, and given up"), "{log}");
    assert!(!log.contains("not mended yet"), "{log}");
    lab.counts_on(left).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_falls_silent_before_the_guest_can_go_on_ends_both_copies() {
    let lab = Lab::running().await;
    let prepared = lab.prepare(true).await;
    let wire = Wire::to(&prepared.uri).await;
    lab.copy(&wire.uri, (true, false)).await;
    lab.copies_in(2).await;
    // What the source sends from here on stays in its kernel.
    wire.state.send(WireState::Silent).unwrap();
    let mut source = lab.source.client();
    source.switch_to_postcopy(job(1)).await.unwrap();
    lab.source_in(SourceState::Serving).await;
    lab.target_in(TargetState::Lost).await;
    let target = lab.target.client().discard_target(job(1)).await.unwrap();
    assert_eq!(target.into_inner().state(), TargetState::Discarded);
    assert!(lab.target.qemus().is_empty());
    let reverted = source.revert_source(job(1)).await.unwrap().into_inner();
    assert_eq!(reverted.state(), SourceState::Lost);
    assert!(
        reverted.reason.contains("memory is lost"),
        "{}",
        reverted.reason
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn both_agents_may_restart_while_memory_follows_over_a_cut_link() {
    let (mut lab, wire, left) = fetching().await;
    lab.source.kill();
    lab.target.kill();
    wire.state.send(WireState::Cut).unwrap();
    lab.target.restart().await;
    lab.source.restart().await;
    lab.target_in(TargetState::Running).await;
    assert!(lab.source_in(SourceState::Completed).await.post_copied);
    lab.counts_on(left).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_source_dies_too_early_is_a_crash_on_the_target() {
    let (lab, _wire, _) = fetching().await;
    lab.kill_source_qemu();
    let lost = lab.source_in(SourceState::ServerLost).await;
    assert!(lost.reason.contains("post-copy"), "{}", lost.reason);
    let report = lab.source.report(MACHINE).await.unwrap();
    assert_eq!(report.state(), MachineState::Migrated);
    let abandoned = lab.target.client().abandon_target(job(1)).await.unwrap();
    assert_eq!(abandoned.into_inner().state(), TargetState::MemoryLost);
    eventually("the crash", async || {
        let report = lab.target.report(MACHINE).await?;
        (report.state() == MachineState::Crashed && report.epoch == 2).then_some(())
    })
    .await;
    assert!(lab.target.qemus().is_empty());
    lab.source.client().retire_source(job(1)).await.unwrap();
    assert!(lab.source.report(MACHINE).await.is_none());
    // From its disk, under the epoch that it has by now.
    let request = StartMachineRequest {
        spec: Some(counting(lab.dir.path(), MACHINE)),
        epoch: 2,
        paused: false,
    };
    let report = lab.target.client().start_machine(request).await.unwrap();
    assert_eq!(report.into_inner().state(), MachineState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_copy_waits_for_a_target_whose_agent_is_gone() {
    let mut lab = Lab::running().await;
    let prepared = lab.prepare(true).await;
    lab.copy(&prepared.uri, (true, false)).await;
    lab.copies_in(2).await;
    lab.target.kill();
    let mut agent = lab.source.client();
    agent.switch_to_postcopy(job(1)).await.unwrap();
    eventually("the source to ask in vain", async || {
        let log = lab.source.log();
        log.contains("the target does not confirm").then_some(())
    })
    .await;
    assert_eq!(lab.source_fact().await.state(), SourceState::Copying);
    lab.target.restart().await;
    lab.target_in(TargetState::Running).await;
    assert!(lab.source_in(SourceState::Completed).await.post_copied);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_copy_whose_target_dies_before_it_goes_over_leaves_the_guest_at_home() {
    let lab = Lab::running().await;
    let prepared = lab.prepare(true).await;
    lab.copy(&prepared.uri, (true, false)).await;
    lab.copies_in(2).await;
    let pid = lab.target.qemus()[0].to_string();
    Command::new("kill").args(["-9", &pid]).status().unwrap();
    lab.source
        .client()
        .switch_to_postcopy(job(1))
        .await
        .unwrap();
    lab.source_in(SourceState::Resumed).await;
    let before = *lab.source.counters().last().unwrap();
    eventually("the guest to go on", async || {
        (*lab.source.counters().last()? > before).then_some(())
    })
    .await;
}
