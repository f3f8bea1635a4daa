//! What the ledger says about everything that the rounds look at, read without its lock.
//!
//! The lists are read one after another, so they need not fit together: whatever follows from them
//! is looked at again in the transaction that writes.

use std::collections::{HashMap, HashSet};

use godwit_ledger::{
    Floor, InstanceRow, JobRow, Ledger, LedgerError, NodeRow, Object, ObjectKey, ReservationRow,
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
    pub(crate) floor: Floor,
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
    pub(crate) async fn read(ledger: &Ledger) -> Result<Self, LedgerError> {
        let (machines, instances, rows, clusters, fences) = tokio::try_join!(
            ledger.list(MACHINES),
            ledger.list(INSTANCES),
            ledger.instances(),
            ledger.list(KUBEVIRTS),
            ledger.list(FENCES),
        )?;
        let (reservations, nodes, objects) =
            tokio::try_join!(ledger.reservations(), ledger.nodes(), ledger.list("nodes"),)?;
        // Last, so that a machine with a new owner is not without the job that brought it there.
        let jobs = ledger.jobs_open().await?;
        let rows = rows.into_iter().map(|row| (row.uid.clone(), row)).collect();
        let floor = Floor::new(nodes, &objects, reservations, (&rows, &instances));
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
            jobs,
            floor,
            eviction_strategy: eviction_strategy(&clusters),
        })
    }

    /// Whether a migration of `machine` is open.
    pub(crate) fn is_migrating(&self, machine: &MachineId) -> bool {
        self.migrating.contains(machine)
    }

    /// The node of that name.
    pub(crate) fn node(&self, name: &NodeName) -> Option<&NodeRow> {
        self.floor.nodes.iter().find(|node| node.name == *name)
    }

    /// The instance that has the name of `machine`, whoever owns it.
    pub(crate) fn instance_of(&self, machine: &ObjectKey) -> Option<&Object> {
        let at = *self.names.get(&instance_key(machine))?;
        self.instances.get(at)
    }

    /// Room that is held for migrations that are over.
    pub(crate) fn stale_reservations(&self) -> impl Iterator<Item = &ReservationRow> {
        stale(&self.floor.reservations, &self.jobs)
    }
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
    let is_over = |id: &JobId| !jobs.iter().any(|job| job.id == *id);
    reservations
        .iter()
        .filter(move |row| row.job.as_ref().is_some_and(is_over))
}

fn eviction_strategy(clusters: &[Object]) -> Option<String> {
    let cluster = clusters.first()?;
    let strategy = cluster.spec().pointer("/configuration/evictionStrategy");
    strategy.and_then(Value::as_str).map(str::to_owned)
}
