//! API objects: what the user asked for and what is told about it.

use crate::{Ledger, LedgerError, Tx};
use godwit_model::Revision;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where an object is in the API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// Plural, and the group after a dot unless it is core: `nodes`,
    /// `virtualmachineinstances.kubevirt.io`.
    pub resource: String,
    /// Namespace; empty for a cluster-scoped object.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectKey {
    /// The key of `name` in `namespace` (empty for a cluster-scoped object).
    pub fn new(
        resource: impl Into<String>,
        namespace: impl Into<String>,
        name: impl Into<String>,
    ) -> Self {
        Self {
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// An object as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Where it is.
    pub key: ObjectKey,
    /// Its UID, a UUID in lower-case hyphenated form.
    pub uid: String,
    /// The Kubernetes metadata without `resourceVersion`, `uid`, `name` and `namespace`.
    pub metadata: Value,
    /// All top-level fields but `apiVersion`, `kind`, `metadata` and `status`.
    pub body: Value,
    /// The status; `None` when nothing was told yet.
    pub status: Option<Value>,
    /// The change that made it what it is.
    pub revision: Revision,
}

impl Object {
    /// Whether the user asked for its deletion.
    pub fn deleting(&self) -> bool {
        !self.metadata["deletionTimestamp"].is_null()
    }

    /// `spec`, or null.
    pub fn spec(&self) -> &Value {
        &self.body["spec"]
    }

    /// Value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.metadata["labels"][key].as_str()
    }

    /// Value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata["annotations"][key].as_str()
    }

    /// The finalizers that keep a deleted object.
    pub fn finalizers(&self) -> impl Iterator<Item = &str> {
        let list = self.metadata["finalizers"].as_array();
        list.into_iter().flatten().filter_map(Value::as_str)
    }
}

/// An object to be created.
#[derive(Debug, Clone, PartialEq)]
pub struct NewObject {
    /// Where it shall be.
    pub key: ObjectKey,
    /// Its UID; `None` lets the ledger choose one.
    pub uid: Option<String>,
    /// As in [`Object`]; `creationTimestamp` and `generation` are set by the ledger.
    pub metadata: Value,
    /// As in [`Object`].
    pub body: Value,
    /// As in [`Object`].
    pub status: Option<Value>,
}

impl Ledger {
    /// Every API object, events included, of one moment, and the revision of that moment.
    pub async fn snapshot(&self) -> Result<(Vec<Object>, Revision), LedgerError> {
        todo!()
    }

    /// All objects of a resource, by namespace and name.
    pub async fn list(&self, resource: &str) -> Result<Vec<Object>, LedgerError> {
        todo!()
    }

    /// One object.
    pub async fn get(&self, key: &ObjectKey) -> Result<Option<Object>, LedgerError> {
        todo!()
    }
}

impl Tx {
    /// One object, as this transaction sees it.
    pub async fn get(&mut self, key: &ObjectKey) -> Result<Option<Object>, LedgerError> {
        todo!()
    }

    /// All objects of a resource, by namespace and name.
    pub async fn list(&mut self, resource: &str) -> Result<Vec<Object>, LedgerError> {
        todo!()
    }

    /// Creates an object with `creationTimestamp` and generation 1.
    ///
    /// # Errors
    /// `AlreadyExists` when the key or the UID is taken; the transaction goes on.
    pub async fn create(&mut self, new: NewObject) -> Result<Object, LedgerError> {
        todo!()
    }

    /// Writes metadata, body and status of an object read in this transaction.
    ///
    /// Nothing is written, and the revision stays, when nothing differs. The generation grows when
    /// the body differs; `creationTimestamp` and `generation` in `object` are ignored. An object
    /// marked for deletion and without finalizers is removed.
    ///
    /// # Errors
    /// `NotFound`, or `Conflict` when `object` was not the newest; the transaction goes on.
    pub async fn put(&mut self, object: &Object) -> Result<Object, LedgerError> {
        todo!()
    }

    /// Merges the top-level keys of `patch` into the status; null removes a key.
    ///
    /// # Errors
    /// `NotFound`; the transaction goes on.
    pub async fn status_merge(
        &mut self,
        key: &ObjectKey,
        patch: Value,
    ) -> Result<Object, LedgerError> {
        todo!()
    }

    /// Removes an object, whatever its finalizers.
    ///
    /// # Errors
    /// `NotFound`; the transaction goes on.
    pub async fn remove(&mut self, key: &ObjectKey) -> Result<(), LedgerError> {
        todo!()
    }
}
