//! `godwit audit` over a real ledger, a real agent and a real QEMU, whole and broken.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use godwit_cli::audit::{Audit, Check, Outcome, Report, audit};
use godwit_cli::output::Output;
use godwit_ledger::{NodeRow, Object, ObjectKey};
use godwit_model::machine::{Disk, ImageFormat, MachineSpec};
use godwit_model::{Bytes, MachineId};
use godwit_node_agent::config::Config;
use godwit_rpc::agent::v1::StartMachineRequest;
use godwit_rpc::agent::v1::agent_client::AgentClient;
use godwit_runtime::{Context, Identity};
use godwit_testkit::certs::{Ca, Subject};
use godwit_testkit::guest::boot_sector::BootSector;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::ledger_setup::{Setup, VMI, node};

/// One host with an agent in this process, and a ledger that knows it.
struct Live {
    setup: Setup,
    ca: Ca,
    machine: MachineId,
    shutdown: CancellationToken,
    /// Last, so that it is still there when the guest ends.
    dir: tempfile::TempDir,
}

impl Live {
    /// A host with one running machine, of which everybody knows.
    async fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("gwaudit-").tempdir()?;
        let setup = Setup::new().await;
        setup.postgres.open_service_logins()?;
        let ca = Ca::load_or_create(&dir.path().join("ca"))?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let worker = node("worker1", 4);
        let row = NodeRow {
            agent_address: format!("https://{address}"),
            ..worker.clone()
        };
        setup.change(async |tx| tx.node_put(row).await).await;
        let machine = setup.machine("vm1", &worker.name).await;
        show(&setup, &machine).await;
        let live = Self {
            setup,
            ca,
            machine,
            shutdown: CancellationToken::new(),
            dir,
        };
        let agent = live.identity("worker1", "node-agent")?;
        let config = Config {
            node: "worker1".to_owned(),
            state_dir: live.dir.path().join("state"),
            run_dir: live.dir.path().join("run"),
            bind: address,
            accel: godwit_qemu::probe::Wish::Tcg,
            common: godwit_runtime::config::Common {
                identity: Some(agent),
                ..Default::default()
            },
            ..Config::default()
        };
        tokio::spawn(godwit_node_agent::run(Context {
            config,
            shutdown: live.shutdown.clone(),
            metrics: Default::default(),
            readiness: Default::default(),
            steps: Default::default(),
        }));
        live.boot(&format!("https://{address}")).await?;
        Ok(live)
    }

    fn identity(&self, name: &str, organization: &str) -> Result<Identity> {
        let subject = Subject {
            name,
            organizations: &[organization],
            served_as: &["127.0.0.1".to_owned()],
        };
        self.ca.issue_files(name, subject)
    }

    /// The scheduler: tells the host to start the machine.
    async fn boot(&self, address: &str) -> Result<()> {
        let scheduler = self.identity("scheduler", "scheduler")?;
        let channel = godwit_rpc::client::connect(address, Some(&scheduler))?;
        let request = StartMachineRequest {
            spec: Some(counting(self.dir.path(), &self.machine).into()),
            epoch: 1,
            paused: false,
        };
        let limit = Duration::from_secs(30);
        let start = |_| {
            let (mut agent, request) = (AgentClient::new(channel.clone()), request.clone());
            async move { agent.start_machine(request).await }
        };
        godwit_rpc::client::repeat(limit, start).await?;
        Ok(())
    }

    /// An audit with a certificate of `organization`.
    async fn audit(&self, organization: &str, settle: u32) -> Result<Report> {
        let identity = self.identity(&format!("auditor-{organization}"), organization)?;
        let database = self.setup.url.split(['/', '?']).nth(3).unwrap();
        let wanted = Audit {
            database: self.setup.postgres.url_as(database, "godwit_auditor"),
            cert: Some(identity.cert),
            key: Some(identity.key),
            ca: Some(identity.ca),
            settle,
            output: Output::Text,
        };
        audit(&wanted).await
    }

    /// What an administrator's audit finds, check by check.
    async fn found(&self) -> Result<(Outcome, Vec<Check>)> {
        let report = self.audit("system:masters", 0).await?;
        let checks = report.findings().iter().map(|finding| finding.check);
        Ok((report.outcome(), checks.collect()))
    }

    fn qemus(&self) -> Vec<u32> {
        let wanted = self.dir.path().join("run").display().to_string();
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&wanted)
        })
        .collect()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.shutdown.cancel();
        for pid in self.qemus() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// The scheduler: the object of a running machine.
async fn show(setup: &Setup, machine: &MachineId) {
    let new = godwit_ledger::NewObject {
        key: ObjectKey::new(VMI, "default", "vm1"),
        uid: Some(machine.to_string()),
        metadata: json!({}),
        body: json!({"spec": {}}),
        status: Some(json!({"phase": "Running", "nodeName": "worker1"})),
    };
    let _: Object = setup.change(async |tx| tx.create(new).await).await;
}

fn counting(dir: &Path, machine: &MachineId) -> MachineSpec {
    let path = dir.join("disk.raw");
    BootSector::default().write_disk(&path).unwrap();
    MachineSpec {
        id: machine.clone(),
        namespace: "default".to_owned(),
        name: "vm1".to_owned(),
        cpus: 1,
        memory: Bytes::mib(128),
        machine_type: "pc-q35-7.2".to_owned(),
        cpu_model: "qemu64".to_owned(),
        disks: vec![Disk {
            name: "root".to_owned(),
            path: path.display().to_string(),
            format: ImageFormat::Raw,
            shared: true,
            read_only: false,
            create: None,
            boot: true,
            seed: None,
        }],
        nics: vec![],
        kernel: None,
        hugepages: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_system_is_clean_and_each_damage_is_told() -> Result<()> {
    let live = Live::start().await?;
    let job = live.setup.request("move", &live.machine).await;
    let mut sql = live.setup.sql().await;
    assert_eq!(live.found().await?, (Outcome::Clean, vec![]));

    // The ledger: a line of history that nobody could have taken away.
    for statement in [
        "ALTER TABLE migration_transition DISABLE TRIGGER ALL",
        "DELETE FROM migration_transition",
    ] {
        sqlx::query(statement).execute(&mut sql).await?;
    }
    assert_eq!(live.found().await?, (Outcome::Broken, vec![Check::History]));
    live.setup
        .change(async |tx| tx.job_cancel(&job, "no").await)
        .await;
    sqlx::query("INSERT INTO migration_transition VALUES ($1, 1, NULL, 'Pending', 0, 'x', 'y')")
        .bind(job.as_str().parse::<uuid::Uuid>()?)
        .execute(&mut sql)
        .await?;

    // The host: a directory that no QEMU uses, and one that goes while we look.
    let stray = live.dir.path().join("run/0123456789abcdef");
    std::fs::create_dir(&stray)?;
    assert_eq!(
        live.found().await?,
        (Outcome::Broken, vec![Check::Leftovers])
    );
    let removed = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        std::fs::remove_dir(&stray)
    });
    let report = live.audit("system:masters", 30).await?;
    removed.await??;
    assert_eq!(report.outcome(), Outcome::Clean, "{}", report.text());

    // Its QEMU: the ledger says that it runs.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(live.qemus()[0])?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
    assert_eq!(live.found().await?, (Outcome::Broken, vec![Check::InPlace]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_asked_is_not_called_broken() -> Result<()> {
    let live = Live::start().await?;
    assert_eq!(live.audit("admin", 0).await?.outcome(), Outcome::Clean);
    // A service has no business there.
    let refused = live.audit("scheduler", 0).await?;
    assert_eq!(refused.outcome(), Outcome::Unknown);
    assert!(
        refused.text().contains("scheduler may not call this"),
        "{}",
        refused.text()
    );
    // Nor has anybody an agent that is gone.
    live.shutdown.cancel();
    let gone = async {
        while live.found().await? != (Outcome::Unknown, vec![Check::Asked]) {}
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await?
}
