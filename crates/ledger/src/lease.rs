//! Leases: who drives a job, for how long by the database's clock, and under which epoch.
//!
//! None of these takes the revision lock. A lease that ran out is still good until somebody else
//! claims the job: the epoch fences, time only says when others may try.

use crate::convert::{self, bigint, interval, job_uuid};
use crate::{JobRow, Ledger, LedgerError};
use godwit_model::{Epoch, JobId};
use sqlx::Row;
use std::time::Duration;
use uuid::Uuid;

/// A claim on a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    /// The job as it was when claimed.
    pub job: JobRow,
    /// Who claimed it.
    pub owner: String,
    /// Fencing token of this claim.
    pub epoch: Epoch,
}

impl Ledger {
    /// Claims one job that isn't final and that nobody has a live lease on; `None` when there is
    /// none. Higher priority first, then older.
    ///
    /// A lease that ends later than ten times `ttl` from now is not live: the database's clock was
    /// put back since it was given.
    ///
    /// # Errors
    /// `Unavailable`. A claim whose answer was lost runs out by itself.
    pub async fn job_claim(
        &self,
        owner: &str,
        ttl: Duration,
    ) -> Result<Option<Lease>, LedgerError> {
        let statement = sqlx::query(include_str!("../queries/job_claim.sql"))
            .bind(owner)
            .bind(interval(ttl));
        let Some(row) = self.fetch_optional(statement).await? else {
            return Ok(None);
        };
        let job = JobRow::read(&row)?;
        Ok(Some(Lease {
            owner: owner.to_owned(),
            epoch: job.epoch,
            job,
        }))
    }

    /// Extends leases of `owner` to `ttl` from now, and answers the jobs that are lost, or at their
    /// end: stop at once. One whose job is being written at this moment is neither.
    ///
    /// Does not wait for the disk: an extension that is lost with the server only lets others claim
    /// the job earlier, under an epoch of their own.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn jobs_renew(
        &self,
        owner: &str,
        leases: &[(JobId, Epoch)],
        ttl: Duration,
    ) -> Result<Vec<JobId>, LedgerError> {
        let jobs: Vec<Uuid> = leases.iter().map(|(job, _)| job_uuid(job)).collect();
        let epochs: Vec<i64> = leases.iter().map(|(_, epoch)| bigint(epoch.0)).collect();
        let statement = sqlx::query(include_str!("../queries/jobs_renew.sql"))
            .bind(jobs)
            .bind(epochs)
            .bind(owner)
            .bind(interval(ttl));
        let rows = self.fetch_all(statement).await?;
        rows.iter().map(|row| convert::id(row, "id")).collect()
    }

    /// When the first lease of somebody other than `owner` runs out unless it is renewed, from now
    /// by the database's clock; `None` when nobody else has one. Zero when one has run out.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn job_lease_next(&self, owner: &str) -> Result<Option<Duration>, LedgerError> {
        let statement = sqlx::query(
            "SELECT extract(epoch FROM min(lease_expires_at) - clock_timestamp())::float8 \
             FROM migration \
             WHERE state NOT IN ('Succeeded', 'Failed') AND owner <> $1",
        )
        .bind(owner);
        let row = self.fetch_optional(statement).await?;
        let left: Option<f64> = match &row {
            Some(row) => row.try_get(0)?,
            None => None,
        };
        Ok(left.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO)))
    }

    /// Gives a lease back, so that others may claim the job at once. A lost lease is no error.
    ///
    /// # Errors
    /// `Unavailable`; the lease runs out by itself then.
    pub async fn job_lease_release(&self, lease: &Lease) -> Result<(), LedgerError> {
        let statement = sqlx::query(
            "UPDATE migration SET owner = NULL, lease_expires_at = NULL \
             WHERE id = $1 AND epoch = $2 AND owner = $3",
        )
        .bind(job_uuid(&lease.job.id))
        .bind(bigint(lease.epoch.0))
        .bind(&lease.owner);
        if self.execute(statement).await? > 0 {
            self.poke();
        }
        Ok(())
    }
}
