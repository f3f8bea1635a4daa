//! `metadata.managedFields`: who owns what.

use serde_json::{Value, json};

use super::fields::FieldSet;
use super::{Conflict, Editor};
use crate::object;

/// The two ways to own fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// All managers of an object.
#[derive(Debug, Default)]
pub(super) struct Managers(Vec<Entry>);

#[derive(Debug, Clone)]
struct Entry {
    manager: String,
    operation: Operation,
    api_version: String,
    subresource: String,
    time: String,
    set: FieldSet,
}

/// Who the oldest managers by update become when there are too many. As in kube-apiserver.
const ANCIENT: &str = "ancient-changes";

impl Managers {
    /// What the object says; `None` where it says nothing or nonsense.
    pub(super) fn read(object: &Value) -> Option<Self> {
        let list = object["metadata"]["managedFields"].as_array()?;
        // A client resets ownership with one empty entry.
        if list.len() == 1 && list[0].as_object().is_some_and(serde_json::Map::is_empty) {
            return Some(Self::default());
        }
        list.iter()
            .map(Entry::from_json)
            .collect::<Option<Vec<_>>>()
            .map(Self)
    }

    pub(super) fn read_or_empty(object: &Value) -> Self {
        Self::read(object).unwrap_or_default()
    }

    /// Sets the object's list, with at most `updaters_max` managers by update.
    pub(super) fn write(mut self, object: &mut Value, updaters_max: usize) {
        self.0.retain(|entry| !entry.set.is_empty());
        self.cap(updaters_max.max(1));
        self.0.sort_by(|a, b| {
            let key = |e: &Entry| (e.operation, e.time.clone(), e.manager.clone());
            key(a).cmp(&key(b))
        });
        let list: Vec<Value> = self.0.iter().map(Entry::to_json).collect();
        let metadata = object::metadata_mut(object);
        if list.is_empty() {
            metadata.remove("managedFields");
        } else {
            metadata.insert("managedFields".to_owned(), Value::Array(list));
        }
    }

    pub(super) fn set_of(&self, operation: Operation, editor: Editor<'_>) -> Option<&FieldSet> {
        self.0
            .iter()
            .find(|entry| entry.is(operation, editor))
            .map(|entry| &entry.set)
    }

    pub(super) fn union_of_others(&self, operation: Operation, editor: Editor<'_>) -> FieldSet {
        let mut all = FieldSet::default();
        for entry in self.0.iter().filter(|entry| !entry.is(operation, editor)) {
            all.union(&entry.set);
        }
        all
    }

    /// Takes `fields` from everyone but `except`.
    pub(super) fn disown(&mut self, fields: &FieldSet, except: Option<(Operation, Editor<'_>)>) {
        for entry in &mut self.0 {
            if !except.is_some_and(|(operation, editor)| entry.is(operation, editor)) {
                entry.set = entry.set.minus(fields);
            }
        }
    }

    /// Gives `fields` to the editor, besides what it has.
    pub(super) fn add(&mut self, operation: Operation, editor: Editor<'_>, fields: &FieldSet) {
        let mut set = self.set_of(operation, editor).cloned().unwrap_or_default();
        set.union(fields);
        if !fields.is_empty() {
            self.replace(operation, editor, set);
        }
    }

    /// Gives the editor just `set`. The time changes only if something else does.
    pub(super) fn replace(&mut self, operation: Operation, editor: Editor<'_>, set: FieldSet) {
        let at = self.0.iter().position(|entry| entry.is(operation, editor));
        let same = at.is_some_and(|at| {
            self.0[at].set == set && self.0[at].api_version == editor.api_version
        });
        if same {
            return;
        }
        let entry = Entry {
            manager: editor.manager.to_owned(),
            operation,
            api_version: editor.api_version.to_owned(),
            subresource: editor.subresource.to_owned(),
            time: object::time(editor.now),
            set,
        };
        match at {
            Some(at) => self.0[at] = entry,
            None => self.0.push(entry),
        }
    }

    /// What others own of `fields`.
    pub(super) fn conflicts(&self, fields: &FieldSet, editor: Editor<'_>) -> Vec<Conflict> {
        let mut out = Vec::new();
        for entry in self
            .0
            .iter()
            .filter(|entry| !entry.is(Operation::Apply, editor))
        {
            let fields = entry.set.common(fields).paths();
            if !fields.is_empty() {
                out.push(Conflict {
                    with: entry.spelled(),
                    fields,
                });
            }
        }
        out
    }

    fn cap(&mut self, updaters_max: usize) {
        let is_update = |entry: &Entry| entry.operation == Operation::Update;
        while self.0.iter().filter(|entry| is_update(entry)).count() > updaters_max {
            let mut updates: Vec<usize> = (0..self.0.len())
                .filter(|at| is_update(&self.0[*at]))
                .collect();
            updates.sort_by(|a, b| self.0[*a].time.cmp(&self.0[*b].time));
            let oldest = self.0[updates[0]].set.clone();
            let next = &mut self.0[updates[1]];
            next.set.union(&oldest);
            ANCIENT.clone_into(&mut next.manager);
            self.0.remove(updates[0]);
        }
    }
}

impl Entry {
    /// Applies of one manager are one, whatever version they were written in.
    fn is(&self, operation: Operation, editor: Editor<'_>) -> bool {
        self.manager == editor.manager
            && self.operation == operation
            && self.subresource == editor.subresource
            && (operation == Operation::Apply || self.api_version == editor.api_version)
    }

    fn spelled(&self) -> String {
        let mut out = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            out = format!("{out} with subresource {:?}", self.subresource);
        }
        match self.operation {
            Operation::Apply => out,
            Operation::Update if self.time.is_empty() => {
                format!("{out} using {}", self.api_version)
            }
            Operation::Update => format!("{out} using {} at {}", self.api_version, self.time),
        }
    }

    fn to_json(&self) -> Value {
        let mut out = json!({
            "manager": self.manager,
            "operation": self.operation.as_str(),
            "apiVersion": self.api_version,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.set.to_json(),
        });
        if !self.time.is_empty() {
            out["time"] = json!(self.time);
        }
        if !self.subresource.is_empty() {
            out["subresource"] = json!(self.subresource);
        }
        out
    }

    fn from_json(value: &Value) -> Option<Self> {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let operation = match value["operation"].as_str() {
            Some("Apply") => Operation::Apply,
            Some("Update") => Operation::Update,
            _ => return None,
        };
        Some(Self {
            manager: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
            set: FieldSet::from_json(&value["fieldsV1"]),
        })
    }
}
