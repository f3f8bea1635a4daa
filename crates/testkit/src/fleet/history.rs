//! What the ledger's history says of a run: how long each step took, and whether the limits of
//! parallel migrations were kept at every moment.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use godwit_ledger::{JobHistory, Ledger};
use godwit_model::NodeName;
use godwit_model::migration::job::JobState;
use jiff::Timestamp;

/// How many migrations may be under way at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In the cluster.
    pub cluster: usize,
    /// Away from a node.
    pub outbound: usize,
    /// Towards a node.
    pub inbound: usize,
}

/// All migrations of a run.
#[derive(Debug, Clone, Default)]
pub struct Steps {
    /// Migrations that succeeded.
    pub succeeded: usize,
    /// Those that failed.
    pub failed: usize,
    /// Most that were under way at once.
    pub most_at_once: usize,
    /// Transitions of all.
    pub transitions: usize,
    /// From the first request to the last end.
    pub took: Duration,
    /// Times in each state, by its name; `whole` is from the request to the end.
    pub times: BTreeMap<&'static str, Vec<Duration>>,
}

/// Reads all histories, and checks the limits.
///
/// # Errors
/// The ledger's, or what was broken.
pub async fn read(ledger: &Ledger, limits: Limits) -> Result<Steps> {
    let mut steps = Steps::default();
    let mut slots = Slots::default();
    let mut span: Option<(Timestamp, Timestamp)> = None;
    let mut audit = ledger.audit().await?;
    let mut last = None;
    loop {
        let page = audit.histories(last.as_ref()).await?;
        let Some(newest) = page.last() else { break };
        last = Some(newest.job.id.clone());
        for history in &page {
            steps.take(history);
            slots.take(history);
            let (first, end) = (history.job.created_at, history.job.state_since);
            let (began, ended) = span.unwrap_or((first, end));
            span = Some((began.min(first), ended.max(end)));
        }
    }
    if let Some((began, ended)) = span {
        steps.took = ended.duration_since(began).unsigned_abs();
    }
    steps.most_at_once = slots.check(limits)?;
    Ok(steps)
}

impl Steps {
    fn take(&mut self, history: &JobHistory) {
        match history.job.state {
            JobState::Succeeded => self.succeeded += 1,
            JobState::Failed => self.failed += 1,
            JobState::Pending
            | JobState::Placing
            | JobState::Reserved
            | JobState::Preparing
            | JobState::Prepared
            | JobState::Copying
            | JobState::SwitchAllowed
            | JobState::HandedOver
            | JobState::Aborting
            | JobState::NeedsFencing => {}
        }
        self.transitions += history.transitions.len();
        for pair in history.transitions.windows(2) {
            let [before, after] = pair else { continue };
            self.time(before.to.as_str(), (before.at, after.at));
        }
        self.time("whole", (history.job.created_at, history.job.state_since));
    }

    fn time(&mut self, what: &'static str, (from, to): (Timestamp, Timestamp)) {
        let time = to.duration_since(from).unsigned_abs();
        self.times.entry(what).or_default().push(time);
    }
}

/// When migrations took a slot, and gave it back.
#[derive(Debug, Default)]
struct Slots {
    cluster: Vec<(Timestamp, i32)>,
    outbound: BTreeMap<NodeName, Vec<(Timestamp, i32)>>,
    inbound: BTreeMap<NodeName, Vec<(Timestamp, i32)>>,
}

impl Slots {
    fn take(&mut self, history: &JobHistory) {
        let came = |state| {
            let mut rows = history.transitions.iter();
            rows.find(|row| row.to == state).map(|row| row.at)
        };
        let ended = history.transitions.iter().find(|row| row.to.is_final());
        let ended = ended.map(|row| row.at);
        let note = |moments: &mut Vec<(Timestamp, i32)>, began: Option<Timestamp>| {
            moments.extend(began.map(|at| (at, 1)));
            moments.extend(began.and(ended).map(|at| (at, -1)));
        };
        let placing = came(JobState::Placing);
        note(&mut self.cluster, placing);
        if let Some(source) = &history.job.source {
            note(self.outbound.entry(source.clone()).or_default(), placing);
        }
        if let Some(target) = &history.job.target {
            let reserved = came(JobState::Reserved);
            note(self.inbound.entry(target.clone()).or_default(), reserved);
        }
    }

    /// Answers the most at once in the cluster.
    fn check(self, limits: Limits) -> Result<usize> {
        let most = most_of(self.cluster);
        ensure!(
            most <= limits.cluster,
            "{most} migrations were under way at once, {} may be",
            limits.cluster
        );
        let nodes = [
            ("away from", self.outbound, limits.outbound),
            ("towards", self.inbound, limits.inbound),
        ];
        for (way, nodes, limit) in nodes {
            for (node, moments) in nodes {
                let most = most_of(moments);
                ensure!(most <= limit, "{most} at once {way} {node}, {limit} may be");
            }
        }
        Ok(most)
    }
}

/// The highest sum at any moment; at the same moment ends count before beginnings.
fn most_of(mut moments: Vec<(Timestamp, i32)>) -> usize {
    moments.sort_unstable();
    let mut most = 0;
    let mut now = 0;
    for (_, change) in moments {
        now += change;
        most = most.max(now);
    }
    usize::try_from(most).unwrap_or_default()
}
