//! The plain HTTP door for probes and scrapes: health, readiness, metrics.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio_util::sync::CancellationToken;

use crate::metrics::{CONTENT_TYPE, Metrics};

/// What must be true before a service can do its work, by name.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    checks: Arc<Mutex<BTreeMap<&'static str, Check>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Holds,
    Fails,
    /// And this is why.
    FailsFor(&'static str),
}

impl Readiness {
    /// Declares or updates one condition.
    pub fn set(&self, name: &'static str, ready: bool) {
        self.note(name, if ready { Check::Holds } else { Check::Fails });
    }

    /// One condition does not hold, and why.
    pub fn fails(&self, name: &'static str, why: &'static str) {
        self.note(name, Check::FailsFor(why));
    }

    fn note(&self, name: &'static str, check: Check) {
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.insert(name, check);
    }

    /// Each condition by name, and why it does not hold; `None` if it does.
    pub fn conditions(&self) -> Vec<(&'static str, Option<&'static str>)> {
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let conditions = checks.iter().map(|(name, check)| match check {
            Check::Holds => (*name, None),
            Check::Fails => (*name, Some("not yet")),
            Check::FailsFor(why) => (*name, Some(*why)),
        });
        conditions.collect()
    }

    /// The conditions that don't hold, and why if that is known. A service that has declared none
    /// has not got that far yet.
    pub fn missing(&self) -> Vec<String> {
        let checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        if checks.is_empty() {
            return vec!["start".to_owned()];
        }
        let missing = checks.iter().filter_map(|(name, check)| match check {
            Check::Holds => None,
            Check::Fails => Some((*name).to_owned()),
            Check::FailsFor(why) => Some(format!("{name} ({why})")),
        });
        missing.collect()
    }
}

#[derive(Clone)]
struct Admin {
    metrics: Metrics,
    readiness: Readiness,
}

/// Serves until shutdown.
///
/// # Errors
/// When `bind` can't be bound.
pub(crate) async fn serve(
    bind: SocketAddr,
    metrics: Metrics,
    readiness: Readiness,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .merge(crate::failpoint::routes())
        .with_state(Admin { metrics, readiness });
    let listener = tokio::net::TcpListener::bind(bind).await.map_err(|error| {
        std::io::Error::new(
            error.kind(),
            format!("bind common.admin_bind {bind}: {error}"),
        )
    })?;
    axum::serve(listener, router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

async fn ready(State(admin): State<Admin>) -> Response {
    let missing = admin.readiness.missing();
    if missing.is_empty() {
        return "ok".into_response();
    }
    let text = format!("not ready: {}\n", missing.join(", "));
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn scrape(State(admin): State<Admin>) -> Response {
    match admin.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
