//! Metrics of nodes, placement and instances: KubeVirt's names where it has one.

use godwit_ledger::Object;
use godwit_model::instance::EvictionStrategy;
use godwit_runtime::metrics::Metrics;
use jiff::Timestamp;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;
use serde_json::Value;

use crate::json::condition;
use crate::world::World;

/// KubeVirt's bounds for the time that an instance takes to come into a phase, seconds.
const PHASE_BOUNDS: [f64; 17] = [
    0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0,
    1200.0, 1800.0,
];

/// Phases of an instance.
const PHASES: [&str; 6] = [
    "Pending",
    "Scheduling",
    "Scheduled",
    "Running",
    "Succeeded",
    "Failed",
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Node {
    node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Placed {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Instance {
    node: String,
    namespace: String,
    name: String,
}

/// An instance with what is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Told {
    instance: Instance,
    phase: String,
    evictable: bool,
}

impl EncodeLabelSet for Told {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.instance.encode(encoder)?;
        let rest = [
            ("phase", self.phase.as_str()),
            ("evictable", if self.evictable { "true" } else { "false" }),
        ];
        rest.encode(encoder)
    }
}

/// The service's numbers.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    ready: Family<Node, Gauge>,
    memory: Family<Node, Gauge>,
    memory_held: Family<Node, Gauge>,
    placements: Family<Placed, Counter>,
    phases: Phases,
    told: Family<Told, Gauge>,
    non_evictable: Family<Instance, Gauge<i64>>,
}

/// Times from the creation of instances to their phases.
#[derive(Debug)]
struct Phases(Family<Phase, Histogram, fn() -> Histogram>);

impl Default for Phases {
    fn default() -> Self {
        Self(Family::new_with_constructor(|| {
            Histogram::new(PHASE_BOUNDS)
        }))
    }
}

impl Telemetry {
    /// Registers the metrics.
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let own = Self::default();
        // There from the start: an increase from nothing to one is none to Prometheus.
        for phase in PHASES {
            let phase = phase.to_owned();
            drop(own.phases.0.get_or_create(&Phase { phase }));
        }
        metrics.registry(|registry| {
            registry.register(
                "godwit_node_ready",
                "Whether the node's agent reports",
                own.ready.clone(),
            );
            registry.register_with_unit(
                "godwit_node_memory",
                "Memory of a node for guests and their QEMU",
                Unit::Bytes,
                own.memory.clone(),
            );
            registry.register_with_unit(
                "godwit_node_memory_reserved",
                "Memory of a node that is held",
                Unit::Bytes,
                own.memory_held.clone(),
            );
            registry.register(
                "godwit_placements",
                "Looks for a node at the start of a machine",
                own.placements.clone(),
            );
            registry.register_with_unit(
                "kubevirt_vmi_phase_transition_time_from_creation",
                "Time from the creation of an instance to a phase",
                Unit::Seconds,
                own.phases.0.clone(),
            );
            registry.register(
                "kubevirt_vmi_info",
                "Instances, and what is told of them",
                own.told.clone(),
            );
            registry.register(
                "kubevirt_vmi_non_evictable",
                "Whether an instance should leave its node in a drain, and can't",
                own.non_evictable.clone(),
            );
        });
        own
    }

    /// A look for a node ended.
    pub(crate) fn placed(&self, found: bool) {
        let result = if found { "Placed" } else { "Unschedulable" };
        self.placements.get_or_create(&Placed { result }).inc();
    }

    /// An instance came into a phase.
    pub(crate) fn phase(&self, object: &Object, phase: &str, now: Timestamp) {
        let created = object.metadata["creationTimestamp"].as_str();
        let Some(created) = created.and_then(|created| created.parse().ok()) else {
            return;
        };
        let labels = Phase {
            phase: phase.to_owned(),
        };
        let seconds = now.duration_since(created).as_secs_f64();
        self.phases
            .0
            .get_or_create(&labels)
            .observe(seconds.max(0.0));
    }

    /// Everything stands so.
    pub(crate) fn stands(&self, world: &World<'_>) {
        for family in [&self.ready, &self.memory, &self.memory_held] {
            family.clear();
        }
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        for node in world.nodes.values() {
            let held = world
                .memory_held
                .get(&node.name)
                .copied()
                .unwrap_or_default();
            let labels = Node {
                node: node.name.to_string(),
            };
            let memory = number(node.capacity.memory.0);
            self.ready.get_or_create(&labels).set(i64::from(node.ready));
            self.memory.get_or_create(&labels).set(memory);
            self.memory_held.get_or_create(&labels).set(number(held));
        }
        self.told.clear();
        self.non_evictable.clear();
        for object in world.instances() {
            self.instance(object, world.eviction_strategy.as_deref());
        }
    }

    fn instance(&self, object: &Object, cluster: Option<&str>) {
        let none = Value::Null;
        let told = object.status.as_ref().unwrap_or(&none);
        let own = object.spec()["evictionStrategy"].as_str();
        let migratable = condition(told, "LiveMigratable") != Some("False");
        let stuck = match EvictionStrategy::effective(own, cluster) {
            EvictionStrategy::LiveMigrate => !migratable,
            EvictionStrategy::None
            | EvictionStrategy::LiveMigrateIfPossible
            | EvictionStrategy::External => false,
        };
        let instance = Instance {
            node: told["nodeName"].as_str().unwrap_or_default().to_owned(),
            namespace: object.key.namespace.clone(),
            name: object.key.name.clone(),
        };
        self.non_evictable
            .get_or_create(&instance)
            .set(i64::from(stuck));
        let told = Told {
            phase: told["phase"]
                .as_str()
                .unwrap_or_default()
                .to_ascii_lowercase(),
            evictable: migratable,
            instance,
        };
        self.told.get_or_create(&told).set(1);
    }
}
