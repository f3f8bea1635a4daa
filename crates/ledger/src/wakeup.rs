//! Wake-ups: a hint that something was committed. Never a promise: who waits also polls.
//!
//! A notification inside a transaction would take a lock of the whole database at each commit, so
//! one task a process sends them afterwards, and few.

use godwit_model::Revision;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

const CHANNEL: &str = "godwit_ledger";
/// Shortest time between two notifications of a process.
const NOTIFY_PAUSE: Duration = Duration::from_millis(5);
/// Time between two attempts to listen again.
const LISTEN_PAUSE: Duration = Duration::from_millis(500);

/// Sends a notification after commits. Ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Notifier(Arc<watch::Sender<Revision>>);

impl Notifier {
    pub(crate) fn start(pool: PgPool) -> Self {
        let (sender, receiver) = watch::channel(Revision::default());
        tokio::spawn(notify_all(pool, receiver));
        Self(Arc::new(sender))
    }

    /// Something was committed, the newest change under `revision`.
    pub(crate) fn poke(&self, revision: Revision) {
        self.0.send_modify(|newest| *newest = revision.max(*newest));
    }
}

async fn notify_all(pool: PgPool, mut committed: watch::Receiver<Revision>) {
    while committed.changed().await.is_ok() {
        let revision = *committed.borrow_and_update();
        // A lost hint is no loss, so this commit need not wait for the disk.
        let sent =
            sqlx::query("SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)")
                .bind(CHANNEL)
                .bind(revision.to_string())
                .execute(&pool)
                .await;
        if let Err(error) = sent {
            // Readers poll; the next commit tries again.
            debug!(%error, "wake-up not sent");
        }
        tokio::time::sleep(NOTIFY_PAUSE).await;
    }
}

/// Listens on a connection of its own. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    woken: Arc<watch::Sender<()>>,
    task: JoinHandle<()>,
}

impl Listener {
    pub(crate) fn start(options: PgConnectOptions) -> Self {
        let woken = Arc::new(watch::Sender::new(()));
        let task = tokio::spawn(listen_always(options, Arc::clone(&woken)));
        Self { woken, task }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen_always(options: PgConnectOptions, woken: Arc<watch::Sender<()>>) {
    loop {
        if let Err(error) = listen(&options, &woken).await {
            warn!(%error, "listening for wake-ups broke, polling until it works again");
        }
        tokio::time::sleep(LISTEN_PAUSE).await;
    }
}

/// Listens until the connection breaks.
async fn listen(options: &PgConnectOptions, woken: &watch::Sender<()>) -> Result<(), sqlx::Error> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options.clone())
        .await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    // What was committed before this moment was not heard.
    woken.send_replace(());
    while listener.try_recv().await?.is_some() {
        woken.send_replace(());
    }
    Ok(())
}

/// Wake-ups after commits of any process, over a connection of its own that is made again when
/// it breaks.
#[derive(Debug)]
pub struct Wakeups {
    woken: watch::Receiver<()>,
    _listener: Arc<Listener>,
}

impl Wakeups {
    pub(crate) fn new(listener: Arc<Listener>) -> Self {
        Self {
            woken: listener.woken.subscribe(),
            _listener: listener,
        }
    }

    /// Resolves at a commit since the last call, or after `max`. Answers whether it was a commit.
    ///
    /// May also answer true for no reason, such as after the connection was made again. Dropping
    /// the future loses nothing.
    pub async fn next(&mut self, max: Duration) -> bool {
        let woken = tokio::time::timeout(max, self.woken.changed()).await;
        matches!(woken, Ok(Ok(())))
    }
}
