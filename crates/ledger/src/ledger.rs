//! The handle that services hold: a pool of connections, the migrations, the wake-ups.

use crate::convert::At;
use crate::tx::Statement;
use crate::wakeup::{Listener, Notifier};
use crate::{LedgerError, Tx, Wakeups};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool, Row};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations");

/// Longest wait for a connection of the pool.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for other writers of this process.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that was idle this long is tried before use: it may have died unseen.
const IDLE_UNTRIED_MAX: Duration = Duration::from_secs(1);
/// Transactions of this process that may have a connection at once: one writes, and the next waits
/// at the database already. More would only keep connections from readers.
const WRITERS_MAX: usize = 2;
/// Settings of each session. Whoever hangs in a transaction holds the revision lock, and with it
/// every writer, so the database ends such a transaction by itself. Plans don't depend on the
/// arguments: every statement goes by a key or by a partial index, so one planning is enough.
const SESSION: [(&str, &str); 4] = [
    ("lock_timeout", "10s"),
    ("statement_timeout", "30s"),
    ("idle_in_transaction_session_timeout", "10s"),
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
    pool: PgPool,
    options: PgConnectOptions,
    writers: Arc<Semaphore>,
    notifier: Notifier,
    listener: Arc<OnceLock<Arc<Listener>>>,
}

impl Ledger {
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
        let pool = PgPoolOptions::new()
            .max_connections(config.connections_max)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    Ok(meta.idle_for < IDLE_UNTRIED_MAX || connection.ping().await.is_ok())
                })
            })
            .connect_with(options.clone().options(SESSION))
            .await?;
        Ok(Self {
            notifier: Notifier::start(pool.clone()),
            pool,
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
        let mut connection = self.options.connect().await?;
        let done = migrate(&mut connection).await;
        connection.close().await.ok();
        done
    }

    /// Begins a write transaction and takes the cluster-wide revision lock.
    ///
    /// Never hold it across a call to another process. Inside it ask the transaction, not the
    /// ledger. Dropping it rolls back.
    ///
    /// # Errors
    /// `Unavailable` when no connection or lock was had in time.
    pub async fn begin(&self) -> Result<Tx, LedgerError> {
        let turn = Arc::clone(&self.writers).acquire_owned();
        let turn = timeout(WRITE_TIMEOUT, turn).await;
        let Ok(Ok(turn)) = turn else {
            return Err(LedgerError::Unavailable(sqlx::Error::PoolTimedOut));
        };
        Tx::begin(&self.pool, turn, self.notifier.clone()).await
    }

    /// Wake-ups after commits of any process. Call it inside a tokio runtime.
    pub fn wakeups(&self) -> Wakeups {
        let listener = self
            .listener
            .get_or_init(|| Arc::new(Listener::start(self.options.clone())));
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

    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub(crate) fn poke(&self) {
        self.notifier.poke(godwit_model::Revision::default());
    }

    pub(crate) async fn execute(&self, statement: Statement<'_>) -> Result<u64, LedgerError> {
        Ok(statement.execute(&self.pool).await?.rows_affected())
    }

    pub(crate) async fn fetch_one(&self, statement: Statement<'_>) -> Result<PgRow, LedgerError> {
        Ok(statement.fetch_one(&self.pool).await?)
    }

    pub(crate) async fn fetch_optional(
        &self,
        statement: Statement<'_>,
    ) -> Result<Option<PgRow>, LedgerError> {
        Ok(statement.fetch_optional(&self.pool).await?)
    }

    pub(crate) async fn fetch_all(
        &self,
        statement: Statement<'_>,
    ) -> Result<Vec<PgRow>, LedgerError> {
        Ok(statement.fetch_all(&self.pool).await?)
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
