//! Lists at a revision, and page by page, while others write: each is a state that there was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use godwit_ledger::LedgerError;
use godwit_testkit::api::{Connection, Method, Opened};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::api_watch_load::seed;
use crate::lab_suite::say;
use crate::ledger_setup::config_map;
use crate::watch_env::World;
use crate::watch_log::{Log, Pick, Scope};
use crate::watch_replay::{Objects, differences, read, revision};
use crate::watch_writers::Writer;

const MAPS: &str = "/api/v1/configmaps";
const DEFAULT_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const WRITERS: usize = 10;
const READERS: usize = 6;
const TIME: Duration = Duration::from_secs(4);
/// How long a gateway waits for a revision that doesn't come.
const FRESH_WAIT_MAX: Duration = Duration::from_secs(3);

/// A list that was shown, and how it was asked for.
struct Shown {
    asked: String,
    at: u64,
    objects: Objects,
    pick: Pick,
}

/// Reads lists of every sort until it is time.
async fn read_lists(world: Arc<World>, number: u64) -> Result<Vec<Shown>> {
    let mut rng = StdRng::seed_from_u64(number);
    let mut connection = world.gateways[0].client.connect().await?;
    let mut shown: Vec<Shown> = vec![];
    let oldest = world.ledger.revision().await?.0;
    let began = Instant::now();
    while began.elapsed() < TIME {
        let known = shown.last().map_or(oldest, |last| last.at);
        let limit = rng.random_range(1..20);
        let query = match rng.random_range(0..5) {
            0 => format!("limit={limit}"),
            1 => format!("limit={limit}&resourceVersion={known}&resourceVersionMatch=Exact"),
            2 => format!("limit={limit}&resourceVersion={known}"),
            3 => format!("resourceVersion={known}&resourceVersionMatch=Exact"),
            _ => format!("limit={limit}&resourceVersion={known}&resourceVersionMatch=NotOlderThan"),
        };
        let pick = match rng.random_bool(0.5) {
            true => Pick::All,
            false => Pick::Team("red"),
        };
        let (at, objects) = pages(&mut connection, &format!("{query}{}", pick.query())).await?;
        // Without a match, pages are of exactly what was asked for: so it was before there was one.
        let exact = query.contains("resourceVersion=") && !query.contains("NotOlderThan");
        ensure!(!exact || at == known, "{query} is of {at}");
        ensure!(at >= known, "{query} is of {at}, before {known}");
        shown.push(Shown {
            asked: query,
            at,
            objects,
            pick,
        });
    }
    Ok(shown)
}

/// All pages of a list, which have to be in order and of one revision.
async fn pages(connection: &mut Connection, query: &str) -> Result<(u64, Objects)> {
    let limit = query.strip_prefix("limit=");
    let limit = limit.map_or("", |rest| rest.split('&').next().unwrap_or_default());
    let mut path = format!("{MAPS}?{query}");
    let mut at = None;
    let mut objects = Objects::new();
    loop {
        let page = connection.call(Method::GET, &path, None).await?.object()?;
        let found = revision(&page)?;
        ensure!(
            at.is_none_or(|at| at == found),
            "{path} is of {found}, not {at:?}"
        );
        at = Some(found);
        let items = page["items"].as_array().context("no items")?;
        let mut last = objects.keys().next_back().cloned().unwrap_or_default();
        for item in items {
            let (key, seen) = read(item, true)?;
            ensure!(
                last.is_empty() || parts(&key) > parts(&last),
                "{key} after {last}"
            );
            last.clone_from(&key);
            objects.insert(key, seen);
        }
        let Some(token) = page["metadata"]["continue"].as_str() else {
            return Ok((found, objects));
        };
        ensure!(
            items.len().to_string() == limit,
            "{} of {limit}",
            items.len()
        );
        let selector = query.split('&').find(|part| part.contains("Selector"));
        let selector = selector.unwrap_or_default();
        path = format!("{MAPS}?limit={limit}&continue={token}&{selector}");
    }
}

fn parts(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_list_is_a_state_that_there_was_while_writers_write() -> Result<()> {
    let world = Arc::new(World::start(1).await?);
    let seed = seed();
    say(&format!("lists: WATCH_SEED={seed}"));
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicUsize::new(0));
    let writers = (0..WRITERS).map(|number| Writer {
        world: Arc::clone(&world),
        // None of them a service: those write other kinds.
        number: number * 5 + 2,
        seed,
        faults: false,
        pause: Duration::from_millis(80),
        stop: Arc::clone(&stop),
        written: Arc::clone(&written),
    });
    let writers: Vec<_> = writers.map(|writer| tokio::spawn(writer.run())).collect();
    let readers: Vec<_> = (0..READERS)
        .map(|number| {
            tokio::spawn(read_lists(
                Arc::clone(&world),
                seed.wrapping_add(number as u64),
            ))
        })
        .collect();
    let mut shown = vec![];
    for reader in readers {
        shown.extend(reader.await??);
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await??;
    }
    let log = Log::read(&world.ledger).await?;
    for list in &shown {
        let scope = Scope {
            resource: "configmaps",
            namespace: None,
            pick: list.pick.clone(),
            whole: true,
        };
        let wrong = differences(&log.at(&scope, list.at), &list.objects);
        ensure!(wrong.is_empty(), "{} at {}: {wrong:?}", list.asked, list.at);
    }
    let revisions: std::collections::BTreeSet<u64> = shown.iter().map(|list| list.at).collect();
    say(&format!(
        "lists: {} lists of {} revisions, {} changes, all as they were",
        shown.len(),
        revisions.len(),
        log.len()
    ));
    ensure!(revisions.len() > 10, "only {} revisions", revisions.len());
    Ok(())
}

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"by": name}})
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().into_iter().flatten();
    items
        .filter_map(|item| item["metadata"]["name"].as_str())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_comes_too_late_is_410_with_a_token_for_the_rest_as_it_is() -> Result<()> {
    let world = World::start(1).await?;
    let mut connection = world.gateways[0].client.connect().await?;
    for name in ["a", "b", "c", "d"] {
        connection.post(DEFAULT_MAPS, &map(name)).await?;
    }
    let path = format!("{DEFAULT_MAPS}?limit=2");
    let first = connection.call(Method::GET, &path, None).await?.object()?;
    let (at, token) = (revision(&first)?, first["metadata"]["continue"].clone());
    let token = token.as_str().context("no token")?;
    connection.post(DEFAULT_MAPS, &map("bb")).await?;
    // Its successor knows neither the pages nor what changed before it came.
    world.restart(0, Duration::ZERO).await?;

    let mut connection = world.gateways[0].client.connect().await?;
    let path = format!("{DEFAULT_MAPS}?limit=2&continue={token}");
    let late = connection.call(Method::GET, &path, None).await?;
    assert_eq!(
        (late.status, &late.body["reason"]),
        (410, &json!("Expired"))
    );
    let message = late.body["message"].as_str().unwrap_or_default();
    assert!(
        message.starts_with(
            "The provided continue parameter is too old to display a consistent list result. You \
             can start a new list without the continue parameter, or use the continue token in \
             this response to retrieve the remainder of the results."
        ),
        "{message}"
    );
    let token = late.body["metadata"]["continue"].as_str();
    let path = format!(
        "{DEFAULT_MAPS}?limit=2&continue={}",
        token.context("no token")?
    );
    let rest = connection.call(Method::GET, &path, None).await?.object()?;
    assert_eq!(names(&rest), ["bb", "c"]);
    assert!(revision(&rest)? > at, "{rest}");
    let token = rest["metadata"]["continue"].as_str().context("no token")?;
    let path = format!("{DEFAULT_MAPS}?limit=2&continue={token}");
    let last = connection.call(Method::GET, &path, None).await?.object()?;
    assert_eq!(names(&last), ["d"]);
    assert_eq!(revision(&last)?, revision(&rest)?);

    let path = format!("{DEFAULT_MAPS}?resourceVersion={at}&resourceVersionMatch=Exact");
    let gone = connection.call(Method::GET, &path, None).await?;
    assert_eq!(gone.status, 410);
    assert_eq!(
        gone.body["message"],
        "The resourceVersion for the provided list is too old."
    );
    let path = format!("{DEFAULT_MAPS}?watch=true&resourceVersion={at}");
    let told = first_event(&world, 0, &path).await?;
    assert_eq!(
        (&told["type"], &told["object"]["code"]),
        (&json!("ERROR"), &json!(410))
    );
    Ok(())
}

async fn first_event(world: &World, gateway: usize, path: &str) -> Result<Value> {
    let opened = world.gateways[gateway]
        .client
        .stream(path, "application/json");
    match opened.await? {
        Opened::Watch(mut watch) => Ok(watch.next().await?.1),
        Opened::Refused(answer) => anyhow::bail!("{}: {}", answer.status, answer.body),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_that_nobody_made_yet_is_waited_for_and_then_refused() -> Result<()> {
    let world = World::start(1).await?;
    let mut connection = world.gateways[0].client.connect().await?;
    let next = world.ledger.revision().await?.0 + 1;
    let path = format!("{DEFAULT_MAPS}?resourceVersion={next}");
    let mut other = world.gateways[0].client.connect().await?;
    let waiting = tokio::spawn(async move { other.call(Method::GET, &path, None).await });
    tokio::task::yield_now().await;
    connection.post(DEFAULT_MAPS, &map("awaited")).await?;
    let list = waiting.await??.object()?;
    assert!(names(&list).contains(&"awaited"), "{list}");

    let far = next + 1000;
    let path = format!("{DEFAULT_MAPS}?resourceVersion={far}");
    let refused = connection.call(Method::GET, &path, None).await?;
    let newest = world.ledger.revision().await?;
    let text = format!("Too large resource version: {far}, current: {newest}");
    assert_eq!(
        (
            refused.status,
            &refused.body["reason"],
            &refused.body["message"]
        ),
        (504, &json!("Timeout"), &json!(text))
    );
    let cause = &refused.body["details"]["causes"][0]["reason"];
    assert_eq!(cause, "ResourceVersionTooLarge");
    let path = format!("{DEFAULT_MAPS}?watch=true&resourceVersion={far}");
    let told = first_event(&world, 0, &path).await?;
    assert_eq!(
        (&told["type"], &told["object"]["code"]),
        (&json!("ERROR"), &json!(504))
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_gateway_acknowledged_is_seen_at_the_other_at_once() -> Result<()> {
    const ROUNDS: usize = 40;
    let world = World::start(2).await?;
    let mut sides = [
        world.gateways[0].client.connect().await?,
        world.gateways[1].client.connect().await?,
    ];
    for round in 0..ROUNDS {
        let name = format!("map-{round}");
        let path = format!("{DEFAULT_MAPS}/{name}");
        let [here, there] = &mut sides;
        let made = here.post(DEFAULT_MAPS, &map(&name)).await?;
        let found = there.call(Method::GET, &path, None).await?;
        ensure!(found.status == 200, "round {round}: {}", found.body);
        let patch = json!({"metadata": {"labels": {"round": round.to_string()}}});
        let changed = there.call(Method::PATCH, &path, Some(&patch)).await?;
        let changed = changed.object()?;
        let list = here.call(Method::GET, DEFAULT_MAPS, None).await?.object()?;
        let items = list["items"].as_array().context("no items")?;
        ensure!(items.contains(&changed), "round {round}: an old list");
        let from = revision(&made)?;
        let watch = format!("{DEFAULT_MAPS}?watch=true&resourceVersion={from}");
        let told = first_event(&world, round % 2, &watch).await?;
        ensure!(told["type"] == "MODIFIED", "round {round}: {told}");
        ensure!(revision(&told["object"])? == revision(&changed)?, "{told}");
        here.call(Method::DELETE, &path, None).await?.object()?;
        let gone = there.call(Method::GET, &path, None).await?;
        ensure!(gone.status == 404, "round {round}: {}", gone.body);
        sides.swap(0, 1);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_that_was_taken_for_nothing_holds_nobody_up() -> Result<()> {
    let world = World::start(1).await?;
    let mut connection = world.gateways[0].client.connect().await?;
    let made = revision(&connection.post(DEFAULT_MAPS, &map("taken")).await?)?;
    let watch = format!("{DEFAULT_MAPS}?watch=true&resourceVersion={made}");
    let opened = world.gateways[0].client.stream(&watch, "application/json");
    let Opened::Watch(mut watch) = opened.await? else {
        anyhow::bail!("no watch");
    };
    // A service finds that there is one already, and goes on without.
    let mut tx = world.ledger.begin().await?;
    let again = tx.create(config_map("taken")).await;
    assert!(
        matches!(again, Err(LedgerError::AlreadyExists)),
        "{again:?}"
    );
    tx.commit().await?;
    assert_eq!(world.ledger.revision().await?.0, made + 1);

    let began = Instant::now();
    let path = format!("{DEFAULT_MAPS}/taken");
    let found = connection.call(Method::GET, &path, None).await?;
    assert_eq!(found.status, 200, "{}", found.body);
    let same = json!({"data": {"by": "taken"}});
    let unchanged = connection.call(Method::PATCH, &path, Some(&same)).await?;
    assert_eq!(revision(&unchanged.object()?)?, made);
    let other = json!({"data": {"by": "another"}});
    let changed = connection.call(Method::PATCH, &path, Some(&other)).await?;
    assert_eq!(revision(&changed.object()?)?, made + 2);
    let (_, told) = watch.next().await?;
    assert_eq!(told["type"], "MODIFIED", "{told}");
    assert_eq!(revision(&told["object"])?, made + 2);
    let took = began.elapsed();
    assert!(took < FRESH_WAIT_MAX, "{took:?}");
    Ok(())
}
