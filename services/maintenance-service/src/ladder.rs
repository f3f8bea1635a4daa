//! Ladders as they are written in objects, and where on them the machines of a node stand.
//!
//! What is decided is in `godwit_model::maintenance`; what is recorded is in the status of the
//! maintenance, so that a drain that was interrupted goes on where it was.

use std::time::Duration;

use godwit_ledger::Object;
use godwit_model::MachineId;
use godwit_model::maintenance::{Climb, Ladder, Method, Open, Owner, Rung, climb};
use godwit_model::migration::job::JobState;
use godwit_model::run_strategy::RunStrategy;
use jiff::Timestamp;
use serde_json::Value;

use crate::deadline::OnDeadline;
use crate::json::told;
use crate::look::{Failed, Guest, Situation, Stand, Way, since};

/// Annotation of an instance with its own ladder.
const ANNOTATION: &str = "godwit.io/evacuation-ladder";

/// What the maintenance's status says of a machine; null when nothing.
pub(crate) fn entry<'a>(maintenance: &'a Object, machine: &MachineId) -> &'a Value {
    let entries = told(maintenance, "machines").as_array();
    let mut entries = entries.into_iter().flatten();
    let found = entries.find(|entry| entry["uid"] == machine.as_str());
    found.unwrap_or(&Value::Null)
}

/// Puts a guest on the rung where it was, and lets it climb. `failures` tells of its evacuations by
/// a method that failed, and of the last of them.
pub(crate) fn ascend(
    guest: &mut Guest,
    (situation, instance): (&Situation, &Object),
    failures: &dyn Fn(Method) -> (u32, Option<Failed>),
) {
    let now = situation.now;
    let known = entry(&situation.maintenance, &guest.uid);
    let rungs = &situation.maintenance.spec()["ladder"];
    let (ladder, own) = in_force(instance, guest.owner.as_ref(), rungs);
    let recorded = known["method"].as_str().and_then(Method::from_name);
    let rung = recorded.map_or(0, |method| ladder.from_method(method));
    if recorded == Some(ladder.rung(rung).method) {
        guest.stand = Stand {
            since: time(&known["since"]).unwrap_or(now),
            timed_from: time(&known["timedFrom"]),
        };
    }
    let escalates = situation.deadline.is_some_and(|deadline| {
        deadline.action == OnDeadline::Escalate
            && deadline.has_come(&situation.maintenance, now)
            && guest.stand.since < deadline.at
    });
    guest.machine.climb = Climb {
        ladder,
        own,
        rung,
        stands: guest
            .stand
            .timed_from
            .map_or(Duration::ZERO, |from| since(from, now)),
        driven: escalates,
        owner: owner(guest.owner.as_ref()),
        open: guest.way.as_ref().filter(|way| way.ours).map(open),
    };
    count_failures(guest, failures, now);
    guest.step = climb(&guest.machine);
    if let Some(step) = guest.step {
        guest.machine.climb.rung = step.rung;
        guest.stand = Stand::new(now);
        count_failures(guest, failures, now);
    }
    if guest.stand.timed_from.is_none() && counts(guest) {
        guest.stand.timed_from = Some(now);
    }
}

/// Puts a guest of which no maintenance knows on the rung that it would begin on.
pub(crate) fn begin(guest: &mut Guest, instance: &Object) {
    let (ladder, own) = in_force(instance, guest.owner.as_ref(), &Value::Null);
    guest.machine.climb = Climb {
        ladder,
        own,
        owner: owner(guest.owner.as_ref()),
        ..Climb::default()
    };
    if let Some(step) = climb(&guest.machine) {
        guest.machine.climb.rung = step.rung;
    }
}

/// The ladder of an instance, and whether it is its own: that of the instance, else that of its
/// virtual machine's template, else `rungs`, the maintenance's, else `Live`.
fn in_force(instance: &Object, owner: Option<&Object>, rungs: &Value) -> (Ladder, bool) {
    let template = owner.and_then(|owner| {
        let annotations = owner.spec().pointer("/template/metadata/annotations")?;
        annotations[ANNOTATION].as_str()
    });
    let own = [instance.annotation(ANNOTATION), template];
    let own = own.into_iter().flatten();
    // The API refuses what makes no sense; what came past it says nothing.
    if let Some(ladder) = own.filter_map(|text| Ladder::parse(text).ok()).next() {
        return (ladder, true);
    }
    let rungs: Option<Vec<Rung>> = rungs
        .as_array()
        .and_then(|rungs| rungs.iter().map(rung).collect());
    let ladder = rungs.and_then(|rungs| Ladder::new(rungs).ok());
    (ladder.unwrap_or_default(), false)
}

fn rung(value: &Value) -> Option<Rung> {
    Some(Rung {
        method: Method::from_name(value["method"].as_str()?)?,
        lasts: value["forSeconds"].as_u64().map(Duration::from_secs),
    })
}

fn owner(machine: Option<&Object>) -> Owner {
    let Some(machine) = machine.filter(|machine| !machine.deleting()) else {
        return Owner::Nobody;
    };
    let spec = machine.spec();
    let strategy = RunStrategy::read(spec["runStrategy"].as_str(), spec["running"].as_bool());
    Owner::of(strategy)
}

fn open(way: &Way) -> Open {
    Open {
        method: way.method,
        revocable: way.job.cancel.is_none() && before_switch(way.job.state),
    }
}

/// Whether a migration can be called off without harm.
const fn before_switch(state: JobState) -> bool {
    match state {
        JobState::Pending
        | JobState::Placing
        | JobState::Reserved
        | JobState::Preparing
        | JobState::Prepared
        | JobState::Copying => true,
        JobState::SwitchAllowed
        | JobState::HandedOver
        | JobState::Aborting
        | JobState::NeedsFencing
        | JobState::Succeeded
        | JobState::Failed => false,
    }
}

fn count_failures(
    guest: &mut Guest,
    failures: &dyn Fn(Method) -> (u32, Option<Failed>),
    now: Timestamp,
) {
    let (count, last) = failures(guest.machine.climb.method());
    guest.machine.failures = count;
    guest.machine.since_failure = last.as_ref().map(|failed| since(failed.at, now));
    guest.failed = last;
}

/// Whether the time of the guest's rung counts.
fn counts(guest: &Guest) -> bool {
    match &guest.way {
        _ if !guest.machine.climb.method().moves() => true,
        // One of an earlier rung is about to be called off.
        Some(way) => {
            way.method == guest.machine.climb.method() && way.job.state != JobState::Pending
        }
        None => guest.machine.failures > 0,
    }
}

fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}
