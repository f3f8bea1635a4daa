//! One run of the checker and what it says, in words.

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use crate::liveness::nearest;
use crate::{Config, Ends, Migration, Step};

/// What a run found.
#[derive(Debug)]
pub struct Report {
    /// States that were generated, the same ones again and again included.
    pub generated: usize,
    /// Distinct states.
    pub distinct: usize,
    /// Steps to the farthest state.
    pub depth: usize,
    /// Each property.
    pub findings: Vec<Finding>,
}

/// What became of one property.
#[derive(Debug)]
pub struct Finding {
    /// The property.
    pub name: &'static str,
    /// Whether it is as it should be.
    pub verdict: Verdict,
    /// For a violation, the shortest way to it: steps, each with the state after it.
    pub way: Vec<String>,
}

/// The end of a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// True in every state.
    Holds,
    /// False in a state.
    Violated,
    /// True in a state, as it has to be in some.
    Happens,
    /// True in no state, although it has to be in some.
    NeverHappens,
}

impl Verdict {
    /// For people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Violated => "VIOLATED",
            Self::Happens => "happens",
            Self::NeverHappens => "NEVER HAPPENS",
        }
    }
}

impl Report {
    /// Whether all properties are as they should be.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let good = [Verdict::Holds, Verdict::Happens];
        self.findings.iter().all(|f| good.contains(&f.verdict))
    }

    /// The properties that are violated, the one with the shortest way first.
    #[must_use]
    pub fn violated(&self) -> Vec<&Finding> {
        let mut violated: Vec<_> = self
            .findings
            .iter()
            .filter(|finding| finding.verdict == Verdict::Violated)
            .collect();
        violated.sort_by_key(|finding| finding.way.len());
        violated
    }
}

/// Goes through every state that can be reached under `config`, on one thread.
#[must_use]
pub fn check(config: Config) -> Report {
    // Until nothing is new, also after something was found.
    let checker = Migration::new(config)
        .checker()
        .threads(1)
        .finish_when(HasDiscoveries::AllOf(std::collections::BTreeSet::from([
            "",
        ])))
        .spawn_bfs()
        .join();
    let findings = checker.model().properties().into_iter().map(|property| {
        let found = checker.discovery(property.name).is_some();
        let verdict = match (&property.expectation, found) {
            (Expectation::Always | Expectation::Eventually, false) => Verdict::Holds,
            (Expectation::Always | Expectation::Eventually, true) => Verdict::Violated,
            (Expectation::Sometimes, true) => Verdict::Happens,
            (Expectation::Sometimes, false) => Verdict::NeverHappens,
        };
        // The checker's own way is to the last such state that it met, not to the nearest.
        let steps = if verdict == Verdict::Violated {
            let model = checker.model();
            nearest(model, |state| !(property.condition)(model, state))
        } else {
            vec![]
        };
        Finding {
            name: property.name,
            verdict,
            way: way(checker.model(), steps),
        }
    });
    Report {
        findings: findings.collect(),
        generated: checker.state_count(),
        distinct: checker.unique_state_count(),
        depth: checker.max_depth(),
    }
}

/// Steps, each with the state after it.
#[must_use]
pub fn way(model: &Migration, steps: impl IntoIterator<Item = Step>) -> Vec<String> {
    let mut lines = vec![];
    let mut state = model.init_states().pop();
    for step in steps {
        state = state.and_then(|state| model.next_state(&state, step));
        let after = state.as_ref().map(|state| model.describe(state));
        lines.push(format!("{step}\n        {}", after.unwrap_or_default()));
    }
    lines
}

impl Ends {
    /// Whether every state has a way to an end once faults stop.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        self.stuck == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Guard, ends};

    #[test]
    fn under_every_order_of_faults_the_protocol_is_safe() {
        let report = check(Config::quick());
        assert!(report.is_good(), "{:#?}", report.findings);
        assert!(report.distinct > 100_000, "{} states", report.distinct);
    }

    #[test]
    fn once_faults_stop_every_job_has_a_way_to_its_end() {
        let model = Migration::new(Config::quick());
        let found = ends(&model);
        assert!(found.is_good(), "{:#?}", way(&model, found.way));
    }

    #[test]
    fn when_both_hosts_die_a_fence_ends_every_job_safely() {
        let config = Config::both_hosts();
        let report = check(config);
        assert!(report.is_good(), "{:#?}", report.findings);
        let model = Migration::new(config);
        let found = ends(&model);
        assert!(found.is_good(), "{:#?}", way(&model, found.way));
    }

    #[test]
    fn under_every_order_of_faults_post_copy_is_safe_and_comes_to_its_end() {
        let config = Config::quick_post_copy();
        let report = check(config);
        assert!(report.is_good(), "{:#?}", report.findings);
        let model = Migration::new(config);
        let found = ends(&model);
        assert!(found.is_good(), "{:#?}", way(&model, found.way));
    }

    /// No code stands in for the promise of a fence: of a host that was declared dead and lives,
    /// a second copy runs.
    #[test]
    fn a_fence_rests_on_the_word_of_who_declared_it() {
        let report = check(Config::lie());
        let names: Vec<_> = report.violated().iter().map(|found| found.name).collect();
        assert!(names.contains(&"never two copies run"), "{names:?}");
    }

    #[test]
    fn each_guard_is_needed() {
        for guard in Guard::ALL {
            let report = check(Config::control(guard));
            assert!(!report.violated().is_empty(), "without {}", guard.as_str());
        }
    }
}
