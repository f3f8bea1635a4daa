//! The service put together.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum_server::Handle;
use godwit_apimachinery::{ApiServer, Limits, Parts, VersionInfo};
use godwit_ledger::{Ledger, LedgerConfig, LedgerError, NewObject, ObjectKey};
use godwit_rpc::{Channel, client};
use godwit_runtime::admin::Readiness;
use godwit_runtime::metrics::Metrics;
use godwit_runtime::{Context, build};
use hyper_util::rt::TokioTimer;
use serde_json::json;
use tokio::task::JoinHandle;
use tracing::info;

use crate::actions;
use crate::auth::{Authenticator, Tokens, authenticate};
use crate::authorize;
use crate::config::Config;
use crate::facts::Facts;
use crate::feed::{self, Feed, Poke};
use crate::kinds::{self, resource};
use crate::observe::{Observer, observe};
use crate::peers::{Channels, Peers};
use crate::prune;
use crate::review;
use crate::store::LedgerStore;
use crate::tls::{self, Acceptor};
use crate::watch_cache::WatchCache;

/// How often an HTTP/2 connection is asked whether its other end is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long requests may take to end at a shutdown; watches are cut.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Runs the service until its shutdown is asked for.
///
/// # Errors
/// When it can't start; the text says why.
pub async fn run(context: Context<Config>) -> anyhow::Result<()> {
    Gateway::start(context).await?.ended().await
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    server: JoinHandle<std::io::Result<()>>,
}

impl Gateway {
    /// Connects, fills the watch cache, and serves.
    ///
    /// # Errors
    /// When certificates, tokens, database or address can't be used.
    pub async fn start(context: Context<Config>) -> anyhow::Result<Self> {
        let Context {
            config,
            shutdown,
            metrics,
            readiness,
            ..
        } = context;
        readiness.set(feed::READY, false);
        let identity = config.tls.as_ref().or(config.common.identity.as_ref());
        let identity = identity.context("tls (or common.identity) is missing")?;
        let acceptor = Acceptor::new(tls::server_config(identity).context("set up TLS")?);
        let listener = bind(config.bind)?;
        let address = listener.local_addr().context("read the address")?;
        let ledger = open_ledger(&config).await?;
        let cache = WatchCache::new();
        let filled = feed::fill(&ledger, &cache).await;
        let feed = Feed {
            mark: filled.context("fill the watch cache")?,
            ledger: ledger.clone(),
            cache: cache.clone(),
        };
        let poke = Poke::default();
        let life = (readiness.clone(), shutdown.clone());
        tokio::spawn(feed::follow(feed, poke.clone(), life));
        tokio::spawn(prune::run(ledger.clone(), shutdown.clone()));
        let peers = Peers::start(channels(&config)?);
        let store = LedgerStore {
            ledger,
            cache,
            poke,
            peers,
        };
        let router = router(&config, store, &metrics, readiness.clone())?;
        let handle = Handle::new();
        let mut server = axum_server::from_tcp(listener)
            .context("serve")?
            .acceptor(acceptor)
            .handle(handle.clone());
        // A watcher whose host vanished says nothing; this finds out.
        let mut http2 = server.http_builder().http2();
        http2
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE);
        let server = server.serve(router.into_make_service());
        let server = tokio::spawn(server);
        tokio::spawn(async move {
            shutdown.cancelled().await;
            handle.graceful_shutdown(Some(DRAIN_MAX));
        });
        info!(%address, "serving the API");
        Ok(Self { address, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resolves when it has ended.
    ///
    /// # Errors
    /// When serving broke down.
    pub async fn ended(self) -> anyhow::Result<()> {
        self.server.await.context("serve")?.context("serve")
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).with_context(|| format!("bind {address}"))?;
    listener
        .set_nonblocking(true)
        .context("prepare the listener")?;
    Ok(listener)
}

async fn open_ledger(config: &Config) -> anyhow::Result<Ledger> {
    let connect = || {
        Ledger::connect(LedgerConfig {
            url: config.database_url.clone(),
            connections_max: config.connections_max,
        })
    };
    // The database may be starting just as we are.
    let ledger = godwit_ledger::retry(connect)
        .await
        .context("connect to the database")?;
    ledger.migrate().await.context("migrate the database")?;
    for name in kinds::PREDEFINED_NAMESPACES {
        let made = godwit_ledger::retry(|| make_namespace(&ledger, name)).await;
        made.with_context(|| format!("make namespace {name}"))?;
    }
    Ok(ledger)
}

async fn make_namespace(ledger: &Ledger, name: &str) -> Result<(), LedgerError> {
    let key = ObjectKey::new(resource::NAMESPACES, "", name);
    if ledger.get(&key).await?.is_some() {
        return Ok(());
    }
    let mut object = json!({"metadata": {"name": name}});
    kinds::complete_namespace(&mut object);
    let new = NewObject {
        key,
        uid: None,
        metadata: json!({"labels": object["metadata"]["labels"]}),
        body: json!({"spec": object["spec"]}),
        status: Some(object["status"].clone()),
    };
    let mut tx = ledger.begin().await?;
    match tx.create(new).await {
        Ok(_) => match tx.commit().await {
            // Tried again it finds out.
            Err(LedgerError::Unknown(why)) => Err(LedgerError::Unavailable(why)),
            committed => committed.map(drop),
        },
        // Another replica was faster.
        Err(LedgerError::AlreadyExists) => Ok(()),
        Err(error) => Err(error),
    }
}

fn channels(config: &Config) -> anyhow::Result<Channels> {
    let identity = config.common.identity()?;
    let connect = |addresses: &[String]| -> anyhow::Result<Vec<Channel>> {
        let channels = addresses
            .iter()
            .map(|address| client::connect(address, identity));
        channels
            .collect::<Result<_, _>>()
            .context("prepare connections to peers")
    };
    Ok(Channels {
        scheduler: connect(&config.peers.scheduler)?,
        coordinator: connect(&config.peers.coordinator)?,
        maintenance: connect(&config.peers.maintenance)?,
    })
}

fn router(
    config: &Config,
    store: LedgerStore,
    metrics: &Metrics,
    readiness: Readiness,
) -> anyhow::Result<Router> {
    let facts = Facts::new(store.cache.clone());
    let kinds = kinds::all(&facts);
    let resources: HashSet<&'static str> = kinds.iter().map(|kind| kind.plural).collect();
    let store = Arc::new(store);
    let mut extras = review::extras();
    let version = version(&config.kubernetes_version)?;
    extras.extend(actions::extras(&store, &version));
    let server = ApiServer::new(Parts {
        kinds,
        extras,
        store,
        authorizer: Arc::new(authorize::Rules),
        admission: Arc::new(kinds::Lifecycle { facts }),
        version,
        limits: Limits::default(),
    });
    let server = server.map_err(|why| anyhow::anyhow!("declare the API: {why}"))?;
    let tokens = match &config.token_file {
        Some(path) => Tokens::load(path)?,
        None => Tokens::default(),
    };
    let authenticator = Authenticator {
        tokens,
        anonymous_health: config.anonymous_health,
    };
    let health = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .with_state(readiness);
    Ok(server
        .router()
        .merge(health)
        .layer(from_fn_with_state(Arc::new(authenticator), authenticate))
        .layer(from_fn_with_state(
            Observer::new(metrics, resources),
            observe,
        )))
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    let missing = readiness.missing();
    match missing.is_empty() {
        true => "ok".into_response(),
        false => {
            let text = format!("not ready: {}\n", missing.join(", "));
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

/// What `kubectl version` shows: the version whose API this is, and our own behind the plus.
fn version(kubernetes: &str) -> anyhow::Result<VersionInfo> {
    let mut numbers = kubernetes.split('.');
    let (Some(major), Some(minor), Some(_), None) = (
        numbers.next(),
        numbers.next(),
        numbers.next(),
        numbers.next(),
    ) else {
        anyhow::bail!("kubernetes_version {kubernetes:?} is not MAJOR.MINOR.PATCH");
    };
    Ok(VersionInfo {
        major: major.to_owned(),
        minor: minor.to_owned(),
        git_version: format!("v{kubernetes}+godwit.{}", build::VERSION),
        git_commit: build::COMMIT.to_owned(),
        build_date: "1970-01-01T00:00:00Z".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_reads_as_the_kubernetes_it_speaks() {
        let version = version("1.32.0").unwrap();
        assert_eq!(
            (version.major.as_str(), version.minor.as_str()),
            ("1", "32")
        );
        assert!(version.git_version.starts_with("v1.32.0+godwit."));
        assert!(super::version("1.32").is_err());
    }
}
