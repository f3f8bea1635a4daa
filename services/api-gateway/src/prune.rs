//! Forgets changes and events that nobody needs any more.

use std::time::Duration;

use godwit_ledger::Ledger;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

const EVERY: Duration = Duration::from_secs(600);
/// Changes are kept for readers that were away: a restart of a service takes seconds, a broken
/// network some minutes.
const CHANGES_KEEP: Duration = Duration::from_secs(3600);
const CHANGES_MIN: u64 = 10_000;
const EVENTS_KEEP: Duration = Duration::from_secs(30 * 24 * 3600);

/// Prunes until `shutdown`. Several replicas may do it at once.
pub(crate) async fn run(ledger: Ledger, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        if let Err(error) = ledger.audit_prepare().await {
            warn!(%error, "failed to make room for the audit log");
        }
        let changes = ledger.changes_prune(CHANGES_KEEP, CHANGES_MIN).await;
        let events = ledger.events_prune(EVENTS_KEEP).await;
        match (changes, events) {
            (Ok(changes), Ok(events)) => info!(changes, events, "pruned"),
            (Err(error), _) | (_, Err(error)) => warn!(%error, "failed to prune"),
        }
    }
}
