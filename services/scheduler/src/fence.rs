//! Fences: takes the machines from a node that somebody declared dead, so that they start elsewhere.
//!
//! The word of a person, never silence alone, moves a machine. A machine with an open migration
//! waits for the coordinator's verdict.

use godwit_ledger::{
    EventKind, EventRecord, FenceRow, InstanceRow, InstanceState, LedgerError, NodeRow, Object,
    ObjectKey, Tx,
};
use godwit_model::run_strategy::RunStrategy;
use godwit_model::{MachineId, NodeName};
use serde_json::{Value, json};
use tracing::warn;

use crate::json::{clear_condition, now, reference};
use crate::machines::{Machines, owner_key, same};
use crate::status;
use crate::told::{change, handler_event};
use crate::vm;
use crate::world::World;

/// Who declared the node dead; written by the gateway from whom it authenticated.
pub(crate) const BY: &str = "godwit.io/fenced-by";
const NODE_LABEL: &str = "kubevirt.io/nodeName";

impl Machines {
    /// Carries out the fences that are not yet.
    pub(crate) async fn fence_all(&self, world: &World<'_>) {
        for fence in world.fences.iter().filter(|fence| is_pending(fence)) {
            let Some(node) = node_of(fence) else { continue };
            if Self::has_nothing_to_do(fence, &node, world) {
                continue;
            }
            let done = self.write(async |tx| carry_out(tx, fence, &node).await);
            if let Err(error) = done.await {
                self.failed(&fence.key.name, &error);
            }
        }
    }

    /// Whether there is no such node, or all of its machines still wait for their migrations.
    fn has_nothing_to_do(fence: &Object, node: &NodeName, world: &World<'_>) -> bool {
        let Some(host) = world.node(node) else {
            return true;
        };
        if host.ready || !is_recorded(fence) {
            return false;
        }
        let here = world.rows().filter(|row| is_taken(row, node));
        let mut waits = here.map(|row| world.is_migrating(&row.uid)).peekable();
        waits.peek().is_some() && waits.all(|waits| waits)
    }

    /// Queues a machine again that the coordinator took from its host.
    pub(crate) async fn requeue(&self, object: &Object) -> Result<(), LedgerError> {
        let why = "its migration's target was fenced and may have run it";
        self.write(async |tx| {
            let Some(object) = same(tx, object).await? else {
                return Ok(());
            };
            let Ok(id) = MachineId::parse(object.uid.clone()) else {
                return Ok(());
            };
            match tx.instance(&id).await? {
                Some(row) if row.state == InstanceState::Unplaced && was_placed(&object) => {
                    tell(tx, object, row, why).await
                }
                Some(_) | None => Ok(()),
            }
        })
        .await
    }
}

/// Whether the instance is told to be on a node.
pub(crate) fn was_placed(object: &Object) -> bool {
    let told = object.status.as_ref();
    told.is_some_and(|told| told["nodeName"].is_string())
}

fn is_pending(fence: &Object) -> bool {
    let told = fence.status.as_ref();
    let phase = told.and_then(|told| told["phase"].as_str());
    !fence.deleting() && !matches!(phase, Some("Fenced" | "Void"))
}

/// Whether somebody said already that this boot of the node is dead.
pub(crate) fn is_declared(fences: &[Object], node: &NodeRow) -> bool {
    fences.iter().any(|fence| {
        let boot_id = fence.spec()["bootID"].as_str().unwrap_or_default();
        is_pending(fence)
            && node_of(fence).as_ref() == Some(&node.name)
            && (boot_id.is_empty() || boot_id == node.boot_id)
    })
}

/// Whether the ledger has it, though some machines may still wait.
fn is_recorded(fence: &Object) -> bool {
    let told = fence.status.as_ref();
    told.is_some_and(|told| told["at"].is_string())
}

fn node_of(fence: &Object) -> Option<NodeName> {
    NodeName::parse(fence.spec()["nodeName"].as_str()?).ok()
}

/// Whether a fence of `node` takes the machine: it is there, and has not ended.
pub(crate) fn is_taken(row: &InstanceRow, node: &NodeName) -> bool {
    let lives = match row.state {
        InstanceState::Starting | InstanceState::Running | InstanceState::Stopping => true,
        InstanceState::Unplaced | InstanceState::Stopped | InstanceState::Failed => false,
    };
    lives && row.node.as_ref() == Some(node)
}

/// All in one transaction: the fence's record, its machines, and what is told of them.
async fn carry_out(tx: &mut Tx, fence: &Object, node: &NodeName) -> Result<(), LedgerError> {
    let Some(fence) = same(tx, fence).await?.filter(is_pending) else {
        return Ok(());
    };
    let nodes = tx.nodes().await?;
    let Some(host) = nodes.iter().find(|row| row.name == *node) else {
        return Ok(());
    };
    if host.ready && is_recorded(&fence) {
        // It came back before all of its machines were taken: those are judged by what it says.
        return finish(tx, fence, vec![], true).await;
    }
    // A fence is about one silence. It must never act on a later one, of which nobody spoke.
    if host.ready {
        let why = "the node answers; nothing was taken from it";
        return void(tx, fence, why).await;
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let boot_id = text(&fence.spec()["bootID"]);
    if !boot_id.is_empty() && boot_id != host.boot_id {
        let heard = &host.boot_id;
        let why = format!("the node's last boot is {heard}, of which this fence says nothing");
        return void(tx, fence, &why).await;
    }
    let row = FenceRow {
        uid: fence.uid.clone(),
        node: node.clone(),
        boot_id,
        statement: text(&fence.spec()["statement"]),
        by: text(&fence.metadata["annotations"][BY]),
        at: tx.now(),
    };
    if tx.node_fence(&row).await? {
        warn!(%node, by = %row.by, statement = %row.statement, "node fenced");
        let note = format!("{} declared the node dead: {}", row.by, row.statement);
        node_event(tx, node, "NodeFenced", note).await?;
    }
    let jobs = tx.jobs_open().await?;
    let instances = tx.instances().await?;
    let (waiting, free): (Vec<_>, Vec<_>) = instances
        .into_iter()
        .filter(|row| is_taken(row, node))
        .partition(|row| jobs.iter().any(|job| job.machine == row.uid));
    let mut names = vec![];
    for row in free {
        names.push(json!(format!("{}/{}", row.key.namespace, row.key.name)));
        take(tx, row, &format!("node {node} was fenced")).await?;
    }
    finish(tx, fence, names, waiting.is_empty()).await
}

/// The fence does nothing, now and later.
async fn void(tx: &mut Tx, fence: Object, why: &str) -> Result<(), LedgerError> {
    warn!(fence = fence.key.name, why, "fence is void");
    change(tx, fence, |told| {
        told["phase"] = json!("Void");
        told["message"] = json!(why);
    })
    .await
    .map(drop)
}

async fn finish(
    tx: &mut Tx,
    fence: Object,
    names: Vec<Value>,
    done: bool,
) -> Result<(), LedgerError> {
    change(tx, fence, |told| {
        told["phase"] = json!(if done { "Fenced" } else { "Pending" });
        if !told["at"].is_string() {
            told["at"] = json!(now());
        }
        if !told["machines"].is_array() {
            told["machines"] = json!([]);
        }
        if let Value::Array(machines) = &mut told["machines"] {
            machines.extend(names);
        }
    })
    .await
    .map(drop)
}

/// Takes a machine from its host.
async fn take(tx: &mut Tx, mut row: InstanceRow, why: &str) -> Result<(), LedgerError> {
    row.epoch = tx.instance_release(&row.uid).await?;
    row.node = None;
    row.state = InstanceState::Unplaced;
    warn!(machine = %row.uid, epoch = %row.epoch, why, "machine taken from its host");
    let object = tx.get(&row.key).await?;
    match object.filter(|object| object.uid == row.uid.as_str()) {
        Some(object) => tell(tx, object, row, why).await,
        None => Ok(()),
    }
}

/// Tells of a machine without a host: it waits for another if it shall run, and has failed if not.
async fn tell(
    tx: &mut Tx,
    object: Object,
    mut row: InstanceRow,
    why: &str,
) -> Result<(), LedgerError> {
    let note = if object.deleting() || is_wanted(tx, &object).await? {
        let mut object = object.clone();
        forget_host(&mut object);
        tx.put(&object).await?;
        format!("{why}; the machine starts again from its disk on another node")
    } else {
        row.state = InstanceState::Failed;
        tx.instance_put(&row).await?;
        change(tx, object.clone(), |told| {
            status::ended(told, "Failed", why)
        })
        .await?;
        format!("{why}; the machine is not started again by itself")
    };
    let said = (EventKind::Warning, "NodeFenced", note.as_str());
    handler_event(tx, (&object, &row), said).await
}

/// Whether the virtual machine of the instance starts it again after a crash.
async fn is_wanted(tx: &mut Tx, object: &Object) -> Result<bool, LedgerError> {
    let owner = tx.get(&owner_key(object)).await?;
    let owner = owner.filter(|owner| vm::owner(object) == Some(&owner.uid));
    Ok(owner.is_some_and(|owner| {
        let spec = owner.spec();
        let strategy = RunStrategy::read(spec["runStrategy"].as_str(), spec["running"].as_bool());
        !owner.deleting() && matches!(strategy, RunStrategy::Always | RunStrategy::RerunOnFailure)
    }))
}

/// The status of an instance that was never placed, but for its history.
fn forget_host(object: &mut Object) {
    let labels = object.metadata.get_mut("labels");
    if let Some(labels) = labels.and_then(Value::as_object_mut) {
        labels.remove(NODE_LABEL);
    }
    let told = object.status.get_or_insert_with(|| json!({}));
    if let Some(fields) = told.as_object_mut() {
        for field in ["nodeName", "activePods", "interfaces"] {
            fields.remove(field);
        }
    }
    for outdated in ["Paused", "Synchronized"] {
        clear_condition(told, outdated);
    }
    status::not_ready(
        told,
        "GuestNotRunning",
        "Guest VM is not reported as running",
    );
    status::set_phase(told, "Scheduling");
}

/// A warning about a node.
///
/// # Errors
/// The ledger's.
pub(crate) async fn node_event(
    tx: &mut Tx,
    node: &NodeName,
    reason: &str,
    note: String,
) -> Result<(), LedgerError> {
    let Some(object) = tx.get(&ObjectKey::new("nodes", "", node.as_str())).await? else {
        return Ok(());
    };
    tx.event(EventRecord {
        regarding: reference(&object, "Node"),
        reason: reason.to_owned(),
        note,
        kind: EventKind::Warning,
        component: "godwit-scheduler".to_owned(),
        host: node.to_string(),
    })
    .await
}
