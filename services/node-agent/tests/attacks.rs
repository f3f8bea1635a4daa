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
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Agent, counting, eventually};
use godwit_rpc::agent::v1::agent_client::AgentClient;
use godwit_rpc::agent::v1::hooks_client::HooksClient;
use godwit_rpc::agent::v1::*;
use godwit_rpc::{Channel, Code, Credentials, Status};
use godwit_runtime::Identity;
use godwit_testkit::certs::{Ca, Subject};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const MACHINE: &str = "11111111-94b4-4cda-9a69-cca8d4b4c587";
/// Longest wait for an end.
const LIMIT: Duration = Duration::from_secs(30);
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
    let shown = Credentials::read(who).unwrap();
    godwit_rpc::client::connect(&agent.address, Some(&shown)).unwrap()
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
            // The connection breaks, at whichever moment.
            let broken = [
                Code::Unavailable,
                Code::Unknown,
                Code::Cancelled,
                Code::Internal,
            ];
            let code = answer.err().map_or(Code::Ok, |status| status.code());
            assert!(broken.contains(&code), "{what}: {code:?}");
        }
    }
    assert_eq!(agent.qemus(), Vec::<u32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_over_opens_nothing() {
    let certificates = Certificates::new();
    let agent = certificates.agent().await;
    let subject = Subject {
        name: "late",
        organizations: &["migration-coordinator"],
        served_as: &[],
    };
    let late = certificates
        .ca
        .issue_files_for("late", subject, -1)
        .unwrap();
    for (what, answer) in everything(channel(&agent, &late), certificates.dir.path()).await {
        let code = answer.unwrap_err().code();
        let unreached = matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled);
        assert!(unreached, "{what}: {code:?}");
    }
    assert_eq!(agent.qemus(), Vec::<u32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_conversation_played_again_does_nothing() {
    let certificates = Certificates::new();
    let agent = certificates.agent().await;
    let address = agent.address.trim_start_matches("https://").to_owned();
    let recorder = Recorder::start(&address).await;
    let scheduler = Credentials::read(&certificates.of("scheduler", "s")).unwrap();
    let by_way_of = format!("https://{}", recorder.address);
    let channel = godwit_rpc::client::connect(&by_way_of, Some(&scheduler)).unwrap();
    let mut client = AgentClient::new(channel);
    let start = StartMachineRequest {
        spec: Some(counting(certificates.dir.path(), MACHINE)),
        epoch: 1,
        paused: false,
    };
    client.start_machine(start).await.unwrap();
    let stop = StopMachineRequest {
        machine: MACHINE.to_owned(),
        grace_seconds: 0,
        epoch: 1,
    };
    client.stop_machine(stop).await.unwrap();
    eventually("the machine to stop", async || {
        agent.qemus().is_empty().then_some(())
    })
    .await;
    client.forget_machine(machine()).await.unwrap();
    drop(client);

    // Every byte that the scheduler sent, in its order: handshake, certificate, both orders.
    let recorded = recorder.sent.lock().unwrap().clone();
    assert!(recorded.len() > 1000, "{} bytes", recorded.len());
    let mut again = tokio::net::TcpStream::connect(&address).await.unwrap();
    // The agent may hang up before all of it is sent.
    let _ = again.write_all(&recorded).await;
    let mut answer = vec![];
    let heard = tokio::time::timeout(LIMIT, again.read_to_end(&mut answer)).await;
    let _ = heard.expect("the agent ends the connection");
    assert!(agent.report(MACHINE).await.is_none());
    assert_eq!(agent.qemus(), Vec::<u32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_no_file_could_have_are_refused_and_nothing_is_made() {
    let certificates = Certificates::new();
    let agent = certificates.agent().await;
    let dir = certificates.dir.path();
    let long = "x".repeat(256);
    let mut client = AgentClient::new(channel(&agent, &certificates.of("scheduler", "s")));
    for name in ["a\nb", "a\0b", long.as_str(), "../../etc/passwd", "a/b", ""] {
        let as_machine = StartMachineRequest {
            spec: Some(MachineSpec {
                id: name.to_owned(),
                ..counting(dir, MACHINE)
            }),
            epoch: 1,
            paused: false,
        };
        let refused = client.start_machine(as_machine).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{name:?}: {refused}");
        let mut spec = counting(dir, MACHINE);
        spec.disks[0].name = name.to_owned();
        let as_disk = StartMachineRequest {
            spec: Some(spec),
            epoch: 1,
            paused: false,
        };
        let refused = client.start_machine(as_disk).await.unwrap_err();
        let codes = [Code::InvalidArgument, Code::FailedPrecondition];
        assert!(codes.contains(&refused.code()), "{name:?}: {refused}");
        let mut spec = counting(dir, MACHINE);
        spec.disks[0].path = format!("{}/{name}.raw", dir.display());
        let as_path = StartMachineRequest {
            spec: Some(spec),
            epoch: 1,
            paused: false,
        };
        let refused = client.start_machine(as_path).await.unwrap_err();
        assert!(codes.contains(&refused.code()), "{name:?}: {refused}");
    }
    // A disk that the agent makes itself is a file with that name.
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
    let refused = client.start_machine(request).await.unwrap_err();
    assert!(refused.message().contains("disk name"), "{refused}");
    let outside = agent.run_dir().join("../evil.seed");
    assert!(!outside.exists(), "it was written outside");
    assert_eq!(agent.qemus(), Vec::<u32>::new());
    let left = std::fs::read_dir(agent.run_dir()).unwrap().flatten();
    let left = left.map(|entry| entry.file_name());
    let left: Vec<_> = left.filter(|name| name != "probe.json").collect();
    assert!(left.is_empty(), "left of them: {left:?}");
}

/// Passes a connection on to an agent, and keeps what its client sends.
struct Recorder {
    address: std::net::SocketAddr,
    sent: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    async fn start(to: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (to, sent) = (to.to_owned(), Arc::new(Mutex::new(vec![])));
        let kept = Arc::clone(&sent);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = tokio::net::TcpStream::connect(&to).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
                });
                let kept = Arc::clone(&kept);
                tokio::spawn(async move {
                    let mut piece = [0; 4096];
                    while let Ok(length @ 1..) = from_client.read(&mut piece).await {
                        kept.lock().unwrap().extend_from_slice(&piece[..length]);
                        to_server.write_all(&piece[..length]).await.unwrap();
                    }
                });
            }
        });
        Self { address, sent }
    }
}
