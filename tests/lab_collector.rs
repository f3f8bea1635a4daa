//! A collector that really listens: keeps every span that a lab's services send by OTLP.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use tonic::{Request, Response, Status};

/// A span as it arrived. Ids are hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    pub(crate) name: String,
    /// Nanoseconds since the Unix epoch.
    pub(crate) began: u64,
    pub(crate) ended: u64,
    /// `service.name` and `service.instance.id` of the process.
    pub(crate) process: (String, String),
    pub(crate) attributes: BTreeMap<String, String>,
}

impl Seen {
    pub(crate) fn took(&self) -> Duration {
        Duration::from_nanos(self.ended - self.began)
    }

    pub(crate) fn began_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.began)
    }

    /// An attribute that is a number; 0 when there is none.
    pub(crate) fn number(&self, attribute: &str) -> i64 {
        let text = self.attributes.get(attribute);
        text.and_then(|text| text.parse().ok()).unwrap_or_default()
    }
}

/// What arrived so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Collector {
    spans: Arc<Mutex<Vec<Seen>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let of = texts(&resource.resource.unwrap_or_default().attributes);
            let named = |name: &str| of.get(name).cloned().unwrap_or_default();
            let process = (named("service.name"), named("service.instance.id"));
            let spans = resource.scope_spans.into_iter();
            let spans = spans.flat_map(|scope| scope.spans).map(|span| Seen {
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                name: span.name,
                began: span.start_time_unix_nano,
                ended: span.end_time_unix_nano,
                process: process.clone(),
                attributes: texts(&span.attributes),
            });
            self.spans.lock().unwrap().extend(spans);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens on a port of its own, which it answers, for all hosts of a lab.
    pub(crate) fn start() -> (Self, u16) {
        let collector = Self::default();
        let service = TraceServiceServer::new(collector.clone());
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
                let server = tonic::transport::Server::builder().add_service(service);
                server.serve_with_incoming(incoming).await
            })
        });
        (collector, port)
    }

    /// The spans of a trace so far, in the order of their begin.
    pub(crate) fn trace(&self, trace: &str) -> Vec<Seen> {
        let spans = self.spans.lock().unwrap();
        let mut spans: Vec<Seen> = spans
            .iter()
            .filter(|span| span.trace == trace)
            .cloned()
            .collect();
        spans.sort_by_key(|span| span.began);
        spans
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |attribute: &KeyValue| match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        Value::BoolValue(is) => Some(is.to_string()),
        Value::DoubleValue(number) => Some(number.to_string()),
        Value::ArrayValue(_)
        | Value::KvlistValue(_)
        | Value::BytesValue(_)
        | Value::StringValueStrindex(_) => None,
    };
    attributes
        .iter()
        .filter_map(|attribute| Some((attribute.key.clone(), text(attribute)?)))
        .collect()
}
