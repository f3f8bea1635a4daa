//! Sending spans to a collector that may be slow, dead, or come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor};
use tracing::{info, warn};

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
