//! What one transition records and shows, from the facts at hand.

use std::time::Duration;

use godwit_ledger::JobChange;
use godwit_model::migration::fact::{SourceFact, TargetAddress, TargetFact};
use godwit_model::migration::job::JobState;
use godwit_model::migration::target::TargetState;
use godwit_model::migration::view::{MigrationState, SideState, launcher_name};
use serde_json::{Value, json};

use crate::drive::{Drive, JobFacts, Resort};
use crate::terms::Terms;

/// One transition, with what the views need to know.
#[derive(Debug, Clone)]
pub(crate) struct Chapter {
    /// The next state.
    pub(crate) to: JobState,
    /// Why, for the history.
    pub(crate) reason: String,
    /// Columns that change with it.
    pub(crate) set: JobChange,
    /// Where the target listens; `None` before it does.
    pub(crate) address: Option<TargetAddress>,
    /// Parts of `migrationState` that this transition adds.
    pub(crate) migration_state: MigrationState,
}

/// What a transition shows, from the facts at hand.
pub(crate) fn chapter(drive: &Drive, to: JobState, reason: String, facts: &JobFacts) -> Chapter {
    let (source, target) = (facts.source.as_ref(), facts.target.as_ref());
    let job = &drive.lease.job;
    let now = drive.shared.now();
    let address = target.and_then(|fact| fact.address.clone());
    let mut chapter = Chapter {
        address,
        ..plain(to, &reason)
    };
    let shown = &mut chapter.migration_state;
    match to {
        JobState::Preparing => *shown = beginning(drive),
        JobState::Prepared => {
            if let Some(address) = &chapter.address {
                shown.listens(address);
                chapter.set.target_address = Some(address.uri.clone());
            }
        }
        JobState::Copying => shown.start_timestamp = Some(now),
        JobState::HandedOver => {
            shown.target_node_domain_ready_timestamp = Some(now.clone());
            if source.is_some_and(|fact| fact.post_copied) || follows(target) {
                // It ends when the rest of the memory has come.
                shown.mode = Some("PostCopy");
            } else {
                shown.end_timestamp = Some(now);
                shown.completed = true;
                if drive.resorted == Some(Resort::Pause) || Terms::of(job).pauses() {
                    shown.mode = Some("Paused");
                }
            }
            shown.abort_status = job.cancel.as_ref().map(|_| "Failed");
            chapter.set.history = numbers(source, target);
            if let Some(blackout) = blackout(source, target) {
                let forecast = Terms::of(job).forecast_blackout();
                drive.shared.telemetry.blackout(job, blackout, forecast);
            }
        }
        JobState::Aborting => {
            chapter.set.failure = Some(reason);
            shown.abort_requested = job.cancel.is_some();
            shown.abort_status = job.cancel.as_ref().map(|_| "Aborting");
        }
        JobState::Failed => {
            shown.end_timestamp = Some(now);
            shown.completed = true;
            shown.failed = true;
            shown.abort_status = job.cancel.as_ref().map(|_| "Succeeded");
            shown.failure_reason = job.failure.clone().or_else(|| Some(reason.clone()));
            chapter.set.failure = job.failure.clone().or(Some(reason));
            chapter.set.history = numbers(source, target);
        }
        // QEMU's last numbers may have come after the hand-over.
        JobState::Succeeded => {
            if Terms::of(job).post_copied() {
                shown.end_timestamp = Some(now);
                shown.completed = true;
            }
            chapter.set.history = numbers(source, target);
        }
        JobState::NeedsFencing => chapter.set.failure = Some(reason),
        JobState::Pending | JobState::Placing | JobState::Reserved | JobState::SwitchAllowed => {}
    }
    chapter
}

/// `migrationState` as it begins: who, from where, to where, under which options.
fn beginning(drive: &Drive) -> MigrationState {
    let job = &drive.lease.job;
    let side = |node: &godwit_model::NodeName, seed: &str| SideState {
        node: node.clone(),
        pod: launcher_name(&job.vmi.name, seed),
        migration_uid: job.id.clone(),
        domain_name: format!("{}_{}", job.vmi.namespace, job.vmi.name),
        domain_namespace: job.vmi.namespace.clone(),
        instance_uid: job.machine.to_string(),
    };
    let source = job
        .source
        .as_ref()
        .map(|node| side(node, job.machine.as_str()));
    let target = job.target.as_ref().map(|node| side(node, job.id.as_str()));
    MigrationState {
        migration_uid: Some(job.id.clone()),
        source_node: job.source.clone(),
        source_pod: source.as_ref().map(|side| side.pod.clone()),
        target_node: job.target.clone(),
        target_pod: target.as_ref().map(|side| side.pod.clone()),
        mode: Some("PreCopy"),
        migration_policy_name: drive.policy.as_ref().map(|policy| policy.name.clone()),
        migration_configuration: Some(drive.limits().shown),
        source_state: source,
        target_state: target,
        migration_network_type: Some("Pod"),
        ..MigrationState::default()
    }
}

/// Whether memory follows that the target has not got yet, or never will.
fn follows(target: Option<&TargetFact>) -> bool {
    let state = target.map(|fact| fact.state);
    matches!(state, Some(TargetState::Fetching | TargetState::MemoryLost))
}

/// The numbers that the history keeps of the copy.
fn numbers(source: Option<&SourceFact>, target: Option<&TargetFact>) -> Option<Value> {
    let blackout = blackout(source, target).map(|time| time.as_micros());
    let source = source?;
    Some(json!({
        "postCopied": source.post_copied || follows(target),
        "passes": source.progress.passes,
        "bytes": source.progress.transferred,
        "memory": source.progress.total,
        "dirtyRate": source.progress.dirty_rate,
        "throttlePercent": source.progress.throttle_percent,
        "qemuDowntimeMs": source.progress.downtime_ms,
        "brownoutMs": source.progress.elapsed_ms,
        "blackoutUs": blackout,
        "stoppedAtUs": source.stopped_at_us,
        "completedAtUs": source.completed_at_us,
        "runningAtUs": target.and_then(|fact| fact.running_at_us),
    }))
}

/// How long the guest's CPUs ran nowhere, by the clocks of both hosts; `None` when it isn't known.
fn blackout(source: Option<&SourceFact>, target: Option<&TargetFact>) -> Option<Duration> {
    let (from, to) = (source?.stopped_at_us?, target?.running_at_us?);
    Some(Duration::from_micros(to.saturating_sub(from)))
}

/// A transition that shows nothing but its phase.
pub(crate) fn plain(to: JobState, reason: &str) -> Chapter {
    Chapter {
        to,
        reason: reason.to_owned(),
        set: JobChange::default(),
        address: None,
        migration_state: MigrationState::default(),
    }
}
