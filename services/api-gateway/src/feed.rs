//! Keeps the watch cache up to date: the only task that writes it.
//!
//! Woken by commits of this process and of others; polls slowly, because wake-ups are only hints.

use std::sync::Arc;
use std::time::Duration;

use godwit_ledger::{Changes, Ledger, LedgerError};
use godwit_model::Revision;
use godwit_runtime::admin::Readiness;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::watch_cache::WatchCache;

/// Longest time without looking.
const POLL: Duration = Duration::from_secs(1);
/// Pause after an error of the database.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Changes read at a time.
const BATCH_MAX: i64 = 1000;

/// Name of the condition that the cache follows the ledger.
pub(crate) const READY: &str = "watch cache";

/// Wakes the feeder up.
#[derive(Clone, Default)]
pub(crate) struct Poke(Arc<Notify>);

impl Poke {
    /// There is something to read.
    pub(crate) fn now(&self) {
        self.0.notify_one();
    }
}

/// Fills the cache for the first time.
pub(crate) async fn fill(ledger: &Ledger, cache: &WatchCache) -> Result<(), LedgerError> {
    let (objects, revision) = ledger.snapshot().await?;
    info!(
        objects = objects.len(),
        revision = revision.0,
        "watch cache filled"
    );
    cache.reset(objects, revision.0);
    Ok(())
}

/// Follows the changes until shutdown. Not ready while the ledger can't be read.
pub(crate) async fn follow(
    ledger: Ledger,
    cache: WatchCache,
    poke: Poke,
    life: (Readiness, CancellationToken),
) {
    let (readiness, shutdown) = life;
    let mut wakeups = ledger.wakeups();
    loop {
        let read = catch_up(&ledger, &cache).await;
        readiness.set(READY, read.is_ok());
        if let Err(error) = read {
            warn!(%error, "failed to read changes");
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = poke.0.notified() => {}
            _ = wakeups.next(POLL) => {}
        }
    }
}

async fn catch_up(ledger: &Ledger, cache: &WatchCache) -> Result<(), LedgerError> {
    loop {
        match ledger
            .changes_after(Revision(cache.revision()), BATCH_MAX)
            .await?
        {
            Changes::Rows(rows) => {
                let more = i64::try_from(rows.len()).unwrap_or(i64::MAX) >= BATCH_MAX;
                if !rows.is_empty() {
                    cache.apply(rows);
                }
                if !more {
                    return Ok(());
                }
            }
            Changes::Compacted { oldest } => {
                warn!(
                    oldest = oldest.0,
                    "changes were pruned before they were read"
                );
                fill(ledger, cache).await?;
            }
        }
    }
}
