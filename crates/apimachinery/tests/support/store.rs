//! A store in memory: one lock, one revision, the whole history kept.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use futures::{StreamExt, stream};
use godwit_apimachinery::{
    ListAt, Listed, RequestContext, Store, StoreError, Stored, Update, WatchEvent, WatchSpan,
    WatchStream, object,
};
use serde_json::{Value, json};
use tokio::sync::watch;

type Key = (String, String, String);

pub(crate) struct MemoryStore {
    state: Arc<Mutex<State>>,
    revision: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Arc<Stored>>,
    log: Vec<(Key, u64, WatchEvent)>,
    revision: u64,
    oldest: u64,
}

impl MemoryStore {
    pub(crate) fn new() -> Arc<Self> {
        // Not 0, which clients take for "any".
        let state = State {
            revision: 100,
            ..State::default()
        };
        let state = Arc::new(Mutex::new(state));
        Arc::new(Self {
            state,
            revision: watch::Sender::new(100),
        })
    }

    /// Forgets all changes up to now, so that watches from before expire.
    pub(crate) fn compact(&self) {
        let mut state = self.lock();
        state.oldest = state.revision;
        state.log.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no test panics with the lock held")
    }

    fn commit(&self, state: &mut State, key: Key, object: Option<Value>) -> Arc<Stored> {
        state.revision += 1;
        let revision = state.revision;
        let previous = state.objects.remove(&key);
        let event = match (object, previous) {
            (Some(object), None) => WatchEvent::Added(Stored::new(object, revision)),
            (Some(object), previous) => WatchEvent::Modified {
                object: Stored::new(object, revision),
                previous,
            },
            (None, previous) => {
                let last = previous.expect("only what is there is removed");
                WatchEvent::Deleted(Stored::new(last.object().clone(), revision))
            }
        };
        let stored = match &event {
            WatchEvent::Added(object) | WatchEvent::Modified { object, .. } => {
                state.objects.insert(key.clone(), Arc::clone(object));
                Arc::clone(object)
            }
            WatchEvent::Deleted(object) => Arc::clone(object),
            WatchEvent::Bookmark(_) => unreachable!("not made above"),
        };
        state.log.push((key, revision, event));
        self.revision.send_replace(revision);
        stored
    }
}

impl State {
    fn after(&self, resource: &str, namespace: Option<&str>, from: u64) -> Vec<(u64, WatchEvent)> {
        let wanted = |key: &Key| key.0 == resource && namespace.is_none_or(|ns| key.1 == ns);
        let found = self
            .log
            .iter()
            .filter(|(key, at, _)| *at > from && wanted(key));
        found.map(|(_, at, event)| (*at, event.clone())).collect()
    }
}

fn key(resource: &str, object: &Value) -> Key {
    let (namespace, name) = (object::namespace(object), object::name(object));
    (resource.to_owned(), namespace.to_owned(), name.to_owned())
}

fn body(object: &Value) -> Value {
    let mut body = object.clone();
    for key in ["metadata", "status"] {
        body.as_object_mut().expect("an object").remove(key);
    }
    body
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Stored>>, StoreError> {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        Ok(self.lock().objects.get(&key).cloned())
    }

    async fn list(
        &self,
        resource: &str,
        namespace: Option<&str>,
        at: ListAt,
    ) -> Result<Listed, StoreError> {
        let state = self.lock();
        let current = state.revision;
        match at {
            ListAt::NotOlderThan(asked) if asked > current => {
                return Err(StoreError::TooNew { asked, current });
            }
            ListAt::Exact(asked) if asked != current => {
                return Err(StoreError::Expired { oldest: current });
            }
            ListAt::Latest | ListAt::NotOlderThan(_) | ListAt::Exact(_) => {}
        }
        let wanted = |key: &Key| key.0 == resource && namespace.is_none_or(|ns| key.1 == ns);
        let found = state.objects.iter().filter(|(key, _)| wanted(key));
        let items = found.map(|(_, stored)| Arc::clone(stored)).collect();
        Ok(Listed {
            items: Arc::new(items),
            revision: current,
        })
    }

    async fn create(
        &self,
        ctx: &RequestContext,
        resource: &str,
        object: Value,
    ) -> Result<Arc<Stored>, StoreError> {
        let mut state = self.lock();
        let key = key(resource, &object);
        if state.objects.contains_key(&key) {
            return Err(StoreError::AlreadyExists);
        }
        if ctx.dry_run {
            return Ok(Stored::new(object, state.revision));
        }
        Ok(self.commit(&mut state, key, Some(object)))
    }

    async fn update(
        &self,
        ctx: &RequestContext,
        resource: &str,
        update: Update,
    ) -> Result<Arc<Stored>, StoreError> {
        let mut state = self.lock();
        let key = key(resource, &update.object);
        let old = state
            .objects
            .get(&key)
            .cloned()
            .ok_or(StoreError::NotFound)?;
        if old.revision() != update.expected {
            return Err(StoreError::Conflict);
        }
        let mut object = update.object;
        if body(old.object()) != body(&object) {
            let generation = object["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            object["metadata"]["generation"] = json!(generation);
        }
        if ctx.dry_run {
            return Ok(Stored::new(object, old.revision()));
        }
        let held = resource == "namespaces" || !object::finalizers(&object).is_empty();
        let gone = object::is_deleting(&object) && !held;
        Ok(self.commit(&mut state, key, (!gone).then_some(object)))
    }

    async fn remove(
        &self,
        ctx: &RequestContext,
        resource: &str,
        object: &Stored,
    ) -> Result<(), StoreError> {
        let mut state = self.lock();
        let key = key(resource, object.object());
        let old = state.objects.get(&key).ok_or(StoreError::NotFound)?;
        if old.revision() != object.revision() {
            return Err(StoreError::Conflict);
        }
        if !ctx.dry_run {
            self.commit(&mut state, key, None);
        }
        Ok(())
    }

    async fn watch(
        &self,
        resource: &str,
        namespace: Option<&str>,
        span: WatchSpan,
    ) -> Result<WatchStream, StoreError> {
        let from = span.from;
        let (oldest, current) = {
            let state = self.lock();
            (state.oldest, state.revision)
        };
        if from < oldest {
            return Err(StoreError::Expired { oldest });
        }
        if from > current {
            return Err(StoreError::TooNew {
                asked: from,
                current,
            });
        }
        let (resource, namespace) = (resource.to_owned(), namespace.map(str::to_owned));
        let start = (Arc::clone(&self.state), self.revision.subscribe(), from);
        let batches = stream::unfold(start, move |(state, mut changed, last)| {
            let (resource, namespace) = (resource.clone(), namespace.clone());
            async move {
                loop {
                    changed.borrow_and_update();
                    let events = {
                        let state = state.lock().expect("no test panics with the lock held");
                        state.after(&resource, namespace.as_deref(), last)
                    };
                    if let Some((newest, _)) = events.last() {
                        let newest = *newest;
                        let batch: Vec<_> =
                            events.into_iter().map(|(_, event)| Ok(event)).collect();
                        return Some((stream::iter(batch), (state, changed, newest)));
                    }
                    changed.changed().await.ok()?;
                }
            }
        });
        Ok(batches.flatten().boxed())
    }
}
