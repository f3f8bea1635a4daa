//! From API objects to the ledger's rows and back.

use std::sync::Arc;

use godwit_apimachinery::Stored;
use godwit_apimachinery::object::{name, namespace, uid};
use godwit_ledger::{NewObject, Object, ObjectKey};
use serde_json::{Map, Value};

/// Metadata that has columns of its own in the ledger.
const COLUMNS: [&str; 4] = ["name", "namespace", "uid", "resourceVersion"];
/// Top-level fields that are no part of the body.
const NOT_BODY: [&str; 4] = ["apiVersion", "kind", "metadata", "status"];

/// The API's form of a stored object.
pub(crate) fn stored(object: Object) -> Arc<Stored> {
    let Object {
        key,
        uid,
        metadata,
        body,
        status,
        revision,
    } = object;
    let mut fields = into_map(body);
    let mut metadata = into_map(metadata);
    metadata.insert("name".to_owned(), Value::String(key.name));
    metadata.insert("uid".to_owned(), Value::String(uid));
    if !key.namespace.is_empty() {
        metadata.insert("namespace".to_owned(), Value::String(key.namespace));
    }
    fields.insert("metadata".to_owned(), Value::Object(metadata));
    if let Some(status) = status {
        fields.insert("status".to_owned(), status);
    }
    Stored::packed(Value::Object(fields), revision.0)
}

/// An object as the cache keeps it.
pub(crate) struct Kept {
    pub(crate) resource: String,
    pub(crate) stored: Arc<Stored>,
}

impl From<Object> for Kept {
    fn from(object: Object) -> Self {
        Self {
            resource: object.key.resource.clone(),
            stored: stored(object),
        }
    }
}

/// Where an API object is kept.
pub(crate) fn key(resource: &str, object: &Value) -> ObjectKey {
    ObjectKey::new(resource, namespace(object), name(object))
}

/// The ledger's form of an object to be created.
pub(crate) fn new_object(resource: &str, object: Value) -> NewObject {
    let key = key(resource, &object);
    let uid = Some(uid(&object).to_owned()).filter(|uid| !uid.is_empty());
    let parts = Parts::of(object);
    NewObject {
        key,
        uid,
        metadata: parts.metadata,
        body: parts.body,
        status: parts.status,
    }
}

/// Puts an API object's content over the row it was read from.
pub(crate) fn replace(row: &mut Object, object: Value) {
    let parts = Parts::of(object);
    row.metadata = parts.metadata;
    row.body = parts.body;
    row.status = parts.status;
}

struct Parts {
    metadata: Value,
    body: Value,
    status: Option<Value>,
}

impl Parts {
    fn of(object: Value) -> Self {
        let mut fields = into_map(object);
        let mut metadata = into_map(fields.remove("metadata").unwrap_or_default());
        let status = fields.remove("status").filter(|status| !status.is_null());
        for column in COLUMNS {
            metadata.remove(column);
        }
        for field in NOT_BODY {
            fields.remove(field);
        }
        Self {
            metadata: Value::Object(metadata),
            body: Value::Object(fields),
            status,
        }
    }
}

fn into_map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Map::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_model::Revision;
    use serde_json::json;

    #[test]
    fn an_object_comes_back_as_it_went() {
        let object = json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {
                "name": "a", "namespace": "default", "uid": "u", "labels": {"k": "v"},
            },
            "spec": {"domain": {}}, "status": {"phase": "Running"},
        });
        let new = new_object("virtualmachineinstances.kubevirt.io", object.clone());
        assert_eq!(new.metadata, json!({"labels": {"k": "v"}}));
        assert_eq!(new.body, json!({"spec": {"domain": {}}}));
        let back = stored(Object {
            key: new.key,
            uid: new.uid.unwrap(),
            metadata: new.metadata,
            body: new.body,
            status: new.status,
            revision: Revision(7),
        });
        assert_eq!(back.revision(), 7);
        assert_eq!(back.object()["spec"], object["spec"]);
        assert_eq!(back.object()["status"], object["status"]);
        assert_eq!(back.object()["metadata"]["resourceVersion"], "7");
        assert_eq!(back.object()["metadata"]["name"], "a");
    }
}
