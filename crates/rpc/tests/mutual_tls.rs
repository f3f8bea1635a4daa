//! Who may call whom, over real TLS on loopback.

#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use godwit_rpc::maintenance::v1::maintenance_client::MaintenanceClient;
use godwit_rpc::maintenance::v1::maintenance_server::{Maintenance, MaintenanceServer};
use godwit_rpc::maintenance::v1::{PokeRequest, PokeResponse};
use godwit_rpc::peer::{self, Peer, Role};
use godwit_rpc::server::{ServerParts, serve_on};
use godwit_rpc::{Channel, Code, Credentials, Request, Response, Routes, Status, client};
use godwit_runtime::metrics::Metrics;
use godwit_runtime::{Identity, telemetry};
use godwit_testkit::certs::{Ca, Subject};
use opentelemetry::trace::TracerProvider;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tracing::Instrument;
use tracing_subscriber::layer::SubscriberExt;

/// Makes the service take its time.
const SLOW: &str = "slow";

/// Lets a gateway call, and any agent for its own node.
#[derive(Clone, Default)]
struct Service {
    callers: Arc<Mutex<Vec<Peer>>>,
    traces: Arc<Mutex<Vec<String>>>,
}

#[godwit_rpc::async_trait]
impl Maintenance for Service {
    async fn poke(&self, request: Request<PokeRequest>) -> Result<Response<PokeResponse>, Status> {
        let peer = peer::require(&request, &[Role::ApiGateway, Role::NodeAgent])?;
        let node = request.into_inner().node;
        peer.speaks_for(&node)?;
        self.callers.lock().unwrap().push(peer);
        self.traces.lock().unwrap().push(telemetry::trace_context());
        if node == SLOW {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        Ok(Response::new(PokeResponse {}))
    }
}

struct Running {
    address: SocketAddr,
    service: Service,
    shutdown: CancellationToken,
    ended: JoinHandle<()>,
}

async fn start(identity: Option<Identity>) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (service, shutdown) = (Service::default(), CancellationToken::new());
    let mut routes = Routes::builder();
    routes.add_service(MaintenanceServer::new(service.clone()));
    let metrics = Metrics::default();
    let credentials = identity.map(|own| Credentials::follow(&own, (&metrics, &shutdown)).unwrap());
    let parts = ServerParts {
        metrics: metrics.clone(),
        bind: address,
        credentials,
        routes: routes.routes(),
        shutdown: shutdown.clone(),
    };
    let ended = tokio::spawn(async move { serve_on(listener, parts).await.unwrap() });
    Running {
        address,
        service,
        shutdown,
        ended,
    }
}

fn identity(dir: &Path, role: &str, name: &str, served_as: &[&str]) -> Identity {
    let served_as: Vec<String> = served_as.iter().map(ToString::to_string).collect();
    let subject = Subject {
        name,
        organizations: &[role],
        served_as: &served_as,
    };
    let ca = Ca::load_or_create(dir).unwrap();
    ca.issue_files(&format!("{role}-{name}"), subject).unwrap()
}

fn server_identity(dir: &Path) -> Identity {
    identity(dir, "maintenance-service", "m", &["127.0.0.1"])
}

fn connected(server: &Running, caller: &Identity) -> Channel {
    let shown = Credentials::read(caller).unwrap();
    client::connect(&format!("https://{}", server.address), Some(&shown)).unwrap()
}

async fn poke(server: &Running, caller: &Identity, node: &str) -> Result<(), Status> {
    let channel = connected(server, caller);
    let message = PokeRequest {
        node: node.to_owned(),
    };
    let request = client::within(Duration::from_secs(10), message);
    MaintenanceClient::new(channel)
        .poke(request)
        .await
        .map(drop)
}

#[tokio::test]
async fn a_caller_of_the_right_role_passes_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(Some(server_identity(dir.path()))).await;
    let caller = identity(dir.path(), "api-gateway", "gateway-7", &[]);
    poke(&server, &caller, "worker1").await.unwrap();
    let expected = Peer {
        role: Role::ApiGateway,
        name: "gateway-7".to_owned(),
    };
    assert_eq!(*server.service.callers.lock().unwrap(), [expected]);
}

#[tokio::test]
async fn a_caller_of_the_wrong_role_is_denied() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(Some(server_identity(dir.path()))).await;
    for role in ["scheduler", "admin", "system:masters"] {
        let caller = identity(dir.path(), role, "x", &[]);
        let denied = poke(&server, &caller, "worker1").await.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied, "{role}: {denied}");
    }
    assert!(server.service.callers.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_agent_speaks_only_for_its_own_node() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(Some(server_identity(dir.path()))).await;
    let agent = identity(dir.path(), "node-agent", "worker1", &[]);
    poke(&server, &agent, "worker1").await.unwrap();
    let denied = poke(&server, &agent, "worker2").await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied, "{denied}");
}

#[tokio::test]
async fn a_caller_without_certificate_or_of_another_authority_is_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = start(Some(server_identity(dir.path()))).await;
    let authority = Ca::load_or_create(dir.path()).unwrap();
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.cert()));
    let endpoint = Endpoint::from_shared(format!("https://{}", server.address)).unwrap();
    let channel = endpoint.tls_config(tls).unwrap().connect_lazy();
    let refused = MaintenanceClient::new(channel)
        .poke(PokeRequest::default())
        .await;
    assert_unreached(&refused.unwrap_err());

    let mut stranger = identity(other.path(), "api-gateway", "x", &[]);
    stranger.ca = dir.path().join("ca.crt");
    let refused = poke(&server, &stranger, "worker1").await.unwrap_err();
    assert_unreached(&refused);
    assert!(server.service.callers.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_caller_whose_certificate_is_over_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(Some(server_identity(dir.path()))).await;
    let subject = Subject {
        name: "late",
        organizations: &["api-gateway"],
        served_as: &[],
    };
    let ca = Ca::load_or_create(dir.path()).unwrap();
    let late = ca.issue_files_for("late", subject, -1).unwrap();
    let refused = poke(&server, &late, "worker1").await.unwrap_err();
    assert_unreached(&refused);
    let good = ca.issue_files_for("late", subject, 1).unwrap();
    poke(&server, &good, "worker1").await.unwrap();
    assert_eq!(server.service.callers.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_server_whose_certificate_is_over_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let served_as = ["127.0.0.1".to_owned()];
    let subject = Subject {
        name: "m",
        organizations: &["maintenance-service"],
        served_as: &served_as,
    };
    let ca = Ca::load_or_create(dir.path()).unwrap();
    let server = start(Some(ca.issue_files_for("m", subject, -1).unwrap())).await;
    let caller = identity(dir.path(), "api-gateway", "g", &[]);
    let refused = poke(&server, &caller, "worker1").await.unwrap_err();
    assert_unreached(&refused);
    assert!(server.service.callers.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_server_that_is_not_the_one_asked_for_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = identity(
        dir.path(),
        "maintenance-service",
        "m",
        &["10.77.0.1", "m.lab"],
    );
    let server = start(Some(elsewhere)).await;
    let caller = identity(dir.path(), "api-gateway", "g", &[]);
    let refused = poke(&server, &caller, "worker1").await.unwrap_err();
    assert_unreached(&refused);
    assert!(server.service.callers.lock().unwrap().is_empty());
}

#[tokio::test]
async fn without_tls_everybody_is_nobody_in_particular() {
    let server = start(None).await;
    let channel = client::connect(&format!("http://{}", server.address), None).unwrap();
    client::warm(channel.clone()).await.unwrap();
    MaintenanceClient::new(channel)
        .poke(PokeRequest::default())
        .await
        .unwrap();
    assert_eq!(
        server.service.callers.lock().unwrap()[0].role,
        Role::Insecure
    );
}

#[tokio::test]
async fn a_deadline_ends_a_call_and_a_shutdown_does_not_wait_for_slow_ones() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(Some(server_identity(dir.path()))).await;
    let caller = identity(dir.path(), "api-gateway", "g", &[]);
    let mut client = MaintenanceClient::new(connected(&server, &caller));
    let slow = PokeRequest { node: SLOW.into() };
    client.poke(PokeRequest::default()).await.unwrap();
    let late = client
        .poke(client::within(Duration::from_millis(500), slow.clone()))
        .await;
    let code = late.unwrap_err().code();
    assert!(
        matches!(code, Code::DeadlineExceeded | Code::Cancelled),
        "{code:?}"
    );

    let before = server.service.callers.lock().unwrap().len();
    let call = tokio::spawn(async move { client.poke(slow).await });
    while server.service.callers.lock().unwrap().len() == before {
        assert!(!call.is_finished(), "the call never arrived");
        tokio::time::sleep(Duration::from_millis(5)).await; // poll
    }
    server.shutdown.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(4), server.ended).await;
    ended
        .expect("the server ends although a call goes on")
        .unwrap();
    call.abort();
}

#[tokio::test]
async fn a_call_carries_its_callers_trace() {
    let provider = opentelemetry_sdk::trace::SdkTracerProvider::default();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    // The only subscriber of this test binary; the other tests trace nothing.
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer)).unwrap();
    let server = start(None).await;
    let channel = client::connect(&format!("http://{}", server.address), None).unwrap();
    let mut client = MaintenanceClient::new(channel);
    let span = tracing::info_span!("migrate");
    let mine = span.in_scope(telemetry::trace_context);
    client
        .poke(PokeRequest::default())
        .instrument(span)
        .await
        .unwrap();
    client.poke(PokeRequest::default()).await.unwrap();

    let traces = server.service.traces.lock().unwrap().clone();
    let parts = |context: &str| context.split('-').map(str::to_owned).collect::<Vec<_>>();
    let (mine, theirs) = (parts(&mine), parts(&traces[0]));
    assert_eq!(mine[1], theirs[1], "one trace");
    assert_ne!(mine[2], theirs[2], "a span of its own");
    assert_eq!(traces[1], "", "no trace outside of one");
}

/// In TLS 1.3 the client has finished when the server refuses its certificate, so that the refusal
/// may come as a broken connection.
fn assert_unreached(refusal: &Status) {
    let unreached = matches!(refusal.code(), Code::Unavailable | Code::Unknown);
    assert!(unreached, "{refusal}");
}
