//! A control plane without an API: a private Postgres, and the services as processes of their own,
//! without TLS.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit_cli::audit::{Audit, Outcome, audit};
use godwit_cli::output::Output;
use godwit_ledger::{Ledger, LedgerConfig};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::collector::Protocol;
use crate::lab::{Process, Service};
use crate::postgres::{DatabaseUse, Postgres, cpu_seconds_of};

/// Longest start of a service.
const START_MAX: Duration = Duration::from_secs(30);
/// Connections of the driver.
const CONNECTIONS_MAX: u32 = 4;
/// How long an audit may wait until what is under way has come to rest.
const SETTLE_SECONDS: u32 = 30;

/// What the services tell, and whom.
#[derive(Debug, Clone)]
pub struct Telling {
    /// Filter of their log lines and spans, in the form of `RUST_LOG`.
    pub log_filter: String,
    /// Port of a collector on this machine, and how it is spoken to; `None` for none.
    pub collector: Option<(u16, Protocol)>,
}

impl Default for Telling {
    /// Troubles alone.
    fn default() -> Self {
        Self {
            log_filter: "warn".to_owned(),
            collector: None,
        }
    }
}

impl Telling {
    /// Everything that services tell as a rule, to this collector.
    pub fn to(collector: Option<(u16, Protocol)>) -> Self {
        Self {
            log_filter: "info".to_owned(),
            collector,
        }
    }
}

/// A running control plane; it ends when this is dropped.
#[derive(Debug)]
pub struct Plane {
    /// The ledger, past all services.
    pub ledger: Ledger,
    postgres: Postgres,
    database: String,
    services: Vec<Running>,
    scheduler: String,
    telling: Telling,
    dir: TempDir,
}

#[derive(Debug)]
struct Running {
    service: Service,
    process: Process,
}

/// What one process has used.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceUse {
    /// Its name.
    pub name: String,
    /// CPU seconds so far.
    pub cpu_seconds: f64,
    /// Resident memory in bytes.
    pub resident: u64,
}

impl Plane {
    /// Starts Postgres, and the programs in `bin_dir`.
    ///
    /// # Errors
    /// When Postgres or a program can't be started.
    pub async fn start(bin_dir: &Path) -> Result<Self> {
        Self::start_telling(bin_dir, Telling::default()).await
    }

    /// As [`Self::start`], with services that tell so much.
    ///
    /// # Errors
    /// When Postgres or a program can't be started.
    pub async fn start_telling(bin_dir: &Path, telling: Telling) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("gwfleet-").tempdir()?;
        for folder in ["logs", "pids"] {
            std::fs::create_dir_all(dir.path().join(folder))?;
        }
        let started = tokio::task::spawn_blocking(|| {
            let postgres = Postgres::ephemeral()?;
            let url = postgres.create_database()?;
            postgres.open_service_logins()?;
            anyhow::Ok((postgres, url))
        });
        let (postgres, url) = started.await??;
        let database = url.split(['/', '?']).nth(3).context("a database's URL")?;
        let ledger = Ledger::connect(LedgerConfig {
            url: url.clone(),
            connections_max: CONNECTIONS_MAX,
        });
        let mut plane = Self {
            ledger: ledger.await?,
            database: database.to_owned(),
            postgres,
            services: vec![],
            scheduler: String::new(),
            telling,
            dir,
        };
        plane.start_services(bin_dir)?;
        Ok(plane)
    }

    fn start_services(&mut self, bin_dir: &Path) -> Result<()> {
        let [scheduler, coordinator, maintenance] = [free_port()?, free_port()?, free_port()?];
        let local = |port: u16| format!("127.0.0.1:{port}");
        self.scheduler = format!("http://{}", local(scheduler));
        let database = |role: &str| {
            self.postgres
                .url_as(&self.database, &format!("godwit_{role}"))
        };
        let wanted = [
            (
                "scheduler",
                json!({"bind": local(scheduler), "database_url": database("scheduler")}),
            ),
            (
                "migration-coordinator",
                json!({
                    "bind": local(coordinator),
                    "database_url": database("coordinator"),
                    "scheduler": self.scheduler,
                }),
            ),
            (
                "maintenance-service",
                json!({
                    "bind": local(maintenance),
                    "database_url": database("maintenance"),
                    "coordinator": format!("http://{}", local(coordinator)),
                }),
            ),
        ];
        for (name, config) in wanted {
            let service = self.configure(bin_dir, name, config)?;
            let process = service.start()?;
            service.wait_ready(START_MAX)?;
            self.services.push(Running { service, process });
        }
        Ok(())
    }

    fn configure(&self, bin_dir: &Path, name: &str, mut config: Value) -> Result<Service> {
        let admin = format!("127.0.0.1:{}", free_port()?);
        config["common"] = json!({
            "admin_bind": admin, "insecure": true, "log_filter": self.telling.log_filter,
        });
        if let Some((port, protocol)) = self.telling.collector {
            config["common"]["otlp_endpoint"] = json!(format!("http://127.0.0.1:{port}"));
            config["common"]["otlp_protocol"] = json!(protocol.as_str());
        }
        let path = self.dir.path().join(format!("{name}.toml"));
        std::fs::write(&path, toml::to_string(&config)?)?;
        Ok(Service {
            name: name.to_owned(),
            program: bin_dir.join(format!("godwit-{name}")),
            arguments: vec!["--config".to_owned(), path.display().to_string()],
            namespace: None,
            dir: self.dir.path().to_owned(),
            admin,
        })
    }

    /// Where the scheduler listens: `http://HOST:PORT`.
    pub fn scheduler(&self) -> &str {
        &self.scheduler
    }

    /// The database server.
    pub fn postgres(&self) -> &Postgres {
        &self.postgres
    }

    /// Name of the ledger's database.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// What Postgres has used.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn database_use(&self) -> Result<DatabaseUse> {
        self.postgres.usage(&self.database)
    }

    /// What each service, and this process, have used.
    ///
    /// # Errors
    /// When a service has ended.
    pub fn services_use(&self) -> Result<Vec<ServiceUse>> {
        let mut processes = vec![];
        for Running { service, process } in &self.services {
            processes.push((service.name.clone(), process.clone()));
        }
        let here = i32::try_from(std::process::id())?;
        let here = Process::of_pid(here).context("this process")?;
        processes.push(("hosts".to_owned(), here));
        let uses = processes.into_iter().map(|(name, process)| {
            let cpu_seconds = cpu_seconds_of(process.pid, false);
            let both = cpu_seconds.zip(process.resident());
            let (cpu_seconds, resident) = both.with_context(|| format!("{name} ended"))?;
            Ok(ServiceUse {
                name,
                cpu_seconds,
                resident,
            })
        });
        uses.collect()
    }

    /// Ends the services as an init system does, by asking them to.
    ///
    /// # Errors
    /// When one still runs after 8 s.
    pub fn terminate(&self) -> Result<()> {
        let mut services = self.services.iter();
        services.try_for_each(|Running { service, process }| {
            let ended = process.terminate();
            ended.with_context(|| service.name.clone())
        })
    }

    /// Where the services' logs are.
    pub fn logs(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    /// Checks everything as `godwit audit` does: the ledger, and what each host says of itself.
    ///
    /// # Errors
    /// With all findings.
    pub async fn audit(&self) -> Result<()> {
        let wanted = Audit {
            database: self.postgres.url_as(&self.database, "godwit_auditor"),
            cert: None,
            key: None,
            ca: None,
            settle: SETTLE_SECONDS,
            output: Output::Text,
        };
        let report = audit(&wanted).await?;
        ensure!(report.outcome() == Outcome::Clean, "{}", report.text());
        Ok(())
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        for Running { service, process } in &self.services {
            if let Err(error) = process.stop() {
                tracing::warn!(service = service.name, "does not end: {error:#}");
            }
        }
    }
}

/// A loopback port that nobody listens on at the moment.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
