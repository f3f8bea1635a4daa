//! The nodes and what is held on them, as placement and plans need them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use godwit_model::affinity::Labels;
use godwit_model::machine::MachineSpec;
use godwit_model::placement::{Candidate, Demand, Fleet, Held, HostFacts, Overcommit, Taint};
use godwit_model::vmi::VmiSpec;
use godwit_model::{MachineId, NodeName};
use serde::Deserialize;
use serde_json::Value;

use crate::{InstanceRow, Ledger, LedgerError, NodeRow, Object, ReservationRow};

const INSTANCES: &str = "virtualmachineinstances.kubevirt.io";
pub(crate) const NODES: &str = "nodes";
/// Mark of a node that is to be emptied before long.
const LEAVING: &str = "godwit.io/leaving";

/// The nodes, what is held on them, and by whom.
#[derive(Debug)]
pub struct Floor {
    /// All nodes.
    pub nodes: Vec<NodeRow>,
    /// All that is held.
    pub reservations: Vec<ReservationRow>,
    /// Locked for the time of one choice.
    fleet: Mutex<Fleet>,
}

impl Floor {
    /// `objects` are the API's Node objects; machines are known by their instances, and ask of nodes
    /// that are overcommitted so far.
    pub fn new(
        nodes: Vec<NodeRow>,
        objects: &[Object],
        reservations: Vec<ReservationRow>,
        (rows, instances, overcommit): (&HashMap<MachineId, InstanceRow>, &[Object], Overcommit),
    ) -> Self {
        let mut fleet = Fleet::default();
        let objects: HashMap<&str, &Object> = objects
            .iter()
            .map(|object| (object.key.name.as_str(), object))
            .collect();
        for node in &nodes {
            fleet.node_set(candidate(node, objects.get(node.name.as_str()).copied()));
        }
        let instances: HashMap<&str, &Object> = instances
            .iter()
            .map(|object| (object.uid.as_str(), object))
            .collect();
        let accelerators: HashMap<&NodeName, _> = nodes
            .iter()
            .map(|node| (&node.name, facts(node).accelerator))
            .collect();
        for held in &reservations {
            let object = instances.get(held.machine.as_str()).copied();
            let mut demand = tenant(held, (rows.get(&held.machine), object), overcommit);
            demand.needs.accelerator = accelerators.get(&held.node).cloned();
            fleet.hold_as(&held.machine, &demand, &held.node, booked(held));
        }
        Self {
            nodes,
            reservations,
            fleet: Mutex::new(fleet),
        }
    }

    /// Reads it without the ledger's lock: good enough to tell a person, not to act on.
    ///
    /// # Errors
    /// The ledger's.
    pub async fn glance(ledger: &Ledger) -> Result<Self, LedgerError> {
        let (overcommit, nodes, objects, reservations, rows, instances) = futures::try_join!(
            ledger.overcommit(),
            ledger.nodes(),
            ledger.list(NODES),
            ledger.reservations(),
            ledger.instances(),
            ledger.list(INSTANCES),
        )?;
        let rows = by_machine(rows);
        Ok(Self::new(
            nodes,
            &objects,
            reservations,
            (&rows, &instances, overcommit),
        ))
    }

    /// All of it, for choices.
    pub fn fleet(&self) -> MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn by_machine(rows: Vec<InstanceRow>) -> HashMap<MachineId, InstanceRow> {
    rows.into_iter().map(|row| (row.uid.clone(), row)).collect()
}

/// What a machine that holds room was placed by.
fn tenant(
    held: &ReservationRow,
    (row, object): (Option<&InstanceRow>, Option<&Object>),
    overcommit: Overcommit,
) -> Demand {
    let spec = row.and_then(|row| row.machine.as_ref());
    let vmi = object.and_then(|object| VmiSpec::deserialize(object.spec()).ok());
    placed_by(held, spec, vmi.zip(object.map(labels)), overcommit)
}

/// What is held, as the fleet has it.
pub(crate) fn booked(held: &ReservationRow) -> Held {
    Held {
        room: held.room,
        inbound: held.job.is_some(),
    }
}

/// What a machine that holds room would be placed by elsewhere. One of which nothing more is known
/// is only its room.
pub(crate) fn placed_by(
    held: &ReservationRow,
    spec: Option<&MachineSpec>,
    vmi: Option<(VmiSpec, Labels)>,
    overcommit: Overcommit,
) -> Demand {
    match (spec, vmi) {
        (Some(spec), Some((vmi, labels))) => Demand::new(spec, &vmi, labels, overcommit),
        (Some(_) | None, _) => Demand::of_room(held.room),
    }
}

/// Labels of an instance that name its nodes: they say nothing of who is near whom.
const NODE_LABELS: [&str; 2] = [
    "kubevirt.io/nodeName",
    "kubevirt.io/migrationTargetNodeName",
];

/// The labels of an object that others may be placed by.
pub fn labels(object: &Object) -> Labels {
    labels_of(&object.metadata["labels"])
}

pub(crate) fn labels_of(labels: &Value) -> Labels {
    let mut labels = Labels::deserialize(labels).unwrap_or_default();
    for name in NODE_LABELS {
        labels.remove(name);
    }
    labels
}

/// What the agent of a node told of it.
pub fn facts(node: &NodeRow) -> HostFacts {
    HostFacts::deserialize(&node.facts).unwrap_or_default()
}

/// What a node offers to an empty house.
pub(crate) fn candidate(node: &NodeRow, object: Option<&Object>) -> Candidate {
    let spec = object.map(Object::spec);
    let taints = spec.and_then(|spec| Vec::<Taint>::deserialize(&spec["taints"]).ok());
    Candidate {
        name: node.name.clone(),
        // A node that users don't see is one that they removed.
        ready: node.ready && object.is_some_and(|object| !object.deleting()),
        cordoned: spec.is_some_and(|spec| spec["unschedulable"] == true),
        leaving: object.is_some_and(|object| object.annotation(LEAVING).is_some()),
        taints: taints.unwrap_or_default(),
        labels: object.map(labels).unwrap_or_default(),
        memory: node.capacity.memory,
        cpu_milli: node.capacity.cpu_milli,
        hugepages: node.capacity.hugepages,
        facts: facts(node),
    }
}
