//! Some resources as a whole, for who compiles them into something else.

use std::sync::Arc;

use godwit_apimachinery::Stored;

use super::{State, WatchCache};

/// A moment in the life of some resources: equal stamps, equal objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    snapshot: u64,
    /// Revision of the newest change.
    changed: u64,
}

impl WatchCache {
    /// The moment these resources are at.
    pub(crate) fn stamp(&self, resources: &[&str]) -> Stamp {
        self.read().stamp(resources)
    }

    /// All objects of each resource, and the moment they are of.
    pub(crate) fn lists<const N: usize>(
        &self,
        resources: &[&str; N],
    ) -> (Stamp, [Vec<Arc<Stored>>; N]) {
        let state = self.read();
        let lists = resources.map(|name| {
            let resource = state.resources.get(name);
            let objects = resource.map(|resource| resource.objects.values().cloned().collect());
            objects.unwrap_or_default()
        });
        (state.stamp(resources), lists)
    }
}

impl State {
    fn stamp(&self, resources: &[&str]) -> Stamp {
        let newest = resources.iter().filter_map(|name| {
            let recent = self.resources.get(*name)?.ring.back()?;
            Some(recent.revision)
        });
        Stamp {
            snapshot: self.snapshot,
            changed: newest.max().unwrap_or_default(),
        }
    }
}
