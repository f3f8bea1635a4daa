//! Putting an applied configuration into an object, and taking out what is applied no more.

use std::collections::{HashMap, HashSet};

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
            let mut places = places(live, schema);
            for item in config {
                match places.get(&element_of(item, schema)) {
                    Some(at) => merge(&mut live[*at], item, schema.item()),
                    None => {
                        places.insert(element_of(item, schema), live.len());
                        live.push(item.clone());
                    }
                }
            }
        }
        (live, config) => *live = config.clone(),
    }
}

/// Where each element of a list stands; the first one where there are several.
fn places(list: &[Value], schema: &Schema) -> HashMap<String, usize> {
    let mut places = HashMap::new();
    for (at, item) in list.iter().enumerate() {
        places.entry(element_of(item, schema)).or_insert(at);
    }
    places
}

/// Removes the fields of `gone`, unless something in or below them is in `kept`.
pub(super) fn prune(value: &mut Value, gone: &FieldSet, kept: &FieldSet, schema: &Schema) {
    let nothing = FieldSet::default();
    if let Value::Array(list) = value {
        return prune_list(list, gone, kept, schema);
    }
    let Value::Object(map) = value else {
        return;
    };
    for (element, gone) in gone.children() {
        let kept = kept.child(element).unwrap_or(&nothing);
        let Some(key) = element.strip_prefix("f:") else {
            continue;
        };
        let Some(child) = map.get_mut(key) else {
            continue;
        };
        let was_empty = is_empty(child);
        prune(child, gone, kept, schema.field(key));
        let unwanted = gone.owns_itself() && kept.is_empty();
        let emptied = !was_empty && is_empty(child) && kept.is_empty();
        if unwanted || (emptied && key != "spec") {
            map.remove(key);
        }
    }
}

fn prune_list(list: &mut Vec<Value>, gone: &FieldSet, kept: &FieldSet, schema: &Schema) {
    let nothing = FieldSet::default();
    let places = places(list, schema);
    let mut unwanted = HashSet::new();
    for (element, gone) in gone.children() {
        let kept = kept.child(element).unwrap_or(&nothing);
        if gone.owns_itself() && kept.is_empty() {
            unwanted.insert(element.as_str());
        } else if let Some(at) = places.get(element) {
            prune(&mut list[*at], gone, kept, schema.item());
        }
    }
    if !unwanted.is_empty() {
        list.retain(|item| !unwanted.contains(element_of(item, schema).as_str()));
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
