//! All that an audit sees, as plain data.

use std::collections::BTreeMap;

use godwit_ledger::{Cordon, InstanceRow, InstanceState, JobRow, NodeRow, Object, ReservationRow};
use godwit_model::migration::queue::QueueLimits;
use godwit_model::{JobId, MachineId, NodeName};
use godwit_rpc::agent::v1::{FoundQemu, HostInspection};

/// The ledger at one moment, and the hosts shortly before.
#[derive(Debug, Clone)]
pub(crate) struct World {
    /// Every node that ever registered.
    pub(crate) nodes: Vec<NodeRow>,
    /// Every machine.
    pub(crate) instances: BTreeMap<MachineId, InstanceRow>,
    /// All room that is held.
    pub(crate) reservations: Vec<ReservationRow>,
    /// All open jobs, and each final one that a host, a reservation or an object names.
    pub(crate) jobs: BTreeMap<JobId, JobRow>,
    /// The limits as they are set now; an error says why it isn't known which are in force.
    pub(crate) limits: Result<QueueLimits, String>,
    /// VirtualMachineInstances, by UID.
    pub(crate) instance_objects: BTreeMap<String, Object>,
    /// VirtualMachineInstanceMigrations, by UID.
    pub(crate) migration_objects: BTreeMap<String, Object>,
    /// When nodes were closed, as far as it is known.
    pub(crate) cordons: Vec<Cordon>,
    /// What each node's agent found; an error says why there is no answer.
    pub(crate) hosts: BTreeMap<NodeName, Result<HostInspection, String>>,
}

impl World {
    /// The jobs that aren't final.
    pub(crate) fn open(&self) -> impl Iterator<Item = &JobRow> {
        self.jobs.values().filter(|job| !job.state.is_final())
    }

    /// The open job of a machine.
    pub(crate) fn open_of(&self, machine: &MachineId) -> Option<&JobRow> {
        self.open().find(|job| job.machine == *machine)
    }

    /// The hosts that answered.
    pub(crate) fn answers(&self) -> impl Iterator<Item = (&NodeName, &HostInspection)> {
        let hosts = self.hosts.iter();
        hosts.filter_map(|(node, host)| Some((node, host.as_ref().ok()?)))
    }

    /// What was found on `node`; `None` when it did not answer.
    pub(crate) fn host(&self, node: &NodeName) -> Option<&HostInspection> {
        self.hosts.get(node)?.as_ref().ok()
    }

    /// The QEMUs of a machine on a node; `None` when the node did not answer.
    pub(crate) fn qemus(&self, node: &NodeName, machine: &MachineId) -> Option<Vec<&FoundQemu>> {
        let qemus = self.host(node)?.qemus.iter();
        Some(
            qemus
                .filter(|qemu| qemu.machine == machine.as_str())
                .collect(),
        )
    }

    /// The machine that a host calls `id`, if the ledger knows it.
    pub(crate) fn instance(&self, id: &str) -> Option<&InstanceRow> {
        self.instances.get(&MachineId::parse(id).ok()?)
    }

    /// Whether the machine is bound to a node: started there, or being started or stopped.
    pub(crate) fn is_bound(instance: &InstanceRow) -> bool {
        match instance.state {
            InstanceState::Starting | InstanceState::Running | InstanceState::Stopping => true,
            InstanceState::Unplaced | InstanceState::Stopped | InstanceState::Failed => false,
        }
    }

    /// Whether an open migration of the machine leaves or enters `node`.
    pub(crate) fn is_moving_at(&self, machine: &MachineId, node: &NodeName) -> bool {
        self.open_of(machine).is_some_and(|job| {
            job.source.as_ref() == Some(node) || job.target.as_ref() == Some(node)
        })
    }

    /// What people call a machine.
    pub(crate) fn machine_name(&self, id: &str) -> String {
        match self.instance(id) {
            Some(row) => format!("machine {}/{} ({id})", row.key.namespace, row.key.name),
            None => format!("machine {id:?}"),
        }
    }
}

/// What people call a migration.
pub(crate) fn job_name(job: &JobRow) -> String {
    format!(
        "migration {}/{} ({})",
        job.key.namespace, job.key.name, job.id
    )
}
