//! The trace of each job: a span for each step, written from the ledger's times after its commit.
//!
//! Orders carry the id of the step that they are given in, before anyone has written that step's
//! span: whoever ends the step writes it, under the same id, also after a takeover.

use std::time::{Duration, SystemTime};

use godwit_ledger::{JobRow, Lease, TransitionRow};
use godwit_model::Epoch;
use godwit_model::migration::job::JobState;
use godwit_runtime::telemetry::{self, Attribute, SpanKey, StepSpan, StepSpans};
use jiff::Timestamp;
use tracing::{Span, debug, info_span};

use crate::shared::Shared;

/// One step of a job that ended.
#[derive(Debug, Clone)]
pub(crate) struct Move {
    /// The state that it left, and since when it was in it.
    pub(crate) from: (JobState, Timestamp),
    /// The state that it came to, and when.
    pub(crate) to: (JobState, Timestamp),
    /// Why.
    pub(crate) reason: String,
    /// The epoch of the owner that recorded it.
    pub(crate) epoch: Epoch,
}

/// Since when a job is in its state. A request is recorded a hair before its row is.
pub(crate) fn since(job: &JobRow) -> Timestamp {
    match job.state {
        JobState::Pending => job.created_at,
        JobState::Placing
        | JobState::Reserved
        | JobState::Preparing
        | JobState::Prepared
        | JobState::Copying
        | JobState::SwitchAllowed
        | JobState::HandedOver
        | JobState::Aborting
        | JobState::NeedsFencing
        | JobState::Succeeded
        | JobState::Failed => job.state_since,
    }
}

/// `traceparent` of the step that a job is in; empty when the job is in no trace.
pub(crate) fn of_step(job: &JobRow) -> String {
    let step = key(job, (job.state, since(job)));
    step.traceparent(&job.trace).unwrap_or_default()
}

/// A span for what is written at the end of the step that a job is in: a part of that step, and none
/// when the job is in no trace.
pub(crate) fn recording(job: &JobRow) -> Span {
    let step = of_step(job);
    if step.is_empty() {
        return Span::none();
    }
    let span = info_span!(parent: None, "record");
    telemetry::join(&span, &step);
    span
}

fn key(job: &JobRow, (state, since): (JobState, Timestamp)) -> SpanKey<'_> {
    SpanKey {
        job: job.id.as_str(),
        step: state.as_str(),
        nth: u64::try_from(since.as_microsecond()).unwrap_or_default(),
    }
}

/// Writes the span of a step that ended, and the blackout below the one that ended with it.
pub(crate) fn step(spans: &StepSpans, job: &JobRow, moved: &Move) {
    let Move {
        from,
        to,
        reason,
        epoch,
    } = moved;
    let node = |node: &Option<godwit_model::NodeName>| {
        Attribute::from(node.as_ref().map(ToString::to_string).unwrap_or_default())
    };
    let attributes = [
        (
            "godwit.vmi",
            format!("{}/{}", job.vmi.namespace, job.vmi.name).into(),
        ),
        ("godwit.migration", job.key.name.clone().into()),
        ("godwit.source", node(&job.source)),
        ("godwit.target", node(&job.target)),
        ("godwit.to", to.0.as_str().into()),
        ("godwit.reason", reason.clone().into()),
        ("godwit.epoch", number(epoch.0)),
    ];
    let key = key(job, *from);
    spans.record(StepSpan {
        attributes: &attributes,
        failure: fails(to.0).then_some(reason),
        ..StepSpan::new(&job.trace, key, (from.1.into(), to.1.into()))
    });
    if to.0 == JobState::HandedOver {
        blackout(spans, job, key);
    }
}

/// Whether a step that leads to this state did not do what it should.
const fn fails(to: JobState) -> bool {
    match to {
        JobState::Aborting | JobState::NeedsFencing | JobState::Failed => true,
        JobState::Pending
        | JobState::Placing
        | JobState::Reserved
        | JobState::Preparing
        | JobState::Prepared
        | JobState::Copying
        | JobState::SwitchAllowed
        | JobState::HandedOver
        | JobState::Succeeded => false,
    }
}

/// The time in which the guest's CPUs ran nowhere, in its two parts: the last pages, and the way
/// from the source's proof to the running guest. By the clocks of both hosts, as the history has it.
fn blackout(spans: &StepSpans, job: &JobRow, within: SpanKey<'_>) {
    let at = |name: &str| job.history[name].as_u64().map(moment);
    let (Some(stopped), Some(running)) = (at("stoppedAtUs"), at("runningAtUs")) else {
        return;
    };
    let whole = SpanKey {
        step: "blackout",
        ..within
    };
    let count = |name: &str| number(job.history[name].as_u64().unwrap_or_default());
    let attributes = [
        ("godwit.blackout_us", count("blackoutUs")),
        ("godwit.passes", count("passes")),
        ("godwit.bytes", count("bytes")),
    ];
    spans.record(StepSpan {
        parent: Some(within),
        attributes: &attributes,
        ..StepSpan::new(&job.trace, whole, (stopped, running))
    });
    let Some(completed) = at("completedAtUs") else {
        return;
    };
    for (step, times) in [
        ("last pages", (stopped, completed)),
        ("proof to running", (completed, running)),
    ] {
        spans.record(StepSpan {
            parent: Some(whole),
            ..StepSpan::new(&job.trace, SpanKey { step, ..within }, times)
        });
    }
}

fn moment(micros: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(micros)
}

fn number(number: u64) -> Attribute {
    i64::try_from(number).unwrap_or(i64::MAX).into()
}

/// Writes the steps of a job again that had another owner: that one may have died before its spans
/// left it. A collector that has them gets the same ones.
pub(crate) async fn retell(shared: &Shared, lease: &Lease) {
    let spans = shared.telemetry.spans();
    if lease.epoch.0 < 2 || !spans.is_exported() {
        return;
    }
    let job = &lease.job;
    let rows = match shared.ledger.history(&job.id).await {
        Ok(rows) => rows,
        Err(error) => {
            debug!(job = %job.id, %error, "the steps before are not told again");
            return;
        }
    };
    for moved in moves(&rows) {
        step(spans, job, &moved);
    }
    let now = SystemTime::now();
    let taken = SpanKey {
        job: job.id.as_str(),
        step: "takeover",
        nth: lease.epoch.0,
    };
    spans.record(StepSpan {
        parent: Some(key(job, (job.state, since(job)))),
        attributes: &[("godwit.epoch", number(lease.epoch.0))],
        ..StepSpan::new(&job.trace, taken, (now, now))
    });
}

fn moves(rows: &[TransitionRow]) -> impl Iterator<Item = Move> + '_ {
    rows.windows(2).map(|pair| Move {
        from: (pair[0].to, pair[0].at),
        to: (pair[1].to, pair[1].at),
        reason: pair[1].reason.clone(),
        epoch: pair[1].epoch,
    })
}
