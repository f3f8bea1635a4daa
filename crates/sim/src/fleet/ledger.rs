//! Postgres as the ledger uses it: one writer at a time, each question one transaction that is
//! applied whole or not at all, guarded as by `crates/ledger/queries`. A commit's answer may be
//! lost; what is committed never is.

use std::collections::BTreeMap;

use godwit_model::migration::job::JobState;
use godwit_model::migration::queue::{self, Entry, QueueLimits, Turn};
use godwit_model::{JobId, MachineId};

use super::net::{Ask, Row, Told, node_name};
use super::time::Time;
use super::{Fleet, JobNo, MachineNo, NodeNo};
use crate::config::Guard;

/// How long a lease lives, by the ledger's clock.
pub(crate) const LEASE: i64 = 900_000;
/// How many migrations may be under way.
pub(crate) const LIMITS: QueueLimits = QueueLimits {
    per_cluster: 4,
    outbound_per_node: 2,
    inbound_per_node: 2,
};

/// What is committed.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) jobs: Vec<Job>,
    pub(crate) machines: Vec<Instance>,
    pub(crate) nodes: Vec<Node>,
    /// Room held: for a job, or by the machine that is there.
    pub(crate) reservations: BTreeMap<(MachineNo, NodeNo), Option<JobNo>>,
    /// Until when the database does not answer.
    pub(crate) down_until: Time,
    /// By how much its clock is off, microseconds.
    pub(crate) clock_off: i64,
}

/// A job.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) machine: MachineNo,
    pub(crate) row: Row,
    pub(crate) owner: Option<usize>,
    pub(crate) expires: i64,
    pub(crate) created: i64,
    pub(crate) history: Vec<Transition>,
}

/// A line of a job's history.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transition {
    pub(crate) from: JobState,
    pub(crate) to: JobState,
    pub(crate) epoch: u64,
}

/// A machine's row.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) id: MachineId,
    pub(crate) node: NodeNo,
    pub(crate) epoch: u64,
    /// How much room it takes.
    pub(crate) size: u64,
}

/// A node's row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    pub(crate) room: u64,
    pub(crate) cordoned: bool,
}

impl Ledger {
    /// The room that is held on a node.
    pub(crate) fn held(&self, node: NodeNo) -> u64 {
        let here = self.reservations.keys().filter(|(_, at)| *at == node);
        here.map(|(machine, _)| self.machines[*machine].size).sum()
    }

    /// The open jobs, as the queue sees them.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let open = self.jobs.iter().filter(|job| !job.row.state.is_final());
        open.map(|job| Entry {
            id: job.id.clone(),
            state: job.row.state,
            priority: 0,
            created_at_us: job.created,
            source: Some(node_name(job.row.source)),
            target: job.row.target.map(node_name),
        })
        .collect()
    }

    /// Whether this machine has an open job.
    pub(crate) fn is_moving(&self, machine: MachineNo) -> bool {
        let mut jobs = self.jobs.iter();
        jobs.any(|job| job.machine == machine && !job.row.state.is_final())
    }
}

impl Fleet {
    fn ledger_clock(&self) -> i64 {
        i64::try_from(self.now).unwrap_or(i64::MAX / 2) + self.ledger.clock_off
    }

    /// Somebody wants a machine to move; `None` when it is moving already.
    pub(crate) fn ledger_request(&mut self, machine: MachineNo) -> Option<JobNo> {
        if self.ledger.down_until > self.now || self.ledger.is_moving(machine) {
            return None;
        }
        let number = self.ledger.jobs.len();
        let id = format!("{:08x}-0000-4000-8000-000000000000", number + 1);
        let row = Row {
            state: JobState::Pending,
            epoch: 0,
            cancel: false,
            switch_allowed: false,
            source: self.ledger.machines[machine].node,
            target: None,
        };
        self.ledger.jobs.push(Job {
            id: JobId::parse(id).expect("a uuid"),
            machine,
            row,
            owner: None,
            expires: 0,
            created: self.ledger_clock(),
            history: vec![],
        });
        Some(number)
    }

    /// One transaction.
    pub(crate) fn ledger_does(&mut self, owner: usize, ask: Ask) -> Told {
        match ask {
            Ask::Claim => self.claim(owner),
            Ask::Renew(job, epoch) => {
                let expires = self.ledger_clock() + LEASE;
                let row = &mut self.ledger.jobs[job];
                let mine = row.row.epoch == epoch && row.owner == Some(owner);
                if mine {
                    row.expires = expires;
                }
                if mine { Told::Yes } else { Told::No }
            }
            Ask::Release(job, epoch) => {
                let row = &mut self.ledger.jobs[job];
                if row.row.epoch == epoch && row.owner == Some(owner) {
                    row.owner = None;
                }
                Told::Yes
            }
            Ask::Read(job) => Told::Job(job, self.ledger.jobs[job].row),
            Ask::TakeTurn(job, epoch) => self.take_turn(job, epoch),
            Ask::Reserve(job, epoch) => self.reserve(job, epoch),
            Ask::Record(job, epoch, states) => self.record_all(job, epoch, &states),
        }
    }

    fn claim(&mut self, owner: usize) -> Told {
        let now = self.ledger_clock();
        let free = |job: &Job| job.owner.is_none() || job.expires < now;
        let mut jobs = self.ledger.jobs.iter_mut().enumerate();
        let next = jobs.find(|(_, job)| !job.row.state.is_final() && free(job));
        let Some((number, job)) = next else {
            return Told::No;
        };
        job.owner = Some(owner);
        job.expires = now + LEASE;
        job.row.epoch += 1;
        let row = job.row;
        self.counts.takeovers += u64::from(row.epoch > 1);
        Told::Job(number, row)
    }

    fn take_turn(&mut self, job: JobNo, epoch: u64) -> Told {
        let id = self.ledger.jobs[job].id.clone();
        let entries = self.ledger.entries();
        if queue::turn(&id, &entries, LIMITS) != Turn::Start {
            return Told::No;
        }
        let machine = self.ledger.jobs[job].machine;
        let node = self.ledger.machines[machine].node;
        let told = self.record_all(job, epoch, &[JobState::Pending, JobState::Placing]);
        if told == Told::Yes {
            // Placed anew while the job waited for its turn.
            self.ledger.jobs[job].row.source = node;
        }
        told
    }

    /// The scheduler's transaction: the emptiest node that fits.
    fn reserve(&mut self, job: JobNo, epoch: u64) -> Told {
        let row = self.ledger.jobs[job].row;
        if row.epoch != epoch && self.options.removed != Some(Guard::LedgerEpoch) {
            return Told::Stale;
        }
        let machine = self.ledger.jobs[job].machine;
        let held = self.ledger.reservations.iter();
        let mut mine = held.filter(|((of, _), by)| *of == machine && **by == Some(job));
        if let Some(((_, node), _)) = mine.next() {
            let node = *node;
            return self.reserved(job, node);
        }
        let entries = self.ledger.entries();
        let inbound = LIMITS.inbound_per_node as usize;
        let fits = |node: &NodeNo| {
            let at = self.ledger.nodes[*node];
            *node != row.source
                && !at.cordoned
                && self.ledger.held(*node) + self.ledger.machines[machine].size <= at.room
                && queue::inbound(&entries, &node_name(*node)) < inbound
        };
        let fitting = (0..self.ledger.nodes.len()).filter(fits);
        let best = fitting.min_by_key(|node| (self.ledger.held(*node), *node));
        let Some(node) = best else { return Told::No };
        let places = self.ledger.reservations.keys();
        if places.filter(|(of, _)| *of == machine).count() >= 2 {
            return Told::No;
        }
        self.ledger.reservations.insert((machine, node), Some(job));
        self.oracle_room(node);
        self.reserved(job, node)
    }

    fn reserved(&mut self, job: JobNo, node: NodeNo) -> Told {
        let mut row = self.ledger.jobs[job].row;
        row.target = Some(node);
        Told::Job(job, row)
    }

    /// Writes transitions, all or none, and what they mean for rooms and machines.
    fn record_all(&mut self, job: JobNo, epoch: u64, states: &[JobState]) -> Told {
        let row = self.ledger.jobs[job].row;
        let stale = row.epoch != epoch;
        if states.first() != Some(&row.state)
            || (stale && self.options.removed != Some(Guard::LedgerEpoch))
        {
            self.counts.refused_writes += u64::from(stale);
            return Told::Stale;
        }
        if stale {
            self.wrong("the ledger took a transition of a replaced owner");
        }
        for pair in states.windows(2) {
            if let [from, to] = pair {
                self.commit(job, epoch, *from, *to);
            }
        }
        Told::Yes
    }

    fn commit(&mut self, job: JobNo, epoch: u64, from: JobState, to: JobState) {
        let machine = self.ledger.jobs[job].machine;
        let entry = &mut self.ledger.jobs[job];
        entry.history.push(Transition { from, to, epoch });
        entry.row.state = to;
        entry.row.switch_allowed |= to == JobState::SwitchAllowed;
        if to == JobState::Reserved {
            let mut held = self.ledger.reservations.iter();
            let held = held.find(|((of, _), by)| *of == machine && **by == Some(job));
            entry.row.target = held.map(|((_, node), _)| *node);
        }
        if to.is_final() {
            entry.owner = None;
        }
        let row = entry.row;
        self.counts.fencing += u64::from(to == JobState::NeedsFencing);
        match (to, row.target) {
            (JobState::HandedOver, Some(target)) => {
                self.hand_over((job, machine), row.source, target)
            }
            (JobState::Failed, Some(target)) => {
                let key = (machine, target);
                if self.ledger.reservations.get(&key) == Some(&Some(job)) {
                    self.ledger.reservations.remove(&key);
                }
            }
            _ => {}
        }
        self.oracle_transition(job);
    }

    fn hand_over(&mut self, (job, machine): (JobNo, MachineNo), from: NodeNo, to: NodeNo) {
        let instance = &mut self.ledger.machines[machine];
        if instance.node != from {
            self.wrong("a machine was handed over that was elsewhere");
            return;
        }
        instance.node = to;
        instance.epoch += 1;
        self.ledger.reservations.remove(&(machine, from));
        let bound = self.ledger.reservations.insert((machine, to), None);
        if bound != Some(Some(job)) {
            self.wrong("a machine was handed over to a node without room held for it");
        }
    }
}
