//! What a flood of large bodies, lists and watches may cost.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use godwit_api_gateway::Limits;
use godwit_testkit::api::{Api as Client, Raw};
use serde_json::json;

use crate::alone::alone;
use crate::api_env::Api;
use crate::api_wire::{exchange, head, metric, refusals, say, until};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: (&str, &str) = ("content-type", "application/json");
const MIB: usize = 1 << 20;
/// Clients of each sort.
const CLIENTS: usize = 60;
/// A receive buffer as small as it gets: what isn't read stays with the server.
const SMALL: u32 = 4096;
/// What one connection may cost: buffers of TLS and HTTP, and a piece of an answer.
const CONNECTION: usize = 256 << 10;
/// What the test's own side of a connection costs.
const OWN: usize = 64 << 10;
/// What moves anyway: the allocator's and the test's own.
const SLACK: usize = 32 * MIB;

/// Resident bytes of this process, in which the gateway runs.
fn resident() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("no VmRSS")?.parse::<usize>()? * 1024)
}

/// An operator's list and body.
async fn operators_find_room(admin: &Client) -> Result<()> {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    let object = object.to_string();
    let length = object.len().to_string();
    let post = head("POST", MAPS, &[JSON, ("content-length", &length)]);
    for (request, body) in [(head("GET", MAPS, &[]), ""), (post, object.as_str())] {
        let mut raw = admin.open(1 << 20).await?;
        let heard = exchange(&mut raw, &request, body.as_bytes()).await?;
        let done = (200..300).contains(&heard.status());
        ensure!(done, "an operator is told {}", heard.status());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_bodies_lists_and_watches_stays_within_the_limits() -> Result<()> {
    if !alone("api_memory::a_flood_of_bodies_lists_and_watches_stays_within_the_limits")? {
        return Ok(());
    }
    let limits = Limits {
        bodies_bytes: 8 * MIB,
        bodies_reserved_bytes: 2 * MIB,
        answers_bytes: 32 * MIB,
        answers_reserved_bytes: 8 * MIB,
        user_burst: 100_000,
        ..Limits::default()
    };
    let api = Api::start_limited(limits.clone()).await?;
    let admin = api.client()?;
    let mut connection = admin.connect().await?;
    for number in 0..8 {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("m-{number}")}, "data": {"x": "x".repeat(1_000_000)},
        });
        connection.post(MAPS, &object).await?;
    }
    let before = resident()?;

    let tenant = api.member("flood", "godwit:editors")?;
    let mut open: Vec<Raw> = vec![];
    let length = (3 * MIB).to_string();
    let body = head("POST", MAPS, &[JSON, ("content-length", &length)]);
    let part = vec![b' '; 2 * MIB];
    let watch = format!("{MAPS}?watch=true&resourceVersion=0");
    let mut most = 0;
    for _ in 0..CLIENTS {
        for (request, rest) in [
            (body.as_str(), &part[..]),
            (&head("GET", MAPS, &[]), &[]),
            (&head("GET", &watch, &[]), &[]),
        ] {
            let mut raw = tenant.open(SMALL).await?;
            say(&mut raw, request.as_bytes()).await;
            say(&mut raw, rest).await;
            open.push(raw);
        }
        most = most.max(resident()?);
        assert!(metric(&api, "godwit_api_body_bytes") <= (8 * MIB) as f64);
        assert!(metric(&api, "godwit_api_answer_bytes") <= (32 * MIB) as f64);
    }
    ensure!(refusals(&api, "bodies_bytes") > 0.0 && refusals(&api, "answers_bytes") > 0.0);
    operators_find_room(&admin).await?;
    most = most.max(resident()?);
    let grown = most.saturating_sub(before);
    let bound =
        limits.bodies_bytes + limits.answers_bytes + open.len() * (CONNECTION + OWN) + SLACK;
    let asked = CLIENTS * (2 + 8 + 8) * MIB;
    assert!(bound < asked / 4, "the bound says something");
    assert!(grown < bound, "{grown} bytes more, the bound is {bound}");
    drop(open);
    let limit = Duration::from_secs(10);
    let gone = async {
        until(&api, "godwit_api_body_bytes", |bytes| bytes == 0.0).await?;
        until(&api, "godwit_api_answer_bytes", |bytes| bytes < 1e6).await
    };
    tokio::time::timeout(limit, gone).await?
}
