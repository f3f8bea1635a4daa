//! Placing: looks at the nodes, asks the model, and holds the room, in one transaction.

use std::time::Duration;

use godwit_ledger::{
    FloorKeeper, InstanceRow, KeptFloor, Ledger, LedgerError, NewReservation, Object,
    ReservationRow, Reserved, Tx, facts, labels,
};
use godwit_model::affinity::Labels;
use godwit_model::machine::MachineSpec;
use godwit_model::placement::{self, Ask, Demand, Leaning, Placement, Room};
use godwit_model::vmi::VmiSpec;
use godwit_model::{Bytes, Epoch, JobId, MachineId, NodeName};
use godwit_rpc::Status;
use godwit_rpc::placement::v1::{ReserveRequest, ReserveResponse, Verdict};
use godwit_runtime::failpoint;
use serde_json::Value;

/// For how long a node is avoided to which a migration of the machine failed.
const AVOIDED_FOR: Duration = Duration::from_secs(600);

/// What is to be placed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) instance: &'a InstanceRow,
    /// The instance as the API shows it.
    pub(crate) object: &'a Object,
    pub(crate) spec: &'a MachineSpec,
    pub(crate) vmi: &'a VmiSpec,
    /// The only node with its local disks; `None` when any will do.
    pub(crate) home: Option<&'a NodeName>,
    /// The migration; `None` for a start.
    pub(crate) job: Option<&'a JobId>,
    pub(crate) added_selector: &'a Labels,
    pub(crate) inbound_max: u32,
    pub(crate) leaning: Leaning<'a>,
}

impl Wanted<'_> {
    /// Where it goes on `floor`; why not elsewhere is told only when it goes nowhere, since to say
    /// that of every node of a large fleet takes longer than to choose one.
    pub(crate) fn choose(self, floor: &mut KeptFloor) -> Placement {
        let source = self.job.and(self.instance.node.as_ref());
        let labels = labels(self.object);
        let mut demand = Demand::new(self.spec, self.vmi, labels, floor.overcommit());
        demand.needs.selectors.push(self.added_selector.clone());
        demand.needs.accelerator = source
            .and_then(|source| floor.node(source))
            .map(|node| facts(node).accelerator);
        let ask = Ask {
            machine: &self.instance.uid,
            demand: &demand,
            source,
            home: self.home,
            inbound_max: self.inbound_max,
            leaning: self.leaning,
        };
        let chosen = floor.fleet().choose(ask);
        let verdicts = match chosen {
            Some(_) => vec![],
            None => floor.fleet().explain(ask),
        };
        Placement { chosen, verdicts }
    }
}

/// What was found for a machine: where it goes, and the agent there.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) placement: Placement,
    /// Where the agent of the chosen node listens; empty when none was chosen.
    pub(crate) agent_address: String,
}

/// Chooses a node for `wanted` and holds its room there; asked again for the same job it answers
/// the same. To be called before anything else of the nodes is written in this transaction.
///
/// # Errors
/// The ledger's.
pub(crate) async fn place(
    tx: &mut Tx,
    keeper: &FloorKeeper,
    wanted: Wanted<'_>,
) -> Result<Found, LedgerError> {
    let mut floor = keeper.current(tx).await?;
    let held = floor.held_by(&wanted.instance.uid).iter();
    let earlier: Vec<ReservationRow> = held.filter(|row| row.job.is_some()).cloned().collect();
    let mut placement = choose_without(&mut floor, &earlier, wanted);
    let again = earlier.iter().find(|row| row.job.as_ref() == wanted.job);
    if let Some(held) = again {
        placement.chosen = Some(held.node.clone());
    }
    let node = placement.chosen.as_ref().and_then(|name| floor.node(name));
    let agent_address = node.map(|node| node.agent_address.clone());
    let room = placement::room(wanted.spec, wanted.vmi, floor.overcommit());
    drop(floor);
    if again.is_none() {
        // A machine has one open migration, so what an earlier one left is nobody's.
        for row in &earlier {
            tx.reservation_release(&row.machine, &row.node).await?;
        }
        if let Some(node) = &placement.chosen {
            hold(tx, wanted, (node, room)).await?;
        }
    }
    Ok(Found {
        placement,
        agent_address: agent_address.unwrap_or_default(),
    })
}

/// Chooses as if nothing of `earlier` were held, and leaves the floor as it was.
fn choose_without(
    floor: &mut KeptFloor,
    earlier: &[ReservationRow],
    wanted: Wanted<'_>,
) -> Placement {
    let demand = floor.fleet().demand(&wanted.instance.uid).cloned();
    let mut released = vec![];
    for row in earlier {
        let held = floor.fleet().release(&row.machine, &row.node);
        released.extend(held.map(|held| (row, held)));
    }
    let placement = wanted.choose(floor);
    if let Some(demand) = demand {
        for (row, held) in released {
            floor
                .fleet()
                .hold_as(&row.machine, &demand, &row.node, held);
        }
    }
    placement
}

async fn hold(
    tx: &mut Tx,
    wanted: Wanted<'_>,
    (node, room): (&NodeName, Room),
) -> Result<(), LedgerError> {
    let reserved = tx
        .reserve(NewReservation {
            machine: wanted.instance.uid.clone(),
            node: node.clone(),
            job: wanted.job.cloned(),
            room,
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
    (ledger, keeper): (&Ledger, &FloorKeeper),
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
    let added: Labels = request.added_node_selector.into_iter().collect();
    let failed = tx.failed_targets(machine, AVOIDED_FOR).await;
    let failed = failed.map_err(unavailable)?;
    // A plan may name what is gone by now, or never was.
    let preferred = NodeName::parse(request.preferred_node).ok();
    let wanted = Wanted {
        instance: &row,
        object: &object,
        spec: &spec,
        vmi: &vmi,
        home: None,
        job: Some(job),
        added_selector: &added,
        inbound_max: request.inbound_max,
        leaning: Leaning {
            preferred: preferred.as_ref(),
            avoid: &failed,
        },
    };
    let found = place(&mut tx, keeper, wanted).await.map_err(unavailable)?;
    failpoint!("ledger.reserve.before");
    tx.commit().await.map_err(unavailable)?;
    failpoint!("ledger.reserve.after");
    let mut response = response(found, spec.memory);
    tell_of_failures(&mut response, &failed);
    Ok(response)
}

/// Says of which nodes a failed migration is held against them.
fn tell_of_failures(response: &mut ReserveResponse, failed: &[NodeName]) {
    let minutes = AVOIDED_FOR.as_secs() / 60;
    let reason = format!("a migration there failed in the last {minutes} min");
    for node in failed {
        let told = |verdict: &&mut Verdict| verdict.node == node.as_str();
        match response.verdicts.iter_mut().find(told) {
            Some(verdict) => verdict.reasons.push(reason.clone()),
            None => response.verdicts.push(Verdict {
                node: node.to_string(),
                chosen: response.node == node.as_str(),
                reasons: vec![reason.clone()],
            }),
        }
    }
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

fn response(found: Found, memory: Bytes) -> ReserveResponse {
    let Found {
        placement,
        agent_address,
    } = found;
    let chosen = placement.chosen.as_ref();
    ReserveResponse {
        node: chosen.map(ToString::to_string).unwrap_or_default(),
        agent_address,
        summary: placement.summary(),
        memory_bytes: memory.0,
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
