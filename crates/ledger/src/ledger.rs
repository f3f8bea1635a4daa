//! The handle that services hold: a pool of connections, the migrations, the wake-ups.

use crate::convert::At;
use crate::error::{pauses, retry_for};
use crate::numbers::Numbers;
use crate::session::{CONNECT_MAX, Session, Sessions};
use crate::tx::{Locked, Statement};
use crate::wakeup::{Listener, Notifier};
use crate::{LedgerError, Tx, Wakeups};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{ConnectOptions, Connection, PgConnection, Row};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::warn;

static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations");

/// Longest wait for a transaction to begin, other writers of this process included.
const BEGIN_MAX: Duration = Duration::from_secs(5);
/// How long a transaction that did not begin is tried again: connections may be dead by the dozen.
const BEGIN_RETRY_MAX: Duration = Duration::from_secs(1);
/// First and longest pause until a database is asked again that could not be had at the start.
const OPEN_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Transactions of this process that may have a connection at once: one writes, and the next waits
/// at the database already. More would only keep connections from readers.
const WRITERS_MAX: usize = 2;
/// Settings of each session. Whoever hangs in a transaction holds the revision lock, and with it
/// every writer, so the database ends such a transaction by itself: also a statement whose client
/// has gone, and a client that takes no answer. Waiting for a lock ends later than that, so that
/// who waits for one that hangs gets it. Plans don't depend on the arguments: every statement goes
/// by a key or by a partial index, so one planning is enough.
const SESSION: [(&str, &str); 6] = [
    ("idle_in_transaction_session_timeout", "2s"),
    ("tcp_user_timeout", "2s"),
    ("client_connection_check_interval", "1s"),
    ("lock_timeout", "2500ms"),
    ("statement_timeout", "30s"),
    ("synchronous_commit", "on"),
];

/// How to reach the ledger.
#[derive(Debug, Clone)]
pub struct LedgerConfig {
    /// Postgres URL; may name a unix socket as `postgres:///db?host=/path`.
    pub url: String,
    /// Most connections of this process, the listener's not counted.
    pub connections_max: u32,
}

/// The ledger. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    pub(crate) sessions: Sessions,
    pub(crate) numbers: Numbers,
    options: PgConnectOptions,
    writers: Arc<Semaphore>,
    notifier: Notifier,
    listener: Arc<OnceLock<Arc<Listener>>>,
}

impl Ledger {
    /// Connects and brings the schema up to date. Waits for a database that can't be had yet, and
    /// says so in the log.
    ///
    /// # Errors
    /// `Database`.
    pub async fn open(config: LedgerConfig) -> Result<Self, LedgerError> {
        let attempt = async || {
            let ledger = Self::connect(config.clone()).await?;
            ledger.migrate().await?;
            Ok(ledger)
        };
        let mut pauses = pauses(OPEN_PAUSES);
        let mut waits = false;
        loop {
            let unavailable = match attempt().await {
                Err(LedgerError::Unavailable(why)) => why,
                opened => return opened,
            };
            if !waits {
                warn!(error = %unavailable, "waiting for the database");
                waits = true;
            }
            sleep(pauses.next().unwrap_or(OPEN_PAUSES.1)).await; // back-off
        }
    }

    /// Connects. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// `Unavailable` when the database does not answer, `Database` when the URL is malformed.
    pub async fn connect(config: LedgerConfig) -> Result<Self, LedgerError> {
        let options: PgConnectOptions = config.url.parse()?;
        let options = match options.get_application_name() {
            Some(_) => options,
            None => options.application_name("godwit"),
        };
        let session = options.clone().options(SESSION);
        let sessions = Sessions::open(session, config.connections_max).await?;
        Ok(Self {
            notifier: Notifier::start(sessions.clone()),
            sessions,
            numbers: Numbers::default(),
            options,
            writers: Arc::new(Semaphore::new(WRITERS_MAX)),
            listener: Arc::default(),
        })
    }

    /// Applies the embedded migrations that are missing, one process at a time.
    ///
    /// A database that is newer than this program is left alone, so that an old and a new version
    /// can run together. Where nothing is missing, the right to read is enough.
    ///
    /// # Errors
    /// `Unavailable`, or `Database` when a migration failed or was changed after it was applied.
    pub async fn migrate(&self) -> Result<(), LedgerError> {
        // Its own connection, without limits of time: a migration may take long, and so may the
        // wait for another process that migrates.
        let connecting = timeout(CONNECT_MAX, self.options.connect()).await;
        let mut connection = connecting.map_err(|_| sqlx::Error::PoolTimedOut)??;
        let done = migrate(&mut connection).await;
        connection.close().await.ok();
        done
    }

    /// Begins a write transaction and takes the cluster-wide revision lock.
    ///
    /// Never hold it across a call to another process, and never for a second: the database ends a
    /// transaction that hears nothing for two. Inside it ask the transaction, not the ledger.
    /// Dropping it rolls back.
    ///
    /// # Errors
    /// `Unavailable` when no connection or lock was had within 5 s.
    pub async fn begin(&self) -> Result<Tx, LedgerError> {
        // On the heap, since every caller's future holds it.
        let begun = timeout(BEGIN_MAX, Box::pin(self.begin_in_turn())).await;
        begun.unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut.into()))
    }

    async fn begin_in_turn(&self) -> Result<Tx, LedgerError> {
        let asked = Instant::now();
        let turn = Arc::clone(&self.writers).acquire_owned().await;
        let turn = turn.map_err(|_| sqlx::Error::PoolClosed)?;
        let locked = retry_for(BEGIN_RETRY_MAX, || Locked::begin(&self.sessions)).await?;
        self.numbers.begun(asked.elapsed());
        let shared = (self.notifier.clone(), self.numbers.clone());
        Ok(Tx::new(locked, turn, shared))
    }

    /// Wake-ups after commits of any process. Call it inside a tokio runtime.
    pub fn wakeups(&self) -> Wakeups {
        let listener = self.listener.get_or_init(|| {
            let trouble = self.sessions.trouble.clone();
            Arc::new(Listener::start(self.options.clone(), trouble))
        });
        Wakeups::new(Arc::clone(listener))
    }

    /// The database's clock.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn now(&self) -> Result<Timestamp, LedgerError> {
        let row = self
            .fetch_one(sqlx::query("SELECT clock_timestamp() AS now"))
            .await?;
        Ok(row.try_get::<At, _>("now")?.0)
    }

    pub(crate) async fn session(&self) -> Result<Session, LedgerError> {
        Ok(self.sessions.get().await?)
    }

    pub(crate) fn poke(&self) {
        self.notifier.poke(godwit_model::Revision::default());
    }

    pub(crate) async fn execute(&self, statement: Statement<'_>) -> Result<u64, LedgerError> {
        Ok(self.sessions.get().await?.execute(statement).await?)
    }

    pub(crate) async fn fetch_one(&self, statement: Statement<'_>) -> Result<PgRow, LedgerError> {
        Ok(self.sessions.get().await?.fetch_one(statement).await?)
    }

    pub(crate) async fn fetch_optional(
        &self,
        statement: Statement<'_>,
    ) -> Result<Option<PgRow>, LedgerError> {
        Ok(self.sessions.get().await?.fetch_optional(statement).await?)
    }

    pub(crate) async fn fetch_all(
        &self,
        statement: Statement<'_>,
    ) -> Result<Vec<PgRow>, LedgerError> {
        Ok(self.sessions.get().await?.fetch_all(statement).await?)
    }
}

async fn migrate(connection: &mut PgConnection) -> Result<(), LedgerError> {
    if is_migrated(connection).await? {
        return Ok(());
    }
    let mut migrator = Migrator {
        migrations: MIGRATIONS.migrations.clone(),
        ..Migrator::DEFAULT
    };
    migrator.set_ignore_missing(true);
    migrator
        .run_direct(None, connection, false)
        .await
        .map_err(migration_failed)
}

fn migration_failed(error: MigrateError) -> LedgerError {
    if let MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) = error {
        return error.into();
    }
    LedgerError::Database(sqlx::Error::Migrate(Box::new(error)))
}

/// Whether every embedded migration is applied. Needs no lock and no right but to read.
async fn is_migrated(connection: &mut PgConnection) -> Result<bool, LedgerError> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(false);
    }
    let applied = connection
        .list_applied_migrations("_sqlx_migrations")
        .await
        .map_err(migration_failed)?;
    Ok(MIGRATIONS.iter().all(|migration| {
        applied.iter().any(|applied| {
            applied.version == migration.version && applied.checksum == migration.checksum
        })
    }))
}

/// Says which schema this program brings, in hexadecimal digits: differs when a migration does.
pub fn schema_fingerprint() -> String {
    let mut hash = Sha256::new();
    for migration in MIGRATIONS.iter() {
        hash.update(migration.version.to_be_bytes());
        hash.update(&migration.checksum);
    }
    let digest = hash.finalize();
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
