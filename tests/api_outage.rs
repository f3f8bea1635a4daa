//! What clients of the API see while the database is away: no false success, and where to go on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use godwit_ledger::{LedgerError, Object};
use godwit_testkit::api::{Answer, Api as Client, Connection, Method, Watch};
use godwit_testkit::kubectl::Release;
use godwit_testkit::postgres::Postgres;
use godwit_testkit::postgres_proxy::{Fault, PostgresProxy};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::api_env::Api;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// No request takes longer, whatever the database does.
const REQUEST_MAX: Duration = Duration::from_secs(12);
/// How long it may take until something is created again, or is told, on a busy machine.
const LOAD_MAX: Duration = Duration::from_secs(60);
/// Clients of the hammer.
const CLIENTS: usize = 6;

fn map(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name}, "data": {"by": name},
    })
}

async fn post(connection: &mut Connection, name: &str) -> Result<Answer> {
    let map = map(name);
    let asked = connection.call(Method::POST, MAPS, Some(&map));
    timeout(REQUEST_MAX, asked).await.context("no answer")?
}

async fn get(connection: &mut Connection, path: &str) -> Result<Answer> {
    let asked = connection.call(Method::GET, path, None);
    timeout(REQUEST_MAX, asked).await.context("no answer")?
}

/// A refusal that clients understand as "ask again".
fn is_unavailable(answer: &Answer) -> bool {
    answer.status == 503
        && answer.retry_after.as_deref() == Some("1")
        && answer.body["kind"] == "Status"
        && answer.body["reason"] == "ServiceUnavailable"
}

fn message(answer: &Answer) -> &str {
    answer.body["message"].as_str().unwrap_or_default()
}

async fn crash(postgres: &Arc<Postgres>) -> Result<()> {
    let postgres = Arc::clone(postgres);
    tokio::task::spawn_blocking(move || postgres.crash()).await?
}

async fn revive(postgres: &Arc<Postgres>) -> Result<()> {
    let postgres = Arc::clone(postgres);
    tokio::task::spawn_blocking(move || postgres.revive()).await?
}

/// Waits until `path` answers `status`.
async fn until_status(connection: &mut Connection, path: &str, status: u16) -> Result<()> {
    let began = Instant::now();
    while get(connection, path).await?.status != status {
        ensure!(began.elapsed() < LOAD_MAX, "{path} is not {status}");
        sleep(Duration::from_millis(10)).await; // poll
    }
    Ok(())
}

/// Creates a config map as clients do: it asks again as long as it is told to. A refusal may not
/// know whether it was made, so that it is there already is as good.
async fn create(connection: &mut Connection, name: &str) -> Result<()> {
    let began = Instant::now();
    loop {
        let answer = post(connection, name).await?;
        if [201, 409].contains(&answer.status) {
            return Ok(());
        }
        ensure!(is_unavailable(&answer), "{name}: {answer:?}");
        ensure!(began.elapsed() < LOAD_MAX, "{name} is not made");
        sleep(Duration::from_millis(50)).await; // in a hurry
    }
}

/// The next change of a config map that a test made.
async fn next(watch: &mut Watch) -> Result<(String, String)> {
    loop {
        let change = timeout(LOAD_MAX, watch.next()).await;
        let (_, change) = change.context("nothing is seen")??;
        let name = change["object"]["metadata"]["name"].as_str();
        let kind = change["type"].as_str().unwrap_or_default().to_owned();
        if kind == "ERROR" || name.is_some_and(|name| name != "kubevirt-config") {
            return Ok((kind, name.unwrap_or_default().to_owned()));
        }
    }
}

/// The config maps that the hammer made, as the ledger has them. The test's own connection may have
/// died with the database: then another is taken.
async fn kept(api: &Api) -> Result<Vec<Object>> {
    let objects = match api.ledger.list("configmaps").await {
        Err(LedgerError::Unavailable(_)) => api.ledger.list("configmaps").await,
        other => other,
    };
    let mut objects = objects?;
    objects.retain(|object| object.key.name.starts_with("map-"));
    Ok(objects)
}

/// What one client of the hammer was told.
#[derive(Default)]
struct Told {
    created: Vec<(String, String)>,
    refused: usize,
    cut_off: usize,
}

/// What the hammer's clients share with the test.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    created: AtomicUsize,
}

impl Load {
    /// Until so many more are created, however busy the machine is.
    async fn creates(&self, more: usize) -> Result<()> {
        let wanted = self.created.load(Ordering::Relaxed) + more;
        let wait = async {
            while self.created.load(Ordering::Relaxed) < wanted {
                sleep(Duration::from_millis(10)).await; // poll
            }
        };
        timeout(LOAD_MAX, wait).await.context("nothing is created")
    }
}

async fn hammer(client: Client, number: usize, load: Arc<Load>) -> Result<Told> {
    let mut told = Told::default();
    let mut connection = client.connect().await?;
    for turn in 0.. {
        if load.stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("map-{number}-{turn}");
        match post(&mut connection, &name).await {
            Ok(answer) if answer.status == 201 => {
                let uid = answer.body["metadata"]["uid"].as_str().context("no uid")?;
                told.created.push((name, uid.to_owned()));
                load.created.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) => {
                ensure!(is_unavailable(&answer), "{name}: {answer:?}");
                told.refused += 1;
                sleep(Duration::from_millis(50)).await; // in a hurry
            }
            Err(_) => {
                told.cut_off += 1;
                connection = client.connect().await?;
            }
        }
    }
    Ok(told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_killed_again_and_again_makes_no_false_success() -> Result<()> {
    let api = Api::start().await?;
    let load = Arc::new(Load::default());
    let mut clients = vec![];
    for number in 0..CLIENTS {
        let hammering = hammer(api.client()?, number, Arc::clone(&load));
        clients.push(tokio::spawn(hammering));
    }
    // Some outages are shorter than what the gateway waits for, and some are not.
    for down in [0, 0, 4500, 0, 200] {
        load.creates(10).await?;
        crash(&api.postgres).await?;
        sleep(Duration::from_millis(down)).await; // the outage
        revive(&api.postgres).await?;
    }
    load.creates(10).await?;
    load.stop.store(true, Ordering::Relaxed);
    let (mut created, mut refused, mut cut_off) = (BTreeSet::new(), 0, 0);
    for client in clients {
        let told = client.await??;
        refused += told.refused;
        cut_off += told.cut_off;
        for one in told.created {
            assert!(created.insert(one), "told twice");
        }
    }
    let kept: Vec<(String, String)> = kept(&api)
        .await?
        .into_iter()
        .map(|object| (object.key.name, object.uid))
        .collect();
    let once: BTreeSet<_> = kept.iter().cloned().collect();
    let names: BTreeSet<_> = kept.iter().map(|(name, _)| name).collect();
    assert_eq!(
        (once.len(), names.len()),
        (kept.len(), kept.len()),
        "some exist twice"
    );
    let missing: Vec<_> = created.difference(&once).collect();
    assert!(missing.is_empty(), "false successes: {missing:?}");
    // Those may have been made, and say that nobody knows.
    assert!(kept.len() <= created.len() + refused + cut_off);
    assert!(refused > 0, "the long outage was not seen");
    assert_eq!(cut_off, 0, "the gateway itself stayed up");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_away_reads_go_on_writes_are_refused_and_watches_stay() -> Result<()>
{
    let api = Api::start().await?;
    let client = api.client()?;
    let mut connection = client.connect().await?;
    assert_eq!(post(&mut connection, "before").await?.status, 201);
    let mut watch = client.watch(MAPS).await?;
    assert_eq!(
        next(&mut watch).await?,
        ("ADDED".to_owned(), "before".to_owned())
    );

    crash(&api.postgres).await?;
    until_status(&mut connection, "/readyz", 500).await?;
    for path in ["/livez", "/api", "/apis", MAPS, &format!("{MAPS}/before")] {
        assert_eq!(get(&mut connection, path).await?.status, 200, "{path}");
    }
    let refused = post(&mut connection, "during").await?;
    assert!(is_unavailable(&refused), "{refused:?}");
    assert!(
        message(&refused).contains("the ledger can't be reached"),
        "{refused:?}"
    );
    let path = format!("{MAPS}/before");
    let patch = json!({"data": {"more": "yes"}});
    let refused = connection.call(Method::PATCH, &path, Some(&patch)).await?;
    assert!(is_unavailable(&refused), "{refused:?}");
    let refused = connection.call(Method::DELETE, &path, None).await?;
    assert!(is_unavailable(&refused), "{refused:?}");

    let kubectl = api.admin(Release::Newest).await?;
    assert!(kubectl.ok(&["get", "configmaps"]).await?.contains("before"));
    let why = get(&mut connection, "/readyz").await?.body;
    let why = why.as_str().unwrap_or_default();
    assert_eq!(
        why,
        "[+]ping ok\n[-]watch-cache failed: the ledger can't be reached\nreadyz check failed\n"
    );
    // It tries ten times by itself, a second apart as it is told to.
    let why = kubectl.fails(&["create", "configmap", "late"]).await?;
    assert!(
        why.contains("the ledger can't be reached at the moment"),
        "{why}"
    );
    assert!(why.contains("nothing was changed"), "{why}");

    revive(&api.postgres).await?;
    until_status(&mut connection, "/readyz", 200).await?;
    for name in ["after-1", "after-2"] {
        create(&mut connection, name).await?;
        assert_eq!(
            next(&mut watch).await?,
            ("ADDED".to_owned(), name.to_owned())
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_across_restarts_sees_every_change_once_and_in_order() -> Result<()> {
    let api = Api::start().await?;
    let client = api.client()?;
    let mut watch = client.watch(MAPS).await?;
    let load = Arc::new(Load::default());
    let writing = tokio::spawn(hammer(api.client()?, 0, Arc::clone(&load)));
    for _ in 0..3 {
        load.creates(10).await?;
        crash(&api.postgres).await?;
        revive(&api.postgres).await?;
    }
    load.stop.store(true, Ordering::Relaxed);
    writing.await??;
    let mut connection = client.connect().await?;
    until_status(&mut connection, "/readyz", 200).await?;
    create(&mut connection, "last").await?;
    let mut seen = vec![];
    loop {
        let (kind, name) = next(&mut watch).await?;
        assert_eq!(kind, "ADDED", "{name}");
        if name == "last" {
            break;
        }
        seen.push(name);
    }
    // One client writes one after the other, so this is the order of the commits.
    let mut made = kept(&api).await?;
    made.sort_by_key(|object| object.revision);
    let made: Vec<String> = made.into_iter().map(|object| object.key.name).collect();
    assert_eq!(seen, made);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_answer_is_lost_is_looked_for_before_the_client_is_told() -> Result<()> {
    let mut proxy = None;
    let api = Api::start_by_way_of(|url| {
        let new = PostgresProxy::start(url)?;
        let way = new.url(url);
        proxy = Some(new);
        Ok(way)
    });
    let api = api.await?;
    let proxy = proxy.context("no proxy")?;
    let mut connection = api.client()?.connect().await?;

    proxy.set(Fault::LoseCommitAnswer);
    let made = post(&mut connection, "made").await?;
    assert_eq!((made.status, proxy.commits_hit()), (201, 1), "{made:?}");
    let path = format!("{MAPS}/made");
    let patch = json!({"data": {"more": "yes"}});
    let changed = connection.call(Method::PATCH, &path, Some(&patch)).await?;
    assert_eq!(
        (changed.status, &changed.body["data"]["more"]),
        (200, &json!("yes"))
    );
    let removed = connection.call(Method::DELETE, &path, None).await?;
    assert_eq!(
        (removed.status, proxy.commits_hit()),
        (200, 3),
        "{removed:?}"
    );
    proxy.set(Fault::None);
    assert_eq!(get(&mut connection, &path).await?.status, 404);

    proxy.set(Fault::LoseCommit);
    let refused = post(&mut connection, "not-made").await?;
    assert!(is_unavailable(&refused), "{refused:?}");
    assert!(
        message(&refused).contains("nothing was changed"),
        "{refused:?}"
    );

    proxy.set(Fault::CutAfterCommit);
    let unknown = post(&mut connection, "who-knows").await?;
    assert!(is_unavailable(&unknown), "{unknown:?}");
    assert!(
        message(&unknown).contains("unknown whether the change was made"),
        "{unknown:?}"
    );
    proxy.set(Fault::None);
    until_status(&mut connection, "/readyz", 200).await?;
    assert_eq!(
        get(&mut connection, &format!("{MAPS}/who-knows"))
            .await?
            .status,
        200
    );
    assert_eq!(
        get(&mut connection, &format!("{MAPS}/not-made"))
            .await?
            .status,
        404
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_the_ledger_sends_watchers_to_list_again() -> Result<()> {
    let api = Api::start().await?;
    let client = api.client()?;
    let mut connection = client.connect().await?;
    assert_eq!(post(&mut connection, "kept").await?.status, 201);
    api.postgres.copy()?;
    let lost = post(&mut connection, "lost").await?;
    let revision = lost.body["metadata"]["resourceVersion"].as_str();
    let revision: u64 = revision.context("no revision")?.parse()?;
    let mut watch = client.watch(MAPS).await?;
    for name in ["kept", "lost"] {
        assert_eq!(next(&mut watch).await?.1, name);
    }

    api.postgres.fail_over()?;
    assert_eq!(next(&mut watch).await?.0, "ERROR");
    until_status(&mut connection, "/readyz", 200).await?;
    let listed = get(&mut connection, MAPS).await?;
    let names: Vec<_> = listed.body["items"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    let names: Vec<_> = names.iter().map(|item| &item["metadata"]["name"]).collect();
    assert!(
        names.contains(&&json!("kept")) && !names.contains(&&json!("lost")),
        "{names:?}"
    );
    let newest = listed.body["metadata"]["resourceVersion"].as_str();
    assert!(newest.context("no revision")?.parse::<u64>()? > revision);
    // A client that was away meanwhile is sent to list again, too.
    let old = format!("{MAPS}?watch=true&resourceVersion={revision}");
    let old = client.watch(&old).await;
    let told = match old {
        Ok(mut watch) => next(&mut watch).await?.0,
        Err(error) => error.to_string(),
    };
    assert!(told == "ERROR" || told.contains("410"), "{told}");
    assert_eq!(post(&mut connection, "new").await?.status, 201);
    assert_eq!(
        get(&mut connection, &format!("{MAPS}/new")).await?.status,
        200
    );
    Ok(())
}
