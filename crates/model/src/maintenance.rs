//! Emptying a node: what is done about each machine on it, and how far the emptying is.
//!
//! Called by `maintenance-service/src/plan.rs` with what the ledger says. Asked again it answers
//! the same, so a drain that was interrupted goes on by itself.

mod climb;
mod ladder;

use crate::NodeName;
use crate::instance::{EvictionStrategy, NotMigratable};
use std::time::Duration;

pub use climb::{Climb, Open, Owner, Step, Why, climb};
pub use ladder::{Ladder, LadderProblem, Method, Rung, spoken, unknown};

/// Pause after the first failed evacuation of a machine: KubeVirt's.
const BACK_OFF_MIN: Duration = Duration::from_secs(20);
/// Longest pause between two evacuations of a machine.
const BACK_OFF_MAX: Duration = Duration::from_secs(320);

/// What a machine on the node is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its host was told to start it.
    Starting,
    /// It runs, and no migration of it is open.
    Running,
    /// It is being stopped.
    Stopping,
    /// A migration away from the node is open, whoever asked for it.
    Migrating,
    /// Its migration can't go on without a person.
    NeedsFencing,
    /// It runs elsewhere, and a migration to the node is open.
    Arriving,
    /// It runs elsewhere, and its leftovers are being removed from the node.
    Leaving,
}

/// A machine on a node that is being emptied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// What it is doing.
    pub stage: Stage,
    /// The strategy in force.
    pub strategy: EvictionStrategy,
    /// Why it can't move live; `None` when it can.
    pub not_migratable: Option<NotMigratable>,
    /// Evacuations of it that failed during this maintenance, on the rung that it stands on.
    pub failures: u32,
    /// Time since the last of them; `None` when there was none.
    pub since_failure: Option<Duration>,
    /// Where it stands on its ladder.
    pub climb: Climb,
}

/// What is done about a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Ask for a live migration.
    Migrate,
    /// Ask for a migration that ends by post-copy.
    PostCopy,
    /// Ask for a migration in which the guest may stand still.
    Pause,
    /// Stop it, and have it started elsewhere.
    Restart,
    /// Stop it.
    Shutdown,
    /// Call its open migration off: another way is its turn.
    CallOff,
    /// Nothing for the moment: it leaves, or will be looked at again.
    Wait(Wait),
    /// Nothing until a person does something.
    Blocked(Blocker),
}

impl Decision {
    /// Whether something is done about the machine at this moment.
    pub const fn acts(&self) -> bool {
        match self {
            Self::Migrate
            | Self::PostCopy
            | Self::Pause
            | Self::Restart
            | Self::Shutdown
            | Self::CallOff => true,
            Self::Wait(_) | Self::Blocked(_) => false,
        }
    }
}

/// What a machine waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Its start: only a machine that runs can move.
    Starting,
    /// Its end.
    Stopping,
    /// Its open migration.
    Migrating,
    /// The end of its migration to this node.
    Arriving,
    /// The removal of its leftovers.
    Leaving,
    /// The end of the pause after a failed evacuation.
    BackOff {
        /// The whole pause.
        pause: Duration,
    },
}

/// What keeps a machine from leaving, in words for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// What it is about.
    pub cause: Cause,
    /// One CamelCase word for machines.
    pub reason: &'static str,
    /// What is the matter.
    pub message: String,
    /// What a person can do about it.
    pub remedy: &'static str,
}

/// What a blocker is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Nobody may move the machine.
    Strategy,
    /// Somebody else shall move the machine.
    External,
    /// It should be moved and can't be.
    NotMigratable,
    /// Its migration can't go on without a person.
    Fencing,
    /// Its ladder ends.
    Ladder,
}

/// What is to be done about `machine`, which is on `node` and stands on its rung: see [`climb`].
pub fn decide(machine: &Machine, node: &NodeName) -> Decision {
    match machine.stage {
        Stage::Starting => Decision::Wait(Wait::Starting),
        Stage::Stopping => Decision::Wait(Wait::Stopping),
        Stage::Migrating => match machine.climb.open {
            Some(open) if open.revocable && open.method != machine.climb.method() => {
                Decision::CallOff
            }
            Some(_) | None => Decision::Wait(Wait::Migrating),
        },
        Stage::Arriving => Decision::Wait(Wait::Arriving),
        Stage::Leaving => Decision::Wait(Wait::Leaving),
        Stage::NeedsFencing => Decision::Blocked(Blocker {
            cause: Cause::Fencing,
            reason: "NeedsFencing",
            message: "its migration can't go on: neither host's word can be had".to_owned(),
            remedy: "bring the silent host back, or fence it",
        }),
        Stage::Running => match blocker(machine, node) {
            Some(blocker) => Decision::Blocked(blocker),
            None => due(machine),
        },
    }
}

fn blocker(machine: &Machine, node: &NodeName) -> Option<Blocker> {
    match machine.strategy {
        EvictionStrategy::None if !machine.climb.own => Some(Blocker {
            cause: Cause::Strategy,
            reason: "EvictionStrategyNone",
            message: format!(
                "evictionStrategy None: the machine stays on node {node} until it is stopped or \
                 its strategy changed"
            ),
            remedy: "set evictionStrategy: LiveMigrate on the virtual machine, migrate it by \
                     hand, or stop it",
        }),
        EvictionStrategy::External if !machine.climb.own => Some(Blocker {
            cause: Cause::External,
            reason: "EvictionStrategyExternal",
            message: format!(
                "evictionStrategy External: the machine stays on node {node} until its own \
                 controller moves or stops it"
            ),
            remedy: "let its controller act on status.evacuationNodeName, or migrate or stop it \
                     by hand",
        }),
        EvictionStrategy::None
        | EvictionStrategy::External
        | EvictionStrategy::LiveMigrate
        | EvictionStrategy::LiveMigrateIfPossible => stuck(machine, node),
    }
}

/// What keeps a machine that may leave from doing so on its rung.
fn stuck(machine: &Machine, node: &NodeName) -> Option<Blocker> {
    let method = machine.climb.method();
    if method == Method::Block {
        return Some(Blocker {
            cause: Cause::Ladder,
            reason: "LadderBlocks",
            message: format!(
                "its ladder {} ends: the machine stays on node {node}",
                machine.climb.ladder
            ),
            remedy: "migrate or stop the machine by hand, or give it a longer ladder",
        });
    }
    if climb::is_possible(machine, method) {
        return None;
    }
    Some(match &machine.not_migratable {
        Some(why) => Blocker {
            cause: Cause::NotMigratable,
            reason: why.reason,
            message: why.message.clone(),
            remedy: "stop the machine, or give it disks that all hosts share",
        },
        None => Blocker {
            cause: Cause::Ladder,
            reason: "NothingStartsItAgain",
            message: "its ladder says Restart, and no virtual machine would start it again"
                .to_owned(),
            remedy: "stop the machine by hand, or set runStrategy: Always on its virtual machine",
        },
    })
}

fn due(machine: &Machine) -> Decision {
    let pause = back_off(machine.failures);
    match machine.since_failure {
        Some(since) if since < pause => Decision::Wait(Wait::BackOff { pause }),
        Some(_) | None => match machine.climb.method() {
            // A machine that its ladder blocks was told so before it came here.
            Method::Live | Method::Block => Decision::Migrate,
            Method::PostCopy => Decision::PostCopy,
            Method::Pause => Decision::Pause,
            Method::Restart => Decision::Restart,
            Method::Shutdown => Decision::Shutdown,
        },
    }
}

/// The pause after so many failed evacuations.
pub fn back_off(failures: u32) -> Duration {
    let Some(doublings) = failures.checked_sub(1) else {
        return Duration::ZERO;
    };
    BACK_OFF_MIN
        .saturating_mul(2_u32.saturating_pow(doublings))
        .min(BACK_OFF_MAX)
}

/// How far the emptying of a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Machines that had to leave, all in all.
    pub machines: usize,
    /// Machines that are still there.
    pub pending: usize,
}

impl Progress {
    /// Progress with `pending` machines left of `known` that were counted before.
    pub fn new(known: usize, pending: usize) -> Self {
        Self {
            machines: known.max(pending),
            pending,
        }
    }

    /// Percent, rounded down; 100 says that nothing is left.
    pub fn percent(self) -> usize {
        if self.pending == 0 {
            return 100;
        }
        (self.machines - self.pending) * 100 / self.machines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeName {
        NodeName::parse("worker2").unwrap()
    }

    pub(super) fn machine() -> Machine {
        Machine {
            stage: Stage::Running,
            strategy: EvictionStrategy::LiveMigrate,
            not_migratable: None,
            failures: 0,
            since_failure: None,
            climb: Climb::default(),
        }
    }

    pub(super) fn local_disk() -> Option<NotMigratable> {
        Some(NotMigratable {
            reason: "DisksNotLiveMigratable",
            message: "cannot migrate VMI with non-shared HostDisk".to_owned(),
        })
    }

    fn reason(machine: &Machine) -> &'static str {
        match decide(machine, &node()) {
            Decision::Migrate => "",
            Decision::PostCopy => "post-copies",
            Decision::Pause => "pauses",
            Decision::Restart => "restarts",
            Decision::Shutdown => "stops",
            Decision::CallOff => "calls off",
            Decision::Wait(_) => "waits",
            Decision::Blocked(blocker) => blocker.reason,
        }
    }

    #[test]
    fn the_strategy_and_the_disks_say_whether_a_machine_moves() {
        use EvictionStrategy as S;
        for (strategy, not_migratable, expected) in [
            (S::LiveMigrate, None, ""),
            (S::LiveMigrateIfPossible, None, ""),
            (S::LiveMigrate, local_disk(), "DisksNotLiveMigratable"),
            (
                S::LiveMigrateIfPossible,
                local_disk(),
                "DisksNotLiveMigratable",
            ),
            (S::None, None, "EvictionStrategyNone"),
            (S::None, local_disk(), "EvictionStrategyNone"),
            (S::External, None, "EvictionStrategyExternal"),
            (S::External, local_disk(), "EvictionStrategyExternal"),
        ] {
            let machine = Machine {
                strategy,
                not_migratable,
                ..machine()
            };
            assert_eq!(reason(&machine), expected, "{machine:?}");
        }
    }

    #[test]
    fn only_a_running_machine_without_a_migration_is_asked_to_move() {
        for (stage, wait) in [
            (Stage::Starting, Wait::Starting),
            (Stage::Stopping, Wait::Stopping),
            (Stage::Migrating, Wait::Migrating),
            (Stage::Arriving, Wait::Arriving),
            (Stage::Leaving, Wait::Leaving),
        ] {
            for strategy in [EvictionStrategy::LiveMigrate, EvictionStrategy::None] {
                let machine = Machine {
                    stage,
                    strategy,
                    ..machine()
                };
                assert_eq!(decide(&machine, &node()), Decision::Wait(wait));
            }
        }
        let machine = Machine {
            stage: Stage::NeedsFencing,
            ..machine()
        };
        assert_eq!(reason(&machine), "NeedsFencing");
    }

    fn on(ladder: &str, own: bool) -> Machine {
        let climb = Climb {
            ladder: Ladder::parse(ladder).unwrap(),
            own,
            owner: Owner::StartsAgain,
            ..Climb::default()
        };
        Machine { climb, ..machine() }
    }

    #[test]
    fn the_rung_says_how_a_machine_leaves() {
        for (ladder, expected) in [
            ("Live", ""),
            ("PostCopy", "post-copies"),
            ("Pause", "pauses"),
            ("Restart", "restarts"),
            ("Shutdown", "stops"),
            ("Block", "LadderBlocks"),
        ] {
            for own in [false, true] {
                assert_eq!(reason(&on(ladder, own)), expected, "{ladder}");
            }
            let none = Machine {
                strategy: EvictionStrategy::None,
                ..on(ladder, true)
            };
            assert_eq!(reason(&none), expected, "its own ladder says more");
            let none = Machine {
                strategy: EvictionStrategy::None,
                ..on(ladder, false)
            };
            assert_eq!(reason(&none), "EvictionStrategyNone");
        }
        let bare = |ladder| {
            let mut machine = on(ladder, true);
            machine.climb.owner = Owner::Nobody;
            reason(&machine)
        };
        assert_eq!(
            (bare("Restart"), bare("Shutdown")),
            ("NothingStartsItAgain", "stops")
        );
        let stuck = Machine {
            not_migratable: local_disk(),
            ..on("Restart", true)
        };
        assert_eq!(reason(&stuck), "DisksNotLiveMigratable");
    }

    #[test]
    fn a_migration_of_another_rung_is_called_off_while_that_does_no_harm() {
        for (method, revocable, expected) in [
            (Method::Live, true, "calls off"),
            (Method::Live, false, "waits"),
            (Method::Pause, true, "waits"),
        ] {
            let mut machine = on("Pause", true);
            machine.stage = Stage::Migrating;
            machine.climb.open = Some(Open { method, revocable });
            assert_eq!(reason(&machine), expected, "{method} {revocable}");
        }
    }

    #[test]
    fn a_machine_that_nobody_may_move_says_how_long_it_stays() {
        let machine = Machine {
            strategy: EvictionStrategy::None,
            ..machine()
        };
        let Decision::Blocked(blocker) = decide(&machine, &node()) else {
            panic!("not blocked");
        };
        assert_eq!(
            blocker.message,
            "evictionStrategy None: the machine stays on node worker2 until it is stopped or its \
             strategy changed"
        );
        assert!(!blocker.remedy.is_empty());
    }

    #[test]
    fn each_failure_doubles_the_pause_up_to_its_limit() {
        let pauses: Vec<u64> = (0..=8).map(|n| back_off(n).as_secs()).collect();
        assert_eq!(pauses, [0, 20, 40, 80, 160, 320, 320, 320, 320]);
        assert_eq!(back_off(u32::MAX), BACK_OFF_MAX);
        let after = |failures, seconds| {
            let machine = Machine {
                failures,
                since_failure: Some(Duration::from_secs(seconds)),
                ..machine()
            };
            decide(&machine, &node())
        };
        let pause = Duration::from_secs(40);
        assert_eq!(after(2, 39), Decision::Wait(Wait::BackOff { pause }));
        assert_eq!(after(2, 40), Decision::Migrate);
    }

    #[test]
    fn progress_counts_what_left_and_what_came_later() {
        for (known, pending, machines, percent) in [
            (0, 0, 0, 100),
            (3, 3, 3, 0),
            (3, 2, 3, 33),
            (3, 0, 3, 100),
            (2, 3, 3, 0),
        ] {
            let progress = Progress::new(known, pending);
            assert_eq!((progress.machines, progress.percent()), (machines, percent));
        }
    }
}
