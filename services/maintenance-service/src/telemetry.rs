//! Metrics of drains, a series for each node under maintenance, and of rolling maintenances.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use godwit_ledger::Object;
use godwit_model::rolling::Record;
use godwit_runtime::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use crate::plan::Standing;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Node {
    node: String,
}

/// Labels of a rolling maintenance's nodes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rolled {
    name: String,
    state: String,
}

/// Labels of a rolling maintenance.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phased {
    name: String,
    phase: String,
}

/// Numbers of the rolling maintenances; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct RollingTelemetry {
    nodes: Family<Rolled, Gauge>,
    phases: Family<Phased, Gauge>,
    progress: Family<Named, Gauge>,
}

/// Labels of a rolling maintenance's progress.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Named {
    name: String,
}

impl RollingTelemetry {
    /// Registers the metrics.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let telemetry = Self::default();
        metrics.registry(|registry| {
            registry.register(
                "godwit_rolling_nodes",
                "Nodes of a rolling maintenance, by how far they are",
                telemetry.nodes.clone(),
            );
            registry.register(
                "godwit_rolling_phase",
                "Rolling maintenances, and the phase that each is in",
                telemetry.phases.clone(),
            );
            registry.register(
                "godwit_rolling_progress",
                "Nodes that a rolling maintenance has done with, percent",
                telemetry.progress.clone(),
            );
        });
        telemetry
    }

    /// The rolling maintenances stand so; there are no others.
    pub(crate) fn stand<'a>(&self, records: impl Iterator<Item = (&'a str, Record)>) {
        self.nodes.clear();
        self.phases.clear();
        self.progress.clear();
        for (name, record) in records {
            let name = name.to_owned();
            let phase = format!("{:?}", record.phase);
            let labels = Phased {
                name: name.clone(),
                phase,
            };
            self.phases.get_or_create(&labels).set(1);
            for node in &record.nodes {
                let state = format!("{:?}", node.state);
                let name = name.clone();
                self.nodes.get_or_create(&Rolled { name, state }).inc();
            }
            let over = record.nodes.iter().filter(|node| node.state.is_over());
            let over = 100 * over.count();
            let percent = over.checked_div(record.nodes.len()).unwrap_or_default();
            let progress = self.progress.get_or_create(&Named { name });
            progress.set(i64::try_from(percent).unwrap_or_default());
        }
    }
}

/// The service's numbers.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    progress: Family<Node, Gauge>,
    pending: Family<Node, Gauge>,
    blocked: Family<Node, Gauge>,
    evacuations: Counter,
    shown: Mutex<HashSet<String>>,
}

impl Telemetry {
    /// Registers the metrics.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let telemetry = Self::default();
        metrics.registry(|registry| {
            registry.register(
                "godwit_drain_progress",
                "Machines that left a node under maintenance, percent",
                telemetry.progress.clone(),
            );
            registry.register(
                "godwit_drain_pending_machines",
                "Machines that are still on a node under maintenance",
                telemetry.pending.clone(),
            );
            registry.register(
                "godwit_drain_blocked_machines",
                "Machines that can't leave a node under maintenance until a person acts",
                telemetry.blocked.clone(),
            );
            registry.register(
                "godwit_evacuations_requested",
                "Migrations that drains asked for",
                telemetry.evacuations.clone(),
            );
        });
        telemetry
    }

    /// A drain of `node` stands so; `None` when there is none any more.
    pub(crate) fn stands(&self, node: &str, standing: Option<Standing>) {
        let labels = Node {
            node: node.to_owned(),
        };
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(standing) = standing else {
            shown.remove(node);
            self.forget(&labels);
            return;
        };
        shown.insert(node.to_owned());
        let number = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let progress = standing.progress;
        self.progress
            .get_or_create(&labels)
            .set(number(progress.percent()));
        self.pending
            .get_or_create(&labels)
            .set(number(progress.pending));
        self.blocked
            .get_or_create(&labels)
            .set(number(standing.blocked));
    }

    /// Forgets nodes that none of these maintenances is about: another copy may have ended theirs.
    pub(crate) fn keep(&self, maintenances: &[Object]) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.retain(|node| {
            let known = maintenances
                .iter()
                .any(|maintenance| maintenance.spec()["nodeName"] == **node);
            if !known {
                self.forget(&Node { node: node.clone() });
            }
            known
        });
    }

    /// So many evacuations were asked for.
    pub(crate) fn requested(&self, count: usize) {
        self.evacuations
            .inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    fn forget(&self, labels: &Node) {
        self.progress.remove(labels);
        self.pending.remove(labels);
        self.blocked.remove(labels);
    }
}
