//! `godwit migrate`: the ledger's schema, by its owner instead of by the services.

use anyhow::{Context, ensure};
use clap::Args;
use godwit_ledger::{Ledger, LedgerConfig};

/// Which ledger.
#[derive(Debug, Args)]
pub struct Migrate {
    /// Postgres URL of the ledger, as a user that may change its schema.
    #[arg(
        long,
        value_name = "URL",
        env = "GODWIT_DATABASE_URL",
        hide_env_values = true
    )]
    pub database: String,
}

/// Applies the migrations that are missing. A database that is newer is left alone.
///
/// # Errors
/// When Postgres can't be reached, or a migration fails.
pub async fn migrate(wanted: &Migrate) -> anyhow::Result<()> {
    ensure!(!wanted.database.is_empty(), "the URL of Postgres is empty");
    let ledger = Ledger::connect(LedgerConfig {
        url: wanted.database.clone(),
        connections_max: 1,
    });
    let ledger = ledger.await.context("connect to Postgres")?;
    ledger.migrate().await.context("change the schema")
}
