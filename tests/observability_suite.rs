//! Every query of every dashboard, and every rule, asked of a real Prometheus that watches a lab at
//! work: by `cargo xtask test observability`.
//!
//! What the panels show is kept as JSON, for the pictures in docs/observability.md.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use godwit_testkit::api::Method;
use godwit_testkit::collector::Collector;
use serde_json::{Value, json};

use crate::fault_env::{Faults, MIGRATIONS};
use crate::fault_guest::Guest;
use crate::fault_takeover::way;
use crate::lab_env::maintenance;
use crate::lab_suite::say;

/// Where Prometheus listens.
const PROMETHEUS: &str = "127.0.0.1:19090";
/// Panels that may be empty here, and why.
const MAY_BE_EMPTY: [(&str, &str, &str); 1] = [(
    "migration.json",
    "Migrations of this instance",
    "asked of the trace store; tests/lab_trace.rs reads those spans",
)];
/// Words that our metrics' names begin with.
const OURS: [&str; 5] = ["godwit", "kubevirt", "apiserver", "process", "up"];
const MAINTENANCES: &str = "/apis/kubevirt.io/v1alpha1/nodemaintenances";
const ROLLINGS: &str = "/apis/godwit.io/v1alpha1/rollingmaintenances";

#[test]
fn observability_suite_leaves_no_panel_and_no_rule_without_data() {
    let (collector, port) = Collector::start().unwrap();
    let env = Faults::start_traced(1, port).unwrap();
    let prometheus = Prometheus::start(&env).unwrap();
    work(&env).unwrap();
    let mut faults = panels(&env, &prometheus).unwrap();
    faults.extend(rules(&prometheus).unwrap());
    faults.extend(exemplars(&prometheus, &collector).unwrap());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn observability_suite_has_each_alert_fire_in_a_test_and_stay_quiet_in_another() {
    let read = |name: &str| -> Value {
        let text = std::fs::read_to_string(observability().join(name)).unwrap();
        serde_yaml_ng::from_str(&text).unwrap()
    };
    let (mut fires, mut quiet) = (BTreeSet::new(), BTreeSet::new());
    for test in read("alerts_test.yaml")["tests"].as_array().unwrap() {
        for look in test["alert_rule_test"].as_array().unwrap() {
            let name = look["alertname"].as_str().unwrap().to_owned();
            match look["exp_alerts"]
                .as_array()
                .is_some_and(|all| !all.is_empty())
            {
                true => fires.insert(name),
                false => quiet.insert(name),
            };
        }
    }
    let runbooks = std::fs::read_to_string(observability().join("runbooks.md")).unwrap();
    for (rule, _) in all_rules(&read("alerts.yaml")) {
        let Some(alert) = rule["alert"].as_str() else {
            continue;
        };
        assert!(fires.contains(alert), "{alert} fires in no test");
        assert!(quiet.contains(alert), "{alert} is quiet in no test");
        assert!(
            runbooks.contains(&format!("## {alert}\n")),
            "{alert} has no runbook"
        );
    }
}

fn observability() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../observability")
}

/// Machines move, one is told to stay after all, a node is emptied, and all are visited.
fn work(env: &Faults) -> Result<()> {
    // Slow enough to be seen between two scrapes, and one after the other.
    env.configure(&json!({
        "bandwidthPerMigration": "16Mi", "parallelMigrationsPerCluster": 1,
    }))?;
    let guests = Guest::many(env, "watched", (85, 3))?;
    let mut jobs = vec![];
    for (number, guest) in guests.iter().enumerate() {
        let (_, to) = way(env, guest)?;
        let job = format!("watched-move-{number}");
        env.migrate(&job, &guest.name, &to)?;
        jobs.push(job);
    }
    for job in &jobs {
        let (phase, object) = env.until("the end of a move", || env.ended(job))?;
        ensure!(phase == "Succeeded", "{object:#}");
    }
    let (_, to) = way(env, &guests[0])?;
    env.migrate("taken-back", &guests[0].name, &to)?;
    env.until("a copy under way", || {
        let found = env
            .get(&format!("{MIGRATIONS}/taken-back"))?
            .unwrap_or_default();
        Ok((found["status"]["phase"] == "Running").then_some(()))
    })?;
    env.delete(&format!("{MIGRATIONS}/taken-back"))?;
    env.until("the move to be taken back", || {
        Ok(env
            .get(&format!("{MIGRATIONS}/taken-back"))?
            .is_none()
            .then_some(()))
    })?;
    let node = env.until("a node with a machine", || env.running_on(&guests[0].name))?;
    env.create(MAINTENANCES, &maintenance("watched", &node))?;
    ends(env, &format!("{MAINTENANCES}/watched"))?;
    env.delete(&format!("{MAINTENANCES}/watched"))?;
    env.until("the node to be open", || {
        Ok(env
            .get(&format!("{MAINTENANCES}/watched"))?
            .is_none()
            .then_some(()))
    })?;
    let rolling = json!({
        "apiVersion": "godwit.io/v1alpha1",
        "kind": "RollingMaintenance",
        "metadata": { "name": "watched" },
        "spec": { "nodeSelector": {}, "maxUnavailable": 1 },
    });
    env.create(ROLLINGS, &rolling)?;
    ends(env, &format!("{ROLLINGS}/watched"))?;
    // A request that nobody may make, and one for what there isn't, are a part of each day.
    env.ask(&Method::GET, &format!("{MIGRATIONS}/nothing"), None)?;
    for guest in &guests {
        guest.beats(env)?;
        guest.judge()?;
    }
    Ok(())
}

fn ends(env: &Faults, path: &str) -> Result<()> {
    env.until_long("a maintenance to succeed", || {
        let found = env.get(path)?.unwrap_or_default();
        ensure!(found["status"]["phase"] != "Failed", "{found:#}");
        Ok((found["status"]["phase"] == "Succeeded").then_some(()))
    })
}

/// A real Prometheus; ended when dropped.
struct Prometheus {
    child: Child,
    began: f64,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// Scrapes every service of the lab each second, and evaluates our rules.
    fn start(env: &Faults) -> Result<Self> {
        let dir = env.lab().options().dir.join("prometheus");
        std::fs::create_dir_all(&dir)?;
        let mut jobs: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for service in env.lab().services() {
            let job = match service.name.starts_with("worker") {
                true => "node-agent".to_owned(),
                false => service
                    .name
                    .trim_end_matches(|c: char| c == '-' || c.is_ascii_digit())
                    .to_owned(),
            };
            jobs.entry(job).or_default().push(service.admin);
        }
        let scrapes: Vec<Value> = jobs
            .iter()
            .map(|(job, targets)| json!({ "job_name": job, "static_configs": [{ "targets": targets }] }))
            .collect();
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [observability().join("alerts.yaml")],
            "scrape_configs": scrapes,
        });
        let file = dir.join("prometheus.yaml");
        std::fs::write(&file, config.to_string())?;
        let log = std::fs::File::create(dir.join("log"))?;
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.join("data").display()
            ))
            .arg(format!("--web.listen-address={PROMETHEUS}"))
            .arg("--enable-feature=exemplar-storage")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("start Debian's prometheus")?;
        let prometheus = Self {
            child,
            began: now(),
        };
        env.until("Prometheus to be ready", || {
            Ok(get("/-/ready")
                .is_ok_and(|said| said.contains(" 200 "))
                .then_some(()))
        })?;
        // What happened before the first scrape is no increase to it.
        let services = env.lab().services().len().to_string();
        env.until("every service to be scraped", || {
            let answer = answer("/api/v1/query?query=sum(up)")?;
            let up = &answer["data"]["result"][0]["value"][1];
            Ok((up == services.as_str()).then_some(()))
        })?;
        Ok(prometheus)
    }

    /// Every series of `expression` since the begin.
    fn range(&self, expression: &str) -> Result<Vec<Value>> {
        let (begin, end) = (self.began, now());
        let path = format!(
            "/api/v1/query_range?query={}&start={begin}&end={end}&step=1",
            encoded(expression)
        );
        let answer = answer(&path)?;
        Ok(answer["data"]["result"]
            .as_array()
            .cloned()
            .unwrap_or_default())
    }
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

fn get(path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(PROMETHEUS)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    // The old version of HTTP has no chunks.
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn answer(path: &str) -> Result<Value> {
    let text = get(path)?;
    let (_, body) = text.split_once("\r\n\r\n").context("no HTTP")?;
    let answer: Value = serde_json::from_str(body).with_context(|| body.to_owned())?;
    ensure!(answer["status"] == "success", "{path}: {answer}");
    Ok(answer)
}

fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric();
    let encode = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// A query as a person's dashboard would send it.
fn filled(expression: &str, range: f64) -> String {
    let expression = expression
        .replace("$__rate_interval", "10s")
        .replace("$__range", &format!("{range:.0}s"));
    let variables = ["$namespace", "$name", "$job"];
    variables
        .iter()
        .fold(expression, |text, name| text.replace(name, ".+"))
}

/// Asks what every panel asks. Answers what is wrong, and keeps what they show.
fn panels(env: &Faults, prometheus: &Prometheus) -> Result<Vec<String>> {
    let (mut faults, mut shown, mut asked) = (vec![], vec![], 0);
    let folder = std::fs::read_dir(observability().join("dashboards"))?;
    let mut files: Vec<PathBuf> = folder.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let board: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
        for panel in board["panels"].as_array().into_iter().flatten() {
            let title = panel["title"].as_str().unwrap_or_default();
            let excused = MAY_BE_EMPTY
                .iter()
                .any(|(of, panel, _)| *of == name && *panel == title);
            for target in panel["targets"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|_| !excused)
            {
                let query = target["expr"]
                    .as_str()
                    .context("a target without a query")?;
                let query = filled(query, now() - prometheus.began);
                let series = prometheus.range(&query)?;
                asked += 1;
                if !series.iter().any(has_number) {
                    faults.push(format!("{name}: {title}: no data: {query}"));
                }
                shown.push(json!({
                    "board": name, "panel": title, "unit": panel["fieldConfig"]["defaults"]["unit"],
                    "kind": panel["type"], "row": panel["gridPos"], "id": panel["id"],
                    "legend": target["legendFormat"], "series": series,
                }));
            }
        }
    }
    let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("panels.json");
    std::fs::write(&kept, json!(shown).to_string())?;
    let services = env.lab().services().len();
    say(&format!(
        "{asked} queries of panels over {:.0} s of {services} services; kept in {}",
        now() - prometheus.began,
        kept.display()
    ));
    Ok(faults)
}

fn has_number(series: &Value) -> bool {
    let finite = |point: &Value| {
        let value = point[1].as_str().and_then(|text| text.parse::<f64>().ok());
        value.is_some_and(f64::is_finite)
    };
    series["values"]
        .as_array()
        .is_some_and(|points| points.iter().any(finite))
}

fn all_rules(file: &Value) -> Vec<(Value, String)> {
    let groups = file["groups"].as_array().cloned().unwrap_or_default();
    let rules = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default());
    let with_text = |rule: Value| {
        let text = rule["expr"].as_str().unwrap_or_default().to_owned();
        (rule, text)
    };
    rules.map(with_text).collect()
}

/// Every rule can be evaluated, what is recorded has numbers, and every metric that a rule names is
/// one that the services have. Answers what is wrong.
fn rules(prometheus: &Prometheus) -> Result<Vec<String>> {
    let mut faults = vec![];
    let names = answer("/api/v1/label/__name__/values")?;
    let names: BTreeSet<&str> = names["data"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let text = std::fs::read_to_string(observability().join("alerts.yaml"))?;
    let rules = all_rules(&serde_yaml_ng::from_str(&text)?);
    for (rule, expression) in &rules {
        let title = rule["alert"]
            .as_str()
            .or_else(|| rule["record"].as_str())
            .unwrap_or_default();
        let series = prometheus.range(expression)?;
        if rule["record"].is_string() && !series.iter().any(has_number) {
            faults.push(format!("{title}: no data: {expression}"));
        }
        let words =
            expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
        let ours = words.filter(|word| {
            OURS.iter().any(|begin| {
                word == begin
                    || word.starts_with(&format!("{begin}_"))
                    || word.starts_with(&format!("{begin}:"))
            })
        });
        for word in ours.filter(|word| !names.contains(*word)) {
            faults.push(format!("{title}: nobody has {word}"));
        }
    }
    let firing = answer("/api/v1/alerts")?;
    let firing = firing["data"]["alerts"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    for alert in firing.iter().filter(|alert| alert["state"] == "firing") {
        faults.push(format!("{} fires in a lab that is well", alert["labels"]));
    }
    say(&format!("{} rules", rules.len()));
    Ok(faults)
}

/// The points on the lines lead to traces that the collector has. Answers what is wrong.
fn exemplars(prometheus: &Prometheus, collector: &Collector) -> Result<Vec<String>> {
    let mut faults = vec![];
    for metric in [
        "godwit_migration_blackout_seconds_bucket",
        "godwit_migration_state_seconds_bucket",
        "apiserver_request_duration_seconds_bucket",
        "godwit_rpc_seconds_bucket",
    ] {
        let path = format!(
            "/api/v1/query_exemplars?query={metric}&start={}&end={}",
            prometheus.began,
            now()
        );
        let found = answer(&path)?;
        let all = found["data"].as_array().into_iter().flatten();
        let all =
            all.flat_map(|series| series["exemplars"].as_array().cloned().unwrap_or_default());
        let traces: BTreeSet<String> = all
            .filter_map(|one| Some(one["labels"]["trace_id"].as_str()?.to_owned()))
            .collect();
        let known = traces
            .iter()
            .filter(|trace| !collector.trace(trace).is_empty())
            .count();
        say(&format!(
            "{metric}: exemplars of {} traces, {known} of them at the collector",
            traces.len()
        ));
        // The last ones may still be on their way.
        if known == 0 || known * 2 < traces.len() {
            faults.push(format!(
                "{metric}: {known} of {} exemplars lead to a trace",
                traces.len()
            ));
        }
    }
    Ok(faults)
}
