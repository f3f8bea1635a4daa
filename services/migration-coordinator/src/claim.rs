//! Takes jobs that nobody drives: new ones at once, a dead owner's when its lease has run out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_model::JobId;
use godwit_runtime::failpoint;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::warn;

use crate::drive;
use crate::drives::Listed;
use crate::shared::Shared;

/// How often the ledger is asked for abandoned jobs although nobody poked.
const POLL: Duration = Duration::from_millis(500);
/// Shortest pause between two attempts that nobody poked for: a lease that others take or renew
/// must not be spun on, and every commit wakes us.
const CLAIM_PAUSE: Duration = Duration::from_millis(10);

/// Claims and drives jobs until shutdown. `pokes` names jobs that changed, `None` for any.
pub(crate) async fn claim_all(shared: Arc<Shared>, mut pokes: mpsc::Receiver<Option<JobId>>) {
    let mut drives: JoinSet<()> = JoinSet::new();
    let mut wakeups = shared.ledger.wakeups();
    let mut free = Instant::now();
    loop {
        claim_open(&shared, &mut drives).await;
        if free <= Instant::now() {
            free = Instant::now() + until_free(&shared).await;
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => break,
            Some(poke) = pokes.recv() => wake(&shared, poke.as_ref()),
            Some(ended) = drives.join_next() => if let Err(error) = ended {
                warn!(%error, "a drive ended badly; its lease will run out");
            },
            _ = wakeups.next(free.saturating_duration_since(Instant::now())) => {
                tokio::time::sleep(CLAIM_PAUSE).await; // debounce
            }
        }
    }
    while drives.join_next().await.is_some() {}
}

/// How long nothing can be claimed unless somebody wakes us: until the next lease of another owner
/// runs out, should it not be renewed. Whoever takes one later has it for longer.
async fn until_free(shared: &Shared) -> Duration {
    match shared.ledger.job_lease_next(&shared.owner).await {
        Ok(Some(left)) => left.clamp(CLAIM_PAUSE, POLL),
        Ok(None) | Err(_) => POLL,
    }
}

async fn claim_open(shared: &Arc<Shared>, drives: &mut JoinSet<()>) {
    loop {
        let ttl = shared.config.lease_ttl();
        let lease = match shared.ledger.job_claim(&shared.owner, ttl).await {
            Ok(Some(lease)) => lease,
            Ok(None) => return,
            Err(error) => {
                warn!(%error, "no job could be claimed");
                return;
            }
        };
        failpoint!("ledger.claim.after");
        let listed = Listed::begin(shared, &lease);
        shared.queue.moved();
        let shared = Arc::clone(shared);
        drives.spawn(async move { drive::drive(shared, lease, listed.bells()).await });
    }
}

fn wake(shared: &Shared, job: Option<&JobId>) {
    match job {
        Some(job) => {
            if let Some(bells) = shared.drives.of(job) {
                bells.poked.notify_one();
            }
        }
        None => shared.queue.moved(),
    }
}
