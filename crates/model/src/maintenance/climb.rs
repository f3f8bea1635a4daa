//! On which rung of its ladder a machine stands, and why it leaves it.

use std::time::Duration;

use super::ladder::{Ladder, Method, spoken};
use super::{Machine, Stage};
use crate::run_strategy::RunStrategy;

/// A machine on its ladder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Climb {
    /// The ladder in force.
    pub ladder: Ladder,
    /// Whether it is the machine's own: then it says more than the machine's eviction strategy.
    pub own: bool,
    /// The rung that it stands on, from 0.
    pub rung: usize,
    /// How long it has been standing there.
    pub stands: Duration,
    /// Whether the maintenance's deadline came while it stood there, and drives machines on.
    pub driven: bool,
    /// What starts it again after a stop.
    pub owner: Owner,
    /// The open migration that the maintenance asked for; `None` when there is none.
    pub open: Option<Open>,
}

impl Climb {
    /// How the machine is to leave.
    pub fn method(&self) -> Method {
        self.ladder.rung(self.rung).method
    }
}

/// What starts a machine again after a stop.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Owner {
    /// Nothing: it has no virtual machine.
    #[default]
    Nobody,
    /// Its virtual machine, by itself or when it is asked to.
    StartsAgain,
    /// Its virtual machine doesn't.
    LeavesIt,
}

impl Owner {
    /// The owner of machines that run by `strategy`.
    pub const fn of(strategy: RunStrategy) -> Self {
        match strategy {
            RunStrategy::Always | RunStrategy::RerunOnFailure | RunStrategy::Manual => {
                Self::StartsAgain
            }
            RunStrategy::Once | RunStrategy::Halted => Self::LeavesIt,
        }
    }
}

/// An open migration that a maintenance asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    /// By which method.
    pub method: Method,
    /// Whether it can be called off without harm: the switch has not begun, and nobody cancelled.
    pub revocable: bool,
}

/// A step up the ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The rung that it stood on, from 0.
    pub from: usize,
    /// The rung that the machine stands on from now, from 0.
    pub rung: usize,
    /// Why it left the one before; of several that it passed over, the first.
    pub why: Why,
}

/// Why a rung is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The machine can't leave this way.
    Impossible,
    /// The rung's time is over.
    TimeOver(Duration),
    /// An attempt failed, on a rung without a time.
    Failed,
    /// The deadline of the maintenance has come.
    Deadline,
}

impl Why {
    /// In words that follow the name of the method.
    pub fn words(self) -> String {
        match self {
            Self::Impossible => "is not possible for it".to_owned(),
            Self::TimeOver(time) => format!("did not come to an end within {}", spoken(time)),
            Self::Failed => "was tried and failed".to_owned(),
            Self::Deadline => "did not come to an end before the deadline".to_owned(),
        }
    }
}

/// Whether `machine` goes on to another rung, and to which; `None` when it stays.
///
/// Only what runs climbs, and what its own ladder or its eviction strategy allows to leave.
pub fn climb(machine: &Machine) -> Option<Step> {
    match machine.stage {
        Stage::Running | Stage::Migrating => {}
        Stage::Starting
        | Stage::Stopping
        | Stage::NeedsFencing
        | Stage::Arriving
        | Stage::Leaving => return None,
    }
    if !machine.climb.own && !machine.strategy.moves() {
        return None;
    }
    let from = machine.climb.rung.min(machine.climb.ladder.last());
    let why = left(machine, from)?;
    // What it comes to is new: nothing but impossibility drives it on.
    let mut rung = from + 1;
    while rung < machine.climb.ladder.last()
        && !is_possible(machine, machine.climb.ladder.rung(rung).method)
    {
        rung += 1;
    }
    Some(Step { from, rung, why })
}

/// Why `machine` leaves the rung `at`, on which it stands; `None` when it doesn't.
fn left(machine: &Machine, at: usize) -> Option<Why> {
    let climb = &machine.climb;
    if at == climb.ladder.last() {
        return None;
    }
    let rung = climb.ladder.rung(at);
    if !is_possible(machine, rung.method) {
        return Some(Why::Impossible);
    }
    if climb.driven {
        return Some(Why::Deadline);
    }
    match rung.lasts {
        Some(time) if climb.stands >= time => Some(Why::TimeOver(time)),
        Some(_) => None,
        None => (machine.failures > 0).then_some(Why::Failed),
    }
}

/// Whether the machine can ever leave by `method`.
pub(super) fn is_possible(machine: &Machine, method: Method) -> bool {
    match method {
        Method::Live | Method::PostCopy | Method::Pause => machine.not_migratable.is_none(),
        // What keeps a machine from moving, disks of one host, keeps it from starting elsewhere.
        Method::Restart => {
            machine.not_migratable.is_none() && machine.climb.owner == Owner::StartsAgain
        }
        Method::Shutdown | Method::Block => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{local_disk, machine};
    use super::*;
    use crate::instance::EvictionStrategy;

    fn on(ladder: &str, rung: usize) -> Machine {
        let climb = Climb {
            ladder: Ladder::parse(ladder).expect("a ladder"),
            own: true,
            rung,
            owner: Owner::StartsAgain,
            ..Climb::default()
        };
        Machine { climb, ..machine() }
    }

    fn stands(mut machine: Machine, seconds: u64) -> Machine {
        machine.climb.stands = Duration::from_secs(seconds);
        machine
    }

    #[test]
    fn a_rung_is_left_after_its_time_and_the_last_never() {
        let ladder = "Live=10m,Pause=1m,Block";
        assert_eq!(climb(&stands(on(ladder, 0), 599)), None);
        let step = climb(&stands(on(ladder, 0), 600)).expect("a step");
        assert_eq!(
            (step.rung, step.why),
            (1, Why::TimeOver(Duration::from_secs(600)))
        );
        assert_eq!(
            climb(&stands(on(ladder, 1), 60)).map(|step| step.rung),
            Some(2)
        );
        assert_eq!(climb(&stands(on(ladder, 2), 999_999)), None);
        assert_eq!(climb(&stands(on(ladder, 9), 999_999)), None);
    }

    #[test]
    fn a_rung_without_a_time_is_left_after_a_failed_attempt() {
        let mut machine = stands(on("Live,Pause", 0), 999_999);
        assert_eq!(climb(&machine), None);
        machine.failures = 1;
        let step = Step {
            from: 0,
            rung: 1,
            why: Why::Failed,
        };
        assert_eq!(climb(&machine), Some(step));
        let mut timed = on("Live=5m,Pause", 0);
        timed.failures = 3;
        assert_eq!(climb(&timed), None, "its time is not over");
    }

    #[test]
    fn what_is_impossible_is_passed_over_at_once() {
        let stuck = Machine {
            not_migratable: local_disk(),
            ..on("Live=10m,Pause,Restart,Shutdown", 0)
        };
        let step = Step {
            from: 0,
            rung: 3,
            why: Why::Impossible,
        };
        assert_eq!(climb(&stuck), Some(step));
        let mut bare = stands(on("Live=1s,Restart,Block", 0), 1);
        bare.climb.owner = Owner::Nobody;
        assert_eq!(climb(&bare).map(|step| step.rung), Some(2));
    }

    #[test]
    fn the_deadline_drives_a_machine_one_rung_on() {
        let mut machine = on("Live=10m,Pause=10m,Restart", 0);
        machine.climb.driven = true;
        let step = Step {
            from: 0,
            rung: 1,
            why: Why::Deadline,
        };
        assert_eq!(climb(&machine), Some(step));
    }

    #[test]
    fn only_its_own_ladder_overrules_a_machines_strategy() {
        for strategy in [EvictionStrategy::None, EvictionStrategy::External] {
            let mut machine = Machine {
                strategy,
                ..stands(on("Live=1s,Restart", 0), 10)
            };
            assert!(climb(&machine).is_some());
            machine.climb.own = false;
            assert_eq!(climb(&machine), None);
        }
    }

    #[test]
    fn a_machine_that_comes_or_goes_does_not_climb() {
        for stage in [
            Stage::Starting,
            Stage::Stopping,
            Stage::NeedsFencing,
            Stage::Arriving,
            Stage::Leaving,
        ] {
            let machine = Machine {
                stage,
                ..stands(on("Live=1s,Restart", 0), 10)
            };
            assert_eq!(climb(&machine), None);
        }
    }
}
