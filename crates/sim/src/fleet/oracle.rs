//! What is always true, looked at whenever something changes that could break it, and at the end.

use godwit_model::migration::job::JobState;
use godwit_model::migration::target::TargetState;

use super::ledger::LIMITS;
use super::time::SEC;
use super::{Fleet, JobNo, MachineNo, NodeNo};
use crate::halves::Outgoing;

/// What the oracle knows of a machine.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Truth {
    /// Copies whose CPUs run.
    pub(crate) running: u32,
    /// QEMUs of it that a fault killed.
    pub(crate) killed: u32,
}

impl Fleet {
    /// Something happened that must never happen; the first is kept.
    pub(crate) fn wrong(&mut self, what: &str) {
        if self.violation.is_none() {
            let at = self.now;
            self.violation = Some(format!("{what} (at {}.{:06} s)", at / SEC, at % SEC));
        }
    }

    /// I1: at most one copy of a machine runs.
    pub(crate) fn oracle_runs(&mut self, machine: MachineNo, runs: bool) {
        let truth = &mut self.truth[machine];
        if runs {
            truth.running += 1;
        } else {
            truth.running -= 1;
        }
        if truth.running > 1 {
            self.wrong("two copies of a machine run");
        }
    }

    /// I5: what is held fits.
    pub(crate) fn oracle_room(&mut self, node: NodeNo) {
        if self.ledger.held(node) > self.ledger.nodes[node].room {
            self.wrong("more is held on a node than it has");
        }
        if self.ledger.nodes[node].cordoned {
            self.wrong("a cordoned node was chosen");
        }
    }

    /// I7, I8, I17: a transition was committed.
    pub(crate) fn oracle_transition(&mut self, job: JobNo) {
        let row = self.ledger.jobs[job].row;
        let history = &self.ledger.jobs[job].history;
        let Some(last) = history.last().copied() else {
            return;
        };
        let before = history.len().checked_sub(2).and_then(|at| history.get(at));
        let (was, epoch) = before.map_or((JobState::Pending, 0), |line| (line.to, line.epoch));
        if last.from != was || !last.from.may_become(last.to) || last.epoch < epoch {
            self.wrong("a history has a gap, an illegal edge or an epoch that falls");
        }
        let had = self.target_had(job);
        if last.to == JobState::Placing {
            self.oracle_limits(job);
        } else if last.to == JobState::Succeeded && !had {
            self.wrong("a job succeeded whose target never had the machine");
        } else if last.to == JobState::Failed && had {
            self.wrong("a job failed whose target had the machine");
        } else if last.to == JobState::Failed {
            self.oracle_failed(job);
        }
        if row.state != last.to {
            self.wrong("a job's state is not what its history says");
        }
    }

    /// A failed job leaves the machine running where it was, unless a fault killed it.
    fn oracle_failed(&mut self, job: JobNo) {
        let entry = &self.ledger.jobs[job];
        let (machine, node) = (entry.machine, entry.row.source);
        let moved = self.ledger.machines[machine].node != node;
        if moved
            && entry
                .history
                .iter()
                .any(|line| line.to == JobState::Reserved)
        {
            self.wrong("a job failed and its machine is elsewhere");
        }
    }

    /// I8: no more under way than allowed.
    fn oracle_limits(&mut self, job: JobNo) {
        let source = self.ledger.jobs[job].row.source;
        let under_way = self
            .ledger
            .jobs
            .iter()
            .filter(|job| job.row.state.holds_slot());
        let (all, out) = under_way.fold((0, 0), |(all, out), job| {
            (all + 1, out + u32::from(job.row.source == source))
        });
        if all > LIMITS.per_cluster || out > LIMITS.outbound_per_node {
            self.wrong("more migrations are under way than allowed");
        }
    }

    /// Whether the target's disk says that the guest goes on there.
    pub(crate) fn target_had(&self, job: JobNo) -> bool {
        let on_disk = self
            .hosts
            .iter()
            .filter_map(|host| host.disk.targets.get(&job));
        let in_memory = self.hosts.iter().filter_map(|host| host.agent.as_ref());
        let in_memory = in_memory.filter_map(|agent| agent.targets.get(&job));
        let states = on_disk
            .map(|line| line.half.state())
            .chain(in_memory.map(|half| half.line.half.state()));
        states.into_iter().any(|state| {
            matches!(
                state,
                TargetState::Continuing
                    | TargetState::Running
                    | TargetState::Lost { continued: true }
            )
        })
    }

    /// After the faults have ended and the time to settle has passed.
    pub(crate) fn oracle_end(&mut self) {
        for job in 0..self.ledger.jobs.len() {
            let row = self.ledger.jobs[job].row;
            if !row.state.is_final() && row.state != JobState::NeedsFencing {
                let id = job;
                let state = row.state;
                self.wrong(&format!("job {id} came to no end: {state}"));
            }
        }
        for machine in 0..self.ledger.machines.len() {
            self.oracle_machine_end(machine);
        }
        let held = self.ledger.reservations.iter();
        let wrong = held.filter(|((machine, node), job)| match job {
            None => self.ledger.machines[*machine].node != *node,
            Some(job) => self.ledger.jobs[*job].row.state.is_final(),
        });
        if wrong.count() > 0 {
            self.wrong("room is held for nobody");
        }
    }

    fn oracle_machine_end(&mut self, machine: MachineNo) {
        let node = self.ledger.machines[machine].node;
        let living = self.qemus.living();
        let mine: Vec<_> = living
            .filter(|(_, qemu)| qemu.machine == machine)
            .map(|(pid, qemu)| (pid, qemu.node, qemu.runs, qemu.out))
            .collect();
        let running: Vec<_> = mine.iter().filter(|(_, _, runs, _)| *runs).collect();
        match running.as_slice() {
            [(_, at, ..)] if *at != node => self.wrong("a machine runs where the ledger has none"),
            [] if self.truth[machine].killed == 0 && !self.ledger.is_moving(machine) => {
                self.wrong("a machine was lost");
            }
            _ => {}
        }
        let idle = |complete: bool| {
            let idle = mine.iter().filter(|(_, _, runs, _)| !runs);
            idle.filter(|(.., out)| (*out == Outgoing::Completed) == complete)
                .count()
        };
        self.leftovers += idle(false);
        if idle(true) > 0 && !self.ledger.is_moving(machine) {
            let text = format!("a stopped source of machine {machine} was left behind: {mine:?}");
            self.wrong(&text);
        }
    }
}
