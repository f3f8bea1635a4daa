//! Copies that don't come to their end by themselves, and what is done about them.

use godwit_ledger::LedgerError;
use godwit_model::limits::DOWNTIME_MAX_MS;
use godwit_model::migration::source::SourceState;
use godwit_rpc::agent::v1 as wire;
use tracing::warn;

use crate::drive::{Drive, JobFacts, Resort};
use crate::step::timed;
use crate::{hosts, story};

/// Brings a copy that reached its time limit to its end, where that is allowed: by post-copy where the
/// target can, or else its guest stands still until the rest is there. Neither order is a step of the
/// protocol: no guest goes over without the permission.
///
/// # Errors
/// The ledger's, when users could not be told.
pub(crate) async fn last_resort(drive: &mut Drive, facts: &JobFacts) -> Result<(), LedgerError> {
    let copying = facts.source.as_ref();
    let copying = copying.is_some_and(|fact| fact.state == SourceState::Copying);
    let (Some(why), Some(source)) = (drive.convergence.last_resort(), &drive.source) else {
        return Ok(());
    };
    if drive.resorted.is_some() || !copying {
        return Ok(());
    }
    let target = facts.target.as_ref();
    let no_post_copy = target.map(|fact| fact.no_post_copy.as_str());
    let resort = match drive.limits().wire.post_copy && no_post_copy == Some("") {
        true => Resort::PostCopy,
        false => Resort::Pause,
    };
    let job = &drive.lease.job;
    let reference = hosts::job_ref(job, drive.lease.epoch);
    let mut agent = source.agent();
    let ordered = match resort {
        Resort::PostCopy => agent.switch_to_postcopy(timed(job, reference)).await,
        Resort::Pause => {
            let request = wire::RaiseDowntimeLimitRequest {
                job: Some(reference),
                downtime_limit_ms: DOWNTIME_MAX_MS,
            };
            agent.raise_downtime_limit(timed(job, request)).await
        }
    };
    if let Err(status) = ordered {
        let id = &job.id;
        warn!(job = %id, ?resort, message = status.message(), "the copy could not be ended");
        return Ok(());
    }
    let (reason, note) = match resort {
        Resort::PostCopy => (
            "PostCopyToComplete",
            format!("{why}; the guest goes over, and the rest of its memory follows"),
        ),
        Resort::Pause => (
            "PausedToComplete",
            format!("{why}; the guest is paused until the rest is there"),
        ),
    };
    let mut tx = drive.shared.ledger.begin().await?;
    story::warn(&mut tx, job, reason, &note).await?;
    tx.commit().await?;
    drive.resorted = Some(resort);
    Ok(())
}

/// Says on the migration that it goes on without post-copy, since its target can't.
pub(crate) async fn say_no_post_copy(drive: &Drive, facts: &JobFacts) -> Result<(), LedgerError> {
    let why = facts.target.as_ref().map(|fact| fact.no_post_copy.as_str());
    let Some(why) = why.filter(|why| !why.is_empty()) else {
        return Ok(());
    };
    let job = &drive.lease.job;
    let note = format!("the target can't take part in a post-copy: {why}");
    let mut tx = drive.shared.ledger.begin().await?;
    story::warn(&mut tx, job, "PostCopyUnavailable", &note).await?;
    tx.commit().await?;
    Ok(())
}
