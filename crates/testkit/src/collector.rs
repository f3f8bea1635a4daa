//! Collectors of traces: one that really listens and keeps every span, by OTLP over gRPC and over HTTP
//! on one port, and one that takes connections and never says a word.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::post;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use prost::Message;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

/// What OTLP over HTTP is sent as.
const PROTOBUF: &str = "application/x-protobuf";

/// A span as it arrived. Ids are hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Its trace.
    pub trace: String,
    /// Itself.
    pub id: String,
    /// The span that it is a part of; empty for the first of a trace.
    pub parent: String,
    /// What it tells of.
    pub name: String,
    /// Whether it is a call to somebody else, by OpenTelemetry's kinds.
    pub is_client: bool,
    /// Whether its status is an error.
    pub failed: bool,
    /// Nanoseconds since the Unix epoch.
    pub began: u64,
    /// Nanoseconds since the Unix epoch.
    pub ended: u64,
    /// `service.name` and `service.instance.id` of the process.
    pub process: (String, String),
    /// What else is told.
    pub attributes: BTreeMap<String, String>,
    /// Trace and id of each span that it is linked to.
    pub links: Vec<(String, String)>,
}

impl Seen {
    /// How long it lasted.
    pub fn took(&self) -> Duration {
        Duration::from_nanos(self.ended.saturating_sub(self.began))
    }

    /// When it began.
    pub fn began_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.began)
    }

    /// An attribute; empty when there is none.
    pub fn text(&self, attribute: &str) -> &str {
        self.attributes.get(attribute).map_or("", String::as_str)
    }

    /// An attribute that is a number; 0 when there is none.
    pub fn number(&self, attribute: &str) -> i64 {
        self.text(attribute).parse().unwrap_or_default()
    }

    fn of(span: Span, process: &(String, String)) -> Self {
        let links = span.links.iter();
        let status = span.status.unwrap_or_default().code;
        Self {
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            is_client: span.kind == i32::from(SpanKind::Client),
            failed: status == i32::from(SpanStatus::Error),
            began: span.start_time_unix_nano,
            ended: span.end_time_unix_nano,
            process: process.clone(),
            attributes: texts(&span.attributes),
            links: links
                .map(|link| (hex(&link.trace_id), hex(&link.span_id)))
                .collect(),
            name: span.name,
        }
    }
}

/// How a collector is spoken to, in the words of `common.otlp_protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `grpc`
    Grpc,
    /// `http/protobuf`
    Http,
}

impl Protocol {
    /// As the configuration says it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http/protobuf",
        }
    }
}

/// What arrived so far; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Collector {
    spans: Arc<Mutex<Vec<Seen>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.keep(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens on a port of its own, which it answers, on all addresses of this machine.
    ///
    /// # Errors
    /// When no port is left.
    pub fn start() -> Result<(Self, u16)> {
        let collector = Self::default();
        let grpc = Routes::new(TraceServiceServer::new(collector.clone()));
        let http = axum::Router::new()
            .route("/v1/traces", post(by_http))
            .layer(DefaultBodyLimit::disable())
            .with_state(collector.clone());
        let router = grpc.into_axum_router().merge(http);
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        let port = listener.local_addr()?.port();
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                axum::serve(listener, router).await
            })
        });
        Ok((collector, port))
    }

    /// The spans of a trace so far, in the order of their begin.
    pub fn trace(&self, trace: &str) -> Vec<Seen> {
        let mut spans = self.all();
        spans.retain(|span| span.trace == trace);
        spans.sort_by_key(|span| span.began);
        spans
    }

    /// All spans so far.
    pub fn all(&self) -> Vec<Seen> {
        self.spans().clone()
    }

    /// Forgets all spans.
    pub fn forget(&self) {
        self.spans().clear();
    }

    /// How many spans there are so far.
    pub fn count(&self) -> usize {
        self.spans().len()
    }

    fn keep(&self, request: ExportTraceServiceRequest) {
        for resource in request.resource_spans {
            let of = texts(&resource.resource.unwrap_or_default().attributes);
            let named = |name: &str| of.get(name).cloned().unwrap_or_default();
            let process = (named("service.name"), named("service.instance.id"));
            let spans = resource.scope_spans.into_iter();
            let spans = spans.flat_map(|scope| scope.spans);
            let seen = spans.map(|span| Seen::of(span, &process));
            self.spans().extend(seen);
        }
    }

    fn spans(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn by_http(
    State(collector): State<Collector>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<([(header::HeaderName, &'static str); 1], Vec<u8>), StatusCode> {
    if headers
        .get(header::CONTENT_TYPE)
        .is_none_or(|of| of != PROTOBUF)
    {
        return Err(StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    let request = ExportTraceServiceRequest::decode(body);
    collector.keep(request.map_err(|_| StatusCode::BAD_REQUEST)?);
    let answer = ExportTraceServiceResponse::default().encode_to_vec();
    Ok(([(header::CONTENT_TYPE, PROTOBUF)], answer))
}

/// Takes connections for as long as this process lives, and never says a word. Answers its port.
///
/// # Errors
/// When no port is left.
pub fn silent() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || listener.incoming().flatten().collect::<Vec<TcpStream>>());
    Ok(port)
}

/// A port where nobody listens.
///
/// # Errors
/// When no port is left.
pub fn dead() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a port")?;
    Ok(listener.local_addr()?.port())
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
