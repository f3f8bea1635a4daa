//! The emptying of a node that is there: who is asked to leave, how, and what is done to the node.

use godwit_ledger::{EventKind, EventRecord, Object};
use godwit_model::NodeName;
use godwit_model::forecast::Forecaster;
use godwit_model::maintenance::{Blocker, Cause, Decision, Method, decide, spoken};
use serde_json::json;

use super::{
    EVACUATION_CONTROLLER, EVICTION_BLOCKED, Evacuation, LADDER, Lease, Plan, REQUESTS_MAX, about,
    cancels, changed, cordon, event, name, release, unmark, with_status,
};
use crate::deadline::{Deadline, OnDeadline};
use crate::json::{clear_condition, reference, set, set_condition, status_of, told};
use crate::lease::{self, Hold};
use crate::look::{EVACUATION, Guest, Situation, since};
use crate::node::{self, Cordon, Stage};
use crate::{stop, words};

/// Condition of a maintenance whose deadline has come.
pub(super) const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";

/// A node that is emptied.
pub(super) struct Drain<'a> {
    pub(super) situation: &'a Situation,
    pub(super) node: &'a NodeName,
    pub(super) forecaster: &'a Forecaster,
    pub(super) decided: Vec<(&'a Guest, Decision)>,
    /// The deadline, if it has come.
    pub(super) overdue: Option<Deadline>,
    pub(super) plan: Plan,
}

impl<'a> Drain<'a> {
    pub(super) fn new(
        situation: &'a Situation,
        node: &'a NodeName,
        forecaster: &'a Forecaster,
    ) -> Self {
        let guests = situation.guests.iter();
        let has_come =
            |deadline: &Deadline| deadline.has_come(&situation.maintenance, situation.now);
        Self {
            decided: guests
                .map(|guest| (guest, decide(&guest.machine, node)))
                .collect(),
            overdue: situation.deadline.filter(has_come),
            forecaster,
            situation,
            node,
            plan: Plan::default(),
        }
    }

    pub(super) fn plan(mut self, node: &Object) -> Plan {
        if self.has_lost() {
            return self.plan;
        }
        match lease::hold(self.situation.lease.as_ref(), node, self.situation.now) {
            Hold::Ours => {}
            Hold::Create(lease) => self.plan.lease = Some(Lease::Create(lease)),
            Hold::Take(lease) => self.plan.lease = Some(Lease::Put(lease)),
            Hold::Theirs(holder) => return self.held_up(&holder),
        }
        if told(&self.situation.maintenance, "startedAt").is_null() {
            let begin = (
                EventKind::Normal,
                "BeginMaintenance",
                "Begin a node maintenance",
            );
            self.plan
                .events
                .push(about(&self.situation.maintenance, begin));
        }
        let mut done = cordon(&self.situation.maintenance);
        self.close(node, &mut done);
        self.tell_steps();
        if self.is_aborted() {
            let why = format!("the deadline of the maintenance of node {} came", self.node);
            self.plan.cancels = cancels(self.situation, &why);
        } else {
            self.evacuate();
        }
        let blockers = self.blockers();
        let waiting = self.waiting();
        self.tell_instances();
        self.tell(&done, (blockers, waiting));
        self.plan
    }

    /// Whether the deadline came and ended the drain.
    pub(super) fn is_aborted(&self) -> bool {
        self.overdue
            .is_some_and(|deadline| deadline.action == OnDeadline::Abort)
    }

    /// Whether the maintenance failed because somebody else took the node's lease.
    fn has_lost(&self) -> bool {
        let maintenance = &self.situation.maintenance;
        let lost = told(maintenance, "errorOnLeaseCount").as_u64().unwrap_or(0);
        *told(maintenance, "phase") == "Failed" && lost > lease::LOST_MAX
    }

    /// Somebody else holds the node's lease: nothing is done to the node. Before anything was done
    /// that is waited for; later it ends the maintenance, as in medik8s' operator.
    fn held_up(mut self, holder: &str) -> Plan {
        let maintenance = &self.situation.maintenance;
        let mut status = status_of(maintenance);
        let text = format!("can't update valid lease held by different owner: {holder}");
        set(&mut status, "lastError", json!(text));
        if told(maintenance, "startedAt").is_null() {
            status.insert("phase".to_owned(), json!("Running"));
            self.plan.maintenance = super::stamped(self.situation, status);
            return self.plan;
        }
        let before = told(maintenance, "errorOnLeaseCount").as_u64().unwrap_or(0);
        let last = told(maintenance, "lastUpdate").as_str();
        let last = last.and_then(|time| time.parse().ok());
        let paused = last.is_some_and(|last| since(last, self.situation.now) < lease::LOST_PAUSE);
        if before > 0 && paused {
            return self.plan;
        }
        status.insert("errorOnLeaseCount".to_owned(), json!(before + 1));
        if before == lease::LOST_MAX {
            let text =
                format!("maintenance failed: lease could not be extended after {before} attempts");
            release(&mut self.plan, self.situation, &text);
            status.insert("phase".to_owned(), json!("Failed"));
            status.insert("lastError".to_owned(), json!(text));
            status.remove("cordon");
            self.plan.events.push(about(maintenance, super::FAILED));
        }
        self.plan.maintenance = super::stamped(self.situation, status);
        self.plan
    }

    fn close(&mut self, node: &Object, done: &mut Cordon) {
        let mut closed = node.clone();
        node::close(&mut closed, done, &self.situation.drain_taint);
        let stage = match (self.decided.is_empty(), self.is_aborted()) {
            (_, true) => Stage::Aborted,
            (true, false) => Stage::Drained,
            (false, false) => Stage::Draining {
                machines: self.decided.len(),
            },
        };
        let reason = self.situation.maintenance.spec()["reason"].as_str();
        node::tell(
            &mut closed,
            stage,
            (reason.unwrap_or_default(), self.situation.now),
        );
        self.plan.node = changed(closed, node);
    }

    fn evacuate(&mut self) {
        let mut due: Vec<usize> = (0..self.decided.len()).collect();
        due.sort_by_key(|&at| self.situation.routes.place(&self.decided[at].0.uid));
        for at in due {
            let (guest, decision) = &self.decided[at];
            let guest = *guest;
            let method = match decision {
                Decision::Migrate => Method::Live,
                Decision::PostCopy => Method::PostCopy,
                Decision::Pause => Method::Pause,
                Decision::Restart => {
                    self.restart(guest);
                    continue;
                }
                Decision::Shutdown => {
                    self.shut_down(guest);
                    continue;
                }
                Decision::CallOff => {
                    self.call_off(guest);
                    continue;
                }
                Decision::Wait(_) | Decision::Blocked(_) => continue,
            };
            let Some(instance) = self.instance(guest) else {
                continue;
            };
            if self.plan.requests.len() == REQUESTS_MAX {
                self.plan.more = true;
                return;
            }
            self.plan.requests.push(Evacuation {
                machine: guest.uid.clone(),
                instance: instance.clone(),
                method,
                target: self.situation.routes.target(&guest.uid).cloned(),
            });
        }
    }

    /// Stops a machine that will be started elsewhere, and no other: it would not run at all.
    fn restart(&mut self, guest: &Guest) {
        let Some(target) = self.situation.routes.target(&guest.uid) else {
            return;
        };
        let owner = guest.owner.as_ref();
        let Some(machine) = owner.and_then(|owner| stop::restarted(owner, guest.uid.as_str()))
        else {
            return;
        };
        self.plan.machines.push(machine);
        let note = format!(
            "Stopping the machine so that it starts on another node, {target} as things are: its \
             ladder {} says so",
            guest.machine.climb.ladder
        );
        self.tell_stop(guest, ("EvacuationRestart", &note));
    }

    fn shut_down(&mut self, guest: &Guest) {
        let Some(instance) = self.instance(guest) else {
            return;
        };
        match &guest.owner {
            Some(owner) => match stop::shut_down(owner, guest.uid.as_str()) {
                Some(machine) => self.plan.machines.push(machine),
                None => return,
            },
            None => {
                let ended = stop::ended(instance, self.situation.now);
                self.plan.instances.push(ended);
            }
        }
        let note = format!(
            "Stopping the machine, which stays stopped until it is started: its ladder {} says so",
            guest.machine.climb.ladder
        );
        self.tell_stop(guest, ("EvacuationShutdown", &note));
    }

    fn tell_stop(&mut self, guest: &Guest, (reason, note): (&str, &str)) {
        let whole = format!("{}: {note}", name(&guest.key));
        let warning = (EventKind::Warning, reason, whole.as_str());
        self.plan
            .events
            .push(about(&self.situation.maintenance, warning));
        let told = self
            .instance(guest)
            .map(|instance| controller(instance, (reason, note)));
        self.plan.events.extend(told);
    }

    fn call_off(&mut self, guest: &Guest) {
        let Some(way) = &guest.way else {
            return;
        };
        let why = format!(
            "the machine's ladder goes on to {}",
            guest.machine.climb.method()
        );
        self.plan.cancels.push((way.job.id.clone(), why));
    }

    /// Each step up a ladder is an event, of the machine and of the maintenance.
    fn tell_steps(&mut self) {
        let mut events = vec![];
        for (guest, _) in &self.decided {
            let Some(step) = guest.step else {
                continue;
            };
            let ladder = &guest.machine.climb.ladder;
            let note = format!(
                "{} {}: {} is next, rung {} of {}",
                ladder.rung(step.from).method,
                step.why.words(),
                ladder.rung(step.rung).method,
                step.rung + 1,
                ladder.last() + 1,
            );
            let whole = format!("{}: {note}", name(&guest.key));
            let warning = (EventKind::Warning, LADDER, whole.as_str());
            events.push(about(&self.situation.maintenance, warning));
            events.extend(
                self.instance(guest)
                    .map(|one| controller(one, (LADDER, &note))),
            );
        }
        self.plan.events.extend(events);
    }

    pub(super) fn instance(&self, guest: &Guest) -> Option<&'a Object> {
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

    /// Marks the instances that shall leave and those that can't, and no others.
    fn tell_instances(&mut self) {
        let situation = self.situation;
        for instance in &situation.instances {
            let mut status = status_of(instance);
            let guest = situation
                .guests
                .iter()
                .find(|guest| guest.uid.as_str() == instance.uid);
            if guest.is_none() || self.is_aborted() {
                unmark(&mut status, situation);
            }
            match self.blocker(instance) {
                Some(blocker) => {
                    let message = format!("{}; {}", blocker.message, blocker.remedy);
                    let words = (blocker.reason, message.as_str());
                    set_condition(&mut status, EVICTION_BLOCKED, words, situation.now);
                }
                None => clear_condition(&mut status, EVICTION_BLOCKED),
            }
            if let Some(guest) = guest.filter(|guest| guest.machine.climb.rung > 0) {
                let message = stands(guest);
                let words = (guest.machine.climb.method().as_str(), message.as_str());
                set_condition(&mut status, LADDER, words, situation.now);
            } else {
                clear_condition(&mut status, LADDER);
            }
            // Its own controller looks for this mark, as KubeVirt's evacuations do.
            let external = self
                .blocker(instance)
                .is_some_and(|blocker| blocker.cause == Cause::External);
            let requested = self
                .plan
                .requests
                .iter()
                .any(|request| request.instance.uid == instance.uid);
            if external || requested {
                status.insert(EVACUATION.to_owned(), json!(self.node));
            }
            self.put_status(instance, status);
        }
    }

    /// An instance that is told to end is written once, with both.
    fn put_status(
        &mut self,
        instance: &Object,
        status: serde_json::Map<String, serde_json::Value>,
    ) {
        let Some(changed) = with_status(instance, status) else {
            return;
        };
        let mut all = self.plan.instances.iter_mut();
        match all.find(|other| other.uid == instance.uid) {
            Some(other) => other.status = changed.status,
            None => self.plan.instances.push(changed),
        }
    }
}

/// Where a machine stands on its ladder, in words.
fn stands(guest: &Guest) -> String {
    let climb = &guest.machine.climb;
    let at = climb.rung.min(climb.ladder.last());
    let place = format!(
        "rung {} of {} of its ladder {}",
        at + 1,
        climb.ladder.last() + 1,
        climb.ladder
    );
    if at == climb.ladder.last() {
        return place;
    }
    let next = climb.ladder.rung(at + 1).method;
    match climb.ladder.rung(at).lasts {
        Some(time) => format!("{place}; {next} is next, after {}", spoken(time)),
        None => format!("{place}; {next} is next, after a failed attempt"),
    }
}

/// A warning about an instance by whoever evacuates it.
fn controller(instance: &Object, (reason, note): (&str, &str)) -> EventRecord {
    let regarding = reference(instance, "kubevirt.io/v1", "VirtualMachineInstance");
    EventRecord {
        component: EVACUATION_CONTROLLER.to_owned(),
        ..event(regarding, (EventKind::Warning, reason, note))
    }
}

/// What the deadline of a maintenance means, in words.
pub(super) fn deadline_words(deadline: Deadline, left: usize) -> String {
    let then = match deadline.action {
        OnDeadline::Continue => "the drain goes on",
        OnDeadline::Abort => "nobody is asked to leave any more",
        OnDeadline::Escalate => "each goes on to the next rung of its ladder",
    };
    format!(
        "{} still on the node {} after the maintenance began; {then}",
        words::machines(left),
        spoken(deadline.after)
    )
}
