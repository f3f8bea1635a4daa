//! Histories of migrations: a job and all its transitions, long after its object was deleted.

use crate::convert::{self, job_uuid};
use crate::transition;
use crate::tx::Statement;
use crate::{JobRow, Ledger, LedgerError, TransitionRow};
use godwit_model::JobId;
use sqlx::postgres::PgRow;
use std::collections::HashMap;
use uuid::Uuid;

/// A job and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct JobHistory {
    /// The job as it is.
    pub job: JobRow,
    /// Its transitions, oldest first.
    pub transitions: Vec<TransitionRow>,
}

/// The transitions of `$1`, by job and place.
const TRANSITIONS: &str = "SELECT migration_id, seq, from_state, to_state, epoch, actor, reason, at \
    FROM migration_transition WHERE migration_id = ANY($1) ORDER BY migration_id, seq";

impl Ledger {
    /// The newest migration of each name in `namespace`, or in all for `None`; at most `limit`,
    /// newest first.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn histories(
        &self,
        namespace: Option<&str>,
        limit: u32,
    ) -> Result<Vec<JobHistory>, LedgerError> {
        let statement = sqlx::query(include_str!("../queries/history_newest.sql"))
            .bind(namespace)
            .bind(i64::from(limit));
        let jobs = read_jobs(&self.fetch_all(statement).await?)?;
        let ids = ids(&jobs);
        let transitions = self.fetch_all(transitions(&ids)).await?;
        together(jobs, &transitions)
    }

    /// The newest migration of this name.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn history_named(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<JobHistory>, LedgerError> {
        let statement = sqlx::query(
            "SELECT id FROM migration WHERE namespace = $1 AND name = $2 \
             ORDER BY created_at DESC LIMIT 1",
        )
        .bind(namespace)
        .bind(name);
        match self.fetch_optional(statement).await? {
            Some(row) => self.history_of(&convert::id(&row, "id")?).await,
            None => Ok(None),
        }
    }

    /// The migration of this UID.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn history_of(&self, id: &JobId) -> Result<Option<JobHistory>, LedgerError> {
        let Some(job) = self.job(id).await? else {
            return Ok(None);
        };
        let transitions = self.history(id).await?;
        Ok(Some(JobHistory { job, transitions }))
    }
}

pub(crate) fn read_jobs(rows: &[PgRow]) -> Result<Vec<JobRow>, LedgerError> {
    rows.iter().map(JobRow::read).collect()
}

pub(crate) fn ids(jobs: &[JobRow]) -> Vec<Uuid> {
    jobs.iter().map(|job| job_uuid(&job.id)).collect()
}

pub(crate) fn transitions(ids: &[Uuid]) -> Statement<'_> {
    sqlx::query(TRANSITIONS).bind(ids)
}

/// Gives each job its transitions.
pub(crate) fn together(jobs: Vec<JobRow>, rows: &[PgRow]) -> Result<Vec<JobHistory>, LedgerError> {
    let mut by_job: HashMap<JobId, Vec<TransitionRow>> = HashMap::new();
    for row in rows {
        let transition = transition::read(row)?;
        by_job
            .entry(transition.job.clone())
            .or_default()
            .push(transition);
    }
    let history = |job: JobRow| JobHistory {
        transitions: by_job.remove(&job.id).unwrap_or_default(),
        job,
    };
    Ok(jobs.into_iter().map(history).collect())
}
