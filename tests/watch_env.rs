//! Gateways side by side over one Postgres, each in a runtime of its own, so that one can die.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use godwit_api_gateway::{Config, Gateway, PeerAddresses};
use godwit_ledger::{Ledger, LedgerConfig};
use godwit_runtime::{Context, Identity};
use godwit_testkit::api::Api as Client;
use godwit_testkit::certs::{Ca, Subject};
use godwit_testkit::postgres::Postgres;
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// The namespaces that the tests write to.
pub(crate) const SPACES: [&str; 3] = ["default", "blue", "green"];
/// Longest wait for the port of a gateway that was killed.
const PORT_MAX: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// A ledger and its gateways.
pub(crate) struct World {
    pub(crate) ledger: Ledger,
    pub(crate) url: String,
    pub(crate) gateways: Vec<Replica>,
    _dir: TempDir,
    /// Last, so that it goes last.
    pub(crate) postgres: Arc<Postgres>,
}

/// A gateway, at the same address in each of its lives.
pub(crate) struct Replica {
    pub(crate) client: Client,
    config: Config,
    runtime: Mutex<Option<Runtime>>,
    /// It can't know changes up to this revision: it began later.
    floor: AtomicU64,
}

impl World {
    /// A new ledger with this many gateways.
    pub(crate) async fn start(gateways: usize) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("gwwatch-").tempdir()?;
        let (postgres, url) = tokio::task::spawn_blocking(|| {
            let postgres = Postgres::ephemeral()?;
            let url = postgres.create_database()?;
            postgres.open_service_logins()?;
            anyhow::Ok((Arc::new(postgres), url))
        })
        .await??;
        let ledger = Ledger::connect(LedgerConfig {
            url: url.clone(),
            connections_max: 8,
        })
        .await?;
        let ca = Ca::load_or_create(&dir.path().join("ca"))?;
        let mut world = Self {
            ledger,
            url,
            gateways: vec![],
            _dir: dir,
            postgres,
        };
        for number in 0..gateways {
            let replica = world.gateway(&ca, number).await?;
            world.gateways.push(replica);
        }
        let mut connection = world.gateways[0].client.connect().await?;
        for space in &SPACES[1..] {
            let object = json!({"metadata": {"name": space}});
            connection.post("/api/v1/namespaces", &object).await?;
        }
        Ok(world)
    }

    async fn gateway(&self, ca: &Ca, number: usize) -> Result<Replica> {
        // No connection begins at this address, so none takes the port while the gateway is dead.
        let [high, low] = rand::random::<[u8; 2]>();
        let host = format!("127.{}.{low}.{}", high.clamp(1, 250), number + 2);
        let served_as = [host.clone()];
        let server = Subject {
            name: "gateway",
            organizations: &["api-gateway"],
            served_as: &served_as,
        };
        let admin = Subject {
            name: "admin",
            organizations: &["system:masters"],
            served_as: &[],
        };
        let identity = ca.issue_files(&format!("gateway-{number}"), server)?;
        let admin = ca.issue_files("admin", admin)?;
        let mut config = config(identity, (&host, &self.url))?;
        let (runtime, address) = serve(config.clone()).await?;
        config.bind = address;
        let floor = self.ledger.revision().await?;
        Ok(Replica {
            client: client(address, &admin)?,
            config,
            runtime: Mutex::new(Some(runtime)),
            floor: AtomicU64::new(floor.0),
        })
    }

    /// Kills a gateway and starts it again after `down`, at the same address.
    pub(crate) async fn restart(&self, gateway: usize, down: Duration) -> Result<()> {
        let replica = &self.gateways[gateway];
        replica.kill();
        sleep(down).await; // the outage
        let began = Instant::now();
        let runtime = loop {
            match serve(replica.config.clone()).await {
                Ok((runtime, _)) => break runtime,
                Err(error) if began.elapsed() > PORT_MAX => return Err(error),
                // The port may still be the dead one's, or its connection was killed, too.
                Err(_) => sleep(PAUSE).await,
            }
        };
        *replica.runtime.lock().unwrap() = Some(runtime);
        // Its own connection may be killed, too.
        let floor = godwit_ledger::retry(|| self.ledger.revision()).await?;
        replica.floor.store(floor.0, Ordering::Relaxed);
        Ok(())
    }

    /// The name of the database.
    pub(crate) fn database(&self) -> &str {
        let name = self.url.split('?').next().unwrap_or_default();
        name.rsplit('/').next().unwrap_or_default()
    }

    /// Runs a statement as the superuser.
    pub(crate) async fn psql(&self, statement: String) -> Result<String> {
        let (postgres, database) = (Arc::clone(&self.postgres), self.database().to_owned());
        tokio::task::spawn_blocking(move || postgres.psql(&database, &statement)).await?
    }
}

impl Replica {
    /// Revision from before which it can't know all changes.
    pub(crate) fn floor(&self) -> u64 {
        self.floor.load(Ordering::Relaxed)
    }

    /// Ends it at once, with every connection that it has.
    pub(crate) fn kill(&self) {
        // Until it is back nobody knows how far it will be.
        self.floor.store(u64::MAX, Ordering::Relaxed);
        if let Some(runtime) = self.runtime.lock().unwrap().take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

fn config(identity: Identity, (host, url): (&str, &str)) -> Result<Config> {
    Ok(Config {
        bind: format!("{host}:0").parse()?,
        tls: Some(identity),
        // With the rights that it has in production, and no more.
        database_url: url.replace("//postgres@", "//godwit_gateway@"),
        peers: PeerAddresses {
            scheduler: vec![],
            coordinator: vec![],
            maintenance: vec![],
        },
        common: godwit_runtime::config::Common {
            insecure: true,
            ..Default::default()
        },
        ..Config::default()
    })
}

async fn serve(config: Config) -> Result<(Runtime, SocketAddr)> {
    let context = Context {
        config,
        shutdown: CancellationToken::new(),
        metrics: Default::default(),
        readiness: Default::default(),
        steps: Default::default(),
    };
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let started = runtime.spawn(Gateway::start(context)).await;
    match started
        .context("start a gateway")
        .and_then(|started| started)
    {
        Ok(gateway) => Ok((runtime, gateway.address())),
        Err(error) => {
            // Its runtime can't be dropped in ours.
            runtime.shutdown_background();
            Err(error)
        }
    }
}

fn client(address: SocketAddr, admin: &Identity) -> Result<Client> {
    let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
    let (ca, cert, key) = (read(&admin.ca)?, read(&admin.cert)?, read(&admin.key)?);
    Client::at(&format!("https://{address}"), &ca, (&cert, &key))
}
