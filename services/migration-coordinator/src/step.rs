//! Carries out one decided action: a transition in the ledger, or an order to a host.

use std::sync::Arc;
use std::time::Duration;

use godwit_ledger::{JobRow, Lease, LedgerError, Recorded, Tx};
use godwit_model::migration::decide::{Action, Command};
use godwit_model::migration::fact::{SourceFact, TargetFact};
use godwit_model::migration::job::JobState;
use godwit_model::migration::queue::{self, Turn};
use godwit_model::migration::target::TargetState;
use godwit_model::{Bytes, Epoch};
use godwit_rpc::agent::v1 as wire;
use godwit_rpc::placement::v1::{ReserveRequest, ReserveResponse};
use godwit_rpc::{Code, Request, Status, client};
use godwit_runtime::failpoint;
use jiff::Timestamp;
use serde_json::Value;
use tracing::{Instrument, info, warn};

use crate::chapter::{Chapter, chapter, plain};
use crate::drive::{Drive, JobFacts};
use crate::hosts;
use crate::resort;
use crate::story;
use crate::terms::{self, Terms, Wishes};
use crate::trace::{self, Move};
use crate::waiting::{say, say_place, wait};

/// Longest wait for a host's or the scheduler's answer; preparing a target starts a QEMU.
const CALL_MAX: Duration = Duration::from_secs(15);
/// How long a job without a fitting node waits before it fails: KubeVirt's default.
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(300);
/// Pause before an order that a host did not answer is given again.
const ORDER_RETRY: Duration = Duration::from_millis(250);

/// What carrying out an action led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Something changed: decide again.
    Again,
    /// Wait for a change.
    Wait,
    /// The job is over.
    Over,
    /// Another owner has the job.
    Lost,
}

/// Carries out `action`, decided from these facts.
///
/// # Errors
/// The ledger's; the action may be repeated.
pub(crate) async fn carry_out(
    drive: &mut Drive,
    action: Action,
    facts: &JobFacts,
) -> Result<Outcome, LedgerError> {
    match action {
        Action::TakeTurn => take_turn(drive).await,
        Action::Reserve => reserve(drive).await,
        Action::Record { to, reason } => {
            let first = chapter(drive, to, reason, facts);
            record(drive, first, facts).await
        }
        Action::Command(command) => order(drive, command).await,
        Action::Wait(reason) => wait(drive, reason, facts.source.as_ref()).await,
        Action::Done => Ok(Outcome::Over),
    }
}

/// Takes a slot when it is this job's turn. The slots are counted under the ledger's write lock, so
/// that two jobs never take one.
async fn take_turn(drive: &mut Drive) -> Result<Outcome, LedgerError> {
    let shared = Arc::clone(&drive.shared);
    match shared.queue.turn(&drive.lease.job.id) {
        Some(Turn::Start) => {
            let span = trace::recording(&drive.lease.job);
            if let Some(outcome) = take_slot(drive).instrument(span).await? {
                return Ok(outcome);
            }
        }
        Some(Turn::Wait(wait)) => {
            say_place(drive, wait).await?;
            return Ok(Outcome::Wait);
        }
        None => {}
    }
    // The reading is of another moment.
    shared.queue.moved();
    Ok(Outcome::Wait)
}

/// Records that the job has a slot; `None` when all of them are taken.
async fn take_slot(drive: &mut Drive) -> Result<Option<Outcome>, LedgerError> {
    let shared = Arc::clone(&drive.shared);
    let mut tx = shared.ledger.begin().await?;
    let source = drive.lease.job.source.as_ref();
    let slots = tx.queue_slots(source).await?;
    if queue::limit_reached(source, slots, shared.limits().queue).is_some() {
        return Ok(None);
    }
    let first = plain(JobState::Placing, "its turn");
    let facts = drive.facts();
    record_in(tx, drive, first, &facts).await.map(Some)
}

/// Asks the scheduler for a target and records it.
async fn reserve(drive: &mut Drive) -> Result<Outcome, LedgerError> {
    let wishes = Wishes::read(&drive.shared, &drive.lease.job).await?;
    let answer = match ask_scheduler(drive, &wishes).await {
        Ok(answer) => answer,
        Err(status) if status.code() == Code::FailedPrecondition => {
            let first = plain(JobState::Failed, status.message());
            return record(drive, first, &drive.facts()).await;
        }
        Err(status) => {
            say(
                drive,
                "SchedulerSilent",
                format!("the scheduler: {}", status.message()),
            )
            .await?;
            tokio::time::sleep(ORDER_RETRY).await; // back-off
            return Ok(Outcome::Wait);
        }
    };
    if let Ok(node) = godwit_model::NodeName::parse(answer.node) {
        let mut chapter = plain(JobState::Reserved, &format!("room is held on {node}"));
        let memory = Bytes(answer.memory_bytes);
        chapter.set.history = Some(terms::settle(drive, wishes.method, (&node, memory)).await?);
        chapter.set.target = Some(node);
        drive.reserved_at = Some(Timestamp::now());
        return record(drive, chapter, &drive.facts()).await;
    }
    // By the clock that `state_since` is of: this host's may be hours away from it.
    let waited = drive.shared.ledger.now().await?;
    let waited = waited.duration_since(drive.lease.job.state_since);
    if waited.unsigned_abs() >= UNSCHEDULABLE_MAX {
        let seconds = UNSCHEDULABLE_MAX.as_secs();
        let why = format!("no node fits for {seconds} s: {}", answer.summary);
        return record(drive, plain(JobState::Failed, &why), &drive.facts()).await;
    }
    if say(drive, "Unschedulable", answer.summary).await? {
        let mut tx = drive.shared.ledger.begin().await?;
        let vmi = &drive.lease.job.vmi;
        let note = format!(
            "Migration target pod for VMI [{}/{}] is currently unschedulable.",
            vmi.namespace, vmi.name
        );
        story::warn(
            &mut tx,
            &drive.lease.job,
            "migrationTargetPodUnschedulable",
            &note,
        )
        .await?;
        tx.commit().await?;
    }
    Ok(Outcome::Wait)
}

async fn ask_scheduler(drive: &Drive, wishes: &Wishes) -> Result<ReserveResponse, Status> {
    let request = ReserveRequest {
        machine: drive.lease.job.machine.to_string(),
        job: drive.lease.job.id.to_string(),
        epoch: drive.lease.epoch.0,
        added_node_selector: wishes.selector.clone(),
        preferred_node: wishes.target.clone(),
        inbound_max: drive.shared.limits().queue.inbound_per_node,
    };
    let mut scheduler = drive.shared.scheduler.clone();
    let answer = scheduler.reserve(timed(&drive.lease.job, request)).await?;
    Ok(answer.into_inner())
}

/// Records a transition with its views and events, and those that follow from the same facts.
async fn record(
    drive: &mut Drive,
    first: Chapter,
    facts: &JobFacts,
) -> Result<Outcome, LedgerError> {
    let span = trace::recording(&drive.lease.job);
    let recorded = async {
        let tx = drive.shared.ledger.begin().await?;
        record_in(tx, drive, first, facts).await
    };
    recorded.instrument(span).await
}

/// As [`record`], in a transaction that has begun. What this process knows of the job follows only
/// what was committed.
async fn record_in(
    mut tx: Tx,
    drive: &mut Drive,
    first: Chapter,
    facts: &JobFacts,
) -> Result<Outcome, LedgerError> {
    let needed = facts.target.as_ref().map(|fact| fact.state) == Some(TargetState::Fetching);
    if first.to == JobState::HandedOver && !needed {
        retire_early(drive);
    }
    let before = drive.lease.job.clone();
    let written = write_all(&mut tx, drive, first, facts).await;
    let committed = match written {
        Ok(Written::All(moves)) => commit(tx, moves).await,
        Ok(Written::Stale { found, epoch }) => {
            drive.lease.job = before;
            let (job, mine) = (&drive.lease.job.id, drive.lease.epoch);
            warn!(%job, %found, %epoch, %mine, "transition refused");
            return Ok(Outcome::Lost);
        }
        Err(error) => Err(error),
    };
    let moves = committed.inspect_err(|_| drive.lease.job = before)?;
    if moves.iter().any(|moved| moved.to.0 == JobState::Prepared) {
        resort::say_no_post_copy(drive, facts).await?;
    }
    let terms = Terms::of(&drive.lease.job);
    for moved in &moves {
        let Move {
            from, to, reason, ..
        } = moved;
        let job = &drive.lease.job;
        info!(job = %job.id, from = %from.0, to = %to.0, reason, "transition");
        let telemetry = &drive.shared.telemetry;
        telemetry.step(job, moved);
        if to.0 == JobState::Succeeded
            && let (Some(since), Some(forecast)) = (drive.reserved_at, terms.forecast())
        {
            let took = to.1.duration_since(since).unsigned_abs();
            telemetry.forecast_took(took, forecast);
        }
    }
    drive.said = None;
    if drive.lease.job.state.is_final() {
        Ok(Outcome::Over)
    } else {
        Ok(Outcome::Again)
    }
}

async fn commit(tx: Tx, moves: Vec<Move>) -> Result<Vec<Move>, LedgerError> {
    let (Some(first), Some(last)) = (moves.first(), moves.last()) else {
        return Ok(moves);
    };
    let name = format!("ledger.{}-{}", first.from.0, last.to.0);
    failpoint!("{name}.before");
    tx.commit().await?;
    failpoint!("{name}.after");
    Ok(moves)
}

/// Lets the source's host clean up beside the writing: the target runs, whatever is recorded. What
/// comes of it is learned when the order is given in its turn.
fn retire_early(drive: &Drive) {
    let Some(source) = &drive.source else { return };
    let reference = hosts::job_ref(&drive.lease.job, drive.lease.epoch);
    let mut agent = source.agent();
    let request = timed(&drive.lease.job, reference);
    tokio::spawn(async move { agent.retire_source(request).await });
}

/// What writing led to.
enum Written {
    All(Vec<Move>),
    /// Somebody else moved the job.
    Stale {
        found: JobState,
        epoch: Epoch,
    },
}

async fn write_all(
    tx: &mut Tx,
    drive: &mut Drive,
    first: Chapter,
    facts: &JobFacts,
) -> Result<Written, LedgerError> {
    let mut views = story::Views::read(tx, &drive.lease.job).await?;
    let now = drive.shared.now();
    let mut moves = vec![];
    let mut next = first;
    loop {
        let recorded = story::write(tx, &drive.lease, &next, (&mut views, &now)).await?;
        let since = match recorded {
            Recorded::Now { since } => since,
            Recorded::Stale { found, epoch } => return Ok(Written::Stale { found, epoch }),
        };
        moves.push(advance(&mut drive.lease, next, since));
        let Action::Record { to, reason } = drive.decide(facts) else {
            return Ok(Written::All(moves));
        };
        next = chapter(drive, to, reason, facts);
    }
}

/// The job as it is after this chapter, since then.
fn advance(lease: &mut Lease, chapter: Chapter, since: Timestamp) -> Move {
    let epoch = lease.epoch;
    let job = &mut lease.job;
    let from = (job.state, trace::since(job));
    job.state_since = since;
    job.state = chapter.to;
    job.target = chapter.set.target.or_else(|| job.target.take());
    job.failure = chapter.set.failure.or_else(|| job.failure.take());
    job.target_address = chapter
        .set
        .target_address
        .or_else(|| job.target_address.take());
    job.switch_allowed |= chapter.to == JobState::SwitchAllowed;
    if let (Value::Object(known), Some(Value::Object(new))) =
        (&mut job.history, chapter.set.history)
    {
        known.extend(new);
    }
    Move {
        from,
        to: (chapter.to, since),
        reason: chapter.reason,
        epoch,
    }
}

/// Gives a host its order and takes the fact from its answer.
async fn order(drive: &mut Drive, command: Command) -> Result<Outcome, LedgerError> {
    failpoint!("order.{command:?}.before");
    let answer = match command {
        Command::PrepareTarget | Command::DiscardTarget | Command::AbandonTarget => {
            to_target(drive, command).await
        }
        Command::StartCopy
        | Command::AllowSwitchover
        | Command::CancelCopy
        | Command::RevertSource
        | Command::RetireSource => to_source(drive, command).await,
    };
    failpoint!("order.{command:?}.after");
    let Err(status) = answer else {
        return Ok(Outcome::Again);
    };
    let code = status.code();
    // A newer owner has spoken to this host.
    if code == Code::Aborted {
        let job = &drive.lease.job.id;
        warn!(%job, ?command, message = status.message(), "order refused");
        return Ok(Outcome::Lost);
    }
    let refusals = [
        Code::FailedPrecondition,
        Code::ResourceExhausted,
        Code::InvalidArgument,
    ];
    if command == Command::PrepareTarget && refusals.contains(&code) {
        let why = format!("the target refused: {}", status.message());
        let facts = drive.facts();
        let first = chapter(drive, JobState::Aborting, why, &facts);
        return record(drive, first, &facts).await;
    }
    let job = &drive.lease.job.id;
    warn!(%job, ?command, ?code, message = status.message(), "order not taken");
    tokio::time::sleep(ORDER_RETRY).await; // back-off
    Ok(Outcome::Wait)
}

async fn to_target(drive: &mut Drive, command: Command) -> Result<(), Status> {
    let job = &drive.lease.job;
    let reference = hosts::job_ref(job, drive.lease.epoch);
    let host = drive
        .target
        .as_ref()
        .ok_or_else(|| Status::unavailable("no target host"))?;
    let mut agent = host.agent();
    let mark = host.mark();
    let answer = if command == Command::AbandonTarget {
        agent.abandon_target(timed(job, reference)).await?
    } else if command == Command::PrepareTarget {
        let spec = drive.shared.machine_spec(&job.machine).await?;
        let request = wire::PrepareTargetRequest {
            job: Some(reference),
            spec: Some(spec),
            source_node: job
                .source
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
            post_copy: drive.limits().wire.post_copy,
        };
        agent.prepare_target(timed(job, request)).await?
    } else {
        agent.discard_target(timed(job, reference)).await?
    };
    host.heard_target(mark, TargetFact::try_from(answer.into_inner())?);
    Ok(())
}

async fn to_source(drive: &mut Drive, command: Command) -> Result<(), Status> {
    let job = &drive.lease.job;
    let reference = hosts::job_ref(job, drive.lease.epoch);
    let host = drive
        .source
        .as_ref()
        .ok_or_else(|| Status::unavailable("no source host"))?;
    let mut agent = host.agent();
    let mark = host.mark();
    let answer = match command {
        Command::StartCopy => {
            let copy = copy_request(drive, reference)?;
            agent.start_copy(timed(job, copy)).await?
        }
        Command::AllowSwitchover => agent.allow_switchover(timed(job, reference)).await?,
        Command::CancelCopy => agent.cancel_copy(timed(job, reference)).await?,
        Command::RevertSource => agent.revert_source(timed(job, reference)).await?,
        Command::RetireSource => agent.retire_source(timed(job, reference)).await?,
        Command::PrepareTarget | Command::DiscardTarget | Command::AbandonTarget => {
            return Err(Status::internal("an order for the target"));
        }
    };
    host.heard_source(mark, SourceFact::try_from(answer.into_inner())?);
    Ok(())
}

fn copy_request(drive: &Drive, job: wire::JobRef) -> Result<wire::StartCopyRequest, Status> {
    let target = drive
        .target
        .as_ref()
        .ok_or_else(|| Status::unavailable("no target host"))?;
    let address = target.latest().and_then(|facts| facts.target.address);
    let uri = address
        .map(|address| address.uri)
        .or_else(|| drive.lease.job.target_address.clone())
        .ok_or_else(|| Status::unavailable("the target's address is not known"))?;
    Ok(wire::StartCopyRequest {
        job: Some(job),
        target_node: target.node.to_string(),
        target_uri: uri,
        target_agent: target.address.clone(),
        limits: Some(drive.limits().wire),
    })
}

/// A call that is a part of the step that the job is in.
pub(crate) fn timed<T>(job: &JobRow, message: T) -> Request<T> {
    let mut request = client::within(CALL_MAX, message);
    client::part_of(&mut request, &trace::of_step(job));
    request
}
