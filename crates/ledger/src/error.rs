//! How a ledger call can end badly, by what the caller can do about it.

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use godwit_model::JobId;
use sqlx::postgres::{PgDatabaseError, PgSeverity};
use std::future::Future;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Why the ledger did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// An object of this key or UID exists.
    #[error("it already exists")]
    AlreadyExists,
    /// There is no such row.
    #[error("not found")]
    NotFound,
    /// The row is not what the caller believed: read again and decide again.
    #[error("it was changed by someone else")]
    Conflict,
    /// The machine has an open migration already.
    #[error("migration {job} of this machine is in progress")]
    MigrationInProgress {
        /// The open migration.
        job: JobId,
    },
    /// A constraint, named here, forbids it. The transaction is over.
    #[error("refused by {0}")]
    Refused(String),
    /// The database cannot be asked now and nothing was changed: try again.
    #[error("the database is unavailable")]
    Unavailable(#[source] sqlx::Error),
    /// The connection broke during the commit: it happened, or it did not. Never repeat blindly;
    /// read what is true and decide again.
    #[error("the outcome of the commit is unknown")]
    Unknown(#[source] sqlx::Error),
    /// Anything else: a defect of ours or of the schema.
    #[error("the database refused the statement")]
    Database(#[source] sqlx::Error),
}

/// Longest time that [`retry`] goes on.
const RETRY_TOTAL_MAX: Duration = Duration::from_secs(10);
/// First and longest pause of a retry; up to twice as long by jitter.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// Repeats `operation` while the database is unavailable, for at most 10 s.
///
/// `operation` begins its own transaction each time. An unknown commit is not repeated.
///
/// # Errors
/// The last error of `operation`.
pub async fn retry<T, F, O>(operation: O) -> Result<T, LedgerError>
where
    O: FnMut() -> F,
    F: Future<Output = Result<T, LedgerError>>,
{
    retry_for(RETRY_TOTAL_MAX, operation).await
}

/// As [`retry`]; no attempt begins later than `max` after the first.
pub(crate) async fn retry_for<T, F, O>(max: Duration, mut operation: O) -> Result<T, LedgerError>
where
    O: FnMut() -> F,
    F: Future<Output = Result<T, LedgerError>>,
{
    let end = Instant::now() + max;
    let mut pauses = pauses(RETRY_PAUSES);
    loop {
        let done = operation().await;
        let Err(LedgerError::Unavailable(_)) = &done else {
            return done;
        };
        match pauses.next() {
            Some(pause) if Instant::now() + pause < end => sleep(pause).await,
            Some(_) | None => return done,
        }
    }
}

/// Endless pauses, each about twice as long as the one before, never quite the same.
pub(crate) fn pauses((min, max): (Duration, Duration)) -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(min)
        .with_max_delay(max)
        .with_jitter()
        .without_max_times()
        .build()
}

impl From<sqlx::Error> for LedgerError {
    fn from(error: sqlx::Error) -> Self {
        if is_unavailable(&error) {
            return Self::Unavailable(error);
        }
        let constraint = error
            .as_database_error()
            .and_then(|error| error.constraint())
            .map(str::to_owned);
        match constraint {
            Some(constraint) => Self::Refused(constraint),
            None => Self::Database(error),
        }
    }
}

/// Whether a commit that was answered so may have happened. Only an answer of severity `ERROR` says
/// for sure that it did not: a server that ends a connection may do so right after the commit.
pub(crate) fn may_have_committed(error: &sqlx::Error) -> bool {
    let answer = error.as_database_error();
    let answer = answer.and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    answer.is_none_or(|answer| answer.severity() != PgSeverity::Error)
}

fn is_unavailable(error: &sqlx::Error) -> bool {
    if let Some(error) = error.as_database_error() {
        return error.code().is_some_and(|code| code_is_unavailable(&code));
    }
    matches!(
        error,
        sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::BeginFailed
    )
}

/// SQLSTATE of errors after which nothing was changed and another try may succeed.
fn code_is_unavailable(code: &str) -> bool {
    const CLASSES: [&str; 4] = [
        "08", // connection exception
        "40", // serialization failure, deadlock
        "53", // too many connections, out of disk or memory
        "57", // shutdown, crash, starting up, statement time-out
    ];
    const CODES: [&str; 3] = [
        "25006", // a standby, or a primary that was made read-only
        "25P03", // the transaction was idle for too long
        "55P03", // the lock was not had within lock_timeout
    ];
    CLASSES.iter().any(|class| code.starts_with(class)) || CODES.contains(&code)
}
