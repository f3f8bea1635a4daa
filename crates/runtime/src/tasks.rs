//! Tasks with a name: one that panics ends the process, and the end of a process waits for them.
//!
//! A service whose loop is gone would look healthy and do nothing; a restart is the safer answer.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{LazyLock, Mutex, PoisonError};

use futures::FutureExt;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::task::TaskTracker;
use tracing::error;

static TASKS: LazyLock<Tasks> = LazyLock::new(Tasks::default);

#[derive(Debug)]
struct Tasks {
    tracker: TaskTracker,
    /// Names of those that run, by number of their start.
    running: Mutex<BTreeMap<u64, &'static str>>,
    started: std::sync::atomic::AtomicU64,
    /// The first task that panicked.
    panicked: watch::Sender<Option<&'static str>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            tracker: TaskTracker::new(),
            running: Mutex::default(),
            started: std::sync::atomic::AtomicU64::new(0),
            panicked: watch::channel(None).0,
        }
    }
}

/// Starts a task that must end when the service's `shutdown` is cancelled.
///
/// A panic in it is logged and ends the process, when [`run`](crate::run) drives it.
pub fn spawn<F>(name: &'static str, future: F) -> AbortHandle
where
    F: Future<Output = ()> + Send + 'static,
{
    let entry = Entry::new(name);
    let task = TASKS.tracker.spawn(async move {
        // Gone whether the task ends, panics, or is aborted.
        let _entry = entry;
        if AssertUnwindSafe(future).catch_unwind().await.is_err() {
            error!(task = name, "task panicked");
            TASKS.panicked.send_if_modified(|first| {
                let new = first.is_none();
                *first = first.or(Some(name));
                new
            });
        }
    });
    task.abort_handle()
}

struct Entry(u64);

impl Entry {
    fn new(name: &'static str) -> Self {
        let number = TASKS
            .started
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut running = TASKS.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(number, name);
        Self(number)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut running = TASKS.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.remove(&self.0);
    }
}

/// Resolves with the name of the first task that panicked.
pub(crate) async fn panicked() -> &'static str {
    let mut panicked = TASKS.panicked.subscribe();
    // The sender is a static: it is never closed.
    let name = panicked.wait_for(Option::is_some).await;
    name.ok().and_then(|name| *name).unwrap_or("unknown")
}

/// Resolves when no task runs.
pub(crate) async fn ended() {
    TASKS.tracker.close();
    TASKS.tracker.wait().await;
}

/// Names of the tasks that run, in the order of their start.
pub(crate) fn running() -> Vec<&'static str> {
    let running = TASKS.running.lock().unwrap_or_else(PoisonError::into_inner);
    running.values().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // One test: the tasks of a process are one set.
    #[tokio::test]
    async fn a_task_is_listed_while_it_runs_and_a_panic_is_told() {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        spawn("patient", async move {
            let _ = stopped.await;
        });
        assert_eq!(running(), ["patient"]);
        spawn("broken", async { panic!("on purpose") });
        assert_eq!(panicked().await, "broken");
        drop(stop);
        ended().await;
        assert!(running().is_empty());
    }
}
