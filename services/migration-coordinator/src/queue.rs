//! One reading of the queue for all drives of this process: whose turn it is, and of whom there may
//! be news.
//!
//! A drive that has its turn is woken, and no other. It is only told to try: whether a slot is free
//! is counted again under the ledger's lock, in `step.rs`.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use godwit_ledger::{LedgerError, QueueRow};
use godwit_model::JobId;
use godwit_model::migration::queue::{self, Entry, Turn};
use tokio::sync::Notify;
use tracing::debug;

use crate::shared::Shared;

/// How often the queue is read although nobody knows of a change.
const POLL: Duration = Duration::from_secs(1);
/// Shortest time between two readings; a long queue is read for a third of the time at most.
const PAUSE: Duration = Duration::from_millis(5);

/// The queue as it was read last.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    turns: RwLock<Arc<HashMap<JobId, Turn>>>,
    moved: Notify,
}

impl Queue {
    /// A slot may have become free, or a job may have come.
    pub(crate) fn moved(&self) {
        self.moved.notify_one();
    }

    /// Whether it is the turn of a pending job; `None` for one that came after the last reading.
    pub(crate) fn turn(&self, job: &JobId) -> Option<Turn> {
        let turns = self.turns.read().unwrap_or_else(PoisonError::into_inner);
        turns.get(job).cloned()
    }

    fn set(&self, turns: HashMap<JobId, Turn>) {
        *self.turns.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(turns);
    }
}

/// Reads the queue after each change of it, until shutdown.
pub(crate) async fn follow(shared: Arc<Shared>) {
    let mut cancelled = HashMap::new();
    loop {
        let began = Instant::now();
        if !shared.drives.is_empty()
            && let Err(error) = read(&shared, &mut cancelled).await
        {
            debug!(%error, "the queue could not be read");
        }
        tokio::time::sleep(PAUSE.max(began.elapsed() * 2)).await; // debounce
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = shared.queue.moved.notified() => {}
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

/// `cancelled` says of each job whether the last reading knew that it is to be cancelled.
async fn read(shared: &Shared, cancelled: &mut HashMap<JobId, bool>) -> Result<(), LedgerError> {
    let rows = shared.ledger.queue().await?;
    for row in &rows {
        let known = cancelled.get(&row.entry.id).copied().unwrap_or_default();
        // Fences come and go by what is heard of hosts.
        if ((row.cancelled && !known) || row.fenced)
            && let Some(bells) = shared.drives.of(&row.entry.id)
        {
            bells.poked.notify_one();
        }
    }
    *cancelled = rows
        .iter()
        .map(|row| (row.entry.id.clone(), row.cancelled))
        .collect();
    let entries: Vec<Entry> = rows
        .into_iter()
        .map(|QueueRow { entry, .. }| entry)
        .collect();
    let turns = queue::turns(&entries, shared.limits().queue);
    let mut due = vec![];
    for (job, turn) in &turns {
        if *turn == Turn::Start {
            due.push(job.clone());
        }
    }
    shared.queue.set(turns);
    for job in due {
        if let Some(bells) = shared.drives.of(&job) {
            bells.turn.notify_one();
        }
    }
    Ok(())
}
