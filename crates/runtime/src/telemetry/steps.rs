//! Spans of job steps, written from the ledger's times after the commit that they tell of.
//!
//! The id of a span is derived from what it tells of: a takeover that writes a step again gives the
//! same span, never a second one, and a child can name its parent before anyone wrote it.

use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value as Attribute};
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

/// What makes a step's span one and the same, whichever owner of the job writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanKey<'a> {
    /// The job's id.
    pub job: &'a str,
    /// The step's name.
    pub step: &'a str,
    /// Tells the times apart that a step is done: the number of a pass, or when the step began.
    pub nth: u64,
}

/// One finished step of a job.
#[derive(Debug, Clone, Copy)]
pub struct StepSpan<'a> {
    /// `traceparent` of the request that caused the job; empty joins no trace.
    pub trace: &'a str,
    /// Which step.
    pub key: SpanKey<'a>,
    /// Whether it is itself the span of `trace`, and the first of that trace; see [`begin_trace`].
    ///
    /// [`begin_trace`]: super::begin_trace
    pub first: bool,
    /// The step that this one is a part of; `None` hangs it below the span of `trace`.
    pub parent: Option<SpanKey<'a>>,
    /// When the step began.
    pub began: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// What else is known of it.
    pub attributes: &'a [(&'static str, Attribute)],
    /// `traceparent`s of spans in other traces that belong to it.
    pub links: &'a [&'a str],
    /// Why the step failed; `None` when it didn't.
    pub failure: Option<&'a str>,
}

impl<'a> StepSpan<'a> {
    /// A step below the span of `trace` that took from the first to the second of these times.
    pub fn new(trace: &'a str, key: SpanKey<'a>, (began, ended): (SystemTime, SystemTime)) -> Self {
        Self {
            trace,
            key,
            first: false,
            parent: None,
            began,
            ended,
            attributes: &[],
            links: &[],
            failure: None,
        }
    }
}

impl SpanKey<'_> {
    fn id(&self) -> SpanId {
        let Self { job, step, nth } = self;
        let digest = Sha256::digest(format!("{job}\n{step}\n{nth}"));
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&digest[..8]);
        SpanId::from_bytes(bytes)
    }

    /// `traceparent` of this step in the trace of `trace`; `None` when that names no trace.
    ///
    /// For calls that are a part of the step, and for what links to it. The step's span need not be
    /// written yet: whoever ends the step writes it under this id.
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

    /// Whether there is a collector.
    pub const fn is_exported(&self) -> bool {
        self.processor.is_some()
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
    let links = step
        .links
        .iter()
        .filter_map(|link| Some(Link::new(context::parse(link)?, Vec::new(), 0)))
        .collect();
    let mut span_links = SpanLinks::default();
    span_links.links = links;
    let (span_context, parent) = match step.first {
        true => (root, SpanId::INVALID),
        false => {
            let parent = step
                .parent
                .map_or_else(|| root.span_id(), |parent| parent.id());
            (step.key.within(&root), parent)
        }
    };
    Some(SpanData {
        span_context,
        parent_span_id: parent,
        parent_span_is_remote: !step.first && step.parent.is_none(),
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

    fn key(step: &str, nth: u64) -> SpanKey<'_> {
        SpanKey {
            job: "43f5b34d-94b4-4cda-9a69-cca8d4b4c587",
            step,
            nth,
        }
    }

    fn step<'a>(key: SpanKey<'a>, parent: Option<SpanKey<'a>>) -> StepSpan<'a> {
        StepSpan {
            parent,
            links: &[TRACE, "nonsense"],
            failure: Some("no room"),
            ..StepSpan::new(TRACE, key, (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH))
        }
    }

    #[test]
    fn a_steps_span_has_the_same_id_whoever_writes_it() {
        assert_eq!(key("Copying", 3).id(), key("Copying", 3).id());
        for other in [key("Copying", 4), key("Preparing", 3)] {
            assert_ne!(key("Copying", 3).id(), other.id());
        }
    }

    #[test]
    fn a_pass_hangs_below_its_copy_and_the_copy_below_the_request() {
        let copy = span("test", &step(key("Copying", 3), None)).unwrap();
        let pass = span("test", &step(key("pass", 1), Some(key("Copying", 3)))).unwrap();
        assert_eq!(copy.parent_span_id.to_string(), "00f067aa0ba902b7");
        assert_eq!(pass.parent_span_id, copy.span_context.span_id());
        assert_eq!(pass.span_context.trace_id(), copy.span_context.trace_id());
        assert_eq!(copy.links.links.len(), 1);
        assert_eq!(copy.status, Status::error("no room"));
    }

    #[test]
    fn the_first_span_of_a_trace_has_the_id_that_others_call_their_parent() {
        let first = StepSpan {
            first: true,
            ..step(key("evacuation", 0), None)
        };
        let first = span("test", &first).unwrap();
        let next = span("test", &step(key("Pending", 3), None)).unwrap();
        assert_eq!(first.parent_span_id, SpanId::INVALID);
        assert_eq!(next.parent_span_id, first.span_context.span_id());
        let (one, other) = (super::super::begin_trace(), super::super::begin_trace());
        assert!(context::parse(&one).is_some_and(|begun| begun.is_sampled()));
        assert_ne!(one, other);
    }

    #[test]
    fn a_job_outside_of_any_trace_has_no_spans() {
        let step = StepSpan {
            trace: "",
            ..step(key("Copying", 3), None)
        };
        assert!(span("test", &step).is_none());
        assert_eq!(step.key.traceparent(""), None);
    }
}
