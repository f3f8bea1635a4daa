//! Requests and answers as bytes, for what no client library would send.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use godwit_testkit::api::Raw;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use crate::api_env::Api;

/// No answer of these tests takes longer.
const ANSWER_MAX: Duration = Duration::from_secs(20);

/// What was heard until the connection ended.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Heard {
    /// 0 if the connection was closed without an answer.
    pub(crate) fn status(&self) -> u16 {
        let status = self.head.split(' ').nth(1);
        status.and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Code, reason and message of a Status.
    pub(crate) fn refusal(&self) -> (u16, String, String) {
        let json = self.json();
        let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        (self.status(), text("reason"), text("message"))
    }
}

/// The head of a request whose connection ends with its answer.
pub(crate) fn head(method: &str, path: &str, headers: &[(&str, &str)]) -> String {
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    format!("{method} {path} HTTP/1.1\r\nhost: godwit\r\nconnection: close\r\n{headers}\r\n")
}

/// Says something, and keeps quiet about a server that doesn't listen any more: it has answered.
pub(crate) async fn say(raw: &mut Raw, bytes: &[u8]) {
    let _ = raw.write_all(bytes).await;
    let _ = raw.flush().await;
}

/// Hears until the connection ends.
pub(crate) async fn hear(raw: &mut Raw) -> Result<Heard> {
    let mut bytes = Vec::new();
    // A server that cuts a connection off doesn't say goodbye; what came before counts.
    let read = timeout(ANSWER_MAX, raw.read_to_end(&mut bytes)).await;
    let _ = read.context("the connection stays open")?;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.map_or(bytes.len(), |end| end + 4);
    let body = bytes.split_off(end);
    Ok(Heard {
        head: String::from_utf8_lossy(&bytes).into_owned(),
        body,
    })
}

/// A whole request on a connection of its own.
pub(crate) async fn exchange(raw: &mut Raw, head: &str, body: &[u8]) -> Result<Heard> {
    say(raw, &[head.as_bytes(), body].concat()).await;
    hear(raw).await
}

/// The value of a metric, named as in the text with its labels; 0 if it isn't there.
pub(crate) fn metric(api: &Api, name: &str) -> f64 {
    let text = api.metrics.text().unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.rsplit_once(' '));
    let found = lines.find(|(key, _)| *key == name);
    found
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0.0)
}

/// How often a limit was met.
pub(crate) fn refusals(api: &Api, limit: &str) -> f64 {
    metric(
        api,
        &format!("godwit_api_limit_refusals_total{{limit=\"{limit}\"}}"),
    )
}

/// Waits until a metric is as wanted.
pub(crate) async fn until(api: &Api, name: &str, wanted: impl Fn(f64) -> bool) -> Result<()> {
    let began = Instant::now();
    while !wanted(metric(api, name)) {
        ensure!(
            began.elapsed() < ANSWER_MAX,
            "{name} is {}",
            metric(api, name)
        );
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
