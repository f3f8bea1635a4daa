//! What the ledger says about everything that the rounds look at, read without its lock.
//!
//! The lists are read one after another, so they need not fit together: whatever follows from them
//! is looked at again in the transaction that writes.

use std::collections::{HashMap, HashSet};

use godwit_ledger::{
    FloorKeeper, InstanceRow, JobRow, KeptFloor, Ledger, LedgerError, NodeRow, Object, ObjectKey,
    ReservationRow,
};
use godwit_model::{JobId, MachineId, NodeName};
use serde_json::Value;

/// Resource of instances.
pub(crate) const INSTANCES: &str = "virtualmachineinstances.kubevirt.io";
/// Resource of machines.
pub(crate) const MACHINES: &str = "virtualmachines.kubevirt.io";
/// Resource of declarations that a node is dead.
pub(crate) const FENCES: &str = "nodefences.godwit.io";
const KUBEVIRTS: &str = "kubevirts.kubevirt.io";

/// Everything of about one moment.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) machines: HashMap<ObjectKey, Object>,
    pub(crate) instances: Vec<Object>,
    pub(crate) fences: Vec<Object>,
    pub(crate) rows: HashMap<MachineId, InstanceRow>,
    pub(crate) jobs: Vec<JobRow>,
    pub(crate) nodes: HashMap<NodeName, NodeRow>,
    /// Memory that is held on each node, in bytes.
    pub(crate) memory_held: HashMap<NodeName, u64>,
    /// Room that is held for migrations that are over.
    pub(crate) stale: Vec<ReservationRow>,
    /// The cluster's eviction strategy.
    pub(crate) eviction_strategy: Option<String>,
    migrating: HashSet<MachineId>,
    /// Places in `instances`.
    names: HashMap<ObjectKey, usize>,
}

impl World {
    /// Reads it.
    ///
    /// # Errors
    /// The ledger's.
    pub(crate) async fn read(ledger: &Ledger, keeper: &FloorKeeper) -> Result<Self, LedgerError> {
        let (machines, instances, rows, clusters, fences) = tokio::try_join!(
            ledger.list(MACHINES),
            ledger.list(INSTANCES),
            ledger.instances(),
            ledger.list(KUBEVIRTS),
            ledger.list(FENCES),
        )?;
        let (nodes, memory_held, held) = look(&*keeper.glance(ledger).await?);
        // Last, so that a machine with a new owner is not without the job that brought it there.
        let jobs = ledger.jobs_open().await?;
        let rows = rows.into_iter().map(|row| (row.uid.clone(), row)).collect();
        Ok(Self {
            machines: machines
                .into_iter()
                .map(|object| (object.key.clone(), object))
                .collect(),
            names: instances
                .iter()
                .enumerate()
                .map(|(at, object)| (object.key.clone(), at))
                .collect(),
            instances,
            fences,
            rows,
            migrating: jobs.iter().map(|job| job.machine.clone()).collect(),
            stale: stale(&held, &jobs).cloned().collect(),
            jobs,
            nodes,
            memory_held,
            eviction_strategy: eviction_strategy(&clusters),
        })
    }

    /// Whether a migration of `machine` is open.
    pub(crate) fn is_migrating(&self, machine: &MachineId) -> bool {
        self.migrating.contains(machine)
    }

    /// The node of that name.
    pub(crate) fn node(&self, name: &NodeName) -> Option<&NodeRow> {
        self.nodes.get(name)
    }

    /// The instance that has the name of `machine`, whoever owns it.
    pub(crate) fn instance_of(&self, machine: &ObjectKey) -> Option<&Object> {
        let at = *self.names.get(&instance_key(machine))?;
        self.instances.get(at)
    }
}

/// The nodes, the memory that is held on each, and what is held for migrations.
fn look(
    floor: &KeptFloor,
) -> (
    HashMap<NodeName, NodeRow>,
    HashMap<NodeName, u64>,
    Vec<ReservationRow>,
) {
    let nodes = floor.nodes();
    let nodes = nodes.map(|node| (node.name.clone(), node.clone()));
    let mut memory_held = HashMap::new();
    for row in floor.reservations() {
        *memory_held.entry(row.node.clone()).or_default() += row.memory_bytes.0;
    }
    let held = floor.reservations().filter(|row| row.job.is_some());
    (nodes.collect(), memory_held, held.cloned().collect())
}

/// Key of the instance of the virtual machine `machine`.
pub(crate) fn instance_key(machine: &ObjectKey) -> ObjectKey {
    ObjectKey::new(INSTANCES, &machine.namespace, &machine.name)
}

/// Those of `reservations` whose migration is none of `jobs`.
pub(crate) fn stale<'a>(
    reservations: &'a [ReservationRow],
    jobs: &'a [JobRow],
) -> impl Iterator<Item = &'a ReservationRow> {
    let open: HashSet<&JobId> = jobs.iter().map(|job| &job.id).collect();
    let is_over = move |id: &JobId| !open.contains(id);
    reservations
        .iter()
        .filter(move |row| row.job.as_ref().is_some_and(&is_over))
}

fn eviction_strategy(clusters: &[Object]) -> Option<String> {
    let cluster = clusters.first()?;
    let strategy = cluster.spec().pointer("/configuration/evictionStrategy");
    strategy.and_then(Value::as_str).map(str::to_owned)
}
