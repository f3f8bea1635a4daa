//! Keeps the watch cache up to date: the only task that writes it.
//!
//! Woken by commits of this process and of others; polls slowly, because wake-ups are only hints.

use std::sync::Arc;
use std::time::Duration;

use godwit_ledger::{Changes, Ledger, LedgerError, Mark};
use godwit_model::Revision;
use godwit_runtime::admin::Readiness;
use godwit_runtime::backoff::Backoff;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::watch_cache::{Kept, WatchCache};

/// Longest time without looking.
const POLL: Duration = Duration::from_secs(1);
/// First and longest pause after an error of the database; up to twice as long by jitter.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(250));
/// Changes read at a time.
const BATCH_MAX: i64 = 1000;

/// Name of the condition that the cache follows the ledger.
pub(crate) const READY: &str = "watch cache";
/// Why it may not.
const UNREACHED: &str = "the ledger can't be reached";

/// Wakes the feeder up.
#[derive(Clone, Default)]
pub(crate) struct Poke(Arc<Notify>);

impl Poke {
    /// There is something to read.
    pub(crate) fn now(&self) {
        self.0.notify_one();
    }
}

/// Fills the cache anew. Answers how far it is.
pub(crate) async fn fill(ledger: &Ledger, cache: &WatchCache) -> Result<Mark, LedgerError> {
    let mut objects: Vec<Kept> = Vec::new();
    let mark = ledger.snapshot(|object| objects.push(object.into()));
    let mark = mark.await?;
    let revision = mark.revision.0;
    info!(objects = objects.len(), revision, "watch cache filled");
    cache.reset(objects, revision);
    Ok(mark)
}

/// Follows the changes until shutdown. Not ready while the ledger can't be read.
pub(crate) async fn follow(
    mut feed: Feed,
    poke: Poke,
    (readiness, shutdown): (Readiness, CancellationToken),
) {
    let mut wakeups = feed.ledger.wakeups();
    let mut backoff = Backoff::new(RETRY_PAUSES.0, RETRY_PAUSES.1);
    loop {
        let read = feed.catch_up().await;
        feed.cache.set_followed(read.is_ok());
        if let Err(error) = read {
            readiness.fails(READY, UNREACHED);
            warn!(%error, "failed to read changes");
            if !backoff.wait(&shutdown).await {
                return;
            }
            continue;
        }
        readiness.set(READY, true);
        backoff.reset();
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = poke.0.notified() => {}
            _ = wakeups.next(POLL) => {}
        }
    }
}

/// The reader of the changes.
pub(crate) struct Feed {
    pub(crate) ledger: Ledger,
    pub(crate) cache: WatchCache,
    /// How far the cache is.
    pub(crate) mark: Mark,
}

impl Feed {
    async fn catch_up(&mut self) -> Result<(), LedgerError> {
        loop {
            // Committed before the changes are read: then they are among them.
            let acknowledged = self.cache.acknowledged();
            let (changes, newest) = self.ledger.changes_since(self.mark, BATCH_MAX).await?;
            match changes {
                Changes::Rows(rows) => {
                    let more = i64::try_from(rows.len()).unwrap_or(i64::MAX) >= BATCH_MAX;
                    if let Some(last) = rows.last() {
                        self.mark = last.mark();
                        self.cache.apply(rows);
                    }
                    if more {
                        continue;
                    }
                    if newest.0 >= acknowledged.max(self.cache.revision()) {
                        self.cache.advance(newest.0);
                        return Ok(());
                    }
                    self.start_again(newest).await?;
                }
                Changes::Compacted { oldest } => {
                    let oldest = oldest.0;
                    warn!(oldest, "changes were pruned before they were read");
                    self.mark = fill(&self.ledger, &self.cache).await?;
                }
                Changes::Lost { newest } => self.start_again(newest).await?,
            }
        }
    }

    /// The database is an older copy of the one that was read. What is cached may never have been,
    /// so every watcher lists again, and revisions that were seen don't come again.
    async fn start_again(&mut self, newest: Revision) -> Result<(), LedgerError> {
        let seen = self.cache.revision().max(self.cache.acknowledged());
        error!(
            seen,
            found = newest.0,
            "the ledger lost changes that were seen here: an older copy of it has taken over"
        );
        self.ledger.revisions_skip(Revision(seen)).await?;
        self.mark = fill(&self.ledger, &self.cache).await?;
        Ok(())
    }
}
