//! Small steps on Kubernetes objects as JSON.

use godwit_ledger::{Object, ObjectRef};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// A time as Kubernetes writes it: RFC 3339 with whole seconds.
pub(crate) fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The status of `object` as a map; empty when there is none.
pub(crate) fn status_of(object: &Object) -> Map<String, Value> {
    match &object.status {
        Some(Value::Object(map)) => map.clone(),
        Some(_) | None => Map::new(),
    }
}

/// A field of the status; null when there is none.
pub(crate) fn told<'a>(object: &'a Object, field: &str) -> &'a Value {
    let status = object.status.as_ref();
    status
        .and_then(|status| status.get(field))
        .unwrap_or(&Value::Null)
}

/// Puts `value` under `key`, or takes the key out when it says nothing: null, zero or empty.
pub(crate) fn set(map: &mut Map<String, Value>, key: &str, value: Value) {
    let says_nothing = match &value {
        Value::Null => true,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Bool(_) | Value::Object(_) => false,
    };
    if says_nothing {
        map.remove(key);
    } else {
        map.insert(key.to_owned(), value);
    }
}

/// A condition of `object` by its type.
pub(crate) fn condition<'a>(object: &'a Object, kind: &str) -> Option<&'a Value> {
    let conditions = told(object, "conditions").as_array()?;
    conditions
        .iter()
        .find(|condition| condition["type"] == kind)
}

/// Makes a condition `True`; its time changes only with its status.
pub(crate) fn set_condition(
    status: &mut Map<String, Value>,
    kind: &str,
    words: (&str, &str),
    now: Timestamp,
) {
    put_condition(status, (kind, true), words, now);
}

/// Makes a condition `True` or `False`, with a reason and a message; its time changes only with its
/// status.
pub(crate) fn put_condition(
    status: &mut Map<String, Value>,
    (kind, holds): (&str, bool),
    (reason, message): (&str, &str),
    now: Timestamp,
) {
    let holds = if holds { "True" } else { "False" };
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    let Value::Array(conditions) = conditions else {
        return;
    };
    let found = conditions
        .iter_mut()
        .find(|condition| condition["type"] == kind);
    let since = match &found {
        Some(old) if old["status"] == holds => old["lastTransitionTime"].clone(),
        Some(_) | None => json!(seconds(now)),
    };
    let condition = json!({
        "type": kind,
        "status": holds,
        "reason": reason,
        "message": message,
        "lastProbeTime": null,
        "lastTransitionTime": since,
    });
    match found {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
}

/// Takes a condition out.
pub(crate) fn clear_condition(status: &mut Map<String, Value>, kind: &str) {
    let Some(Value::Array(conditions)) = status.get_mut("conditions") else {
        return;
    };
    let before = conditions.len();
    conditions.retain(|condition| condition["type"] != kind);
    if conditions.is_empty() && before > 0 {
        status.remove("conditions");
    }
}

/// A reference to `object` for events.
pub(crate) fn reference(object: &Object, api_version: &str, kind: &str) -> ObjectRef {
    ObjectRef {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        resource: object.key.resource.clone(),
        namespace: object.key.namespace.clone(),
        name: object.key.name.clone(),
        uid: object.uid.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_until_it_turns() {
        let mut status = Map::new();
        let at = |second| Timestamp::from_second(second).unwrap();
        put_condition(&mut status, ("Stale", false), ("AsPlanned", ""), at(0));
        put_condition(
            &mut status,
            ("Stale", false),
            ("AsPlanned", "still"),
            at(60),
        );
        let since =
            |status: &Map<String, Value>| status["conditions"][0]["lastTransitionTime"].clone();
        assert_eq!(since(&status), "1970-01-01T00:00:00Z");
        set_condition(&mut status, "Stale", ("InventoryChanged", ""), at(60));
        assert_eq!(since(&status), "1970-01-01T00:01:00Z");
        assert_eq!(status["conditions"].as_array().map(Vec::len), Some(1));
    }
}
