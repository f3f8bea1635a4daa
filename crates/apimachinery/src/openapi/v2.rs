//! OpenAPI v2 (Swagger): one document for everything.

use serde_json::{Map, Value, json};

use super::operations::{Operation, PathItem, paths};
use super::{definitions, meta};
use crate::registry::{Registry, Resource};

const PREFIX: &str = "#/definitions/";
const ANSWER_TYPES: [&str; 2] = ["application/json", "application/yaml"];

/// The document.
pub(crate) fn document(registry: &Registry, title: &str, release: &str) -> Value {
    let versions = || registry.groups.iter().flat_map(|group| &group.versions);
    let mut items = Map::new();
    for resource in versions().flat_map(|version| &version.resources) {
        for item in paths(resource) {
            items.insert(item.path.clone(), path_item(resource, &item));
        }
    }
    let schemas = definitions::of(versions());
    let schemas: Map<String, Value> = schemas
        .iter()
        .map(|(name, schema)| (name.clone(), simplify(schema)))
        .collect();
    json!({
        "swagger": "2.0",
        "info": { "title": title, "version": release },
        "paths": items,
        "definitions": schemas,
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
        "type": "string",
        "uniqueItems": true,
    })
}

fn op(resource: &Resource, operation: &Operation) -> Value {
    let mut parameters = Vec::new();
    if let Some(body) = &operation.body {
        parameters.push(json!({
            "name": "body",
            "in": "body",
            "required": operation.method != "delete",
            "schema": { "$ref": format!("{PREFIX}{body}") },
        }));
    }
    for (name, kind, description) in operation.query {
        parameters.push(json!({
            "name": name,
            "in": "query",
            "description": description,
            "type": kind,
            "uniqueItems": true,
        }));
    }
    let schema = match operation.answers.as_slice() {
        [one] => json!({ "$ref": format!("{PREFIX}{one}") }),
        // "One of these" is more than v2 can say.
        _ => json!({ "type": "object" }),
    };
    let mut responses = json!({
        "200": { "description": "OK", "schema": schema },
        "default": {
            "description": "Refused",
            "schema": { "$ref": format!("{PREFIX}{}", meta::name("Status")) },
        },
    });
    if operation.creates || operation.method == "patch" {
        responses["201"] = json!({ "description": "Created", "schema": schema });
    }
    json!({
        "tags": [resource.api_version],
        "description": operation.description,
        "operationId": operation.id,
        "consumes": if operation.consumes.is_empty() { &["*/*"] } else { operation.consumes },
        "produces": ANSWER_TYPES,
        "parameters": parameters,
        "responses": responses,
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind":
            definitions::group_version_kind(resource, resource.kind.kind),
    })
}

/// Leaves out what v2 can't say; what then would be said wrongly becomes "anything".
///
/// Old kubectl validates against this, and would refuse what v3 allows.
fn simplify(schema: &Value) -> Value {
    let Value::Object(map) = schema else {
        return schema.clone();
    };
    if let Some(target) = map.get("$ref").and_then(Value::as_str) {
        let mut out = json!({ "$ref": format!("{PREFIX}{target}") });
        if let Some(description) = map.get("description") {
            out["description"] = description.clone();
        }
        return out;
    }
    let mut out = Map::new();
    for (key, value) in map {
        let value = match key.as_str() {
            "properties" => {
                let fields = value.as_object().into_iter().flatten();
                fields
                    .map(|(name, field)| (name.clone(), simplify(field)))
                    .collect()
            }
            "items" | "additionalProperties" => simplify(value),
            "oneOf" | "anyOf" | "allOf" | "not" | "nullable" => continue,
            _ => value.clone(),
        };
        out.insert(key.clone(), value);
    }
    let says = |key: &str| map.get(key) == Some(&Value::Bool(true));
    if says("x-kubernetes-preserve-unknown-fields") || says("nullable") {
        out.remove("properties");
        out.remove("items");
    }
    if says("nullable") || says("x-kubernetes-int-or-string") {
        out.remove("type");
    }
    Value::Object(out)
}
