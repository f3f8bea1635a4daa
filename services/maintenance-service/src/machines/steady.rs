//! Numbers that hardly changed stay as they were told before.

use godwit_ledger::Object;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

/// A time that moved by less is not told anew.
const TIME_STEP: SignedDuration = SignedDuration::from_secs(2);
/// Nor is one that moved by less than one part in so many of what is left, or a count of bytes that
/// changed by less than that of the whole.
const PARTS: i32 = 20;

/// What is told of a machine, with numbers that hardly changed as they were told before.
pub(super) fn settled(known: &Value, mut fresh: Value, now: Timestamp) -> Value {
    let total = fresh["totalBytes"].as_u64().unwrap_or(0);
    if is_near((&known["remainingBytes"], &fresh["remainingBytes"]), total) {
        fresh["remainingBytes"] = known["remainingBytes"].clone();
    }
    if is_soon((&known["expectedEnd"], &fresh["expectedEnd"]), now) {
        fresh["expectedEnd"] = known["expectedEnd"].clone();
    }
    fresh
}

/// The forecast as it was told before, if it still is about so.
pub(super) fn steady(known: &Value, fresh: Value, now: Timestamp) -> Value {
    let total = fresh["bytesTotal"].as_u64().unwrap_or(0);
    let same = |field: &str| known[field] == fresh[field];
    let end = (&known["end"], &fresh["end"]);
    let stays = ["bytesTotal", "machinesTotal", "machinesRemaining"]
        .into_iter()
        .all(same)
        && (end.0 == end.1 || is_soon(end, now))
        && is_near((&known["bytesRemaining"], &fresh["bytesRemaining"]), total);
    match stays {
        true => known.clone(),
        false => fresh,
    }
}

/// Whether a count of bytes hardly changed; that nothing is left is news.
fn is_near((known, fresh): (&Value, &Value), total: u64) -> bool {
    match (known.as_u64(), fresh.as_u64()) {
        (Some(known), Some(fresh)) => {
            (known == 0) == (fresh == 0)
                && known
                    .abs_diff(fresh)
                    .saturating_mul(PARTS.unsigned_abs().into())
                    <= total
        }
        _ => false,
    }
}

/// Whether a point in time hardly moved.
fn is_soon((known, fresh): (&Value, &Value), now: Timestamp) -> bool {
    let time = |value: &Value| value.as_str()?.parse::<Timestamp>().ok();
    let (Some(known), Some(fresh)) = (time(known), time(fresh)) else {
        return false;
    };
    let moved = fresh.duration_since(known).abs();
    moved <= TIME_STEP || moved <= fresh.duration_since(now).abs() / PARTS
}

/// Whether a maintenance tells of a step: something else than numbers that go on by themselves.
pub(crate) fn only_progress(known: &Object, status: &Map<String, Value>) -> bool {
    let stripped = |status: Option<&Value>| -> Map<String, Value> {
        let mut map = status
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default();
        map.remove("forecast");
        let machines = map.get_mut("machines").and_then(Value::as_array_mut);
        for machine in machines.into_iter().flatten() {
            if let Value::Object(fields) = machine {
                for field in [
                    "state",
                    "remainingBytes",
                    "totalBytes",
                    "expectedEnd",
                    "migration",
                ] {
                    fields.remove(field);
                }
            }
        }
        map
    };
    stripped(known.status.as_ref()) == stripped(Some(&Value::Object(status.clone())))
}
