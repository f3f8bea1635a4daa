//! What an attacker would try at the gateway's door, and what the others notice of it.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use godwit_testkit::api::{Api as Client, Method};
use godwit_testkit::certs::{Ca, Subject};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::alone::alone;
use crate::api_env::Api;
use crate::api_wire::until;
use crate::lab_suite::say;

const NAMESPACES: &str = "/api/v1/namespaces";
const MACHINES: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Longest wait for anything.
const SOON: Duration = Duration::from_secs(20);
/// How long attackers are at it.
const ATTACK: Duration = Duration::from_secs(4);

fn subject<'a>(name: &'a str, groups: &'a [&'a str]) -> Subject<'a> {
    Subject {
        name,
        organizations: groups,
        served_as: &[],
    }
}

/// A client with a certificate of `ca`, good for so many days.
fn client(api: &Api, ca: &Ca, subject: Subject<'_>, days: i64) -> Result<Client> {
    let pem = ca.issue_for(subject, days)?;
    let authority = std::fs::read(api.identity_of("any", "any")?.ca)?;
    Client::at(
        &api.address,
        &authority,
        (pem.cert.as_bytes(), pem.key.as_bytes()),
    )
}

async fn status(client: &Client, path: &str) -> Result<u16> {
    let mut connection = client.connect().await?;
    Ok(connection.call(Method::GET, path, None).await?.status)
}

#[tokio::test]
async fn who_has_nothing_good_to_show_gets_no_answer_or_is_recorded() -> Result<()> {
    let api = Api::start().await?;
    let other = tempfile::tempdir()?;
    let stranger = Ca::load_or_create(other.path())?;
    let own = Ca::load(
        api.identity_of("ada", "system:masters")?
            .ca
            .parent()
            .context("a folder")?,
    )?;
    let masters = subject("ada", &["system:masters"]);

    let of_another = client(&api, &stranger, masters, 1)?;
    assert!(
        status(&of_another, NAMESPACES).await.is_err(),
        "another authority"
    );
    let over = client(&api, &own, masters, -1)?;
    assert!(
        status(&over, NAMESPACES).await.is_err(),
        "a certificate that is over"
    );
    assert_eq!(
        status(&client(&api, &own, masters, 1)?, NAMESPACES).await?,
        200
    );
    until(&api, "apiserver_tls_handshake_errors_total", |count| {
        count >= 2.0
    })
    .await?;

    let mut clear = TcpStream::connect(api.address.trim_start_matches("https://")).await?;
    clear
        .write_all(b"GET /version HTTP/1.1\r\nhost: godwit\r\n\r\n")
        .await?;
    let mut heard = vec![];
    // A reset is an answer as good as an end.
    let _ = timeout(SOON, clear.read_to_end(&mut heard)).await?;
    let heard = String::from_utf8_lossy(&heard);
    assert!(!heard.contains("HTTP/"), "{heard}");

    // These speak TLS, are refused by their name, and are in the audit log.
    let agent = client(&api, &own, subject("worker1", &["node-agent"]), 1)?;
    assert_eq!(status(&agent, NAMESPACES).await?, 401);
    assert_eq!(status(&api.client_of(None)?, NAMESPACES).await?, 401);
    let mut sql = PgConnection::connect(&api.database_url).await?;
    let began = Instant::now();
    loop {
        let query = "SELECT event FROM audit_event WHERE code = 401";
        let events: Vec<Value> = sqlx::query_scalar(query).fetch_all(&mut sql).await?;
        if events.len() == 2 {
            break;
        }
        ensure!(began.elapsed() < SOON, "{events:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn names_that_no_file_could_have_are_refused_and_nothing_is_kept() -> Result<()> {
    let api = Api::start().await?;
    let mut admin = api.client()?.connect().await?;
    let before = api.ledger.revision().await?;
    let long = "x".repeat(256);
    for name in ["a\nb", "a\0b", long.as_str(), "../x", "a/b", "A", " "] {
        let named = json!({"metadata": {"name": name}});
        let mut machine = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": name}, "spec": {"domain": {"devices": {}}},
        });
        for (path, object) in [(MACHINES, &machine), (MAPS, &named), (NAMESPACES, &named)] {
            let answer = admin.call(Method::POST, path, Some(object)).await?;
            ensure!(
                (400..500).contains(&answer.status),
                "{path} {name:?}: {answer:?}"
            );
        }
        machine["metadata"]["name"] = json!("good");
        machine["metadata"]["namespace"] = json!(name);
        let answer = admin.call(Method::POST, MACHINES, Some(&machine)).await?;
        ensure!(
            (400..500).contains(&answer.status),
            "namespace {name:?}: {answer:?}"
        );
    }
    for path in ["%0a", "a%00b", "..%2f..%2fetc%2fpasswd", long.as_str()] {
        let answer = admin
            .call(Method::GET, &format!("{MAPS}/{path}"), None)
            .await?;
        ensure!((400..500).contains(&answer.status), "{path}: {answer:?}");
    }
    assert_eq!(api.ledger.revision().await?, before);
    Ok(())
}

#[tokio::test]
async fn no_token_and_no_key_is_in_a_span_or_a_line_of_the_log() -> Result<()> {
    if !alone("api_attacks::no_token_and_no_key_is_in_a_span_or_a_line_of_the_log")? {
        return Ok(());
    }
    let log = Log::default();
    let writer = log.clone();
    // All of ours and the spans that are exported; of others what is logged unless one asks for more.
    let filter = "info,godwit_api_gateway=trace,godwit_apimachinery=trace,godwit_ledger=trace,\
                  godwit_runtime=trace";
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_env_filter(EnvFilter::new(filter))
        .with_span_events(FmtSpan::FULL)
        .with_writer(move || writer.clone())
        .finish();
    // For this thread, which is that of all tasks of this test.
    let guard = tracing::subscriber::set_default(subscriber);
    let api = Api::start().await?;
    let mut admin = api.client()?.connect().await?;
    let mut ann = api.client_of(Some("ann"))?.connect().await?;
    assert_eq!(ann.call(Method::GET, NAMESPACES, None).await?.status, 403);
    let mut wrong = api.client_of(Some("open-sesame"))?.connect().await?;
    assert_eq!(wrong.call(Method::GET, NAMESPACES, None).await?.status, 401);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "kept"},
        "stringData": {"password": "the-guests-password"},
    });
    admin
        .post("/api/v1/namespaces/default/secrets", &secret)
        .await?;
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": "ann-token"},
    });
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    admin.call(Method::POST, path, Some(&review)).await?;
    let own = api.identity_of("ada", "system:masters")?;
    let key = std::fs::read_to_string(own.key.with_file_name("gateway.key"))?;
    let key = key.lines().nth(1).context("a line of the key")?.to_owned();
    drop(guard);

    let log = log.text();
    assert!(log.contains("request{"), "spans are there:\n{log}");
    for secret in [
        "ann-token",
        "open-sesame-token",
        "the-guests-password",
        "PRIVATE KEY",
        &key,
    ] {
        assert!(!log.contains(secret), "{secret} is in\n{log}");
    }
    Ok(())
}

/// Answers of somebody who asks politely while `attack` lasts, and how long each took.
async fn meanwhile(api: &Api, attack: impl Future<Output = Result<()>>) -> Result<Vec<Duration>> {
    let mut polite = api.member("polite", "system:masters")?.connect().await?;
    let asking = async {
        let (began, mut took) = (Instant::now(), vec![]);
        while began.elapsed() < ATTACK {
            let asked = Instant::now();
            let answer = polite
                .call(Method::GET, &format!("{NAMESPACES}/default"), None)
                .await?;
            ensure!(answer.status == 200, "{answer:?}");
            took.push(asked.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await; // as a client that works
        }
        took.sort_unstable();
        Ok(took)
    };
    let (took, attacked) = tokio::join!(asking, attack);
    attacked?;
    took
}

fn p99(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() * 99 / 100]
}

fn resident() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("no VmRSS")?.parse::<usize>()? << 10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_reset_at_once_hold_nobody_else_up() -> Result<()> {
    if !alone("api_attacks::streams_that_are_reset_at_once_hold_nobody_else_up")? {
        return Ok(());
    }
    let api = Api::start().await?;
    let quiet = meanwhile(&api, async { Ok(()) }).await?;
    let before = resident()?;
    let tenant = api.member("rude", "godwit:viewers")?;
    let resets = Arc::new(Mutex::new(0_u64));
    let attack = async {
        let attackers = (0..4).map(|_| reset_streams(&tenant, &resets));
        futures::future::try_join_all(attackers).await.map(drop)
    };
    let busy = meanwhile(&api, attack).await?;
    let grown = resident()?.saturating_sub(before) >> 20;
    let resets = *resets.lock().unwrap();
    say(&format!(
        "{resets} streams reset: p99 {:?} instead of {:?}, {grown} MiB more",
        p99(&busy),
        p99(&quiet)
    ));
    ensure!(resets > 500, "{resets} streams are no attack");
    // The attackers run on the same two threads as the gateway here.
    let bound = Duration::from_secs(1) + 10 * p99(&quiet);
    ensure!(p99(&busy) < bound, "{:?}", p99(&busy));
    ensure!(grown < 128, "{grown} MiB");
    until(&api, "godwit_api_answer_bytes", |bytes| bytes < 1e6).await
}

/// Asks and takes it back before there can be an answer, on connections that last as they may.
async fn reset_streams(client: &Client, resets: &Mutex<u64>) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < ATTACK {
        let connection = client.multiplexed().await?;
        while began.elapsed() < ATTACK {
            let asked = connection.send("GET", NAMESPACES, Bytes::new());
            // Sent with the first poll, and reset when it is dropped.
            match timeout(Duration::ZERO, asked).await {
                Ok(Err(_)) => break, // the gateway hung up
                Ok(Ok(_)) | Err(_) => *resets.lock().unwrap() += 1,
            }
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_lists_without_a_limit_hold_nobody_else_up() -> Result<()> {
    if !alone("api_attacks::a_hundred_lists_without_a_limit_hold_nobody_else_up")? {
        return Ok(());
    }
    let api = Api::start().await?;
    let mut admin = api.client()?.connect().await?;
    for number in 0..200 {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("m-{number}")}, "data": {"x": "x".repeat(20_000)},
        });
        admin.post(MAPS, &map).await?;
    }
    let quiet = meanwhile(&api, async { Ok(()) }).await?;
    let before = resident()?;
    let tenant = api.member("greedy", "godwit:viewers")?;
    let attack = async {
        let lists = (0..100).map(|_| async {
            let (began, mut codes) = (Instant::now(), vec![]);
            while began.elapsed() < ATTACK {
                codes.push(status(&tenant, MAPS).await?);
            }
            anyhow::Ok(codes)
        });
        let codes = futures::future::try_join_all(lists).await?.concat();
        let answered = codes.iter().filter(|code| **code == 200).count();
        let told = codes.iter().filter(|code| **code == 429).count();
        say(&format!(
            "{answered} lists of 4 MB were answered, {told} told to wait"
        ));
        ensure!(answered + told == codes.len() && answered > 0, "{codes:?}");
        Ok(())
    };
    let busy = meanwhile(&api, attack).await?;
    let grown = resident()?.saturating_sub(before) >> 20;
    say(&format!(
        "p99 {:?} instead of {:?}, {grown} MiB more",
        p99(&busy),
        p99(&quiet)
    ));
    let bound = Duration::from_secs(3) + 10 * p99(&quiet);
    ensure!(p99(&busy) < bound, "{:?}", p99(&busy));
    // Both sides are in this process: what tenants' answers may take, and as much again to read it.
    ensure!(grown < 1024, "{grown} MiB");
    Ok(())
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
