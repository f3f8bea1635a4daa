//! Putting an applied configuration into an object, and taking out what is applied no more.

use serde_json::Value;

use super::fields::{FieldSet, element_of};
use crate::schema::{ListType, Schema};

/// Writes `config` into `live`: maps and granular lists merge, everything else is replaced.
pub(super) fn merge(live: &mut Value, config: &Value, schema: &Schema) {
    match (live, config) {
        (Value::Object(live), Value::Object(config)) if !schema.atomic_map => {
            for (key, value) in config {
                match live.get_mut(key) {
                    Some(known) => merge(known, value, schema.field(key)),
                    None => {
                        live.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Array(live), Value::Array(config)) if schema.list != ListType::Atomic => {
            for item in config {
                let element = element_of(item, schema);
                match live
                    .iter_mut()
                    .find(|known| element_of(known, schema) == element)
                {
                    Some(known) => merge(known, item, schema.item()),
                    None => live.push(item.clone()),
                }
            }
        }
        (live, config) => *live = config.clone(),
    }
}

/// Removes the fields of `gone`, unless something in or below them is in `kept`.
pub(super) fn prune(value: &mut Value, gone: &FieldSet, kept: &FieldSet, schema: &Schema) {
    let nothing = FieldSet::default();
    for (element, gone) in gone.children() {
        let kept = kept.child(element).unwrap_or(&nothing);
        let unwanted = gone.owns_itself() && kept.is_empty();
        match value {
            Value::Object(map) => {
                let Some(key) = element.strip_prefix("f:") else {
                    continue;
                };
                let Some(child) = map.get_mut(key) else {
                    continue;
                };
                let was_empty = is_empty(child);
                prune(child, gone, kept, schema.field(key));
                let emptied = !was_empty && is_empty(child) && kept.is_empty();
                if unwanted || (emptied && key != "spec") {
                    map.remove(key);
                }
            }
            Value::Array(list) => {
                let same = |item: &Value| element_of(item, schema) == *element;
                if unwanted {
                    list.retain(|item| !same(item));
                } else if let Some(item) = list.iter_mut().find(|item| same(item)) {
                    prune(item, gone, kept, schema.item());
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
