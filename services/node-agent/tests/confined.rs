//! What a QEMU may touch, and what it may not be given. Needs root for the user of its own.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr
)]
#![allow(dead_code, unreachable_pub)]

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use common::{Agent, confined, counting, eventually, place, pool};
use godwit_rpc::agent::v1::*;
use godwit_rpc::{Code, Status};

const MACHINE: &str = "11111111-94b4-4cda-9a69-cca8d4b4c587";
const JOB: &str = "22222222-94b4-4cda-9a69-cca8d4b4c587";

async fn started(agent: &Agent, spec: MachineSpec) -> Result<MachineReport, Status> {
    let request = StartMachineRequest {
        spec: Some(spec),
        epoch: 1,
        paused: false,
    };
    let answer = agent.client().start_machine(request).await;
    answer.map(|answer| answer.into_inner())
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// A field of `/proc/PID/status`.
fn status(pid: u32, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_has_a_user_of_its_own_no_rights_and_still_moves() {
    let dir = place();
    let source = confined("worker1", dir.path(), vec![]).await;
    let target = confined("worker2", dir.path(), vec![]).await;
    let spec = counting(&dir.path().join("pool"), MACHINE);
    started(&source, spec.clone()).await.unwrap();
    let pid = source.qemus()[0];
    let process = std::fs::metadata(format!("/proc/{pid}")).unwrap();
    assert_ne!(process.uid(), 0);
    assert_eq!(status(pid, "Seccomp"), "2");
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    for set in ["CapEff", "CapPrm", "CapBnd", "CapInh"] {
        assert_eq!(u64::from_str_radix(&status(pid, set), 16), Ok(0), "{set}");
    }
    let disk = std::fs::metadata(&spec.disks[0].path).unwrap();
    assert_eq!(disk.uid(), process.uid());

    eventually("the guest to count", async || {
        source.counters().last().copied()
    })
    .await;
    let job = JobRef {
        machine: MACHINE.to_owned(),
        job: JOB.to_owned(),
        epoch: 1,
    };
    let request = PrepareTargetRequest {
        job: Some(job.clone()),
        spec: Some(spec),
        source_node: "worker1".to_owned(),
        post_copy: false,
    };
    let prepared = target.client().prepare_target(request).await.unwrap();
    let prepared = prepared.into_inner();
    assert_eq!(prepared.state(), TargetState::Prepared, "{prepared:?}");
    let request = StartCopyRequest {
        job: Some(job.clone()),
        target_node: "worker2".to_owned(),
        target_uri: prepared.uri,
        target_agent: target.address.clone(),
        limits: None,
    };
    source.client().start_copy(request).await.unwrap();
    source.client().allow_switchover(job).await.unwrap();
    eventually("the guest on the target", async || {
        target.counters().last().copied()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn monitors_and_logs_are_for_nobody_else() {
    let dir = place();
    let agent = confined("worker1", dir.path(), vec![]).await;
    let spec = counting(&dir.path().join("pool"), MACHINE);
    started(&agent, spec).await.unwrap();
    let run = agent.run_dir();
    // To pass through, not to look in.
    assert_eq!(mode(&run), 0o711);
    let entries = std::fs::read_dir(&run).unwrap().flatten();
    let machine = entries.map(|entry| entry.path()).find(|path| path.is_dir());
    let machine = machine.unwrap();
    assert_eq!(mode(&machine), 0o700);
    for entry in std::fs::read_dir(&machine).unwrap().flatten() {
        assert_eq!(mode(&entry.path()) & 0o077, 0, "{:?}", entry.path());
    }
    // Somebody who is neither root nor QEMU's user.
    let asked = Command::new("setpriv")
        .args(["--reuid=1", "--regid=1", "--clear-groups", "cat"])
        .arg(machine.join("qmp.sock"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&asked.stderr);
    assert!(said.contains("Permission denied"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_disk_of_a_pool_is_not_opened() {
    let dir = place();
    let agent = Agent::start_with("worker1", dir.path(), vec![pool(dir.path())]).await;
    let inside = dir.path().join("pool");
    let secret = dir.path().join("secret.raw");
    std::fs::write(&secret, vec![0; 1 << 20]).unwrap();
    symlink(&secret, inside.join("link.raw")).unwrap();
    symlink(dir.path(), inside.join("up")).unwrap();
    std::fs::hard_link(&secret, inside.join("second-name.raw")).unwrap();
    std::fs::create_dir(inside.join("folder")).unwrap();
    let qcow2 = inside.join("based.qcow2");
    // The head of one that is based on another file.
    let mut head = vec![0_u8; 1 << 16];
    head[..8].copy_from_slice(b"QFI\xfb\x00\x00\x00\x03");
    head[15] = 0x70;
    std::fs::write(&qcow2, head).unwrap();
    let (pool, qcow2) = (inside.display(), qcow2.display());
    for (path, format, why) in [
        (format!("{}", secret.display()), "raw", "in no pool"),
        (format!("{pool}/link.raw"), "raw", "open"),
        (format!("{pool}/up/secret.raw"), "raw", "open"),
        (format!("{pool}/../secret.raw"), "raw", "open"),
        (format!("{pool}/second-name.raw"), "raw", "one name"),
        (format!("{pool}/folder"), "raw", "no plain file"),
        ("/dev/zero".to_owned(), "raw", "in no pool"),
        ("json:{\"driver\":\"file\"}".to_owned(), "raw", "in no pool"),
        (format!("{pool}/a\nb.raw"), "raw", "does not exist"),
        (format!("{qcow2}"), "qcow2", "refers to other files"),
    ] {
        let mut spec = counting(dir.path(), MACHINE);
        path.clone_into(&mut spec.disks[0].path);
        format.clone_into(&mut spec.disks[0].format);
        let refused = started(&agent, spec).await.unwrap_err();
        assert_eq!(
            refused.code(),
            Code::FailedPrecondition,
            "{path}: {refused}"
        );
        assert!(refused.message().contains(why), "{path}: {refused}");
        assert_eq!(agent.qemus(), Vec::<u32>::new(), "{path}");
    }
    // Nor is anything made elsewhere.
    let outside = dir.path().join("new.raw");
    for path in [outside.clone(), inside.join("up/new.raw")] {
        let mut spec = counting(dir.path(), MACHINE);
        spec.disks[0].path = path.display().to_string();
        spec.disks[0].create_bytes = 1 << 20;
        started(&agent, spec).await.unwrap_err();
    }
    assert!(!outside.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_goes_to_an_address_and_never_to_a_command_or_a_file() {
    let dir = place();
    let agent = Agent::start_with("worker1", dir.path(), Vec::new()).await;
    for uri in [
        "exec:touch /tmp/owned",
        "file:/tmp/owned",
        "unix:/tmp/owned",
        "fd:0",
        "rdma:10.0.0.1:1",
        "tcp:attacker.example.com:4444",
        "tcp:127.0.0.1:1,server=on",
        "",
    ] {
        let request = StartCopyRequest {
            job: Some(JobRef {
                machine: MACHINE.to_owned(),
                job: JOB.to_owned(),
                epoch: 1,
            }),
            target_node: "worker2".to_owned(),
            target_uri: uri.to_owned(),
            target_agent: "http://127.0.0.1:1".to_owned(),
            limits: None,
        };
        let refused = agent.client().start_copy(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{uri}: {refused}");
    }
}

#[test]
fn a_user_that_is_not_there_or_is_root_is_told_at_the_start() {
    for (user, why) in [("no-such-user", "has no user"), ("root", "is root")] {
        let output = Command::new(env!("CARGO_BIN_EXE_godwit-node-agent"))
            .args(["--set", "node=worker1", "--set", "common.insecure=true"])
            .args(["--set", &format!("qemu_user={user}")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{user} was taken");
        assert!(said.contains(why), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qemu_listens_nowhere_but_in_its_own_directory() {
    let dir = place();
    let agent = confined("worker1", dir.path(), vec![]).await;
    let spec = counting(&dir.path().join("pool"), MACHINE);
    started(&agent, spec).await.unwrap();
    let pid = agent.qemus()[0];
    let sockets: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| {
            let target = std::fs::read_link(entry.ok()?.path()).ok()?;
            let target = target.to_str()?.strip_prefix("socket:[")?;
            Some(target.trim_end_matches(']').to_owned())
        })
        .collect();
    assert!(!sockets.is_empty(), "its monitors are sockets");
    let table = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap();
    // Whoever is in a guest's network can't reach it: none of its sockets is of a network.
    for name in ["tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet"] {
        let table = table(name);
        let own = table.lines().find(|line| {
            let inode = line.split_whitespace();
            sockets
                .iter()
                .any(|socket| inode.clone().any(|word| word == socket))
        });
        assert_eq!(own, None, "{name}");
    }
    // Nor has it a name without a file, which needs only the host's network namespace.
    let run = agent.run_dir();
    let mut listening = 0;
    for line in table("unix").lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (flags, inode) = (words[3], words[6]);
        if flags == "00010000" && sockets.iter().any(|socket| socket == inode) {
            let path = words.get(7).copied().unwrap_or_default();
            assert!(Path::new(path).starts_with(&run), "{line}");
            listening += 1;
        }
    }
    assert!(listening > 0, "a monitor waits for the agent");
}
