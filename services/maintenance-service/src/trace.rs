//! The trace of each maintenance: a span for all of it, and one for each of its steps.
//!
//! A step is recorded in the transaction that it tells of, and its span is written after the commit,
//! with an id that is derived from it. So a copy of this service that was started anew writes those
//! again that another one could not send: a store that has them gets the same ones.

use std::time::Duration;

use godwit_ledger::{
    Ledger, LedgerError, MaintenanceStep, MaintenanceStory, MaintenanceTrace, TraceContext, Tx,
};
use godwit_model::{MachineId, NodeName};
use godwit_runtime::telemetry::{SpanKey, StepSpan, StepSpans, begin_trace};
use jiff::Timestamp;
use tracing::debug;

use crate::json::told;
use crate::look::Situation;
use crate::plan::Plan;

/// All of a maintenance, until its node is empty or it ends otherwise.
const WHOLE: &str = "maintenance";
/// From the request until it is known who goes where.
const PLAN: &str = "plan";
/// The node is closed.
const CORDON: &str = "cordon";
/// Migrations are asked for.
const EVACUATE: &str = "evacuate";
/// From the last of these requests until nobody is there any more.
const LEAVE: &str = "leave";
/// The node is opened, since the maintenance was taken away.
const REOPEN: &str = "reopen";
/// A migration is asked for: the first span of its trace.
pub(crate) const EVACUATION: &str = "evacuation";
/// A migration home is asked for: the first span of its trace.
pub(crate) const FAIL_BACK: &str = "fail-back";
/// Links of one span: the limit of OpenTelemetry's own libraries.
const LINKS_MAX: usize = 128;
/// Steps of one maintenance after which no further requests are told.
const STEPS_MAX: usize = 500;
/// What a killed copy of this service may not have sent: the steps of the newest maintenances that are
/// younger than this, up to so many spans, half of what the exporter takes at once.
const UNSENT_MAX: Duration = Duration::from_secs(3600);
const RETOLD_MAX: u32 = 100;
const RETOLD_SPANS_MAX: usize = 1024;
/// How long the trace of a maintenance that is gone is kept after its last step.
pub(crate) const KEPT: Duration = Duration::from_secs(24 * 3600);

/// A migration that was asked for.
#[derive(Debug)]
pub(crate) struct Requested {
    pub(crate) name: String,
    /// `traceparent` of its first span.
    pub(crate) trace: String,
}

/// A round that writes something.
pub(crate) struct Round<'a> {
    /// When it was looked at without the ledger's lock.
    pub(crate) began: Timestamp,
    pub(crate) situation: &'a Situation,
    pub(crate) plan: &'a Plan,
    pub(crate) requested: &'a [Requested],
}

/// The trace of a maintenance in a transaction.
pub(crate) struct Traced {
    story: MaintenanceStory,
    /// Steps that were recorded before this transaction.
    before: usize,
}

impl Traced {
    /// The trace that is kept. Here begins the one of a maintenance that no user's request made.
    ///
    /// # Errors
    /// The ledger's.
    pub(crate) async fn of(
        tx: &mut Tx,
        situation: &Situation,
        looked_at: Timestamp,
    ) -> Result<Self, LedgerError> {
        let maintenance = &situation.maintenance;
        let story = match tx.maintenance_story(&maintenance.uid).await? {
            Some(story) => story,
            None => {
                let mut trace = MaintenanceTrace {
                    uid: maintenance.uid.clone(),
                    name: maintenance.key.name.clone(),
                    node: situation.node_name.clone(),
                    trace: TraceContext(begin_trace()),
                    began_at: looked_at,
                };
                // Its first span is that of the maintenance.
                trace.trace = TraceContext(context(&trace));
                tx.maintenance_trace(&trace).await?;
                MaintenanceStory {
                    trace,
                    steps: vec![],
                }
            }
        };
        Ok(Self {
            before: story.steps.len(),
            story,
        })
    }

    /// Records the steps that a round takes.
    ///
    /// # Errors
    /// The ledger's.
    pub(crate) async fn note(&mut self, tx: &mut Tx, round: &Round<'_>) -> Result<(), LedgerError> {
        for step in steps(&self.story, round) {
            tx.maintenance_step(&self.story.trace.uid, &step).await?;
            self.story.steps.push(step);
        }
        Ok(())
    }

    /// Writes the spans of what was recorded, once it is committed.
    pub(crate) fn tell(&self, spans: &StepSpans) {
        for step in &self.story.steps[self.before..] {
            span(spans, &self.story.trace, step);
        }
    }
}

/// Writes the steps again that a copy of this service may not have sent.
pub(crate) async fn retell(ledger: &Ledger, spans: &StepSpans) {
    if !spans.is_exported() {
        return;
    }
    let stories = match ledger.maintenance_stories(UNSENT_MAX, RETOLD_MAX).await {
        Ok(stories) => stories,
        Err(error) => {
            debug!(%error, "the steps before are not told again");
            return;
        }
    };
    let mut room = RETOLD_SPANS_MAX;
    for MaintenanceStory { trace, steps } in &stories {
        for step in steps.iter().rev() {
            let Some(left) = room.checked_sub(1 + step.links.len()) else {
                return;
            };
            room = left;
            span(spans, trace, step);
        }
    }
}

/// The steps that follow from a round, in their order.
fn steps(story: &MaintenanceStory, round: &Round<'_>) -> Vec<MaintenanceStep> {
    let Round {
        began,
        situation,
        plan,
        requested,
    } = round;
    let now = situation.now;
    let maintenance = plan.maintenance.as_ref().unwrap_or(&situation.maintenance);
    let removed = maintenance.deleting();
    let phase = told(maintenance, "phase").as_str().unwrap_or_default();
    let has = |name| story.steps.iter().any(|step| step.step == name);
    let links: Vec<String> = requested.iter().map(|one| one.trace.clone()).collect();
    // One whose node is gone goes on when the node comes back.
    let ended = match phase {
        "Succeeded" => true,
        "Failed" => situation.node.is_some(),
        _ => false,
    };
    let before = story.steps.iter().filter(|step| step.step == EVACUATE);
    let asked = before.clone().map(|step| step.ended_at).next_back();

    let mut new = vec![];
    let mut add = |step: &str, since: Timestamp, links: Vec<String>, failure: Option<String>| {
        new.push(MaintenanceStep {
            seq: u64::try_from(story.steps.len() + new.len() + 1).unwrap_or(u64::MAX),
            step: step.to_owned(),
            began_at: since.min(now),
            ended_at: if step == PLAN { *began } else { now },
            links,
            failure,
        });
    };
    if !has(PLAN) && !removed {
        add(PLAN, story.trace.began_at.min(*began), vec![], None);
    }
    if !has(CORDON) && !removed && plan.node.is_some() {
        add(CORDON, *began, vec![], None);
    }
    if !requested.is_empty() && story.steps.len() < STEPS_MAX {
        add(EVACUATE, *began, links.clone(), None);
    }
    if !has(WHOLE) && (removed || ended) {
        if let (Some(asked), "Succeeded") = (asked, phase) {
            add(LEAVE, asked, vec![], None);
        }
        let all = before.flat_map(|step| step.links.clone()).chain(links);
        let failure = match phase {
            "Succeeded" => None,
            "Failed" => told(maintenance, "lastError").as_str().map(str::to_owned),
            _ => Some("it was taken away before the node was empty".to_owned()),
        };
        add(
            WHOLE,
            story.trace.began_at,
            all.take(LINKS_MAX).collect(),
            failure,
        );
    }
    if removed {
        add(REOPEN, *began, vec![], None);
    }
    new
}

/// All of the maintenance.
fn whole(trace: &MaintenanceTrace) -> SpanKey<'_> {
    SpanKey {
        job: &trace.uid,
        step: WHOLE,
        nth: 0,
    }
}

/// `traceparent` of the maintenance's span; empty when it is in no trace.
fn context(trace: &MaintenanceTrace) -> String {
    let whole = whole(trace).traceparent(&trace.trace.0);
    whole.unwrap_or_default()
}

/// A migration that no maintenance of a node asked for by itself.
#[derive(Debug)]
pub(crate) struct Alone<'a> {
    /// [`EVACUATION`] or [`FAIL_BACK`].
    pub(crate) step: &'static str,
    /// `traceparent` of its first span.
    pub(crate) trace: String,
    pub(crate) machine: &'a MachineId,
    /// Where it leaves from, or goes home to.
    pub(crate) node: &'a NodeName,
    pub(crate) at: Timestamp,
}

/// Writes the first span of a migration, once its request is committed.
pub(crate) fn first(spans: &StepSpans, asked: &Alone<'_>) {
    let key = SpanKey {
        job: asked.machine.as_str(),
        step: asked.step,
        nth: 0,
    };
    let at = asked.at.into();
    spans.record(StepSpan {
        first: true,
        attributes: &[("godwit.node", asked.node.to_string().into())],
        ..StepSpan::new(&asked.trace, key, (at, at))
    });
}

/// Writes the span of a step, and the first ones of the migrations that it asked for.
fn span(spans: &StepSpans, trace: &MaintenanceTrace, step: &MaintenanceStep) {
    let links: Vec<&str> = step.links.iter().map(String::as_str).collect();
    let attributes = [
        ("godwit.maintenance", trace.name.clone().into()),
        ("godwit.node", trace.node.clone().into()),
    ];
    let (key, parent) = match step.step.as_str() {
        WHOLE => (whole(trace), None),
        name => {
            let key = SpanKey {
                job: &trace.uid,
                step: name,
                nth: step.seq,
            };
            (key, Some(whole(trace)))
        }
    };
    if step.step == EVACUATE {
        let to = context(trace);
        let key = SpanKey {
            job: &trace.uid,
            step: EVACUATION,
            nth: 0,
        };
        for link in &links {
            spans.record(StepSpan {
                first: true,
                attributes: &attributes,
                links: &[&to],
                ..StepSpan::new(link, key, (step.ended_at.into(), step.ended_at.into()))
            });
        }
    }
    spans.record(StepSpan {
        first: parent.is_none() && trace.trace.0 == context(trace),
        parent,
        attributes: &attributes,
        links: &links,
        failure: step.failure.as_deref(),
        ..StepSpan::new(
            &trace.trace.0,
            key,
            (step.began_at.into(), step.ended_at.into()),
        )
    });
}
