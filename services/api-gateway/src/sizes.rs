//! Tells how large the ledger is, table by table.

use std::time::Duration;

use godwit_ledger::Ledger;
use godwit_runtime::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Unit;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How often the tables are measured: what they say changes slowly.
const EVERY: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Table {
    table: String,
}

/// Tells until `shutdown` what the ledger's connections do and how large its tables are. Every
/// replica says the same of the tables.
pub(crate) fn start(ledger: &Ledger, metrics: &Metrics, shutdown: &CancellationToken) {
    metrics.registry(|registry| ledger.register(registry));
    tokio::spawn(measure(ledger.clone(), metrics.clone(), shutdown.clone()));
}

async fn measure(ledger: Ledger, metrics: Metrics, shutdown: CancellationToken) {
    let (rows, bytes) = (
        Family::<Table, Gauge>::default(),
        Family::<Table, Gauge>::default(),
    );
    metrics.registry(|registry| {
        let help = "Rows of a table, by the database's estimate";
        registry.register("godwit_ledger_table_rows", help, rows.clone());
        let help = "Size of a table with its indexes";
        let bytes = bytes.clone();
        registry.register_with_unit("godwit_ledger_table", help, Unit::Bytes, bytes);
    });
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    loop {
        match ledger.table_sizes().await {
            Ok(tables) => {
                for size in tables {
                    let table = Table { table: size.name };
                    rows.get_or_create(&table).set(number(size.rows));
                    bytes.get_or_create(&table).set(number(size.bytes));
                }
            }
            Err(error) => debug!(%error, "the ledger's tables could not be measured"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}
