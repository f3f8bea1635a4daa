//! From what is true about a maintenance to what is written. Never waits, talks or reads a clock.
//!
//! Nothing is planned where nothing changes. Carried out by `drain.rs`.

use godwit_ledger::{EventKind, EventRecord, Object, ObjectKey};
use godwit_model::maintenance::{Blocker, Cause, Decision, Progress, Wait, decide};
use godwit_model::{JobId, MachineId, NodeName};
use serde_json::{Map, Value, json};

use crate::json::{clear_condition, reference, seconds, set, set_condition, status_of, told};
use crate::look::{EVACUATION, Guest, Situation};
use crate::node::{self, Cordon};
use crate::words::{back_off, last_error};

/// Keeps a maintenance until its node is open again.
const FINALIZER: &str = "foregroundDeleteNodeMaintenance";
/// Condition of an instance that can't leave.
const EVICTION_BLOCKED: &str = "EvictionBlocked";
/// Who tells of maintenances: the name of medik8s' operator.
const OPERATOR: &str = "NodeMaintenance";
/// Who tells of evacuations: KubeVirt's name.
pub(crate) const EVACUATION_CONTROLLER: &str = "evacuation-controller";
/// Evacuations asked for in one transaction: others wait for it.
const REQUESTS_MAX: usize = 32;

/// What is to be written; everything is empty when nothing changes.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) node: Option<Object>,
    pub(crate) instances: Vec<Object>,
    pub(crate) requests: Vec<Evacuation>,
    pub(crate) cancels: Vec<JobId>,
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
            && self.events.is_empty()
            && self.maintenance.is_none()
    }
}

/// What follows from `situation`.
pub(crate) fn plan(situation: &Situation) -> Plan {
    match &situation.node {
        _ if situation.maintenance.deleting() => end(situation),
        Some((name, node)) => Drain::new(situation, name).plan(node),
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
    if let Some((_, node)) = &situation.node {
        let mut opened = node.clone();
        node::open(&mut opened, &cordon(&maintenance));
        plan.events.push(event(
            reference(node, "v1", "Node"),
            (EventKind::Normal, "UncordonNode", "Uncordon a node"),
        ));
        plan.node = changed(opened, node);
    }
    for instance in &situation.instances {
        let mut status = status_of(instance);
        clear_condition(&mut status, EVICTION_BLOCKED);
        if status.get(EVACUATION) == Some(&json!(situation.node_name)) {
            status.remove(EVACUATION);
        }
        plan.instances.extend(with_status(instance, status));
    }
    plan.cancels.clone_from(&situation.cancellable);
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
        plan.events.push(about(
            maintenance,
            (
                EventKind::Warning,
                "FailedMaintenance",
                "Failed a node maintenance",
            ),
        ));
    }
    plan
}

/// The emptying of a node that is there.
struct Drain<'a> {
    situation: &'a Situation,
    node: &'a NodeName,
    decided: Vec<(&'a Guest, Decision)>,
    plan: Plan,
}

impl<'a> Drain<'a> {
    fn new(situation: &'a Situation, node: &'a NodeName) -> Self {
        let guests = situation.guests.iter();
        Self {
            decided: guests
                .map(|guest| (guest, decide(&guest.machine, node)))
                .collect(),
            situation,
            node,
            plan: Plan::default(),
        }
    }

    fn plan(mut self, node: &Object) -> Plan {
        let maintenance = &self.situation.maintenance;
        if told(maintenance, "phase").is_null() {
            let begin = (
                EventKind::Normal,
                "BeginMaintenance",
                "Begin a node maintenance",
            );
            self.plan.events.push(about(maintenance, begin));
        }
        let mut done = cordon(maintenance);
        let mut closed = node.clone();
        node::close(&mut closed, &mut done);
        self.plan.node = changed(closed, node);
        self.evacuate();
        let blockers = self.blockers();
        let waiting = self.waiting();
        self.tell_instances();
        self.tell(&done, (blockers, waiting));
        self.plan
    }

    fn evacuate(&mut self) {
        for (guest, decision) in &self.decided {
            let Some(instance) = self.instance(guest) else {
                continue;
            };
            if *decision != Decision::Migrate {
                continue;
            }
            if self.plan.requests.len() == REQUESTS_MAX {
                self.plan.more = true;
                return;
            }
            self.plan.requests.push(Evacuation {
                machine: guest.uid.clone(),
                instance: instance.clone(),
            });
        }
    }

    fn instance(&self, guest: &Guest) -> Option<&'a Object> {
        let mut all = self.situation.instances.iter();
        all.find(|object| object.uid == guest.uid.as_str())
    }

    fn blocker(&self, instance: &Object) -> Option<&Blocker> {
        self.decided.iter().find_map(|(guest, decision)| {
            let Decision::Blocked(blocker) = decision else {
                return None;
            };
            (guest.uid.as_str() == instance.uid).then_some(blocker)
        })
    }

    /// The blockers as the status lists them; a new one is an event.
    fn blockers(&mut self) -> Vec<Value> {
        let mut blockers = vec![];
        let mut events = vec![];
        for (guest, decision) in &self.decided {
            let Decision::Blocked(blocker) = decision else {
                continue;
            };
            let entry = json!({
                "namespace": guest.key.namespace,
                "name": guest.key.name,
                "reason": blocker.reason,
                "message": blocker.message,
                "remedy": blocker.remedy,
            });
            if !self.listed("blockers", &entry) {
                let note = format!(
                    "{}: {}; {}",
                    name(&guest.key),
                    blocker.message,
                    blocker.remedy
                );
                let maintenance = &self.situation.maintenance;
                let blocked = (EventKind::Warning, EVICTION_BLOCKED, note.as_str());
                events.push(about(maintenance, blocked));
                if let Some(instance) = self.instance(guest) {
                    events.push(self.blocked(instance, blocker));
                }
            }
            blockers.push(entry);
        }
        self.plan.events.extend(events);
        blockers
    }

    /// The event on an instance that can't leave.
    fn blocked(&self, instance: &Object, blocker: &Blocker) -> EventRecord {
        let regarding = reference(instance, "kubevirt.io/v1", "VirtualMachineInstance");
        let (reason, note, component, host) = match blocker.cause {
            Cause::NotMigratable => (
                "Migrated",
                format!(
                    "EvictionStrategy is set but vmi is not migratable; {}",
                    blocker.message
                ),
                "virt-handler",
                self.node.to_string(),
            ),
            Cause::Strategy | Cause::External | Cause::Fencing => (
                EVICTION_BLOCKED,
                blocker.message.clone(),
                EVACUATION_CONTROLLER,
                String::new(),
            ),
        };
        EventRecord {
            component: component.to_owned(),
            host,
            ..event(regarding, (EventKind::Warning, reason, &note))
        }
    }

    /// Machines that leave later, where a person may want to know why; a new pause is an event.
    fn waiting(&mut self) -> Vec<Value> {
        let mut waiting = vec![];
        let mut events = vec![];
        for (guest, decision) in &self.decided {
            let (reason, message) = match decision {
                Decision::Wait(Wait::BackOff { pause }) => {
                    ("MigrationBackoff", back_off(guest, *pause))
                }
                Decision::Wait(Wait::Migrating) if guest.no_room.is_some() => {
                    ("Unschedulable", guest.no_room.clone().unwrap_or_default())
                }
                Decision::Wait(_) | Decision::Migrate | Decision::Blocked(_) => continue,
            };
            let entry = json!({
                "namespace": guest.key.namespace,
                "name": guest.key.name,
                "reason": reason,
                "message": message,
            });
            let pauses = matches!(decision, Decision::Wait(Wait::BackOff { .. }));
            if pauses && !self.listed("waiting", &entry) {
                events.extend(self.instance(guest).map(backs_off));
            }
            waiting.push(entry);
        }
        self.plan.events.extend(events);
        waiting
    }

    fn listed(&self, field: &str, entry: &Value) -> bool {
        let list = told(&self.situation.maintenance, field).as_array();
        list.is_some_and(|list| list.contains(entry))
    }

    /// Marks the instances that shall leave and those that can't, and no others.
    fn tell_instances(&mut self) {
        let situation = self.situation;
        for instance in &situation.instances {
            let mut status = status_of(instance);
            let blocker = self.blocker(instance);
            match blocker {
                Some(blocker) => {
                    let message = format!("{}; {}", blocker.message, blocker.remedy);
                    let words = (blocker.reason, message.as_str());
                    set_condition(&mut status, EVICTION_BLOCKED, words, situation.now);
                }
                None => clear_condition(&mut status, EVICTION_BLOCKED),
            }
            // Its own controller looks for this mark, as KubeVirt's evacuations do.
            let external = blocker.is_some_and(|blocker| blocker.cause == Cause::External);
            let requested = self
                .plan
                .requests
                .iter()
                .any(|request| request.instance.uid == instance.uid);
            if external || requested {
                status.insert(EVACUATION.to_owned(), json!(self.node));
            }
            self.plan.instances.extend(with_status(instance, status));
        }
    }

    /// Writes the status of the maintenance.
    fn tell(&mut self, done: &Cordon, (blockers, waiting): (Vec<Value>, Vec<Value>)) {
        let maintenance = &self.situation.maintenance;
        let known = told(maintenance, "evictionPods").as_u64().unwrap_or(0);
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let progress = Progress::new(known, self.decided.len());
        let emptied = progress.pending == 0;
        let mut status = status_of(maintenance);
        if emptied && status.get("phase") != Some(&json!("Succeeded")) {
            let success = (
                EventKind::Normal,
                "SucceedMaintenance",
                "Node maintenance was succeeded",
            );
            self.plan.events.push(about(maintenance, success));
        }
        self.plan.standing = Some(Standing {
            progress,
            blocked: blockers.len(),
        });
        let (pods, refs) = self.pending();
        let phase = if emptied { "Succeeded" } else { "Running" };
        for (key, value) in [
            ("phase", json!(phase)),
            ("pendingPods", json!(pods)),
            ("pendingPodsRefs", json!(refs)),
            ("totalpods", json!(progress.machines)),
            ("evictionPods", json!(progress.machines)),
            ("drainProgress", json!(progress.percent())),
            ("lastError", json!(last_error(&blockers, &waiting))),
            ("blockers", json!(blockers)),
            ("waiting", json!(waiting)),
            ("cordon", json!(done)),
        ] {
            set(&mut status, key, value);
        }
        let told = stamped(self.situation, status);
        self.plan.maintenance = finalized(told.as_ref().unwrap_or(maintenance)).or(told);
    }

    /// What is still there: names, and names with namespaces.
    fn pending(&self) -> (Vec<&'a str>, Vec<Value>) {
        let guests = self.decided.iter().map(|(guest, _)| guest);
        guests
            .map(|guest| {
                let place = json!({ "namespace": guest.key.namespace, "name": guest.pod });
                (guest.pod.as_str(), place)
            })
            .unzip()
    }
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
