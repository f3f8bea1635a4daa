//! The trace of each maintenance of a node, and its steps: what its spans are written from.

use std::time::Duration;

use crate::convert::{At, bigint, count, interval};
use crate::object::parse_uid;
use crate::{Ledger, LedgerError, TraceContext, Tx};
use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

/// Under which trace a maintenance goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaintenanceTrace {
    /// UID of the NodeMaintenance.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// The node that it empties.
    pub node: String,
    /// Trace of the request.
    pub trace: TraceContext,
    /// When it was asked for.
    pub began_at: Timestamp,
}

/// One step of a maintenance that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaintenanceStep {
    /// Place among the steps of the maintenance, from 1.
    pub seq: u64,
    /// What was done.
    pub step: String,
    /// When it began.
    pub began_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// `traceparent`s of the migrations that it asked for.
    pub links: Vec<String>,
    /// Why it failed; `None` when it didn't.
    pub failure: Option<String>,
}

/// A maintenance's trace, and its steps in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaintenanceStory {
    /// The trace.
    pub trace: MaintenanceTrace,
    /// The steps.
    pub steps: Vec<MaintenanceStep>,
}

impl Ledger {
    /// All traces of maintenances that are kept.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn maintenance_stories(&self) -> Result<Vec<MaintenanceStory>, LedgerError> {
        let traces = sqlx::query(
            "SELECT maintenance, name, node, trace, began_at FROM maintenance_trace \
             ORDER BY began_at, maintenance",
        );
        let steps = sqlx::query(
            "SELECT maintenance, seq, step, began_at, ended_at, links, failure \
             FROM maintenance_step ORDER BY maintenance, seq",
        );
        let steps = self.fetch_all(steps).await?;
        let mut stories = vec![];
        for row in self.fetch_all(traces).await? {
            let trace = read_trace(&row)?;
            let is_its = |row: &&PgRow| {
                let uid = row.try_get::<Uuid, _>("maintenance");
                uid.is_ok_and(|uid| uid.to_string() == trace.uid)
            };
            let steps = steps.iter().filter(is_its).map(read_step);
            let steps = steps.collect::<Result<_, _>>()?;
            stories.push(MaintenanceStory { trace, steps });
        }
        Ok(stories)
    }
}

impl Tx {
    /// Keeps under which trace a maintenance goes; the first that was kept stays.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn maintenance_trace(&mut self, trace: &MaintenanceTrace) -> Result<(), LedgerError> {
        let statement = sqlx::query(
            "INSERT INTO maintenance_trace (maintenance, name, node, trace, began_at) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        )
        .bind(parse_uid(&trace.uid)?)
        .bind(&trace.name)
        .bind(&trace.node)
        .bind(&trace.trace.0)
        .bind(At(trace.began_at));
        self.execute(statement).await?;
        self.wrote(None);
        Ok(())
    }

    /// What is known of a maintenance's trace; `None` when none is kept.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn maintenance_story(
        &mut self,
        uid: &str,
    ) -> Result<Option<MaintenanceStory>, LedgerError> {
        let uid = parse_uid(uid)?;
        let trace = sqlx::query(
            "SELECT maintenance, name, node, trace, began_at FROM maintenance_trace \
             WHERE maintenance = $1",
        );
        let Some(trace) = self.fetch_optional(trace.bind(uid)).await? else {
            return Ok(None);
        };
        let steps = sqlx::query(
            "SELECT seq, step, began_at, ended_at, links, failure FROM maintenance_step \
             WHERE maintenance = $1 ORDER BY seq",
        );
        let steps = self.fetch_all(steps.bind(uid)).await?;
        let steps = steps.iter().map(read_step);
        Ok(Some(MaintenanceStory {
            trace: read_trace(&trace)?,
            steps: steps.collect::<Result<_, _>>()?,
        }))
    }

    /// Records a step of the maintenance `uid`, whose trace is kept.
    ///
    /// # Errors
    /// `AlreadyExists` when there is a step in this place.
    pub async fn maintenance_step(
        &mut self,
        uid: &str,
        step: &MaintenanceStep,
    ) -> Result<(), LedgerError> {
        let statement = sqlx::query(
            "INSERT INTO maintenance_step \
             (maintenance, seq, step, began_at, ended_at, links, failure) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(parse_uid(uid)?)
        .bind(bigint(step.seq))
        .bind(&step.step)
        .bind(At(step.began_at))
        .bind(At(step.ended_at))
        .bind(&step.links)
        .bind(&step.failure);
        self.execute(statement).await?;
        self.wrote(None);
        Ok(())
    }

    /// Forgets the traces of maintenances that are gone, and began longer than `age` ago.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn maintenance_traces_prune(&mut self, age: Duration) -> Result<(), LedgerError> {
        let statement = sqlx::query(
            "DELETE FROM maintenance_trace \
             WHERE began_at < clock_timestamp() - $1 \
             AND NOT EXISTS (SELECT FROM object WHERE uid = maintenance)",
        );
        self.execute(statement.bind(interval(age))).await?;
        self.wrote(None);
        Ok(())
    }
}

fn read_trace(row: &PgRow) -> Result<MaintenanceTrace, LedgerError> {
    let uid: Uuid = row.try_get("maintenance")?;
    Ok(MaintenanceTrace {
        uid: uid.to_string(),
        name: row.try_get("name")?,
        node: row.try_get("node")?,
        trace: TraceContext(row.try_get("trace")?),
        began_at: row.try_get::<At, _>("began_at")?.0,
    })
}

fn read_step(row: &PgRow) -> Result<MaintenanceStep, LedgerError> {
    Ok(MaintenanceStep {
        seq: count(row, "seq")?,
        step: row.try_get("step")?,
        began_at: row.try_get::<At, _>("began_at")?.0,
        ended_at: row.try_get::<At, _>("ended_at")?.0,
        links: row.try_get("links")?,
        failure: row.try_get("failure")?,
    })
}
