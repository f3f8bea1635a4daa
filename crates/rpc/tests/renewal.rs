//! Certificates and authorities that change under services that talk to each other.

#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use godwit_rpc::maintenance::v1::maintenance_client::MaintenanceClient;
use godwit_rpc::maintenance::v1::maintenance_server::{Maintenance, MaintenanceServer};
use godwit_rpc::maintenance::v1::{PokeRequest, PokeResponse};
use godwit_rpc::peer::{self, Role};
use godwit_rpc::server::{ServerParts, serve_on};
use godwit_rpc::{Channel, Credentials, Request, Response, Routes, Status, client};
use godwit_runtime::Identity;
use godwit_runtime::metrics::Metrics;
use godwit_testkit::certs::{Ca, Rotate, Step, Subject, rotate};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Longest wait for files to be read.
const READ_MAX: Duration = Duration::from_secs(20);
/// Between two calls of those who talk all the time.
const PAUSE: Duration = Duration::from_millis(50);
/// How long they talk after each step.
const TALK: Duration = Duration::from_millis(500);
/// Longest call.
const CALL_MAX: Duration = Duration::from_secs(10);

/// Who called, by the word that they sent: from where, and by which certificate.
type Callers = Arc<Mutex<Vec<(String, SocketAddr, String)>>>;

#[derive(Clone, Default)]
struct Service(Callers);

#[godwit_rpc::async_trait]
impl Maintenance for Service {
    async fn poke(&self, request: Request<PokeRequest>) -> Result<Response<PokeResponse>, Status> {
        peer::require(&request, &[Role::ApiGateway])?;
        let certificates = request.peer_certs().unwrap();
        let caller = (
            request.get_ref().node.clone(),
            request.remote_addr().unwrap(),
            serial(&certificates[0]),
        );
        self.0.lock().unwrap().push(caller);
        Ok(Response::new(PokeResponse {}))
    }
}

/// A service with files of its own, which are copies of what is in the directory of the authority.
struct Party {
    name: &'static str,
    dir: TempDir,
    address: SocketAddr,
    credentials: Credentials,
    callers: Callers,
    metrics: Metrics,
    shutdown: CancellationToken,
}

impl Party {
    async fn start(name: &'static str, authority: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (service, shutdown) = (Service::default(), CancellationToken::new());
        let metrics = Metrics::default();
        deploy(authority, name, dir.path());
        let credentials =
            Credentials::follow(&files(name, dir.path()), (&metrics, &shutdown)).unwrap();
        let party = Self {
            name,
            address: listener.local_addr().unwrap(),
            callers: Arc::clone(&service.0),
            dir,
            credentials: credentials.clone(),
            metrics: metrics.clone(),
            shutdown: shutdown.clone(),
        };
        let mut routes = Routes::builder();
        routes.add_service(MaintenanceServer::new(service));
        let parts = ServerParts {
            bind: party.address,
            credentials: Some(credentials),
            routes: routes.routes(),
            metrics,
            shutdown,
        };
        tokio::spawn(async move { serve_on(listener, parts).await.unwrap() });
        party
    }

    /// Copies what is new, and waits until the service has read it.
    async fn renew(&self, authority: &Path) {
        let before = self.metric("godwit_certificate_read_seconds");
        deploy(authority, self.name, self.dir.path());
        eventually("the files to be read", || {
            self.metric("godwit_certificate_read_seconds") > before
        })
        .await;
    }

    /// A metric about its certificate.
    fn metric(&self, name: &str) -> i64 {
        let file = files(self.name, self.dir.path()).cert;
        let begin = format!("{name}{{file=\"{}\"}} ", file.display());
        let text = self.metrics.text().unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&begin));
        line.unwrap_or_else(|| panic!("{begin} is not in\n{text}"))
            .parse()
            .unwrap()
    }

    fn channel_to(&self, other: SocketAddr) -> Channel {
        client::connect(&format!("https://{other}"), Some(&self.credentials)).unwrap()
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn files(name: &str, dir: &Path) -> Identity {
    Identity {
        cert: dir.join(format!("{name}.crt")),
        key: dir.join(format!("{name}.key")),
        ca: dir.join("ca.crt"),
    }
}

fn deploy(from: &Path, name: &str, to: &Path) {
    for file in [
        "ca.crt".to_owned(),
        format!("{name}.crt"),
        format!("{name}.key"),
    ] {
        std::fs::copy(from.join(&file), to.join(&file)).unwrap();
    }
}

/// An authority with certificates for two services.
fn authority() -> (TempDir, Ca) {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::load_or_create(dir.path()).unwrap();
    for name in ["a", "b"] {
        ca.issue_files(name, subject(name)).unwrap();
    }
    (dir, ca)
}

fn subject(name: &str) -> Subject<'_> {
    static LOOPBACK: std::sync::LazyLock<Vec<String>> =
        std::sync::LazyLock::new(|| vec!["127.0.0.1".to_owned()]);
    Subject {
        name,
        organizations: &["api-gateway"],
        served_as: &LOOPBACK,
    }
}

fn step(dir: &Path, authority: Option<Step>) {
    let wanted = Rotate {
        dir: dir.to_owned(),
        within: 0,
        all: authority.is_none(),
        authority,
    };
    assert!(!rotate(&wanted).unwrap().is_empty());
}

fn serial(der: &[u8]) -> String {
    let (_, certificate) = X509Certificate::from_der(der).unwrap();
    certificate.raw_serial_as_string()
}

fn serial_in(path: &Path) -> String {
    serial(&CertificateDer::from_pem_file(path).unwrap())
}

/// The serial number of what a server shows in a new handshake.
async fn shown(server: SocketAddr, caller: &Identity) -> io::Result<String> {
    let mut roots = rustls::RootCertStore::empty();
    for authority in CertificateDer::pem_file_iter(&caller.ca).unwrap() {
        roots.add(authority.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_file(&caller.cert).unwrap()],
            PrivateKeyDer::from_pem_file(&caller.key).unwrap(),
        )
        .unwrap();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(server).await?;
    let stream = tls.connect(ServerName::from(server.ip()), stream).await?;
    Ok(serial(&stream.get_ref().1.peer_certificates().unwrap()[0]))
}

async fn poke(channel: Channel, word: &str) -> Result<(), Status> {
    let message = PokeRequest {
        node: word.to_owned(),
    };
    let request = client::within(CALL_MAX, message);
    let poked = MaintenanceClient::new(channel).poke(request).await;
    poked.map(drop)
}

async fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + READ_MAX;
    while !is_true() {
        assert!(tokio::time::Instant::now() < end, "waited for {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

#[tokio::test]
async fn a_new_handshake_shows_the_new_certificate_and_an_old_connection_lives() {
    let (authority, _) = authority();
    let server = Party::start("a", authority.path()).await;
    let caller = files("b", authority.path());
    let old = shown(server.address, &caller).await.unwrap();
    assert_eq!(old, serial_in(&authority.path().join("a.crt")));
    let credentials = Credentials::read(&caller).unwrap();
    let address = format!("https://{}", server.address);
    let open = client::connect(&address, Some(&credentials)).unwrap();
    poke(open.clone(), "open").await.unwrap();

    step(authority.path(), None);
    server.renew(authority.path()).await;
    let new = shown(server.address, &files("b", authority.path())).await;
    assert_eq!(new.unwrap(), serial_in(&authority.path().join("a.crt")));
    assert_ne!(serial_in(&authority.path().join("a.crt")), old);
    poke(open, "open").await.unwrap();
    let callers = server.callers.lock().unwrap();
    assert_eq!(callers[0], callers[1], "the same connection");
}

/// What it is, certificate and key, and what the log says of it.
fn unusable(ca: &Ca, cert: &str, key: &str) -> [(&'static str, String, String, &'static str); 4] {
    let foreign = tempfile::tempdir().unwrap();
    let stranger = Ca::load_or_create(foreign.path()).unwrap();
    let stranger = stranger.issue(subject("a")).unwrap();
    let expired = ca.issue_for(subject("a"), -1).unwrap();
    let another = ca.issue(subject("a")).unwrap().key;
    let (nothing, pairless) = ("nonsense".to_owned(), cert.to_owned());
    let none = "there is no certificate in its file";
    let foreign = "none of the authorities'";
    [
        ("no certificate", nothing, key.to_owned(), none),
        ("another's key", pairless, another, "don't go together"),
        ("over", expired.cert, expired.key, "the certificate is over"),
        ("another authority's", stranger.cert, stranger.key, foreign),
    ]
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_and_told_and_the_last_good_one_is_shown() {
    let log = Log::default();
    let writer = log.clone();
    // The only subscriber of this test binary.
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let (authority, ca) = authority();
    let server = Party::start("a", authority.path()).await;
    let caller = files("b", authority.path());
    let own = files("a", server.dir.path());
    let good = serial_in(&own.cert);
    let until = server.metric("godwit_certificate_not_after_seconds");
    let good_key = std::fs::read_to_string(&own.key).unwrap();
    let good_cert = std::fs::read_to_string(&own.cert).unwrap();
    for (what, cert, key, said) in unusable(&ca, &good_cert, &good_key) {
        std::fs::write(&own.cert, cert).unwrap();
        std::fs::write(&own.key, key).unwrap();
        eventually(what, || server.metric("godwit_certificate_refused") == 1).await;
        assert_eq!(
            shown(server.address, &caller).await.unwrap(),
            good,
            "{what}"
        );
        assert_eq!(server.metric("godwit_certificate_not_after_seconds"), until);
        let line = format!("stays in force path={}", own.cert.display());
        let told = log.lines().into_iter().find(|one| one.contains(said));
        let told =
            told.unwrap_or_else(|| panic!("{what} is not told:\n{}", log.lines().join("\n")));
        assert!(told.contains("WARN") && told.contains(&line), "{told}");
        std::fs::write(&own.cert, &good_cert).unwrap();
        std::fs::write(&own.key, &good_key).unwrap();
        eventually("the good one", || {
            server.metric("godwit_certificate_refused") == 0
        })
        .await;
    }
    std::fs::remove_file(&own.key).unwrap();
    eventually("no key", || {
        server.metric("godwit_certificate_refused") == 1
    })
    .await;
    assert_eq!(shown(server.address, &caller).await.unwrap(), good);
    assert!(!log.lines().join("\n").contains("PRIVATE KEY"));
}

#[tokio::test]
async fn two_services_talk_all_through_a_change_of_their_authority() {
    let (authority, _) = authority();
    let dir = authority.path();
    let (a, b) = (Party::start("a", dir).await, Party::start("b", dir).await);
    let old = tempfile::tempdir().unwrap();
    deploy(dir, "a", old.path());
    let talkers = [Talker::start(&a, &b), Talker::start(&b, &a)];
    for one in [Step::TrustBoth, Step::Switch, Step::DropOld] {
        step(dir, Some(one));
        for party in [&a, &b] {
            party.renew(dir).await;
            tokio::time::sleep(TALK).await; // both talk with one of them renewed
        }
    }
    for talker in talkers {
        talker.ended().await;
    }
    for party in [&a, &b] {
        let callers = party.callers.lock().unwrap();
        let of = |word: &'static str| callers.iter().filter(move |(said, ..)| said == word);
        let lasting: BTreeSet<_> = of("lasting").map(|(_, from, by)| (from, by)).collect();
        assert_eq!(lasting.len(), 1, "one connection: {lasting:?}");
        let fresh: BTreeSet<_> = of("fresh").map(|(_, _, by)| by).collect();
        assert_eq!(fresh.len(), 2, "an old and a new certificate: {fresh:?}");
        assert!(of("fresh").count() > 20);
    }
    // Who still has a certificate of the old authority isn't let in any more.
    let mut left = files("a", old.path());
    left.ca = dir.join("ca.crt");
    let left = Credentials::read(&left).unwrap();
    let channel = client::connect(&format!("https://{}", b.address), Some(&left)).unwrap();
    assert!(poke(channel, "left").await.is_err());
    let callers = b.callers.lock().unwrap();
    assert!(callers.iter().all(|(said, ..)| said != "left"));
}

#[tokio::test]
async fn who_has_certificates_speaks_to_nobody_in_the_clear() {
    let (authority, _) = authority();
    let shown = Credentials::read(&files("a", authority.path())).unwrap();
    assert!(client::connect("http://127.0.0.1:1", Some(&shown)).is_err());
    assert!(client::connect("https://127.0.0.1:1", None).is_err());
}

/// Calls all the time, over a connection that lasts and over new ones.
struct Talker {
    stop: CancellationToken,
    task: JoinHandle<Result<(), Status>>,
}

impl Talker {
    fn start(from: &Party, to: &Party) -> Self {
        let stop = CancellationToken::new();
        let (lasting, credentials) = (from.channel_to(to.address), from.credentials.clone());
        let (address, stopped) = (format!("https://{}", to.address), stop.clone());
        let task = tokio::spawn(async move {
            while !stopped.is_cancelled() {
                poke(lasting.clone(), "lasting").await?;
                let fresh = client::connect(&address, Some(&credentials)).unwrap();
                poke(fresh, "fresh").await?;
                tokio::time::sleep(PAUSE).await;
            }
            Ok(())
        });
        Self { stop, task }
    }

    async fn ended(self) {
        self.stop.cancel();
        self.task.await.unwrap().expect("every call is answered");
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
