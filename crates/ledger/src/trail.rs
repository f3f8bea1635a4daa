//! How far somebody has read what changed of nodes, of machines, and of what they hold.

use crate::convert::At;
use crate::tx::Statement;
use crate::{Ledger, LedgerError, Tx};
use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::collections::HashSet;
use uuid::Uuid;

/// Changes read at a time.
const BATCH: i64 = 1000;

const NEWEST: &str = "SELECT seq, changed_at FROM floor_change ORDER BY seq DESC LIMIT 1";
const HORIZON: &str = "SELECT seq FROM floor_horizon";

/// The ledger, with or without its lock.
pub(crate) enum Reader<'a> {
    Ledger(&'a Ledger),
    Tx(&'a mut Tx),
}

impl Reader<'_> {
    pub(crate) async fn fetch_all(
        &mut self,
        statement: Statement<'_>,
    ) -> Result<Vec<PgRow>, LedgerError> {
        match self {
            Self::Ledger(ledger) => ledger.fetch_all(statement).await,
            Self::Tx(tx) => tx.fetch_all(statement).await,
        }
    }
}

/// The newest change that was read, and when it was written; `None` where there was none.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    seq: i64,
    at: Option<Timestamp>,
}

/// What is to be looked at anew.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) nodes: Vec<String>,
    pub(crate) machines: Vec<Uuid>,
    /// Whether the cluster's settings are among it.
    pub(crate) settings: bool,
    /// Whether there is more.
    pub(crate) more: bool,
}

impl Trail {
    /// At the newest change. Whoever reads all after that misses nothing.
    pub(crate) async fn begin(reader: &mut Reader<'_>) -> Result<Self, LedgerError> {
        let mut trail = Self::default();
        let newest = reader.fetch_all(sqlx::query(NEWEST)).await?;
        match newest.first() {
            Some(row) => trail.read_to(row)?,
            None => {
                let horizon = reader.fetch_all(sqlx::query(HORIZON)).await?;
                let horizon = horizon.first().ok_or(sqlx::Error::RowNotFound)?;
                trail.seq = horizon.try_get("seq")?;
            }
        }
        Ok(trail)
    }

    /// What changed since, or the first of it; `None` when that isn't known, and all has to be read
    /// again.
    pub(crate) async fn next(
        &mut self,
        reader: &mut Reader<'_>,
    ) -> Result<Option<Changed>, LedgerError> {
        let statement = sqlx::query(include_str!("../queries/floor_changes.sql"))
            .bind(self.seq)
            .bind(self.at.map(At))
            .bind(BATCH);
        let rows = reader.fetch_all(statement).await?;
        let (mut nodes, mut machines) = (HashSet::new(), HashSet::new());
        let mut settings = false;
        for row in &rows {
            if !row.try_get::<bool, _>("known")? {
                return Ok(None);
            }
            if row.try_get::<Option<i64>, _>("seq")?.is_some() {
                let node: Option<String> = row.try_get("node")?;
                let machine: Option<Uuid> = row.try_get("machine")?;
                settings |= node.is_none() && machine.is_none();
                nodes.extend(node);
                machines.extend(machine);
                self.read_to(row)?;
            }
        }
        Ok(Some(Changed {
            nodes: nodes.into_iter().collect(),
            machines: machines.into_iter().collect(),
            settings,
            more: rows.len() >= usize::try_from(BATCH).unwrap_or(usize::MAX),
        }))
    }

    fn read_to(&mut self, row: &PgRow) -> Result<(), LedgerError> {
        self.seq = row.try_get("seq")?;
        self.at = row.try_get::<Option<At>, _>("changed_at")?.map(|at| at.0);
        Ok(())
    }
}
