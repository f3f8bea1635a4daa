//! The audit log: what it holds, what it doesn't, and what becomes of it when the ledger is away.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use godwit_testkit::api::{Connection, Method, Request, Response};
use godwit_testkit::kubectl::Release;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::api_env::{Api, example};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Longest time until a record is where it belongs.
const SOON: Duration = Duration::from_secs(30);

/// A gateway whose audit log is also a file.
async fn start() -> Result<(Api, PathBuf)> {
    let mut file = PathBuf::new();
    let api = Api::start_configured(|config, dir| {
        file = dir.join("audit.log");
        config.audit.file = Some(file.clone());
        Ok(())
    })
    .await?;
    Ok((api, file))
}

/// Events of the file, waited for until there are `count` that `wanted` picks.
async fn in_file(file: &Path, count: usize, wanted: fn(&Value) -> bool) -> Result<Vec<Value>> {
    let began = Instant::now();
    loop {
        let text = std::fs::read_to_string(file)?;
        let events: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
        // The last line may be half written.
        let picked: Vec<Value> = events
            .unwrap_or_default()
            .into_iter()
            .filter(wanted)
            .collect();
        if picked.len() >= count {
            return Ok(picked);
        }
        ensure!(
            began.elapsed() < SOON,
            "{} of {count} events: {text}",
            picked.len()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn sql(api: &Api) -> Result<PgConnection> {
    Ok(PgConnection::connect(&api.database_url).await?)
}

/// Events of the ledger in their order, waited for until there are `count`.
async fn in_ledger(api: &Api, count: usize) -> Result<Vec<Value>> {
    let began = Instant::now();
    let mut sql = sql(api).await?;
    loop {
        let query = "SELECT event FROM audit_event ORDER BY received_at, uid";
        let events: Vec<Value> = sqlx::query_scalar(query).fetch_all(&mut sql).await?;
        if events.len() >= count {
            return Ok(events);
        }
        ensure!(began.elapsed() < SOON, "{} of {count} events", events.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn ask(
    connection: &mut Connection,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    body: &Value,
) -> Result<Response<String>> {
    let mut request = Request::builder().method(method).uri(path);
    request = request.header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    connection.exchange(request.body(body.to_string())?).await
}

/// What authorization said; empty when it wasn't asked.
fn decision(event: &Value) -> &str {
    let decision = &event["annotations"]["authorization.k8s.io/decision"];
    decision.as_str().unwrap_or_default()
}

fn map(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
        "data": {"password": "open-sesame"},
    })
}

/// A JSON merge patch by an administrator who acts as alice.
async fn patch_as_alice(admin: &mut Connection, path: &str) -> Result<()> {
    let request = Request::builder()
        .method("PATCH")
        .uri(path)
        .header("content-type", "application/merge-patch+json")
        .header("impersonate-user", "alice")
        .header("impersonate-group", "system:masters");
    let body = json!({"data": {"b": "open-sesame"}}).to_string();
    let patched = admin.exchange(request.body(body)?).await?;
    ensure!(patched.status() == 200, "{}", patched.body());
    Ok(())
}

#[tokio::test]
async fn a_change_is_recorded_with_who_what_and_when() -> Result<()> {
    let (api, file) = start().await?;
    let mut admin = api.client()?.connect().await?;
    let mine = [
        ("audit-id", "mine-1"),
        ("user-agent", "tester/1"),
        ("x-forwarded-for", "9.9.9.9"),
    ];
    let made = ask(&mut admin, ("POST", MAPS), &mine, &map("a")).await?;
    assert_eq!(made.status(), 201);
    assert_eq!(made.headers()["audit-id"], "mine-1");
    let mut unnamed = map("");
    unnamed["metadata"] = json!({"generateName": "made-"});
    let made = ask(&mut admin, ("POST", MAPS), &[], &unnamed).await?;
    let named: Value = serde_json::from_str(made.body())?;
    assert_eq!(made.headers()["audit-id"].len(), 36);
    let patch = format!("{MAPS}/a?dryRun=All&fieldManager=me&access_token=open-sesame");
    patch_as_alice(&mut admin, &patch).await?;

    let events = in_file(&file, 3, |_| true).await?;
    assert_eq!(in_ledger(&api, 3).await?, events);
    let created = &events[0];
    let wanted = json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata",
        "auditID": "mine-1", "stage": "ResponseComplete", "requestURI": MAPS, "verb": "create",
        "userAgent": "tester/1", "sourceIPs": ["9.9.9.9", "127.0.0.1"],
        "objectRef": {
            "resource": "configmaps", "namespace": "default", "name": "a", "apiVersion": "v1",
        },
        "responseStatus": {"metadata": {}, "code": 201},
    });
    for (key, value) in wanted.as_object().context("an object")? {
        assert_eq!(created[key], *value, "{key}");
    }
    assert_eq!(decision(created), "allow");
    assert_eq!(created["user"]["username"], "admin");
    let times = ["requestReceivedTimestamp", "stageTimestamp"].map(|key| created[key].as_str());
    assert!(times[0].is_some() && times[0] <= times[1], "{times:?}");
    assert_eq!(events[1]["objectRef"]["name"], named["metadata"]["name"]);

    let patched = &events[2];
    assert_eq!(patched["user"]["username"], "admin");
    assert_eq!(patched["impersonatedUser"]["username"], "alice");
    assert_eq!(patched["annotations"]["godwit.io/dry-run"], "All");
    let shown = format!("{MAPS}/a?dryRun=All&fieldManager=me&access_token");
    assert_eq!(patched["requestURI"], shown);
    let text = std::fs::read_to_string(&file)?;
    assert!(!text.contains("sesame"), "{text}");
    Ok(())
}

#[tokio::test]
async fn refusals_are_recorded_and_reads_are_not() -> Result<()> {
    let (api, file) = start().await?;
    let mut admin = api.client()?.connect().await?;
    let mut nobody = api.client_of(None)?.connect().await?;
    let none = Value::Null;
    let read = ask(&mut admin, ("GET", MAPS), &[], &none).await?;
    assert_eq!(read.status(), 200);
    let token = ("authorization", "Bearer viewer-token");
    let secrets = ("GET", "/api/v1/namespaces/default/secrets/s");
    let refused = ask(&mut nobody, secrets, &[token], &none).await?;
    assert_eq!(refused.status(), 403);
    let wrong = [("authorization", "Bearer open-sesame")];
    let refused = ask(&mut nobody, ("GET", MAPS), &wrong, &none).await?;
    assert_eq!(refused.status(), 401);
    let other = [token, ("impersonate-user", "admin")];
    let refused = ask(&mut nobody, ("GET", MAPS), &other, &none).await?;
    assert_eq!(refused.status(), 403);
    admin.post(MAPS, &map("a")).await?;
    let taken = ask(&mut admin, ("POST", MAPS), &[], &map("a")).await?;
    assert_eq!(taken.status(), 409);

    let events = in_file(&file, 5, |_| true).await?;
    assert_eq!(in_ledger(&api, 5).await?, events);
    let decisions: Vec<&str> = events.iter().map(decision).collect();
    assert_eq!(decisions, ["forbid", "", "forbid", "allow", "allow"]);
    assert_eq!(events[0]["objectRef"]["name"], "s");
    assert_eq!(events[1]["user"], json!({}));
    let failed = "Authentication failed, attempted: bearer";
    assert_eq!(events[1]["responseStatus"]["message"], failed);
    assert_eq!(events[2]["user"]["username"], "vera");
    assert_eq!(events[2].get("impersonatedUser"), None);
    assert_eq!(events[4]["responseStatus"]["code"], 409);
    assert_eq!(events[4]["objectRef"]["name"], "a");
    let text = std::fs::read_to_string(&file)?;
    assert!(
        !text.contains("sesame") && !text.contains("viewer-token"),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn what_kubectl_does_for_somebody_else_names_both() -> Result<()> {
    let (api, file) = start().await?;
    for release in Release::ENDS {
        let admin = api.admin(release).await?;
        let machine = example("vm-rhel8-server-nfs.yaml");
        let alice = ["--as=alice", "--as-group=system:masters"];
        admin
            .ok(&[&["create", "-f", &machine], &alice[..]].concat())
            .await?;
        admin
            .ok(&[&["delete", "-f", &machine], &alice[..]].concat())
            .await?;
    }
    let both = |event: &Value| {
        event["user"]["username"] == "admin" && event["impersonatedUser"]["username"] == "alice"
    };
    let events = in_file(&file, 4, both).await?;
    let verbs: Vec<&Value> = events.iter().map(|event| &event["verb"]).collect();
    assert_eq!(verbs, ["create", "delete", "create", "delete"]);
    for event in &events {
        assert_eq!(event["objectRef"]["name"], "rhel8-server-nfs");
        assert!(
            event["userAgent"]
                .as_str()
                .context("an agent")?
                .starts_with("kubectl/")
        );
    }
    Ok(())
}

#[tokio::test]
async fn the_ledgers_audit_log_can_only_grow() -> Result<()> {
    let (api, _) = start().await?;
    let mut admin = api.client()?.connect().await?;
    admin.post(MAPS, &map("a")).await?;
    in_ledger(&api, 1).await?;

    let mut owner = sql(&api).await?;
    let part: String = sqlx::query_scalar("SELECT tableoid::regclass::text FROM audit_event")
        .fetch_one(&mut owner)
        .await?;
    assert!(part.starts_with("audit_event_2"), "{part}");
    let changes = |table: &str| {
        [
            format!("DELETE FROM {table}"),
            format!("UPDATE {table} SET username = 'eve'"),
            format!("TRUNCATE {table}"),
        ]
    };
    for change in changes("audit_event").into_iter().chain(changes(&part)) {
        let refused = sqlx::raw_sql(sqlx::AssertSqlSafe(change.clone()))
            .execute(&mut owner)
            .await;
        let error = refused
            .err()
            .with_context(|| format!("{change} went through"))?;
        let constraint = error
            .as_database_error()
            .and_then(|error| error.constraint());
        assert_eq!(
            constraint,
            Some("audit_event_append_only"),
            "{change}: {error}"
        );
    }
    // The service itself may not even try, nor look, nor forget.
    let url = api.database_url.replace("//postgres@", "//godwit_gateway@");
    let mut gateway = PgConnection::connect(&url).await?;
    let drop = format!("DROP TABLE {part}");
    let forget = "SELECT audit_forget('2100-01-01')".to_owned();
    let look = "SELECT * FROM audit_event".to_owned();
    for change in changes("audit_event")
        .into_iter()
        .chain([drop, forget, look])
    {
        let refused = sqlx::raw_sql(sqlx::AssertSqlSafe(change.clone()))
            .execute(&mut gateway)
            .await;
        let error = refused
            .err()
            .with_context(|| format!("{change} went through"))?;
        let code = error.as_database_error().and_then(|error| error.code());
        assert_eq!(code.as_deref(), Some("42501"), "{change}: {error}");
    }
    // Whole months are the owner's to forget, and this one is not over.
    let forget = |before: &'static str| sqlx::query_scalar::<_, i32>(before);
    let now = forget("SELECT audit_forget(now())")
        .fetch_one(&mut owner)
        .await?;
    assert_eq!(now, 0);
    let all = forget("SELECT audit_forget('2100-01-01')")
        .fetch_one(&mut owner)
        .await?;
    assert!(all >= 2);
    Ok(())
}

#[tokio::test]
async fn while_the_ledger_is_away_the_file_has_it_and_it_follows() -> Result<()> {
    let (api, file) = start().await?;
    let mut admin = api.client()?.connect().await?;
    admin.post(MAPS, &map("a")).await?;
    in_ledger(&api, 1).await?;
    let postgres = Arc::clone(&api.postgres);
    tokio::task::spawn_blocking(move || postgres.crash()).await??;
    let refused = admin.call(Method::POST, MAPS, Some(&map("b"))).await?;
    assert_eq!(refused.status, 503);
    let mut nobody = api.client_of(None)?.connect().await?;
    for _ in 0..20 {
        let wrong = [("authorization", "Bearer wrong")];
        ask(&mut nobody, ("DELETE", MAPS), &wrong, &Value::Null).await?;
    }
    let events = in_file(&file, 22, |_| true).await?;
    assert_eq!(events[1]["responseStatus"]["code"], 503);
    let postgres = Arc::clone(&api.postgres);
    tokio::task::spawn_blocking(move || postgres.revive()).await??;
    assert_eq!(in_ledger(&api, 22).await?, events);
    let metrics = api.metrics.text()?;
    for (sink, outcome, events) in [
        ("file", "stored", 22),
        ("file", "lost", 0),
        ("ledger", "lost", 0),
    ] {
        let line = format!(
            "godwit_audit_events_total{{sink=\"{sink}\",outcome=\"{outcome}\"}} {events}\n"
        );
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    Ok(())
}

#[tokio::test]
async fn a_change_whose_client_did_not_wait_is_recorded() -> Result<()> {
    let (api, file) = start().await?;
    let mut admin = api.client()?.connect().await?;
    // Whoever holds this lock holds up every change.
    let mut owner = sql(&api).await?;
    let mut held = owner.begin().await?;
    sqlx::query("SELECT revision_lock()")
        .execute(&mut *held)
        .await?;
    let map = map("a");
    let given_up = admin.post(MAPS, &map);
    let given_up = tokio::time::timeout(Duration::from_millis(500), given_up).await;
    assert!(given_up.is_err());
    drop(admin);
    held.rollback().await?;
    let events = in_file(&file, 1, |event| event["verb"] == "create").await?;
    assert_eq!(events[0]["user"]["username"], "admin");
    assert!(
        events[0]["annotations"]["godwit.io/unanswered"].is_string(),
        "{events:?}"
    );
    assert_eq!(in_ledger(&api, 1).await?, events);
    Ok(())
}
