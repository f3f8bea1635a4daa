//! Counts the calls that a server answers: how many, how they ended, and how long they took.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};

use godwit_runtime::metrics::Metrics;
use godwit_runtime::telemetry::{self, TraceLabel};
use http::{Request, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::exponential_buckets;
use tonic::{Code, Status};
use tower::{Layer, Service};

/// Seconds, each bucket with a trace that fell into it.
type Times = HistogramWithExemplars<TraceLabel>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    method: String,
    code: String,
}

/// The calls of one server; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    took: Family<Labels, Times>,
}

impl Calls {
    /// Registers the metrics.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let calls = Self {
            // From 0.5 ms to 16 s.
            took: Family::new_with_constructor(|| Times::new(exponential_buckets(0.0005, 2.0, 16))),
        };
        let took = calls.took.clone();
        let help = "Time until an answer to a gRPC call began";
        metrics.registry(|registry| registry.register("godwit_rpc_seconds", help, took));
        calls
    }

    fn answered(&self, path: &str, code: Code, began: Instant) {
        // Whoever calls what there isn't must not make a series of each name.
        let method = if code == Code::Unimplemented {
            "other"
        } else {
            path.trim_start_matches('/')
        };
        let labels = Labels {
            method: method.to_owned(),
            code: format!("{code:?}"),
        };
        let trace = TraceLabel::of(&telemetry::trace_context());
        self.took.get_or_create(&labels).observe(
            began.elapsed().as_secs_f64(),
            trace,
            Some(SystemTime::now()),
        );
    }
}

impl<S> Layer<S> for Calls {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            calls: self.clone(),
        }
    }
}

/// A service whose calls are counted.
#[derive(Debug, Clone)]
pub(crate) struct Counted<S> {
    inner: S,
    calls: Calls,
}

impl<S, B, A> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<A>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<A>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let began = Instant::now();
        let answer = self.inner.call(request);
        let calls = self.calls.clone();
        Box::pin(async move {
            let answer = answer.await;
            if let Ok(answer) = &answer {
                // An answer without a status yet is one that succeeds.
                let status = Status::from_header_map(answer.headers());
                let code = status.map_or(Code::Ok, |status| status.code());
                calls.answered(&path, code, began);
            }
            answer
        })
    }
}
