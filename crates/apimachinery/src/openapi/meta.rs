//! Schemas of what all kinds share, and references between schemas.
//!
//! Texts and names are those of k8s.io/apimachinery, so that documents merge with a cluster's.

use std::sync::OnceLock;

use serde_json::{Map, Value};

/// Prefix of the shared definitions' names.
const PREFIX: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// Definitions by full name; references in them are bare names.
pub(crate) fn definitions() -> &'static Map<String, Value> {
    static DEFINITIONS: OnceLock<Map<String, Value>> = OnceLock::new();
    DEFINITIONS
        .get_or_init(|| serde_json::from_str(include_str!("meta.json")).expect("checked by a test"))
}

/// The full name of a shared definition.
pub(super) fn name(short: &str) -> String {
    format!("{PREFIX}{short}")
}

/// The schema of `metadata` without references, for compiling.
pub(crate) fn object_meta() -> Value {
    inline(&definitions()[&name("ObjectMeta")])
}

fn inline(schema: &Value) -> Value {
    match schema {
        Value::Object(map) => {
            if let Some(Value::String(target)) = map.get("$ref") {
                return inline(&definitions()[target]);
            }
            Value::Object(
                map.iter()
                    .map(|(key, value)| (key.clone(), inline(value)))
                    .collect(),
            )
        }
        Value::Array(list) => Value::Array(list.iter().map(inline).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => schema.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_definitions_compile() {
        let schema = crate::schema::compile(&object_meta()).expect("schema");
        assert!(schema.properties.contains_key("finalizers"));
    }
}
