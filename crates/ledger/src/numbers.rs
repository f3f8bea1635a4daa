//! What a process counts of its use of the ledger, and how large the ledger is.

use std::fmt::Error;
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use sqlx::Row;

use crate::session::Sessions;
use crate::{Ledger, LedgerError, convert};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    outcome: &'static str,
}

/// Times and outcomes of this process's transactions; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Numbers {
    waited: Histogram,
    held: Histogram,
    ended: Family<Ended, Counter>,
}

impl Default for Numbers {
    fn default() -> Self {
        // From 0.25 ms to 8 s.
        let seconds = || Histogram::new(exponential_buckets(0.00025, 2.0, 16));
        let ended = Family::<Ended, Counter>::default();
        // There from the start: an increase from nothing to one is none to Prometheus.
        for outcome in ["committed", "unknown", "failed"] {
            drop(ended.get_or_create(&Ended { outcome }));
        }
        Self {
            waited: seconds(),
            held: seconds(),
            ended,
        }
    }
}

impl Numbers {
    /// A transaction has the revision lock after so long.
    pub(crate) fn begun(&self, waited: Duration) {
        self.waited.observe(waited.as_secs_f64());
    }

    /// A commit of a transaction that had the lock since then was answered, or wasn't.
    pub(crate) fn committed<T>(&self, since: Instant, done: &Result<T, LedgerError>) {
        self.held.observe(since.elapsed().as_secs_f64());
        let outcome = match done {
            Ok(_) => "committed",
            Err(LedgerError::Unknown(_)) => "unknown",
            Err(_) => "failed",
        };
        self.ended.get_or_create(&Ended { outcome }).inc();
    }
}

/// The connections of a process at the moment of a scrape.
#[derive(Debug)]
struct Pool(Sessions);

impl Collector for Pool {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let help = "Connections to the ledger's database";
        let name = "godwit_ledger_connections";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        let (all, idle) = self.0.count();
        for (state, count) in [("idle", idle), ("used", all.saturating_sub(idle))] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            ConstGauge::new(count).encode(family.encode_family(&[("state", state)])?)?;
        }
        Ok(())
    }
}

/// One table of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSize {
    /// Its name.
    pub name: String,
    /// Rows, by the database's estimate.
    pub rows: u64,
    /// Bytes with indexes.
    pub bytes: u64,
}

impl Ledger {
    /// Registers what this process counts of its use of the ledger.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "godwit_ledger_wait_seconds",
            "Time until a transaction had the revision lock",
            self.numbers.waited.clone(),
        );
        registry.register(
            "godwit_ledger_transaction_seconds",
            "Time that a transaction held the revision lock, its commit included",
            self.numbers.held.clone(),
        );
        registry.register(
            "godwit_ledger_transactions",
            "Transactions by how their commit ended",
            self.numbers.ended.clone(),
        );
        registry.register_collector(Box::new(Pool(self.sessions.clone())));
    }

    /// How large each table is.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn table_sizes(&self) -> Result<Vec<TableSize>, LedgerError> {
        let statement = sqlx::query(
            "SELECT relname::text AS name, n_live_tup AS rows, \
             pg_total_relation_size(relid) AS bytes \
             FROM pg_stat_user_tables WHERE schemaname = 'public' ORDER BY relname",
        );
        let rows = self.fetch_all(statement).await?;
        let size = |row| {
            Ok(TableSize {
                name: sqlx::postgres::PgRow::try_get(row, "name")?,
                rows: convert::count(row, "rows")?,
                bytes: convert::count(row, "bytes")?,
            })
        };
        rows.iter().map(size).collect()
    }
}
