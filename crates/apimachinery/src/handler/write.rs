//! What creation, update and patch have in common: reading, checking, admitting, keeping.

use std::sync::Arc;

use http::HeaderMap;
use serde_json::{Map, Value, json};

use super::call::{Call, MODIFIED};
use crate::apply::{Editor, track_update};
use crate::body;
use crate::object::{self, Stored};
use crate::query::Validation;
use crate::selector::is_label_value;
use crate::status::{Cause, Status};
use crate::store::{StoreError, Update, UpdateOf};
use crate::trail::shortened;

/// Why a write did not happen.
pub(super) enum Failure {
    /// The object changed in between; the same wish may be tried on its new state.
    Raced,
    Refused(Status),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

/// Whether the fields' owners are still to be noted, or an apply did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ownership {
    Track,
    Applied,
}

/// A wish, in the form of the view.
pub(super) struct Wish {
    pub(super) object: Value,
    /// Fields that stood twice in the body.
    pub(super) duplicates: Vec<String>,
    pub(super) ownership: Ownership,
}

impl Call {
    /// Reads an object of this kind from the body.
    pub(super) fn read_object(&self, headers: &HeaderMap, bytes: &[u8]) -> Result<Wish, Status> {
        let decoded = body::decode(body::media(headers)?, bytes, self.server.limits.depth)?;
        if !decoded.value.is_object() {
            let kind = self.resource.kind.kind;
            return Err(Status::bad_request(format!("the body holds no {kind}")));
        }
        let mut object = decoded.value;
        self.check_type(&mut object)?;
        Ok(Wish {
            object,
            duplicates: decoded.duplicates,
            ownership: Ownership::Track,
        })
    }

    /// Refuses an object of another kind; fills in what is left out.
    pub(super) fn check_type(&self, object: &mut Value) -> Result<(), Status> {
        let expected = [
            ("apiVersion", self.resource.api_version.as_str()),
            ("kind", self.resource.kind.kind),
        ];
        for (key, expected) in expected {
            match object[key].as_str() {
                None | Some("") => object[key] = json!(expected),
                Some(found) if found == expected => {}
                Some(found) => {
                    return Err(Status::bad_request(format!(
                        "the {key} in the data ({found}) does not match the expected {key} \
                         ({expected})"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Prunes, defaults and validates; says what it found as the client asked to be told.
    pub(super) fn settle(&mut self, wish: &mut Wish) -> Result<(), Status> {
        let findings = self.resource.schema.settle(&mut wish.object);
        let unknown = findings
            .unknown
            .iter()
            .map(|path| format!("unknown field \"{path}\""));
        let twice = wish
            .duplicates
            .iter()
            .map(|path| format!("duplicate field \"{path}\""));
        let complaints: Vec<String> = unknown.chain(twice).collect();
        match self.query.validation {
            Validation::Strict if !complaints.is_empty() => {
                let (kind, version) = (self.resource.kind.kind, self.resource.view.version);
                return Err(Status::bad_request(format!(
                    "{kind} in version \"{version}\" cannot be handled as a {kind}: strict \
                     decoding error: {}",
                    complaints.join(", ")
                )));
            }
            Validation::Warn => self.warnings.extend(complaints),
            Validation::Strict | Validation::Ignore => {}
        }
        let mut causes = findings.causes;
        check_metadata(&wish.object, &mut causes);
        check_owners(&wish.object, &mut causes);
        if causes.is_empty() {
            return Ok(());
        }
        Err(self.invalid(object::name(&wish.object), causes))
    }

    /// From the form of the view to that of the store.
    pub(super) fn absorb(&self, object: Value) -> Value {
        let storage = &self.resource.kind.views[0];
        let mut stored = match self.resource.view.absorb {
            Some(absorb) => absorb(object),
            None => object,
        };
        stored["apiVersion"] = json!(storage.api_version());
        stored["kind"] = json!(self.resource.kind.kind);
        stored
    }

    /// Replaces `old` by what is wished for, as far as the path and the rules let it.
    pub(super) async fn replace(
        &mut self,
        old: &Arc<Stored>,
        mut wish: Wish,
    ) -> Result<Arc<Stored>, Failure> {
        let name = self.context.name.clone();
        self.check_preconditions(old, &wish.object)?;
        self.settle(&mut wish)?;
        let old_object = old.object();
        let mut new = self.absorb(wish.object);
        self.keep_system_metadata(old_object, &mut new);
        let of = self.keep_other_parts(old_object, &mut new);
        self.check_finalizers(old_object, &new)?;
        let admitted = [&self.server.admission, &self.resource.kind.admission];
        for admission in admitted.map(Arc::clone) {
            let said = admission
                .on_update(&self.context, old_object, &mut new)
                .await?;
            self.warnings.extend(said);
        }
        self.keep_system_metadata(old_object, &mut new);
        if same(old_object, &new) {
            return Ok(Arc::clone(old));
        }
        if wish.ownership == Ownership::Track && self.resource.view.absorb.is_none() {
            track_update(&self.resource.schema, old_object, &mut new, self.editor());
        }
        self.check_size(&new)?;
        let update = Update {
            object: new,
            expected: old.revision(),
            of,
        };
        let resource = &self.resource.kind.resource;
        let written = self
            .server
            .store
            .update(&self.context, resource, update)
            .await;
        if let Err(StoreError::Conflict) = written {
            return Err(Failure::Raced);
        }
        written.map_err(|error| Failure::Refused(self.store_error(error, &name)))
    }

    /// Who writes, for the record of owners.
    pub(super) fn editor(&self) -> Editor<'_> {
        Editor {
            manager: self.manager(),
            api_version: &self.resource.api_version,
            subresource: &self.context.subresource,
            has_status: self.resource.kind.has_status,
            now: self.context.now,
            updaters_max: self.server.limits.field_managers,
        }
    }

    /// Name, uid and revision in the wish must be those of the object.
    fn check_preconditions(&self, old: &Stored, new: &Value) -> Result<(), Status> {
        let name = &self.context.name;
        let found = object::name(new);
        if !found.is_empty() && found != name {
            return Err(Status::bad_request(format!(
                "the name of the object ({found}) does not match the name on the URL ({name})"
            )));
        }
        self.check_namespace(new)?;
        let (uid, old_uid) = (object::uid(new), object::uid(old.object()));
        if !uid.is_empty() && uid != old_uid {
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {old_uid}"
            );
            return Err(self.conflict(name, &why));
        }
        let revision = object::meta_str(new, "resourceVersion");
        if !revision.is_empty() && revision != old.revision().to_string() {
            return Err(self.conflict(name, MODIFIED));
        }
        Ok(())
    }

    /// The namespace in an object must be that of the path.
    pub(super) fn check_namespace(&self, object: &Value) -> Result<(), Status> {
        let found = object::namespace(object);
        let place = self.stored_namespace().unwrap_or_default();
        if found.is_empty() || found == place {
            return Ok(());
        }
        Err(Status::bad_request(format!(
            "the namespace of the provided object does not match the namespace sent on the \
             request ({found} and \"{place}\")"
        )))
    }

    /// What only the system writes stays as it is.
    fn keep_system_metadata(&self, old: &Value, new: &mut Value) {
        let metadata = object::metadata_mut(new);
        for key in SYSTEM_METADATA {
            match old["metadata"].get(key) {
                Some(value) => metadata.insert(key.to_owned(), value.clone()),
                None => metadata.remove(key),
            };
        }
    }

    /// What is not written through this path stays as it is.
    fn keep_other_parts(&self, old: &Value, new: &mut Value) -> UpdateOf {
        if self.context.subresource == "status" {
            let mut kept = old.clone();
            copy("status", new, &mut kept);
            if let Some(fields) = new["metadata"].get("managedFields") {
                kept["metadata"]["managedFields"] = fields.clone();
            }
            *new = kept;
            return UpdateOf::Status;
        }
        if self.resource.kind.has_status {
            copy("status", old, new);
        }
        UpdateOf::Main
    }

    /// An object on its way out takes no new finalizers.
    fn check_finalizers(&self, old: &Value, new: &Value) -> Result<(), Status> {
        if !object::is_deleting(old) {
            return Ok(());
        }
        let known = object::finalizers(old);
        let fresh: Vec<&str> = object::finalizers(new)
            .into_iter()
            .filter(|name| !known.contains(name))
            .collect();
        if fresh.is_empty() {
            return Ok(());
        }
        let why = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers \
             {fresh:?}"
        );
        Err(self.invalid(
            &self.context.name,
            vec![Cause::forbidden("metadata.finalizers", &why)],
        ))
    }

    pub(super) fn check_size(&self, object: &Value) -> Result<(), Status> {
        let limit = self.server.limits.object_bytes;
        let size = object.to_string().len();
        if size <= limit {
            return Ok(());
        }
        Err(Status::too_large(format!(
            "the object has {size} bytes, the limit is {limit}"
        )))
    }
}

/// Written by the system alone. The last two are here because a client may send old ones.
const SYSTEM_METADATA: [&str; 9] = [
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generateName",
    "generation",
    "resourceVersion",
];

/// Longest all annotations of an object may be together, in bytes.
const ANNOTATIONS_BYTES_MAX: usize = 256 << 10;

/// Most causes in one answer; more would help nobody.
const CAUSES_MAX: usize = 50;

/// Labels must be fit for selectors, and annotations must not be a data store.
fn check_metadata(object: &Value, causes: &mut Vec<Cause>) {
    let metadata = &object["metadata"];
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        if causes.len() >= CAUSES_MAX {
            break;
        }
        let text = value.as_str().unwrap_or_default();
        if !is_label_value(text) {
            let why = "a valid label must be an empty string or consist of alphanumeric \
                characters, '-', '_' or '.', must start and end with an alphanumeric character, \
                and be no more than 63 characters";
            causes.push(Cause::invalid("metadata.labels", value, why));
        }
        let short = key.rsplit('/').next().unwrap_or_default();
        if short.is_empty() || !is_label_value(short) {
            let why = "name part of a label key must consist of alphanumeric characters, '-', \
                '_' or '.', and must start and end with an alphanumeric character";
            let key = json!(shortened(key));
            causes.push(Cause::invalid("metadata.labels", &key, why));
        }
    }
    let annotations = metadata["annotations"].as_object().into_iter().flatten();
    let size = |(key, value): (&String, &Value)| {
        key.len() + value.as_str().map(str::len).unwrap_or_default()
    };
    if annotations.map(size).sum::<usize>() > ANNOTATIONS_BYTES_MAX {
        causes.push(Cause {
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {ANNOTATIONS_BYTES_MAX} bytes"),
            field: "metadata.annotations".to_owned(),
        });
    }
}

/// What the collector goes by must be whole.
fn check_owners(object: &Value, causes: &mut Vec<Cause>) {
    let owners = object["metadata"]["ownerReferences"].as_array();
    let owners = owners.map_or(&[][..], Vec::as_slice);
    for (at, owner) in owners.iter().enumerate() {
        for (key, why) in OWNER_KEYS {
            let text = owner[key].as_str().unwrap_or_default();
            if text.is_empty() {
                let field = format!("metadata.ownerReferences[{at}].{key}");
                causes.push(Cause::invalid(&field, &json!(text), why));
            }
        }
    }
    let mut controllers = owners.iter().filter(|owner| owner["controller"] == true);
    if let (Some(first), Some(second)) = (controllers.next(), controllers.next()) {
        let why = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for \
             {}/{} and {}/{}",
            text(first, "kind"),
            text(first, "name"),
            text(second, "kind"),
            text(second, "name"),
        );
        causes.push(Cause::invalid(
            "metadata.ownerReferences",
            &json!(owners),
            &why,
        ));
    }
}

/// What each owner reference must say, and how its absence is told.
const OWNER_KEYS: [(&str, &str); 4] = [
    ("apiVersion", "version must not be empty"),
    ("kind", "must not be empty"),
    ("name", "must not be empty"),
    ("uid", "must not be empty"),
];

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Copies or removes one top-level field.
fn copy(key: &str, from: &Value, to: &mut Value) {
    let Some(map) = to.as_object_mut() else {
        return;
    };
    match from.get(key) {
        Some(value) => map.insert(key.to_owned(), value.clone()),
        None => map.remove(key),
    };
}

/// Whether nothing but the spelling of emptiness differs.
fn same(old: &Value, new: &Value) -> bool {
    let strip = |object: &Value| {
        let mut object = object.clone();
        for key in ["apiVersion", "kind"] {
            object.as_object_mut().map(|map| map.remove(key));
        }
        for key in ["labels", "annotations", "finalizers", "ownerReferences"] {
            let metadata = object::metadata_mut(&mut object);
            let empty = match metadata.get(key) {
                Some(Value::Object(map)) => map.is_empty(),
                Some(Value::Array(list)) => list.is_empty(),
                _ => false,
            };
            if empty {
                metadata.remove(key);
            }
        }
        if object
            .get("status")
            .and_then(Value::as_object)
            .is_some_and(Map::is_empty)
        {
            object.as_object_mut().map(|map| map.remove("status"));
        }
        object
    };
    strip(old) == strip(new)
}
