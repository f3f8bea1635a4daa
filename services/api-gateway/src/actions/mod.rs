//! What is asked of machines by a request of its own: evictions, and virtctl's subresources.

mod eviction;
mod machine;
mod unsupported;
mod virtctl;

use std::sync::Arc;

use godwit_apimachinery::{Admission, ExtraResource, Status, StoreError, VersionInfo};

use crate::facts::Facts;
use crate::kinds;
use crate::store::LedgerStore;

/// Everything in here.
pub(crate) fn extras(store: &Arc<LedgerStore>, version: &VersionInfo) -> Vec<ExtraResource> {
    let facts = Facts::new(store.cache.clone());
    let desk = Desk {
        migrations: kinds::migration_rules(&facts),
        facts,
        store: Arc::clone(store),
        version: version.clone(),
    };
    let mut all = virtctl::declare(&desk);
    all.push(eviction::declare(desk));
    all
}

/// What every action needs.
#[derive(Clone)]
struct Desk {
    store: Arc<LedgerStore>,
    facts: Facts,
    /// Rules that every new migration is judged by.
    migrations: Arc<dyn Admission>,
    version: VersionInfo,
}

/// What a failure of the store means to who asked about `name`, one of `resource` in `group`.
fn failure(error: StoreError, (group, resource, name): (&str, &str, &str)) -> Status {
    match error {
        StoreError::Refused(status) => status,
        StoreError::NotFound => Status::not_found(group, resource, name),
        StoreError::Conflict | StoreError::AlreadyExists => {
            Status::conflict(group, resource, name, "it was changed at the same moment")
        }
        StoreError::Unavailable(why) | StoreError::Unknown(why) => Status::unavailable(why),
        StoreError::Expired { .. } | StoreError::TooNew { .. } => {
            Status::unavailable("the server is behind, please try again")
        }
    }
}
