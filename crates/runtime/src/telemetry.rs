//! Logs and traces. Without a collector traces cost nothing; a dead one is only a lost trace.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
    TracerProvider,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, SdkTracerProvider, Span, SpanData, SpanProcessor,
};
use sha2::{Digest, Sha256};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{Common, LogFormat};

/// Longest wait for the last spans at the end of a process.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// Writes finished spans of job steps, whoever did them and whenever.
///
/// The id of a span is derived from (job, step, epoch): a takeover that writes a step again gives
/// the same span, never a second one.
#[derive(Debug, Clone, Default)]
pub struct StepSpans {
    processor: Option<Arc<BatchSpanProcessor>>,
    service: &'static str,
}

/// One finished step of a job.
#[derive(Debug, Clone, Copy)]
pub struct FinishedStep<'a> {
    /// `traceparent` of the request that caused the job; empty joins no trace.
    pub trace: &'a str,
    /// The job's id.
    pub job: &'a str,
    /// The step's name.
    pub step: &'a str,
    /// The owner's epoch.
    pub epoch: u64,
    /// When the step began.
    pub began: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// What else is known of it.
    pub attributes: &'a [(&'static str, String)],
}

impl StepSpans {
    /// Queues one span for export; does nothing without a collector.
    pub fn finished(&self, step: FinishedStep<'_>) {
        let Some(processor) = &self.processor else {
            return;
        };
        let Some((trace, parent)) = parse_traceparent(step.trace) else {
            return;
        };
        let mut attributes: Vec<KeyValue> = step
            .attributes
            .iter()
            .map(|(key, value)| KeyValue::new(*key, value.clone()))
            .collect();
        attributes.push(KeyValue::new("godwit.job", step.job.to_owned()));
        attributes.push(KeyValue::new("godwit.epoch", step.epoch.to_string()));
        let id = span_id(step.job, step.step, step.epoch);
        let context =
            SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::default());
        processor.on_end(SpanData {
            span_context: context,
            parent_span_id: parent,
            parent_span_is_remote: true,
            span_kind: SpanKind::Internal,
            name: step.step.to_owned().into(),
            start_time: step.began,
            end_time: step.ended,
            attributes,
            dropped_attributes_count: 0,
            events: Default::default(),
            links: Default::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder(self.service).build(),
        });
    }
}

fn span_id(job: &str, step: &str, epoch: u64) -> SpanId {
    let digest = Sha256::digest(format!("{job}\n{step}\n{epoch}"));
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    SpanId::from_bytes(bytes)
}

/// Reads `00-TRACE-SPAN-FLAGS` (W3C Trace Context, version 00).
fn parse_traceparent(text: &str) -> Option<(TraceId, SpanId)> {
    let mut parts = text.split('-');
    let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
    let trace = TraceId::from_hex(trace)
        .ok()
        .filter(|id| *id != TraceId::INVALID)?;
    let span = SpanId::from_hex(span)
        .ok()
        .filter(|id| *id != SpanId::INVALID)?;
    (version == "00").then_some((trace, span))
}

/// `traceparent` of the current span; empty when it is in no trace.
pub fn trace_context() -> String {
    let context = tracing::Span::current().context();
    let span = context.span().span_context().clone();
    if !span.is_valid() {
        return String::new();
    }
    format!(
        "00-{}-{}-{:02x}",
        span.trace_id(),
        span.span_id(),
        span.trace_flags().to_u8()
    )
}

/// Flushes what is left when dropped.
pub(crate) struct Guard {
    provider: Option<SdkTracerProvider>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(provider) = &self.provider {
            // A collector that is gone must not keep the process.
            let _ = provider.shutdown_with_timeout(FLUSH_MAX);
        }
    }
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not in the form of `RUST_LOG`.
    #[error("common.log_filter")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The collector's address can't be used.
    #[error("common.otlp_endpoint")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// Another subscriber is in place.
    #[error("install the log subscriber")]
    Installed(#[from] tracing_subscriber::util::TryInitError),
}

/// Sets up logs, and traces when a collector is configured.
pub(crate) fn init(
    service: &'static str,
    common: &Common,
) -> Result<(Guard, StepSpans), TelemetryError> {
    let filter = EnvFilter::try_new(&common.log_filter)?;
    let lines = match common.log {
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .with_writer(std::io::stderr)
            .boxed(),
        LogFormat::Pretty => tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .boxed(),
    };
    let registry = tracing_subscriber::registry().with(filter).with(lines);
    let Some(endpoint) = &common.otlp_endpoint else {
        registry.try_init()?;
        return Ok((
            Guard { provider: None },
            StepSpans {
                processor: None,
                service,
            },
        ));
    };
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()?;
    let processor = Arc::new(BatchSpanProcessor::builder(exporter).build());
    let provider = SdkTracerProvider::builder()
        .with_resource(
            Resource::builder()
                .with_service_name(format!("godwit-{service}"))
                .build(),
        )
        .with_span_processor(Shared(Arc::clone(&processor)))
        .build();
    let tracer = provider.tracer("godwit");
    registry
        .with(tracing_opentelemetry::layer().with_tracer(tracer))
        .try_init()?;
    let spans = StepSpans {
        processor: Some(processor),
        service,
    };
    Ok((
        Guard {
            provider: Some(provider),
        },
        spans,
    ))
}

/// One processor for the provider's spans and the finished steps.
#[derive(Debug)]
struct Shared(Arc<BatchSpanProcessor>);

impl SpanProcessor for Shared {
    fn on_start(&self, span: &mut Span, context: &opentelemetry::Context) {
        self.0.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        self.0.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steps_span_has_the_same_id_whoever_writes_it() {
        assert_eq!(span_id("job", "Copying", 3), span_id("job", "Copying", 3));
        assert_ne!(span_id("job", "Copying", 3), span_id("job", "Copying", 4));
    }

    #[test]
    fn a_traceparent_is_read_and_nonsense_is_not() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(parse_traceparent(good).is_some());
        for bad in ["", "00-zz-00f067aa0ba902b7-01", "00-0-0-0", "garbage"] {
            assert!(parse_traceparent(bad).is_none(), "{bad}");
        }
    }
}
