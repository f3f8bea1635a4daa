//! What this process drives: the leases that it keeps, and how each drive is told of news.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use godwit_ledger::Lease;
use godwit_model::{Epoch, JobId};
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tracing::debug;

use crate::shared::Shared;

/// How one drive is told of news.
#[derive(Debug)]
pub(crate) struct Bells {
    epoch: Epoch,
    /// Something of the job changed: it has to be read again.
    pub(crate) poked: Notify,
    /// A slot is free for it.
    pub(crate) turn: Notify,
    /// Its lease is lost.
    pub(crate) lost: Notify,
}

/// All drives of this process, by job.
#[derive(Debug, Default)]
pub(crate) struct Drives(Mutex<HashMap<JobId, Arc<Bells>>>);

impl Drives {
    /// A drive begins. One of the same job that goes on has lost its lease.
    fn begin(&self, lease: &Lease) -> Arc<Bells> {
        let bells = Arc::new(Bells {
            epoch: lease.epoch,
            poked: Notify::new(),
            turn: Notify::new(),
            lost: Notify::new(),
        });
        let before = self.all().insert(lease.job.id.clone(), Arc::clone(&bells));
        if let Some(before) = before {
            before.lost.notify_one();
        }
        bells
    }

    /// A drive ended; a later one of the same job stays.
    fn end(&self, job: &JobId, bells: &Arc<Bells>) {
        let mut all = self.all();
        if all.get(job).is_some_and(|known| Arc::ptr_eq(known, bells)) {
            all.remove(job);
        }
    }

    /// Whether nothing is driven.
    pub(crate) fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    /// The bells of a job's drive; `None` when it has none here.
    pub(crate) fn of(&self, job: &JobId) -> Option<Arc<Bells>> {
        self.all().get(job).cloned()
    }

    fn leases(&self) -> Vec<(JobId, Epoch)> {
        let all = self.all();
        let leases = all.iter().map(|(job, bells)| (job.clone(), bells.epoch));
        leases.collect()
    }

    fn lose(&self, job: &JobId, leases: &[(JobId, Epoch)]) {
        let Some(bells) = self.of(job) else { return };
        // What was claimed again since is not what was lost.
        if leases.contains(&(job.clone(), bells.epoch)) {
            bells.lost.notify_one();
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<JobId, Arc<Bells>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A drive among the others, until this is dropped, however it ends: nobody keeps the lease of one
/// that is no more.
pub(crate) struct Listed {
    shared: Arc<Shared>,
    job: JobId,
    bells: Arc<Bells>,
}

impl Listed {
    /// Lists the drive of a job that was claimed.
    pub(crate) fn begin(shared: &Arc<Shared>, lease: &Lease) -> Self {
        Self {
            shared: Arc::clone(shared),
            job: lease.job.id.clone(),
            bells: shared.drives.begin(lease),
        }
    }

    /// How the drive is told of news.
    pub(crate) fn bells(&self) -> Arc<Bells> {
        Arc::clone(&self.bells)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.shared.drives.end(&self.job, &self.bells);
        self.shared.queue.moved();
    }
}

/// Keeps all leases of this process, also while an order takes longer than one lives, until there are
/// none after the shutdown. Whoever lost his is told, and not torn out of what he is recording at that
/// moment.
pub(crate) async fn keep_leases(shared: Arc<Shared>) {
    let mut renew = tokio::time::interval(shared.config.lease_renew());
    renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        renew.tick().await;
        let leases = shared.drives.leases();
        if leases.is_empty() {
            if shared.shutdown.is_cancelled() {
                return;
            }
            continue;
        }
        let ttl = shared.config.lease_ttl();
        let renewed = shared.ledger.jobs_renew(&shared.owner, &leases, ttl);
        match renewed.await {
            Ok(lost) => {
                for job in &lost {
                    shared.drives.lose(job, &leases);
                }
            }
            Err(error) => debug!(%error, "leases not renewed"),
        }
    }
}
