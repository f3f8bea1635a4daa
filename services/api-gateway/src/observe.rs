//! A span and metrics for each request.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use godwit_apimachinery::UserInfo;
use godwit_runtime::metrics::Metrics;
use godwit_runtime::telemetry::{self, TraceLabel};
use http::{HeaderName, HeaderValue, Method, header};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tracing::{Instrument, field, info_span};

use crate::audit::AuditId;

/// Seconds; the fast ones are what a cache in memory takes, the slow ones a waiting commit.
const BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

/// Header of an answer that names its trace, as W3C Trace Context level 2 proposes.
const TRACE_RESPONSE: HeaderName = HeaderName::from_static("traceresponse");

/// What is counted, under the names that kube-apiserver's dashboards know.
pub(crate) struct Observer {
    requests: Family<Labels, Counter>,
    durations: Family<VerbLabels, HistogramWithExemplars<TraceLabel>>,
    running: Gauge,
    resources: HashSet<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    verb: &'static str,
    resource: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerbLabels {
    verb: &'static str,
    resource: &'static str,
}

impl Observer {
    /// Registers the metrics. `resources` are the plurals that may be named in labels.
    pub(crate) fn new(metrics: &Metrics, resources: HashSet<&'static str>) -> Arc<Self> {
        let observer = Self {
            requests: Family::default(),
            durations: Family::new_with_constructor(|| {
                HistogramWithExemplars::new(BUCKETS.into_iter())
            }),
            running: Gauge::default(),
            resources,
        };
        metrics.registry(|registry| {
            let requests = observer.requests.clone();
            registry.register("apiserver_request", "Requests by outcome", requests);
            let durations = observer.durations.clone();
            let help = "Time until an answer began, watches left out";
            registry.register("apiserver_request_duration_seconds", help, durations);
            let running = observer.running.clone();
            registry.register(
                "apiserver_current_inflight_requests",
                "Running requests",
                running,
            );
        });
        Arc::new(observer)
    }

    fn resource(&self, path: &str) -> &'static str {
        let found = resource_segment(path).and_then(|segment| self.resources.get(segment));
        found.copied().unwrap_or_default()
    }
}

/// Runs a request and tells what became of it.
pub(crate) async fn observe(
    State(observer): State<Arc<Observer>>,
    request: Request,
    next: Next,
) -> Response {
    let asked = Asked::of(&request, &observer);
    let span = info_span!(
        "request",
        otel.kind = "server",
        otel.name = %format!("{} {}", asked.verb, asked.resource),
        http.request.method = %asked.method,
        url.path = %asked.path,
        user_agent.original = %asked.user_agent,
        kubectl.command = %asked.command,
        http.response.status_code = field::Empty,
        user = field::Empty,
        audit_id = request.extensions().get::<AuditId>().map(|id| id.0.as_str()),
    );
    telemetry::join(&span, &asked.traceparent);
    let trace = span.in_scope(telemetry::trace_context);
    let began = Instant::now();
    let mut response = {
        let _running = Running::begin(&observer.running);
        next.run(request).instrument(span.clone()).await
    };
    let code = response.status().as_u16();
    span.record("http.response.status_code", code);
    let Asked { verb, resource, .. } = asked;
    observer
        .requests
        .get_or_create(&Labels {
            verb,
            resource,
            code,
        })
        .inc();
    if verb != "WATCH" {
        let labels = VerbLabels { verb, resource };
        observer.durations.get_or_create(&labels).observe(
            began.elapsed().as_secs_f64(),
            TraceLabel::of(&trace),
            Some(SystemTime::now()),
        );
    }
    if let Ok(trace) = HeaderValue::try_from(trace) {
        response.headers_mut().insert(TRACE_RESPONSE, trace);
    }
    let user = response.extensions().get::<UserInfo>();
    let user = user.map_or("", |user| user.name.as_str());
    span.record("user", user);
    response
}

/// Counts down also when the client went away in the middle.
struct Running<'a>(&'a Gauge);

impl<'a> Running<'a> {
    fn begin(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

struct Asked {
    method: Method,
    path: String,
    verb: &'static str,
    resource: &'static str,
    user_agent: String,
    /// The client's own trace; empty when it has none.
    traceparent: String,
    /// What kubectl was called with (KEP-859), for example `kubectl apply`.
    command: String,
}

impl Asked {
    fn of(request: &Request, observer: &Observer) -> Self {
        let text = |name: &str| {
            let value = request
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok());
            value
                .unwrap_or_default()
                .chars()
                .take(128)
                .collect::<String>()
        };
        let query = request.uri().query().unwrap_or_default();
        let path = request.uri().path().to_owned();
        Self {
            method: request.method().clone(),
            verb: verb(request.method(), &path, query),
            resource: observer.resource(&path),
            user_agent: text(header::USER_AGENT.as_str()),
            traceparent: text("traceparent"),
            command: text("kubectl-command"),
            path,
        }
    }
}

fn verb(method: &Method, path: &str, query: &str) -> &'static str {
    let watch = query
        .split('&')
        .any(|pair| matches!(pair, "watch=true" | "watch=1" | "watch"));
    match *method {
        Method::GET if watch => "WATCH",
        Method::GET if is_collection(path) => "LIST",
        Method::GET | Method::HEAD => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

/// The segments after group, version and namespace: resource, name, subresource.
fn tail(path: &str) -> Option<Vec<&str>> {
    let mut segments: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let head = match segments.first() {
        Some(&"api") => 2,
        Some(&"apis") => 3,
        Some(_) | None => return None,
    };
    if segments.len() <= head {
        return None;
    }
    segments.drain(..head);
    if segments.first() == Some(&"namespaces") && segments.len() > 2 {
        segments.drain(..2);
    }
    Some(segments)
}

fn resource_segment(path: &str) -> Option<&str> {
    tail(path)?.first().copied()
}

fn is_collection(path: &str) -> bool {
    tail(path).is_some_and(|segments| segments.len() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_tells_its_resource() {
        let cases = [
            ("/api/v1/nodes", Some("nodes")),
            ("/api/v1/namespaces/default", Some("namespaces")),
            ("/api/v1/namespaces/default/events", Some("events")),
            (
                "/apis/kubevirt.io/v1/namespaces/default/virtualmachines/a/status",
                Some("virtualmachines"),
            ),
            ("/apis/kubevirt.io/v1", None),
            ("/openapi/v3", None),
        ];
        for (path, resource) in cases {
            assert_eq!(resource_segment(path), resource, "{path}");
        }
    }

    #[test]
    fn a_get_is_one_of_three_verbs() {
        let verb = |path, query| verb(&Method::GET, path, query);
        assert_eq!(verb("/api/v1/nodes", "limit=500"), "LIST");
        assert_eq!(
            verb("/api/v1/nodes", "resourceVersion=7&watch=true"),
            "WATCH"
        );
        assert_eq!(verb("/api/v1/nodes/worker1", ""), "GET");
        assert_eq!(verb("/version", ""), "GET");
    }
}
