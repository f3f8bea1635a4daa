//! A fleet by seed: nodes, machines, jobs, coordinators, one ledger, and everything going wrong.
//!
//! One thread, virtual time, one dice. The decisions are the code that production runs; see the
//! module documentation of this crate for what is modelled around them.

mod agent;
mod chaos;
mod drive;
mod ledger;
mod net;
mod oracle;
mod owner;
mod qemu;
mod source;
mod target;
mod time;

use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

use godwit_model::MachineId;

use crate::config::Guard;
pub(crate) use source::retry_is_wanted;

use agent::{AgentTimer, Host, Record};
use chaos::{Chance, Plan};
use ledger::{Instance, Ledger, Node};
use net::{Addr, Msg};
use oracle::Truth;
use owner::{Owner, OwnerTimer};
use qemu::{Pid, QemuStep, Qemus};
use time::{Dice, Queue, SEC, Time};

/// Number of a node.
pub(crate) type NodeNo = usize;
/// Number of a machine.
pub(crate) type MachineNo = usize;
/// Number of a job.
pub(crate) type JobNo = usize;

/// More events than this are a loop.
const EVENTS_MAX: u64 = 3_000_000;

/// How a run is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// The guard that a control run takes away.
    pub removed: Option<Guard>,
    /// Whether every event is told.
    pub trace: bool,
    /// Whether the ledger's clock may also step back: then a dead owner's lease lives on for as
    /// long, as it does in production.
    pub clock_back: bool,
}

/// How a run ended.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// What was violated first; `None` when nothing was.
    pub violation: Option<String>,
    /// Events that happened.
    pub events: u64,
    /// Of all events and the states after them, in order.
    pub hash: u64,
    /// Virtual microseconds.
    pub lasted: u64,
    /// Jobs that succeeded.
    pub succeeded: usize,
    /// Jobs that failed.
    pub failed: usize,
    /// Jobs that need fencing.
    pub fenced: usize,
    /// What happened on the way.
    pub counts: Counts,
    /// Paused QEMUs that nobody will ever use.
    pub leftovers: usize,
    /// One line an event; empty unless asked for.
    pub trace: String,
}

/// What happened on the way, to see that it does happen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Claims of jobs that somebody had claimed before.
    pub takeovers: u64,
    /// Orders of replaced owners that hosts refused.
    pub refused_orders: u64,
    /// Transitions of replaced owners that the ledger refused.
    pub refused_writes: u64,
    /// Commits whose writer did not learn of them.
    pub unanswered: u64,
    /// Sources that went on after the target's tombstone.
    pub reverts: u64,
    /// Times that a job needed fencing.
    pub fencing: u64,
    /// Crashes of agents.
    pub agent_crashes: u64,
    /// Crashes of coordinators.
    pub owner_crashes: u64,
    /// Deaths of QEMU by a fault.
    pub deaths: u64,
}

impl Counts {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            takeovers: self.takeovers + other.takeovers,
            refused_orders: self.refused_orders + other.refused_orders,
            refused_writes: self.refused_writes + other.refused_writes,
            unanswered: self.unanswered + other.unanswered,
            reverts: self.reverts + other.reverts,
            fencing: self.fencing + other.fencing,
            agent_crashes: self.agent_crashes + other.agent_crashes,
            owner_crashes: self.owner_crashes + other.owner_crashes,
            deaths: self.deaths + other.deaths,
        }
    }
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// A message arrives.
    Arrives(Addr, Addr, Msg),
    /// An agent that was started so often wakes.
    Agent(NodeNo, u32, AgentTimer),
    /// A process does something by itself.
    Qemu(Pid, u32, QemuStep),
    /// A coordinator that was started so often wakes.
    Owner(usize, u32, OwnerTimer),
    /// A user, or a fault.
    Chance(Chance),
}

/// The whole simulated world.
pub(crate) struct Fleet {
    options: Options,
    now: Time,
    queue: Queue,
    dice: Dice,
    plan: Plan,
    ledger: Ledger,
    hosts: Vec<Host>,
    owners: Vec<Owner>,
    qemus: Qemus,
    /// Until when messages from one to another are lost.
    cut: [[Time; Addr::MAX]; Addr::MAX],
    /// Until when memory does not travel.
    stalled: [[Time; Addr::MAX]; Addr::MAX],
    /// Counts calls.
    calls: u64,
    truth: Vec<Truth>,
    violation: Option<String>,
    leftovers: usize,
    counts: Counts,
}

/// Runs one seed to its end.
#[must_use]
pub fn simulate(seed: u64, options: Options) -> Outcome {
    let mut fleet = Fleet::new(seed, options);
    let mut outcome = Outcome::default();
    let mut hasher = DefaultHasher::new();
    while let Some((at, event)) = fleet.queue.pop() {
        if fleet.is_at_rest(at) {
            break;
        }
        fleet.now = at;
        outcome.events += 1;
        (at, &event).hash(&mut hasher);
        if options.trace {
            let (seconds, rest) = (at / SEC, at % SEC);
            // Writing to a string never fails.
            let _ = writeln!(outcome.trace, "{seconds:>4}.{rest:06} {event:?}");
        }
        fleet.happens(event);
        if fleet.violation.is_some() || outcome.events > EVENTS_MAX {
            break;
        }
    }
    if outcome.events > EVENTS_MAX {
        fleet.wrong("the run never comes to rest");
    }
    if fleet.violation.is_none() {
        fleet.oracle_end();
    }
    fleet.sum_up(outcome, hasher.finish())
}

impl Fleet {
    fn new(seed: u64, options: Options) -> Self {
        let mut fleet = Self {
            options,
            now: 0,
            queue: Queue::default(),
            dice: Dice::new(seed),
            plan: Plan::default(),
            ledger: Ledger::default(),
            hosts: vec![],
            owners: vec![],
            qemus: Qemus::default(),
            cut: [[0; Addr::MAX]; Addr::MAX],
            stalled: [[0; Addr::MAX]; Addr::MAX],
            calls: 0,
            truth: vec![],
            violation: None,
            leftovers: 0,
            counts: Counts::default(),
        };
        for _ in 0..fleet.dice.between(3, 5) {
            fleet.hosts.push(Host::default());
            let room = fleet.dice.between(8, 14);
            let cordoned = false;
            fleet.ledger.nodes.push(Node { room, cordoned });
        }
        for machine in 0..fleet.dice.between(4, 12) {
            fleet.add_machine(machine);
        }
        for node in 0..fleet.hosts.len() {
            fleet.agent_start(node);
        }
        for owner in 0..fleet.dice.below(2) + 2 {
            fleet.owners.push(Owner::default());
            fleet.owner_start(owner);
        }
        fleet.chaos_plan();
        fleet
    }

    fn add_machine(&mut self, number: u64) {
        let size = self.dice.between(1, 3);
        let node = self.dice.below(self.hosts.len());
        if self.ledger.held(node) + size > self.ledger.nodes[node].room {
            return;
        }
        let machine = self.ledger.machines.len();
        let id = format!("{:08x}-94b4-4cda-9a69-cca8d4b4c587", number + 1);
        let id = MachineId::parse(id).expect("a uuid");
        let epoch = 1;
        self.ledger.machines.push(Instance {
            id,
            node,
            epoch,
            size,
        });
        self.ledger.reservations.insert((machine, node), None);
        self.truth.push(Truth::default());
        let pid = self.qemu_boot(machine, node);
        let record = Record { pid, job: None };
        self.hosts[node].disk.machines.insert(machine, record);
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Arrives(from, to, message) => self.arrives(from, to, message),
            Event::Agent(node, starts, timer) => self.agent_timer(node, starts, timer),
            Event::Qemu(pid, turn, step) => self.qemu_step((pid, turn), step),
            Event::Owner(owner, starts, timer) => self.owner_timer(owner, starts, timer),
            Event::Chance(chance) => self.chance(chance),
        }
    }

    fn sum_up(self, outcome: Outcome, hash: u64) -> Outcome {
        use godwit_model::migration::job::JobState;
        let ended = |state: JobState| {
            let jobs = self.ledger.jobs.iter();
            jobs.filter(|job| job.row.state == state).count()
        };
        Outcome {
            hash,
            lasted: self.now,
            succeeded: ended(JobState::Succeeded),
            failed: ended(JobState::Failed),
            fenced: ended(JobState::NeedsFencing),
            counts: self.counts,
            leftovers: self.leftovers,
            violation: self.violation,
            ..outcome
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_fails_no_machine_is_doubled_or_lost_and_every_job_ends() {
        let mut counts = Counts::default();
        for seed in 0..400 {
            let outcome = simulate(seed, Options::default());
            assert_eq!(outcome.violation, None, "seed {seed}");
            counts = counts.plus(outcome.counts);
        }
        // What did not happen was not tried.
        assert!(counts.takeovers > 1_000 && counts.refused_orders > 10);
        assert!(counts.refused_writes > 50 && counts.unanswered > 100);
        assert!(counts.reverts > 0 && counts.fencing > 50);
        assert!(counts.agent_crashes > 500 && counts.deaths > 100);
    }

    /// In this seed an agent crashes while it writes `Retired`, and somebody asks it just then.
    #[test]
    fn a_host_tells_only_what_is_done() {
        assert_eq!(simulate(19_610, Options::default()).violation, None);
    }

    #[test]
    fn the_same_seed_is_the_same_run() {
        let options = Options {
            trace: true,
            ..Options::default()
        };
        for seed in [1, 2, 3] {
            let (once, again) = (simulate(seed, options), simulate(seed, options));
            assert!(once.trace == again.trace, "seed {seed}");
            assert_eq!(once.hash, again.hash);
            assert_ne!(once.hash, simulate(seed + 1, options).hash);
        }
    }

    #[test]
    fn each_guard_is_needed() {
        // No copy ends by post-copy here.
        for guard in Guard::ALL
            .into_iter()
            .filter(|guard| !guard.is_of_post_copy())
        {
            let options = Options {
                removed: Some(guard),
                ..Options::default()
            };
            let found = (0..2_000).find(|seed| simulate(*seed, options).violation.is_some());
            assert!(found.is_some(), "without {}", guard.as_str());
        }
    }
}
