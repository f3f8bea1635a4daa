//! What is asked of machines by a request of its own: evictions, and virtctl's subresources.

mod eviction;

use std::sync::Arc;

use godwit_apimachinery::{ExtraResource, Status, StoreError};

use crate::facts::Facts;
use crate::store::LedgerStore;

/// Everything in here.
pub(crate) fn extras(store: &Arc<LedgerStore>) -> Vec<ExtraResource> {
    let desk = Desk {
        facts: Facts::new(store.cache.clone()),
        store: Arc::clone(store),
    };
    vec![eviction::declare(desk)]
}

/// What every action needs.
#[derive(Clone)]
struct Desk {
    store: Arc<LedgerStore>,
    facts: Facts,
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
