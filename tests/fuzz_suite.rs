//! The API against the documents that it publishes about itself: an independent validator reads
//! them, and schemathesis makes requests from them and checks every answer.
//!
//! Runs alone, by `cargo xtask test fuzz`. `FUZZ_SECONDS` says for how long (ten minutes when it
//! doesn't), `FUZZ_SEED` with which seed, and `FUZZ_ONLY=kubevirt.io` takes the documents whose
//! names hold that word. With `FUZZ_HOLD=1` it only starts the gateway, says how to reach it, and
//! waits: to send a failed request again by hand.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use godwit_testkit::api::{Connection, Method};
use serde_json::{Value, json};

use crate::api_env::{Api, example};
use crate::api_play as play;
use crate::lab_suite::say;

/// Seconds of a run unless `FUZZ_SECONDS` says otherwise.
const SECONDS: u64 = 600;
/// Least seconds for one document; less finds nothing.
const DOCUMENT_SECONDS_MIN: u64 = 5;

/// One published document.
struct Document {
    name: String,
    /// Whether there is anything to request.
    has_paths: bool,
    file: PathBuf,
}

#[tokio::test(flavor = "multi_thread")]
async fn fuzz_suite_api() {
    run().await.unwrap();
}

async fn run() -> Result<()> {
    let api = Api::start().await?;
    furnish(&api).await?;
    if std::env::var_os("FUZZ_HOLD").is_some() {
        say(&access(&api)?.join(" "));
        std::future::pending::<()>().await;
    }
    let documents = documents(&api).await?;
    for document in &documents {
        validate(document)?;
    }
    say(&format!("{} documents are valid", documents.len()));
    let only = std::env::var("FUZZ_ONLY").unwrap_or_default();
    let chosen: Vec<_> = documents
        .iter()
        .filter(|document| document.has_paths && document.name.contains(&only))
        .collect();
    ensure!(!chosen.is_empty(), "FUZZ_ONLY names no document");
    let seconds = number("FUZZ_SECONDS").unwrap_or(SECONDS) / chosen.len() as u64;
    let seed = number("FUZZ_SEED").unwrap_or_else(|| rand::random::<u32>().into());
    say(&format!("FUZZ_SEED={seed}, {seconds} s for each document"));
    let mut failed = vec![];
    for document in chosen {
        furnish(&api).await?;
        if !fuzz(&api, document, (seconds, seed)).await? {
            failed.push(document.name.as_str());
        }
    }
    ensure!(failed.is_empty(), "findings in {}", failed.join(", "));
    Ok(())
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap())
}

/// Ordinary objects, as far as they aren't there.
async fn furnish(api: &Api) -> Result<()> {
    for node in ["worker1", "worker2"] {
        // The last round may have removed it.
        let _ = play::node(&api.ledger, node).await;
    }
    let mut connection = api.client()?.connect().await?;
    let vms = "/apis/kubevirt.io/v1/namespaces/default";
    for file in ["vm-rhel8-server-nfs.yaml", "vm-stays.yaml"] {
        let vm = from_yaml(file)?;
        make(&mut connection, &format!("{vms}/virtualmachines"), &vm).await?;
        if file == "vm-rhel8-server-nfs.yaml" {
            let instance = json!({
                "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
                "metadata": {"name": vm["metadata"]["name"]}, "spec": vm["spec"]["template"]["spec"],
            });
            let place = format!("{vms}/virtualmachineinstances");
            make(&mut connection, &place, &instance).await?;
        }
    }
    let _ = play::running(&api.ledger, "rhel8-server-nfs", "worker1").await;
    let _ = play::event(&api.ledger, "rhel8-server-nfs", 3).await;
    let old = "/apis/kubevirt.io/v1alpha3/namespaces/default/virtualmachineinstancemigrations";
    let plain = |kind: &str, name: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}});
    let mut settings = plain("ConfigMap", "settings");
    settings["data"] = json!({"a": "1", "b": "2"});
    let mut password = plain("Secret", "password");
    password["stringData"] = json!({"password": "hunter2"});
    let rest = [
        (old, from_yaml("migration-job.yaml")?),
        (
            "/apis/kubevirt.io/v1alpha1/nodemaintenances",
            from_yaml("worker2-maintenance.yaml")?,
        ),
        ("/api/v1/namespaces", plain("Namespace", "fuzz")),
        ("/api/v1/namespaces/default/configmaps", settings),
        ("/api/v1/namespaces/default/secrets", password),
    ];
    for (place, object) in rest {
        make(&mut connection, place, &object).await?;
    }
    Ok(())
}

fn from_yaml(name: &str) -> Result<Value> {
    let text = std::fs::read_to_string(example(name)).with_context(|| format!("read {name}"))?;
    serde_yaml_ng::from_str(&text).with_context(|| format!("understand {name}"))
}

/// Makes an object; it may be there, or a rule may be against it after a round.
async fn make(connection: &mut Connection, place: &str, object: &Value) -> Result<()> {
    let answer = connection.call(Method::POST, place, Some(object)).await?;
    ensure!(answer.status < 500, "POST {place}: {}", answer.body);
    Ok(())
}

/// All documents, in files.
async fn documents(api: &Api) -> Result<Vec<Document>> {
    let mut connection = api.client()?.connect().await?;
    let mut get = async |path: &str| -> Result<Value> {
        let answer = connection.call(Method::GET, path, None).await?;
        answer.object().with_context(|| format!("GET {path}"))
    };
    let root = get("/openapi/v3").await?;
    let mut urls = vec![("v2".to_owned(), "/openapi/v2".to_owned())];
    for (name, at) in root["paths"].as_object().context("no paths")? {
        let url = at["serverRelativeURL"].as_str().context("no URL")?;
        urls.push((name.clone(), url.to_owned()));
    }
    let mut documents = vec![];
    for (name, url) in urls {
        let text = get(&url).await?;
        let has_paths = text["paths"]
            .as_object()
            .is_some_and(|paths| !paths.is_empty());
        let file = format!("{}.json", name.replace('/', "-"));
        let file = api.file(&file, &text.to_string())?;
        documents.push(Document {
            name,
            has_paths,
            file: file.into(),
        });
    }
    Ok(documents)
}

fn validate(document: &Document) -> Result<()> {
    let output = Command::new(tool("openapi-spec-validator"))
        .args(["--validation-errors", "all"])
        .arg(&document.file)
        .output()
        .context("run openapi-spec-validator: cargo xtask test fuzz installs it")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}: {said}", document.name);
    Ok(())
}

/// One run of schemathesis; whether it found nothing.
async fn fuzz(api: &Api, document: &Document, (seconds, seed): (u64, u64)) -> Result<bool> {
    let seconds = seconds.max(DOCUMENT_SECONDS_MIN);
    // It keeps what it finds where it runs, so that is no folder of the repository.
    let config = document.file.parent().context("a file is in a folder")?;
    for file in ["schemathesis.toml", "hooks.py"] {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("openapi")
            .join(file);
        std::fs::copy(kept, config.join(file)).with_context(|| format!("copy {file}"))?;
    }
    let report = document.file.with_extension("report.json");
    let mut command = tokio::process::Command::new(tool("schemathesis"));
    command
        .current_dir(config)
        .arg("run")
        .arg(&document.file)
        .args(access(api)?)
        .args(["--seed", &seed.to_string()])
        .args(["--max-time", &seconds.to_string()])
        .args(["--phases", "coverage,fuzzing"])
        .args(["--generation-database", "none", "--no-color"])
        .args(["--report", "json", "--report-json-path"])
        .arg(&report)
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", config)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .kill_on_drop(true);
    // It ends at its time by itself, unless an answer hangs.
    let limit = Duration::from_secs(seconds * 2 + 60);
    let output = tokio::time::timeout(limit, command.output())
        .await
        .with_context(|| format!("{}: schemathesis hangs", document.name))?
        .context("run schemathesis: cargo xtask test fuzz installs it")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let good = output.status.success();
    say(&format!("==> {}: {}", document.name, summary(&report)));
    if !good {
        say(&said);
        say(&String::from_utf8_lossy(&output.stderr));
    }
    Ok(good)
}

/// The counts of a run.
fn summary(report: &Path) -> String {
    let text = std::fs::read_to_string(report).unwrap_or_default();
    let report: Value = serde_json::from_str(&text).unwrap_or_default();
    let counts = &report["test_cases"];
    format!(
        "{} requests to {} operations, {} failures, {} errors",
        counts["generated"],
        report["operations"]["tested"],
        counts["unique_failures"],
        counts["errored"],
    )
}

/// How schemathesis reaches the API, as an administrator.
fn access(api: &Api) -> Result<Vec<String>> {
    let identity = api.identity_of("admin", "system:masters")?;
    let path = |path: &Path| path.display().to_string();
    Ok(vec![
        "--url".to_owned(),
        api.address.clone(),
        "--tls-verify".to_owned(),
        path(&identity.ca),
        "--request-cert".to_owned(),
        path(&identity.cert),
        "--request-cert-key".to_owned(),
        path(&identity.key),
    ])
}

fn tool(name: &str) -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../lab-cache");
    cache.join("openapi/bin").join(name)
}
