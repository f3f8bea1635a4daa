//! Forgets what was noted of changes on the nodes: who keeps them in memory is never far behind, and
//! reads all anew when it is.

use std::time::Duration;

use godwit_ledger::Ledger;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How often the log is pruned.
const EVERY: Duration = Duration::from_secs(60);
/// Changes that are kept: those of some minutes on a busy fleet.
const KEPT: u64 = 100_000;

/// Prunes until shutdown.
pub(crate) async fn prune(ledger: Ledger, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {} // poll
        }
        if let Err(error) = ledger.floor_changes_prune(KEPT).await {
            warn!(%error, "the log of the floor was not pruned");
        }
    }
}
