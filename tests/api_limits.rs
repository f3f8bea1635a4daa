//! Each limit of the API, met by a client over a real connection, and what it is told.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use godwit_api_gateway::Limits;
use godwit_testkit::api::{Api as Client, Connection, Method, ask};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::api_env::Api;
use crate::api_wire::{Heard, exchange, head, hear, refusals, say, until};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: (&str, &str) = ("content-type", "application/json");
const BUFFER: u32 = 1 << 20;
const TOO_MANY: &str = "Too many requests, please try again later.";
/// Bytes that the kernel takes from a sender whose other end doesn't read: far less than this.
const MORE_THAN_SOCKETS_HOLD: usize = 8 << 20;

fn map(name: &str, bytes: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name}, "data": {"x": "x".repeat(bytes)},
    })
}

async fn send(client: &Client, head: &str, body: &[u8]) -> Result<Heard> {
    exchange(&mut client.open(BUFFER).await?, head, body).await
}

async fn post(client: &Client, headers: &[(&str, &str)], body: &[u8]) -> Result<Heard> {
    let length = body.len().to_string();
    let own = [JSON, ("content-length", length.as_str())];
    let head = head("POST", MAPS, &[&own[..], headers].concat());
    send(client, &head, body).await
}

async fn get(client: &Client, path: &str, headers: &[(&str, &str)]) -> Result<Heard> {
    send(client, &head("GET", path, headers), b"").await
}

async fn code(connection: &mut Connection, path: &str) -> Result<u16> {
    Ok(connection.call(Method::GET, path, None).await?.status)
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn chunked(body: &[u8]) -> Vec<u8> {
    let pieces = body.chunks(10_000).map(|piece| {
        let size = format!("{:x}\r\n", piece.len());
        [size.as_bytes(), piece, b"\r\n"].concat()
    });
    let mut all = pieces.collect::<Vec<_>>().concat();
    all.extend_from_slice(b"0\r\n\r\n");
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_no_larger_than_it_may_be_however_it_is_sent() -> Result<()> {
    let limit = 100_000;
    let limits = Limits {
        body_bytes: limit,
        object_bytes: 50_000,
        ..Limits::default()
    };
    let api = Api::start_limited(limits).await?;
    let client = api.client()?;
    let large = map("large", limit).to_string();
    let refused = (
        413,
        "RequestEntityTooLarge".to_owned(),
        format!("Request entity too large: limit is {limit}"),
    );
    let heard = post(&client, &[], large.as_bytes()).await?;
    assert_eq!(heard.refusal(), refused);
    let pieces = head("POST", MAPS, &[JSON, ("transfer-encoding", "chunked")]);
    let heard = send(&client, &pieces, &chunked(large.as_bytes())).await?;
    assert_eq!(heard.refusal(), refused);
    let small = gzip(large.as_bytes())?;
    assert!(small.len() < 1000, "that itself is within the limit");
    let heard = post(&client, &[("content-encoding", "gzip")], &small).await?;
    assert_eq!(heard.refusal(), refused);
    let huge = vec![b' '; 50 * limit];
    let heard = post(&client, &[], &huge).await?;
    assert_eq!(
        heard.refusal(),
        refused,
        "a client that is still sending hears it"
    );
    let waiting = [
        JSON,
        ("content-length", "999999"),
        ("expect", "100-continue"),
    ];
    let heard = send(&client, &head("POST", MAPS, &waiting), b"").await?;
    assert_eq!(heard.refusal(), refused, "before it is sent");
    assert_eq!(refusals(&api, "body_bytes"), 5.0);

    let heard = post(&client, &[], map("object", 60_000).to_string().as_bytes()).await?;
    assert_eq!((heard.status(), refusals(&api, "too_large")), (413, 1.0));
    let good = gzip(map("good", 100).to_string().as_bytes())?;
    let heard = post(&client, &[("content-encoding", "gzip")], &good).await?;
    assert_eq!(heard.status(), 201, "{heard:?}");
    let heard = post(&client, &[("content-encoding", "br")], &good).await?;
    assert_eq!(heard.status(), 415);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_head_of_a_request_is_limited_part_by_part() -> Result<()> {
    let limits = Limits {
        header_bytes: 8192,
        headers: 20,
        url_bytes: 1000,
        ..Limits::default()
    };
    let api = Api::start_limited(limits).await?;
    let client = api.client()?;
    let heard = get(&client, &format!("{MAPS}?x={}", "x".repeat(1000)), &[]).await?;
    assert_eq!((heard.status(), refusals(&api, "url_bytes")), (414, 1.0));
    assert_eq!(heard.json()["kind"], "Status");
    let long = "x".repeat(9000);
    let heard = get(&client, MAPS, &[("x-long", &long)]).await?;
    assert_eq!((heard.status(), refusals(&api, "header_bytes")), (431, 1.0));
    let heard = get(&client, MAPS, &[("x-one", "1"); 25]).await?;
    assert_eq!((heard.status(), refusals(&api, "headers")), (431, 1.0));
    // Far too large ones are refused while they are read.
    let longer = "x".repeat(200_000);
    assert_eq!(
        get(&client, MAPS, &[("x-long", &longer)]).await?.status(),
        431
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn selectors_patches_pages_and_managers_are_limited() -> Result<()> {
    let limits = Limits {
        selector_bytes: 100,
        patch_operations: 3,
        depth: 10,
        page_objects: 2,
        field_managers: 2,
        ..Limits::default()
    };
    let api = Api::start_limited(limits).await?;
    let client = api.client()?;
    let selector = format!("{MAPS}?labelSelector=x%3D{}", "x".repeat(100));
    let heard = get(&client, &selector, &[]).await?;
    assert_eq!(heard.status(), 400);
    let deep = format!(
        "{}{}",
        "{\"a\":".repeat(11),
        "1".to_owned() + &"}".repeat(11)
    );
    assert_eq!(post(&client, &[], deep.as_bytes()).await?.status(), 400);

    for name in ["a", "b", "c"] {
        let heard = post(&client, &[], map(name, 1).to_string().as_bytes()).await?;
        assert_eq!(heard.status(), 201);
    }
    let operation = json!({"op": "add", "path": "/data/y", "value": "1"});
    let patch = Value::Array(vec![operation; 4]).to_string();
    let length = patch.len().to_string();
    let kind = ("content-type", "application/json-patch+json");
    let patched = head(
        "PATCH",
        &format!("{MAPS}/a"),
        &[kind, ("content-length", &length)],
    );
    let heard = send(&client, &patched, patch.as_bytes()).await?;
    let why =
        "Request entity too large: The allowed maximum operations in a JSON patch is 3, got 4";
    assert_eq!(
        heard.refusal(),
        (413, "RequestEntityTooLarge".to_owned(), why.to_owned())
    );

    let listed = get(&client, &format!("{MAPS}?limit=100"), &[])
        .await?
        .json();
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(2));
    assert!(
        listed["metadata"]["continue"].is_string(),
        "the rest is to be had"
    );
    let all = get(&client, MAPS, &[]).await?.json();
    assert!(
        all["items"].as_array().map_or(0, Vec::len) > 2,
        "who asks for all gets all"
    );

    let mut connection = client.connect().await?;
    for manager in ["m1", "m2", "m3", "m4"] {
        let path = format!("{MAPS}/a?fieldManager={manager}");
        let patch = json!({"data": {manager: "1"}});
        let answer = connection.call(Method::PATCH, &path, Some(&patch)).await?;
        assert_eq!(answer.status, 200);
        let managers = answer.body["metadata"]["managedFields"]
            .as_array()
            .map(Vec::len);
        assert!(managers <= Some(2), "{managers:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_who_asks_too_often_waits_and_nobody_else_does() -> Result<()> {
    let limits = Limits {
        user_rate: 1,
        user_burst: 3,
        ..Limits::default()
    };
    let api = Api::start_limited(limits).await?;
    let mut tenant = api.member("tess", "godwit:viewers")?.connect().await?;
    for _ in 0..3 {
        assert_eq!(code(&mut tenant, MAPS).await?, 200);
    }
    let began = Instant::now();
    let mut refused = tenant.call(Method::GET, MAPS, None).await?;
    assert_eq!(refused.status, 429);
    let seconds: u64 = refused
        .retry_after
        .take()
        .context("no Retry-After")?
        .parse()?;
    assert_eq!(seconds, 1, "whole seconds");
    assert_eq!(refused.body["reason"], "TooManyRequests");
    assert_eq!(refused.body["details"]["retryAfterSeconds"], 1);
    let mut other = api.member("other", "godwit:viewers")?.connect().await?;
    assert_eq!(code(&mut other, MAPS).await?, 200);
    let mut admin = api.client()?.connect().await?;
    for _ in 0..20 {
        assert_eq!(code(&mut admin, MAPS).await?, 200);
        assert_eq!(code(&mut tenant, "/livez").await?, 200, "probes are free");
    }
    // Who waits as told is served.
    tokio::time::sleep_until((began + Duration::from_secs(seconds)).into()).await;
    assert_eq!(code(&mut tenant, MAPS).await?, 200);
    let name = "apiserver_flowcontrol_rejected_requests_total{priority_level=\"tenants\",\
                flow_schema=\"tenants\",reason=\"rate\"}";
    assert_eq!(crate::api_wire::metric(&api, name), 1.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_tenants_keeps_no_admin_out_and_no_lease() -> Result<()> {
    let limits = Limits {
        requests: 4,
        requests_reserved: 2,
        requests_per_user: 1,
        ..Limits::default()
    };
    let api = Api::start_limited(limits).await?;
    let body = map("late", 10).to_string();
    let length = body.len().to_string();
    let request = head("POST", MAPS, &[JSON, ("content-length", &length)]);
    let mut flood = vec![];
    for name in ["t1", "t2"] {
        let mut raw = api.member(name, "godwit:editors")?.open(BUFFER).await?;
        // All but the last byte: it runs until that comes.
        say(&mut raw, request.as_bytes()).await;
        say(&mut raw, &body.as_bytes()[..body.len() - 1]).await;
        flood.push(raw);
    }
    until(&api, "godwit_api_body_bytes", |bytes| bytes == 131_072.0).await?;
    let busy = api.member("t1", "godwit:editors")?;
    let heard = get(&busy, MAPS, &[]).await?;
    assert_eq!(
        (heard.status(), refusals(&api, "requests_per_user")),
        (429, 1.0)
    );
    let third = api.member("t3", "godwit:editors")?;
    let heard = get(&third, MAPS, &[]).await?;
    let refused = (429, "TooManyRequests".to_owned(), TOO_MANY.to_owned());
    assert_eq!(
        (heard.refusal(), heard.header("retry-after")),
        (refused, Some("1"))
    );
    assert_eq!(refusals(&api, "requests"), 1.0);
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    assert_ne!(get(&third, leases, &[]).await?.status(), 429);
    assert_eq!(get(&third, "/readyz", &[]).await?.status(), 200);
    assert_eq!(get(&api.client()?, MAPS, &[]).await?.status(), 200);
    let mut first = flood.remove(0);
    say(&mut first, &body.as_bytes()[body.len() - 1..]).await;
    assert_eq!(hear(&mut first).await?.status(), 201);
    until(&api, "godwit_api_body_bytes", |bytes| bytes == 65_536.0).await?;
    assert_eq!(get(&third, MAPS, &[]).await?.status(), 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_are_counted_by_user_and_in_all() -> Result<()> {
    let limits = Limits {
        watches: 4,
        watches_reserved: 1,
        watches_per_user: 2,
        ..Limits::default()
    };
    let api = Api::start_limited(limits).await?;
    let watch = format!("{MAPS}?watch=true");
    let (one, two) = (
        api.member("one", "godwit:viewers")?,
        api.member("two", "godwit:viewers")?,
    );
    let mut open = vec![one.watch(MAPS).await?, one.watch(MAPS).await?];
    let heard = get(&one, &watch, &[]).await?;
    assert_eq!(
        (heard.status(), heard.header("retry-after")),
        (429, Some("1"))
    );
    assert_eq!(refusals(&api, "watches_per_user"), 1.0);
    assert_eq!(
        get(&one, MAPS, &[]).await?.status(),
        200,
        "lists are no watches"
    );
    open.push(two.watch(MAPS).await?);
    assert_eq!(get(&two, &watch, &[]).await?.status(), 429);
    assert_eq!(refusals(&api, "watches"), 1.0);
    let reserved = api.client()?.watch(MAPS).await?;
    assert_eq!(get(&api.client()?, &watch, &[]).await?.status(), 429);
    drop(open);
    until(&api, "apiserver_longrunning_requests", |open| open == 1.0).await?;
    drop((one.watch(MAPS).await?, reserved));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_sends_too_slowly_is_cut() -> Result<()> {
    let limits = Limits {
        handshake_ms: 300,
        first_request_ms: 300,
        idle_ms: 300,
        body_stall_ms: 300,
        body_ms: 1500,
        ..Limits::default()
    };
    let api = Api::start_limited(limits).await?;
    let client = api.client()?;
    // No TLS is spoken.
    let silent = TcpStream::connect(client.address()).await?;
    ensure!(
        timeout(Duration::from_secs(5), silent.readable())
            .await
            .is_ok()
    );
    until_counted(&api, "handshake_ms").await?;
    // Nothing, or half a head, is said.
    for part in ["", "GET /api HTTP/1.1\r\nhost: g"] {
        let mut raw = client.open(BUFFER).await?;
        say(&mut raw, part.as_bytes()).await;
        let heard = hear(&mut raw).await?;
        assert!([0, 408].contains(&heard.status()), "{heard:?}");
    }
    // The second request doesn't come whole.
    let mut raw = client.open(BUFFER).await?;
    say(&mut raw, b"GET /livez HTTP/1.1\r\nhost: g\r\n\r\nGET /liv").await;
    assert_eq!(hear(&mut raw).await?.status(), 200);
    // A body stops, and one comes byte by byte.
    let start = head("POST", MAPS, &[JSON, ("content-length", "1000")]);
    let heard = send(&client, &start, b"{\"a").await?;
    assert_eq!(
        (heard.status(), heard.json()["reason"].as_str()),
        (408, Some("Timeout"))
    );
    assert_eq!(refusals(&api, "body_stall_ms"), 1.0);
    let mut raw = client.open(BUFFER).await?;
    say(&mut raw, start.as_bytes()).await;
    let began = Instant::now();
    while refusals(&api, "body_ms") == 0.0 {
        ensure!(
            began.elapsed() < Duration::from_secs(10),
            "it may drip for ever"
        );
        say(&mut raw, b" ").await;
        tokio::time::sleep(Duration::from_millis(20)).await; // dripping
    }
    assert_eq!(hear(&mut raw).await?.status(), 408);
    assert_eq!(get(&client, MAPS, &[]).await?.status(), 200);
    Ok(())
}

async fn until_counted(api: &Api, limit: &str) -> Result<()> {
    let name = format!("godwit_api_limit_refusals_total{{limit=\"{limit}\"}}");
    until(api, &name, |count| count > 0.0).await
}

/// Objects whose list is more than sockets hold.
async fn fill(client: &Client) -> Result<()> {
    let mut connection = client.connect().await?;
    let size = 1_000_000;
    for number in 0..=MORE_THAN_SOCKETS_HOLD / size {
        let object = map(&format!("large-{number}"), size);
        connection.post(MAPS, &object).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_too_slowly_is_cut_and_holds_nothing() -> Result<()> {
    let limits = Limits {
        answer_stall_ms: 5000,
        ..Limits::default()
    };
    let api = Api::start_limited(limits).await?;
    let client = api.client()?;
    fill(&client).await?;
    let watch = format!("{MAPS}?watch=true&resourceVersion=0");
    // Over HTTP/1.1 the socket is full; over HTTP/2 its stream is, and the others go on.
    let mut list = client.open(4096).await?;
    say(&mut list, head("GET", MAPS, &[]).as_bytes()).await;
    let mut slow_watch = client.open(4096).await?;
    say(&mut slow_watch, head("GET", &watch, &[]).as_bytes()).await;
    let mut shared = client.http2(1000).await?;
    let stream = ask(&mut shared, MAPS).await?;
    assert_eq!(stream.status(), 200);
    until(&api, "godwit_api_answer_bytes", |bytes| bytes > 1.6e7).await?;
    let mut others = client.connect().await?;
    let began = Instant::now();
    assert_eq!(code(&mut others, &format!("{MAPS}/large-1")).await?, 200);
    assert!(
        began.elapsed() < Duration::from_millis(4000),
        "{:?}",
        began.elapsed()
    );

    until(&api, "godwit_api_answer_bytes", |bytes| bytes < 1e6).await?;
    until(&api, "apiserver_longrunning_requests", |open| open == 0.0).await?;
    assert_eq!(refusals(&api, "answer_stall_ms"), 3.0);
    let heard = hear(&mut list).await?;
    assert!(
        heard.body.len() < MORE_THAN_SOCKETS_HOLD,
        "{} read",
        heard.body.len()
    );
    assert!(
        stream.read().await.is_err(),
        "the list is not whole, and that shows"
    );
    assert_eq!(ask(&mut shared, "/livez").await?.read().await?, "ok");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_answers_are_left_again_and_again_is_closed() -> Result<()> {
    let limits = Limits {
        answer_stall_ms: 300,
        ..Limits::default()
    };
    let api = Api::start_limited(limits).await?;
    let client = api.client()?;
    let object = map("large", 500_000);
    client.connect().await?.post(MAPS, &object).await?;
    let mut shared = client.http2(1000).await?;
    let mut left = vec![];
    for _ in 0..4 {
        left.push(ask(&mut shared, MAPS).await?);
    }
    let stalls = "godwit_api_limit_refusals_total{limit=\"answer_stall_ms\"}";
    until(&api, stalls, |count| count == 4.0).await?;
    assert_eq!(ask(&mut shared, "/livez").await?.status(), 200);
    left.push(ask(&mut shared, MAPS).await?);
    until(&api, "godwit_api_connections", |open| open == 0.0).await?;
    assert!(ask(&mut shared, "/livez").await.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_drips_ends_and_a_quiet_watch_does_not() -> Result<()> {
    let limits = Limits {
        answer_stall_ms: 1000,
        answer_ms: 2500,
        ..Limits::default()
    };
    let api = Api::start_limited(limits).await?;
    let client = api.client()?;
    let mut watch = client.watch("/api/v1/namespaces/default/secrets").await?;
    fill(&client).await?;
    let mut list = client.open(BUFFER).await?;
    say(&mut list, head("GET", MAPS, &[]).as_bytes()).await;
    let mut read = 0;
    let mut piece = vec![0; 16 << 10];
    // It reads on and on, and still is cut.
    while let Ok(more @ 1..) = list.read(&mut piece).await {
        read += more;
        ensure!(read < MORE_THAN_SOCKETS_HOLD, "it was read to its end");
        tokio::time::sleep(Duration::from_millis(10)).await; // dripping
    }
    let counted = (
        refusals(&api, "answer_ms"),
        refusals(&api, "answer_stall_ms"),
    );
    assert_eq!(counted, (1.0, 0.0), "{read} bytes were read");
    // It was quiet for longer than a client may be.
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}});
    let secrets = "/api/v1/namespaces/default/secrets";
    client.connect().await?.post(secrets, &secret).await?;
    let (_, change) = timeout(Duration::from_secs(5), watch.next()).await??;
    assert_eq!(change["object"]["metadata"]["name"], "s");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_counted_and_an_operator_still_gets_one() -> Result<()> {
    let limits = Limits {
        connections: 4,
        connections_reserved: 2,
        ..Limits::default()
    };
    let api = Api::start_limited(limits).await?;
    let tenant = api.member("tess", "godwit:viewers")?;
    let mut open = vec![tenant.connect().await?, tenant.connect().await?];
    for connection in &mut open {
        assert_eq!(code(connection, "/api").await?, 200);
    }
    let mut raw = tenant.open(BUFFER).await?;
    let heard = exchange(&mut raw, &head("GET", "/api", &[]), b"").await?;
    assert_eq!((heard.status(), refusals(&api, "connections")), (0, 1.0));
    until(&api, "godwit_api_connections", |open| open == 2.0).await?;
    assert_eq!(get(&api.client()?, "/api", &[]).await?.status(), 200);
    open.pop();
    until(&api, "godwit_api_connections", |open| open == 1.0).await?;
    assert_eq!(get(&tenant, "/api", &[]).await?.status(), 200);
    Ok(())
}
