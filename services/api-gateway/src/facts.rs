//! What the rules of the kinds need to know of other objects, read from the watch cache.
//!
//! Facts may be a moment old. Where two requests can race, the ledger's constraints decide.

use std::sync::Arc;

use godwit_apimachinery::Stored;

use crate::kinds::resource;
use crate::rbac::Policies;
use crate::watch_cache::WatchCache;

/// Read access to the objects of this cluster.
#[derive(Clone)]
pub(crate) struct Facts {
    cache: WatchCache,
    policies: Policies,
}

impl Facts {
    pub(crate) fn new(cache: WatchCache) -> Self {
        Self {
            policies: Policies::new(cache.clone()),
            cache,
        }
    }

    /// Who may do what.
    pub(crate) fn policies(&self) -> Policies {
        self.policies.clone()
    }

    /// The instance of this name.
    pub(crate) fn instance(&self, namespace: &str, name: &str) -> Option<Arc<Stored>> {
        self.cache.get(resource::INSTANCES, namespace, name)
    }

    /// The virtual machine of this name.
    pub(crate) fn machine(&self, namespace: &str, name: &str) -> Option<Arc<Stored>> {
        self.cache.get(resource::MACHINES, namespace, name)
    }

    /// All migrations, ended ones too.
    pub(crate) fn all_migrations(&self) -> Vec<Arc<Stored>> {
        self.cache.all(resource::MIGRATIONS)
    }

    /// All migrations in a namespace, ended ones too.
    pub(crate) fn migrations(&self, namespace: &str) -> Vec<Arc<Stored>> {
        self.cache.in_namespace(resource::MIGRATIONS, namespace)
    }

    /// The node of this name.
    pub(crate) fn node(&self, name: &str) -> Option<Arc<Stored>> {
        self.cache.get(resource::NODES, "", name)
    }

    /// All wishes of maintenance.
    pub(crate) fn maintenances(&self) -> Vec<Arc<Stored>> {
        self.cache.in_namespace(resource::NODE_MAINTENANCES, "")
    }

    /// The namespace of this name.
    pub(crate) fn namespace(&self, name: &str) -> Option<Arc<Stored>> {
        self.cache.get(resource::NAMESPACES, "", name)
    }

    /// What a namespace still holds, as `2 secrets, 1 virtualmachines.kubevirt.io`.
    pub(crate) fn namespace_content(&self, name: &str) -> Option<String> {
        let held = self.cache.count_in_namespace(name);
        // Events are about things that may be long gone; they leave by age.
        let texts: Vec<String> = held
            .into_iter()
            .filter(|(held, _)| held != resource::EVENTS)
            .map(|(held, count)| format!("{count} {held}"))
            .collect();
        match texts.is_empty() {
            true => None,
            false => Some(texts.join(", ")),
        }
    }

    /// The cluster's configuration: the first KubeVirt object, in whatever namespace.
    pub(crate) fn kubevirt(&self) -> Option<Arc<Stored>> {
        self.cache.first(resource::KUBEVIRTS)
    }
}
