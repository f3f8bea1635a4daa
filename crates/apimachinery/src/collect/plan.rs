//! What the collector has to do next, from one look at all objects.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use crate::object::{self, Stored};
use crate::path::NAMESPACES;
use crate::registry::Resource;

/// Holds an object until everything that it owns, and that blocks it, is gone.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
/// Holds an object until nothing names it as owner.
pub(crate) const ORPHAN: &str = "orphan";

/// An object that may be deleted, and what it is.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) resource: Arc<Resource>,
    pub(crate) stored: Arc<Stored>,
}

impl Entry {
    pub(crate) fn object(&self) -> &Value {
        self.stored.object()
    }

    pub(crate) fn is_namespace(&self) -> bool {
        self.resource.kind.resource == NAMESPACES
    }
}

/// One thing to do. Each is right however late it is done: what it rests on is looked at again.
pub(crate) enum Step<'a> {
    /// Delete an object, if none of `gone` is there after all.
    Delete {
        entry: &'a Entry,
        gone: Vec<&'a Value>,
        policy: &'static str,
    },
    /// Take owners away from an object that has others, or that is to stay without.
    Disown {
        entry: &'a Entry,
        owners: Vec<&'a str>,
        /// Those of `owners` that were not found.
        gone: Vec<&'a Value>,
    },
    /// Let an object go that was only held for this.
    Release {
        entry: &'a Entry,
        finalizer: &'static str,
    },
    /// A namespace on its way out: empty, or with what is left in it.
    Namespace {
        entry: &'a Entry,
        left: Vec<&'a Entry>,
    },
}

/// All objects, and who owns whom.
pub(crate) struct World<'a> {
    entries: &'a [Entry],
    by_uid: HashMap<&'a str, &'a Entry>,
    dependents: HashMap<&'a str, Vec<&'a Entry>>,
}

/// What an owner means to those it owns.
#[derive(PartialEq, Eq)]
enum Owner {
    /// It stays, or decides on its own what becomes of them.
    Solid,
    /// It waits until they are gone.
    Waiting,
    /// It wasn't found.
    Gone,
}

impl<'a> World<'a> {
    pub(crate) fn new(entries: &'a [Entry]) -> Self {
        let mut world = Self {
            entries,
            by_uid: HashMap::new(),
            dependents: HashMap::new(),
        };
        for entry in entries {
            world.by_uid.insert(entry.stored.uid(), entry);
            for owner in entry.stored.owners() {
                world.dependents.entry(owner).or_default().push(entry);
            }
        }
        world
    }

    /// Everything there is to do.
    pub(crate) fn steps(&self) -> Vec<Step<'a>> {
        let mut steps = Vec::new();
        for entry in self.entries {
            match entry.stored.is_deleting() {
                true => self.leaving(entry, &mut steps),
                false => steps.extend(self.staying(entry)),
            }
        }
        steps
    }

    fn leaving(&self, entry: &'a Entry, steps: &mut Vec<Step<'a>>) {
        let held_by = object::finalizers(entry.object());
        let own = entry.stored.uid();
        let dependents = self.dependents.get(own).map_or(&[][..], Vec::as_slice);
        if held_by.contains(&ORPHAN) {
            steps.extend(dependents.iter().map(|dependent| Step::Disown {
                entry: dependent,
                owners: vec![own],
                gone: Vec::new(),
            }));
            if dependents.is_empty() {
                let finalizer = ORPHAN;
                steps.push(Step::Release { entry, finalizer });
            }
        } else if held_by.contains(&FOREGROUND) {
            let blocks = |dependent: &&Entry| {
                owners(dependent.object())
                    .any(|owner| uid(owner) == own && owner["blockOwnerDeletion"] == true)
            };
            if !dependents.iter().any(blocks) {
                let finalizer = FOREGROUND;
                steps.push(Step::Release { entry, finalizer });
            }
        }
        if entry.is_namespace() {
            self.emptied(entry, steps);
        }
    }

    fn emptied(&self, entry: &'a Entry, steps: &mut Vec<Step<'a>>) {
        let name = entry.stored.name().name;
        let inside = |other: &&Entry| {
            other.resource.kind.namespaced && other.stored.name().namespace == name
        };
        let left: Vec<&Entry> = self.entries.iter().filter(inside).collect();
        let staying = left.iter().filter(|other| !other.stored.is_deleting());
        steps.extend(staying.map(|other| Step::Delete {
            entry: other,
            gone: Vec::new(),
            policy: "Background",
        }));
        steps.push(Step::Namespace { entry, left });
    }

    fn staying(&self, entry: &'a Entry) -> Option<Step<'a>> {
        // Most have owners that stay: the object itself isn't looked into for that.
        if entry
            .stored
            .owners()
            .all(|owner| self.owner(owner) == Owner::Solid)
        {
            return None;
        }
        let (mut gone, mut waiting, mut solid) = (Vec::new(), Vec::new(), false);
        for owner in owners(entry.object()) {
            match self.owner(uid(owner)) {
                Owner::Gone => gone.push(owner),
                Owner::Waiting => waiting.push(owner),
                Owner::Solid => solid = true,
            }
        }
        if solid {
            let owners = gone.iter().chain(&waiting).map(|owner| uid(owner));
            return Some(Step::Disown {
                entry,
                owners: owners.collect(),
                gone,
            });
        }
        // Whoever is waited for waits in turn. Those already leaving would wait in a circle.
        let dependents = self.dependents.get(entry.stored.uid());
        let has_staying = dependents.into_iter().flatten();
        let has_staying = has_staying
            .into_iter()
            .any(|dependent| !dependent.stored.is_deleting());
        let policy = match !waiting.is_empty() && has_staying {
            true => "Foreground",
            false => "",
        };
        Some(Step::Delete {
            entry,
            gone,
            policy,
        })
    }

    fn owner(&self, uid: &str) -> Owner {
        let Some(owner) = self.by_uid.get(uid) else {
            return Owner::Gone;
        };
        if !owner.stored.is_deleting() {
            return Owner::Solid;
        }
        let held_by = object::finalizers(owner.object());
        match held_by.contains(&FOREGROUND) && !held_by.contains(&ORPHAN) {
            true => Owner::Waiting,
            false => Owner::Solid,
        }
    }
}

/// The owners that an object names.
pub(crate) fn owners(object: &Value) -> impl Iterator<Item = &Value> {
    let list = object["metadata"]["ownerReferences"].as_array();
    list.into_iter().flatten()
}

/// The uid in an owner reference.
pub(crate) fn uid(owner: &Value) -> &str {
    owner["uid"].as_str().unwrap_or_default()
}
