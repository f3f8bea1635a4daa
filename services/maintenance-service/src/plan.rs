//! From what is true about a maintenance to what is written. Never waits, talks or reads a clock.
//!
//! Nothing is planned where nothing changes. Carried out by `drain.rs`.

use godwit_ledger::{EventKind, EventRecord, NewObject, Object, ObjectKey};
use godwit_model::forecast::Forecaster;
use godwit_model::maintenance::{Method, Progress};
use godwit_model::{JobId, MachineId, NodeName};
use serde_json::{Map, Value, json};

use crate::json::{clear_condition, reference, seconds, status_of, told};
use crate::lease;
use crate::look::{EVACUATION, Situation};
use crate::node::{self, Cordon};

mod emptying;
mod telling;

use emptying::Drain;

/// Keeps a maintenance until its node is open again.
pub(crate) const FINALIZER: &str = "foregroundDeleteNodeMaintenance";
/// Condition of an instance that can't leave.
const EVICTION_BLOCKED: &str = "EvictionBlocked";
/// Condition of an instance that climbed its ladder.
const LADDER: &str = "EvacuationLadder";
/// Who tells of maintenances: the name of medik8s' operator.
const OPERATOR: &str = "NodeMaintenance";
/// Who tells of evacuations: KubeVirt's name.
pub(crate) const EVACUATION_CONTROLLER: &str = "evacuation-controller";
/// The event of a maintenance that can't be ended.
const FAILED: (EventKind, &str, &str) = (
    EventKind::Warning,
    "FailedMaintenance",
    "Failed a node maintenance",
);
/// Evacuations asked for in one transaction: others wait for it.
const REQUESTS_MAX: usize = 32;

/// What is to be written; everything is empty when nothing changes.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) node: Option<Object>,
    pub(crate) instances: Vec<Object>,
    pub(crate) requests: Vec<Evacuation>,
    /// Migrations that are cancelled, and why.
    pub(crate) cancels: Vec<(JobId, String)>,
    /// Virtual machines that are told to stop their instances.
    pub(crate) machines: Vec<Object>,
    pub(crate) lease: Option<Lease>,
    pub(crate) events: Vec<EventRecord>,
    /// Written last: at its end it takes the maintenance away.
    pub(crate) maintenance: Option<Object>,
    /// How it stands, for metrics; `None` when it is over.
    pub(crate) standing: Option<Standing>,
    /// Machines that wait for a later transaction.
    pub(crate) more: bool,
}

/// An evacuation that is to be asked for.
#[derive(Debug)]
pub(crate) struct Evacuation {
    pub(crate) machine: MachineId,
    pub(crate) instance: Object,
    /// `Live`, `PostCopy` or `Pause`.
    pub(crate) method: Method,
    /// Where a plan sends it; `None` leaves that to the scheduler.
    pub(crate) target: Option<NodeName>,
}

/// What becomes of a node's lease.
#[derive(Debug)]
pub(crate) enum Lease {
    /// There was none.
    Create(Box<NewObject>),
    /// It is taken, or held for longer.
    Put(Box<Object>),
    /// It is given back.
    Remove(ObjectKey),
}

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) progress: Progress,
    pub(crate) blocked: usize,
}

impl Plan {
    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.node.is_none()
            && self.instances.is_empty()
            && self.requests.is_empty()
            && self.cancels.is_empty()
            && self.machines.is_empty()
            && self.lease.is_none()
            && self.events.is_empty()
            && self.maintenance.is_none()
    }
}

/// What follows from `situation`, with forecasts by what was learned.
pub(crate) fn plan(situation: &Situation, forecaster: &Forecaster) -> Plan {
    match &situation.node {
        _ if situation.maintenance.deleting() => end(situation),
        Some((name, node)) => Drain::new(situation, name, forecaster).plan(node),
        None => vanished(situation),
    }
}

/// The node is open again, and what waited for its evacuation stays where it is.
fn end(situation: &Situation) -> Plan {
    let mut plan = Plan::default();
    let mut maintenance = situation.maintenance.clone();
    if !maintenance.finalizers().any(|name| name == FINALIZER) {
        return plan;
    }
    let why = format!(
        "the maintenance of node {} was removed",
        situation.node_name
    );
    release(&mut plan, situation, &why);
    let held = situation.lease.as_ref().filter(|held| lease::is_ours(held));
    plan.lease = held.map(|held| Lease::Remove(held.key.clone()));
    plan.events.push(about(
        &maintenance,
        (
            EventKind::Normal,
            "RemovedMaintenance",
            "Removed a node maintenance",
        ),
    ));
    if let Some(Value::Array(list)) = maintenance.metadata.get_mut("finalizers") {
        list.retain(|name| name != FINALIZER);
    }
    plan.maintenance = Some(maintenance);
    plan
}

/// Opens the node again, and leaves its machines where they are. What a ladder stopped stays as it
/// is.
fn release(plan: &mut Plan, situation: &Situation, why: &str) {
    if let Some((_, node)) = &situation.node {
        let mut opened = node.clone();
        node::open(&mut opened, &cordon(&situation.maintenance));
        plan.events.push(event(
            reference(node, "v1", "Node"),
            (EventKind::Normal, "UncordonNode", "Uncordon a node"),
        ));
        plan.node = changed(opened, node);
    }
    for instance in &situation.instances {
        let mut status = status_of(instance);
        unmark(&mut status, situation);
        plan.instances.extend(with_status(instance, status));
    }
    plan.cancels = cancels(situation, why);
}

/// Takes away what says that an instance shall leave.
fn unmark(status: &mut Map<String, Value>, situation: &Situation) {
    clear_condition(status, EVICTION_BLOCKED);
    clear_condition(status, LADDER);
    if status.get(EVACUATION) == Some(&json!(situation.node_name)) {
        status.remove(EVACUATION);
    }
}

/// Every evacuation that has not begun to copy is cancelled.
fn cancels(situation: &Situation, why: &str) -> Vec<(JobId, String)> {
    let jobs = situation.cancellable.iter();
    jobs.map(|job| (job.clone(), why.to_owned())).collect()
}

/// There is no node to empty.
fn vanished(situation: &Situation) -> Plan {
    let maintenance = &situation.maintenance;
    let mut status = status_of(maintenance);
    let failed = json!("Failed");
    let news = status.get("phase") != Some(&failed);
    let error = format!("there is no node {}", situation.node_name);
    status.insert("phase".to_owned(), failed);
    status.insert("lastError".to_owned(), json!(error));
    // If the node comes back, nothing of this is known of it.
    status.remove("cordon");
    let mut plan = Plan {
        maintenance: stamped(situation, status),
        ..Plan::default()
    };
    if news {
        plan.events.push(about(maintenance, FAILED));
    }
    plan
}

fn backs_off(instance: &Object) -> EventRecord {
    let regarding = reference(instance, "kubevirt.io/v1", "VirtualMachineInstance");
    let note = format!("backoff migrating vmi {}", name(&instance.key));
    EventRecord {
        component: EVACUATION_CONTROLLER.to_owned(),
        ..event(regarding, (EventKind::Warning, "MigrationBackoff", &note))
    }
}

fn cordon(maintenance: &Object) -> Cordon {
    let kept = told(maintenance, "cordon").clone();
    serde_json::from_value(kept).unwrap_or_default()
}

fn name(key: &ObjectKey) -> String {
    format!("{}/{}", key.namespace, key.name)
}

/// `new`, if it isn't what was there before.
fn changed(new: Object, old: &Object) -> Option<Object> {
    (new != *old).then_some(new)
}

/// `object` with a new status, if it is one.
fn with_status(object: &Object, status: Map<String, Value>) -> Option<Object> {
    if status == status_of(object) {
        return None;
    }
    Some(Object {
        status: Some(Value::Object(status)),
        ..object.clone()
    })
}

/// The maintenance with a new status and the time of that, if it is one.
fn stamped(situation: &Situation, mut status: Map<String, Value>) -> Option<Object> {
    let maintenance = &situation.maintenance;
    if status == status_of(maintenance) {
        return None;
    }
    status.insert("lastUpdate".to_owned(), json!(seconds(situation.now)));
    with_status(maintenance, status)
}

/// The maintenance with our finalizer, if it has none: without it nobody would open the node again.
fn finalized(maintenance: &Object) -> Option<Object> {
    if maintenance.finalizers().any(|name| name == FINALIZER) {
        return None;
    }
    let mut maintenance = maintenance.clone();
    let mut finalizers: Vec<&str> = maintenance.finalizers().collect();
    finalizers.push(FINALIZER);
    maintenance.metadata["finalizers"] = json!(finalizers);
    Some(maintenance)
}

/// An event about the maintenance itself.
fn about(maintenance: &Object, words: (EventKind, &str, &str)) -> EventRecord {
    event(
        reference(maintenance, "kubevirt.io/v1alpha1", "NodeMaintenance"),
        words,
    )
}

fn event(
    regarding: godwit_ledger::ObjectRef,
    (kind, reason, note): (EventKind, &str, &str),
) -> EventRecord {
    EventRecord {
        regarding,
        reason: reason.to_owned(),
        note: note.to_owned(),
        kind,
        component: OPERATOR.to_owned(),
        host: String::new(),
    }
}
