//! Two agents and a guest that counts, commanded in the coordinator's order.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr
)]
#![allow(dead_code, unreachable_pub, clippy::wildcard_enum_match_arm)]

mod common;

use std::time::Duration;

use common::{Agent, counting, eventually};
use godwit_rpc::agent::v1::*;
use godwit_rpc::{Code, Status};

const MACHINE: &str = "11111111-94b4-4cda-9a69-cca8d4b4c587";
const JOB: &str = "22222222-94b4-4cda-9a69-cca8d4b4c587";

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
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Agent::start("worker1", dir.path()).await;
        let target = Agent::start("worker2", dir.path()).await;
        Self {
            source,
            target,
            dir,
        }
    }

    async fn running() -> Self {
        let lab = Self::new().await;
        let spec = Some(lab.spec());
        let request = StartMachineRequest {
            spec,
            epoch: 1,
            paused: false,
        };
        let report = lab
            .source
            .client()
            .start_machine(request)
            .await
            .unwrap()
            .into_inner();
        assert_eq!(report.state(), MachineState::Running);
        eventually("the guest to count", async || {
            lab.source.counters().last().copied()
        })
        .await;
        lab
    }

    fn spec(&self) -> MachineSpec {
        counting(self.dir.path(), MACHINE)
    }

    async fn prepare(&self) -> Result<TargetFact, Status> {
        let request = PrepareTargetRequest {
            job: Some(job(1)),
            spec: Some(self.spec()),
            source_node: "worker1".to_owned(),
            post_copy: false,
        };
        self.target
            .client()
            .prepare_target(request)
            .await
            .map(|answer| answer.into_inner())
    }

    /// Starts the copy; `bandwidth` 0 is unlimited, and any other is too little for this guest
    /// unless it may stop for long.
    async fn copy(&self, target: &TargetFact, bandwidth: u64) -> SourceFact {
        self.copy_stopping(target, bandwidth, 2000).await
    }

    async fn copy_stopping(&self, target: &TargetFact, bandwidth: u64, ms: u32) -> SourceFact {
        let request = StartCopyRequest {
            job: Some(job(1)),
            target_node: self.target.node.to_owned(),
            target_uri: target.uri.clone(),
            target_agent: self.target.address.clone(),
            limits: Some(CopyLimits {
                bandwidth,
                downtime_limit_ms: ms,
                auto_converge: false,
                ..CopyLimits::default()
            }),
        };
        self.source
            .client()
            .start_copy(request)
            .await
            .unwrap()
            .into_inner()
    }

    async fn target_fact(&self) -> Option<TargetFact> {
        let mut facts = self
            .target
            .client()
            .watch_job(job(1))
            .await
            .unwrap()
            .into_inner();
        facts.message().await.unwrap().unwrap().target
    }

    async fn source_fact(&self) -> Option<SourceFact> {
        let mut facts = self
            .source
            .client()
            .watch_job(job(1))
            .await
            .unwrap()
            .into_inner();
        facts.message().await.unwrap().unwrap().source
    }

    async fn target_running(&self) -> TargetFact {
        eventually("the target to run", async || {
            self.target_fact()
                .await
                .filter(|fact| fact.state() == TargetState::Running)
        })
        .await
    }

    async fn source_in(&self, state: SourceState) -> SourceFact {
        eventually("the source", async || {
            self.source_fact()
                .await
                .filter(|fact| fact.state() == state)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_moves_and_its_guest_goes_on_counting() {
    let lab = Lab::running().await;
    let prepared = lab.prepare().await.unwrap();
    assert_eq!(prepared.state(), TargetState::Prepared);
    let incoming = lab.target.report(MACHINE).await.unwrap();
    assert_eq!(incoming.state(), MachineState::Incoming);

    assert_eq!(lab.copy(&prepared, 0).await.state(), SourceState::Copying);
    lab.source.client().allow_switchover(job(1)).await.unwrap();
    let target = lab.target_running().await;
    let source = lab.source_in(SourceState::Completed).await;
    let left = *lab.source.counters().last().unwrap();
    let migrated = lab.source.report(MACHINE).await.unwrap();
    assert_eq!(migrated.state(), MachineState::Migrated);
    assert!(source.stopped_at_us > 0 && source.completed_at_us >= source.stopped_at_us);
    assert!(target.running_at_us > source.completed_at_us);
    let blackout = target.running_at_us - source.stopped_at_us;
    let handshake = target.running_at_us - source.completed_at_us;
    println!("blackout {blackout} us, of it {handshake} us after completed");
    assert!(source.progress.unwrap().transferred_bytes > 0);

    let retired = lab
        .source
        .client()
        .retire_source(job(1))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(retired.state(), SourceState::Retired);
    assert!(lab.source.report(MACHINE).await.is_none());
    assert!(lab.source.qemus().is_empty());
    let kept = lab.target.report(MACHINE).await.unwrap();
    assert_eq!(kept.state(), MachineState::Running);
    assert_eq!(kept.epoch, 2);
    let first = eventually("the guest on the target", async || {
        let counters = lab.target.counters();
        (counters.len() > 3).then(|| counters[0])
    })
    .await;
    assert!(first > left, "the guest went back from {left} to {first}");
    let metrics = lab.target.metrics();
    assert!(metrics.contains("godwit_agent_blackout_seconds_count{piece=\"Journal\"} 1"));
    for line in metrics.lines().filter(|line| line.contains("_seconds_sum")) {
        println!("{line}");
    }
    for agent in [&lab.source, &lab.target] {
        let log = agent.log();
        println!("{log}");
        assert!(
            !log.contains(" WARN ") && !log.contains(" ERROR "),
            "unannounced"
        );
    }
    println!(
        "resident: {} KiB, {} KiB",
        lab.source.resident() >> 10,
        lab.target.resident() >> 10
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inspection_tells_what_is_really_there_and_disturbs_no_copy() {
    let mut lab = Lab::running().await;
    let prepared = lab.prepare().await.unwrap();
    let (left, right) = (lab.source.inspect().await, lab.target.inspect().await);
    assert_eq!(left.node, "worker1");
    assert_eq!(qemu(&left), ("running", true, false));
    assert_eq!(qemu(&right), ("inmigrate", false, true));
    assert_eq!(left.qemus[0].pid, lab.source.qemus()[0]);
    assert_eq!(left.qemus[0].listening, Vec::<u32>::new());
    assert_eq!(right.qemus[0].listening, prepared.ports);
    assert_eq!((left.records[0].epoch, left.records[0].ended), (1, false));
    assert_eq!(right.halves[0].target(), TargetState::Prepared);
    assert_eq!(
        (right.halves[0].job.as_str(), right.halves[0].epoch),
        (JOB, 1)
    );

    lab.copy(&prepared, 0).await;
    lab.source.client().allow_switchover(job(1)).await.unwrap();
    lab.target_running().await;
    lab.source_in(SourceState::Completed).await;
    let (left, right) = (lab.source.inspect().await, lab.target.inspect().await);
    assert_eq!(qemu(&left), ("postmigrate", false, false));
    assert_eq!(qemu(&right), ("running", true, true));
    assert_eq!(right.qemus[0].listening, Vec::<u32>::new());
    assert_eq!(left.halves[0].source(), SourceState::Completed);
    assert_eq!(right.halves[0].target(), TargetState::Running);

    lab.source.client().retire_source(job(1)).await.unwrap();
    let run = lab.dir.path().join("worker1/run/0123456789abcdef");
    std::fs::create_dir_all(&run).unwrap();
    std::fs::write(run.join("qmp.sock"), "").unwrap();
    let left = lab.source.inspect().await;
    assert!(left.qemus.is_empty() && left.records.is_empty(), "{left:?}");
    assert_eq!(
        (left.fences[0].machine.as_str(), left.fences[0].epoch),
        (MACHINE, 2)
    );
    let directory = &left.directories[0];
    assert_eq!(
        (directory.name.as_str(), directory.pid),
        ("0123456789abcdef", 0)
    );
    assert_eq!(directory.files, ["qmp.sock"]);

    // What the agent remembers plays no part: a new one tells the same.
    lab.target.restart().await;
    assert_eq!(lab.target.inspect().await, right);
    for found in [&left, &right] {
        assert!(
            found.strays.is_empty() && found.unreadable.is_empty(),
            "{found:?}"
        );
    }
}

/// The only QEMU: its own word, whether its CPUs run, whether it came to receive a copy.
fn qemu(found: &HostInspection) -> (&str, bool, bool) {
    let [qemu] = found.qemus.as_slice() else {
        panic!("{found:?}");
    };
    assert_eq!((qemu.machine.as_str(), qemu.error.as_str()), (MACHINE, ""));
    (&qemu.run_state, qemu.running, qemu.incoming)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_start_of_a_machine_that_left_is_refused() {
    let mut lab = Lab::running().await;
    let prepared = lab.prepare().await.unwrap();
    lab.copy(&prepared, 0).await;
    lab.source.client().allow_switchover(job(1)).await.unwrap();
    lab.target_running().await;
    let late = StartMachineRequest {
        spec: Some(lab.spec()),
        epoch: 1,
        paused: false,
    };
    // Stopped complete, its QEMU dead, and the agent new: still the target's machine.
    lab.source_in(SourceState::Completed).await;
    lab.source.kill();
    let pid = lab.source.qemus()[0].to_string();
    assert!(
        std::process::Command::new("kill")
            .args(["-9", &pid])
            .status()
            .unwrap()
            .success()
    );
    eventually("qemu to end", async || {
        lab.source.qemus().is_empty().then_some(())
    })
    .await;
    lab.source.restart().await;
    let refused = lab
        .source
        .client()
        .start_machine(late.clone())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    lab.source.client().retire_source(job(1)).await.unwrap();
    let refused = lab.source.client().start_machine(late).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_copy_leaves_the_guest_running_at_home() {
    let lab = Lab::running().await;
    let prepared = lab.prepare().await.unwrap();
    lab.copy(&prepared, 1 << 20).await;
    lab.source_in(SourceState::Copying).await;
    let cancelled = lab
        .source
        .client()
        .cancel_copy(job(1))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(cancelled.state(), SourceState::Resumed);
    let discarded = lab
        .target
        .client()
        .discard_target(job(1))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(discarded.state(), TargetState::Discarded);
    assert!(lab.target.qemus().is_empty());
    let report = lab.source.report(MACHINE).await.unwrap();
    assert_eq!(report.state(), MachineState::Running);
    let before = *lab.source.counters().last().unwrap();
    eventually("the guest to go on", async || {
        (*lab.source.counters().last()? > before).then_some(())
    })
    .await;
    // The tombstone refuses the job for ever.
    assert_eq!(lab.prepare().await.unwrap().state(), TargetState::Discarded);
    // And the machine can move under another job.
    lab.source
        .client()
        .pause_machine(MachineRef {
            machine: MACHINE.to_owned(),
        })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_never_ends_by_itself_ends_when_its_guest_may_stand_still() {
    let lab = Lab::running().await;
    let prepared = lab.prepare().await.unwrap();
    // What the guest writes each second takes longer than that to send.
    lab.copy_stopping(&prepared, 8 << 20, 1).await;
    lab.source.client().allow_switchover(job(1)).await.unwrap();
    let raise = async |epoch: u64, downtime_limit_ms: u32| {
        let request = RaiseDowntimeLimitRequest {
            job: Some(job(epoch)),
            downtime_limit_ms,
        };
        lab.source.client().raise_downtime_limit(request).await
    };
    let stale = raise(0, 2_000_000).await.unwrap_err();
    assert_eq!(stale.code(), Code::Aborted);
    // Lower than it is: nothing changes.
    raise(1, 1).await.unwrap();
    let copying = |fact: SourceFact| {
        let passes = fact.progress.unwrap_or_default().passes;
        (fact.state() == SourceState::Copying && passes > 2).then_some(())
    };
    eventually("passes without an end", async || {
        lab.source_fact().await.and_then(copying)
    })
    .await;
    for _ in 0..2 {
        raise(1, 2_000_000).await.unwrap();
    }
    lab.target_running().await;
    let source = lab.source_in(SourceState::Completed).await;
    assert!(source.allowed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_longer_blackout_is_no_permission() {
    let lab = Lab::running().await;
    let prepared = lab.prepare().await.unwrap();
    lab.copy_stopping(&prepared, 8 << 20, 1).await;
    let request = RaiseDowntimeLimitRequest {
        job: Some(job(1)),
        downtime_limit_ms: 2_000_000,
    };
    let mut agent = lab.source.client();
    agent.raise_downtime_limit(request).await.unwrap();
    let source = lab.source_in(SourceState::Resumed).await;
    assert!(source.reason.contains("no permission"), "{}", source.reason);
    let target = lab.target_fact().await.unwrap();
    assert_ne!(target.state(), TargetState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_permission_the_guest_never_leaves() {
    let lab = Lab::running().await;
    let prepared = lab.prepare().await.unwrap();
    lab.copy(&prepared, 0).await;
    let resumed = lab.source_in(SourceState::Resumed).await;
    assert!(
        resumed.reason.contains("no permission"),
        "{}",
        resumed.reason
    );
    let target = lab.target_fact().await.unwrap();
    assert!(
        !matches!(
            target.state(),
            TargetState::Continuing | TargetState::Running
        ),
        "{target:?}"
    );
    assert_eq!(
        lab.source.report(MACHINE).await.unwrap().state(),
        MachineState::Running
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_run_is_not_copied() {
    let lab = Lab::running().await;
    let prepared = lab.prepare().await.unwrap();
    let machine = MachineRef {
        machine: MACHINE.to_owned(),
    };
    lab.source
        .client()
        .pause_machine(machine.clone())
        .await
        .unwrap();
    let fact = lab.copy(&prepared, 0).await;
    assert_eq!(fact.state(), SourceState::Resumed);
    assert!(fact.reason.contains("Paused"), "{}", fact.reason);
    let report = lab
        .source
        .client()
        .unpause_machine(machine)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(report.state(), MachineState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_coordinator_is_refused() {
    let lab = Lab::running().await;
    let prepared = lab.prepare().await.unwrap();
    lab.copy(&prepared, 1 << 20).await;
    lab.source.client().allow_switchover(job(3)).await.unwrap();
    let refused = lab.source.client().cancel_copy(job(2)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    assert_eq!(
        lab.source_fact().await.unwrap().state(),
        SourceState::Copying
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_adopts_its_machine() {
    let mut lab = Lab::running().await;
    let before = lab.source.report(MACHINE).await.unwrap();
    lab.source.restart().await;
    let after = eventually("the machine", async || lab.source.report(MACHINE).await).await;
    assert_eq!(after.pid, before.pid);
    assert_eq!(after.started_at, before.started_at);
    eventually("the machine to run", async || {
        let report = lab.source.report(MACHINE).await?;
        (report.state() == MachineState::Running).then_some(())
    })
    .await;
    // The same start again changes nothing, another one is refused.
    let same = StartMachineRequest {
        spec: Some(lab.spec()),
        epoch: 1,
        paused: false,
    };
    let again = lab
        .source
        .client()
        .start_machine(same.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(again.pid, before.pid);
    let mut other = same;
    other.spec.as_mut().unwrap().cpus = 2;
    let refused = lab.source.client().start_machine(other).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_agents_may_restart_while_memory_is_copied() {
    let mut lab = Lab::running().await;
    let prepared = lab.prepare().await.unwrap();
    lab.copy_stopping(&prepared, 8 << 20, 5000).await;
    lab.source.restart().await;
    lab.target.restart().await;
    lab.source_in(SourceState::Copying).await;
    assert_eq!(
        lab.target_fact().await.unwrap().state(),
        TargetState::Prepared
    );
    lab.source.client().allow_switchover(job(1)).await.unwrap();
    lab.target_running().await;
    let retired = lab
        .source
        .client()
        .retire_source(job(1))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(retired.state(), SourceState::Retired);
    assert_eq!(
        lab.target.report(MACHINE).await.unwrap().state(),
        MachineState::Running
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_waits_for_a_target_agent_that_is_away() {
    let mut lab = Lab::running().await;
    let prepared = lab.prepare().await.unwrap();
    lab.copy(&prepared, 0).await;
    lab.target.kill();
    lab.source.client().allow_switchover(job(1)).await.unwrap();
    lab.source_in(SourceState::Completed).await;
    // The source's agent forgets nothing, either.
    lab.source.restart().await;
    let machine = MachineRef {
        machine: MACHINE.to_owned(),
    };
    let refused = lab
        .source
        .client()
        .unpause_machine(machine)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    lab.target.restart().await;
    lab.target_running().await;
    assert_eq!(
        lab.source.report(MACHINE).await.unwrap().state(),
        MachineState::Migrated
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_reverted_after_the_tombstone_and_can_move_again() {
    let mut lab = Lab::running().await;
    let prepared = lab.prepare().await.unwrap();
    lab.copy(&prepared, 0).await;
    lab.target.kill();
    lab.source.client().allow_switchover(job(1)).await.unwrap();
    lab.source_in(SourceState::Completed).await;
    // No proof reaches the target before its tombstone: the source's agent is away.
    lab.source.kill();
    lab.target.restart().await;
    let discarded = lab
        .target
        .client()
        .discard_target(job(2))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(discarded.state(), TargetState::Discarded);
    lab.source.restart().await;
    let reverted = lab
        .source
        .client()
        .revert_source(job(2))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(reverted.state(), SourceState::Resumed);
    let before = *lab.source.counters().last().unwrap();
    eventually("the guest to go on", async || {
        (*lab.source.counters().last()? > before).then_some(())
    })
    .await;
    assert_eq!(
        lab.source.report(MACHINE).await.unwrap().state(),
        MachineState::Running
    );
    // A restart must not take what QEMU says of the old copy for a new one.
    lab.source.restart().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        lab.source.report(MACHINE).await.unwrap().state(),
        MachineState::Running
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_cannot_run_the_machine_says_why() {
    let lab = Lab::new().await;
    let refused = async |change: fn(&mut MachineSpec)| {
        let mut spec = lab.spec();
        change(&mut spec);
        let request = PrepareTargetRequest {
            job: Some(job(1)),
            spec: Some(spec),
            source_node: "worker1".to_owned(),
            post_copy: false,
        };
        lab.target
            .client()
            .prepare_target(request)
            .await
            .unwrap_err()
    };
    let missing = refused(|spec| spec.disks[0].path.push('x')).await;
    assert_eq!(missing.code(), Code::FailedPrecondition);
    assert!(missing.message().contains("No such file"), "{missing}");
    let local = refused(|spec| spec.disks[0].shared = false).await;
    assert!(local.message().contains("local"), "{local}");
    let model = refused(|spec| spec.cpu_model = "EPYC-Genoa".to_owned()).await;
    assert!(model.message().contains("CPU model"), "{model}");
    let board = refused(|spec| spec.machine_type = "pc-q35-99.0".to_owned()).await;
    assert!(board.message().contains("machine type"), "{board}");
    let large = refused(|spec| spec.memory_bytes = 1 << 50).await;
    assert_eq!(large.code(), Code::ResourceExhausted);
    let network = refused(|spec| {
        let nic = Nic {
            name: "net0".to_owned(),
            mac: "02:00:00:00:00:07".to_owned(),
            network: "none".to_owned(),
        };
        spec.nics.push(nic);
    })
    .await;
    assert!(network.message().contains("network"), "{network}");
    assert!(lab.target.qemus().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_paused_stopped_and_forgotten() {
    let lab = Lab::running().await;
    let machine = || MachineRef {
        machine: MACHINE.to_owned(),
    };
    let mut client = lab.source.client();
    let paused = client.pause_machine(machine()).await.unwrap().into_inner();
    assert_eq!(paused.state(), MachineState::Paused);
    let running = client
        .unpause_machine(machine())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(running.state(), MachineState::Running);
    assert_eq!(
        client.forget_machine(machine()).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    let stop = StopMachineRequest {
        machine: MACHINE.to_owned(),
        grace_seconds: 1,
        epoch: 1,
    };
    let stopping = client.stop_machine(stop).await.unwrap().into_inner();
    assert_eq!(stopping.state(), MachineState::Stopping);
    // This guest doesn't know the power button.
    eventually("the machine to stop", async || {
        let report = lab.source.report(MACHINE).await?;
        (report.state() == MachineState::Stopped).then_some(())
    })
    .await;
    assert!(lab.source.qemus().is_empty());
    client.forget_machine(machine()).await.unwrap();
    assert!(lab.source.report(MACHINE).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_that_dies_is_reported_and_the_machine_starts_again() {
    let lab = Lab::running().await;
    let pid = lab.source.report(MACHINE).await.unwrap().pid.to_string();
    assert!(
        std::process::Command::new("kill")
            .args(["-9", &pid])
            .status()
            .unwrap()
            .success()
    );
    eventually("the crash", async || {
        let report = lab.source.report(MACHINE).await?;
        (report.state() == MachineState::Crashed).then_some(())
    })
    .await;
    let request = StartMachineRequest {
        spec: Some(lab.spec()),
        epoch: 2,
        paused: false,
    };
    let report = lab
        .source
        .client()
        .start_machine(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(report.state(), MachineState::Running);
    assert_ne!(report.pid.to_string(), pid);
}

/// Kills one or both agents around the switchover: in the end there is one guest.
async fn killed_around_the_switchover(which: (bool, bool), after: Duration) {
    let mut lab = Lab::running().await;
    let prepared = lab.prepare().await.unwrap();
    lab.copy(&prepared, 0).await;
    let mut client = lab.source.client();
    let allowed = tokio::spawn(async move { client.allow_switchover(job(1)).await });
    tokio::time::sleep(after).await;
    if which.0 {
        lab.source.kill();
    }
    if which.1 {
        lab.target.kill();
    }
    // Unknown when the agent died: the coordinator says it again.
    let _ = allowed.await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    if which.0 {
        lab.source.restart().await;
    }
    if which.1 {
        lab.target.restart().await;
    }
    lab.source.client().allow_switchover(job(1)).await.unwrap();
    let source = eventually("the source's copy to end", async || {
        let fact = lab.source_fact().await?;
        let ended = matches!(fact.state(), SourceState::Completed | SourceState::Resumed);
        ended.then_some(fact)
    })
    .await;
    let mut before = lab.source.counters();
    if source.state() == SourceState::Completed {
        lab.target_running().await;
        let first = eventually("the guest on the target", async || {
            lab.target.counters().first().copied()
        })
        .await;
        assert!(first > before.pop().unwrap(), "the guest went back");
        assert_eq!(
            lab.source.counters().len(),
            before.len() + 1,
            "two guests ran"
        );
    } else {
        let fact = lab
            .target
            .client()
            .discard_target(job(1))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(fact.state(), TargetState::Discarded);
        assert!(lab.target.counters().is_empty(), "two guests ran");
        eventually("the guest at home", async || {
            (lab.source.counters().len() > before.len()).then_some(())
        })
        .await;
    }
    println!(
        "{which:?} killed after {after:?}: source {:?}",
        source.state()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_killed_around_the_switchover_leave_one_guest() {
    for which in [(true, false), (false, true), (true, true)] {
        for after in [0, 10, 30, 60, 100] {
            killed_around_the_switchover(which, Duration::from_millis(after)).await;
        }
    }
}
