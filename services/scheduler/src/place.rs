//! Placing: reads the nodes, asks the model, and holds the room, in one transaction.

use std::collections::BTreeMap;

use godwit_ledger::{
    InstanceRow, Ledger, LedgerError, NewReservation, NodeRow, Object, ReservationRow, Reserved, Tx,
};
use godwit_model::machine::MachineSpec;
use godwit_model::placement::{self, Candidate, Demand, HostFacts, Placement, Taint};
use godwit_model::vmi::VmiSpec;
use godwit_model::{Bytes, Epoch, JobId, MachineId, NodeName};
use godwit_rpc::Status;
use godwit_rpc::placement::v1::{ReserveRequest, ReserveResponse, Verdict};
use godwit_runtime::failpoint;
use serde_json::Value;

/// What is to be placed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) instance: &'a InstanceRow,
    pub(crate) spec: &'a MachineSpec,
    pub(crate) vmi: &'a VmiSpec,
    /// The only node with its local disks; `None` when any will do.
    pub(crate) home: Option<&'a NodeName>,
    /// The migration; `None` for a start.
    pub(crate) job: Option<&'a JobId>,
    pub(crate) added_selector: &'a BTreeMap<String, String>,
    pub(crate) inbound_max: u32,
}

/// The nodes, and what is held on them.
#[derive(Debug, Clone)]
pub(crate) struct Floor {
    pub(crate) nodes: Vec<NodeRow>,
    /// The API's Node objects.
    pub(crate) objects: Vec<Object>,
    pub(crate) reservations: Vec<ReservationRow>,
}

impl Floor {
    async fn read(tx: &mut Tx) -> Result<Self, LedgerError> {
        Ok(Self {
            nodes: tx.nodes().await?,
            objects: tx.list("nodes").await?,
            reservations: tx.reservations().await?,
        })
    }

    /// Where `wanted` goes, and why not elsewhere.
    pub(crate) fn choose(&self, wanted: Wanted<'_>) -> Placement {
        let candidates: Vec<Candidate> = self.nodes.iter().map(|node| self.room(node)).collect();
        let source = wanted.job.and(wanted.instance.node.as_ref());
        let accelerator = source
            .and_then(|source| candidates.iter().find(|node| node.name == *source))
            .map(|node| node.facts.accelerator.as_str());
        let demand = Demand {
            spec: wanted.spec,
            selectors: [&wanted.vmi.node_selector, wanted.added_selector],
            tolerations: &wanted.vmi.tolerations,
            source,
            home: wanted.home,
            accelerator,
            inbound_max: wanted.inbound_max,
        };
        placement::place(demand, &candidates)
    }

    fn room(&self, node: &NodeRow) -> Candidate {
        let here = self.reservations.iter().filter(|row| row.node == node.name);
        let (mut memory, mut cpu, mut inbound) = (0, 0, 0);
        for row in here {
            memory += row.memory_bytes.0;
            cpu += row.cpu_milli;
            inbound += u32::from(row.job.is_some());
        }
        let mut objects = self.objects.iter();
        let object = objects.find(|object| object.key.name == node.name.as_str());
        Candidate {
            free_memory: Bytes(node.capacity.memory.0.saturating_sub(memory)),
            free_cpu_milli: node.capacity.cpu_milli.saturating_sub(cpu),
            inbound,
            ..candidate(node, object)
        }
    }
}

/// What a node offers to an empty house.
fn candidate(node: &NodeRow, object: Option<&Object>) -> Candidate {
    let facts: HostFacts = serde_json::from_value(node.facts.clone()).unwrap_or_default();
    let spec = object.map(Object::spec);
    let labels = object.map(|object| object.metadata["labels"].clone());
    let taints: Option<Vec<Taint>> =
        spec.and_then(|spec| serde_json::from_value(spec["taints"].clone()).ok());
    Candidate {
        name: node.name.clone(),
        // A node that users don't see is one that they removed.
        ready: node.ready && object.is_some_and(|object| !object.deleting()),
        cordoned: spec.is_some_and(|spec| spec["unschedulable"] == true),
        taints: taints.unwrap_or_default(),
        labels: serde_json::from_value(labels.unwrap_or_default()).unwrap_or_default(),
        free_memory: Bytes(0),
        free_cpu_milli: 0,
        inbound: 0,
        facts,
    }
}

/// Chooses a node for `wanted` and holds its room there; asked again for the same job it answers
/// the same.
///
/// # Errors
/// The ledger's.
pub(crate) async fn place(tx: &mut Tx, wanted: Wanted<'_>) -> Result<Placement, LedgerError> {
    let mut floor = Floor::read(tx).await?;
    place_on(tx, &mut floor, wanted).await
}

/// As [`place`], on a floor that this transaction has read.
async fn place_on(
    tx: &mut Tx,
    floor: &mut Floor,
    wanted: Wanted<'_>,
) -> Result<Placement, LedgerError> {
    let earlier = |row: &ReservationRow| row.machine == wanted.instance.uid && row.job.is_some();
    let reservations = std::mem::take(&mut floor.reservations).into_iter();
    let (earlier, others): (Vec<_>, Vec<_>) = reservations.partition(earlier);
    floor.reservations = others;
    let mut placement = floor.choose(wanted);
    if let Some(held) = earlier.iter().find(|row| row.job.as_ref() == wanted.job) {
        placement.chosen = Some(held.node.clone());
        return Ok(placement);
    }
    // A machine has one open migration, so what an earlier one left is nobody's.
    for row in &earlier {
        tx.reservation_release(&row.machine, &row.node).await?;
    }
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
        Reserved::Held => Ok(()),
        // Counted under the same lock, so the ledger can only differ when its rules do.
        Reserved::Duplicate | Reserved::NoRoom { .. } => Err(LedgerError::Conflict),
    }
}

/// Chooses and holds a target for a migration, for the owner of its lease alone.
///
/// # Errors
/// `FailedPrecondition` when the machine or the migration is over, `Aborted` when somebody else
/// drives the migration, `Unavailable` when the ledger can't be used.
pub(crate) async fn reserve(
    ledger: &Ledger,
    (machine, job): (&MachineId, &JobId),
    request: ReserveRequest,
) -> Result<ReserveResponse, Status> {
    let mut tx = ledger.begin().await.map_err(unavailable)?;
    let gone = || Status::failed_precondition("Migration failed because vmi does not exist.");
    let row = tx.instance(machine).await.map_err(unavailable)?;
    let row = row.ok_or_else(gone)?;
    let spec = row.machine.clone().ok_or_else(gone)?;
    check_job(&mut tx, (machine, job), Epoch(request.epoch)).await?;
    let object = tx.get(&row.key).await.map_err(unavailable)?;
    let object = object.ok_or_else(gone)?;
    let vmi: VmiSpec = serde_json::from_value(object.spec().clone())
        .map_err(|error| Status::failed_precondition(error.to_string()))?;
    let added: BTreeMap<String, String> = request.added_node_selector.into_iter().collect();
    let wanted = Wanted {
        instance: &row,
        spec: &spec,
        vmi: &vmi,
        home: None,
        job: Some(job),
        added_selector: &added,
        inbound_max: request.inbound_max,
    };
    let mut floor = Floor::read(&mut tx).await.map_err(unavailable)?;
    let placed = place_on(&mut tx, &mut floor, wanted).await;
    let placement = placed.map_err(unavailable)?;
    failpoint!("ledger.reserve.before");
    tx.commit().await.map_err(unavailable)?;
    failpoint!("ledger.reserve.after");
    Ok(response(&placement, &floor.nodes))
}

async fn check_job(
    tx: &mut Tx,
    (machine, job): (&MachineId, &JobId),
    epoch: Epoch,
) -> Result<(), Status> {
    let found = tx.job(job).await.map_err(unavailable)?;
    let open = found.filter(|open| !open.state.is_final() && open.machine == *machine);
    match open {
        Some(open) if open.epoch == epoch => Ok(()),
        Some(open) => {
            let text = format!("epoch {epoch} is older than {}", open.epoch);
            Err(Status::aborted(text))
        }
        None => Err(Status::failed_precondition("the migration is over")),
    }
}

fn response(placement: &Placement, nodes: &[NodeRow]) -> ReserveResponse {
    let chosen = placement.chosen.as_ref();
    let node = nodes.iter().find(|node| Some(&node.name) == chosen);
    ReserveResponse {
        node: chosen.map(ToString::to_string).unwrap_or_default(),
        agent_address: node
            .map(|node| node.agent_address.clone())
            .unwrap_or_default(),
        summary: placement.summary(),
        verdicts: placement
            .verdicts
            .iter()
            .map(|verdict| Verdict {
                node: verdict.node.to_string(),
                chosen: chosen == Some(&verdict.node),
                reasons: verdict.obstacles.iter().map(ToString::to_string).collect(),
            })
            .collect(),
    }
}

/// What a caller is told of a ledger that can't be used: to ask again.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the form that map_err asks for"
)]
pub(crate) fn unavailable(error: LedgerError) -> Status {
    Status::unavailable(error.to_string())
}

/// The only node with the local disks of a machine, as its owner's annotation says.
pub(crate) fn home(spec: &MachineSpec, owner: Option<&Object>) -> Option<NodeName> {
    spec.local_disks().next()?;
    let annotation = owner?.annotation(HOME)?;
    NodeName::parse(annotation).ok()
}

/// Annotation of a VirtualMachine: its local disks are on that node. Whoever brings them elsewhere
/// changes or removes it.
pub(crate) const HOME: &str = "godwit.io/local-disks-on";

/// Notes on the owner that its local disks are on `node` from now on.
///
/// # Errors
/// The ledger's.
pub(crate) async fn settle(
    tx: &mut Tx,
    (spec, node): (&MachineSpec, &NodeName),
    owner: Option<Object>,
) -> Result<(), LedgerError> {
    let Some(mut owner) = owner.filter(|_| spec.local_disks().next().is_some()) else {
        return Ok(());
    };
    if let Some(annotations) = crate::json::child(&mut owner.metadata, "annotations") {
        annotations.insert(HOME.to_owned(), Value::from(node.as_str()));
    }
    tx.put(&owner).await.map(drop)
}
