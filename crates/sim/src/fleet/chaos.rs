//! What users want and what goes wrong, chosen by the seed before and while it happens.

use godwit_model::migration::target::UNUSED_MAX;

use super::net::Addr;
use super::time::{MS, SEC, Time};
use super::{Event, Fleet, MachineNo, NodeNo};

/// Within this time after the last fault every job comes to its end.
const SETTLE: Time = 120 * SEC;
/// And this long nothing new may come of what was on its way.
const CALM: Time = 25 * SEC;
/// After this time no copy that nobody uses is left.
const REAPED: Time = SETTLE + UNUSED_MAX.as_secs() * SEC;

/// How bad a run is, chosen by its seed. Chances are of 10,000.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Plan {
    /// When all that is broken is made whole, and nothing breaks any more.
    pub(crate) faults_end: Time,
    pub(crate) lost: u32,
    pub(crate) repeated: u32,
    pub(crate) slow: u32,
    pub(crate) late: u32,
    /// An agent crashes before an effect.
    pub(crate) crash_at_effect: u32,
    /// A coordinator crashes before it writes or orders.
    pub(crate) crash_at_action: u32,
    pub(crate) launch_fails: u32,
}

/// Something that is done to the fleet, or asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Chance {
    /// A user wants a machine moved.
    Moves,
    /// A user cancels a migration.
    Cancels,
    /// A node is cordoned, to be emptied.
    Drains(NodeNo),
    /// Those that are still there are asked to leave.
    Evacuates(NodeNo),
    /// The node takes machines again.
    Uncordons(NodeNo),
    /// The scheduler gives back what is held for jobs that are over.
    Sweeps,
    /// Somebody starts it again.
    OwnerStarts(usize),
    /// Somebody starts it again.
    AgentStarts(NodeNo),
    /// The host is back.
    HostStarts(NodeNo),
    /// Something goes wrong.
    Breaks(Fault),
    /// All is made whole.
    Heals,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    /// A coordinator dies.
    OwnerDies,
    /// A coordinator stands still, perhaps past its leases.
    OwnerSleeps,
    /// An agent dies.
    AgentDies,
    /// An agent stands still.
    AgentSleeps,
    /// A QEMU dies.
    QemuDies,
    /// A host dies with all that is on it.
    HostDies,
    /// The stream of a copy is cut.
    StreamBreaks,
    /// Memory does not travel between two hosts, one way or both, and nobody is told.
    StreamStalls,
    /// Some processes can't reach some others, one way or both.
    Partition,
    /// A host can't reach anybody, nor be reached.
    Isolation,
    /// The database does not answer.
    LedgerDies,
    /// The database's clock steps by an hour.
    LedgerClock,
    /// Writes to a disk are slow.
    SlowDisk,
}

/// The faults, of which a seed uses some.
const FAULTS: [Fault; 13] = [
    Fault::OwnerDies,
    Fault::OwnerSleeps,
    Fault::AgentDies,
    Fault::AgentSleeps,
    Fault::QemuDies,
    Fault::HostDies,
    Fault::StreamBreaks,
    Fault::StreamStalls,
    Fault::Partition,
    Fault::Isolation,
    Fault::LedgerDies,
    Fault::LedgerClock,
    Fault::SlowDisk,
];

impl Fleet {
    /// Chooses how bad it gets, and plans all of it.
    pub(crate) fn chaos_plan(&mut self) {
        let dice = &mut self.dice;
        let faults_end = dice.between(15 * SEC, 90 * SEC);
        let mut some = |levels: &[u32]| dice.pick(levels).unwrap_or(0);
        self.plan = Plan {
            faults_end,
            lost: some(&[0, 0, 50, 300, 1_500]),
            repeated: some(&[0, 0, 100, 1_000]),
            slow: some(&[0, 100, 1_000, 4_000]),
            late: some(&[0, 20, 200, 1_000]),
            crash_at_effect: some(&[0, 0, 30, 200]),
            crash_at_action: some(&[0, 0, 50, 200]),
            launch_fails: some(&[0, 0, 500]),
        };
        for fault in FAULTS {
            // What dies stays dead, so that it is worth less.
            let kills = matches!(fault, Fault::QemuDies | Fault::HostDies);
            let (how_often, most) = if kills {
                (2_500, 4)
            } else if fault == Fault::OwnerSleeps {
                (6_000, 40)
            } else {
                (4_500, 16)
            };
            if self.dice.chance(how_often) {
                let times = self.dice.between(1, most);
                for _ in 0..times {
                    let at = self.dice.between(SEC / 2, faults_end);
                    self.queue.push(at, Event::Chance(Chance::Breaks(fault)));
                }
            }
        }
        for _ in 0..self.dice.between(4, 60) {
            let at = self.dice.between(0, faults_end);
            self.queue.push(at, Event::Chance(Chance::Moves));
        }
        for _ in 0..self.dice.between(0, 20) {
            let at = self.dice.between(SEC, faults_end);
            self.queue.push(at, Event::Chance(Chance::Cancels));
        }
        if self.dice.chance(6_000) {
            let node = self.dice.below(self.hosts.len());
            let at = self.dice.between(SEC, faults_end / 2);
            self.queue.push(at, Event::Chance(Chance::Drains(node)));
        }
        self.queue.push(faults_end, Event::Chance(Chance::Heals));
        self.queue.push(SEC, Event::Chance(Chance::Sweeps));
    }

    pub(crate) fn chance(&mut self, chance: Chance) {
        let later = |after: Time| self.now + after;
        match chance {
            Chance::Moves => {
                let machine = self.dice.below(self.ledger.machines.len());
                self.request(machine);
            }
            Chance::Cancels => self.cancel_one(),
            Chance::Drains(node) => {
                self.ledger.nodes[node].cordoned = true;
                let (soon, end) = (later(0), self.plan.faults_end + 20 * SEC);
                self.queue
                    .push(soon, Event::Chance(Chance::Evacuates(node)));
                self.queue.push(end, Event::Chance(Chance::Uncordons(node)));
            }
            Chance::Evacuates(node) => self.evacuate(node),
            Chance::Uncordons(node) => self.ledger.nodes[node].cordoned = false,
            Chance::Sweeps => {
                let jobs = &self.ledger.jobs;
                let open =
                    |job: &mut Option<usize>| job.is_none_or(|job| !jobs[job].row.state.is_final());
                if self.ledger.down_until <= self.now {
                    self.ledger.reservations.retain(|_, job| open(job));
                }
                self.queue.push(later(SEC), Event::Chance(chance));
            }
            Chance::OwnerStarts(owner) => self.owner_start(owner),
            Chance::AgentStarts(node) => self.agent_start(node),
            Chance::HostStarts(node) => self.host_start(node),
            Chance::Heals => self.heal(),
            Chance::Breaks(fault) => self.fault(fault),
        }
    }

    fn fault(&mut self, fault: Fault) {
        let node = self.dice.below(self.hosts.len());
        let owner = self.dice.below(self.owners.len());
        let long = self.now + self.dice.between(200 * MS, 6 * SEC);
        match fault {
            Fault::OwnerDies => self.owner_crash(owner),
            Fault::OwnerSleeps => self.owners[owner].asleep = long,
            Fault::AgentDies => self.agent_crash(node),
            Fault::AgentSleeps => self.hosts[node].asleep = long,
            Fault::QemuDies => self.kill_one(),
            Fault::HostDies => self.host_crash(node),
            Fault::StreamBreaks => self.cut_one(),
            Fault::StreamStalls => {
                let to = self.dice.below(self.hosts.len());
                let (from, to) = (Addr::Agent(node).number(), Addr::Agent(to).number());
                self.stalled[from][to] = long;
                if self.dice.chance(3_000) {
                    self.stalled[to][from] = long;
                }
            }
            Fault::Partition => self.partition(long),
            Fault::Isolation => {
                let at = Addr::Agent(node).number();
                for other in 0..Addr::MAX {
                    self.cut[at][other] = long;
                    self.cut[other][at] = long;
                    self.stalled[at][other] = long;
                    self.stalled[other][at] = long;
                }
            }
            Fault::LedgerDies => self.ledger.down_until = long,
            Fault::LedgerClock => {
                let hour = 3_600 * 1_000_000;
                let back = self.options.clock_back && self.dice.chance(5_000);
                self.ledger.clock_off += if back { -hour } else { hour };
            }
            Fault::SlowDisk => self.hosts[node].slow = long,
        }
    }

    /// Some processes can't reach some others, one way or both.
    fn partition(&mut self, until: Time) {
        let both = self.dice.chance(5_000);
        for _ in 0..self.dice.between(1, 4) {
            let (a, b) = (self.somebody(), self.somebody());
            self.cut[a][b] = until;
            if both {
                self.cut[b][a] = until;
            }
        }
    }

    fn somebody(&mut self) -> usize {
        let nodes = (0..self.hosts.len()).map(Addr::Agent);
        let owners = (0..self.owners.len()).map(Addr::Owner);
        let all: Vec<usize> = nodes
            .chain(owners)
            .chain([Addr::Ledger])
            .map(Addr::number)
            .collect();
        self.dice.pick(&all).unwrap_or(0)
    }

    fn cancel_one(&mut self) {
        let jobs = self.ledger.jobs.iter().enumerate();
        let open: Vec<usize> = jobs
            .filter(|(_, job)| !job.row.state.is_final())
            .map(|(number, _)| number)
            .collect();
        if let Some(job) = self.dice.pick(&open) {
            self.ledger.jobs[job].row.cancel = true;
        }
    }

    fn evacuate(&mut self, node: NodeNo) {
        let machines = self.ledger.machines.iter().enumerate();
        let here: Vec<MachineNo> = machines
            .filter(|(_, instance)| instance.node == node)
            .map(|(machine, _)| machine)
            .collect();
        for machine in here {
            self.request(machine);
        }
        if self.now + SEC < self.plan.faults_end {
            let event = Event::Chance(Chance::Evacuates(node));
            self.queue.push(self.now + SEC, event);
        }
    }

    /// A machine that does not run is not moved.
    fn request(&mut self, machine: MachineNo) {
        if self.truth[machine].running > 0 {
            self.ledger_request(machine);
        }
    }

    fn kill_one(&mut self) {
        let living: Vec<_> = self.qemus.living().map(|(pid, _)| pid).collect();
        if let Some(pid) = self.dice.pick(&living) {
            self.kill(pid);
        }
    }

    fn kill(&mut self, pid: u32) {
        if let Some(machine) = self.qemus.get(pid).map(|qemu| qemu.machine) {
            self.truth[machine].killed += 1;
            self.counts.deaths += 1;
        }
        self.qemu_end(pid);
    }

    fn cut_one(&mut self) {
        let living = self.qemus.living();
        let copying: Vec<_> = living
            .filter(|(_, qemu)| super::qemu::copies(qemu.out))
            .map(|(pid, _)| pid)
            .collect();
        if let Some(pid) = self.dice.pick(&copying) {
            self.qemu_cut(pid);
        }
    }

    fn host_crash(&mut self, node: NodeNo) {
        let living = self.qemus.living();
        let here: Vec<_> = living
            .filter(|(_, qemu)| qemu.node == node)
            .map(|(pid, _)| pid)
            .collect();
        self.agent_crash(node);
        for pid in here {
            self.kill(pid);
        }
        self.hosts[node].down = true;
        let back = self.now + self.dice.between(SEC, 8 * SEC);
        self.queue
            .push(back, Event::Chance(Chance::HostStarts(node)));
    }

    fn host_start(&mut self, node: NodeNo) {
        let host = &mut self.hosts[node];
        if host.down {
            host.down = false;
            host.booted = self.now;
            self.agent_start(node);
        }
    }

    /// Somebody starts a dead agent again.
    pub(crate) fn agents_restart(&mut self, node: NodeNo) {
        let back = self.now + self.dice.between(50 * MS, 4 * SEC);
        self.queue
            .push(back, Event::Chance(Chance::AgentStarts(node)));
    }

    /// Somebody starts a dead coordinator again.
    pub(crate) fn owners_restart(&mut self, owner: usize) {
        let back = self.now + self.dice.between(50 * MS, 8 * SEC);
        self.queue
            .push(back, Event::Chance(Chance::OwnerStarts(owner)));
    }

    /// Whether the agent dies at this very point; then it has.
    pub(crate) fn buggy_crash(&mut self, node: NodeNo) -> bool {
        let faulty = self.now < self.plan.faults_end;
        let crash = faulty && self.dice.chance(self.plan.crash_at_effect);
        if crash {
            self.agent_crash(node);
        }
        crash
    }

    /// Whether the coordinator dies at this very point; then it has.
    pub(crate) fn buggy_owner(&mut self, owner: usize) -> bool {
        let faulty = self.now < self.plan.faults_end;
        let crash = faulty && self.dice.chance(self.plan.crash_at_action);
        if crash {
            self.owner_crash(owner);
        }
        crash
    }

    fn heal(&mut self) {
        self.cut = [[0; Addr::MAX]; Addr::MAX];
        self.stalled = [[0; Addr::MAX]; Addr::MAX];
        self.ledger.down_until = 0;
        for node in 0..self.hosts.len() {
            self.hosts[node].asleep = 0;
            self.hosts[node].slow = 0;
            self.host_start(node);
            self.agent_start(node);
        }
        for owner in 0..self.owners.len() {
            self.owners[owner].asleep = 0;
            self.owner_start(owner);
        }
    }

    /// Whether the run is over at `at`: no job is open and no copy waits to be cleared away, or
    /// they had all the time that they may take.
    pub(crate) fn is_at_rest(&self, at: Time) -> bool {
        let healed = self.plan.faults_end;
        if at <= healed + CALM {
            return false;
        }
        let mut jobs = self.ledger.jobs.iter();
        let open = jobs.any(|job| !job.row.state.is_final());
        let waits = || {
            let mut living = self.qemus.living();
            living.any(|(_, qemu)| !qemu.runs)
        };
        (open && at > healed + SETTLE) || (!open && (at > healed + REAPED || !waits()))
    }
}
