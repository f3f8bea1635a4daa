//! A gateway whose certificates and authorities change while it serves.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use godwit_runtime::Identity;
use godwit_testkit::api;
use godwit_testkit::certs::{Ca, Rotate, Step, Subject, rotate};

use crate::api_env::Api;

const NAMESPACES: &str = "/api/v1/namespaces";
/// Longest wait for files to be read.
const READ_MAX: Duration = Duration::from_secs(20);

/// The gateway's certificate, issued anew.
fn gateway(own: &Path) -> Result<Identity> {
    let served_as = ["127.0.0.1".to_owned()];
    let subject = Subject {
        name: "gateway",
        organizations: &["api-gateway"],
        served_as: &served_as,
    };
    Ca::load_or_create(own)?.issue_files("gateway", subject)
}

/// A gateway with certificates that the test can change, beside those of [`Api`].
async fn start(own: &Path) -> Result<Api> {
    let identity = gateway(own)?;
    user(own, "ada")?;
    Api::start_configured(|config, _| {
        config.tls = Some(identity);
        Ok(())
    })
    .await
}

fn user(own: &Path, name: &str) -> Result<Identity> {
    let subject = Subject {
        name,
        organizations: &["system:masters"],
        served_as: &[],
    };
    Ca::load(own)?.issue_files(name, subject)
}

fn client(api: &Api, files: &Identity) -> Result<api::Api> {
    let (cert, key) = (std::fs::read(&files.cert)?, std::fs::read(&files.key)?);
    api::Api::at(&api.address, &std::fs::read(&files.ca)?, (&cert, &key))
}

async fn get(api: &Api, files: &Identity) -> Result<u16> {
    let mut connection = client(api, files)?.connect().await?;
    Ok(connection.get(NAMESPACES, "application/json").await?.status)
}

fn turn(own: &Path, authority: Option<Step>) -> Result<()> {
    let wanted = Rotate {
        dir: own.to_owned(),
        within: 0,
        all: authority.is_none(),
        authority,
    };
    ensure!(!rotate(&wanted)?.is_empty(), "nothing was renewed");
    Ok(())
}

/// What the gateway's metrics say of its certificate; 0 when nothing.
fn told(api: &Api, metric: &str) -> Result<i64> {
    let text = api.metrics.text()?;
    let named = format!("godwit_certificate_{metric}{{");
    let line = text.lines().find(|line| line.starts_with(&named));
    let value = line.and_then(|line| line.rsplit_once(' '));
    Ok(value.map_or(Ok(0), |(_, value)| value.parse())?)
}

/// Waits until that is over a bound.
async fn over(api: &Api, (metric, bound): (&str, i64)) -> Result<()> {
    let began = Instant::now();
    while told(api, metric)? <= bound {
        ensure!(began.elapsed() < READ_MAX, "{metric} is still {bound}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Does `step`, and waits until the gateway has read what came of it.
async fn read(api: &Api, step: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = told(api, "read_seconds")?;
    step()?;
    over(api, ("read_seconds", before)).await
}

fn copied(files: &Identity, to: &Path) -> Result<Identity> {
    let copy = |from: &PathBuf| -> Result<PathBuf> {
        let to = to.join(from.file_name().unwrap_or_default());
        std::fs::copy(from, &to)?;
        Ok(to)
    };
    Ok(Identity {
        cert: copy(&files.cert)?,
        key: copy(&files.key)?,
        ca: copy(&files.ca)?,
    })
}

#[tokio::test]
async fn a_gateway_shows_what_was_good_when_its_new_files_are_not() -> Result<()> {
    let own = tempfile::tempdir()?;
    let api = start(own.path()).await?;
    let files = user(own.path(), "ada")?;
    std::fs::write(own.path().join("gateway.crt"), "no certificate")?;
    over(&api, ("refused", 0)).await?;
    ensure!(get(&api, &files).await? == 200);
    read(&api, || gateway(own.path()).map(drop)).await?;
    ensure!(told(&api, "refused")? == 0);
    ensure!(get(&api, &files).await? == 200);
    Ok(())
}

#[tokio::test]
async fn a_gateway_takes_new_certificates_and_authorities_and_keeps_its_connections() -> Result<()>
{
    let (own, old) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let api = start(own.path()).await?;
    let files = user(own.path(), "ada")?;
    let kept = copied(&files, old.path())?;
    let mut open = client(&api, &files)?.connect().await?;
    let mut watch = client(&api, &files)?.watch(NAMESPACES).await?;
    watch.next().await?;

    // New certificates of the same authority: old ones of users are good as before.
    read(&api, || turn(own.path(), None)).await?;
    ensure!(get(&api, &files).await? == 200 && get(&api, &kept).await? == 200);

    // Another authority. Who knows the old one alone is served until the gateway shows the new.
    read(&api, || turn(own.path(), Some(Step::TrustBoth))).await?;
    ensure!(get(&api, &kept).await? == 200);
    read(&api, || turn(own.path(), Some(Step::Switch))).await?;
    ensure!(get(&api, &files).await? == 200);
    ensure!(
        get(&api, &kept).await.is_err(),
        "an authority that it doesn't know"
    );
    // Its certificate still counts, if it only believes the new authority.
    let half = Identity {
        ca: files.ca.clone(),
        ..kept.clone()
    };
    ensure!(get(&api, &half).await? == 200);
    read(&api, || turn(own.path(), Some(Step::DropOld))).await?;
    ensure!(get(&api, &files).await? == 200);
    ensure!(
        get(&api, &half).await.is_err(),
        "the old authority is forgotten"
    );

    // All that time these connections were open.
    let answer = open.get(NAMESPACES, "application/json").await?;
    ensure!(answer.status == 200, "{}", answer.body);
    let made = serde_json::json!({"metadata": {"name": "after-all-that"}});
    open.post(NAMESPACES, &made).await?;
    let seen = async {
        loop {
            let (_, event) = watch.next().await?;
            if event.to_string().contains("after-all-that") {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), seen).await?
}
