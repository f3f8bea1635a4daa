//! An object as it is kept and shared: parsed once, encoded once, read by every list and watch.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value};

/// One object at one revision. Cheap to share, never changed.
#[derive(Debug)]
pub struct Stored {
    object: Value,
    revision: u64,
    tail: OnceLock<Bytes>,
}

impl Stored {
    /// Wraps a full object and writes `revision` into its `metadata.resourceVersion`.
    ///
    /// `apiVersion` and `kind` in it are ignored: each view writes its own.
    pub fn new(mut object: Value, revision: u64) -> Arc<Self> {
        let version = Value::String(revision.to_string());
        metadata_mut(&mut object).insert("resourceVersion".to_owned(), version);
        Arc::new(Self {
            object,
            revision,
            tail: OnceLock::new(),
        })
    }

    /// The whole object in storage form.
    pub fn object(&self) -> &Value {
        &self.object
    }

    /// The revision of its last change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Its place in a list: by namespace, then by name.
    pub fn name(&self) -> ObjectName<'_> {
        ObjectName {
            namespace: namespace(&self.object),
            name: name(&self.object),
        }
    }

    /// Everything after `"kind":"...",` in the encoded object, encoded on first use.
    ///
    /// All views of an object differ in `apiVersion` and `kind` alone, so they share this.
    pub(crate) fn tail(&self) -> &Bytes {
        self.tail.get_or_init(|| {
            let mut rest = self.object.as_object().cloned().unwrap_or_default();
            rest.remove("apiVersion");
            rest.remove("kind");
            let text = Value::Object(rest).to_string();
            Bytes::from(text).slice(1..)
        })
    }
}

/// Where an object stands in lists. `namespace` is empty for cluster-scoped objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectName<'a> {
    /// Empty for cluster-scoped objects.
    pub namespace: &'a str,
    /// Unique in its namespace.
    pub name: &'a str,
}

/// `metadata.name`, or the empty string.
pub fn name(object: &Value) -> &str {
    meta_str(object, "name")
}

/// `metadata.namespace`, or the empty string.
pub fn namespace(object: &Value) -> &str {
    meta_str(object, "namespace")
}

/// `metadata.uid`, or the empty string.
pub fn uid(object: &Value) -> &str {
    meta_str(object, "uid")
}

/// A text in `metadata`, or the empty string.
pub fn meta_str<'a>(object: &'a Value, key: &str) -> &'a str {
    object["metadata"][key].as_str().unwrap_or_default()
}

/// The value of a label, if it is set.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["labels"].get(key)?.as_str()
}

/// The value of an annotation, if it is set.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object["metadata"]["annotations"].get(key)?.as_str()
}

/// The finalizers that still hold the object.
pub fn finalizers(object: &Value) -> Vec<&str> {
    let list = object["metadata"]["finalizers"].as_array();
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// Whether deletion was asked for.
pub fn is_deleting(object: &Value) -> bool {
    !meta_str(object, "deletionTimestamp").is_empty()
}

/// `metadata` as a map, made if it is missing or no object.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    child_mut(as_map(object), "metadata")
}

/// The child object under `key`, made if it is missing or no object.
pub fn child_mut<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    as_map(
        map.entry(key.to_owned())
            .or_insert_with(|| Value::Object(Map::new())),
    )
}

/// A time as Kubernetes writes it: UTC, whole seconds.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value
        .as_object_mut()
        .expect("made an object in the line above")
}
