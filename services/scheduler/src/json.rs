//! Small steps on Kubernetes objects as JSON.

use godwit_ledger::{Object, ObjectRef};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// The time for people's eyes.
pub(crate) fn now() -> String {
    seconds(Timestamp::now())
}

/// A time as Kubernetes writes it: RFC 3339 with whole seconds.
pub(crate) fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The object under `key`, made when there is none; `None` when `value` is no object itself.
pub(crate) fn child<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Map<String, Value>> {
    let child = value
        .as_object_mut()?
        .entry(key)
        .or_insert_with(|| json!({}));
    if !child.is_object() {
        *child = json!({});
    }
    child.as_object_mut()
}

/// One condition of a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) kind: &'static str,
    pub(crate) status: &'static str,
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl Condition {
    /// A condition that is `True` when `holds`.
    pub(crate) fn new(kind: &'static str, holds: bool) -> Self {
        let status = if holds { "True" } else { "False" };
        Self {
            kind,
            status,
            reason: String::new(),
            message: String::new(),
        }
    }

    /// With why it is so.
    pub(crate) fn because(self, reason: &str, message: &str) -> Self {
        Self {
            reason: reason.to_owned(),
            message: message.to_owned(),
            ..self
        }
    }
}

/// Puts `condition` into `status.conditions`; its time changes only with its status.
pub(crate) fn set_condition(status: &mut Value, condition: &Condition) {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Value::Array(conditions) = &mut status["conditions"] else {
        return;
    };
    let found = conditions
        .iter_mut()
        .find(|old| old["type"] == condition.kind);
    let since = match &found {
        Some(old) if old["status"] == condition.status => old["lastTransitionTime"].clone(),
        Some(_) | None => json!(now()),
    };
    let mut new = json!({
        "type": condition.kind,
        "status": condition.status,
        "lastProbeTime": null,
        "lastTransitionTime": since,
    });
    if !condition.reason.is_empty() {
        new["reason"] = json!(condition.reason);
    }
    if !condition.message.is_empty() {
        new["message"] = json!(condition.message);
    }
    match found {
        Some(old) => *old = new,
        None => conditions.push(new),
    }
}

/// The status of a condition; `None` when there is no such condition.
pub(crate) fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = status["conditions"].as_array()?;
    let condition = conditions
        .iter()
        .find(|condition| condition["type"] == kind)?;
    condition["status"].as_str()
}

/// Takes a condition out of `status.conditions`.
pub(crate) fn clear_condition(status: &mut Value, kind: &str) {
    if let Value::Array(conditions) = &mut status["conditions"] {
        conditions.retain(|condition| condition["type"] != kind);
    }
}

/// A reference to `object` for events.
pub(crate) fn reference(object: &Object, kind: &str) -> ObjectRef {
    let api_version = if kind == "Node" {
        "v1"
    } else {
        "kubevirt.io/v1"
    };
    ObjectRef {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        resource: object.key.resource.clone(),
        namespace: object.key.namespace.clone(),
        name: object.key.name.clone(),
        uid: object.uid.clone(),
    }
}
