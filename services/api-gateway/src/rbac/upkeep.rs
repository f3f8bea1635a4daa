//! Shows in each aggregated role what it is put together from, as Kubernetes' controller does.
//!
//! Who may do what doesn't wait for this: a snapshot puts the roles together by itself.

use std::sync::Arc;
use std::time::Duration;

use godwit_apimachinery::{RequestContext, Status, StoreError, UserInfo, Verb};
use godwit_ledger::{Object, ObjectKey};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{CLUSTER_ROLES, GROUP, aggregate};
use crate::store::LedgerStore;

/// Longest time without looking.
const POLL: Duration = Duration::from_secs(60);
/// Pause after the ledger was out of reach.
const RETRY: Duration = Duration::from_secs(1);
/// Who writes it, as in Kubernetes.
const MANAGER: &str = "clusterrole-aggregation-controller";

/// Keeps aggregated roles up to date until `shutdown`. Several replicas may do it at once.
pub(crate) async fn run(store: Arc<LedgerStore>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = look_after(&store) => {}
        }
    }
}

/// One round: brings all up to date, and waits until one has changed.
async fn look_after(store: &LedgerStore) {
    // Before the look, so that a change during it is not missed.
    let cursor = store
        .cache
        .subscribe(CLUSTER_ROLES, store.cache.revision())
        .await;
    if let Err(error) = settle(store).await {
        warn!(?error, "failed to bring aggregated roles up to date");
        tokio::time::sleep(RETRY).await;
        return;
    }
    match cursor {
        // Too far behind is a reason to look as well.
        Ok(mut cursor) => drop(cursor.next(POLL).await),
        Err(_) => tokio::time::sleep(RETRY).await,
    }
}

/// Writes the rules of all aggregated roles that show others.
///
/// # Errors
/// When the ledger can't be reached.
pub(crate) async fn settle(store: &LedgerStore) -> Result<(), StoreError> {
    let (_, [roles]) = store.cache.lists(&[CLUSTER_ROLES]);
    let by_name = aggregate::by_name(&roles);
    for role in &roles {
        let object = role.object();
        if !aggregate::is_aggregated(object) {
            continue;
        }
        let rules = json!(aggregate::rules(object, &by_name));
        if object["rules"] != rules {
            show(store, role.name().name, &rules).await?;
        }
    }
    Ok(())
}

async fn show(store: &LedgerStore, name: &str, rules: &Value) -> Result<(), StoreError> {
    let key = ObjectKey::new(CLUSTER_ROLES, "", name);
    let change = |row: &mut Object| {
        // It was given rules of its own, or another replica was faster.
        if !row.body["aggregationRule"].is_object() || row.body["rules"] == *rules {
            return Err(Status::conflict(
                GROUP,
                "clusterroles",
                name,
                "nothing is to be done",
            ));
        }
        row.body["rules"] = rules.clone();
        Ok(())
    };
    match store.change(&context(name), &key, change).await {
        Ok(_) | Err(StoreError::Refused(_) | StoreError::NotFound) => Ok(()),
        Err(error) => Err(error),
    }
}

fn context(name: &str) -> RequestContext {
    RequestContext {
        user: UserInfo {
            name: format!("system:{MANAGER}"),
            ..UserInfo::default()
        },
        verb: Verb::Update,
        group: GROUP.to_owned(),
        version: "v1".to_owned(),
        resource: "clusterroles".to_owned(),
        subresource: String::new(),
        namespace: String::new(),
        name: name.to_owned(),
        dry_run: false,
        now: Timestamp::now(),
        user_agent: MANAGER.to_owned(),
    }
}
