//! Sending spans to a collector that may be slow, dead, or come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor,
};
use tokio::runtime::Handle;
use tonic::transport::Endpoint;
use tracing::{info, warn};

use super::TelemetryError;
use crate::config::OtlpProtocol;

/// Longest wait for a collector to take a batch.
const EXPORT_MAX: Duration = Duration::from_secs(3);
/// How long spans are gathered before they are sent.
const GATHER: Duration = Duration::from_secs(1);
/// Spans that may wait for a slow collector; more are lost. About 4 MB, since many have a statement.
const WAITING_MAX: usize = 2048;

/// What sends spans to the collector at this address, in batches, from a thread of its own.
///
/// Needs a tokio runtime.
pub(super) fn processor(
    (endpoint, protocol): (&str, OtlpProtocol),
    resource: &Resource,
) -> Result<BatchSpanProcessor, TelemetryError> {
    let exporter = match protocol {
        OtlpProtocol::Grpc => grpc(endpoint)?,
        OtlpProtocol::HttpProtobuf => http(endpoint)?,
    };
    let batch = BatchConfigBuilder::default()
        .with_scheduled_delay(GATHER)
        .with_max_queue_size(WAITING_MAX)
        .build();
    let mut processor = BatchSpanProcessor::builder(Patient::new(exporter, endpoint))
        .with_batch_config(batch)
        .build();
    // Behind an `Arc` the provider could not do it.
    processor.set_resource(resource);
    Ok(processor)
}

fn grpc(endpoint: &str) -> Result<opentelemetry_otlp::SpanExporter, TelemetryError> {
    let channel = Endpoint::from_shared(endpoint.to_owned())?
        .connect_timeout(EXPORT_MAX)
        .connect_lazy();
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_channel(channel)
        .with_timeout(EXPORT_MAX);
    Ok(exporter.build()?)
}

fn http(endpoint: &str) -> Result<opentelemetry_otlp::SpanExporter, TelemetryError> {
    let client = OnRuntime {
        client: HyperClient::with_default_connector(EXPORT_MAX, None),
        runtime: Handle::current(),
    };
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(traces_url(endpoint))
        .with_timeout(EXPORT_MAX);
    Ok(exporter.build()?)
}

/// Where traces go below the address of a collector, by the OTLP specification.
fn traces_url(base: &str) -> String {
    format!("{}/v1/traces", base.trim_end_matches('/'))
}

/// A client whose work the process's runtime does: the thread that sends batches has none.
#[derive(Debug)]
struct OnRuntime {
    client: HyperClient,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let answer = async move { client.send_bytes(request).await };
        self.runtime.spawn(answer).await?
    }
}

/// An exporter that says once that its collector is gone, and once that it is back.
#[derive(Debug)]
pub(super) struct Patient<E> {
    exporter: E,
    endpoint: String,
    gone: AtomicBool,
}

impl<E> Patient<E> {
    pub(super) fn new(exporter: E, endpoint: &str) -> Self {
        Self {
            exporter,
            endpoint: endpoint.to_owned(),
            gone: AtomicBool::new(false),
        }
    }

    fn tell(&self, outcome: &OTelSdkResult, spans: usize) {
        let gone = outcome.is_err();
        if self.gone.swap(gone, Ordering::Relaxed) == gone {
            return;
        }
        match outcome {
            Ok(()) => info!(endpoint = self.endpoint, "the collector takes traces again"),
            Err(error) => warn!(
                endpoint = self.endpoint, spans, %error,
                "the collector takes no traces; they are lost until it does",
            ),
        }
    }
}

impl<E: SpanExporter> SpanExporter for Patient<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let outcome = self.exporter.export(batch).await;
        self.tell(&outcome, spans);
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// One processor for the provider's spans and the steps of jobs.
#[derive(Debug)]
pub(super) struct Shared(pub(super) Arc<BatchSpanProcessor>);

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
    fn traces_have_a_path_below_the_collectors_address() {
        for base in ["http://collector:4318", "http://collector:4318/"] {
            assert_eq!(traces_url(base), "http://collector:4318/v1/traces");
        }
        assert_eq!(
            traces_url("http://gate/otlp/"),
            "http://gate/otlp/v1/traces"
        );
    }
}
