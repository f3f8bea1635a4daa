//! The trace of each maintenance of a node, and its steps: what its spans are written from.

use std::collections::HashMap;
use std::time::Duration;

use crate::convert::{At, bigint, count, interval};
use crate::object::parse_uid;
use crate::{Ledger, LedgerError, TraceContext, Tx};
use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

/// Most traces that are forgotten at once: others wait for it.
const PRUNED_MAX: i64 = 1000;

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
    /// The `most` maintenances of which a step ended last, within `age`, the newest first.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn maintenance_stories(
        &self,
        age: Duration,
        most: u32,
    ) -> Result<Vec<MaintenanceStory>, LedgerError> {
        let traces = sqlx::query(
            "SELECT maintenance, name, node, trace, began_at FROM maintenance_trace \
             CROSS JOIN LATERAL (SELECT max(ended_at) AS ended_at FROM maintenance_step AS step \
             WHERE step.maintenance = maintenance_trace.maintenance) AS newest \
             WHERE newest.ended_at >= clock_timestamp() - $1 \
             ORDER BY newest.ended_at DESC, maintenance LIMIT $2",
        )
        .bind(interval(age))
        .bind(i64::from(most));
        let traces = self.fetch_all(traces).await?;
        let traces = traces.iter().map(read_trace);
        let traces = traces.collect::<Result<Vec<_>, _>>()?;
        let uids = traces.iter().map(|trace| parse_uid(&trace.uid));
        let steps = sqlx::query(
            "SELECT maintenance, seq, step, began_at, ended_at, links, failure \
             FROM maintenance_step WHERE maintenance = ANY($1) ORDER BY maintenance, seq",
        )
        .bind(uids.collect::<Result<Vec<_>, _>>()?);
        let mut steps_of: HashMap<String, Vec<MaintenanceStep>> = HashMap::new();
        for row in self.fetch_all(steps).await? {
            let uid: Uuid = row.try_get("maintenance")?;
            let steps = steps_of.entry(uid.to_string()).or_default();
            steps.push(read_step(&row)?);
        }
        let story = |trace: MaintenanceTrace| MaintenanceStory {
            steps: steps_of.remove(&trace.uid).unwrap_or_default(),
            trace,
        };
        Ok(traces.into_iter().map(story).collect())
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

    /// Forgets traces of maintenances that are gone, of which nothing happened for `age`; some of them
    /// when there are many.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn maintenance_traces_prune(&mut self, age: Duration) -> Result<(), LedgerError> {
        let statement = sqlx::query(
            "DELETE FROM maintenance_trace WHERE maintenance IN ( \
             SELECT maintenance FROM maintenance_trace AS trace \
             WHERE began_at < clock_timestamp() - $1 \
             AND NOT EXISTS (SELECT FROM object WHERE uid = trace.maintenance) \
             AND NOT EXISTS (SELECT FROM maintenance_step AS step \
             WHERE step.maintenance = trace.maintenance \
             AND step.ended_at >= clock_timestamp() - $1) \
             LIMIT $2)",
        );
        let statement = statement.bind(interval(age)).bind(PRUNED_MAX);
        self.execute(statement).await?;
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
