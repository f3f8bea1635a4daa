//! Orders under way, and what is remembered of machines between rounds. Lost with the process, and
//! nothing is lost by that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use godwit_ledger::LedgerError;
use godwit_model::MachineId;
use godwit_runtime::backoff::Backoff;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::machines::Machines;

/// Shortest and longest pause before an order that failed is given again.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Most machines that are being started: a fleet that comes up must not bury hosts and ledger under
/// all of its machines. The rounds come back to those that have to wait.
const STARTS_MAX: usize = 256;
/// Longest wait for orders under way when the process ends.
const END_MAX: Duration = Duration::from_secs(3);

/// Orders, one at a time for each machine.
#[derive(Debug)]
pub(crate) struct Orders {
    notes: Mutex<HashMap<MachineId, Note>>,
    tasks: TaskTracker,
    starts: Arc<Semaphore>,
}

impl Default for Orders {
    fn default() -> Self {
        Self {
            notes: Mutex::default(),
            tasks: TaskTracker::new(),
            starts: Arc::new(Semaphore::new(STARTS_MAX)),
        }
    }
}

/// What is remembered of one machine.
#[derive(Debug, Default)]
struct Note {
    /// An order is under way.
    busy: bool,
    /// Pauses between orders that fail, and when the present one ends.
    retry: Option<(Backoff, Instant)>,
    /// Since when its host has not named it.
    missing: Option<Instant>,
}

impl Orders {
    /// Runs an order for a machine beside the rounds, and has the next round look at it.
    pub(crate) fn give<F>(&self, machines: &Arc<Machines>, machine: MachineId, order: F)
    where
        F: Future<Output = Result<(), LedgerError>> + Send + 'static,
    {
        self.notes().entry(machine.clone()).or_default().busy = true;
        let machines = Arc::clone(machines);
        self.tasks.spawn(async move {
            tokio::select! {
                done = order => if let Err(error) = done {
                    debug!(%machine, %error, "an order's outcome was not recorded");
                },
                () = machines.shutdown.cancelled() => {}
            }
            machines.orders.change(&machine, |note| note.busy = false);
            machines.inventory.machines_changed.notify_one();
        });
    }

    /// Waits for the orders under way, not for long.
    pub(crate) async fn end(&self) {
        self.tasks.close();
        if tokio::time::timeout(END_MAX, self.tasks.wait())
            .await
            .is_err()
        {
            debug!("orders were cut short");
        }
    }

    /// Room for one more start, until that is dropped; `None` when there is none now.
    pub(crate) fn room_to_start(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.starts).try_acquire_owned().ok()
    }

    /// Whether an order for the machine is under way.
    pub(crate) fn is_busy(&self, machine: &MachineId) -> bool {
        self.notes().get(machine).is_some_and(|note| note.busy)
    }

    /// Whether any order is under way.
    #[cfg(test)]
    pub(crate) fn are_busy(&self) -> bool {
        self.notes().values().any(|note| note.busy)
    }

    /// An order failed: the next waits, longer each time.
    pub(crate) fn failed(&self, machine: &MachineId) {
        let mut notes = self.notes();
        let note = notes.entry(machine.clone()).or_default();
        let (min, max) = RETRY_PAUSES;
        let (mut pauses, _) = note
            .retry
            .take()
            .unwrap_or_else(|| (Backoff::new(min, max), Instant::now()));
        let due = Instant::now() + pauses.pause();
        note.retry = Some((pauses, due));
    }

    /// An order worked.
    pub(crate) fn worked(&self, machine: &MachineId) {
        self.change(machine, |note| note.retry = None);
    }

    /// Whether the pause after a failed order lasts.
    pub(crate) fn pauses(&self, machine: &MachineId) -> bool {
        let notes = self.notes();
        let retry = notes.get(machine).and_then(|note| note.retry.as_ref());
        retry.is_some_and(|(_, due)| Instant::now() < *due)
    }

    /// The machine's host doesn't name it. Answers for how long that has been so.
    pub(crate) fn missing_for(&self, machine: &MachineId) -> Duration {
        let mut notes = self.notes();
        let note = notes.entry(machine.clone()).or_default();
        note.missing.get_or_insert_with(Instant::now).elapsed()
    }

    /// The machine's host names it.
    pub(crate) fn found(&self, machine: &MachineId) {
        self.change(machine, |note| note.missing = None);
    }

    /// Forgets machines that nothing has to be remembered of.
    fn change(&self, machine: &MachineId, change: impl FnOnce(&mut Note)) {
        let mut notes = self.notes();
        let Some(note) = notes.get_mut(machine) else {
            return;
        };
        change(note);
        if !note.busy && note.retry.is_none() && note.missing.is_none() {
            notes.remove(machine);
        }
    }

    fn notes(&self) -> MutexGuard<'_, HashMap<MachineId, Note>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
