//! What a watch has to tell, worked out from the ledger's change log: the judge of the watch tests.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use godwit_ledger::{Change, ChangeKind, Changes, Ledger, Object};
use godwit_model::Revision;
use serde_json::{Value, json};

use crate::watch_replay::{Objects, Seen, Tell, Told, digest};

/// Changes read at a time.
const BATCH: i64 = 1000;

/// Which objects a watcher asked for.
#[derive(Debug, Clone)]
pub(crate) enum Pick {
    All,
    /// Label `team` is this.
    Team(&'static str),
    /// Label `team` is another, or none.
    NotTeam(&'static str),
    /// `status.phase` is this.
    Phase(&'static str),
    Name(String),
}

impl Pick {
    /// The query parameter that says so.
    pub(crate) fn query(&self) -> String {
        match self {
            Self::All => String::new(),
            Self::Team(team) => format!("&labelSelector=team%3D{team}"),
            Self::NotTeam(team) => format!("&labelSelector=team%21%3D{team}"),
            Self::Phase(phase) => format!("&fieldSelector=status.phase%3D{phase}"),
            Self::Name(name) => format!("&fieldSelector=metadata.name%3D{name}"),
        }
    }

    fn matches(&self, object: &Object) -> bool {
        match self {
            Self::All => true,
            Self::Team(team) => object.label("team") == Some(team),
            Self::NotTeam(team) => object.label("team") != Some(team),
            Self::Phase(phase) => {
                let status = object.status.as_ref();
                status.is_some_and(|status| status["phase"] == *phase)
            }
            Self::Name(name) => object.key.name == *name,
        }
    }
}

/// What a watcher follows, in the terms of the ledger.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    /// Key of the resource.
    pub(crate) resource: &'static str,
    pub(crate) namespace: Option<&'static str>,
    pub(crate) pick: Pick,
    /// Whether it is told spec, data and status, or metadata alone.
    pub(crate) whole: bool,
}

impl Scope {
    fn holds(&self, object: &Object) -> bool {
        let here = self
            .namespace
            .is_none_or(|space| space == object.key.namespace);
        here && self.pick.matches(object)
    }

    fn text(&self, object: &Object) -> String {
        let labels = &object.metadata["labels"];
        let parts = [&object.body["spec"], &object.body["data"]];
        let status = object.status.as_ref().unwrap_or(&Value::Null);
        compared(self.whole, (&object.uid, labels), (parts, status))
    }
}

/// The text of what is compared of an object.
pub(crate) fn compared(
    whole: bool,
    (uid, labels): (&str, &Value),
    ([spec, data], status): ([&Value; 2], &Value),
) -> String {
    let labels = match labels.as_object() {
        Some(map) if map.is_empty() => &Value::Null,
        _ => labels,
    };
    match whole {
        true => json!([uid, labels, spec, data, status]).to_string(),
        false => json!([uid, labels]).to_string(),
    }
}

/// Every change that there was.
#[derive(Debug, Default)]
pub(crate) struct Log(Vec<Change>);

impl Log {
    /// Reads all of it.
    pub(crate) async fn read(ledger: &Ledger) -> Result<Self> {
        let mut all: Vec<Change> = vec![];
        loop {
            let after = all.last().map_or(Revision(0), |last| last.revision);
            match ledger.changes_after(after, BATCH).await? {
                Changes::Rows(rows) if rows.is_empty() => return Ok(Self(all)),
                Changes::Rows(rows) => all.extend(rows),
                lost @ (Changes::Compacted { .. } | Changes::Lost { .. }) => {
                    bail!("the change log is not whole: {lost:?}")
                }
            }
        }
    }

    pub(crate) fn of(changes: Vec<Change>) -> Self {
        Self(changes)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn of_resource(&self, resource: &str) -> impl Iterator<Item = &Change> {
        self.0
            .iter()
            .filter(move |change| change.object.key.resource == resource)
    }

    /// How many changes of a resource there were after one revision and up to another.
    pub(crate) fn count(&self, resource: &str, after: u64, last: u64) -> usize {
        self.of_resource(resource)
            .filter(|change| change.revision.0 > after && change.revision.0 <= last)
            .count()
    }

    /// The objects of a scope at a revision.
    pub(crate) fn at(&self, scope: &Scope, revision: u64) -> Objects {
        let mut objects = BTreeMap::new();
        let past = self.of_resource(scope.resource);
        for change in past.take_while(|change| change.revision.0 <= revision) {
            let object = &change.object;
            let gone = change.kind == ChangeKind::Deleted || !scope.holds(object);
            match gone {
                true => objects.remove(&key(object)),
                false => objects.insert(key(object), object),
            };
        }
        let seen = objects.into_iter().map(|(key, object)| {
            let seen = Seen {
                revision: object.revision.0,
                uid: object.uid.clone(),
                text: scope.text(object),
            };
            (key, seen)
        });
        seen.collect()
    }

    /// What a watch of a scope has to tell from one revision to another.
    pub(crate) fn told(&self, scope: &Scope, from: u64, to: u64) -> Vec<Told> {
        let mut before: BTreeMap<String, &Object> = BTreeMap::new();
        let mut told = vec![];
        let past = self.of_resource(scope.resource);
        for change in past.take_while(|change| change.revision.0 <= to) {
            let object = &change.object;
            let old = before.remove(&key(object));
            let now = (change.kind != ChangeKind::Deleted && scope.holds(object)).then_some(object);
            if let Some(now) = now {
                before.insert(key(object), now);
            }
            if change.revision.0 <= from {
                continue;
            }
            let (tell, shown) = match (old, now) {
                (None, None) => continue,
                (None, Some(now)) => (Tell::Added, now),
                (Some(_), Some(now)) => (Tell::Modified, now),
                (Some(old), None) => (Tell::Deleted, old),
            };
            told.push(Told {
                tell,
                revision: change.revision.0,
                key: key(object),
                digest: digest(&scope.text(shown)),
            });
        }
        told
    }
}

fn key(object: &Object) -> String {
    format!("{}/{}", object.key.namespace, object.key.name)
}
