//! Strategic merge patches, for built-in kinds: lists merge as their schema says.

use serde_json::{Map, Value};

use crate::schema::{PatchList, Schema};
use crate::status::Status;

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
        map.retain(|key, _| keys.iter().any(|kept| kept == key));
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_PRIMITIVES) {
            if let (Some(Value::Array(list)), Value::Array(gone)) = (map.get_mut(field), value) {
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
            match into.as_object_mut() {
                Some(into) => merge_map(into, patch, schema)?,
                None => *into = Value::Object(without_directives(patch)),
            }
        }
        Value::Array(patch) => {
            let into = map
                .entry(key.clone())
                .or_insert_with(|| Value::Array(Vec::new()));
            match into.as_array_mut() {
                Some(into) => merge_list(into, patch, schema)?,
                None => *into = value.clone(),
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
            for item in patch {
                if !list.contains(item) {
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
            for item in patch {
                merge_item(list, item, (key, schema.item()))?;
            }
        }
    }
    Ok(())
}

fn merge_item(list: &mut Vec<Value>, item: &Value, by: (&str, &Schema)) -> Result<(), Status> {
    let (key, schema) = by;
    let (Value::Object(patch), Some(id)) = (item, item.get(key)) else {
        let why = format!("map: {item} does not contain declared merge key: {key}");
        return Err(Status::bad_request(why));
    };
    if patch
        .get(PATCH)
        .is_some_and(|directive| directive == "delete")
    {
        list.retain(|known| known.get(key) != Some(id));
        return Ok(());
    }
    match list.iter_mut().find(|known| known.get(key) == Some(id)) {
        Some(Value::Object(known)) => merge_map(known, patch, schema)?,
        _ => {
            let mut fresh = Map::new();
            merge_map(&mut fresh, patch, schema)?;
            list.push(Value::Object(fresh));
        }
    }
    Ok(())
}

/// Items named in `order` first and in that order, then what only the server had.
fn put_in_order(list: &mut [Value], order: &[Value], by: &PatchList) {
    let place = |item: &Value| {
        let same = |wanted: &Value| match by {
            PatchList::MergeBy(key) => wanted.get(key) == item.get(key),
            PatchList::Union | PatchList::Replace => wanted == item,
        };
        order.iter().position(same).unwrap_or(order.len())
    };
    list.sort_by_key(place);
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
}
