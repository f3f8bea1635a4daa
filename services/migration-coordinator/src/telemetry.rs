//! Metrics and the trace of each job, written after the commit that they tell of.

use std::time::{Duration, SystemTime};

use godwit_ledger::JobRow;
use godwit_runtime::metrics::Metrics;
use godwit_runtime::telemetry::{StepSpans, TraceLabel};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::trace::{self, Move};

/// Seconds, each bucket with a trace that fell into it.
type Times = HistogramWithExemplars<TraceLabel>;

/// Of what was and what was forecast: 1 is right, and both ways are told apart.
const RATIOS: [f64; 15] = [
    0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0,
];

/// Labels of a finished migration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    result: &'static str,
}

/// Labels of a step.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Step {
    state: &'static str,
}

/// The coordinator's numbers and spans.
pub(crate) struct Telemetry {
    spans: StepSpans,
    ended: Family<Ended, Counter>,
    steps: Family<Step, Times>,
    blackout: Times,
    forecast_took: Histogram,
    forecast_blackout: Histogram,
}

impl Telemetry {
    /// Registers the metrics.
    pub(crate) fn new(metrics: &Metrics, spans: StepSpans) -> Self {
        let telemetry = Self {
            spans,
            ended: Family::default(),
            steps: Family::new_with_constructor(|| Times::new(exponential_buckets(0.001, 2.0, 18))),
            blackout: Times::new(exponential_buckets(0.001, 1.6, 20)),
            forecast_took: Histogram::new(RATIOS),
            forecast_blackout: Histogram::new(RATIOS),
        };
        metrics.registry(|registry| {
            registry.register(
                "godwit_migrations_ended",
                "Migrations that reached their end, by result",
                telemetry.ended.clone(),
            );
            registry.register(
                "godwit_migration_state_seconds",
                "Time that jobs spent in each state",
                telemetry.steps.clone(),
            );
            registry.register(
                "godwit_migration_blackout_seconds",
                "Time in which a guest's CPUs ran nowhere",
                telemetry.blackout.clone(),
            );
            registry.register(
                "godwit_forecast_duration_ratio",
                "What migrations took, divided by what was forecast when the target was known",
                telemetry.forecast_took.clone(),
            );
            registry.register(
                "godwit_forecast_blackout_ratio",
                "Blackouts, divided by what was forecast when the target was known",
                telemetry.forecast_blackout.clone(),
            );
        });
        telemetry
    }

    /// A step of the leased job ended.
    pub(crate) fn step(&self, job: &JobRow, moved: &Move) {
        let (from, to) = (moved.from, moved.to);
        let took = to.1.duration_since(from.1).unsigned_abs();
        let labels = Step {
            state: from.0.as_str(),
        };
        observe(&self.steps.get_or_create(&labels), took, &job.trace);
        if to.0.is_final() {
            let result = to.0.as_str();
            self.ended.get_or_create(&Ended { result }).inc();
        }
        trace::step(&self.spans, job, moved);
    }

    /// Writes spans of jobs' steps.
    pub(crate) const fn spans(&self) -> &StepSpans {
        &self.spans
    }

    /// A guest's CPUs ran nowhere for `took`.
    pub(crate) fn blackout(&self, job: &JobRow, took: Duration, forecast: Option<Duration>) {
        observe(&self.blackout, took, &job.trace);
        if let Some(forecast) = forecast {
            self.forecast_blackout.observe(ratio(took, forecast));
        }
    }

    /// A migration took `took` from the choice of its target on.
    pub(crate) fn forecast_took(&self, took: Duration, forecast: Duration) {
        self.forecast_took.observe(ratio(took, forecast));
    }
}

/// With the trace that the time is of.
fn observe(histogram: &Times, took: Duration, trace: &str) {
    let now = SystemTime::now();
    histogram.observe(took.as_secs_f64(), TraceLabel::of(trace), Some(now));
}

fn ratio(was: Duration, forecast: Duration) -> f64 {
    // A forecast of nothing is as wrong as one of a microsecond.
    was.as_secs_f64() / forecast.as_secs_f64().max(1e-6)
}
