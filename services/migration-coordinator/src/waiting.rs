//! What a job that waits tells its users: the condition's words, and a warning of silent hosts.

use std::time::{Duration, Instant};

use godwit_ledger::{JobRow, LedgerError};
use godwit_model::NodeName;
use godwit_model::migration::decide::WaitReason;
use godwit_model::migration::fact::{Progress, SourceFact};
use godwit_model::migration::queue::QueueWait;
use jiff::Timestamp;

use crate::drive::{Drive, Silence};
use crate::step::Outcome;
use crate::story::{self, Waiting};

/// Shortest time between two texts of the same condition.
const SAY_AGAIN_MIN: Duration = Duration::from_secs(1);
/// What lasts no longer needs no words.
const YOUNG_MAX: Duration = Duration::from_secs(1);
/// Time between the words of two jobs of the queue.
const PLACE_PAUSE: Duration = Duration::from_millis(50);
/// Users are warned of a host that does not answer for so long.
const ALARM_AFTER: Duration = Duration::from_secs(10);

/// Says what the job waits for, with the copy's numbers while there are any.
pub(crate) async fn wait(
    drive: &mut Drive,
    reason: WaitReason,
    source: Option<&SourceFact>,
) -> Result<Outcome, LedgerError> {
    alarm(drive, reason).await?;
    // What ends at once needs no words, and the blackout must not wait for the ledger.
    if is_young(drive) {
        return Ok(Outcome::Wait);
    }
    let copying = source.filter(|_| reason == WaitReason::CopyInProgress);
    let message = match copying {
        Some(fact) => progress_line(fact),
        None => silent_host(&drive.lease.job, reason)
            .map_or_else(|| reason.to_string(), |node| format!("{reason}: {node}")),
    };
    let progress = copying.map(|fact| &fact.progress);
    say_with(drive, (reason.as_str(), message), progress).await?;
    Ok(Outcome::Wait)
}

/// The node that a job waits for without an answer.
const fn silent_host(job: &JobRow, reason: WaitReason) -> Option<&NodeName> {
    match reason {
        WaitReason::SourceSilent => job.source.as_ref(),
        WaitReason::TargetSilent => job.target.as_ref(),
        WaitReason::TargetStarting
        | WaitReason::CopyInProgress
        | WaitReason::Switchover
        | WaitReason::ProofUnderWay
        | WaitReason::TargetContinuing
        | WaitReason::SourceCancelling
        | WaitReason::Fencing
        | WaitReason::Contradiction => None,
    }
}

/// Warns once of each host that stays silent: its guest may stand still until a person acts.
async fn alarm(drive: &mut Drive, reason: WaitReason) -> Result<(), LedgerError> {
    let job = &drive.lease.job;
    let Some(node) = silent_host(job, reason) else {
        drive.silence = Silence::None;
        return Ok(());
    };
    match drive.silence {
        Silence::None => drive.silence = Silence::Since(Instant::now()),
        Silence::Since(began) if began.elapsed() >= ALARM_AFTER => {
            let note = format!(
                "node {node} has not answered for {} s and the migration waits for it; if it is \
                 dead for good, say so with a NodeFence",
                began.elapsed().as_secs(),
            );
            let mut tx = drive.shared.ledger.begin().await?;
            story::warn(&mut tx, job, "NodeUnresponsive", &note).await?;
            tx.commit().await?;
            drive.silence = Silence::Told;
        }
        Silence::Since(_) | Silence::Told => {}
    }
    Ok(())
}

fn progress_line(fact: &SourceFact) -> String {
    let progress = &fact.progress;
    let left = progress.remaining.0.checked_div(progress.throughput);
    let end = left.map_or_else(String::new, |seconds| {
        format!(", about {} s left", seconds + 1)
    });
    format!(
        "pass {}: {} of {} remain, {}/s sent, {}/s dirtied{end}",
        progress.passes,
        progress.remaining,
        progress.total,
        godwit_model::Bytes(progress.throughput),
        godwit_model::Bytes(progress.dirty_rate),
    )
}

/// Says the place in the queue. With a long queue each job says it seldom: all places change with
/// every job that leaves it, and nobody's turn may wait for words.
pub(crate) async fn say_place(drive: &mut Drive, wait: QueueWait) -> Result<(), LedgerError> {
    let pause = u32::try_from(wait.waiting).map_or(Duration::MAX, |all| PLACE_PAUSE * all);
    let recent = drive.said_at.is_some_and(|at| at.elapsed() < pause);
    if recent || is_young(drive) {
        return Ok(());
    }
    let message = format!(
        "place {} of {} in the queue: {}",
        wait.place, wait.waiting, wait.limit
    );
    say(drive, "QueueLimit", message).await.map(drop)
}

/// Whether the job came into its state so lately that it needs no words for it.
fn is_young(drive: &Drive) -> bool {
    let since = Timestamp::now().duration_since(drive.lease.job.state_since);
    since.unsigned_abs() < YOUNG_MAX
}

/// Writes the waiting condition when its words changed; `true` when its reason did.
pub(crate) async fn say(
    drive: &mut Drive,
    reason: &str,
    message: String,
) -> Result<bool, LedgerError> {
    say_with(drive, (reason, message), None).await
}

/// As [`say`], with the numbers of the copy beside the words.
async fn say_with(
    drive: &mut Drive,
    (reason, message): (&str, String),
    progress: Option<&Progress>,
) -> Result<bool, LedgerError> {
    let said = (reason.to_owned(), message);
    let new_reason = drive.said.as_ref().is_none_or(|(old, _)| *old != said.0);
    let recent = drive.said_at.is_some_and(|at| at.elapsed() < SAY_AGAIN_MIN);
    if drive.said.as_ref() == Some(&said) || (recent && !new_reason) {
        return Ok(false);
    }
    let now = drive.shared.now();
    let mut tx = drive.shared.ledger.begin().await?;
    let waiting = Waiting {
        reason: &said.0,
        message: &said.1,
        progress,
    };
    story::write_waiting(&mut tx, &drive.lease.job, waiting, &now).await?;
    tx.commit().await?;
    drive.said = Some(said);
    drive.said_at = Some(Instant::now());
    Ok(new_reason)
}
