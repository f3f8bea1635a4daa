//! Placing: reads the nodes, asks the model, and holds the room, in one transaction.

use std::collections::BTreeMap;

use godwit_ledger::{InstanceRow, LedgerError, NewReservation, Object, Reserved, Tx};
use godwit_model::machine::MachineSpec;
use godwit_model::placement::{self, Candidate, Demand, HostFacts, Placement, Taint};
use godwit_model::vmi::VmiSpec;
use godwit_model::{Bytes, JobId, NodeName};
use serde_json::Value;

/// What is to be placed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) instance: &'a InstanceRow,
    pub(crate) spec: &'a MachineSpec,
    pub(crate) vmi: &'a VmiSpec,
    /// The migration; `None` for a start.
    pub(crate) job: Option<&'a JobId>,
    pub(crate) added_selector: &'a BTreeMap<String, String>,
    pub(crate) inbound_max: u32,
}

/// Chooses a node for `wanted` and holds its room there; asked again for the same job it answers
/// the same.
///
/// # Errors
/// The ledger's.
pub(crate) async fn place(tx: &mut Tx, wanted: Wanted<'_>) -> Result<Placement, LedgerError> {
    let held = tx.reservations().await?;
    let mine = |row: &&godwit_ledger::ReservationRow| {
        row.machine == wanted.instance.uid && row.job.is_some() && row.job.as_ref() == wanted.job
    };
    if let Some(row) = held.iter().find(mine) {
        return Ok(Placement {
            chosen: Some(row.node.clone()),
            verdicts: vec![],
        });
    }
    let nodes = tx.nodes().await?;
    let objects = tx.list("nodes").await?;
    let candidates: Vec<Candidate> = nodes
        .iter()
        .map(|node| {
            let here = held.iter().filter(|row| row.node == node.name);
            let (mut memory, mut cpu, mut inbound) = (0, 0, 0);
            for row in here {
                memory += row.memory_bytes.0;
                cpu += row.cpu_milli;
                inbound += u32::from(row.job.is_some());
            }
            let object = objects
                .iter()
                .find(|object| object.key.name == node.name.as_str());
            Candidate {
                free_memory: Bytes(node.capacity.memory.0.saturating_sub(memory)),
                free_cpu_milli: node.capacity.cpu_milli.saturating_sub(cpu),
                inbound,
                ..candidate(&node.name, (node.ready, &node.facts), object)
            }
        })
        .collect();
    let source = wanted.job.and(wanted.instance.node.as_ref());
    let accelerator = source
        .and_then(|source| candidates.iter().find(|node| node.name == *source))
        .map(|node| node.facts.accelerator.as_str());
    let demand = Demand {
        spec: wanted.spec,
        selectors: [&wanted.vmi.node_selector, wanted.added_selector],
        tolerations: &wanted.vmi.tolerations,
        source,
        home: None,
        accelerator,
        inbound_max: wanted.inbound_max,
    };
    let placement = placement::place(demand, &candidates);
    if let Some(node) = &placement.chosen {
        hold(tx, wanted, node).await?;
    }
    Ok(placement)
}

async fn hold(tx: &mut Tx, wanted: Wanted<'_>, node: &NodeName) -> Result<(), LedgerError> {
    let room = placement::room(wanted.spec);
    let reserved = tx
        .reserve(NewReservation {
            machine: wanted.instance.uid.clone(),
            node: node.clone(),
            job: wanted.job.cloned(),
            memory_bytes: room.memory,
            cpu_milli: room.cpu_milli,
        })
        .await?;
    match reserved {
        Reserved::Held | Reserved::Duplicate => Ok(()),
        // Counted under the same lock, so the two can only differ when the rules do.
        Reserved::NoRoom { .. } => Err(LedgerError::Conflict),
    }
}

fn candidate(
    name: &NodeName,
    (ready, facts): (bool, &Value),
    object: Option<&Object>,
) -> Candidate {
    let facts: HostFacts = serde_json::from_value(facts.clone()).unwrap_or_default();
    let spec = object.map(Object::spec);
    let labels = object
        .map(|object| object.metadata["labels"].clone())
        .unwrap_or_default();
    let taints: Option<Vec<Taint>> =
        spec.and_then(|spec| serde_json::from_value(spec["taints"].clone()).ok());
    Candidate {
        name: name.clone(),
        ready,
        cordoned: spec.is_some_and(|spec| spec["unschedulable"] == true),
        taints: taints.unwrap_or_default(),
        labels: serde_json::from_value(labels).unwrap_or_default(),
        free_memory: Bytes(0),
        free_cpu_milli: 0,
        inbound: 0,
        facts,
    }
}
