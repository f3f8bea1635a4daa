//! What a maintenance tells of each machine, and when all of them will have left.
//!
//! Times are points in time, and a number that hardly changed stays as it was told before: a drain
//! in which nothing happens writes nothing.

use std::time::Duration;

use godwit_ledger::InstanceRow;
use godwit_model::forecast::{Forecast, Forecaster, Voyage};
use godwit_model::maintenance::{Decision, Method, Wait};
use godwit_model::migration::job::JobState;
use godwit_model::plan::{Copied, Leg, rest, schedule};
use godwit_model::{Bytes, MachineId, NodeName};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use crate::json::{seconds, set, told};
use crate::ladder::entry;
use crate::look::{Guest, Situation, Way, since};
use crate::words;

mod steady;

pub(crate) use steady::only_progress;
use steady::{settled, steady};

/// Machines that a status lists; an object has a megabyte. Those that left are dropped first.
const LISTED_MAX: usize = 1000;

/// What became of a machine that is not on the node any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It runs on that node.
    Moved(String),
    /// Another instance took its place, on that node; `None` while it has none.
    Restarted(Option<String>),
    /// Nothing took its place.
    Gone,
}

/// What became of the machine of an entry of the status.
pub(crate) fn fate_of(entry: &Value, rows: &[&InstanceRow]) -> (String, Fate) {
    let uid = entry["uid"].as_str().unwrap_or_default().to_owned();
    let node = |row: &InstanceRow| row.node.as_ref().map(NodeName::to_string);
    let itself = rows.iter().copied().find(|row| row.uid.as_str() == uid);
    let moved = itself.filter(|row| row.state.is_alive()).and_then(node);
    if let Some(node) = moved {
        return (uid, Fate::Moved(node));
    }
    let successor = rows.iter().copied().find(|row| {
        row.uid.as_str() != uid
            && entry["namespace"] == row.key.namespace
            && entry["name"] == row.key.name
    });
    match successor {
        Some(row) => (uid, Fate::Restarted(node(row))),
        None => (uid, Fate::Gone),
    }
}

/// Whether the machine of an entry of the status has left for good.
pub(crate) fn is_over(entry: &Value) -> bool {
    let state = entry["state"].as_str().unwrap_or_default();
    ["Moved", "Restarted", "ShutDown", "Gone"].contains(&state)
}

/// What is told of all machines.
pub(crate) struct Told {
    pub(crate) machines: Vec<Value>,
    pub(crate) forecast: Value,
}

/// What is told of the machines of `situation`, about which this was decided.
pub(crate) fn tell(
    situation: &Situation,
    decided: &[(&Guest, Decision)],
    forecaster: &Forecaster,
) -> Told {
    let trips = trips(situation, decided, forecaster);
    let ends = |takes: fn(&Forecast) -> Duration| {
        let legs: Vec<Leg<'_>> = trips.iter().map(|trip| trip.leg(takes)).collect();
        schedule(&legs, situation.pace.queue)
    };
    let likely = ends(|forecast| forecast.takes);
    let end_of = |machine: &MachineId| {
        let at = trips.iter().position(|trip| trip.machine == machine)?;
        later(situation.now, likely[at].ends)
    };
    let mut machines: Vec<Value> = decided
        .iter()
        .map(|(guest, decision)| {
            let fresh = present(situation, (guest, decision), end_of(&guest.uid));
            let known = entry(&situation.maintenance, &guest.uid);
            settled(known, fresh, situation.now)
        })
        .collect();
    machines.extend(situation.departed.iter().filter_map(|(uid, fate)| {
        let entries = told(&situation.maintenance, "machines").as_array()?;
        let entry = entries.iter().find(|entry| entry["uid"] == **uid)?;
        Some(departed(entry, fate))
    }));
    machines.truncate(LISTED_MAX);
    let whole = |slots: &[godwit_model::plan::Slot]| {
        let ours = trips.iter().zip(slots).filter(|(trip, _)| trip.ours);
        let last = ours.map(|(_, slot)| slot.ends).max()?;
        later(situation.now, last)
    };
    let span = whole(&likely).map(|end| Span {
        end,
        earliest: whole(&ends(|forecast| forecast.at_least)).unwrap_or(end),
        latest: whole(&ends(|forecast| forecast.at_most)).unwrap_or(end),
    });
    let fresh = forecast(situation, &machines, span);
    Told {
        forecast: steady(
            told(&situation.maintenance, "forecast"),
            fresh,
            situation.now,
        ),
        machines,
    }
}

/// When the last machine leaves.
struct Span {
    end: Timestamp,
    earliest: Timestamp,
    latest: Timestamp,
}

/// A migration that is under way or will be.
struct Trip<'a> {
    machine: &'a MachineId,
    /// Whether it is away from this node.
    ours: bool,
    source: NodeName,
    target: NodeName,
    forecast: Forecast,
}

impl Trip<'_> {
    fn leg(&self, takes: fn(&Forecast) -> Duration) -> Leg<'_> {
        Leg {
            source: &self.source,
            target: &self.target,
            takes: takes(&self.forecast),
        }
    }
}

/// Everybody's migrations in the order in which they get their turn: those under way, those that
/// wait in the queue, and those that this maintenance will ask for.
fn trips<'a>(
    situation: &'a Situation,
    decided: &'a [(&Guest, Decision)],
    forecaster: &Forecaster,
) -> Vec<Trip<'a>> {
    let (waiting, under_way): (Vec<_>, Vec<_>) = situation
        .traffic
        .iter()
        .partition(|(way, _)| way.job.state == JobState::Pending);
    let open = under_way.into_iter().chain(waiting);
    let mut trips: Vec<Trip<'a>> = open
        .filter_map(|(way, memory)| open_trip(situation, (way, *memory), forecaster))
        .collect();
    let mut later: Vec<&Guest> = decided
        .iter()
        .filter(|(_, decision)| leaves_later(decision))
        .map(|(guest, _)| *guest)
        .collect();
    later.sort_by_key(|guest| situation.routes.place(&guest.uid));
    let Some((node, _)) = &situation.node else {
        return trips;
    };
    trips.extend(later.into_iter().map(|guest| {
        let target = situation.routes.target(&guest.uid);
        let target = target.unwrap_or(node).clone();
        Trip {
            machine: &guest.uid,
            ours: true,
            forecast: forecaster.forecast(voyage(
                situation,
                (&guest.uid, guest.memory),
                (node, &target),
            )),
            source: node.clone(),
            target,
        }
    }));
    trips
}

fn open_trip<'a>(
    situation: &'a Situation,
    (way, memory): (&'a Way, Bytes),
    forecaster: &Forecaster,
) -> Option<Trip<'a>> {
    let source = way.job.source.clone()?;
    let planned = way
        .planned
        .clone()
        .and_then(|name| NodeName::parse(name).ok());
    // Nobody knows yet where it goes: it takes a place on its source alone.
    let target = way
        .job
        .target
        .clone()
        .or(planned)
        .unwrap_or_else(|| source.clone());
    let machine = &way.job.machine;
    let expected = forecaster.forecast(voyage(situation, (machine, memory), (&source, &target)));
    let copying = match way.job.state {
        JobState::Copying | JobState::SwitchAllowed => since(way.job.state_since, situation.now),
        JobState::Pending
        | JobState::Placing
        | JobState::Reserved
        | JobState::Preparing
        | JobState::Prepared
        | JobState::HandedOver
        | JobState::Aborting
        | JobState::NeedsFencing
        | JobState::Succeeded
        | JobState::Failed => Duration::ZERO,
    };
    let ours = situation.guests.iter().any(|guest| guest.uid == *machine);
    Some(Trip {
        machine,
        ours: ours && source.as_str() == situation.node_name,
        forecast: rest(&expected, copying, copied(&way.progress)),
        source,
        target,
    })
}

fn voyage<'a>(
    situation: &Situation,
    (machine, memory): (&'a MachineId, Bytes),
    (source, target): (&'a NodeName, &'a NodeName),
) -> Voyage<'a> {
    Voyage {
        machine,
        memory,
        source,
        target,
        bandwidth: situation.pace.bandwidth,
        downtime: situation.pace.downtime,
    }
}

/// How far a copy is; `None` before it has begun.
fn copied(progress: &Value) -> Option<Copied> {
    let number = |field: &str| progress[field].as_u64().unwrap_or(0);
    progress.is_object().then(|| Copied {
        total: number("totalBytes"),
        remaining: number("remainingBytes"),
        transferred: number("transferredBytes"),
        rate: number("bytesPerSecond"),
        dirty: number("dirtyBytesPerSecond"),
    })
}

/// Whether a machine will move by a migration that was not asked for yet.
fn leaves_later(decision: &Decision) -> bool {
    match decision {
        Decision::Migrate
        | Decision::Pause
        | Decision::Wait(Wait::BackOff { .. } | Wait::Starting) => true,
        Decision::Restart
        | Decision::Shutdown
        | Decision::CallOff
        | Decision::Blocked(_)
        | Decision::Wait(Wait::Stopping | Wait::Migrating | Wait::Arriving | Wait::Leaving) => {
            false
        }
    }
}

fn present(
    situation: &Situation,
    (guest, decision): (&Guest, &Decision),
    end: Option<Timestamp>,
) -> Value {
    let known = entry(&situation.maintenance, &guest.uid);
    let (state, message) = state(situation, guest, decision);
    let progress = guest.way.as_ref().and_then(|way| copied(&way.progress));
    let total = progress.map_or(guest.memory.0, |copied| copied.total);
    let mut map = Map::new();
    for (key, value) in [
        ("namespace", json!(guest.key.namespace)),
        ("name", json!(guest.key.name)),
        ("uid", json!(guest.uid)),
        ("state", json!(state)),
        ("method", json!(guest.machine.climb.method().as_str())),
        ("since", json!(seconds(guest.stand.since))),
        ("timedFrom", json!(guest.stand.timed_from.map(seconds))),
        (
            "targetNode",
            json!(target(situation, (guest, decision), known)),
        ),
        (
            "migration",
            json!(guest.way.as_ref().map(|way| &way.job.key.name)),
        ),
        ("message", json!(message)),
        ("totalBytes", json!(total)),
        ("expectedEnd", json!(end.map(seconds))),
    ] {
        set(&mut map, key, value);
    }
    let remaining = progress.map_or(total, |copied| copied.remaining);
    map.insert("remainingBytes".to_owned(), json!(remaining));
    Value::Object(map)
}

/// Where the machine goes: what was reserved, what is planned, or what was told before.
fn target(
    situation: &Situation,
    (guest, decision): (&Guest, &Decision),
    known: &Value,
) -> Option<String> {
    if matches!(decision, Decision::Blocked(_) | Decision::Shutdown) {
        return None;
    }
    let way = guest.way.as_ref();
    let reserved = way
        .and_then(|way| way.job.target.as_ref())
        .map(NodeName::to_string);
    let planned = situation.routes.target(&guest.uid).map(NodeName::to_string);
    let asked = way.and_then(|way| way.planned.clone());
    let before = known["targetNode"].as_str().map(str::to_owned);
    reserved.or(planned).or(asked).or(before)
}

/// One word for what a machine does, and a message where a person may want to know more.
fn state(situation: &Situation, guest: &Guest, decision: &Decision) -> (&'static str, String) {
    match decision {
        Decision::Migrate | Decision::Pause => ("Waiting", String::new()),
        Decision::Restart => match situation.routes.refusal(&guest.uid) {
            Some(why) => ("Waiting", format!("it can't start elsewhere: {why}")),
            None => ("Stopping", "it is stopped, to start elsewhere".to_owned()),
        },
        Decision::Shutdown => ("Stopping", "it is stopped, and stays so".to_owned()),
        Decision::CallOff => ("CallingOff", String::new()),
        Decision::Blocked(blocker) => (
            "Blocked",
            format!("{}; {}", blocker.message, blocker.remedy),
        ),
        Decision::Wait(wait) => match wait {
            Wait::Starting => ("Starting", String::new()),
            Wait::Stopping => ("Stopping", String::new()),
            Wait::Arriving => ("Arriving", String::new()),
            Wait::Leaving => ("Leaving", String::new()),
            Wait::BackOff { pause } => ("BackOff", words::back_off(guest, *pause)),
            Wait::Migrating => (
                guest
                    .way
                    .as_ref()
                    .map_or("Waiting", |way| stage(way.job.state)),
                guest.no_room.clone().unwrap_or_default(),
            ),
        },
    }
}

/// How far a migration is, in a word.
const fn stage(state: JobState) -> &'static str {
    match state {
        JobState::Pending => "Queued",
        JobState::Placing | JobState::Reserved | JobState::Preparing | JobState::Prepared => {
            "Preparing"
        }
        JobState::Copying | JobState::SwitchAllowed => "Copying",
        JobState::HandedOver | JobState::Succeeded => "Leaving",
        JobState::Aborting | JobState::NeedsFencing | JobState::Failed => "CallingOff",
    }
}

/// What is told of a machine that has left. Where it went stays, although it may move on.
fn departed(entry: &Value, fate: &Fate) -> Value {
    let mut fields = entry.as_object().cloned().unwrap_or_default();
    if fields.get("state") == Some(&json!("Moved")) {
        return entry.clone();
    }
    for field in ["message", "expectedEnd", "timedFrom"] {
        fields.remove(field);
    }
    let stopped = entry["method"] == Method::Shutdown.as_str();
    let (state, node) = match fate {
        Fate::Moved(node) => ("Moved", Some(node)),
        Fate::Restarted(node) => ("Restarted", node.as_ref()),
        Fate::Gone if stopped => ("ShutDown", None),
        Fate::Gone => ("Gone", None),
    };
    fields.insert("state".to_owned(), json!(state));
    fields.insert("remainingBytes".to_owned(), json!(0));
    set(&mut fields, "targetNode", json!(node));
    Value::Object(fields)
}

fn forecast(situation: &Situation, machines: &[Value], span: Option<Span>) -> Value {
    let sum = |field: &str| -> u64 {
        let all = machines
            .iter()
            .filter_map(|machine| machine[field].as_u64());
        all.fold(0, u64::saturating_add)
    };
    let mut map = Map::new();
    if let Some(span) = span {
        let left = span.end.duration_since(situation.now).as_secs().max(0);
        map.insert("end".to_owned(), json!(seconds(span.end)));
        map.insert("earliest".to_owned(), json!(seconds(span.earliest)));
        map.insert("latest".to_owned(), json!(seconds(span.latest)));
        map.insert("remainingSeconds".to_owned(), json!(left));
    }
    for (key, value) in [
        ("bytesTotal", json!(sum("totalBytes"))),
        ("bytesRemaining", json!(sum("remainingBytes"))),
        ("machinesTotal", json!(machines.len())),
        ("machinesRemaining", json!(situation.guests.len())),
    ] {
        map.insert(key.to_owned(), value);
    }
    Value::Object(map)
}

/// `now` and so much; `None` for what never ends.
fn later(now: Timestamp, wait: Duration) -> Option<Timestamp> {
    let wait = SignedDuration::try_from(wait).ok()?;
    now.checked_add(wait).ok()
}
