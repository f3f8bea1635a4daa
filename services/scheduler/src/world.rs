//! What the ledger says about everything that the rounds look at, read without its lock.
//!
//! It is read part by part, so the parts need not fit together: whatever follows from them is looked
//! at again in the transaction that writes.

use std::collections::{HashMap, HashSet};

use godwit_ledger::{
    FloorKeeper, InstanceRow, JobRow, KeptFloor, KeptMachines, Ledger, LedgerError, MachineKeeper,
    NodeRow, Object, ObjectKey, ReservationRow,
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
pub(crate) struct World<'a> {
    kept: KeptMachines<'a>,
    pub(crate) fences: Vec<Object>,
    pub(crate) jobs: Vec<JobRow>,
    pub(crate) nodes: HashMap<NodeName, NodeRow>,
    /// Memory that is held on each node, in bytes.
    pub(crate) memory_held: HashMap<NodeName, u64>,
    /// Room that is held for migrations that are over.
    pub(crate) stale: Vec<ReservationRow>,
    /// The cluster's eviction strategy.
    pub(crate) eviction_strategy: Option<String>,
    migrating: HashSet<MachineId>,
}

impl<'a> World<'a> {
    /// Keeps what a [`World`] has of machines.
    pub(crate) fn keeper() -> MachineKeeper {
        MachineKeeper::new(&[MACHINES, INSTANCES])
    }

    /// Reads the rest.
    ///
    /// # Errors
    /// The ledger's.
    pub(crate) async fn read(
        (ledger, keeper): (&Ledger, &FloorKeeper),
        kept: KeptMachines<'a>,
    ) -> Result<Self, LedgerError> {
        let (clusters, fences) = tokio::try_join!(ledger.list(KUBEVIRTS), ledger.list(FENCES))?;
        let (nodes, memory_held, held) = look(&*keeper.glance(ledger).await?);
        // Last, so that a machine with a new owner is not without the job that brought it there.
        let jobs = ledger.jobs_open().await?;
        Ok(Self {
            kept,
            fences,
            migrating: jobs.iter().map(|job| job.machine.clone()).collect(),
            stale: stale(&held, &jobs).cloned().collect(),
            jobs,
            nodes,
            memory_held,
            eviction_strategy: eviction_strategy(&clusters),
        })
    }

    /// All virtual machines.
    pub(crate) fn machines(&self) -> impl Iterator<Item = &'a Object> {
        self.objects(MACHINES)
    }

    /// All instances, by namespace and name.
    pub(crate) fn instances(&self) -> impl Iterator<Item = &'a Object> {
        self.objects(INSTANCES)
    }

    fn objects(&self, resource: &'static str) -> impl Iterator<Item = &'a Object> {
        let first = ObjectKey::new(resource, "", "");
        let all = self.kept.objects.range(first..).map(|(_, object)| object);
        all.take_while(move |object| object.key.resource == resource)
    }

    /// The virtual machine of that key.
    pub(crate) fn machine(&self, key: &ObjectKey) -> Option<&'a Object> {
        self.kept.objects.get(key)
    }

    /// What the scheduler knows of an instance; `None` before it took it in.
    pub(crate) fn row(&self, id: &MachineId) -> Option<&'a InstanceRow> {
        self.kept.rows.get(id)
    }

    /// All of that.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &'a InstanceRow> {
        self.kept.rows.values()
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
    pub(crate) fn instance_of(&self, machine: &ObjectKey) -> Option<&'a Object> {
        self.kept.objects.get(&instance_key(machine))
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
        *memory_held.entry(row.node.clone()).or_default() += row.room.memory.0;
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
