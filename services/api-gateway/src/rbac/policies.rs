//! What is in force now: compiled again when an object of the watch cache says something new.

use std::sync::{Arc, PoisonError, RwLock};

use super::RESOURCES;
use super::snapshot::Snapshot;
use crate::watch_cache::{Stamp, WatchCache};

/// Handle to what is in force. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Policies {
    shared: Arc<Shared>,
}

struct Shared {
    cache: WatchCache,
    compiled: RwLock<(Option<Stamp>, Arc<Snapshot>)>,
}

impl Policies {
    pub(crate) fn new(cache: WatchCache) -> Self {
        let compiled = RwLock::new((None, Arc::default()));
        Self {
            shared: Arc::new(Shared { cache, compiled }),
        }
    }

    /// What the watch cache says at this moment: a write that was answered is in it.
    pub(crate) fn now(&self) -> Arc<Snapshot> {
        let cache = &self.shared.cache;
        let stamp = cache.stamp(&RESOURCES);
        {
            let compiled = self.shared.compiled.read();
            let compiled = compiled.unwrap_or_else(PoisonError::into_inner);
            if compiled.0 == Some(stamp) {
                return Arc::clone(&compiled.1);
            }
        }
        let (stamp, objects) = cache.lists(&RESOURCES);
        let snapshot = Arc::new(Snapshot::compile(&objects));
        let compiled = self.shared.compiled.write();
        let mut compiled = compiled.unwrap_or_else(PoisonError::into_inner);
        *compiled = (Some(stamp), Arc::clone(&snapshot));
        snapshot
    }
}
