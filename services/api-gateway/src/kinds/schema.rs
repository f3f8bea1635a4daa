//! OpenAPI v3 schemas of our kinds, from the shorthand in `schema/*.yaml`.
//!
//! A value is a type, and after a bar what it means: `string | Name of the node.`. A mapping is an
//! object, a sequence of one item a list. Keys: `name!` is required; `$` describes the object
//! itself; `$map` gives the type of an open map's values; `$key` names the field by which list
//! items are merged. Types: `string boolean int32 int64 number quantity time any object`, and
//! `map(T)`, `list(T)`, `enum(A,B)`; a trailing `?` allows null.
//!
//! The files are part of the program; a mistake in one stops the unit tests, not the service.

use serde_json::{Map, Value, json};

/// The schema that a shorthand document stands for.
pub(crate) fn parse(document: &str) -> Value {
    let shorthand: Value =
        serde_yaml_ng::from_str(document).expect("built-in schemas are checked by unit tests");
    schema_of(&shorthand)
}

/// An object of a built-in kind whose fields are kept as they come.
pub(crate) fn open() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// Whatever it is, it is kept as it comes.
fn any() -> Value {
    json!({"x-kubernetes-preserve-unknown-fields": true})
}

fn schema_of(shorthand: &Value) -> Value {
    match shorthand {
        Value::String(text) => described(text),
        Value::Array(items) => list_of(items.first().unwrap_or(&Value::Null)),
        Value::Object(fields) => object_of(fields),
        Value::Null | Value::Bool(_) | Value::Number(_) => any(),
    }
}

fn described(text: &str) -> Value {
    let (kind, description) = text.split_once('|').unwrap_or((text, ""));
    let mut schema = named_type(kind.trim());
    if !description.trim().is_empty() {
        schema["description"] = json!(description.trim());
    }
    schema
}

fn named_type(name: &str) -> Value {
    if let Some(name) = name.strip_suffix('?') {
        let mut schema = named_type(name);
        schema["nullable"] = json!(true);
        return schema;
    }
    if let Some(inner) = argument(name, "map(") {
        return json!({"type": "object", "additionalProperties": named_type(inner)});
    }
    if let Some(inner) = argument(name, "list(") {
        return json!({"type": "array", "items": named_type(inner)});
    }
    if let Some(inner) = argument(name, "enum(") {
        let values: Vec<&str> = inner.split(',').map(str::trim).collect();
        return json!({"type": "string", "enum": values});
    }
    match name {
        "int32" => json!({"type": "integer", "format": "int32"}),
        "int64" => json!({"type": "integer", "format": "int64"}),
        "time" => json!({"type": "string", "format": "date-time"}),
        "quantity" => json!({
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": true,
        }),
        "any" => any(),
        "string" | "boolean" | "number" | "object" => json!({"type": name}),
        other => unreachable!("built-in schemas name no type {other:?}"),
    }
}

fn argument<'a>(name: &'a str, call: &str) -> Option<&'a str> {
    name.strip_prefix(call)?.strip_suffix(')')
}

fn list_of(item: &Value) -> Value {
    let mut schema = json!({"type": "array", "items": schema_of(item)});
    if let Some(key) = item.get("$key").and_then(Value::as_str) {
        schema["x-kubernetes-list-type"] = json!("map");
        schema["x-kubernetes-list-map-keys"] = json!([key]);
        schema["x-kubernetes-patch-merge-key"] = json!(key);
        schema["x-kubernetes-patch-strategy"] = json!("merge");
    }
    schema
}

fn object_of(fields: &Map<String, Value>) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    let mut schema = json!({"type": "object"});
    for (key, value) in fields {
        match key.as_str() {
            "$" => schema["description"] = value.clone(),
            "$map" => schema["additionalProperties"] = schema_of(value),
            "$key" => {}
            key => {
                let name = key.trim_end_matches('!');
                if name.len() < key.len() {
                    required.push(json!(name));
                }
                properties.insert(name.to_owned(), schema_of(value));
            }
        }
    }
    if !properties.is_empty() {
        schema["properties"] = Value::Object(properties);
    }
    if !required.is_empty() {
        schema["required"] = Value::Array(required);
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorthand_says_types_needs_and_meanings() {
        let schema = parse(
            "$: What it is.\n\
             name!: string | Who.\n\
             when: time?\n\
             size: quantity\n\
             tags: map(string)\n\
             rest: any\n\
             parts:\n- $key: name\n  name!: string\n",
        );
        assert_eq!(schema["required"], json!(["name"]));
        assert_eq!(schema["description"], "What it is.");
        assert_eq!(schema["properties"]["name"]["description"], "Who.");
        assert_eq!(schema["properties"]["when"]["nullable"], true);
        assert_eq!(
            schema["properties"]["size"]["x-kubernetes-int-or-string"],
            true
        );
        let rest = &schema["properties"]["rest"];
        assert!(rest.get("type").is_none(), "a list is something too");
        assert_eq!(
            schema["properties"]["tags"]["additionalProperties"]["type"],
            "string"
        );
        assert_eq!(
            schema["properties"]["parts"]["x-kubernetes-list-map-keys"],
            json!(["name"])
        );
    }
}
