//! What can't be applied: lists whose items can't be told apart.

use std::collections::HashSet;

use serde_json::Value;

use super::fields::element_of;
use crate::schema::{ListType, Schema};
use crate::status::Status;
use crate::trail::{Trail, shortened};

/// Items of granular lists must say their keys, and be there once.
///
/// # Errors
/// 400 for the first item that doesn't, in the words of structured-merge-diff.
pub(super) fn check(config: &Value, schema: &Schema) -> Result<(), Status> {
    node(config, schema, &Trail::ROOT)
}

fn node(value: &Value, schema: &Schema, trail: &Trail<'_>) -> Result<(), Status> {
    match value {
        Value::Object(map) if !schema.atomic_map => map
            .iter()
            .try_for_each(|(key, value)| node(value, schema.field(key), &trail.key(key))),
        Value::Array(list) if schema.list != ListType::Atomic => items(list, schema, trail),
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => Ok(()),
    }
}

fn items(list: &[Value], schema: &Schema, trail: &Trail<'_>) -> Result<(), Status> {
    let refuse = |why: String| {
        let message = format!("failed to create typed patch object: .{trail}: {why}");
        Err(Status::bad_request(message))
    };
    let mut known = HashSet::new();
    for (at, item) in list.iter().enumerate() {
        if let Some(key) = missing_key(item, schema) {
            return refuse(format!(
                "element {at}: associative list with keys has an element that omits key field \
                 \"{key}\" (and doesn't have default value)"
            ));
        }
        let element = element_of(item, schema);
        if known.contains(&element) {
            return refuse(format!("duplicate entries for key {}", shortened(&element)));
        }
        known.insert(element);
        node(item, schema.item(), &trail.index(at))?;
    }
    Ok(())
}

/// A key that neither the item nor a default says.
fn missing_key<'a>(item: &Value, schema: &'a Schema) -> Option<&'a str> {
    let ListType::Map(keys) = &schema.list else {
        return None;
    };
    let told = |key: &str| {
        let default = item.is_object() && schema.item().field(key).default.is_some();
        item.get(key).is_some_and(|value| !value.is_null()) || default
    };
    keys.iter().map(String::as_str).find(|key| !told(key))
}
