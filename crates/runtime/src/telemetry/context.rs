//! Trace contexts as text: W3C Trace Context, version 00.

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use prometheus_client::encoding::EncodeLabelSet;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// `traceparent` of the current span; empty when it is in no trace.
pub fn trace_context() -> String {
    let context = tracing::Span::current().context();
    let span = context.span().span_context().clone();
    if span.is_valid() {
        text(&span)
    } else {
        String::new()
    }
}

/// `traceparent` of the first span of a new trace, which the caller records as a step.
pub fn begin_trace() -> String {
    let ids = RandomIdGenerator::default();
    text(&SpanContext::new(
        ids.new_trace_id(),
        ids.new_span_id(),
        TraceFlags::SAMPLED,
        false,
        TraceState::default(),
    ))
}

/// Makes `span` a child of the span that `traceparent` names; text that names none changes nothing.
///
/// Must come before the span is first entered or logged in.
pub fn join(span: &tracing::Span, traceparent: &str) {
    if let Some(parent) = parse(traceparent) {
        // An error says that the span is filtered out or that no traces are set up.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// Label of an exemplar: which trace a measured value is of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TraceLabel {
    trace_id: String,
}

impl TraceLabel {
    /// The trace that `traceparent` names; `None` for text that names none.
    pub fn of(traceparent: &str) -> Option<Self> {
        let trace_id = parse(traceparent)?.trace_id().to_string();
        Some(Self { trace_id })
    }
}

pub(super) fn text(span: &SpanContext) -> String {
    format!(
        "00-{}-{}-{:02x}",
        span.trace_id(),
        span.span_id(),
        span.trace_flags().to_u8()
    )
}

/// Reads `00-TRACE-SPAN-FLAGS`; `None` for anything else.
pub(super) fn parse(text: &str) -> Option<SpanContext> {
    let [version, trace, span, flags] =
        <[&str; 4]>::try_from(text.split('-').take(5).collect::<Vec<_>>()).ok()?;
    if version != "00" || trace.len() != 32 || span.len() != 16 || flags.len() != 2 {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_and_nonsense_is_not() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(
            parse(good).map(|context| super::text(&context)).as_deref(),
            Some(good)
        );
        for bad in [
            "",
            "garbage",
            "00-0-0-0",
            "00-zz-00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn outside_a_trace_there_is_no_context() {
        assert_eq!(trace_context(), "");
    }
}
