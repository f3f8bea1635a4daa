//! The deadline of a maintenance: when it is, and what happens at it.

use std::time::Duration;

use godwit_ledger::Object;
use jiff::Timestamp;

use crate::json::told;

/// Longest time to a deadline: ten years.
const DEADLINE_MAX: u64 = 10 * 365 * 24 * 3600;

/// When a node is to be empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    /// From the beginning of the maintenance.
    pub(crate) after: Duration,
    pub(crate) at: Timestamp,
    pub(crate) action: OnDeadline,
}

/// What happens at a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnDeadline {
    /// A warning, and nothing else.
    Continue,
    /// Nobody is asked to leave any more; who copies already goes on.
    Abort,
    /// Each machine goes on to the next rung of its ladder.
    Escalate,
}

impl OnDeadline {
    /// Its name in specs.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Continue => "Continue",
            Self::Abort => "Abort",
            Self::Escalate => "Escalate",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Continue, Self::Abort, Self::Escalate]
            .into_iter()
            .find(|action| action.as_str() == name)
    }
}

impl Deadline {
    /// The deadline that `maintenance` has; `None` when it has none.
    pub(crate) fn of(maintenance: &Object, now: Timestamp) -> Option<Self> {
        let spec = maintenance.spec();
        let after = spec["deadlineSeconds"].as_u64()?.min(DEADLINE_MAX);
        let after = Duration::from_secs(after);
        let action = spec["onDeadline"].as_str().and_then(OnDeadline::from_name);
        Some(Self {
            after,
            at: started(maintenance).unwrap_or(now) + after,
            action: action.unwrap_or(OnDeadline::Continue),
        })
    }

    /// Whether it has come, for a maintenance that has not ended before.
    pub(crate) fn has_come(self, maintenance: &Object, now: Timestamp) -> bool {
        now >= self.at && *told(maintenance, "phase") != "Succeeded"
    }
}

/// When the maintenance began; `None` before it has.
pub(crate) fn started(maintenance: &Object) -> Option<Timestamp> {
    told(maintenance, "startedAt").as_str()?.parse().ok()
}
