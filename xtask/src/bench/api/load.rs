//! What clients do, and how long it takes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use godwit_testkit::api::Multiplexed;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Line;
use super::client::{self, swallow};
use super::gateway::Gateway;

const INSTANCES: &str = "/apis/kubevirt.io/v1/virtualmachineinstances";
const OURS: &str = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances";
/// Lists that are measured, after one that isn't.
const LISTS: usize = 9;
/// Objects of a page: kubectl's.
const PAGE: usize = 500;
/// Reads of one object.
const READS: u32 = 3000;
/// Connections that creations are spread over.
const WRITERS: usize = 8;
/// Watches of one connection; servers allow a few hundred.
const STREAMS: usize = 100;
/// How long a change may take to everybody.
const TOLD_MAX: Duration = Duration::from_secs(30);
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(200);

/// The whole list, the list by pages, each page; and how large an object is.
pub(super) async fn lists(gateway: &Gateway, objects: u32) -> Result<(Vec<Line>, f64)> {
    let connection = gateway.api.multiplexed().await?;
    let (mut whole, mut paged, mut pages) = (vec![], vec![], vec![]);
    let mut bytes = 0;
    for round in 0..=LISTS {
        let began = Instant::now();
        bytes = swallow(&connection, INSTANCES).await?.bytes;
        let all = began.elapsed();
        let began = Instant::now();
        let each = by_pages(&connection).await?;
        if round > 0 {
            whole.push(all);
            paged.push(began.elapsed());
            pages.extend(each);
        }
    }
    let lines = vec![
        Line::new(format!("LIST of {objects} at once"), "150", &whole),
        Line::new(format!("LIST of {objects} by pages of {PAGE}"), "", &paged),
        Line::new(format!("a page of {PAGE}"), "5", &pages),
    ];
    #[allow(clippy::cast_precision_loss)]
    Ok((lines, bytes as f64 / f64::from(objects.max(1))))
}

async fn by_pages(connection: &Multiplexed) -> Result<Vec<Duration>> {
    let mut times = vec![];
    let mut token = String::new();
    loop {
        let began = Instant::now();
        let path = format!("{INSTANCES}?limit={PAGE}&continue={token}");
        let head = swallow(connection, &path).await?.head;
        times.push(began.elapsed());
        let head = String::from_utf8_lossy(&head);
        let Some((_, rest)) = head.split_once("\"continue\":\"") else {
            return Ok(times);
        };
        token = rest.split('"').next().unwrap_or_default().to_owned();
    }
}

/// One object after the other.
pub(super) async fn gets(gateway: &Gateway, objects: u32) -> Result<Line> {
    let connection = gateway.api.multiplexed().await?;
    let mut times = vec![];
    for number in 0..READS {
        let name = 1 + number.wrapping_mul(7919) % objects;
        let began = Instant::now();
        swallow(&connection, &format!("{OURS}/vm-{name:06}")).await?;
        times.push(began.elapsed());
    }
    Ok(Line::new("GET of one", "0.5 / 2", &times))
}

/// Creations at a fixed rate, each timed from when it was due.
pub(super) async fn creates(gateway: &Gateway, (rate, seconds): (u32, u32)) -> Result<Line> {
    let mut connections = vec![];
    for _ in 0..WRITERS {
        connections.push(gateway.api.multiplexed().await?);
    }
    let template = template(&connections[0]).await?;
    let mut tasks = JoinSet::new();
    let mut ticks = ticks(rate, seconds);
    while let Some((number, due)) = ticks.recv().await {
        let connection = connections[number as usize % WRITERS].clone();
        let mut object = template.clone();
        object["metadata"]["name"] = json!(format!("made-{number}"));
        let body = Bytes::from(object.to_string());
        tasks.spawn(async move {
            client::write(&connection, ("POST", OURS), body).await?;
            anyhow::Ok(due.elapsed())
        });
    }
    let mut times = vec![];
    while let Some(ended) = tasks.join_next().await {
        times.push(ended??);
    }
    Ok(Line::new(
        format!("durable create, {rate}/s for {seconds} s"),
        "2 / 10",
        &times,
    ))
}

/// Numbers at a fixed rate, each with the moment when it is due. From a thread, because the timers
/// of tokio are a millisecond late, which is half of what is measured.
fn ticks(rate: u32, seconds: u32) -> mpsc::UnboundedReceiver<(u32, Instant)> {
    let (sender, ticks) = mpsc::unbounded_channel();
    let began = Instant::now();
    std::thread::spawn(move || {
        for number in 0..rate * seconds {
            let due = began + Duration::from_secs(1) * number / rate;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if sender.send((number, due)).is_err() {
                return;
            }
        }
    });
    ticks
}

/// A new instance like those that are there.
async fn template(connection: &Multiplexed) -> Result<Value> {
    let like = client::json(connection, &format!("{OURS}/vm-000001")).await?;
    Ok(json!({
        "apiVersion": like["apiVersion"], "kind": like["kind"],
        "metadata": {"labels": like["metadata"]["labels"]}, "spec": like["spec"],
    }))
}

/// What became of the watchers.
pub(super) struct FanOut {
    pub(super) line: Line,
    /// Megabytes while all of them watched.
    pub(super) resident: f64,
}

/// From the request for a change until the last of all watchers has it.
pub(super) async fn fan_out(
    gateway: &Gateway,
    (watchers, changes): (usize, usize),
    say: &dyn Fn(&str),
) -> Result<FanOut> {
    let writer = gateway.api.multiplexed().await?;
    let listed = client::json(&writer, &format!("{INSTANCES}?limit=1")).await?;
    let revision = listed["metadata"]["resourceVersion"].as_str();
    let path = format!(
        "{INSTANCES}?watch=true&resourceVersion={}",
        revision.context("the list has a revision")?
    );
    let told = Arc::new(Told::default());
    let mut tasks = JoinSet::new();
    let mut connections = vec![];
    for number in 0..watchers {
        if number % STREAMS == 0 {
            connections.push(gateway.api.multiplexed().await?);
            say(&format!("{number} of {watchers} watchers"));
        }
        let connection = connections.last().context("one was made")?;
        let body = client::ok(connection, &path).await?;
        tasks.spawn(follow(body, Arc::clone(&told)));
    }
    say("changes");
    let mut times = vec![];
    for change in 1..=changes {
        let patch = json!({"metadata": {"labels": {"change": change.to_string()}}});
        let body = Bytes::from(patch.to_string());
        let began = Instant::now();
        client::write(&writer, ("PATCH", &format!("{OURS}/vm-000001")), body).await?;
        told.all(change * watchers).await?;
        times.push(began.elapsed());
        tokio::time::sleep(PAUSE).await;
    }
    ensure!(tasks.try_join_next().is_none(), "a watch ended");
    let resident = gateway.resident()?;
    tasks.abort_all();
    let what = format!("change to the last of {watchers} watchers");
    Ok(FanOut {
        line: Line::new(what, "150", &times),
        resident,
    })
}

/// How many events watchers have got in all.
#[derive(Default)]
struct Told(AtomicUsize);

/// How often it is looked whether all have been told: how exact the times are.
const LOOK_EVERY: Duration = Duration::from_millis(1);

impl Told {
    async fn all(&self, wanted: usize) -> Result<()> {
        let wait = async {
            while self.0.load(Ordering::Acquire) < wanted {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let waited = tokio::time::timeout(TOLD_MAX, wait).await;
        waited.with_context(|| {
            let events = self.0.load(Ordering::Acquire);
            format!("{events} of {wanted} events after {} s", TOLD_MAX.as_secs())
        })
    }
}

/// Counts the lines of a watch.
async fn follow(mut body: Incoming, told: Arc<Told>) -> Result<()> {
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        let lines = data.iter().filter(|byte| **byte == b'\n').count();
        told.0.fetch_add(lines, Ordering::Release);
    }
    Ok(())
}
