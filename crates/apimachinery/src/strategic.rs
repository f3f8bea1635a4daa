//! Strategic merge patches, for built-in kinds: lists merge as their schema says.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::schema::{PatchList, Schema};
use crate::status::Status;
use crate::trail::shortened;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

/// Applies `patch` to `object`.
///
/// # Errors
/// 400 where the patch has the wrong form.
pub(crate) fn apply(object: &mut Value, patch: &Value, schema: &Schema) -> Result<(), Status> {
    let Value::Object(patch) = patch else {
        return Err(Status::bad_request("a strategic merge patch is an object"));
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    match object.as_object_mut() {
        Some(map) => merge_map(map, patch, schema),
        None => Ok(()),
    }
}

fn merge_map(
    map: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    schema: &Schema,
) -> Result<(), Status> {
    match patch.get(PATCH).and_then(Value::as_str) {
        Some("replace") => {
            *map = without_directives(patch);
            return Ok(());
        }
        Some("delete") => {
            map.clear();
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(Status::bad_request(format!("unknown patch type: {other}"))),
    }
    if let Some(Value::Array(keys)) = patch.get(RETAIN_KEYS) {
        let keys: HashSet<&str> = keys.iter().filter_map(Value::as_str).collect();
        map.retain(|key, _| keys.contains(key.as_str()));
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_PRIMITIVES) {
            if let (Some(Value::Array(list)), Value::Array(gone)) = (map.get_mut(field), value) {
                let gone: HashSet<&Value> = gone.iter().collect();
                list.retain(|item| !gone.contains(item));
            }
        } else if !key.starts_with('$') {
            merge_field(map, (key, value), schema.field(key))?;
        }
    }
    for (key, order) in patch {
        if let (Some(field), Value::Array(order)) = (key.strip_prefix(SET_ORDER), order)
            && let Some(Value::Array(list)) = map.get_mut(field)
        {
            put_in_order(list, order, &schema.field(field).patch);
        }
    }
    Ok(())
}

fn merge_field(
    map: &mut Map<String, Value>,
    field: (&String, &Value),
    schema: &Schema,
) -> Result<(), Status> {
    let (key, value) = field;
    match value {
        Value::Null => {
            map.remove(key);
        }
        Value::Object(patch) => {
            let into = map
                .entry(key.clone())
                .or_insert_with(|| Value::Object(Map::new()));
            if !into.is_object() {
                *into = Value::Object(Map::new());
            }
            if let Some(into) = into.as_object_mut() {
                merge_map(into, patch, schema)?;
            }
        }
        Value::Array(patch) => {
            let into = map
                .entry(key.clone())
                .or_insert_with(|| Value::Array(Vec::new()));
            if !into.is_array() {
                *into = Value::Array(Vec::new());
            }
            if let Some(into) = into.as_array_mut() {
                merge_list(into, patch, schema)?;
            }
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            map.insert(key.clone(), value.clone());
        }
    }
    Ok(())
}

fn merge_list(list: &mut Vec<Value>, patch: &[Value], schema: &Schema) -> Result<(), Status> {
    match &schema.patch {
        PatchList::Replace => *list = patch.to_vec(),
        PatchList::Union => {
            let mut known: HashSet<Value> = list.iter().cloned().collect();
            for item in patch {
                if known.insert(item.clone()) {
                    list.push(item.clone());
                }
            }
        }
        PatchList::MergeBy(key) => {
            if patch.iter().any(|item| item[PATCH] == "replace") {
                let items = patch.iter().filter(|item| item.get(PATCH).is_none());
                *list = items.cloned().collect();
                return Ok(());
            }
            merge_items(list, patch, (key, schema.item()))?;
        }
    }
    Ok(())
}

fn merge_items(list: &mut Vec<Value>, patch: &[Value], by: (&str, &Schema)) -> Result<(), Status> {
    let (key, schema) = by;
    // Where an item stands; what is deleted becomes `None` and goes at the end.
    let mut slots: Vec<Option<Value>> = list.drain(..).map(Some).collect();
    let mut places: HashMap<Value, Vec<usize>> = HashMap::new();
    for (at, item) in slots.iter().enumerate() {
        if let Some(id) = item.as_ref().and_then(|item| item.get(key)) {
            places.entry(id.clone()).or_default().push(at);
        }
    }
    for item in patch {
        // A key that is null, or has nulls within, is gone from what is kept, and would be added again.
        let id = item.get(key).filter(|id| is_scalar(id));
        let (Value::Object(patch), Some(id)) = (item, id) else {
            let item = item.to_string();
            let why = format!(
                "map: {} does not contain declared merge key: {key}",
                shortened(&item)
            );
            return Err(Status::bad_request(why));
        };
        if patch
            .get(PATCH)
            .is_some_and(|directive| directive == "delete")
        {
            for at in places.remove(id).unwrap_or_default() {
                slots[at] = None;
            }
            continue;
        }
        let known = places.get(id).and_then(|known| known.first());
        let known = known.and_then(|at| slots[*at].as_mut());
        if let Some(Value::Object(known)) = known {
            merge_map(known, patch, schema)?;
            continue;
        }
        let mut fresh = Map::new();
        merge_map(&mut fresh, patch, schema)?;
        places.entry(id.clone()).or_default().push(slots.len());
        slots.push(Some(Value::Object(fresh)));
    }
    list.extend(slots.into_iter().flatten());
    Ok(())
}

const fn is_scalar(value: &Value) -> bool {
    match value {
        Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

/// Items named in `order` first and in that order, then what only the server had.
fn put_in_order(list: &mut [Value], order: &[Value], by: &PatchList) {
    let id = |item: &Value| match by {
        PatchList::MergeBy(key) => item.get(key).cloned(),
        PatchList::Union | PatchList::Replace => Some(item.clone()),
    };
    let mut places = HashMap::new();
    for (at, wanted) in order.iter().enumerate() {
        places.entry(id(wanted)).or_insert(at);
    }
    list.sort_by_cached_key(|item| places.get(&id(item)).copied().unwrap_or(order.len()));
}

fn without_directives(map: &Map<String, Value>) -> Map<String, Value> {
    let plain = map.iter().filter(|(key, _)| !key.starts_with('$'));
    plain
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::compile;

    fn patched(mut object: Value, patch: &Value) -> Value {
        let schema = compile(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "taints": {"type": "array", "x-kubernetes-list-type": "atomic"},
                "finalizers": {"type": "array", "x-kubernetes-patch-strategy": "merge"}}},
            "status": {"type": "object", "properties": {
                "conditions": {"type": "array", "x-kubernetes-patch-strategy": "merge",
                    "x-kubernetes-patch-merge-key": "type"}}},
        }}));
        apply(&mut object, patch, &schema.expect("schema")).expect("patch");
        object
    }

    #[test]
    fn cordon_and_uncordon_set_and_clear_a_field() {
        let cordoned = patched(
            json!({"spec": {"x": 1}}),
            &json!({"spec": {"unschedulable": true}}),
        );
        assert_eq!(cordoned, json!({"spec": {"x": 1, "unschedulable": true}}));
        let back = patched(cordoned, &json!({"spec": {"unschedulable": null}}));
        assert_eq!(back, json!({"spec": {"x": 1}}));
    }

    #[test]
    fn conditions_merge_by_type_and_taints_are_one_value() {
        let node = json!({
            "spec": {"taints": [{"key": "a"}]},
            "status": {"conditions": [{"type": "A", "s": 1}, {"type": "B", "s": 1}]},
        });
        let patch = json!({
            "spec": {"taints": [{"key": "b"}]},
            "status": {
                "$setElementOrder/conditions": [{"type": "B"}, {"type": "A"}],
                "conditions": [
                    {"type": "B", "s": 2}, {"type": "A", "$patch": "delete"}, {"type": "C"},
                ],
            },
        });
        assert_eq!(
            patched(node, &patch),
            json!({
                "spec": {"taints": [{"key": "b"}]},
                "status": {"conditions": [{"type": "B", "s": 2}, {"type": "C"}]},
            })
        );
    }

    #[test]
    fn a_list_over_something_else_keeps_its_rules() {
        let patch =
            json!({"status": {"conditions": [{"type": "A", "$patch": "delete"}, {"type": "B"}]}});
        let expected = json!({"status": {"conditions": [{"type": "B"}]}});
        assert_eq!(
            patched(json!({"status": {"conditions": 1}}), &patch),
            expected
        );
    }

    #[test]
    fn a_map_over_something_else_brings_no_nulls() {
        let patch = json!({"spec": {"x": {"a": 1, "b": null, "c": {"d": null}}}});
        let expected = json!({"spec": {"x": {"a": 1, "c": {}}}});
        assert_eq!(patched(json!({"spec": {"x": 1}}), &patch), expected);
    }

    #[test]
    fn long_lists_merge_in_time() {
        let many: Vec<String> = (0..100_000).map(|at| at.to_string()).collect();
        let conditions: Vec<Value> = many.iter().map(|at| json!({"type": at})).collect();
        let patch = json!({
            "spec": {"$deleteFromPrimitiveList/finalizers": many, "finalizers": many},
            "status": {"$setElementOrder/conditions": conditions, "conditions": conditions},
        });
        let began = std::time::Instant::now();
        let once = patched(json!({}), &patch);
        assert_eq!(patched(once.clone(), &patch)["status"], once["status"]);
        assert!(began.elapsed() < std::time::Duration::from_secs(30));
    }

    #[test]
    fn directives_replace_retain_and_delete_primitives() {
        let object = json!({"spec": {"finalizers": ["a", "b"], "x": {"y": 1, "z": 2}, "old": 1}});
        let patch = json!({"spec": {
            "$retainKeys": ["finalizers", "x"],
            "$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"],
            "x": {"$patch": "replace", "w": 3},
        }});
        let expected = json!({"spec": {"finalizers": ["b", "c"], "x": {"w": 3}}});
        assert_eq!(patched(object, &patch), expected);
    }

    #[test]
    fn an_item_whose_key_is_null_is_refused() {
        let schema = compile(&json!({"type": "object", "properties": {
            "ports": {"type": "array", "x-kubernetes-patch-strategy": "merge",
                "x-kubernetes-patch-merge-key": "name"}}}))
        .expect("schema");
        for key in [json!(null), json!({"a": null}), json!([])] {
            let patch = json!({"ports": [{"name": key}]});
            let refused = apply(&mut json!({}), &patch, &schema);
            assert!(refused.is_err(), "{patch}");
        }
        let patch = json!({"ports": [{"name": "web"}]});
        assert!(apply(&mut json!({}), &patch, &schema).is_ok());
    }
}
