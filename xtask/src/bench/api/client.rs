//! HTTP/2 over TLS as clients of Kubernetes speak it: many requests on one connection.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use godwit_testkit::api::Multiplexed;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;

/// How a whole answer went.
pub(super) struct Received {
    pub(super) bytes: usize,
    /// The first bytes of the body: lists begin with their metadata.
    pub(super) head: Vec<u8>,
}

/// What is kept of a body: the metadata of a list is shorter.
const HEAD_BYTES: usize = 1024;

/// Reads to the end without keeping it.
pub(super) async fn swallow(connection: &Multiplexed, path: &str) -> Result<Received> {
    let mut body = ok(connection, path).await?;
    let mut received = Received {
        bytes: 0,
        head: Vec::new(),
    };
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            received.bytes += data.len();
            let missing = HEAD_BYTES.saturating_sub(received.head.len());
            received.head.extend(data.iter().take(missing));
        }
    }
    Ok(received)
}

/// The whole answer, as JSON.
pub(super) async fn json(connection: &Multiplexed, path: &str) -> Result<Value> {
    let body = ok(connection, path).await?.collect().await?.to_bytes();
    serde_json::from_slice(&body).context("the answer is no JSON")
}

/// The body of an answer that is a success.
pub(super) async fn ok(connection: &Multiplexed, path: &str) -> Result<Incoming> {
    let response = connection.send("GET", path, Bytes::new()).await?;
    let status = response.status();
    ensure!(status.is_success(), "GET {path}: {status}");
    Ok(response.into_body())
}

/// Sends a body, and waits for the whole answer.
pub(super) async fn write(
    connection: &Multiplexed,
    (method, path): (&str, &str),
    body: Bytes,
) -> Result<()> {
    let response = connection.send(method, path, body).await?;
    let status = response.status();
    let answer = response.into_body().collect().await?.to_bytes();
    ensure!(
        status.is_success(),
        "{method} {path}: {status} {}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}
