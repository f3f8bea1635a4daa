//! A connection in use: every answer is waited for, but not for ever.
//!
//! A connection whose last answer did not come is closed, never used again: nobody knows what it
//! is about to say. And then every idle connection is tried before its next use.

use crate::LedgerError;
use crate::sql::{Told, tell};
use futures::TryStreamExt;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgRow};
use sqlx::query::Query;
use sqlx::{Connection, PgConnection, PgPool, Postgres};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::time::timeout;

/// A statement with its arguments.
pub(crate) type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// Longest wait for a connection of the pool, a new one included. While the server refuses
/// connections it is asked again, so a restart that is shorter than this is only waited for.
pub(crate) const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Longest silence of the server in an answer. Longer than any lock is waited for.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(4);
/// A connection that was idle this long is tried before use: it may have died unseen.
const IDLE_UNTRIED_MAX: Duration = Duration::from_secs(1);

/// When a connection of this process last failed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trouble(Arc<Mutex<Option<Instant>>>);

impl Trouble {
    /// Has every connection that is idle at this moment tried before its next use.
    pub(crate) fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn is_within(&self, time: Duration) -> bool {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|at| at.elapsed() <= time)
    }
}

/// The connections of this process.
#[derive(Debug, Clone)]
pub(crate) struct Sessions {
    pool: PgPool,
    pub(crate) trouble: Trouble,
}

impl Sessions {
    /// Connects once, to learn whether it works.
    pub(crate) async fn open(
        options: PgConnectOptions,
        connections_max: u32,
    ) -> Result<Self, LedgerError> {
        let trouble = Trouble::default();
        let noted = trouble.clone();
        let pool = PgPoolOptions::new()
            .max_connections(connections_max)
            .acquire_timeout(CONNECT_MAX)
            .test_before_acquire(false)
            .before_acquire(move |connection, meta| {
                let idle = meta.idle_for;
                let trusted = idle < IDLE_UNTRIED_MAX && !noted.is_within(idle);
                Box::pin(async move { Ok(trusted || connection.ping().await.is_ok()) })
            })
            .connect_with(options)
            .await?;
        Ok(Self { pool, trouble })
    }

    /// Connections that there are, and those of them that nobody uses.
    pub(crate) fn count(&self) -> (usize, usize) {
        let all = usize::try_from(self.pool.size()).unwrap_or(usize::MAX);
        (all, self.pool.num_idle())
    }

    pub(crate) async fn get(&self) -> Result<Session, sqlx::Error> {
        // On the heap, since every caller's future holds it.
        let connection = Box::pin(self.pool.acquire()).await?;
        Ok(Session {
            connection: Some(connection),
            answered: true,
            in_transaction: false,
            trouble: self.trouble.clone(),
        })
    }
}

/// Begins a look. It holds nobody up, and who looks may think for longer than a writer.
const LOOK: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
    SET LOCAL idle_in_transaction_session_timeout = '5min'";

/// One connection. Dropping it ends a transaction that is open, by rolling back.
#[derive(Debug)]
pub(crate) struct Session {
    /// `None` only while it is dropped.
    connection: Option<PoolConnection<Postgres>>,
    /// Whether the last statement was answered, and well.
    answered: bool,
    in_transaction: bool,
    trouble: Trouble,
}

impl Session {
    /// Whether every statement was answered, and well.
    pub(crate) fn is_sound(&self) -> bool {
        self.answered
    }

    /// Begins a transaction with a question, in one round trip: `first` is `BEGIN; SELECT ...`.
    pub(crate) async fn begin_with(&mut self, first: &'static str) -> Result<PgRow, sqlx::Error> {
        let told = Told::of(first);
        let row = in_time(sqlx::raw_sql(first).fetch_one(self.ask()));
        let row = told.answer(row).await?;
        told.rows(1);
        self.answered = true;
        self.in_transaction = true;
        Ok(row)
    }

    /// Begins a transaction that can't write, and sees one moment.
    pub(crate) async fn begin_look(&mut self) -> Result<(), sqlx::Error> {
        self.command(LOOK).await?;
        self.in_transaction = true;
        Ok(())
    }

    pub(crate) async fn commit(&mut self) -> Result<(), sqlx::Error> {
        self.command("COMMIT").await?;
        self.in_transaction = false;
        Ok(())
    }

    async fn command(&mut self, command: &'static str) -> Result<(), sqlx::Error> {
        let told = Told::of(command);
        let done = in_time(sqlx::raw_sql(command).execute(self.ask()));
        told.answer(done).await?;
        self.answered = true;
        Ok(())
    }

    pub(crate) async fn execute(&mut self, statement: Statement<'_>) -> Result<u64, sqlx::Error> {
        let connection = self.ask();
        let (statement, told) = tell(statement)?;
        let done = told.answer(in_time(statement.execute(connection))).await?;
        self.answered = true;
        Ok(done.rows_affected())
    }

    pub(crate) async fn fetch_one(
        &mut self,
        statement: Statement<'_>,
    ) -> Result<PgRow, sqlx::Error> {
        let connection = self.ask();
        let (statement, told) = tell(statement)?;
        let row = told
            .answer(in_time(statement.fetch_one(connection)))
            .await?;
        told.rows(1);
        self.answered = true;
        Ok(row)
    }

    pub(crate) async fn fetch_optional(
        &mut self,
        statement: Statement<'_>,
    ) -> Result<Option<PgRow>, sqlx::Error> {
        let connection = self.ask();
        let (statement, told) = tell(statement)?;
        let answer = in_time(statement.fetch_optional(connection));
        let row = told.answer(answer).await?;
        told.rows(row.iter().len());
        self.answered = true;
        Ok(row)
    }

    /// All rows, however many: only silence is bounded.
    pub(crate) async fn fetch_all(
        &mut self,
        statement: Statement<'_>,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        let mut all = Vec::new();
        self.for_each(statement, |row| all.push(row)).await?;
        Ok(all)
    }

    /// Shows each row as it comes, so that nobody has to hold all.
    pub(crate) async fn for_each(
        &mut self,
        statement: Statement<'_>,
        mut each: impl FnMut(PgRow),
    ) -> Result<(), sqlx::Error> {
        let connection = self.ask();
        let (statement, told) = tell(statement)?;
        let read = async {
            let mut rows = statement.fetch(connection);
            let mut count = 0;
            while let Some(row) = in_time(rows.try_next()).await? {
                count += 1;
                each(row);
            }
            Ok::<usize, sqlx::Error>(count)
        };
        told.rows(told.answer(read).await?);
        self.answered = true;
        Ok(())
    }

    fn ask(&mut self) -> &mut PgConnection {
        self.answered = false;
        let connection = self.connection.as_mut();
        connection.expect("it is taken by drop alone")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        match Handle::try_current() {
            Ok(runtime) if self.answered => {
                runtime.spawn(give_back(connection, self.in_transaction));
            }
            Ok(_) => {
                self.trouble.note();
                connection.close_on_drop();
            }
            // Nobody is left to use it.
            Err(_) => drop(connection.leak()),
        }
    }
}

async fn give_back(mut connection: PoolConnection<Postgres>, in_transaction: bool) {
    if in_transaction {
        let rollback = sqlx::raw_sql("ROLLBACK").execute(&mut *connection);
        if in_time(rollback).await.is_err() {
            connection.close_on_drop();
            return;
        }
    }
    // The pool tries it, and has no limit of time for that; cut off, it is closed.
    let _ = timeout(ANSWER_MAX, connection.return_to_pool()).await;
}

/// The answer, unless the server is silent for [`ANSWER_MAX`].
pub(crate) async fn in_time<T>(
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    match timeout(ANSWER_MAX, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())),
    }
}
