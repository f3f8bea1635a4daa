//! The form of log lines: one for people, one for machines, both with trace ids.

use std::fmt;

use opentelemetry::trace::{SpanContext, TraceContextExt};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// `TIME LEVEL target: span{fields}: message fields trace=ID`.
pub(super) struct Pretty;

/// One object a line: the fields of the spans from the outside in, then those of the event.
pub(super) struct Json {
    pub(super) service: &'static str,
}

impl<S, N> FormatEvent<S, N> for Pretty
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        SystemTime.format_time(&mut line)?;
        let (on, off) = color(*metadata.level(), line.has_ansi_escapes());
        write!(
            line,
            " {on}{:>5}{off} {}: ",
            metadata.level(),
            metadata.target()
        )?;
        for span in context
            .event_scope()
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            write!(line, "{}", span.name())?;
            let extensions = span.extensions();
            match extensions.get::<FormattedFields<N>>() {
                Some(fields) if !fields.is_empty() => write!(line, "{{{fields}}}: ")?,
                Some(_) | None => write!(line, ": ")?,
            }
        }
        context.format_fields(line.by_ref(), event)?;
        if let Some(span) = trace(context) {
            write!(line, " trace={}", span.trace_id())?;
        }
        writeln!(line)
    }
}

fn color(level: tracing::Level, colored: bool) -> (&'static str, &'static str) {
    let code = match level {
        _ if !colored => return ("", ""),
        tracing::Level::ERROR => "\x1b[31m",
        tracing::Level::WARN => "\x1b[33m",
        tracing::Level::INFO => "\x1b[32m",
        _ => "\x1b[2m",
    };
    (code, "\x1b[0m")
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut object = Map::new();
        for span in context
            .event_scope()
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<N>>();
            // Written by `JsonFields`: an object, or nothing for a span without fields.
            let fields = fields.and_then(|fields| serde_json::from_str(&fields.fields).ok());
            object.extend(fields.unwrap_or_else(Map::new));
            object.insert("span".to_owned(), span.name().into());
        }
        event.record(&mut Fields(&mut object));
        let metadata = event.metadata();
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        for (key, value) in [
            ("timestamp", time.as_str()),
            ("level", metadata.level().as_str()),
            ("service", self.service),
            ("target", metadata.target()),
        ] {
            object.insert(key.to_owned(), value.into());
        }
        if let Some(span) = trace(context) {
            object.insert("trace_id".to_owned(), span.trace_id().to_string().into());
            object.insert("span_id".to_owned(), span.span_id().to_string().into());
        }
        writeln!(line, "{}", Value::Object(object))
    }
}

/// The trace that an event belongs to; `None` outside of any span.
fn trace<S, N>(context: &FmtContext<'_, S, N>) -> Option<SpanContext>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let id = context.lookup_current()?.id();
    let found = tracing::dispatcher::get_default(|dispatch| {
        tracing_opentelemetry::get_otel_context(&id, dispatch)
    });
    let span = found?.span().span_context().clone();
    span.is_valid().then_some(span)
}

struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::fmt::format::JsonFields;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn about(&self, what: &str) -> String {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            text.lines()
                .find(|line| line.contains(what))
                .unwrap()
                .to_owned()
        }
    }

    // One test: the formats look the trace up in the process's subscriber, and there is only one.
    #[test]
    fn lines_tell_the_spans_fields_and_the_trace() {
        let (json, pretty) = (Lines::default(), Lines::default());
        let (to_json, to_pretty) = (json.clone(), pretty.clone());
        let provider = SdkTracerProvider::default();
        let subscriber = tracing_subscriber::registry()
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(move || to_json.clone())
                    .fmt_fields(JsonFields::new())
                    .event_format(Json { service: "test" }),
            )
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(move || to_pretty.clone())
                    .with_ansi(false)
                    .event_format(Pretty),
            )
            .with(tracing_opentelemetry::layer().with_tracer(provider.tracer("test")));
        tracing::subscriber::set_global_default(subscriber).unwrap();

        let span = tracing::info_span!("drive", job = "a job");
        let context = span.in_scope(|| {
            tracing::info!(pass = 3, target = "worker2", "copy converging");
            crate::telemetry::trace_context()
        });

        let line: Value = serde_json::from_str(&json.about("copy converging")).unwrap();
        let trace = line["trace_id"].as_str().unwrap();
        assert!(context.contains(trace), "{context} lacks {trace}");
        for (key, expected) in [("job", "a job"), ("service", "test"), ("span", "drive")] {
            assert_eq!(line[key], expected);
        }
        assert_eq!((&line["pass"], &line["level"]), (&3.into(), &"INFO".into()));
        let line = pretty.about("copy converging");
        let expected = format!(
            "  INFO godwit_runtime::telemetry::lines::tests: drive{{job=\"a job\"}}: \
             copy converging pass=3 target=\"worker2\" trace={trace}"
        );
        assert!(line.ends_with(&expected), "{line:?}");
    }
}
