//! An api-gateway in a process of its own, over a Postgres full of instances.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use godwit_ledger::{Ledger, LedgerConfig};
use godwit_testkit::api::Api;
use godwit_testkit::certs::{Ca, Subject};
use godwit_testkit::lab::{Process, Service};
use godwit_testkit::postgres::Postgres;
use serde_json::json;
use tempfile::TempDir;

/// Longest start, with all instances to read.
const START_MAX: Duration = Duration::from_secs(120);
/// Where it listens, and where it tells whether it is ready.
const PORTS: (u16, u16) = (16_443, 17_143);

/// A running gateway; ended when dropped.
pub(super) struct Gateway {
    pub(super) api: Api,
    pub(super) started_in: Duration,
    process: Process,
    _postgres: Postgres,
    _dir: TempDir,
}

impl Gateway {
    pub(super) async fn start(objects: u32, bin_dir: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("gwbench-").tempdir()?;
        let (postgres, url) = tokio::task::spawn_blocking(|| {
            let postgres = Postgres::ephemeral()?;
            let url = postgres.create_database()?;
            anyhow::Ok((postgres, url))
        })
        .await??;
        let ledger = Ledger::connect(LedgerConfig {
            url: url.clone(),
            connections_max: 1,
        })
        .await?;
        ledger.migrate().await?;
        postgres.open_service_logins()?;
        fill(&postgres, &url, objects)?;
        let ca = Ca::load_or_create(&dir.path().join("ca"))?;
        let service = service(dir.path(), bin_dir, &ca, &url)?;
        let began = Instant::now();
        let process = service.start()?;
        service.wait_ready(START_MAX)?;
        Ok(Self {
            api: client(dir.path(), &ca)?,
            started_in: began.elapsed(),
            process,
            _postgres: postgres,
            _dir: dir,
        })
    }

    /// Resident memory in megabytes.
    pub(super) fn resident(&self) -> Result<f64> {
        let bytes = self.process.resident().context("the gateway ended")?;
        #[allow(clippy::cast_precision_loss)]
        Ok(bytes as f64 / 1e6)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Err(error) = self.process.stop() {
            eprintln!("the gateway does not end: {error:#}");
        }
    }
}

fn service(dir: &Path, bin_dir: &Path, ca: &Ca, url: &str) -> Result<Service> {
    let served_as = ["127.0.0.1".to_owned()];
    let identity = ca.issue_files(
        "gateway",
        Subject {
            name: "gateway",
            organizations: &["api-gateway"],
            served_as: &served_as,
        },
    )?;
    let admin = format!("127.0.0.1:{}", PORTS.1);
    let config = json!({
        "common": {"identity": identity, "admin_bind": admin},
        "bind": format!("127.0.0.1:{}", PORTS.0),
        "database_url": url.replace("//postgres@", "//godwit_gateway@"),
        "peers": {"scheduler": [], "coordinator": [], "maintenance": []},
    });
    let path = dir.join("gateway.toml");
    std::fs::write(&path, toml::to_string(&config)?)?;
    for folder in ["logs", "pids"] {
        std::fs::create_dir_all(dir.join(folder))?;
    }
    Ok(Service {
        name: "api-gateway".to_owned(),
        program: bin_dir.join("godwit-api-gateway"),
        arguments: vec!["--config".to_owned(), path.display().to_string()],
        namespace: None,
        dir: dir.to_owned(),
        admin,
    })
}

fn client(dir: &Path, ca: &Ca) -> Result<Api> {
    let admin = ca.issue_files(
        "admin",
        Subject {
            name: "admin",
            organizations: &["system:masters"],
            served_as: &[],
        },
    )?;
    let authority = std::fs::read(dir.join("ca/ca.crt"))?;
    let (cert, key) = (std::fs::read(admin.cert)?, std::fs::read(admin.key)?);
    Api::at(
        &format!("https://127.0.0.1:{}", PORTS.0),
        &authority,
        (&cert, &key),
    )
}

/// Writes instances of about 1 KB, as a control plane leaves them.
fn fill(postgres: &Postgres, url: &str, objects: u32) -> Result<()> {
    let database = url.split('?').next().unwrap_or_default();
    let database = database.rsplit('/').next().unwrap_or_default();
    let statement = include_str!("instances.sql").replace(":objects", &objects.to_string());
    postgres.psql(database, &statement).map(drop)
}
