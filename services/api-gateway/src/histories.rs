//! Reads the histories of migrations from the ledger's own tables, past the watch cache: they are
//! many, they stay for ever, and few ask for them.

use std::sync::Arc;

use godwit_apimachinery::{ListAt, Listed, StoreError, Stored};
use godwit_ledger::Ledger;
use godwit_model::JobId;

use crate::convert;
use crate::kinds::show_history;
use crate::store::store_error;

/// Most histories in a list, the newest ones; each older one is found by its name or UID.
const LISTED_MAX: u32 = 1000;

/// The newest migration of this name, or the one of this UID.
pub(crate) async fn get(
    ledger: &Ledger,
    namespace: &str,
    name: &str,
) -> Result<Option<Arc<Stored>>, StoreError> {
    // First, so that it is never newer than what is shown under it.
    let revision = ledger.revision().await.map_err(store_error)?;
    let named = ledger.history_named(namespace, name).await;
    let found = match (named.map_err(store_error)?, JobId::parse(name)) {
        (Some(found), _) => Some(found),
        (None, Ok(id)) => {
            let found = ledger.history_of(&id).await.map_err(store_error)?;
            found.filter(|found| found.job.key.namespace == namespace)
        }
        (None, Err(_)) => None,
    };
    let shown = |history| convert::stored(show_history(&history, name, revision));
    Ok(found.map(shown))
}

/// The newest migration of each name, as they are now.
pub(crate) async fn list(
    ledger: &Ledger,
    namespace: Option<&str>,
    at: ListAt,
) -> Result<Listed, StoreError> {
    let revision = ledger.revision().await.map_err(store_error)?;
    match at {
        ListAt::NotOlderThan(asked) if asked > revision.0 => {
            let current = revision.0;
            return Err(StoreError::TooNew { asked, current });
        }
        ListAt::Exact(asked) if asked != revision.0 => {
            let oldest = revision.0;
            return Err(StoreError::Expired { oldest });
        }
        ListAt::Latest | ListAt::NotOlderThan(_) | ListAt::Exact(_) => {}
    }
    let histories = ledger.histories(namespace, LISTED_MAX).await;
    let histories = histories.map_err(store_error)?;
    let shown = histories.iter().map(|history| {
        let shown = show_history(history, &history.job.key.name, revision);
        convert::stored(shown)
    });
    let mut items: Vec<Arc<Stored>> = shown.collect();
    items.sort_by(|left, right| left.name().cmp(&right.name()));
    Ok(Listed {
        items: Arc::new(items),
        revision: revision.0,
    })
}
