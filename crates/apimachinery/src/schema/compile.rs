//! From OpenAPI v3 to [`Schema`].

use serde_json::Value;

use super::{ListType, PatchList, Schema, Type};

/// Deepest schema that is read.
const DEPTH_MAX: usize = 64;

/// Compiles a schema.
///
/// # Errors
/// Names the path of what isn't understood.
pub(crate) fn compile(schema: &Value) -> Result<Schema, String> {
    node(schema, "", 0)
}

fn node(schema: &Value, path: &str, depth: usize) -> Result<Schema, String> {
    if depth > DEPTH_MAX {
        return Err(format!("schema at {path:?} is nested too deeply"));
    }
    if schema.get("$ref").is_some() {
        return Err(format!("schema at {path:?} has a $ref"));
    }
    let mut out = Schema {
        of: type_of(schema, path)?,
        preserve: is_true(schema, "x-kubernetes-preserve-unknown-fields"),
        nullable: is_true(schema, "nullable"),
        required: texts(&schema["required"]),
        one_of_values: schema["enum"].as_array().cloned().unwrap_or_default(),
        minimum: schema["minimum"].as_f64(),
        maximum: schema["maximum"].as_f64(),
        min_length: schema["minLength"].as_u64(),
        max_length: schema["maxLength"].as_u64(),
        min_items: schema["minItems"].as_u64(),
        max_items: schema["maxItems"].as_u64(),
        date_time: schema["format"] == "date-time",
        default: schema.get("default").cloned(),
        list: list_type(schema, path)?,
        atomic_map: schema["x-kubernetes-map-type"] == "atomic",
        patch: patch_list(schema),
        ..Schema::default()
    };
    for (key, child) in schema["properties"].as_object().into_iter().flatten() {
        let child = node(child, &format!("{path}.{key}"), depth + 1)?;
        out.properties.insert(key.clone(), child);
    }
    let additional = &schema["additionalProperties"];
    if additional == true {
        out.additional = Some(Box::new(Schema::any().clone()));
    } else if additional.is_object() {
        out.additional = Some(Box::new(node(additional, &format!("{path}.*"), depth + 1)?));
    }
    if let Some(items) = schema.get("items") {
        out.items = Some(Box::new(node(items, &format!("{path}[]"), depth + 1)?));
    }
    Ok(out)
}

fn type_of(schema: &Value, path: &str) -> Result<Type, String> {
    let int_or_string = is_true(schema, "x-kubernetes-int-or-string");
    if int_or_string || schema["format"] == "int-or-string" {
        return Ok(Type::IntOrString);
    }
    match schema["type"].as_str() {
        None => Ok(Type::Any),
        Some("object") => Ok(Type::Object),
        Some("array") => Ok(Type::Array),
        Some("string") => Ok(Type::String),
        Some("integer") => Ok(Type::Integer),
        Some("number") => Ok(Type::Number),
        Some("boolean") => Ok(Type::Boolean),
        Some(other) => Err(format!("schema at {path:?} has unknown type {other:?}")),
    }
}

fn list_type(schema: &Value, path: &str) -> Result<ListType, String> {
    match schema["x-kubernetes-list-type"].as_str() {
        None | Some("atomic") => Ok(ListType::Atomic),
        Some("set") => Ok(ListType::Set),
        Some("map") => {
            let keys = texts(&schema["x-kubernetes-list-map-keys"]);
            if keys.is_empty() {
                return Err(format!("schema at {path:?} is a map list without keys"));
            }
            Ok(ListType::Map(keys))
        }
        Some(other) => Err(format!(
            "schema at {path:?} has unknown list type {other:?}"
        )),
    }
}

fn patch_list(schema: &Value) -> PatchList {
    let strategy = schema["x-kubernetes-patch-strategy"]
        .as_str()
        .unwrap_or_default();
    let merges = strategy.split(',').any(|word| word == "merge");
    match schema["x-kubernetes-patch-merge-key"].as_str() {
        Some(key) if merges => PatchList::MergeBy(key.to_owned()),
        None if merges => PatchList::Union,
        _ => PatchList::Replace,
    }
}

fn is_true(schema: &Value, key: &str) -> bool {
    schema[key] == true
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}
