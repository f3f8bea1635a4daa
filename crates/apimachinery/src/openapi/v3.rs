//! OpenAPI v3: one document for each group and version.

use serde_json::{Map, Value, json};

use super::operations::{Operation, PathItem, paths};
use super::{definitions, meta};
use crate::registry::{Resource, Version};

const PREFIX: &str = "#/components/schemas/";
const ANSWER_TYPES: [&str; 2] = ["application/json", "application/yaml"];

/// The document of one group and version.
pub(crate) fn document(version: &Version, title: &str, release: &str) -> Value {
    let mut items = Map::new();
    for resource in &version.resources {
        for item in paths(resource) {
            items.insert(item.path.clone(), path_item(resource, &item));
        }
    }
    let schemas = definitions::of(std::iter::once(version));
    let schemas: Map<String, Value> = schemas
        .iter()
        .map(|(name, schema)| (name.clone(), rewrite(schema)))
        .collect();
    json!({
        "openapi": "3.0.0",
        "info": { "title": title, "version": release },
        "paths": items,
        "components": { "schemas": schemas },
    })
}

fn path_item(resource: &Resource, item: &PathItem) -> Value {
    let mut out = Map::new();
    for operation in &item.operations {
        out.insert(operation.method.to_owned(), op(resource, operation));
    }
    let parameters: Vec<Value> = item
        .parameters
        .iter()
        .map(|name| path_parameter(name))
        .collect();
    if !parameters.is_empty() {
        out.insert("parameters".to_owned(), Value::Array(parameters));
    }
    Value::Object(out)
}

fn path_parameter(name: &str) -> Value {
    json!({
        "name": name,
        "in": "path",
        "description": format!("{name} of the object"),
        "required": true,
        "schema": { "type": "string", "uniqueItems": true },
    })
}

fn op(resource: &Resource, operation: &Operation) -> Value {
    let query = |(name, kind, description): &(&str, &str, &str)| {
        json!({
            "name": name,
            "in": "query",
            "description": description,
            "schema": { "type": kind, "uniqueItems": true },
        })
    };
    let parameters: Vec<Value> = operation.query.iter().map(query).collect();
    let answer = content(&ANSWER_TYPES, &operation.answers);
    let failure = content(&ANSWER_TYPES[..1], &[meta::name("Status")]);
    let mut responses = json!({
        "200": { "description": "OK", "content": answer },
        "default": { "description": "Refused", "content": failure },
    });
    if operation.creates || operation.method == "patch" {
        responses["201"] = json!({ "description": "Created", "content": answer });
    }
    let mut out = json!({
        "tags": [resource.api_version],
        "description": operation.description,
        "operationId": operation.id,
        "parameters": parameters,
        "responses": responses,
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind":
            definitions::group_version_kind(resource, resource.kind.kind),
    });
    if let Some(body) = &operation.body {
        out["requestBody"] =
            json!({ "content": content(operation.consumes, std::slice::from_ref(body)) });
    }
    out
}

/// The same in all media types: what one of the definitions says.
fn content(types: &[&str], definitions: &[String]) -> Value {
    let reference = |name: &String| json!({ "$ref": format!("{PREFIX}{name}") });
    let schema = match definitions {
        [one] => reference(one),
        many => json!({ "anyOf": many.iter().map(reference).collect::<Vec<_>>() }),
    };
    let media = json!({ "schema": schema });
    let entries = types.iter().map(|kind| ((*kind).to_owned(), media.clone()));
    Value::Object(entries.collect())
}

/// References get their place in the document; beside a description they go into an `allOf`.
fn rewrite(schema: &Value) -> Value {
    match schema {
        Value::Object(map) => {
            let mut out: Map<String, Value> = map
                .iter()
                .map(|(key, value)| (key.clone(), rewrite(value)))
                .collect();
            let Some(target) = map.get("$ref").and_then(Value::as_str) else {
                return Value::Object(out);
            };
            out.remove("$ref");
            let reference = json!({ "$ref": format!("{PREFIX}{target}") });
            if out.is_empty() {
                return reference;
            }
            out.insert("allOf".to_owned(), json!([reference]));
            Value::Object(out)
        }
        Value::Array(list) => Value::Array(list.iter().map(rewrite).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => schema.clone(),
    }
}
