//! Spans of job steps, written from the ledger's times after the commit that they tell of.
//!
//! The id of a span is derived from what it tells of: a takeover that writes a step again gives the
//! same span, never a second one, and a child can name its parent before anyone wrote it.

use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanLinks, SpanProcessor};
use sha2::{Digest, Sha256};

use super::context;

/// Writes finished spans of job steps, whoever did them and whenever.
#[derive(Debug, Clone, Default)]
pub struct StepSpans {
    /// `None` without a collector.
    processor: Option<Arc<BatchSpanProcessor>>,
    service: &'static str,
}

/// What makes a step's span one and the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanKey<'a> {
    /// The job's id.
    pub job: &'a str,
    /// The step's name.
    pub step: &'a str,
    /// Which time this step is done: the attempt of a job, the pass of a copy.
    pub attempt: u32,
    /// The owner's epoch.
    pub epoch: u64,
}

/// One finished step of a job.
#[derive(Debug, Clone, Copy)]
pub struct StepSpan<'a> {
    /// `traceparent` of the request that caused the job; empty joins no trace.
    pub trace: &'a str,
    /// Which step.
    pub key: SpanKey<'a>,
    /// The step that this one is a part of; `None` hangs it below the request.
    pub parent: Option<SpanKey<'a>>,
    /// When the step began.
    pub began: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// What else is known of it.
    pub attributes: &'a [(&'static str, String)],
    /// `traceparent`s of spans in other traces that belong to it.
    pub links: &'a [&'a str],
    /// Why the step failed; `None` when it didn't.
    pub failure: Option<&'a str>,
}

/// A [`StepSpan`] without parts, links or failure.
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

impl SpanKey<'_> {
    fn id(&self) -> SpanId {
        let Self {
            job,
            step,
            attempt,
            epoch,
        } = self;
        let digest = Sha256::digest(format!("{job}\n{step}\n{attempt}\n{epoch}"));
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&digest[..8]);
        SpanId::from_bytes(bytes)
    }

    /// `traceparent` of this step in the trace of `trace`; `None` when that names no trace.
    ///
    /// For history rows and events, which link to the step that they tell of.
    pub fn traceparent(&self, trace: &str) -> Option<String> {
        let root = context::parse(trace)?;
        Some(context::text(&self.within(&root)))
    }

    fn within(&self, root: &SpanContext) -> SpanContext {
        SpanContext::new(
            root.trace_id(),
            self.id(),
            root.trace_flags(),
            false,
            TraceState::default(),
        )
    }
}

impl StepSpans {
    pub(super) fn new(service: &'static str, processor: Option<Arc<BatchSpanProcessor>>) -> Self {
        Self { processor, service }
    }

    /// Queues one span for export; does nothing without a collector.
    pub fn finished(&self, step: FinishedStep<'_>) {
        self.record(StepSpan {
            trace: step.trace,
            key: SpanKey {
                job: step.job,
                step: step.step,
                attempt: 0,
                epoch: step.epoch,
            },
            parent: None,
            began: step.began,
            ended: step.ended,
            attributes: step.attributes,
            links: &[],
            failure: None,
        });
    }

    /// Queues one span for export; does nothing without a collector.
    pub fn record(&self, step: StepSpan<'_>) {
        let Some(processor) = &self.processor else {
            return;
        };
        if let Some(span) = span(self.service, &step) {
            processor.on_end(span);
        }
    }
}

/// The span of a step; `None` when its request was in no trace.
fn span(service: &'static str, step: &StepSpan<'_>) -> Option<SpanData> {
    let root = context::parse(step.trace)?;
    let mut attributes: Vec<KeyValue> = step
        .attributes
        .iter()
        .map(|(key, value)| KeyValue::new(*key, value.clone()))
        .collect();
    attributes.push(KeyValue::new("godwit.job", step.key.job.to_owned()));
    attributes.push(KeyValue::new("godwit.epoch", step.key.epoch.to_string()));
    if step.key.attempt > 0 {
        attributes.push(KeyValue::new("godwit.attempt", i64::from(step.key.attempt)));
    }
    let links = step
        .links
        .iter()
        .filter_map(|link| Some(Link::new(context::parse(link)?, Vec::new(), 0)))
        .collect();
    let mut span_links = SpanLinks::default();
    span_links.links = links;
    Some(SpanData {
        span_context: step.key.within(&root),
        parent_span_id: step
            .parent
            .map_or_else(|| root.span_id(), |parent| parent.id()),
        parent_span_is_remote: step.parent.is_none(),
        span_kind: SpanKind::Internal,
        name: step.key.step.to_owned().into(),
        start_time: step.began,
        end_time: step.ended,
        attributes,
        dropped_attributes_count: 0,
        events: Default::default(),
        links: span_links,
        status: step
            .failure
            .map_or(Status::Unset, |why| Status::error(why.to_owned())),
        instrumentation_scope: InstrumentationScope::builder(service).build(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn key(step: &str, attempt: u32, epoch: u64) -> SpanKey<'_> {
        SpanKey {
            job: "43f5b34d-94b4-4cda-9a69-cca8d4b4c587",
            step,
            attempt,
            epoch,
        }
    }

    fn step<'a>(key: SpanKey<'a>, parent: Option<SpanKey<'a>>) -> StepSpan<'a> {
        StepSpan {
            trace: TRACE,
            key,
            parent,
            began: SystemTime::UNIX_EPOCH,
            ended: SystemTime::UNIX_EPOCH,
            attributes: &[],
            links: &[TRACE, "nonsense"],
            failure: Some("no room"),
        }
    }

    #[test]
    fn a_steps_span_has_the_same_id_whoever_writes_it() {
        assert_eq!(key("Copying", 0, 3).id(), key("Copying", 0, 3).id());
        for other in [
            key("Copying", 0, 4),
            key("Copying", 1, 3),
            key("Preparing", 0, 3),
        ] {
            assert_ne!(key("Copying", 0, 3).id(), other.id());
        }
    }

    #[test]
    fn a_pass_hangs_below_its_copy_and_the_copy_below_the_request() {
        let copy = span("test", &step(key("Copying", 0, 3), None)).unwrap();
        let pass = span("test", &step(key("Pass", 1, 3), Some(key("Copying", 0, 3)))).unwrap();
        assert_eq!(copy.parent_span_id.to_string(), "00f067aa0ba902b7");
        assert_eq!(pass.parent_span_id, copy.span_context.span_id());
        assert_eq!(pass.span_context.trace_id(), copy.span_context.trace_id());
        assert_eq!(copy.links.links.len(), 1);
        assert_eq!(copy.status, Status::error("no room"));
    }

    #[test]
    fn a_job_outside_of_any_trace_has_no_spans() {
        let step = StepSpan {
            trace: "",
            ..step(key("Copying", 0, 3), None)
        };
        assert!(span("test", &step).is_none());
        assert_eq!(step.key.traceparent(""), None);
    }
}
