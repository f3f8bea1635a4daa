//! What migrations were: those that came to a good end, as forecasts learn from them.
//!
//! Ends are read in the order in which they were committed: each takes the database's time under
//! the revision lock, so nothing commits later with an earlier time, and a reader that goes on
//! behind the last end it has read skips none. Should that clock be put back, ends are passed over
//! until it has caught up; forecasts only learn later then.

use crate::convert::{self, At, interval, job_uuid};
use crate::{Ledger, LedgerError};
use godwit_model::forecast::{Forecaster, Passage, Voyage};
use godwit_model::{Bytes, JobId, MachineId, NodeName};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many of the newest ends are read first: more would be forgotten again.
const FIRST_MAX: u32 = 2000;
/// Older ends say little of today's links and guests.
const FIRST_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Ends that one statement reads.
const BATCH: u32 = 500;
/// Batches of one following; what is left is read by the next.
const BATCHES_MAX: u32 = 20;
/// After so many ends the machines that are gone are forgotten.
const FORGET_AFTER: usize = 10_000;

/// Where a reader of ends is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassageMark {
    /// When the last one that was read ended, by the database's clock.
    pub ended_at: Timestamp,
    /// Which one it was.
    pub job: JobId,
}

/// A migration that came to a good end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassageRow {
    /// Which one, and when it ended.
    pub mark: PassageMark,
    /// What moved.
    pub machine: MachineId,
    /// Its memory, as QEMU counts it.
    pub memory: Bytes,
    /// Where it was.
    pub source: NodeName,
    /// Where it is.
    pub target: NodeName,
    /// Bytes a second that it might take; 0 is no limit, or one that is not recorded.
    pub bandwidth: u64,
    /// Longest blackout that was allowed; zero when that is not recorded.
    pub downtime: Duration,
    /// From when its target was known to its end. What it waited for its turn and for a node that
    /// fits says nothing of the next migration.
    pub took: Duration,
    /// The copy alone.
    pub copy: Duration,
    /// Bytes that were sent.
    pub bytes: Bytes,
    /// Bytes that the guest wrote each second, as QEMU saw it last.
    pub dirty_rate: u64,
    /// How long the guest's CPUs ran nowhere; `None` where that isn't known.
    pub blackout: Option<Duration>,
    /// What was forecast of `took`; `None` when nothing was.
    pub forecast: Option<Duration>,
}

impl PassageRow {
    /// What a forecaster learns from it.
    pub fn passage(&self) -> Passage<'_> {
        Passage {
            voyage: Voyage {
                machine: &self.machine,
                memory: self.memory,
                source: &self.source,
                target: &self.target,
                bandwidth: self.bandwidth,
                downtime: self.downtime,
            },
            took: self.took,
            copy: self.copy,
            bytes: self.bytes,
            dirty_rate: self.dirty_rate,
            blackout: self.blackout,
            forecast: self.forecast,
        }
    }
}

/// The numbers of a job's history that matter here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Numbers {
    memory: u64,
    bytes: u64,
    brownout_ms: u64,
    dirty_rate: u64,
    bandwidth: u64,
    downtime_limit_ms: u64,
    blackout_us: Option<u64>,
    forecast_ms: Option<u64>,
}

impl Ledger {
    /// At most `limit` good ends after `after`, oldest first.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn passages_after(
        &self,
        after: &PassageMark,
        limit: u32,
    ) -> Result<Vec<PassageRow>, LedgerError> {
        let statement = sqlx::query(include_str!("../queries/passage_after.sql"))
            .bind(At(after.ended_at))
            .bind(job_uuid(&after.job))
            .bind(i64::from(limit));
        let rows = self.fetch_all(statement).await?;
        rows.iter().map(read).collect()
    }

    /// The newest good ends of the last `age`, at most `limit`, oldest first.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn passages_newest(
        &self,
        age: Duration,
        limit: u32,
    ) -> Result<Vec<PassageRow>, LedgerError> {
        let statement = sqlx::query(include_str!("../queries/passage_newest.sql"))
            .bind(interval(age))
            .bind(i64::from(limit));
        let rows = self.fetch_all(statement).await?;
        rows.iter().rev().map(read).collect()
    }

    /// The machines that there are.
    async fn machine_ids(&self) -> Result<HashSet<MachineId>, LedgerError> {
        let rows = self
            .fetch_all(sqlx::query("SELECT uid FROM instance"))
            .await?;
        rows.iter().map(|row| convert::id(row, "uid")).collect()
    }
}

fn read(row: &PgRow) -> Result<PassageRow, LedgerError> {
    let ended_at = row.try_get::<At, _>("finished_at")?.0;
    let began = row.try_get::<Option<At>, _>("reserved_at")?;
    let took = began.map_or(Duration::ZERO, |at| {
        Duration::try_from(ended_at.duration_since(at.0)).unwrap_or_default()
    });
    let history: Value = row.try_get("history")?;
    let numbers = Numbers::deserialize(history).unwrap_or_default();
    Ok(PassageRow {
        mark: PassageMark {
            ended_at,
            job: convert::id(row, "id")?,
        },
        machine: convert::id(row, "machine")?,
        memory: Bytes(numbers.memory),
        source: convert::name(row, "source")?,
        target: convert::name(row, "target")?,
        bandwidth: numbers.bandwidth,
        downtime: Duration::from_millis(numbers.downtime_limit_ms),
        took,
        copy: Duration::from_millis(numbers.brownout_ms),
        bytes: Bytes(numbers.bytes),
        dirty_rate: numbers.dirty_rate,
        blackout: numbers.blackout_us.map(Duration::from_micros),
        forecast: numbers.forecast_ms.map(Duration::from_millis),
    })
}

/// What earlier migrations taught, kept up to date by whoever needs forecasts. One of these is
/// shared by all tasks of a process, and one of them follows.
#[derive(Debug, Default)]
pub struct Experience {
    /// Locked for the time of one forecast, or of one batch.
    forecaster: Mutex<Forecaster>,
    reader: Mutex<Reader>,
}

/// How far it has read.
#[derive(Debug, Clone, Default)]
struct Reader {
    /// `None` before anything was read.
    mark: Option<PassageMark>,
    /// Learned since machines were forgotten.
    learned: usize,
}

impl Experience {
    /// Reads the ends that came since the last call, and the newest of the last days at first.
    /// Answers how many there were. For one task alone.
    ///
    /// # Errors
    /// `Unavailable`; what was read before stays learned, and the next call goes on from there.
    pub async fn follow(&self, ledger: &Ledger) -> Result<usize, LedgerError> {
        let mut count = 0;
        for _ in 0..BATCHES_MAX {
            let mark = locked(&self.reader).mark.clone();
            let (rows, most) = match &mark {
                Some(mark) => (ledger.passages_after(mark, BATCH).await?, BATCH),
                None => (
                    ledger.passages_newest(FIRST_AGE_MAX, FIRST_MAX).await?,
                    FIRST_MAX,
                ),
            };
            let full = rows.len() >= most as usize;
            count += rows.len();
            self.learn(rows);
            if !full {
                break;
            }
        }
        if locked(&self.reader).learned >= FORGET_AFTER {
            let machines = ledger.machine_ids().await?;
            self.forecaster()
                .retain(|machine| machines.contains(machine));
            locked(&self.reader).learned = 0;
        }
        Ok(count)
    }

    fn learn(&self, rows: Vec<PassageRow>) {
        let mut forecaster = self.forecaster();
        for row in &rows {
            forecaster.learn(row.passage());
        }
        let mut reader = locked(&self.reader);
        reader.learned += rows.len();
        if let Some(last) = rows.into_iter().next_back() {
            reader.mark = Some(last.mark);
        }
    }

    /// Makes forecasts from what was learned. Don't hold it over an await.
    pub fn forecaster(&self) -> MutexGuard<'_, Forecaster> {
        locked(&self.forecaster)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
