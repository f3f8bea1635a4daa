//! The memory of a moving guest on the wire, and who may have the key.

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
use std::time::{Duration, Instant};

use common::{Agent, counting, eventually};
use godwit_rpc::agent::v1::agent_client::AgentClient;
use godwit_rpc::agent::v1::*;
use godwit_rpc::{Channel, Code, Credentials, Status};
use godwit_runtime::Identity;
use godwit_testkit::certs::{Ca, Subject};
use godwit_testkit::guest::boot_sector::BootSector;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const MACHINE: &str = "11111111-94b4-4cda-9a69-cca8d4b4c587";
const JOB: &str = "22222222-94b4-4cda-9a69-cca8d4b4c587";
const CLEAR: &str = "encrypt_copies=false";

fn job(epoch: u64) -> JobRef {
    JobRef {
        machine: MACHINE.to_owned(),
        job: JOB.to_owned(),
        epoch,
    }
}

/// Between the two QEMUs: passes all on, and keeps what the source sent.
struct Wire {
    uri: String,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Wire {
    async fn to(port: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("tcp:{}", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let keeps = Arc::clone(&heard);
        tokio::spawn(async move {
            let (source, _) = listener.accept().await.unwrap();
            let target = TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap()));
            let (mut from, mut back) = source.into_split();
            let (mut answers, mut to) = target.await.unwrap().into_split();
            tokio::spawn(async move { tokio::io::copy(&mut answers, &mut back).await });
            let mut buffer = vec![0; 1 << 16];
            loop {
                let read = from.read(&mut buffer).await.unwrap_or(0);
                keeps.lock().unwrap().extend_from_slice(&buffer[..read]);
                if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
        });
        Self { uri, heard }
    }

    /// Whether the guest's own code, which is in its memory, came over the wire.
    fn shows_the_guest(&self) -> bool {
        let sector = BootSector::default().sector();
        // Behind the parameters, and before what the CPU writes to.
        let pattern = &sector[20..160];
        let heard = self.heard.lock().unwrap();
        heard.windows(pattern.len()).any(|window| window == pattern)
    }
}

/// Two hosts, each with keys of its own in its configuration, and a running machine on the first.
struct Lab {
    source: Agent,
    target: Agent,
    spec: MachineSpec,
    _dir: tempfile::TempDir,
}

impl Lab {
    async fn new(source: &[&str], target: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = |keys: &[&str]| keys.iter().map(ToString::to_string).collect();
        let source = Agent::start_with("worker1", dir.path(), keys(source)).await;
        let target = Agent::start_with("worker2", dir.path(), keys(target)).await;
        let spec = counting(dir.path(), MACHINE);
        Self {
            source,
            target,
            spec,
            _dir: dir,
        }
    }

    async fn running(self) -> Self {
        let request = StartMachineRequest {
            spec: Some(self.spec.clone()),
            epoch: 1,
            paused: false,
        };
        self.source.client().start_machine(request).await.unwrap();
        eventually("the guest to count", async || {
            self.source.counters().last().copied()
        })
        .await;
        self
    }

    async fn prepare(&self) -> TargetFact {
        let request = PrepareTargetRequest {
            job: Some(job(1)),
            spec: Some(self.spec.clone()),
            source_node: "worker1".to_owned(),
            post_copy: false,
        };
        let prepared = self.target.client().prepare_target(request).await;
        prepared.unwrap().into_inner()
    }

    async fn copy(&self, uri: &str) -> SourceFact {
        let request = StartCopyRequest {
            job: Some(job(1)),
            target_node: "worker2".to_owned(),
            target_uri: uri.to_owned(),
            target_agent: self.target.address.clone(),
            limits: Some(CopyLimits {
                bandwidth: 0,
                downtime_limit_ms: 10_000,
                auto_converge: false,
                ..CopyLimits::default()
            }),
        };
        let mut agent = self.source.client();
        let begun = agent.start_copy(request).await.unwrap().into_inner();
        if begun.state() == SourceState::Copying {
            agent.allow_switchover(job(1)).await.unwrap();
        }
        begun
    }

    async fn arrived(&self) -> SourceFact {
        eventually("the guest to arrive", async || {
            facts(&self.target)
                .await
                .target
                .filter(|fact| fact.state() == TargetState::Running)
        })
        .await;
        facts(&self.source).await.source.unwrap()
    }

    /// Moves the machine over a wire that is listened to.
    async fn moved(&self) -> Wire {
        let prepared = self.prepare().await;
        let wire = Wire::to(prepared.ports[0]).await;
        assert_eq!(self.copy(&wire.uri).await.state(), SourceState::Copying);
        self.arrived().await;
        wire
    }
}

async fn facts(agent: &Agent) -> JobFacts {
    let stream = agent.client().watch_job(job(1)).await.unwrap();
    stream.into_inner().message().await.unwrap().unwrap()
}

async fn ask(client: &mut AgentClient<Channel>, epoch: u64, node: &str) -> Result<CopyKey, Status> {
    let request = CopyKeyRequest {
        job: Some(job(epoch)),
        source_node: node.to_owned(),
    };
    let answer = client.give_copy_key(request).await;
    answer.map(|answer| answer.into_inner())
}

/// Every file under `directory`.
fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path)),
            path => found.push(path),
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_pattern_of_guest_memory_is_never_seen_on_the_wire() {
    let lab = Lab::new(&[], &[]).await.running().await;
    let wire = lab.moved().await;
    assert!(wire.heard.lock().unwrap().len() > 1 << 20);
    assert!(!wire.shows_the_guest());
    // Nothing is left of the key where the machine is, and where it was.
    let left = [&lab.source, &lab.target].map(|agent| files(&agent.run_dir()));
    let keys = left
        .iter()
        .flatten()
        .filter(|path| path.ends_with("keys.psk"));
    assert_eq!(keys.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_encryption_that_pattern_is_seen_and_both_logs_say_so() {
    let lab = Lab::new(&[CLEAR], &[CLEAR]).await.running().await;
    let wire = lab.moved().await;
    assert!(wire.shows_the_guest());
    assert!(lab.source.log().contains("memory travels in the clear"));
    assert!(lab.target.log().contains("travels in the clear"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_would_travel_in_the_clear_fails_and_says_why() {
    let lab = Lab::new(&[], &[CLEAR]).await.running().await;
    let prepared = lab.prepare().await;
    lab.copy(&prepared.uri).await;
    let source = facts(&lab.source).await.source.unwrap();
    assert_eq!(source.state(), SourceState::Resumed);
    assert!(
        source.reason.contains("in the clear only"),
        "{}",
        source.reason
    );
    let report = lab.source.report(MACHINE).await.unwrap();
    assert_eq!(report.state(), MachineState::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_connects_first_without_the_key_is_refused_and_the_job_survives() {
    let lab = Lab::new(&[], &[]).await.running().await;
    let prepared = lab.prepare().await;
    let port = u16::try_from(prepared.ports[0]).unwrap();
    // It speaks QEMU's own protocol in the clear.
    let mut loud = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    loud.write_all(b"QEVM\x00\x00\x00\x03").await.unwrap();
    // An alert of TLS at most, and the end.
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), loud.read_to_end(&mut answer)).await;
    ended.expect("the connection is kept").unwrap_or_default();
    assert!(answer.len() < 64, "{answer:?}");
    assert_eq!(lab.copy(&prepared.uri).await.state(), SourceState::Copying);
    lab.arrived().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_connects_first_and_says_nothing_ends_the_attempt_and_the_guest_stays() {
    let lab = Lab::new(&[], &[]).await.running().await;
    let prepared = lab.prepare().await;
    let port = u16::try_from(prepared.ports[0]).unwrap();
    let _silent = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    lab.copy(&prepared.uri).await;
    let ended = eventually("the attempt to end", async || {
        let fact = facts(&lab.source).await.source;
        fact.filter(|fact| fact.state() == SourceState::Resumed)
    });
    ended.await;
    let before = *lab.source.counters().last().unwrap();
    eventually("the guest to go on", async || {
        (*lab.source.counters().last()? > before).then_some(())
    })
    .await;
    assert!(lab.target.counters().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_says_nothing_in_the_handshake_does_not_hold_the_guest() {
    let lab = Lab::new(&[], &[]).await.running().await;
    lab.prepare().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("tcp:{}", silent.local_addr().unwrap());
    let begun = Instant::now();
    lab.copy(&uri).await;
    let fact = eventually("the attempt to end", async || {
        let fact = facts(&lab.source).await.source;
        fact.filter(|fact| fact.state() == SourceState::Resumed)
    });
    let fact = fact.await;
    println!("ended after {:?}: {}", begun.elapsed(), fact.reason);
    let before = *lab.source.counters().last().unwrap();
    eventually("the guest to go on", async || {
        (*lab.source.counters().last()? > before).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_target_still_has_the_key() {
    let mut lab = Lab::new(&[], &[]).await.running().await;
    let prepared = lab.prepare().await;
    let before = ask(&mut lab.target.client(), 1, "worker1").await.unwrap();
    lab.target.restart().await;
    let after = ask(&mut lab.target.client(), 1, "worker1").await.unwrap();
    assert_eq!(before.key, after.key);
    lab.copy(&prepared.uri).await;
    lab.arrived().await;
}

/// Certificates of an authority of their own, as files.
fn certificate(ca: &Ca, role: &str, name: &str) -> Identity {
    let served_as = ["127.0.0.1".to_owned()];
    let subject = Subject {
        name,
        organizations: &[role],
        served_as: &served_as,
    };
    ca.issue_files(name, subject).unwrap()
}

fn client(agent: &Agent, who: &Identity) -> AgentClient<Channel> {
    let shown = Credentials::read(who).unwrap();
    let channel = godwit_rpc::client::connect(&agent.address, Some(&shown)).unwrap();
    AgentClient::new(channel)
}

/// Neither to strangers, nor to the source before anything arrives.
async fn assert_confirmed_to_nobody(
    strangers: [&mut AgentClient<Channel>; 2],
    source: &mut AgentClient<Channel>,
) {
    let wanted = CopyKeyRequest {
        job: Some(job(5)),
        source_node: "worker1".to_owned(),
    };
    for stranger in strangers {
        let refused = stranger.confirm_postcopy(wanted.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
    let early = source.confirm_postcopy(wanted).await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_source_of_the_job_gets_the_key_and_may_prove() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::load_or_create(&dir.path().join("certs")).unwrap();
    let target = certificate(&ca, "node-agent", "worker2");
    let coordinator = certificate(&ca, "migration-coordinator", "c");
    let [source, rogue] = ["worker1", "worker3"].map(|name| certificate(&ca, "node-agent", name));
    let agent = Agent::start_as("worker2", dir.path(), &target, &coordinator).await;
    let request = PrepareTargetRequest {
        job: Some(job(5)),
        spec: Some(counting(dir.path(), MACHINE)),
        source_node: "worker1".to_owned(),
        post_copy: false,
    };
    let prepared = client(&agent, &coordinator).prepare_target(request).await;
    assert_eq!(
        prepared.unwrap().into_inner().state(),
        TargetState::Prepared
    );

    let code = |answer: Result<CopyKey, Status>| answer.unwrap_err().code();
    let mut rogue = client(&agent, &rogue);
    assert_eq!(
        code(ask(&mut rogue, 5, "worker1").await),
        Code::PermissionDenied
    );
    assert_eq!(
        code(ask(&mut rogue, 5, "worker3").await),
        Code::PermissionDenied
    );
    let mut services = client(&agent, &coordinator);
    assert_eq!(
        code(ask(&mut services, 5, "worker1").await),
        Code::PermissionDenied
    );
    let mut source = client(&agent, &source);
    // An owner that was replaced.
    assert_eq!(code(ask(&mut source, 4, "worker1").await), Code::Aborted);
    let key = ask(&mut source, 5, "worker1").await.unwrap().key;
    assert_eq!(key.len(), 32);

    assert_confirmed_to_nobody([&mut rogue, &mut services], &mut source).await;

    let proof = Proof {
        job: Some(job(5)),
        source_node: "worker3".to_owned(),
        pid: 1,
        boot_id: "b".to_owned(),
        start_ticks: 1,
        machine_epoch: 2,
    };
    let refused = rogue.deliver_proof(proof).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    assert_shown_nowhere(&agent, &key);
    // With the attempt it goes.
    services.discard_target(job(5)).await.unwrap();
    assert_eq!(
        code(ask(&mut source, 5, "worker1").await),
        Code::FailedPrecondition
    );
    assert!(
        files(&agent.run_dir())
            .iter()
            .all(|path| !path.ends_with("keys.psk"))
    );
}

/// It is in no log, no journal and no command line.
fn assert_shown_nowhere(agent: &Agent, key: &[u8]) {
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let pid = agent.qemus()[0];
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(!String::from_utf8_lossy(&line).contains(&hex));
    assert!(!agent.log().contains(&hex));
    for path in files(&agent.state_dir()) {
        let content = std::fs::read(&path).unwrap();
        assert!(
            !String::from_utf8_lossy(&content).contains(&hex),
            "{path:?}"
        );
    }
}
