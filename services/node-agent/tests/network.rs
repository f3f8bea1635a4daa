//! A Linux guest on taps of two agents that share a bridge. Needs root and `/dev/net/tun`.

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

use common::{Agent, counting, eventually};
use godwit_rpc::agent::v1::*;
use godwit_testkit::guest::linux;
use godwit_testkit::untried;

const MACHINE: &str = "31111111-94b4-4cda-9a69-cca8d4b4c587";
const JOB: &str = "32222222-94b4-4cda-9a69-cca8d4b4c587";
const GUEST: &str = "10.213.87.7";

/// A bridge in this network namespace; removed at the end.
struct Bridge(String);

impl Bridge {
    fn make() -> Option<Self> {
        let bridge = Self(format!("gwt{}", std::process::id()));
        let made = ip(&["link", "add", &bridge.0, "type", "bridge"])
            && ip(&["address", "add", "10.213.87.1/24", "dev", &bridge.0])
            && ip(&["link", "set", &bridge.0, "up"])
            && Path::new("/dev/net/tun").exists();
        made.then_some(bridge)
    }

    /// Devices on it.
    fn ports(&self) -> usize {
        let listed = Command::new("ip")
            .args(["-o", "link", "show", "master", &self.0])
            .output();
        listed
            .unwrap()
            .stdout
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .count()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        ip(&["link", "delete", &self.0]);
    }
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip")
        .args(arguments)
        .status()
        .unwrap()
        .success()
}

fn image() -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
    linux::ensure(&cache, &|_| {}).unwrap()
}

fn spec(dir: &Path) -> MachineSpec {
    let mut spec = counting(dir, MACHINE);
    spec.memory_bytes = 160 << 20;
    spec.disks[0].boot = false;
    spec.nics.push(Nic {
        name: "default".to_owned(),
        mac: "02:00:00:21:38:07".to_owned(),
        network: "lab".to_owned(),
    });
    spec.kernel = Some(Kernel {
        image: "guest".to_owned(),
        kernel_path: linux::KERNEL.to_owned(),
        initrd_path: linux::INITRD.to_owned(),
        arguments: format!(
            "{} godwit.ip={GUEST}/24 godwit.heartbeat=10.213.87.1:9",
            linux::ARGUMENTS
        ),
    });
    spec
}

async fn addressed(agent: &Agent) -> InterfaceReport {
    eventually("the guest's address", async || {
        let interface = agent.report(MACHINE).await?.interfaces.pop()?;
        interface
            .addresses
            .contains(&GUEST.to_owned())
            .then_some(interface)
    })
    .await
}

async fn move_machine(source: &Agent, target: &Agent, spec: Option<MachineSpec>, bridge: &Bridge) {
    let job = JobRef {
        machine: MACHINE.to_owned(),
        job: JOB.to_owned(),
        epoch: 1,
    };
    let request = PrepareTargetRequest {
        job: Some(job.clone()),
        spec,
        source_node: source.node.to_owned(),
        post_copy: false,
    };
    let prepared = target
        .client()
        .prepare_target(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(prepared.state(), TargetState::Prepared, "{prepared:?}");
    assert_eq!(bridge.ports(), 2);
    let request = StartCopyRequest {
        job: Some(job.clone()),
        target_node: target.node.to_owned(),
        target_uri: prepared.uri,
        target_agent: target.address.clone(),
        limits: None,
    };
    source.client().start_copy(request).await.unwrap();
    source.client().allow_switchover(job.clone()).await.unwrap();
}

/// It may come back at once to where its devices are still being taken away.
async fn comes_back(host: &Agent, from: &Agent, spec: Option<MachineSpec>) {
    let job = JobRef {
        machine: MACHINE.to_owned(),
        job: "33333333-94b4-4cda-9a69-cca8d4b4c587".to_owned(),
        epoch: 2,
    };
    let request = PrepareTargetRequest {
        job: Some(job.clone()),
        spec,
        source_node: from.node.to_owned(),
        post_copy: false,
    };
    let prepared = host.client().prepare_target(request).await.unwrap();
    assert_eq!(prepared.into_inner().state(), TargetState::Prepared);
    host.client().discard_target(job).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guests_address_is_learned_and_moves_with_it() {
    let Some(bridge) = Bridge::make() else {
        untried("no right to make bridges and taps here");
        return;
    };
    let keys = vec![
        format!("networks.lab={}", bridge.0),
        format!("images.guest={}", image().display()),
    ];
    let dir = tempfile::tempdir().unwrap();
    let source = Agent::start_with("worker1", dir.path(), keys.clone()).await;
    let target = Agent::start_with("worker2", dir.path(), keys).await;
    let spec = Some(spec(dir.path()));
    let request = StartMachineRequest {
        spec: spec.clone(),
        epoch: 1,
        paused: false,
    };
    source.client().start_machine(request).await.unwrap();
    let home = addressed(&source).await;
    assert!(home.device.starts_with("gw"), "{home:?}");

    let job = JobRef {
        machine: MACHINE.to_owned(),
        job: JOB.to_owned(),
        epoch: 1,
    };
    move_machine(&source, &target, spec.clone(), &bridge).await;
    let away = addressed(&target).await;
    assert_ne!(away.device, home.device);
    source.client().retire_source(job).await.unwrap();
    comes_back(&source, &target, spec).await;
    // Nobody waits for the kernel to take the devices away.
    eventually("the source's tap to be removed", async || {
        (bridge.ports() == 1).then_some(())
    })
    .await;
    assert!(
        Command::new("ping")
            .args(["-c", "1", "-W", "5", GUEST])
            .status()
            .unwrap()
            .success()
    );

    let machine = MachineRef {
        machine: MACHINE.to_owned(),
    };
    let stop = StopMachineRequest {
        machine: MACHINE.to_owned(),
        grace_seconds: 0,
        epoch: 2,
    };
    target.client().stop_machine(stop).await.unwrap();
    eventually("the machine to be forgotten", async || {
        target.client().forget_machine(machine.clone()).await.ok()
    })
    .await;
    assert_eq!(bridge.ports(), 0, "a tap was left behind");
}
