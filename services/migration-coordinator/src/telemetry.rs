//! Metrics and the trace of each job, written after the commit that they tell of.

use std::time::{Duration, SystemTime};

use godwit_ledger::JobRow;
use godwit_model::Epoch;
use godwit_model::migration::job::JobState;
use godwit_model::migration::view;
use godwit_runtime::metrics::Metrics;
use godwit_runtime::telemetry::{StepSpans, TraceLabel};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::counts::Counts;
use crate::trace::{self, Move};

/// Seconds, each bucket with a trace that fell into it.
type Times = HistogramWithExemplars<TraceLabel>;

/// KubeVirt's bounds for the time that a migration takes to come into a phase, seconds.
const PHASE_BOUNDS: [f64; 18] = [
    0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0,
    1200.0, 1800.0, 3600.0,
];
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

/// Labels of a phase, in KubeVirt's words.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: &'static str,
}

/// The coordinator's numbers and spans.
pub(crate) struct Telemetry {
    spans: StepSpans,
    counts: Counts,
    ended: Family<Ended, Counter>,
    steps: Family<Step, Times>,
    blackout: Times,
    phases: Family<Phase, Histogram>,
    copied: Copied,
    leases: Leases,
    forecast_took: Histogram,
    forecast_blackout: Histogram,
}

impl Telemetry {
    /// Registers the metrics.
    pub(crate) fn new(metrics: &Metrics, spans: StepSpans) -> Self {
        let telemetry = Self {
            spans,
            counts: Counts::new(metrics),
            ended: Family::default(),
            steps: Family::new_with_constructor(|| Times::new(exponential_buckets(0.001, 2.0, 18))),
            blackout: Times::new(exponential_buckets(0.001, 1.6, 20)),
            phases: Family::new_with_constructor(|| Histogram::new(PHASE_BOUNDS)),
            copied: Copied::new(metrics),
            leases: Leases::new(metrics),
            forecast_took: Histogram::new(RATIOS),
            forecast_blackout: Histogram::new(RATIOS),
        };
        // There from the start: an increase from nothing to one is none to Prometheus.
        for state in JobState::ALL {
            let labels = Step {
                state: state.as_str(),
            };
            if !state.is_final() {
                drop(telemetry.steps.get_or_create(&labels));
            }
            if let Some(phase) = view::phase(state) {
                drop(telemetry.phases.get_or_create(&Phase { phase }));
            }
        }
        for result in [JobState::Succeeded, JobState::Failed] {
            let result = result.as_str();
            drop(telemetry.ended.get_or_create(&Ended { result }));
        }
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
                "kubevirt_vmi_migration_phase_transition_time_from_creation_seconds",
                "Time from the creation of migrations to their phases",
                telemetry.phases.clone(),
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
        if let Some(phase) = view::phase(to.0) {
            let age = to.1.duration_since(job.created_at).as_secs_f64();
            let phases = self.phases.get_or_create(&Phase { phase });
            phases.observe(age.max(0.0));
        }
        if to.0.is_final() {
            self.copied.over(job);
            let result = to.0.as_str();
            self.ended.get_or_create(&Ended { result }).inc();
        }
        trace::step(&self.spans, job, moved);
    }

    /// How many migrations are open.
    pub(crate) const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The jobs that this process owns.
    pub(crate) const fn leases(&self) -> &Leases {
        &self.leases
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

/// What copies took of the network and of their guests.
#[derive(Debug)]
struct Copied {
    passes: Histogram,
    bytes: Histogram,
    brownout: Histogram,
}

impl Copied {
    fn new(metrics: &Metrics) -> Self {
        let copied = Self {
            passes: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            // From 1 MB to 4 TB.
            bytes: Histogram::new(exponential_buckets(1e6, 4.0, 12)),
            brownout: Histogram::new(exponential_buckets(0.05, 2.0, 18)),
        };
        metrics.registry(|registry| {
            let passes = copied.passes.clone();
            let help = "Passes over the memory that migrations took";
            registry.register("godwit_migration_passes", help, passes);
            let bytes = copied.bytes.clone();
            let help = "Bytes that migrations sent";
            registry.register("godwit_migration_sent_bytes", help, bytes);
            let brownout = copied.brownout.clone();
            let help = "Time in which guests were copied while they ran";
            registry.register("godwit_migration_brownout_seconds", help, brownout);
        });
        copied
    }

    /// A migration is over; one that copied nothing says nothing.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a histogram's buckets are wider"
    )]
    fn over(&self, job: &JobRow) {
        let number = |name: &str| job.history[name].as_u64().map(|number| number as f64);
        for (histogram, value) in [
            (&self.passes, number("passes")),
            (&self.bytes, number("bytes")),
            (
                &self.brownout,
                number("brownoutMs").map(|millis| millis / 1e3),
            ),
        ] {
            if let Some(value) = value {
                histogram.observe(value);
            }
        }
    }
}

/// The jobs that this process owns.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    held: Gauge,
    taken_over: Counter,
    lost: Counter,
}

impl Leases {
    fn new(metrics: &Metrics) -> Self {
        let leases = Self::default();
        metrics.registry(|registry| {
            let help = "Jobs that this process owns";
            registry.register("godwit_leases_held", help, leases.held.clone());
            let help = "Jobs that had another owner before";
            registry.register("godwit_lease_takeovers", help, leases.taken_over.clone());
            let help = "Jobs that this process lost to another owner";
            registry.register("godwit_leases_lost", help, leases.lost.clone());
        });
        leases
    }

    /// A job is this process's, under this epoch.
    pub(crate) fn begin(&self, epoch: Epoch) {
        self.held.inc();
        if epoch.0 > 1 {
            self.taken_over.inc();
        }
    }

    /// A job is this process's no more; it may be over, or somebody else's.
    pub(crate) fn end(&self, lost: bool) {
        self.held.dec();
        if lost {
            self.lost.inc();
        }
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
