//! Leases: who drives a job, for how long by the database's clock, and under which epoch.
//!
//! None of these takes the revision lock. A lease that ran out is still good until somebody else
//! claims the job: the epoch fences, time only says when others may try.

use crate::{JobRow, Ledger, LedgerError};
use godwit_model::Epoch;
use std::time::Duration;

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
    pub async fn job_claim(
        &self,
        owner: &str,
        ttl: Duration,
    ) -> Result<Option<Lease>, LedgerError> {
        todo!()
    }

    /// Extends a lease to `ttl` from now. Answers false when it is lost: stop at once.
    pub async fn job_renew(&self, lease: &Lease, ttl: Duration) -> Result<bool, LedgerError> {
        todo!()
    }

    /// Gives a lease back, so that others may claim the job at once. A lost lease is no error.
    pub async fn job_lease_release(&self, lease: &Lease) -> Result<(), LedgerError> {
        todo!()
    }
}
