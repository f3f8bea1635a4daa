//! One job in a coordinator's hands: what it knows, and what follows by the real decision.

use std::time::Duration;

use godwit_model::Bytes;
use godwit_model::migration::convergence::{Convergence, CopyLimits, Verdict};
use godwit_model::migration::decide::{self, Action};
use godwit_model::migration::fact::{Progress, SourceFact, TargetFact};
use godwit_model::migration::job::JobState;
use godwit_model::migration::source::SourceState;
use godwit_model::migration::target::TargetState;

use super::net::{Fact, Row, Version};
use super::time::{MS, Time};
use crate::config::Guard;

/// After how long a host that says nothing is silent.
const SILENT: Time = 1_500 * MS;
/// A copy that does not converge is given up after this.
const COPY_LIMITS: CopyLimits = CopyLimits {
    completion_timeout_per_gib: 20,
    may_pause: false,
    progress_timeout: 8,
};

/// A job in this process's hands.
#[derive(Debug)]
pub(super) struct Drive {
    pub(super) row: Row,
    pub(super) epoch: u64,
    pub(super) source: Heard,
    pub(super) target: Heard,
    pub(super) convergence: Convergence,
    /// The call that it waits for.
    pub(super) waits: Option<u64>,
    /// When it may act again; later than now after something failed.
    pub(super) not_before: Time,
    /// When it read the job last.
    pub(super) read_at: Time,
    /// When no node was found first, by this process.
    pub(super) unplaced: Option<Time>,
}

/// What a host said last.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Heard {
    pub(super) version: Version,
    pub(super) fact: Option<Fact>,
    pub(super) at: Time,
}

/// What both hosts say; `None` is a host that is silent.
pub(super) struct Facts {
    source: Option<SourceFact>,
    target: Option<TargetFact>,
}

impl Drive {
    /// What the hosts said last, unless that is long ago.
    pub(super) fn facts(&self, now: Time) -> Facts {
        let fresh = |heard: &Heard| heard.fact.filter(|_| heard.at + SILENT > now);
        let mut facts = Facts {
            source: None,
            target: None,
        };
        if let Some(Fact::Source((state, allowed, _), left, elapsed_ms)) = fresh(&self.source) {
            facts.source = Some(SourceFact {
                state,
                allowed,
                reason: String::new(),
                progress: Progress {
                    remaining: Bytes(left),
                    total: Bytes(1_000_000_000),
                    elapsed_ms,
                    ..Progress::default()
                },
                stopped_at_us: None,
                completed_at_us: None,
                post_copied: false,
            });
        }
        if let Some(Fact::Target(state)) = fresh(&self.target) {
            facts.target = Some(TargetFact::bare(state));
        }
        facts
    }

    /// What follows from the job as it is known and from `facts`.
    pub(super) fn decide(&mut self, facts: &Facts, removed: Option<Guard>) -> Action {
        let verdict = match &facts.source {
            Some(fact) if fact.state == SourceState::Copying => {
                let elapsed = Duration::from_millis(fact.progress.elapsed_ms);
                self.convergence.judge(COPY_LIMITS, &fact.progress, elapsed)
            }
            Some(_) | None => Verdict::GoOn,
        };
        let job = decide::Job {
            state: self.row.state,
            cancel: self.row.cancel.then(String::new),
            switch_allowed: self.row.switch_allowed,
            verdict,
            source_fenced: false,
            target_fenced: false,
        };
        let completed =
            facts.source.as_ref().map(|fact| fact.state) == Some(SourceState::Completed);
        let undone = self.row.state == JobState::Aborting && completed;
        if undone && removed == Some(Guard::Tombstone) {
            let discarded = TargetFact::bare(TargetState::Discarded);
            return decide::decide(&job, facts.source.as_ref(), Some(&discarded));
        }
        decide::decide(&job, facts.source.as_ref(), facts.target.as_ref())
    }

    /// The transitions that follow from the same facts: one transaction.
    pub(super) fn chapters(
        &mut self,
        first: JobState,
        facts: &Facts,
        removed: Option<Guard>,
    ) -> Vec<JobState> {
        let before = self.row;
        let mut states = vec![before.state, first];
        self.row.state = first;
        self.row.switch_allowed |= first == JobState::SwitchAllowed;
        while let Action::Record { to, .. } = self.decide(facts, removed) {
            states.push(to);
            self.row.state = to;
            self.row.switch_allowed |= to == JobState::SwitchAllowed;
        }
        self.row = before;
        states
    }
}
