//! How a ledger call can end badly, by what the caller can do about it.

use backon::{ExponentialBuilder, Retryable};
use godwit_model::JobId;
use std::future::Future;
use std::time::Duration;

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
/// First pause of [`retry`]; doubled each time, with jitter.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(5);
/// Longest pause of [`retry`].
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(500);

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
    let pauses = ExponentialBuilder::new()
        .with_min_delay(RETRY_PAUSE_MIN)
        .with_max_delay(RETRY_PAUSE_MAX)
        .with_total_delay(Some(RETRY_TOTAL_MAX))
        .without_max_times()
        .with_jitter();
    operation
        .retry(pauses)
        .when(|error| matches!(error, LedgerError::Unavailable(_)))
        .await
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

pub(crate) fn is_unavailable(error: &sqlx::Error) -> bool {
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
