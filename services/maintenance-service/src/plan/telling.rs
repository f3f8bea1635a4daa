//! What a maintenance tells: its status, its events, and what stands in its way.

use godwit_ledger::{EventKind, EventRecord, Object};
use godwit_model::maintenance::{Blocker, Cause, Decision, Progress, Wait};
use serde_json::{Map, Value, json};

use super::emptying::{DEADLINE_EXCEEDED, Drain, deadline_words};
use super::{
    EVACUATION_CONTROLLER, EVICTION_BLOCKED, FAILED, FINALIZER, Standing, about, backs_off, event,
    finalized, name, stamped,
};
use crate::deadline::started;
use crate::json::{
    clear_condition, condition, reference, seconds, set, set_condition, status_of, told,
};
use crate::machines;
use crate::node::Cordon;
use crate::words::{back_off, last_error};

impl<'a> Drain<'a> {
    /// The blockers as the status lists them; a new one is an event.
    pub(super) fn blockers(&mut self) -> Vec<Value> {
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
            Cause::Strategy | Cause::External | Cause::Fencing | Cause::Ladder => (
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
    pub(super) fn waiting(&mut self) -> Vec<Value> {
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
                Decision::Restart => match self.situation.routes.refusal(&guest.uid) {
                    Some(why) => ("Unschedulable", format!("it can't start elsewhere: {why}")),
                    None => continue,
                },
                Decision::Wait(_)
                | Decision::Migrate
                | Decision::PostCopy
                | Decision::Pause
                | Decision::Shutdown
                | Decision::CallOff
                | Decision::Blocked(_) => continue,
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

    /// Writes the status of the maintenance.
    pub(super) fn tell(&mut self, done: &Cordon, (blockers, waiting): (Vec<Value>, Vec<Value>)) {
        let maintenance = &self.situation.maintenance;
        let known = told(maintenance, "evictionPods").as_u64().unwrap_or(0);
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let progress = Progress::new(known, self.decided.len());
        let emptied = progress.pending == 0;
        let mut status = status_of(maintenance);
        self.tell_end(emptied, &status);
        self.tell_deadline(&mut status);
        self.plan.standing = Some(Standing {
            progress,
            blocked: blockers.len(),
        });
        let (pods, refs) = self.pending();
        let phase = match (self.is_aborted(), emptied) {
            (true, _) => "Failed",
            (false, true) => "Succeeded",
            (false, false) => "Running",
        };
        let error = match self.overdue.filter(|_| self.is_aborted()) {
            Some(deadline) => deadline_words(deadline, progress.pending),
            None => last_error(&blockers, &waiting),
        };
        let began = started(maintenance).unwrap_or(self.situation.now);
        let machines = machines::tell(self.situation, &self.decided, self.forecaster);
        for (key, value) in [
            ("phase", json!(phase)),
            ("startedAt", json!(seconds(began))),
            ("machines", json!(machines.machines)),
            ("forecast", machines.forecast),
            ("errorOnLeaseCount", Value::Null),
            ("pendingPods", json!(pods)),
            ("pendingPodsRefs", json!(refs)),
            ("totalpods", json!(progress.machines)),
            ("evictionPods", json!(progress.machines)),
            ("drainProgress", json!(progress.percent())),
            ("lastError", json!(error)),
            ("blockers", json!(blockers)),
            ("waiting", json!(waiting)),
            ("cordon", json!(done)),
        ] {
            set(&mut status, key, value);
        }
        if self.can_wait(&status) {
            return;
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

    /// A drain that came to its end, good or bad, is an event.
    fn tell_end(&mut self, emptied: bool, status: &Map<String, Value>) {
        let phase = status.get("phase");
        let maintenance = &self.situation.maintenance;
        if self.is_aborted() {
            if phase != Some(&json!("Failed")) {
                self.plan.events.push(about(maintenance, FAILED));
            }
        } else if emptied && phase != Some(&json!("Succeeded")) {
            let success = (
                EventKind::Normal,
                "SucceedMaintenance",
                "Node maintenance was succeeded",
            );
            self.plan.events.push(about(maintenance, success));
        }
    }

    /// A deadline that has come is a condition, and an event once.
    fn tell_deadline(&mut self, status: &mut Map<String, Value>) {
        let situation = self.situation;
        let Some(deadline) = self.overdue else {
            // One that was put off, or taken away; one that came before the end stays.
            if situation
                .deadline
                .is_none_or(|deadline| situation.now < deadline.at)
            {
                clear_condition(status, DEADLINE_EXCEEDED);
            }
            return;
        };
        let told = condition(&situation.maintenance, DEADLINE_EXCEEDED);
        if told.is_some_and(|told| told["reason"] == deadline.action.as_str()) {
            return;
        }
        let words = deadline_words(deadline, self.decided.len());
        let reason = (deadline.action.as_str(), words.as_str());
        set_condition(status, DEADLINE_EXCEEDED, reason, situation.now);
        let warning = (EventKind::Warning, DEADLINE_EXCEEDED, words.as_str());
        self.plan
            .events
            .push(about(&situation.maintenance, warning));
    }

    /// Whether there is nothing to tell but numbers, and some were told in this second.
    fn can_wait(&self, status: &Map<String, Value>) -> bool {
        let maintenance = &self.situation.maintenance;
        self.plan.is_empty()
            && *told(maintenance, "lastUpdate") == seconds(self.situation.now)
            && machines::only_progress(maintenance, status)
            && maintenance.finalizers().any(|name| name == FINALIZER)
    }
}
