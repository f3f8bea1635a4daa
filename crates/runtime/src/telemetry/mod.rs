//! Logs and traces. Without a collector traces cost nothing; a dead one is only a lost trace.
//!
//! Every process has trace ids, collector or not, so that its log lines and the jobs it records
//! can be joined later. Called once by [`run`](crate::run); the rest is for whoever passes traces on.

mod context;
mod export;
mod lines;
mod steps;

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::Metadata;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::JsonFields;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};
use uuid::Uuid;

use crate::build;
use crate::config::{Common, LogFormat};
use export::Shared;

pub use context::{TraceLabel, begin_trace, join, trace_context};
pub use opentelemetry::Value as Attribute;
pub use steps::{SpanKey, StepSpan, StepSpans};

/// Longest wait for the last spans at the end of a process.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// Target of the ledger's spans of SQL statements, which only a collector has a use for.
const STATEMENTS: &str = "godwit_ledger::sql";

/// How the targets of OpenTelemetry's own log begin, and the name of what it logs, once, when it drops
/// spans.
const SDK: &str = "opentelemetry";
const LOST: &str = "BatchSpanProcessor.SpanDroppingStarted";

/// Flushes what is left when dropped.
pub(crate) struct Guard {
    provider: SdkTracerProvider,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // A collector that is gone must not keep the process.
        let _ = self.provider.shutdown_with_timeout(FLUSH_MAX);
    }
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not in the form of `RUST_LOG`.
    #[error("common.log_filter")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The collector's address is no URL.
    #[error("common.otlp_endpoint")]
    Endpoint(#[from] tonic::transport::Error),
    /// The exporter can't be built.
    #[error("set up the export of traces")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// Another subscriber is in place.
    #[error("install the log subscriber")]
    Installed(#[from] tracing_subscriber::util::TryInitError),
}

/// Sets up logs and trace ids, and the export of traces when a collector is configured.
///
/// Needs a tokio runtime when there is a collector.
pub(crate) fn init(
    service: &'static str,
    common: &Common,
) -> Result<(Guard, StepSpans), TelemetryError> {
    let resource = Resource::builder()
        .with_service_name(format!("godwit-{service}"))
        .with_attributes([
            KeyValue::new("service.version", build::VERSION),
            // Tells the processes of one service apart.
            KeyValue::new("service.instance.id", Uuid::new_v4().to_string()),
        ])
        .build();
    // A job's trace is kept whatever the client's tracing made of its own request.
    let mut provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::AlwaysOn)
        .with_resource(resource.clone());
    let processor = match &common.otlp_endpoint {
        Some(endpoint) => {
            let to = (endpoint.as_str(), common.otlp_protocol);
            Some(Arc::new(export::processor(to, &resource)?))
        }
        None => None,
    };
    if let Some(processor) = &processor {
        provider = provider.with_span_processor(Shared(Arc::clone(processor)));
    }
    let provider = provider.build();
    let traces = tracing_opentelemetry::layer().with_tracer(provider.tracer("godwit"));
    let all_of_sdk = common.log_filter.contains(SDK);
    let lines =
        lines(service, common.log).with_filter(filter_fn(move |told| is_for_log(told, all_of_sdk)));
    tracing_subscriber::registry()
        .with(filter(&common.log_filter, processor.is_some())?)
        .with(lines)
        .with(traces)
        .try_init()?;
    Ok((Guard { provider }, StepSpans::new(service, processor)))
}

fn filter(wanted: &str, exported: bool) -> Result<EnvFilter, TelemetryError> {
    let mut directives = wanted.to_owned();
    if !wanted.contains(SDK) {
        directives.push_str(",opentelemetry=off,opentelemetry_sdk=warn");
    }
    // Spans alone have this target, and the log has its own filter against them.
    if exported && !wanted.contains(STATEMENTS) {
        directives.push_str(&format!(",{STATEMENTS}=debug"));
    }
    Ok(EnvFilter::try_new(directives)?)
}

/// The exporter tells of its own troubles, once; the SDK would at every batch. But that spans are lost
/// since they are not taken fast enough, only the SDK knows.
fn is_for_log(told: &Metadata<'_>, all_of_sdk: bool) -> bool {
    let of_sdk = told.target().starts_with(SDK) && !all_of_sdk;
    told.target() != STATEMENTS && (!of_sdk || told.name() == LOST)
}

fn lines<S>(service: &'static str, format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Json => layer
            .fmt_fields(JsonFields::new())
            .event_format(lines::Json { service })
            .boxed(),
        LogFormat::Pretty => layer
            .with_ansi(std::io::stderr().is_terminal())
            .event_format(lines::Pretty)
            .boxed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_names_the_sdk_is_taken_as_it_is() {
        assert_eq!(
            filter("info", false).unwrap().to_string(),
            "opentelemetry_sdk=warn,opentelemetry=off,info"
        );
        assert_eq!(
            filter("opentelemetry=debug", false).unwrap().to_string(),
            "opentelemetry=debug"
        );
        assert!(filter("info,=,", false).is_err());
    }

    #[test]
    fn statements_are_told_of_where_there_is_a_collector() {
        assert_eq!(
            filter("info", true).unwrap().to_string(),
            "godwit_ledger::sql=debug,opentelemetry_sdk=warn,opentelemetry=off,info"
        );
        let chosen = "godwit_ledger::sql=off,info";
        let with_collector = filter(chosen, true).unwrap().to_string();
        assert!(with_collector.contains("godwit_ledger::sql=off"));
        assert!(!with_collector.contains("=debug"));
    }
}
