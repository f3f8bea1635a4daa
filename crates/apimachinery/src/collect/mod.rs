//! Deletes what has no owner any more, and what a namespace on its way out still holds.
//!
//! Looks at all objects again and again; nothing is remembered between two looks, so any number of
//! replicas may do it, and each step is guarded by the revision of the object that it is about.

mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::{debug, warn};

use crate::admission::DeleteOptions;
use crate::context::{RequestContext, UserInfo};
use crate::handler;
use crate::kind::Verb;
use crate::object::{self, Stored};
use crate::path::NAMESPACES;
use crate::registry::Resource;
use crate::server::ApiServer;
use crate::status::Status;
use crate::store::{ListAt, StoreError, Update, UpdateOf};
use plan::{Entry, Step, World, owners, uid};
pub(crate) use plan::{FOREGROUND, ORPHAN};

/// Shortest pause between two looks.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// Pause after a look that left something undone.
const PAUSE_TROUBLED: Duration = Duration::from_secs(2);
/// A look takes at most this part of the time.
const SHARE: u32 = 50;
/// Who deletes, in kube-controller-manager's words.
const COLLECTOR: &str = "system:serviceaccount:kube-system:generic-garbage-collector";

impl ApiServer {
    /// Collects for ever. Without it, deletions that wait for dependents, and namespaces, wait on.
    pub async fn collect(self: Arc<Self>) {
        let mut seen = None;
        loop {
            let began = Instant::now();
            let troubled = match self.look(&mut seen).await {
                Ok(undone) => undone > 0,
                Err(error) => {
                    debug!(%error, "can't collect now");
                    true
                }
            };
            let mut pause = PAUSE_MIN.max(began.elapsed() * SHARE);
            if troubled {
                seen = None;
                pause = pause.max(PAUSE_TROUBLED);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Takes every step that is due, and answers how many could not be taken.
    async fn look(self: &Arc<Self>, seen: &mut Option<u64>) -> Result<usize, StoreError> {
        let (entries, revision) = self.everything().await?;
        if *seen == Some(revision) {
            return Ok(0);
        }
        let mut undone = 0;
        for step in World::new(&entries).steps() {
            if let Err(status) = self.carry_out(&step).await {
                undone += 1;
                warn!(error = status.message(), "can't collect an object");
            }
        }
        *seen = Some(revision);
        Ok(undone)
    }

    /// All objects that can be deleted. They may be of different revisions; the newest is answered.
    async fn everything(&self) -> Result<(Vec<Entry>, u64), StoreError> {
        let mut entries = Vec::new();
        let mut newest = 0;
        for resource in self.registry.stored() {
            if !resource.kind.verbs.contains(&Verb::Delete) {
                continue;
            }
            let name = &resource.kind.resource;
            let listed = self.store.list(name, None, ListAt::NotOlderThan(0)).await?;
            newest = newest.max(listed.revision);
            let relevant = listed.items.iter().map(|stored| Entry {
                resource: Arc::clone(resource),
                stored: Arc::clone(stored),
            });
            entries.extend(relevant);
        }
        Ok((entries, newest))
    }

    async fn carry_out(self: &Arc<Self>, step: &Step<'_>) -> Result<(), Status> {
        match step {
            Step::Delete {
                entry,
                gone,
                policy,
            } => match self.are_gone(entry, gone).await? {
                true => self.delete(entry, policy).await,
                false => Ok(()),
            },
            Step::Disown {
                entry,
                owners,
                gone,
            } => match self.are_gone(entry, gone).await? {
                true => self.disown(entry, owners).await,
                false => Ok(()),
            },
            Step::Release { entry, finalizer } => self.release(entry, finalizer).await,
            Step::Namespace { entry, left } if left.is_empty() => {
                let context = context(entry, Verb::Delete);
                let removed = self.store.remove(&context, NAMESPACES, &entry.stored).await;
                settled(removed)
            }
            Step::Namespace { entry, left } => self.tell(entry, left).await,
        }
    }

    /// Whether none of these owners is there. Lists of two kinds may be of two moments.
    async fn are_gone(&self, entry: &Entry, gone: &[&Value]) -> Result<bool, Status> {
        for owner in gone {
            let Some(kind) = self.registry.by_kind(group(owner), text(owner, "kind")) else {
                // A kind that isn't served here: nobody can say that it is gone.
                return Ok(false);
            };
            if kind.namespaced && !entry.resource.kind.namespaced {
                return Ok(false);
            }
            let namespace = match kind.namespaced {
                true => entry.stored.name().namespace,
                false => "",
            };
            let name = text(owner, "name");
            let found = self.store.get(&kind.resource, namespace, name).await;
            let found = found.map_err(|error| refusal(&error))?;
            if found.is_some_and(|found| found.uid() == uid(owner)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Deletes an object in the server's own name, if it still is as given.
    ///
    /// # Errors
    /// What a client would be told, unless it was changed or is gone.
    pub async fn discard(
        self: &Arc<Self>,
        resource: &str,
        stored: &Arc<Stored>,
    ) -> Result<(), Status> {
        let mut known = self.registry.stored().iter();
        let Some(found) = known.find(|known| known.kind.resource == resource) else {
            return Err(Status::internal(format!("{resource} is not served")));
        };
        let entry = Entry {
            resource: Arc::clone(found),
            stored: Arc::clone(stored),
        };
        self.delete(&entry, "").await
    }

    async fn delete(self: &Arc<Self>, entry: &Entry, policy: &str) -> Result<(), Status> {
        let options = DeleteOptions {
            propagation_policy: policy.to_owned(),
            precondition_uid: Some(entry.stored.uid().to_owned()),
            precondition_revision: Some(entry.stored.revision().to_string()),
            ..DeleteOptions::default()
        };
        let context = context(entry, Verb::Delete);
        debug!(resource = context.resource, name = context.name, "collect");
        let deleted = handler::delete_one(self, &entry.resource, context, &options).await;
        match deleted {
            Err(status) if is_race(&status) => Ok(()),
            deleted => deleted,
        }
    }

    async fn disown(&self, entry: &Entry, uids: &[&str]) -> Result<(), Status> {
        let mut object = entry.object().clone();
        let list = &mut object["metadata"]["ownerReferences"];
        if let Some(list) = list.as_array_mut() {
            list.retain(|owner| !uids.contains(&uid(owner)));
        }
        if owners(&object).next().is_none() {
            object::metadata_mut(&mut object).remove("ownerReferences");
        }
        self.update(entry, object, UpdateOf::Main).await
    }

    async fn release(&self, entry: &Entry, finalizer: &str) -> Result<(), Status> {
        let mut object = entry.object().clone();
        let list = object.pointer_mut("/metadata/finalizers");
        if let Some(list) = list.and_then(Value::as_array_mut) {
            list.retain(|held| held != finalizer);
        }
        self.update(entry, object, UpdateOf::DeletionMark).await
    }

    /// Says in the namespace what it waits for, in kube-controller-manager's words.
    async fn tell(&self, entry: &Entry, left: &[&Entry]) -> Result<(), Status> {
        let conditions = remaining(left, entry.object(), Timestamp::now());
        if entry.object()["status"]["conditions"] == conditions {
            return Ok(());
        }
        let mut object = entry.object().clone();
        object["status"]["conditions"] = conditions;
        self.update(entry, object, UpdateOf::Status).await
    }

    async fn update(&self, entry: &Entry, object: Value, of: UpdateOf) -> Result<(), Status> {
        let update = Update {
            object,
            expected: entry.stored.revision(),
            of,
        };
        let context = context(entry, Verb::Update);
        let resource = &entry.resource.kind.resource;
        let updated = self.store.update(&context, resource, update).await;
        settled(updated.map(drop))
    }
}

/// What was changed or removed by somebody else is looked at again.
fn settled(done: Result<(), StoreError>) -> Result<(), Status> {
    match done {
        Ok(()) | Err(StoreError::Conflict | StoreError::NotFound) => Ok(()),
        // Something came into the namespace at the last moment.
        Err(StoreError::Refused(status)) if is_race(&status) => Ok(()),
        Err(error) => Err(refusal(&error)),
    }
}

fn is_race(status: &Status) -> bool {
    matches!(status.code(), StatusCode::NOT_FOUND | StatusCode::CONFLICT)
}

fn refusal(error: &StoreError) -> Status {
    match error {
        StoreError::Refused(status) => status.clone(),
        StoreError::AlreadyExists
        | StoreError::NotFound
        | StoreError::Conflict
        | StoreError::Expired { .. }
        | StoreError::TooNew { .. }
        | StoreError::Unavailable(_)
        | StoreError::Unknown(_) => Status::unavailable(error.to_string()),
    }
}

fn context(entry: &Entry, verb: Verb) -> RequestContext {
    let Resource { kind, view, .. } = &*entry.resource;
    RequestContext {
        user: UserInfo {
            name: COLLECTOR.to_owned(),
            groups: vec!["system:serviceaccounts".to_owned()],
            ..UserInfo::default()
        },
        verb,
        group: view.group.to_owned(),
        version: view.version.to_owned(),
        resource: kind.plural.to_owned(),
        subresource: String::new(),
        namespace: entry.stored.name().namespace.to_owned(),
        name: entry.stored.name().name.to_owned(),
        dry_run: false,
        now: Timestamp::now(),
        user_agent: String::new(),
    }
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// The group in an owner's `apiVersion`.
fn group(owner: &Value) -> &str {
    text(owner, "apiVersion")
        .split_once('/')
        .map_or("", |(group, _)| group)
}

/// Conditions of a namespace that isn't empty yet; times stay while the words do.
fn remaining(left: &[&Entry], namespace: &Value, now: Timestamp) -> Value {
    let mut kinds = BTreeMap::new();
    let mut finalizers = BTreeMap::new();
    for entry in left {
        let Resource { kind, view, .. } = &*entry.resource;
        let name = format!("{}.{}", kind.plural, view.group);
        *kinds.entry(name).or_insert(0) += 1;
        for finalizer in object::finalizers(entry.object()) {
            *finalizers.entry(finalizer.to_owned()).or_insert(0) += 1;
        }
    }
    let list = |counts: &BTreeMap<String, i32>, verb: &str| {
        let texts = counts
            .iter()
            .map(|(name, count)| format!("{name} {verb} {count} resource instances"));
        texts.collect::<Vec<_>>().join(", ")
    };
    let some = format!("Some resources are remaining: {}", list(&kinds, "has"));
    let held = format!(
        "Some content in the namespace has finalizers remaining: {}",
        list(&finalizers, "in")
    );
    let held = match finalizers.is_empty() {
        true => ("False", "ContentHasNoFinalizers", String::new()),
        false => ("True", "SomeFinalizersRemain", held),
    };
    let told = [
        (
            "NamespaceContentRemaining",
            ("True", "SomeResourcesRemain", some),
        ),
        ("NamespaceFinalizersRemaining", held),
    ];
    let old = namespace["status"]["conditions"].as_array();
    let conditions = told.into_iter().map(|(kind, (status, reason, message))| {
        let mut condition = json!({
            "type": kind, "status": status, "reason": reason, "message": message,
        });
        let before = old.into_iter().flatten().find(|old| old["type"] == kind);
        let since = before.filter(|old| old["status"] == status);
        condition["lastTransitionTime"] = match since {
            Some(old) => old["lastTransitionTime"].clone(),
            None => json!(object::time(now)),
        };
        condition
    });
    conditions.collect()
}
