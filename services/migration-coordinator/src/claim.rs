//! Takes jobs that nobody drives: new ones at once, a dead owner's when its lease has run out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use godwit_model::JobId;
use godwit_runtime::failpoint;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tracing::warn;

use crate::drive;
use crate::shared::Shared;

/// How often the ledger is asked for abandoned jobs although nobody poked.
const POLL: Duration = Duration::from_millis(500);
/// Shortest pause between two attempts: a lease that others take or renew must not be spun on.
const CLAIM_PAUSE: Duration = Duration::from_millis(10);

/// Claims and drives jobs until shutdown. `pokes` names jobs that changed, `None` for any.
pub(crate) async fn claim_all(shared: Arc<Shared>, mut pokes: mpsc::Receiver<Option<JobId>>) {
    let mut drives: JoinSet<(JobId, Arc<Notify>)> = JoinSet::new();
    let mut awake: HashMap<JobId, Arc<Notify>> = HashMap::new();
    let mut wakeups = shared.ledger.wakeups();
    loop {
        claim_open(&shared, &mut drives, &mut awake).await;
        let pause = until_free(&shared).await;
        tokio::select! {
            () = shared.shutdown.cancelled() => break,
            Some(poke) = pokes.recv() => wake(&awake, poke.as_ref()),
            Some(ended) = drives.join_next() => match ended {
                Ok((job, poked)) => forget(&mut awake, &job, &poked),
                Err(error) => warn!(%error, "a drive ended badly; its lease will run out"),
            },
            _ = wakeups.next(pause) => {}
        }
    }
    while drives.join_next().await.is_some() {}
}

/// How long nothing can be claimed unless somebody wakes us: until the next lease of another owner
/// runs out, should it not be renewed.
async fn until_free(shared: &Shared) -> Duration {
    match shared.ledger.job_lease_next(&shared.owner).await {
        Ok(Some(left)) => left.clamp(CLAIM_PAUSE, POLL),
        Ok(None) | Err(_) => POLL,
    }
}

async fn claim_open(
    shared: &Arc<Shared>,
    drives: &mut JoinSet<(JobId, Arc<Notify>)>,
    awake: &mut HashMap<JobId, Arc<Notify>>,
) {
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
        let job = lease.job.id.clone();
        let poked = Arc::new(Notify::new());
        awake.insert(job.clone(), Arc::clone(&poked));
        let shared = Arc::clone(shared);
        drives.spawn(async move {
            drive::drive(shared, lease, Arc::clone(&poked)).await;
            (job, poked)
        });
    }
}

/// A job that was lost may have been claimed again: then its new drive is the one to poke.
fn forget(awake: &mut HashMap<JobId, Arc<Notify>>, job: &JobId, poked: &Arc<Notify>) {
    if awake
        .get(job)
        .is_some_and(|known| Arc::ptr_eq(known, poked))
    {
        awake.remove(job);
    }
}

fn wake(awake: &HashMap<JobId, Arc<Notify>>, job: Option<&JobId>) {
    match job {
        Some(job) => {
            if let Some(notify) = awake.get(job) {
                notify.notify_one();
            }
        }
        None => awake.values().for_each(|notify| notify.notify_one()),
    }
}
