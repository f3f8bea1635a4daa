//! How many migrations are open, in which state and between which nodes: counted in the ledger, so
//! every copy of the coordinator says the same.

use std::sync::Arc;
use std::time::Duration;

use godwit_ledger::JobRow;
use godwit_model::migration::job::JobState;
use godwit_model::migration::view;
use godwit_runtime::metrics::Metrics;
use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tracing::debug;

use crate::shared::Shared;

/// How often it is counted.
const EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Way {
    node: String,
    direction: &'static str,
}

/// The numbers, under KubeVirt's names where it has one.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    open: Family<State, Gauge>,
    ways: Family<Way, Gauge>,
    oldest: Gauge,
    pending: Gauge,
    scheduling: Gauge,
    running: Gauge,
    unset: Gauge,
}

impl Counts {
    /// Registers the metrics.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let counts = Self::default();
        metrics.registry(|registry| {
            let help = "Migrations that are not over, by state";
            registry.register("godwit_migrations_open", help, counts.open.clone());
            let help = "Migrations under way from (out) and to (in) a node";
            registry.register("godwit_node_migrations", help, counts.ways.clone());
            let help = "How long the migration waits that waits longest for its turn, in seconds";
            let oldest = counts.oldest.clone();
            registry.register("godwit_migration_queue_oldest_seconds", help, oldest);
            for (phase, gauge) in [
                ("pending", &counts.pending),
                ("scheduling", &counts.scheduling),
                ("running", &counts.running),
                ("unset", &counts.unset),
            ] {
                let name = format!("kubevirt_vmi_migrations_in_{phase}_phase");
                registry.register(name, "Migrations in such a phase", gauge.clone());
            }
        });
        counts
    }

    fn stand(&self, jobs: &[JobRow], now: Timestamp) {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for state in JobState::ALL.into_iter().filter(|state| !state.is_final()) {
            let count = jobs.iter().filter(|job| job.state == state).count();
            let labels = State {
                state: state.as_str(),
            };
            self.open.get_or_create(&labels).set(number(count));
        }
        self.ways.clear();
        for job in jobs.iter().filter(|job| job.target.is_some()) {
            for (node, direction) in [(&job.source, "out"), (&job.target, "in")] {
                let node = node.as_ref().map(ToString::to_string).unwrap_or_default();
                self.ways.get_or_create(&Way { node, direction }).inc();
            }
        }
        let waiting = jobs.iter().filter(|job| job.state == JobState::Pending);
        let oldest = waiting.map(|job| now.duration_since(job.created_at).as_secs());
        self.oldest.set(oldest.max().unwrap_or(0).max(0));
        let phases = |wanted: &[&str]| {
            let phase = |job: &&JobRow| view::phase(job.state).is_some_and(|p| wanted.contains(&p));
            number(jobs.iter().filter(phase).count())
        };
        self.pending.set(phases(&["Pending"]));
        self.scheduling.set(phases(&["Scheduling"]));
        let running = ["Scheduled", "PreparingTarget", "TargetReady", "Running"];
        self.running.set(phases(&running));
        let unset = |job: &&JobRow| view::phase(job.state).is_none();
        self.unset.set(number(jobs.iter().filter(unset).count()));
    }
}

/// Counts until shutdown.
pub(crate) async fn follow(shared: Arc<Shared>) {
    loop {
        match shared.ledger.jobs_open().await {
            Ok(jobs) => shared.telemetry.counts().stand(&jobs, Timestamp::now()),
            Err(error) => debug!(%error, "the open migrations could not be counted"),
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}
