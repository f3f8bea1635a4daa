//! An object as it is kept and shared: encoded once, read by every list and watch.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Map, Value};

/// One object at one revision. Cheap to share, never changed.
///
/// As text it takes a tenth of the memory that it takes as a tree, so a cache keeps it
/// [packed](Stored::packed), and most of what is asked of many objects at once is known without
/// reading the text.
#[derive(Debug)]
pub struct Stored {
    revision: u64,
    head: Head,
    /// At least one of `text` and `object` is there.
    text: OnceLock<Bytes>,
    object: OnceLock<Value>,
}

/// What is asked of many objects at once.
#[derive(Debug)]
struct Head {
    namespace: Box<str>,
    name: Box<str>,
    uid: Box<str>,
    labels: Box<[(Box<str>, Box<str>)]>,
    owners: Box<[Box<str>]>,
    is_deleting: bool,
}

impl Stored {
    /// Wraps a full object and writes `revision` into its `metadata.resourceVersion`.
    ///
    /// `apiVersion` and `kind` in it are ignored: each view writes its own.
    pub fn new(mut object: Value, revision: u64) -> Arc<Self> {
        let version = Value::String(revision.to_string());
        metadata_mut(&mut object).insert("resourceVersion".to_owned(), version);
        Arc::new(Self {
            revision,
            head: Head::of(&object),
            text: OnceLock::new(),
            object: OnceLock::from(object),
        })
    }

    /// As [`Stored::new`], for objects that many are kept of and few are looked into.
    pub fn packed(object: Value, revision: u64) -> Arc<Self> {
        let stored = Self::new(object, revision);
        stored.text();
        let packed = Arc::into_inner(stored).map(|stored| Self {
            object: OnceLock::new(),
            ..stored
        });
        Arc::new(packed.expect("nobody else has it yet"))
    }

    /// The whole object in storage form. Read once if it is packed, and kept from then on.
    pub fn object(&self) -> &Value {
        self.object.get_or_init(|| self.read())
    }

    /// Looks at the whole object, without keeping more of it than was kept before.
    pub fn with<T>(&self, look: impl FnOnce(&Value) -> T) -> T {
        match self.object.get() {
            Some(object) => look(object),
            None => look(&self.read()),
        }
    }

    fn read(&self) -> Value {
        let text = self.text.get().map_or(&b"null"[..], AsRef::as_ref);
        serde_json::from_slice(text).expect("it was encoded here")
    }

    /// The revision of its last change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Its place in a list: by namespace, then by name.
    pub fn name(&self) -> ObjectName<'_> {
        ObjectName {
            namespace: &self.head.namespace,
            name: &self.head.name,
        }
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        &self.head.uid
    }

    /// The value of a label, if it is set.
    pub fn label(&self, key: &str) -> Option<&str> {
        let mut labels = self.head.labels.iter();
        let found = labels.find(|(name, _)| **name == *key);
        found.map(|(_, value)| &**value)
    }

    /// UIDs in `metadata.ownerReferences`.
    pub fn owners(&self) -> impl Iterator<Item = &str> {
        self.head.owners.iter().map(|uid| &**uid)
    }

    /// Whether deletion was asked for.
    pub fn is_deleting(&self) -> bool {
        self.head.is_deleting
    }

    /// The object without `apiVersion` and `kind`, encoded on first use.
    fn text(&self) -> &Bytes {
        self.text.get_or_init(|| {
            let mut rest = self.object().as_object().cloned().unwrap_or_default();
            rest.remove("apiVersion");
            rest.remove("kind");
            Bytes::from(
                Value::Object(rest)
                    .to_string()
                    .into_boxed_str()
                    .into_boxed_bytes(),
            )
        })
    }

    /// Everything after `"kind":"...",` in the encoded object.
    ///
    /// All views of an object differ in `apiVersion` and `kind` alone, so they share this.
    pub(crate) fn tail(&self) -> &[u8] {
        &self.text()[1..]
    }
}

impl Head {
    fn of(object: &Value) -> Self {
        let labels = object["metadata"]["labels"]
            .as_object()
            .into_iter()
            .flatten();
        let labels =
            labels.filter_map(|(key, value)| Some((key.as_str().into(), value.as_str()?.into())));
        let owners = object["metadata"]["ownerReferences"].as_array();
        let owners = owners.into_iter().flatten();
        Self {
            namespace: namespace(object).into(),
            name: name(object).into(),
            uid: uid(object).into(),
            labels: labels.collect(),
            owners: owners
                .filter_map(|owner| owner["uid"].as_str().map(Into::into))
                .collect(),
            is_deleting: is_deleting(object),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_packed_object_is_the_same_object() {
        let object = json!({
            "apiVersion": "v1", "kind": "Toy",
            "metadata": {
                "name": "a", "namespace": "default", "uid": "u", "labels": {"k": "v"},
                "ownerReferences": [{"uid": "o"}], "deletionTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {"text": "\u{e9}\n"},
        });
        let (whole, packed) = (Stored::new(object.clone(), 7), Stored::packed(object, 7));
        assert_eq!(packed.label("k"), Some("v"));
        assert_eq!(packed.owners().collect::<Vec<_>>(), ["o"]);
        assert!(packed.is_deleting() && packed.uid() == "u");
        assert_eq!(packed.name(), whole.name());
        assert_eq!(packed.tail(), whole.tail());
        assert_eq!(
            packed.with(|object| object["spec"]["text"].clone()),
            "\u{e9}\n"
        );
        assert!(packed.object.get().is_none());
        assert_eq!(packed.object()["metadata"], whole.object()["metadata"]);
        assert_eq!(packed.object()["metadata"]["resourceVersion"], "7");
    }
}
