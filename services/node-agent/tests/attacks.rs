//! What the holder of another host's certificate, or of none, gets from an agent: nothing.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr
)]
#![allow(dead_code, unreachable_pub, clippy::wildcard_enum_match_arm)]

mod common;

use std::path::Path;

use common::{Agent, counting};
use godwit_rpc::agent::v1::agent_client::AgentClient;
use godwit_rpc::agent::v1::hooks_client::HooksClient;
use godwit_rpc::agent::v1::*;
use godwit_rpc::{Channel, Code, Status};
use godwit_runtime::Identity;
use godwit_testkit::certs::{Ca, Subject};

const MACHINE: &str = "11111111-94b4-4cda-9a69-cca8d4b4c587";
const JOB: &str = "22222222-94b4-4cda-9a69-cca8d4b4c587";

struct Certificates {
    ca: Ca,
    dir: tempfile::TempDir,
}

impl Certificates {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::load_or_create(&dir.path().join("certs")).unwrap();
        Self { ca, dir }
    }

    fn of(&self, role: &str, name: &str) -> Identity {
        let served_as = ["127.0.0.1".to_owned()];
        let subject = Subject {
            name,
            organizations: &[role],
            served_as: &served_as,
        };
        self.ca.issue_files(name, subject).unwrap()
    }

    async fn agent(&self) -> Agent {
        let own = self.of("node-agent", "worker2");
        let caller = self.of("scheduler", "s");
        Agent::start_as("worker2", self.dir.path(), &own, &caller).await
    }
}

fn channel(agent: &Agent, who: &Identity) -> Channel {
    godwit_rpc::client::connect(&agent.address, Some(who)).unwrap()
}

fn job() -> JobRef {
    JobRef {
        machine: MACHINE.to_owned(),
        job: JOB.to_owned(),
        epoch: u64::MAX,
    }
}

fn machine() -> MachineRef {
    MachineRef {
        machine: MACHINE.to_owned(),
    }
}

/// Asks for everything that an agent does, but for what the source of a job may ask; says how each
/// was answered.
async fn everything(channel: Channel, dir: &Path) -> Vec<(&'static str, Result<(), Status>)> {
    let mut agent = AgentClient::new(channel.clone());
    let mut hooks = HooksClient::new(channel);
    let spec = || Some(counting(dir, MACHINE));
    let start = StartMachineRequest {
        spec: spec(),
        epoch: u64::MAX,
        paused: false,
    };
    let stop = StopMachineRequest {
        machine: MACHINE.to_owned(),
        grace_seconds: 0,
        epoch: u64::MAX,
    };
    let prepare = PrepareTargetRequest {
        job: Some(job()),
        spec: spec(),
        source_node: "worker3".to_owned(),
        post_copy: false,
    };
    let copy = StartCopyRequest {
        job: Some(job()),
        target_node: "worker3".to_owned(),
        target_uri: "tcp:127.0.0.1:9".to_owned(),
        target_agent: "https://127.0.0.1:9".to_owned(),
        limits: None,
    };
    let raise = RaiseDowntimeLimitRequest {
        job: Some(job()),
        downtime_limit_ms: 1,
    };
    let hook = RunHookRequest::default();
    vec![
        ("start", agent.start_machine(start).await.map(drop)),
        ("stop", agent.stop_machine(stop).await.map(drop)),
        ("pause", agent.pause_machine(machine()).await.map(drop)),
        ("unpause", agent.unpause_machine(machine()).await.map(drop)),
        ("forget", agent.forget_machine(machine()).await.map(drop)),
        (
            "list",
            agent.list_machines(ListMachinesRequest {}).await.map(drop),
        ),
        (
            "inspect",
            agent.inspect_host(InspectHostRequest {}).await.map(drop),
        ),
        ("prepare", agent.prepare_target(prepare).await.map(drop)),
        ("discard", agent.discard_target(job()).await.map(drop)),
        ("copy", agent.start_copy(copy).await.map(drop)),
        ("allow", agent.allow_switchover(job()).await.map(drop)),
        ("raise", agent.raise_downtime_limit(raise).await.map(drop)),
        ("cancel", agent.cancel_copy(job()).await.map(drop)),
        ("revert", agent.revert_source(job()).await.map(drop)),
        ("retire", agent.retire_source(job()).await.map(drop)),
        ("watch", agent.watch_job(job()).await.map(drop)),
        ("hook", hooks.run_hook(hook).await.map(drop)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn another_hosts_certificate_moves_starts_and_learns_nothing() {
    let certificates = Certificates::new();
    let agent = certificates.agent().await;
    let rogue = channel(&agent, &certificates.of("node-agent", "worker1"));
    for (what, answer) in everything(rogue, certificates.dir.path()).await {
        let refused = answer.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{what}: {refused}");
    }
    assert_eq!(agent.qemus(), Vec::<u32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_may_do_what_is_its_own_and_nothing_else() {
    let certificates = Certificates::new();
    let agent = certificates.agent().await;
    let allowed: [(&str, &[&str]); 5] = [
        ("api-gateway", &[]),
        ("maintenance-service", &["hook"]),
        (
            "scheduler",
            &["start", "stop", "pause", "unpause", "forget", "list"],
        ),
        (
            "migration-coordinator",
            &[
                "list", "prepare", "discard", "copy", "allow", "raise", "cancel", "revert",
                "retire", "watch",
            ],
        ),
        ("admin", &["list", "inspect", "watch"]),
    ];
    for (role, may) in allowed {
        let channel = channel(&agent, &certificates.of(role, &format!("a-{role}")));
        for (what, answer) in everything(channel, certificates.dir.path()).await {
            let denied = answer.err().map(|status| status.code()) == Some(Code::PermissionDenied);
            assert_eq!(denied, !may.contains(&what), "{role}: {what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_talkers_in_the_clear_do_not_get_in() {
    let certificates = Certificates::new();
    let agent = certificates.agent().await;
    let other = Certificates::new();
    let mut stranger = other.of("migration-coordinator", "c");
    stranger.ca = certificates.of("scheduler", "s").ca;
    let clear = agent.address.replace("https", "http");
    let clear = godwit_rpc::client::connect(&clear, None).unwrap();
    for channel in [channel(&agent, &stranger), clear] {
        for (what, answer) in everything(channel, certificates.dir.path()).await {
            let answered = [Code::Ok, Code::NotFound, Code::FailedPrecondition];
            // The connection breaks, at whichever moment.
            let code = answer.err().map_or(Code::Ok, |status| status.code());
            assert!(!answered.contains(&code), "{what}: {code:?}");
        }
    }
    assert_eq!(agent.qemus(), Vec::<u32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_the_agent_makes_is_written_nowhere_else() {
    let certificates = Certificates::new();
    let agent = certificates.agent().await;
    let dir = certificates.dir.path();
    let mut spec = counting(dir, MACHINE);
    "../../evil".clone_into(&mut spec.disks[0].name);
    spec.disks[0].path.clear();
    spec.disks[0].seed = Some(Seed {
        source: "NoCloud".to_owned(),
        user_data: Some(SeedContent {
            content: Some(seed_content::Content::Text("#cloud-config".to_owned())),
        }),
        ..Seed::default()
    });
    let request = StartMachineRequest {
        spec: Some(spec),
        epoch: 1,
        paused: false,
    };
    let scheduler = certificates.of("scheduler", "s2");
    let mut client = AgentClient::new(channel(&agent, &scheduler));
    let refused = client.start_machine(request).await.unwrap_err();
    assert!(refused.message().contains("disk name"), "{refused}");
    assert!(!agent.run_dir().join("../evil.seed").exists());
    assert_eq!(agent.qemus(), Vec::<u32>::new());
}
