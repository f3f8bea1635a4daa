//! When the moves of a plan begin and end by forecast, and between which times all of it ends.

use std::time::Duration;

use crate::forecast::{Forecast, Forecaster, Voyage};
use crate::limits::MigrationLimits;
use crate::migration::queue::QueueLimits;

use super::evacuation::Move;
use super::schedule::{Leg, Slot, schedule, whole};

/// What all moves keep to.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How many at once.
    pub queue: QueueLimits,
    /// Bytes a second that each may take; 0 is no limit.
    pub bandwidth: u64,
    /// Longest blackout that is allowed.
    pub downtime: Duration,
}

impl From<&MigrationLimits> for Pace {
    fn from(limits: &MigrationLimits) -> Self {
        Self {
            queue: limits.queue(),
            bandwidth: limits.bandwidth.0,
            downtime: Duration::from_millis(limits.max_downtime_ms.into()),
        }
    }
}

/// Until the end, counted from the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// What is expected.
    pub likely: Duration,
    /// If every move takes as short as one of ten does.
    pub earliest: Duration,
    /// If every move takes as long as one of ten does.
    pub latest: Duration,
}

impl Span {
    /// This, and then `next`.
    #[must_use]
    pub fn and_then(self, next: Self) -> Self {
        Self {
            likely: self.likely.saturating_add(next.likely),
            earliest: self.earliest.saturating_add(next.earliest),
            latest: self.latest.saturating_add(next.latest),
        }
    }
}

/// What to expect of some moves, each at the place of its move.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Timetable {
    /// What each is expected to be.
    pub forecasts: Vec<Forecast>,
    /// When each is expected.
    pub slots: Vec<Slot>,
    /// All of them.
    pub span: Span,
}

/// When `moves`, asked for in their order, begin and end.
///
/// The band of the whole is wide: a link that was thought to be faster than it is slows all down.
pub fn timetable(forecaster: &Forecaster, moves: &[&Move], pace: Pace) -> Timetable {
    let forecast = |way: &&Move| {
        forecaster.forecast(Voyage {
            machine: &way.machine,
            memory: way.memory,
            source: &way.source,
            target: &way.target,
            bandwidth: pace.bandwidth,
            downtime: pace.downtime,
        })
    };
    let forecasts: Vec<Forecast> = moves.iter().map(forecast).collect();
    let slots = |takes: fn(&Forecast) -> Duration| {
        let legs: Vec<Leg<'_>> = moves
            .iter()
            .zip(&forecasts)
            .map(|(way, forecast)| Leg {
                source: &way.source,
                target: &way.target,
                takes: takes(forecast),
            })
            .collect();
        schedule(&legs, pace.queue)
    };
    let likely = slots(|forecast| forecast.takes);
    let span = Span {
        likely: whole(&likely),
        earliest: whole(&slots(|forecast| forecast.at_least)),
        latest: whole(&slots(|forecast| forecast.at_most)),
    };
    Timetable {
        slots: likely,
        span,
        forecasts,
    }
}
