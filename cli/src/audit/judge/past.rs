//! Histories of migrations.

use godwit_ledger::{Cordon, JobHistory, TransitionRow};
use godwit_model::migration::job::JobState;

use crate::audit::finding::{Check, Finding, Findings};
use crate::audit::world::job_name;

/// One history.
pub(crate) fn judge_history(history: &JobHistory, cordons: &[Cordon]) -> Vec<Finding> {
    let mut found = Findings::default();
    let subject = job_name(&history.job);
    found.add_all(Check::History, &subject, &faults(history));
    found.add_all(Check::Cordon, &subject, &placed_on_closed(history, cordons));
    found.0
}

fn faults(history: &JobHistory) -> Vec<String> {
    let JobHistory { job, transitions } = history;
    let mut faults = Vec::new();
    let mut before: Option<&TransitionRow> = None;
    for (at, row) in transitions.iter().enumerate() {
        step_faults(before, row, &mut faults);
        let place = u32::try_from(at + 1).unwrap_or(u32::MAX);
        if row.seq != place {
            faults.push(format!("place {place} has number {}", row.seq));
        }
        before = Some(row);
    }
    match before {
        None => faults.push("there is none".to_owned()),
        Some(last) if last.to != job.state => {
            faults.push(format!("it leads to {}, not to {}", last.to, job.state));
        }
        Some(last) if last.epoch > job.epoch => {
            let (last, newest) = (last.epoch.0, job.epoch.0);
            faults.push(format!("its epoch {last} is above the newest, {newest}"));
        }
        Some(_) => {}
    }
    if job.state.is_final() != job.finished_at.is_some() {
        let when = job.finished_at.map(|at| at.to_string());
        let when = when.unwrap_or_else(|| "never".to_owned());
        faults.push(format!("it is {} and finished {when}", job.state));
    }
    faults
}

fn step_faults(before: Option<&TransitionRow>, row: &TransitionRow, faults: &mut Vec<String>) {
    let seq = row.seq;
    let legal = match (before, row.from) {
        (None, None) => row.to == JobState::Pending,
        (Some(before), Some(from)) => before.to == from && from.may_become(row.to),
        (None, Some(_)) | (Some(_), None) => false,
    };
    if !legal {
        let from = row.from.map_or("nothing", JobState::as_str);
        let after = before.map_or("nothing", |before| before.to.as_str());
        let to = row.to;
        faults.push(format!(
            "step {seq} goes from {from} to {to}, after {after}"
        ));
    }
    if before.is_some_and(|before| row.epoch < before.epoch) {
        faults.push(format!(
            "the epoch shrinks to {} at step {seq}",
            row.epoch.0
        ));
    }
    for (what, text) in [("actor", &row.actor), ("reason", &row.reason)] {
        if text.trim().is_empty() {
            faults.push(format!("step {seq} has no {what}"));
        }
    }
}

/// Turns of the job that began and led to its target while the target was closed. Both times are
/// the database's, and its writers take turns, so their order is that of the commits.
fn placed_on_closed(history: &JobHistory, cordons: &[Cordon]) -> Vec<String> {
    let Some(target) = &history.job.target else {
        return Vec::new();
    };
    let pairs = history.transitions.windows(2);
    let placed = pairs.filter_map(|pair| match pair {
        [turn, placed] if turn.to == JobState::Placing && placed.to == JobState::Reserved => {
            Some((turn.at, placed.at))
        }
        _ => None,
    });
    let closed = |(from, until)| {
        cordons.iter().find(move |cordon| {
            cordon.node == *target
                && cordon.from <= from
                && cordon.until.is_none_or(|open| until < open)
        })
    };
    placed
        .filter_map(|span| {
            let (began, since) = (span.0, closed(span)?.from);
            Some(format!(
                "got its turn at {began} and {target}, which was closed at {since}"
            ))
        })
        .collect()
}
