//! Wake-ups: a hint that something was committed. Never a promise: who waits also polls.
//!
//! A notification inside a transaction would take a lock of the whole database at each commit, so
//! one task a process sends them afterwards, and few.

use crate::error::pauses;
use crate::session::{CONNECT_MAX, Sessions, Trouble, in_time};
use godwit_model::Revision;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{debug, error, info, warn};

const CHANNEL: &str = "godwit_ledger";
/// Shortest time between two notifications of a process.
const NOTIFY_PAUSE: Duration = Duration::from_millis(5);
/// First and longest pause between attempts to listen again; up to twice as long by jitter.
const LISTEN_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(250));
/// A silence after which the listener asks whether the server is still there.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Sends a notification after commits. Ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Notifier(Arc<watch::Sender<Revision>>);

impl Notifier {
    pub(crate) fn start(sessions: Sessions) -> Self {
        let (sender, receiver) = watch::channel(Revision::default());
        tokio::spawn(notify_all(sessions, receiver));
        Self(Arc::new(sender))
    }

    /// Something was committed, the newest change under `revision`.
    pub(crate) fn poke(&self, revision: Revision) {
        self.0.send_modify(|newest| *newest = revision.max(*newest));
    }
}

async fn notify_all(sessions: Sessions, mut committed: watch::Receiver<Revision>) {
    while committed.changed().await.is_ok() {
        let revision = *committed.borrow_and_update();
        if let Err(error) = notify(&sessions, revision).await {
            // Readers poll; the next commit tries again.
            debug!(%error, "wake-up not sent");
        }
        tokio::time::sleep(NOTIFY_PAUSE).await;
    }
}

async fn notify(sessions: &Sessions, revision: Revision) -> Result<(), sqlx::Error> {
    // A lost hint is no loss, so this commit need not wait for the disk.
    let statement =
        sqlx::query("SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)")
            .bind(CHANNEL)
            .bind(revision.to_string());
    sessions.get().await?.execute(statement).await.map(drop)
}

/// Listens on a connection of its own. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    woken: Arc<watch::Sender<()>>,
    task: JoinHandle<()>,
}

impl Listener {
    pub(crate) fn start(options: PgConnectOptions, trouble: Trouble) -> Self {
        let woken = Arc::new(watch::Sender::new(()));
        let ear = Ear {
            options,
            trouble,
            woken: Arc::clone(&woken),
            newest: Revision::default(),
            deaf: false,
        };
        let task = tokio::spawn(ear.listen_always());
        Self { woken, task }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The listener's task.
struct Ear {
    options: PgConnectOptions,
    trouble: Trouble,
    woken: Arc<watch::Sender<()>>,
    /// The newest revision that was heard of.
    newest: Revision,
    /// The last attempt to listen failed.
    deaf: bool,
}

impl Ear {
    async fn listen_always(mut self) {
        let mut waits = pauses(LISTEN_PAUSES);
        loop {
            if let Err(error) = self.listen().await {
                self.trouble.note();
                if !std::mem::replace(&mut self.deaf, true) {
                    warn!(%error, "listening for wake-ups broke, polling until it works again");
                    waits = pauses(LISTEN_PAUSES);
                }
            }
            tokio::time::sleep(waits.next().unwrap_or(LISTEN_PAUSES.1)).await;
        }
    }

    /// Listens until the connection breaks.
    async fn listen(&mut self) -> Result<(), sqlx::Error> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(CONNECT_MAX)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(self.options.clone())
            .await?;
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        self.compare(&mut listener).await?;
        in_time(listener.listen(CHANNEL)).await?;
        if std::mem::take(&mut self.deaf) {
            info!("listening for wake-ups again");
        }
        // What was committed before this moment was not heard.
        self.woken.send_replace(());
        loop {
            match timeout(SILENCE_MAX, listener.try_recv()).await {
                Ok(heard) => {
                    let lost = || sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
                    let heard = heard?.ok_or_else(lost)?;
                    let revision = heard.payload().parse().map(Revision).unwrap_or_default();
                    self.newest = self.newest.max(revision);
                    self.woken.send_replace(());
                }
                Err(_) => self.compare(&mut listener).await?,
            }
        }
    }

    /// Whether the server answers, and knows everything that was heard of.
    async fn compare(&mut self, listener: &mut PgListener) -> Result<(), sqlx::Error> {
        let value = sqlx::query_scalar("SELECT value FROM revision_counter");
        let value: i64 = in_time(value.fetch_one(listener)).await?;
        let found = Revision(u64::try_from(value).unwrap_or_default());
        if found < self.newest {
            let newest = self.newest;
            error!(%found, %newest, "the ledger lost its newest changes: it is an older copy");
        }
        self.newest = found;
        Ok(())
    }
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
