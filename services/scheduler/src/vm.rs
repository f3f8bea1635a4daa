//! VirtualMachines: keeps one instance for each that shall run, and tells what becomes of it.
//!
//! From what is there to what is written; carried out by [`Plan::write`].

use std::time::Duration;

use godwit_ledger::{EventKind, EventRecord, LedgerError, NewObject, Object, Tx};
use godwit_model::run_strategy::{self, Instance, RunStrategy, Wish};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::asked::Asked;
use crate::json::{Condition, child, clear_condition, condition, now, reference, set_condition};
use crate::status;
use crate::world::instance_key;

/// Finalizer that keeps an instance until its machine is gone.
pub(crate) const FINALIZER: &str = "kubevirt.io/foregroundDeleteVirtualMachine";
/// Label that names an instance's machine, for selectors.
const DOMAIN_LABEL: &str = "kubevirt.io/domain";
/// KubeVirt's grace period where the template has none, seconds.
const GRACE_SECONDS: u32 = 30;
/// Who tells of machines: KubeVirt's name.
const CONTROLLER: &str = "virtualmachine-controller";
/// Kubernetes' finalizer of objects that are deleted without what they own.
const ORPHAN: &str = "orphan";
/// Field of the status that counts failed starts.
const START_FAILURE: &str = "startFailure";
/// Conditions that are the machine's own; all others are its instance's.
const OWN_CONDITIONS: [&str; 4] = [
    "Ready",
    "Failure",
    "RestartRequired",
    "ManualRecoveryRequired",
];

/// A machine and what belongs to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sight<'a> {
    pub(crate) vm: &'a Object,
    /// Whoever has the name that its instance must have.
    pub(crate) namesake: Option<&'a Object>,
    /// The cluster's eviction strategy.
    pub(crate) eviction_strategy: Option<&'a str>,
    pub(crate) now: Timestamp,
}

/// What is to be written; everything is empty when nothing changes.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    create: Option<NewObject>,
    delete: Option<Object>,
    tell: Option<Object>,
    events: Vec<EventRecord>,
}

impl Plan {
    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.create.is_none() && self.delete.is_none() && self.tell.is_none()
    }

    /// Writes it.
    ///
    /// # Errors
    /// The ledger's.
    pub(crate) async fn write(self, tx: &mut Tx) -> Result<(), LedgerError> {
        if let Some(new) = self.create {
            tx.create(new).await?;
        }
        for object in self.delete.iter().chain(&self.tell) {
            tx.put(object).await?;
        }
        for event in self.events {
            tx.event(event).await?;
        }
        Ok(())
    }
}

impl<'a> Sight<'a> {
    /// What follows.
    pub(crate) fn plan(self) -> Plan {
        let mut plan = Plan::default();
        let mut status = match &self.vm.status {
            Some(Value::Object(status)) => status.clone(),
            Some(_) | None => Map::new(),
        };
        let asked = self.asked(&mut status);
        let wish = self.wish(asked);
        self.count_failures(wish, &mut status);
        match (wish, self.instance()) {
            (Wish::Run, None) if self.namesake.is_none() && !self.pauses(&status) => {
                plan.events.push(self.event(
                    "SuccessfulCreate",
                    format!(
                        "Started the virtual machine by creating the new virtual machine instance \
                         {}",
                        self.vm.key.name
                    ),
                ));
                plan.create = Some(self.new_instance(asked));
            }
            (Wish::Run, Some(old)) if self.state().has_ended() => self.delete(old, &mut plan),
            (Wish::Halt, Some(old)) => self.delete(old, &mut plan),
            (Wish::Run | Wish::Halt | Wish::Keep, _) => {}
        }
        plan.tell = self.tell(wish, status, plan.create.is_some());
        plan
    }

    fn strategy(self) -> RunStrategy {
        let spec = self.vm.spec();
        RunStrategy::read(spec["runStrategy"].as_str(), spec["running"].as_bool())
    }

    fn asked(self, status: &mut Map<String, Value>) -> Option<Asked> {
        let alive = !self.state().has_ended();
        let instance = self.instance().map(|instance| (&*instance.uid, alive));
        Asked::first(status, instance)
    }

    fn wish(self, asked: Option<Asked>) -> Wish {
        match asked {
            // Whoever deletes the machine may leave its instance to itself.
            _ if self.vm.deleting() && self.vm.finalizers().any(|held| held == ORPHAN) => {
                Wish::Keep
            }
            _ if self.vm.deleting() => Wish::Halt,
            Some(asked) => asked.wish(),
            None => self.strategy().wish(self.state()),
        }
    }

    /// The machine's own instance.
    fn instance(self) -> Option<&'a Object> {
        self.namesake
            .filter(|instance| is_owned(instance, &self.vm.uid))
    }

    fn told(self) -> Option<&'a Value> {
        self.instance()?.status.as_ref()
    }

    fn state(self) -> Instance {
        match (self.instance(), self.told().map(|told| &told["phase"])) {
            (None, _) => Instance::Absent,
            (_, Some(phase)) if phase == "Succeeded" => Instance::Succeeded,
            (_, Some(phase)) if phase == "Failed" => Instance::Failed,
            (Some(_), _) => Instance::Alive,
        }
    }

    /// Keeps count of starts that failed in a row, and of when the next may be.
    fn count_failures(self, wish: Wish, status: &mut Map<String, Value>) {
        let known = &status.get(START_FAILURE).cloned().unwrap_or_default();
        let since = self.told().and_then(|told| status::since(told, "Running"));
        let settled = match self.state() {
            Instance::Failed => {
                let uid = self.instance().map(|instance| &instance.uid);
                if wish == Wish::Run && known["lastFailedVMIUID"] != json!(uid) {
                    let ended = self.told().and_then(|told| status::since(told, "Failed"));
                    let ran = since.zip(ended).map(|(from, to)| span(from, to));
                    let before = known["consecutiveFailCount"].as_u64().unwrap_or_default();
                    let before = u32::try_from(before).unwrap_or(u32::MAX);
                    self.note_failure(run_strategy::failures(before, ran), status);
                }
                false
            }
            Instance::Alive => run_strategy::has_run_well(since.map(|from| span(from, self.now))),
            Instance::Absent | Instance::Succeeded => false,
        };
        if settled || wish == Wish::Halt {
            status.remove(START_FAILURE);
        }
    }

    fn note_failure(self, failures: u32, status: &mut Map<String, Value>) {
        if failures == 0 {
            status.remove(START_FAILURE);
            return;
        }
        let retry = self.now + run_strategy::pause(failures);
        status.insert(
            START_FAILURE.to_owned(),
            json!({
                "consecutiveFailCount": failures,
                "lastFailedVMIUID": self.instance().map(|instance| &instance.uid),
                "retryAfterTimestamp": crate::json::seconds(retry),
            }),
        );
    }

    /// Whether the next start has to wait.
    fn pauses(self, status: &Map<String, Value>) -> bool {
        let retry = status
            .get(START_FAILURE)
            .and_then(|failure| failure["retryAfterTimestamp"].as_str()?.parse().ok());
        retry.is_some_and(|retry: Timestamp| self.now < retry)
    }

    fn delete(self, instance: &Object, plan: &mut Plan) {
        if instance.deleting() {
            return;
        }
        let mut instance = instance.clone();
        mark_deleted(&mut instance);
        plan.events.push(self.event(
            "SuccessfulDelete",
            format!(
                "Stopped the virtual machine by deleting the virtual machine instance {}",
                instance.uid
            ),
        ));
        plan.delete = Some(instance);
    }

    fn event(self, reason: &str, note: String) -> EventRecord {
        EventRecord {
            regarding: reference(self.vm, "VirtualMachine"),
            reason: reason.to_owned(),
            note,
            kind: EventKind::Normal,
            component: CONTROLLER.to_owned(),
            host: String::new(),
        }
    }

    /// The instance as the template says, with what KubeVirt's webhook adds to it.
    fn new_instance(self, asked: Option<Asked>) -> NewObject {
        let vm = self.vm;
        let template = &vm.spec()["template"];
        let mut metadata = json!({
            "finalizers": [FINALIZER],
            "ownerReferences": [{
                "apiVersion": "kubevirt.io/v1",
                "kind": "VirtualMachine",
                "name": vm.key.name,
                "uid": vm.uid,
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        });
        for field in ["labels", "annotations"] {
            if template["metadata"][field].is_object() {
                metadata[field] = template["metadata"][field].clone();
            }
        }
        if let Some(labels) = child(&mut metadata, "labels") {
            labels.insert("kubevirt.io/vm".to_owned(), json!(vm.key.name));
            labels
                .entry(DOMAIN_LABEL)
                .or_insert_with(|| json!(vm.key.name));
        }
        if let Some(annotations) = child(&mut metadata, "annotations") {
            let generation = vm.metadata["generation"].to_string();
            annotations.insert("kubevirt.io/vm-generation".to_owned(), json!(generation));
        }
        let mut body = json!({ "spec": template["spec"] });
        if let Some(spec) = child(&mut body, "spec") {
            spec.entry("terminationGracePeriodSeconds")
                .or_insert_with(|| json!(GRACE_SECONDS));
            if asked == Some(Asked::Start { paused: true }) {
                spec.insert("startStrategy".to_owned(), json!("Paused"));
            }
            if let Some(strategy) = self.eviction_strategy {
                spec.entry("evictionStrategy")
                    .or_insert_with(|| json!(strategy));
            }
        }
        let mut status = json!({ "guestOSInfo": {}, "runtimeUser": status::RUNTIME_USER });
        status::set_phase(&mut status, "Pending");
        NewObject {
            key: instance_key(&vm.key),
            uid: None,
            metadata,
            body,
            status: Some(status),
        }
    }

    /// The machine with its new status; `None` when it is the old one.
    fn tell(self, wish: Wish, status: Map<String, Value>, created: bool) -> Option<Object> {
        let mut status = Value::Object(status);
        let exists = created || self.instance().is_some();
        let told = self.told();
        let ready = told.is_some_and(|told| condition(told, "Ready") == Some("True"));
        let generation = &self.vm.metadata["generation"];
        // KubeVirt leaves out what isn't so, and clients wait for that.
        for (field, is_so) in [("created", exists), ("ready", ready)] {
            match (is_so, status.as_object_mut()) {
                (true, _) => status[field] = json!(true),
                (false, Some(status)) => drop(status.remove(field)),
                (false, None) => {}
            }
        }
        status["runStrategy"] = json!(self.strategy().as_str());
        status["observedGeneration"] = generation.clone();
        status["desiredGeneration"] = generation.clone();
        let crash_loops = wish == Wish::Run && !status[START_FAILURE].is_null();
        status["printableStatus"] = json!(match (created, crash_loops) {
            (true, _) => "Starting",
            (false, crash_loops) => self.printable(crash_loops),
        });
        self.mirror_conditions(&mut status);
        let mut own = Condition::new("Ready", ready);
        if !exists {
            own = own.because("VMINotExists", "VMI does not exist");
        } else if !ready {
            own = own.because("GuestNotRunning", "Guest VM is not reported as running");
        }
        set_condition(&mut status, &own);
        self.tell_namesake(wish, &mut status);
        if self.vm.status.as_ref() == Some(&status) {
            return None;
        }
        Some(Object {
            status: Some(status),
            ..self.vm.clone()
        })
    }

    /// The instance's conditions are the machine's, too.
    fn mirror_conditions(self, status: &mut Value) {
        let none = vec![];
        let theirs = self.told().and_then(|told| told["conditions"].as_array());
        let theirs = theirs.unwrap_or(&none);
        let is_own = |condition: &Value| OWN_CONDITIONS.iter().any(|own| condition["type"] == *own);
        let old = status["conditions"].take();
        let mut conditions: Vec<Value> = old
            .as_array()
            .into_iter()
            .flatten()
            .filter(|condition| is_own(condition))
            .cloned()
            .collect();
        conditions.extend(theirs.iter().filter(|theirs| !is_own(theirs)).cloned());
        status["conditions"] = Value::Array(conditions);
    }

    /// Says that somebody else's instance has the name.
    fn tell_namesake(self, wish: Wish, status: &mut Value) {
        let stranger = self.namesake.filter(|_| self.instance().is_none());
        match stranger {
            Some(stranger) if wish == Wish::Run && !stranger.deleting() => {
                let text = "a virtual machine instance of this name exists, and is not this \
                            machine's";
                let taken = Condition::new("Failure", true).because("FailedCreate", text);
                set_condition(status, &taken);
            }
            Some(_) | None => clear_condition(status, "Failure"),
        }
    }

    /// KubeVirt's order: the first that fits.
    fn printable(self, crash_loops: bool) -> &'static str {
        if self.vm.deleting() {
            return "Terminating";
        }
        let Some(instance) = self.instance() else {
            return if crash_loops {
                "CrashLoopBackOff"
            } else {
                "Stopped"
            };
        };
        let status = self.told().unwrap_or(&Value::Null);
        let migration = &status["migrationState"];
        let migrating = migration["startTimestamp"].is_string() && migration["completed"] != true;
        let state = self.state();
        if instance.deleting() && !state.has_ended() {
            "Stopping"
        } else if migrating && !state.has_ended() {
            "Migrating"
        } else if condition(status, "Paused") == Some("True") {
            "Paused"
        } else if condition(status, "PodScheduled") == Some("False") {
            "ErrorUnschedulable"
        } else {
            match state {
                Instance::Alive if status["phase"] == "Running" => "Running",
                Instance::Alive if status["phase"] == "Unknown" => "Unknown",
                Instance::Alive => "Starting",
                Instance::Absent | Instance::Succeeded | Instance::Failed if crash_loops => {
                    "CrashLoopBackOff"
                }
                Instance::Absent | Instance::Succeeded | Instance::Failed => "Stopped",
            }
        }
    }
}

fn span(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}

/// Whether `instance` belongs to the machine `uid`.
fn is_owned(instance: &Object, uid: &str) -> bool {
    owner(instance).is_some_and(|owner| owner == uid)
}

/// UID of the machine that made `instance`; `None` when somebody else did.
pub(crate) fn owner(instance: &Object) -> Option<&str> {
    let owners = instance.metadata["ownerReferences"].as_array()?;
    let owner = owners
        .iter()
        .find(|owner| owner["kind"] == "VirtualMachine")?;
    owner["uid"].as_str()
}

/// Marks an instance for deletion: from now on it is on its way out.
pub(crate) fn mark_deleted(instance: &mut Object) {
    instance.metadata["deletionTimestamp"] = json!(now());
    instance.metadata["deletionGracePeriodSeconds"] = json!(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_ledger::ObjectKey;

    const NOW: &str = "2026-01-01T00:10:00Z";

    fn vm(strategy: &str, status: &Value) -> Object {
        let spec = json!({ "runStrategy": strategy, "template": { "spec": {} } });
        object("vm", json!({ "spec": spec }), status)
    }

    /// The machine's instance in `phase`, into which it came `seconds` ago; before, it ran for
    /// `ran` seconds.
    fn instance(phase: &str, seconds: i64, ran: Option<i64>) -> Object {
        let now: Timestamp = NOW.parse().unwrap();
        let at = |ago: i64| (now - Duration::from_secs(ago.unsigned_abs())).to_string();
        let mut times = vec![];
        if let Some(ran) = ran {
            times
                .push(json!({ "phase": "Running", "phaseTransitionTimestamp": at(seconds + ran) }));
        }
        times.push(json!({ "phase": phase, "phaseTransitionTimestamp": at(seconds) }));
        let status = json!({ "phase": phase, "phaseTransitionTimestamps": times });
        let mut instance = object("i1", json!({ "spec": {} }), &status);
        instance.metadata =
            json!({ "ownerReferences": [{ "kind": "VirtualMachine", "uid": "vm" }] });
        instance
    }

    fn object(uid: &str, body: Value, status: &Value) -> Object {
        Object {
            key: ObjectKey::new("virtualmachines.kubevirt.io", "default", "vm"),
            uid: uid.to_owned(),
            metadata: json!({ "generation": 1 }),
            body,
            status: (!status.is_null()).then(|| status.clone()),
            revision: godwit_model::Revision(1),
        }
    }

    fn sight<'a>(vm: &'a Object, namesake: Option<&'a Object>) -> Sight<'a> {
        Sight {
            vm,
            namesake,
            eviction_strategy: Some("LiveMigrate"),
            now: NOW.parse().unwrap(),
        }
    }

    fn told(plan: &Plan) -> &Value {
        plan.tell.as_ref().unwrap().status.as_ref().unwrap()
    }

    #[test]
    fn a_new_instance_is_the_template_with_what_kubevirt_adds() {
        let vm = vm("Always", &Value::Null);
        let plan = sight(&vm, None).plan();
        let new = plan.create.as_ref().unwrap();
        assert_eq!(new.body["spec"]["evictionStrategy"], "LiveMigrate");
        assert_eq!(new.body["spec"]["terminationGracePeriodSeconds"], 30);
        assert_eq!(new.metadata["labels"]["kubevirt.io/domain"], "vm");
        assert_eq!(new.metadata["ownerReferences"][0]["uid"], "vm");
        assert_eq!(told(&plan)["printableStatus"], "Starting");
        assert_eq!(plan.events[0].reason, "SuccessfulCreate");
    }

    #[test]
    fn what_was_told_once_is_not_written_again() {
        let vm = vm("Halted", &Value::Null);
        let first = sight(&vm, None).plan();
        assert_eq!(told(&first)["printableStatus"], "Stopped");
        assert!(sight(first.tell.as_ref().unwrap(), None).plan().is_empty());
    }

    #[test]
    fn a_machine_that_fails_at_once_waits_before_it_is_started_again() {
        let started = vm("Always", &Value::Null);
        let failed = instance("Failed", 0, Some(5));
        let plan = sight(&started, Some(&failed)).plan();
        assert!(plan.delete.is_some() && plan.create.is_none());
        let status = told(&plan).clone();
        assert_eq!(
            status["startFailure"],
            json!({
                "consecutiveFailCount": 1,
                "lastFailedVMIUID": "i1",
                "retryAfterTimestamp": "2026-01-01T00:10:10Z",
            })
        );
        assert_eq!(status["printableStatus"], "CrashLoopBackOff");
        let waits = vm("Always", &status);
        let plan = sight(&waits, None).plan();
        assert!(plan.create.is_none(), "{plan:?}");
        let later = Sight {
            now: "2026-01-01T00:10:10Z".parse().unwrap(),
            ..sight(&waits, None)
        };
        assert!(later.plan().create.is_some());
    }

    #[test]
    fn who_ran_well_is_started_again_at_once() {
        let started = vm("Always", &Value::Null);
        let failed = instance("Failed", 0, Some(3600));
        let plan = sight(&started, Some(&failed)).plan();
        assert_eq!(told(&plan)["startFailure"], Value::Null);
        let counted = vm(
            "Always",
            &json!({ "startFailure": { "lastFailedVMIUID": "i0" } }),
        );
        let running = instance("Running", 61, None);
        let plan = sight(&counted, Some(&running)).plan();
        assert_eq!(told(&plan)["startFailure"], Value::Null);
    }

    #[test]
    fn a_migrating_machine_says_so_before_it_says_paused() {
        let vm = vm("Always", &Value::Null);
        let mut instance = instance("Running", 5, None);
        let status = instance.status.as_mut().unwrap();
        status["migrationState"] = json!({ "startTimestamp": "2026-01-01T00:00:00Z" });
        status["conditions"] = json!([{ "type": "Paused", "status": "True" }]);
        let plan = sight(&vm, Some(&instance)).plan();
        assert_eq!(told(&plan)["printableStatus"], "Migrating");
        assert_eq!(
            condition(told(&plan), "Paused"),
            Some("True"),
            "not mirrored"
        );
    }

    #[test]
    fn an_instance_of_somebody_else_is_left_alone_and_named() {
        let vm = vm("Always", &Value::Null);
        let mut other = instance("Running", 5, None);
        other.metadata = json!({});
        let plan = sight(&vm, Some(&other)).plan();
        assert!(plan.create.is_none() && plan.delete.is_none());
        assert_eq!(condition(told(&plan), "Failure"), Some("True"));
    }

    #[test]
    fn a_machine_is_started_and_stopped_by_hand() {
        let start = json!({ "stateChangeRequests": [
            { "action": "Start", "data": { "paused": "true" } },
        ] });
        let manual = vm("Manual", &start);
        let plan = sight(&manual, None).plan();
        let new = plan.create.unwrap();
        assert_eq!(new.body["spec"]["startStrategy"], "Paused");
        let running = instance("Running", 5, None);
        let plan = sight(&manual, Some(&running)).plan();
        assert!(plan.delete.is_none());
        assert_eq!(told(&plan)["stateChangeRequests"], Value::Null);
        let stop = json!({ "stateChangeRequests": [{ "action": "Stop", "uid": "i1" }] });
        let plan = sight(&vm("Manual", &stop), Some(&running)).plan();
        assert!(plan.delete.is_some());
    }

    #[test]
    fn a_deleted_machine_takes_its_instance_with_it() {
        let mut vm = vm("Always", &Value::Null);
        vm.metadata["deletionTimestamp"] = json!(NOW);
        let running = instance("Running", 5, None);
        let plan = sight(&vm, Some(&running)).plan();
        assert!(plan.delete.is_some_and(|instance| instance.deleting()));
    }

    #[test]
    fn a_machine_that_is_deleted_alone_leaves_its_instance_running() {
        let mut vm = vm("Always", &Value::Null);
        vm.metadata["deletionTimestamp"] = json!(NOW);
        vm.metadata["finalizers"] = json!([ORPHAN]);
        let running = instance("Running", 5, None);
        assert!(sight(&vm, Some(&running)).plan().delete.is_none());
    }
}
