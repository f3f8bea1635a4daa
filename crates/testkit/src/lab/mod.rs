//! A whole Godwit on one machine: Postgres, all services, and hosts out of network namespaces.
//!
//! Used by `cargo xtask lab` and by the tests; two labs with different numbers don't meet.

mod kubeconfig;
mod network;
mod processes;
mod services;

pub use network::{BRIDGE, Network};
pub use processes::{Process, Service, http_get, http_put, tail};

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use godwit_cli::audit::Audit;

use crate::certs::{Ca, Subject};
use crate::guest::linux;
use crate::postgres::Postgres;

/// How long a service may take to be ready.
const READY_MAX: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);
/// Database of the lab.
const DATABASE: &str = "godwit";
/// Namespace-wide names of the users that get a kubeconfig, with their groups.
const ADMIN: (&str, &str) = ("admin", "system:masters");

/// How a lab is to be.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// Before every name of a namespace or a device; at most 8 characters.
    pub prefix: String,
    /// Number of the lab on this machine: chooses subnets and ports.
    pub index: u8,
    /// Hosts.
    pub workers: usize,
    /// Migration-coordinators: the first is `migration-coordinator`, others have a number behind.
    pub coordinators: u16,
    /// Everything that the lab writes; short, since sockets live in it.
    pub dir: PathBuf,
    /// Where the services' programs are.
    pub bin_dir: PathBuf,
    /// What may be kept between labs: the guest's image.
    pub cache_dir: PathBuf,
    /// Where spans go; nowhere when `None`.
    pub otlp_endpoint: Option<String>,
}

impl LabOptions {
    /// The lab that a person gets.
    pub fn standard(bin_dir: PathBuf, cache_dir: PathBuf) -> Self {
        Self {
            prefix: "godwit".to_owned(),
            index: 0,
            workers: 3,
            coordinators: 1,
            dir: PathBuf::from("/var/lib/godwit-lab"),
            bin_dir,
            cache_dir,
            otlp_endpoint: None,
        }
    }
}

/// A lab, running or not.
#[derive(Debug, Clone)]
pub struct Lab {
    options: LabOptions,
    network: Network,
}

impl Lab {
    /// The lab of these options; nothing is started.
    pub fn new(options: LabOptions) -> Self {
        let network = Network::new(&options.prefix, options.index, options.workers);
        Self { options, network }
    }

    /// Starts what doesn't run, and waits until everything is ready. `progress` hears each step.
    ///
    /// # Errors
    /// With what is missing, or with the end of the log of what did not start.
    pub fn up(&self, progress: &dyn Fn(&str)) -> Result<()> {
        for folder in ["certs", "config", "logs", "pids", "run", "state", "disks"] {
            fs::create_dir_all(self.options.dir.join(folder))
                .with_context(|| format!("make {}", self.options.dir.display()))?;
        }
        progress("building the lab's guest");
        let image = linux::ensure(&self.options.cache_dir, progress)?;
        progress("starting Postgres");
        let postgres = Postgres::start_detached(&self.options.dir.join("pg"))?;
        let url = postgres.ensure_database(DATABASE)?;
        migrate(url)?;
        postgres.open_service_logins()?;
        progress("making hosts");
        self.network.up()?;
        progress("making certificates");
        let ca = Ca::load_or_create(&self.options.dir.join("certs"))?;
        kubeconfig::write(&ca, &self.kubeconfig(), &self.server(), ADMIN)?;
        let (name, group) = ADMIN;
        let admin = Subject {
            name,
            organizations: &[group],
            served_as: &[],
        };
        ca.issue_files(name, admin)?;
        progress("starting services");
        self.configure(&ca, &postgres, &image)?;
        for service in self.services() {
            service.start()?;
        }
        for service in self.services() {
            progress(&format!("waiting for {}", service.name));
            service.wait_ready(READY_MAX)?;
        }
        progress("waiting for the hosts to register");
        self.wait_nodes()
    }

    /// Ends every process, and removes every device and file.
    ///
    /// # Errors
    /// When something can't be ended or removed.
    pub fn down(&self) -> Result<()> {
        for service in self.services() {
            if let Some(process) = service.process() {
                process.stop()?;
            }
        }
        for number in 1..=self.options.workers {
            // The agents' QEMUs outlive them; whatever runs on a lab's host is the lab's.
            for process in processes::in_namespace(&self.network.worker(number))? {
                process.kill()?;
            }
        }
        self.network.down()?;
        Postgres::stop(&self.options.dir.join("pg"))?;
        if self.options.dir.exists() {
            fs::remove_dir_all(&self.options.dir)
                .with_context(|| format!("remove {}", self.options.dir.display()))?;
        }
        Ok(())
    }

    /// Whether all services run.
    pub fn is_up(&self) -> bool {
        self.services()
            .iter()
            .all(|service| service.process().is_some())
    }

    /// A service by its name: `scheduler`, `worker1`, ...
    ///
    /// # Errors
    /// When there is no such service; names those there are.
    pub fn service(&self, name: &str) -> Result<Service> {
        let all = self.services();
        let names: Vec<&str> = all.iter().map(|service| service.name.as_str()).collect();
        let names = names.join(", ");
        all.into_iter()
            .find(|service| service.name == name)
            .with_context(|| format!("no service {name:?}; there are: {names}"))
    }

    /// Kills a service (SIGKILL).
    ///
    /// # Errors
    /// When it doesn't run.
    pub fn kill(&self, name: &str) -> Result<()> {
        let process = self.service(name)?.process();
        process
            .with_context(|| format!("{name} does not run"))?
            .kill()
    }

    /// Starts a service and waits until it is ready.
    ///
    /// # Errors
    /// As [`Lab::up`].
    pub fn start(&self, name: &str) -> Result<()> {
        let service = self.service(name)?;
        service.start()?;
        service.wait_ready(READY_MAX)
    }

    /// Where the admin's kubeconfig is.
    pub fn kubeconfig(&self) -> PathBuf {
        self.options.dir.join("kubeconfig")
    }

    /// What `godwit audit` needs to look at this lab; it may take `settle` seconds to come to rest.
    ///
    /// # Errors
    /// When the lab was never up.
    pub fn audit(&self, settle: u32) -> Result<Audit> {
        let postgres = Postgres::start_detached(&self.options.dir.join("pg"))?;
        let certs = self.options.dir.join("certs");
        Ok(Audit {
            database: postgres.url_as(DATABASE, "godwit_auditor"),
            cert: Some(certs.join("admin.crt")),
            key: Some(certs.join("admin.key")),
            ca: Some(certs.join("ca.crt")),
            settle,
            output: godwit_cli::output::Output::Text,
        })
    }

    /// The API's URL.
    pub fn server(&self) -> String {
        format!(
            "https://127.0.0.1:{}",
            services::port(6443, self.options.index)
        )
    }

    /// The hosts' network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The lab's options.
    pub fn options(&self) -> &LabOptions {
        &self.options
    }

    /// The folder that all hosts share for disks.
    pub fn disks(&self) -> PathBuf {
        self.options.dir.join("disks")
    }

    /// Runs `kubectl` (the program at `kubectl`) as the admin.
    ///
    /// # Errors
    /// When it can't be run; an exit code is no error here.
    pub fn kubectl(&self, kubectl: &Path, arguments: &[&str]) -> Result<Output> {
        Command::new(kubectl)
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", &self.options.dir)
            .output()
            .with_context(|| format!("run {}", kubectl.display()))
    }

    fn wait_nodes(&self) -> Result<()> {
        let postgres = Postgres::start_detached(&self.options.dir.join("pg"))?;
        let began = Instant::now();
        loop {
            let ready = postgres.psql(DATABASE, "SELECT count(*) FROM node WHERE ready")?;
            if ready.trim().parse::<usize>()? >= self.options.workers {
                return Ok(());
            }
            ensure!(
                began.elapsed() < READY_MAX,
                "only {} of {} hosts registered",
                ready.trim(),
                self.options.workers
            );
            std::thread::sleep(POLL); // poll
        }
    }
}

fn migrate(url: String) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let config = godwit_ledger::LedgerConfig {
        url,
        connections_max: 1,
    };
    let done = std::thread::spawn(move || {
        runtime.block_on(async {
            godwit_ledger::Ledger::connect(config)
                .await?
                .migrate()
                .await
        })
    });
    match done.join() {
        Ok(done) => done.context("make the ledger's schema"),
        Err(_) => bail!("making the ledger's schema panicked"),
    }
}
