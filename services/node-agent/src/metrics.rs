//! What an agent counts. KubeVirt's names where KubeVirt has one.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use godwit_model::NodeName;
use godwit_model::machine::MachineSpec;
use godwit_model::migration::fact::Progress;

/// A gauge of bytes or bytes per second.
type Amount = Gauge<u64, AtomicU64>;

/// Which copy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CopyLabels {
    namespace: String,
    name: String,
    node: String,
}

impl CopyLabels {
    /// Labels of a copy of `spec` that leaves `node`.
    pub(crate) fn new(spec: &MachineSpec, node: &NodeName) -> Self {
        Self {
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            node: node.to_string(),
        }
    }
}

/// Part of a blackout that this host adds to QEMU's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Piece {
    /// Source: from `completed` until the target answered that the guest runs.
    Proof,
    /// Target: the point of no return on disk.
    Journal,
    /// Target: from the journal to the running guest.
    Continue,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PieceLabels {
    piece: Piece,
}

/// An agent's metrics; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    total: Family<CopyLabels, Counter>,
    processed: Family<CopyLabels, Amount>,
    remaining: Family<CopyLabels, Amount>,
    dirty_rate: Family<CopyLabels, Amount>,
    transfer_rate: Family<CopyLabels, Amount>,
    passes: Family<CopyLabels, Amount>,
    throttle: Family<CopyLabels, Amount>,
    expected_blackout: Family<CopyLabels, Gauge<f64, AtomicU64>>,
    machines: Gauge,
    fsync: Histogram,
    blackout: Family<PieceLabels, Histogram>,
}

/// From 10 µs to 10 s, three a decade.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.00001, 2.154_434_69, 19))
}

impl Inner {
    /// What KubeVirt has no name for.
    fn register_own(&self, registry: &mut Registry) {
        let help = "Passes of a copy over dirty memory so far";
        registry.register("godwit_vmi_migration_passes", help, self.passes.clone());
        let help = "How much QEMU slows a guest down so that its copy converges";
        let throttle = self.throttle.clone();
        registry.register("godwit_vmi_migration_throttle_percent", help, throttle);
        let help = "How long a guest would stand still if it were stopped now, by QEMU's estimate";
        let name = "godwit_vmi_migration_expected_blackout";
        let expected = self.expected_blackout.clone();
        registry.register_with_unit(name, help, Unit::Seconds, expected);
    }
}

impl Metrics {
    /// The metrics, registered in `registry`.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let inner = Inner {
            total: Family::default(),
            processed: Family::default(),
            remaining: Family::default(),
            dirty_rate: Family::default(),
            transfer_rate: Family::default(),
            passes: Family::default(),
            throttle: Family::default(),
            expected_blackout: Family::default(),
            machines: Gauge::default(),
            fsync: seconds(),
            blackout: Family::new_with_constructor(seconds),
        };
        let help = "Guest memory to be copied";
        let name = "kubevirt_vmi_migration_data_bytes";
        registry.register(name, help, inner.total.clone());
        let copies = [
            ("processed", "Bytes sent so far", &inner.processed),
            ("remaining", "Bytes that still differ", &inner.remaining),
        ];
        for (name, help, family) in copies {
            let name = format!("kubevirt_vmi_migration_data_{name}");
            registry.register_with_unit(name, help, Unit::Bytes, family.clone());
        }
        let rates = [
            (
                "dirty_memory",
                "Bytes per second that the guest dirties",
                &inner.dirty_rate,
            ),
            (
                "memory_transfer",
                "Bytes per second at present",
                &inner.transfer_rate,
            ),
        ];
        for (name, help, family) in rates {
            let name = format!("kubevirt_vmi_migration_{name}_rate");
            registry.register_with_unit(name, help, Unit::Bytes, family.clone());
        }
        inner.register_own(registry);
        let help = "Machines with a QEMU on this host";
        registry.register("godwit_agent_machines", help, inner.machines.clone());
        let help = "Time until a line of a job's log is on disk";
        let fsync = inner.fsync.clone();
        registry.register_with_unit("godwit_agent_log_sync", help, Unit::Seconds, fsync);
        let help = "Parts of a blackout that the agents add to QEMU's own";
        // There from the start: an increase from nothing to one is none to Prometheus.
        for piece in [Piece::Proof, Piece::Journal, Piece::Continue] {
            drop(inner.blackout.get_or_create(&PieceLabels { piece }));
        }
        let blackout = inner.blackout.clone();
        registry.register_with_unit("godwit_agent_blackout", help, Unit::Seconds, blackout);
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Numbers of a running copy.
    pub(crate) fn copying(&self, labels: &CopyLabels, progress: &Progress) {
        let set = |family: &Family<CopyLabels, Amount>, value: u64| {
            family.get_or_create(labels).set(value);
        };
        // A counter by KubeVirt's choice; it doesn't shrink with ballooning.
        let total = self.inner.total.get_or_create(labels);
        total.inc_by(progress.total.0.saturating_sub(total.get()));
        drop(total);
        set(&self.inner.processed, progress.transferred.0);
        set(&self.inner.remaining, progress.remaining.0);
        set(&self.inner.dirty_rate, progress.dirty_rate);
        set(&self.inner.transfer_rate, progress.throughput);
        set(&self.inner.passes, progress.passes.into());
        set(&self.inner.throttle, progress.throttle_percent.into());
        let expected = Duration::from_millis(progress.expected_downtime_ms);
        let gauge = self.inner.expected_blackout.get_or_create(labels);
        gauge.set(expected.as_secs_f64());
    }

    /// The copy has ended, and its series with it.
    pub(crate) fn copied(&self, labels: &CopyLabels) {
        let inner = &self.inner;
        inner.total.remove(labels);
        for family in [
            &inner.processed,
            &inner.remaining,
            &inner.dirty_rate,
            &inner.transfer_rate,
            &inner.passes,
            &inner.throttle,
        ] {
            family.remove(labels);
        }
        inner.expected_blackout.remove(labels);
    }

    /// A line of a log reached the disk.
    pub(crate) fn fsync(&self, took: Duration) {
        self.inner.fsync.observe(took.as_secs_f64());
    }

    /// A part of a blackout has passed.
    pub(crate) fn blackout(&self, piece: Piece, took: Duration) {
        self.inner
            .blackout
            .get_or_create(&PieceLabels { piece })
            .observe(took.as_secs_f64());
    }

    /// Machines with a QEMU.
    pub(crate) fn machines(&self, count: usize) {
        self.inner
            .machines
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
