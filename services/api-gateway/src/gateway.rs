//! The service put together.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::middleware::from_fn_with_state;
use axum_server::{Handle, Server};
use godwit_apimachinery::{ApiServer, Authorizer, Parts, VersionInfo};
use godwit_ledger::{Ledger, LedgerConfig, LedgerError, NewObject, ObjectKey};
use godwit_rpc::{Channel, Credentials, client};
use godwit_runtime::admin::Readiness;
use godwit_runtime::metrics::Metrics;
use godwit_runtime::{Context, build};
use hyper_util::rt::TokioTimer;
use serde_json::json;
use socket2::SockRef;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::decompression::RequestDecompressionLayer;
use tracing::info;

use crate::actions;
use crate::aggregation::{Cluster, Delegating};
use crate::audit::{self, Trail};
use crate::auth::{Authenticator, Bearers, authenticate};
use crate::authorize;
use crate::config::Config;
use crate::doors::{self, Doors, Large};
use crate::facts::Facts;
use crate::feed::{self, Feed, Poke};
use crate::kinds::{self, resource};
use crate::limits::{Gate, Limits, admit, check_head, guard_body, millis};
use crate::newest::Newest;
use crate::observe::{Observer, observe};
use crate::peers::{Channels, Peers};
use crate::prune;
use crate::rbac;
use crate::retire;
use crate::review;
use crate::sizes;
use crate::store::LedgerStore;
use crate::tls::{self, Acceptor};
use crate::token_review;
use crate::watch_cache::WatchCache;

/// How often an HTTP/2 connection is asked whether its other end is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Bytes of a body that are taken before somebody reads it, for a stream and for a connection.
const WINDOWS: (u32, u32) = (128 << 10, 256 << 10);
/// Bytes of an answer that wait in a stream's buffer.
const SEND_BUFFER: usize = 64 << 10;
/// Bytes that the kernel keeps of each direction of a connection; it keeps double.
const SOCKET_BUFFER: usize = 256 << 10;
/// Smallest buffer that HTTP/1.1 is read with.
const HTTP1_BUFFER_MIN: usize = 8 << 10;
/// How long requests may take to end at a shutdown; watches are cut.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// How long the audit log may take to be written out at a shutdown.
const TRAIL_MAX: Duration = Duration::from_secs(5);

/// Runs the service until its shutdown is asked for.
///
/// # Errors
/// When it can't start; the text says why.
pub async fn run(context: Context<Config>) -> anyhow::Result<()> {
    let shutdown = context.shutdown.clone();
    let gateway = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        started = Gateway::start(context) => started?,
    };
    gateway.ended().await
}

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    server: JoinHandle<std::io::Result<()>>,
    /// Ends when all of the audit log is written.
    trail: JoinHandle<()>,
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
        let gate = Gate::start(&config.limits, &metrics);
        let cluster = cluster(&config, &shutdown).await?;
        let life = (&metrics, &shutdown);
        let shown = (identity, config.tls.is_none());
        let tls = tls::follow(shown, cluster.clone(), life).context("set up TLS")?;
        let acceptor = Acceptor::new(tls, Arc::clone(&gate));
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
        sizes::start(&ledger, &metrics, &shutdown);
        let bearers = Bearers::start(&config, &shutdown).context("set up tokens")?;
        let trail = (&metrics, shutdown.clone());
        let (trail, trail_ended) = Trail::start(&config.audit, ledger.clone(), trail)?;
        let peers = Peers::start(channels(&config, (&metrics, &shutdown))?);
        let store = Arc::new(LedgerStore {
            newest: Newest::new(ledger.clone()),
            ledger,
            cache,
            poke,
            peers,
        });
        let roles = rbac::settle_aggregated(&store).await;
        roles.map_err(|error| anyhow::anyhow!("put roles together: {error:?}"))?;
        tokio::spawn(rbac::keep_up(Arc::clone(&store), shutdown.clone()));
        let facts = Facts::new(store.cache.clone());
        let rules = authorize::Rules::new(facts.policies());
        let door = Door {
            bearers: Arc::new(bearers),
            authorizer: Arc::new(Delegating::new(rules, cluster.clone())),
            cluster,
            trail,
            readiness: readiness.clone(),
            gate,
        };
        let api = api(&config, store, &door)?;
        let router = router(&config, &api, &metrics, door);
        let retire = retire::run(Arc::clone(&api), facts);
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(retire));
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(api.collect()));
        let server = serve((listener, acceptor), router, (&config.limits, shutdown))?;
        info!(%address, "serving the API");
        Ok(Self {
            address,
            server,
            trail: trail_ended,
        })
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
        self.server.await.context("serve")?.context("serve")?;
        let written = tokio::time::timeout(TRAIL_MAX, self.trail).await;
        written
            .context("write out the audit log")?
            .context("write out the audit log")
    }
}

/// Serves until `shutdown`.
fn serve(
    (listener, acceptor): (TcpListener, Acceptor),
    router: Router,
    (limits, shutdown): (&Limits, CancellationToken),
) -> anyhow::Result<JoinHandle<std::io::Result<()>>> {
    let handle = Handle::new();
    let mut server = axum_server::from_tcp(listener)
        .context("serve")?
        .acceptor(acceptor)
        .handle(handle.clone());
    set_up_http(&mut server, limits);
    let server = server.first_request_timeout(millis(limits.first_request_ms));
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let server = tokio::spawn(server.serve(service));
    tokio::spawn(async move {
        shutdown.cancelled().await;
        handle.graceful_shutdown(Some(DRAIN_MAX));
    });
    Ok(server)
}

/// The limits that HTTP itself holds.
fn set_up_http(server: &mut Server<SocketAddr, Acceptor>, limits: &Limits) {
    let head = limits.head_buffer();
    let builder = server.http_builder();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(millis(limits.idle_ms))
        .max_headers(2 * limits.headers)
        .max_buf_size(head.max(HTTP1_BUFFER_MIN));
    builder
        .http2()
        .timer(TokioTimer::new())
        // A watcher whose host vanished says nothing; this finds out.
        .keep_alive_interval(KEEP_ALIVE)
        .max_concurrent_streams(limits.streams_per_connection)
        .max_header_list_size(u32::try_from(head).unwrap_or(u32::MAX))
        .max_send_buf_size(SEND_BUFFER)
        .initial_stream_window_size(WINDOWS.0)
        .initial_connection_window_size(WINDOWS.1);
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).with_context(|| format!("bind {address}"))?;
    // Each connection gets all this from the listener. The kernel's own buffers would grow to
    // several MiB, and would tell of a slow reader late; and the end of an answer must not wait
    // until the client's kernel acknowledges what went before, which it may do 40 ms later.
    let socket = SockRef::from(&listener);
    let prepared = socket
        .set_send_buffer_size(SOCKET_BUFFER)
        .and_then(|()| socket.set_recv_buffer_size(SOCKET_BUFFER))
        .and_then(|()| socket.set_tcp_nodelay(true));
    prepared.context("prepare the sockets")?;
    listener
        .set_nonblocking(true)
        .context("prepare the listener")?;
    Ok(listener)
}

/// The cluster that this server extends, if any.
async fn cluster(
    config: &Config,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Arc<Cluster>>> {
    let Some(config) = &config.aggregation else {
        return Ok(None);
    };
    let cluster = Cluster::start(config, shutdown).await;
    Ok(Some(cluster.context("set up aggregation")?))
}

async fn open_ledger(config: &Config) -> anyhow::Result<Ledger> {
    let database = LedgerConfig {
        url: config.database_url.clone(),
        connections_max: config.connections_max,
    };
    let ledger = Ledger::open(database).await.context("open the database")?;
    let room = godwit_ledger::retry(|| ledger.audit_prepare()).await;
    room.context("make room for the audit log")?;
    for name in kinds::PREDEFINED_NAMESPACES {
        let made = godwit_ledger::retry(|| make_namespace(&ledger, name)).await;
        made.with_context(|| format!("make namespace {name}"))?;
    }
    let made = godwit_ledger::retry(|| rbac::make_defaults(&ledger)).await;
    made.context("make the predefined roles")?;
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

fn channels(config: &Config, life: (&Metrics, &CancellationToken)) -> anyhow::Result<Channels> {
    let credentials = Credentials::of(&config.common, life)?;
    let connect = |addresses: &[String]| -> anyhow::Result<Vec<Channel>> {
        let channels = addresses
            .iter()
            .map(|address| client::connect(address, credentials.as_ref()));
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

/// What stands before and beside the API.
struct Door {
    bearers: Arc<Bearers>,
    cluster: Option<Arc<Cluster>>,
    authorizer: Arc<dyn Authorizer>,
    trail: Trail,
    readiness: Readiness,
    gate: Arc<Gate>,
}

/// Everything that is served as an API, declared.
fn api(config: &Config, store: Arc<LedgerStore>, door: &Door) -> anyhow::Result<Arc<ApiServer>> {
    let facts = Facts::new(store.cache.clone());
    let policies = facts.policies();
    let mut extras = review::extras(&policies, &door.authorizer);
    let version = version(&config.kubernetes_version)?;
    extras.push(token_review::extra(&door.bearers));
    extras.extend(actions::extras(&store, &version));
    let server = ApiServer::new(Parts {
        kinds: kinds::all(&facts),
        extras,
        store,
        authorizer: Arc::new(audit::Recorded(Arc::clone(&door.authorizer))),
        admission: Arc::new(kinds::Lifecycle { facts }),
        version,
        limits: config.limits.machinery(),
    });
    server.map_err(|why| anyhow::anyhow!("declare the API: {why}"))
}

fn router(config: &Config, api: &Arc<ApiServer>, metrics: &Metrics, door: Door) -> Router {
    let authenticator = Authenticator {
        bearers: door.bearers,
        cluster: door.cluster,
        authorizer: door.authorizer,
        anonymous_health: config.anonymous_health,
        anonymous: config.anonymous,
    };
    let doors = Doors {
        readiness: door.readiness,
        metrics: metrics.clone(),
        authorizer: api.authorizer(),
        documents: api.openapi_v3(),
    };
    // The last of these sees a request first.
    let gate = door.gate;
    api.router()
        .merge(doors::router(doors))
        .layer(from_fn_with_state(Arc::clone(&gate), guard_body))
        .layer(RequestDecompressionLayer::new())
        .layer(from_fn_with_state(Arc::clone(&gate), admit))
        .layer(
            CompressionLayer::new()
                .quality(CompressionLevel::Fastest)
                .compress_when(Large),
        )
        .layer(from_fn_with_state(Arc::new(authenticator), authenticate))
        .layer(from_fn_with_state(gate, check_head))
        .layer(from_fn_with_state(
            Observer::new(metrics, api.plurals()),
            observe,
        ))
        .layer(from_fn_with_state(door.trail, audit::audit))
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
