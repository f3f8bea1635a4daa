//! All API objects in memory, with the recent changes of each resource.
//!
//! Lists and watches are served from here alone. One task (`feed.rs`) is the only writer. A watcher
//! owns no queue: it reads the shared ring of recent changes at its own pace and is sent away when
//! the ring has moved on, so a slow client costs nothing and holds nobody up.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use godwit_apimachinery::{ListAt, Listed, StoreError, Stored, WatchEvent};
use godwit_ledger::{Change, ChangeKind, Object};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::convert;
pub(crate) use crate::convert::Kept;

/// Changes kept for each resource. A drain of a thousand machines makes some tens of thousands of
/// changes over minutes; a watcher that is this far behind lists again.
pub(crate) const RING_MAX: usize = 4096;
/// Changes a watcher takes at a time, so that it holds the lock shortly.
const BATCH_MAX: usize = 256;
/// Watchers at once; each costs some kilobytes and a connection of its client.
const WATCHERS_MAX: usize = 10_000;
/// How long a read waits for a revision that this replica hasn't seen yet.
const FRESH_WAIT_MAX: Duration = Duration::from_secs(3);
/// What a read is told whose answer would be older than a write that was acknowledged.
const BEHIND: &str = "the ledger can't be reached, and the newest changes were not read yet";

type Key = (String, String);

/// Handle to the cache. Cheap to clone.
#[derive(Clone)]
pub(crate) struct WatchCache {
    shared: Arc<Shared>,
}

struct Shared {
    state: RwLock<State>,
    /// Newest revision in `state`; moves after it.
    revision: watch::Sender<u64>,
    /// Newest revision that a write of this replica was acknowledged with.
    acknowledged: watch::Sender<u64>,
    /// Whether the ledger answered when it was last asked for changes.
    followed: AtomicBool,
    watchers: Arc<Semaphore>,
}

#[derive(Default)]
struct State {
    revision: u64,
    /// Revision of the snapshot that everything is counted from.
    snapshot: u64,
    resources: HashMap<String, Resource>,
}

struct Resource {
    objects: BTreeMap<Key, Arc<Stored>>,
    /// `objects` as a list, made when somebody asks.
    listed: Option<Arc<Vec<Arc<Stored>>>>,
    /// Changes in order of revision.
    ring: VecDeque<Recent>,
    /// Every change after this revision is in `ring`.
    complete_from: u64,
    /// Revision of the newest change.
    changed: watch::Sender<u64>,
}

/// A change that is still remembered.
#[derive(Clone)]
pub(crate) struct Recent {
    pub(crate) revision: u64,
    pub(crate) event: WatchEvent,
    /// The object before the change, to rebuild older lists.
    pub(crate) previous: Option<Arc<Stored>>,
}

impl WatchCache {
    pub(crate) fn new() -> Self {
        let shared = Shared {
            state: RwLock::new(State::default()),
            revision: watch::Sender::new(0),
            acknowledged: watch::Sender::new(0),
            followed: AtomicBool::new(true),
            watchers: Arc::new(Semaphore::new(WATCHERS_MAX)),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Replaces everything. Watchers of before are sent away.
    pub(crate) fn reset<K: Into<Kept>>(&self, objects: Vec<K>, revision: u64) {
        let mut state = self.write();
        for resource in state.resources.values_mut() {
            resource.clear(revision);
        }
        for object in objects {
            let Kept { resource, stored } = object.into();
            let name = stored.name();
            let key = (name.namespace.to_owned(), name.name.to_owned());
            let resource = state.resource_mut(&resource, revision);
            resource.objects.insert(key, stored);
        }
        state.revision = revision;
        state.snapshot = revision;
        drop(state);
        self.announce();
    }

    /// Applies changes, which come in order of revision and without a gap.
    pub(crate) fn apply(&self, changes: Vec<Change>) {
        let mut state = self.write();
        let snapshot = state.snapshot;
        for change in changes {
            let revision = change.revision.0;
            if revision <= state.revision {
                continue;
            }
            let (key, name) = split(&change.object);
            state.resource_mut(&name, snapshot).apply(key, change);
            state.revision = revision;
        }
        drop(state);
        self.announce();
    }

    /// Everything up to `revision` was applied; the last of them may have changed nothing.
    pub(crate) fn advance(&self, revision: u64) {
        if revision > self.revision() {
            self.write().revision = revision;
            self.announce();
        }
    }

    /// Says whether the ledger answers.
    pub(crate) fn set_followed(&self, followed: bool) {
        self.shared.followed.store(followed, Ordering::Relaxed);
    }

    /// Whether the ledger answered when it was last asked for changes.
    pub(crate) fn is_followed(&self) -> bool {
        self.shared.followed.load(Ordering::Relaxed)
    }

    /// Newest revision that is in here.
    pub(crate) fn revision(&self) -> u64 {
        *self.shared.revision.borrow()
    }

    /// Remembers that a write was acknowledged with this revision: later reads wait for it.
    pub(crate) fn acknowledge(&self, revision: u64) {
        self.shared.acknowledged.send_if_modified(|newest| {
            let newer = revision > *newest;
            *newest = revision.max(*newest);
            newer
        });
    }

    /// Newest revision that a write of this replica was acknowledged with.
    pub(crate) fn acknowledged(&self) -> u64 {
        *self.shared.acknowledged.borrow()
    }

    /// Waits, but not for long, until everything this replica acknowledged is in here.
    pub(crate) async fn fresh(&self) -> Result<(), StoreError> {
        self.caught_up(self.acknowledged()).await
    }

    /// Waits, but not for long, for a revision that is known to be committed.
    pub(crate) async fn caught_up(&self, newest: u64) -> Result<(), StoreError> {
        let reached = self.reached(newest).await;
        reached.map_err(|_| StoreError::Unavailable(BEHIND.to_owned()))
    }

    /// Waits, but not for long, for a revision.
    pub(crate) async fn reached(&self, wanted: u64) -> Result<(), StoreError> {
        let mut seen = self.shared.revision.subscribe();
        let wait = seen.wait_for(|revision| *revision >= wanted);
        match tokio::time::timeout(FRESH_WAIT_MAX, wait).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(StoreError::TooNew {
                asked: wanted,
                current: self.revision(),
            }),
        }
    }

    /// One object.
    pub(crate) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Stored>> {
        let key = (namespace.to_owned(), name.to_owned());
        let state = self.read();
        state.resources.get(resource)?.objects.get(&key).cloned()
    }

    /// All objects of a namespace; the empty one holds the cluster-scoped objects.
    pub(crate) fn in_namespace(&self, resource: &str, namespace: &str) -> Vec<Arc<Stored>> {
        let state = self.read();
        let Some(resource) = state.resources.get(resource) else {
            return Vec::new();
        };
        within(&resource.objects, namespace).cloned().collect()
    }

    /// All objects of a resource, by namespace and name.
    pub(crate) fn all(&self, resource: &str) -> Vec<Arc<Stored>> {
        let state = self.read();
        let found = state.resources.get(resource);
        found.map_or_else(Vec::new, |found| found.objects.values().cloned().collect())
    }

    /// The first object of a resource by namespace and name.
    pub(crate) fn first(&self, resource: &str) -> Option<Arc<Stored>> {
        let state = self.read();
        let found = state.resources.get(resource)?;
        found.objects.values().next().cloned()
    }

    /// How many objects a namespace holds, by resource; those it holds none of are left out.
    pub(crate) fn count_in_namespace(&self, namespace: &str) -> BTreeMap<String, usize> {
        let state = self.read();
        let counts = state
            .resources
            .iter()
            .map(|(name, resource)| (name.clone(), within(&resource.objects, namespace).count()));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// A consistent list; `namespace` as in [`Store::list`](godwit_apimachinery::Store::list).
    pub(crate) async fn list(
        &self,
        resource: &str,
        namespace: Option<&str>,
        at: ListAt,
    ) -> Result<Listed, StoreError> {
        match at {
            ListAt::Latest => self.fresh().await?,
            ListAt::NotOlderThan(revision) | ListAt::Exact(revision) => {
                self.reached(revision).await?;
            }
        }
        let mut state = self.write();
        let current = state.revision;
        let snapshot = state.snapshot;
        let resource = state.resource_mut(resource, snapshot);
        let exact = match at {
            ListAt::Exact(revision) if revision < current => Some(revision),
            ListAt::Latest | ListAt::NotOlderThan(_) | ListAt::Exact(_) => None,
        };
        let objects = match exact {
            Some(revision) => &resource.at(revision)?,
            None => &resource.objects,
        };
        let items = match (namespace, exact) {
            (Some(namespace), _) => Arc::new(within(objects, namespace).cloned().collect()),
            (None, Some(_)) => Arc::new(objects.values().cloned().collect()),
            (None, None) => resource.listed(),
        };
        Ok(Listed {
            items,
            revision: exact.unwrap_or(current),
        })
    }

    /// The position of a new watcher, if everything after `from` is still known.
    pub(crate) async fn subscribe(&self, resource: &str, from: u64) -> Result<Cursor, StoreError> {
        self.reached(from).await?;
        let permit = Arc::clone(&self.shared.watchers).try_acquire_owned();
        let permit = permit.map_err(|_| StoreError::Unavailable("too many watches".to_owned()))?;
        let mut state = self.write();
        let snapshot = state.snapshot;
        let entry = state.resource_mut(resource, snapshot);
        if from < entry.complete_from {
            return Err(StoreError::Expired {
                oldest: entry.complete_from,
            });
        }
        let changed = entry.changed.subscribe();
        Ok(Cursor {
            cache: self.clone(),
            resource: resource.to_owned(),
            at: from,
            changed,
            _permit: permit,
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        // A panic while it was held would have been in code of ours that only moves Arcs.
        self.shared
            .state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.shared
            .state
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self) {
        let state = self.read();
        for resource in state.resources.values() {
            let newest = resource
                .ring
                .back()
                .map_or(resource.complete_from, |last| last.revision);
            resource.changed.send_if_modified(|seen| {
                let newer = newest > *seen;
                *seen = newest.max(*seen);
                newer
            });
        }
        self.shared.revision.send_replace(state.revision);
    }
}

/// Where a watcher is in the changes of a resource.
pub(crate) struct Cursor {
    cache: WatchCache,
    resource: String,
    at: u64,
    changed: watch::Receiver<u64>,
    _permit: OwnedSemaphorePermit,
}

impl Cursor {
    /// The next changes, or none if `idle` passes without any. Then everything up to
    /// [`Cursor::at`] has been seen.
    pub(crate) async fn next(&mut self, idle: Duration) -> Result<Vec<Recent>, StoreError> {
        loop {
            self.changed.mark_unchanged();
            let batch = self.take()?;
            if !batch.is_empty() {
                return Ok(batch);
            }
            match tokio::time::timeout(idle, self.changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(StoreError::Unavailable("shutting down".to_owned())),
                // Other resources may have moved on meanwhile.
                Err(_) => return self.take(),
            }
        }
    }

    /// Everything up to this revision has been seen.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    fn take(&mut self) -> Result<Vec<Recent>, StoreError> {
        let state = self.cache.read();
        let Some(resource) = state.resources.get(&self.resource) else {
            return Ok(Vec::new());
        };
        if self.at < resource.complete_from {
            return Err(StoreError::Expired {
                oldest: resource.complete_from,
            });
        }
        let start = resource
            .ring
            .partition_point(|recent| recent.revision <= self.at);
        let recent = resource.ring.range(start..).take(BATCH_MAX);
        let batch: Vec<Recent> = recent.cloned().collect();
        self.at = match batch.last() {
            Some(last) => last.revision,
            None => state.revision.max(self.at),
        };
        Ok(batch)
    }
}

impl State {
    fn resource_mut(&mut self, name: &str, complete_from: u64) -> &mut Resource {
        if !self.resources.contains_key(name) {
            self.resources
                .insert(name.to_owned(), Resource::new(complete_from));
        }
        self.resources
            .get_mut(name)
            .expect("inserted in the line above")
    }
}

impl Resource {
    fn new(complete_from: u64) -> Self {
        Self {
            objects: BTreeMap::new(),
            listed: None,
            ring: VecDeque::new(),
            complete_from,
            changed: watch::Sender::new(complete_from),
        }
    }

    fn clear(&mut self, revision: u64) {
        self.objects.clear();
        self.listed = None;
        self.ring.clear();
        self.complete_from = revision;
    }

    fn apply(&mut self, key: Key, change: Change) {
        let revision = change.revision.0;
        let mut object = change.object;
        // The removal is a change of its own, with its own revision.
        object.revision = change.revision;
        let object = convert::stored(object);
        let previous = match change.kind {
            ChangeKind::Deleted => self.objects.remove(&key),
            ChangeKind::Added | ChangeKind::Modified => self.objects.insert(key, object.clone()),
        };
        let event = match change.kind {
            ChangeKind::Added => WatchEvent::Added(object),
            ChangeKind::Modified => WatchEvent::Modified {
                object,
                previous: previous.clone(),
            },
            ChangeKind::Deleted => WatchEvent::Deleted(object),
        };
        self.listed = None;
        if self.ring.len() == RING_MAX
            && let Some(oldest) = self.ring.pop_front()
        {
            self.complete_from = oldest.revision;
        }
        self.ring.push_back(Recent {
            revision,
            event,
            previous,
        });
    }

    fn listed(&mut self) -> Arc<Vec<Arc<Stored>>> {
        let objects = &self.objects;
        self.listed
            .get_or_insert_with(|| Arc::new(objects.values().cloned().collect()))
            .clone()
    }

    /// The objects as they were, by taking the later changes back.
    fn at(&self, revision: u64) -> Result<BTreeMap<Key, Arc<Stored>>, StoreError> {
        if revision < self.complete_from {
            return Err(StoreError::Expired {
                oldest: self.complete_from,
            });
        }
        let mut objects = self.objects.clone();
        for recent in self
            .ring
            .iter()
            .rev()
            .take_while(|recent| recent.revision > revision)
        {
            let object = match &recent.event {
                WatchEvent::Added(object)
                | WatchEvent::Modified { object, .. }
                | WatchEvent::Deleted(object) => object,
                WatchEvent::Bookmark(_) => continue,
            };
            let name = object.name();
            let key = (name.namespace.to_owned(), name.name.to_owned());
            match &recent.previous {
                Some(previous) => objects.insert(key, previous.clone()),
                None => objects.remove(&key),
            };
        }
        Ok(objects)
    }
}

fn split(object: &Object) -> (Key, String) {
    let key = &object.key;
    (
        (key.namespace.clone(), key.name.clone()),
        key.resource.clone(),
    )
}

fn within<'a>(
    objects: &'a BTreeMap<Key, Arc<Stored>>,
    namespace: &'a str,
) -> impl Iterator<Item = &'a Arc<Stored>> {
    objects
        .range((namespace.to_owned(), String::new())..)
        .take_while(move |((space, _), _)| space == namespace)
        .map(|(_, object)| object)
}

mod stamp;
#[cfg(test)]
mod tests;

pub(crate) use stamp::Stamp;
