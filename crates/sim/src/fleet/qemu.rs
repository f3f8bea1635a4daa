//! QEMU as measured with 7.2: it outlives its agent, resumes by itself when a copy fails, waits
//! without end for a silent peer, and tells nobody what nobody asks.

use std::collections::BTreeMap;

use super::time::{MS, Time};
use super::{Event, Fleet, JobNo, MachineNo, NodeNo};
use crate::config::Guard;
use crate::halves::Outgoing;

/// A process, never used again.
pub(crate) type Pid = u32;

/// One QEMU process.
#[derive(Debug, Clone)]
pub(crate) struct Qemu {
    pub(crate) machine: MachineNo,
    pub(crate) node: NodeNo,
    pub(crate) alive: bool,
    /// Whether the guest's CPUs run.
    pub(crate) runs: bool,
    /// Of its outgoing copy.
    pub(crate) out: Outgoing,
    /// Of an incoming one; `None` for one that booted here.
    pub(crate) incoming: Option<Load>,
    /// For which job it was started, when it waits for a copy.
    pub(crate) job: Option<JobNo>,
    /// Other end of the copy.
    pub(crate) peer: Option<Pid>,
    /// Whether its outgoing copy was ever complete.
    pub(crate) completed: bool,
    /// Whether the other end went on with the guest: this one must never run again.
    pub(crate) outdated: bool,
    /// Whether the guest writes faster than can be sent.
    pub(crate) busy: bool,
    /// When its copy began.
    pub(crate) began: Time,
    /// Counts what makes planned steps void.
    turn: u32,
}

/// How far an incoming copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Load {
    /// Starts, doesn't listen yet.
    Starting,
    /// Waits for data, or loads.
    Waiting,
    /// All there; the guest paused, or running.
    Loaded,
}

/// What a QEMU does next by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum QemuStep {
    /// Listens.
    Listens,
    /// The rest fits: the guest stops.
    Converges,
    /// All was sent.
    Sent,
    /// The target's word that it loaded everything arrives.
    Confirmed,
    /// The stream is found broken.
    Breaks,
    /// Ends.
    Exits,
}

/// The processes of all hosts.
#[derive(Debug, Default)]
pub(crate) struct Qemus {
    all: BTreeMap<Pid, Qemu>,
    count: Pid,
}

impl Qemus {
    /// One process, dead or alive.
    pub(crate) fn get(&self, pid: Pid) -> Option<&Qemu> {
        self.all.get(&pid)
    }

    /// Those that live.
    pub(crate) fn living(&self) -> impl Iterator<Item = (Pid, &Qemu)> {
        let all = self.all.iter();
        all.filter(|(_, qemu)| qemu.alive)
            .map(|(pid, qemu)| (*pid, qemu))
    }

    fn add(&mut self, qemu: Qemu) -> Pid {
        self.count += 1;
        self.all.insert(self.count, qemu);
        self.count
    }
}

impl Fleet {
    /// A machine that runs from the beginning.
    pub(crate) fn qemu_boot(&mut self, machine: MachineNo, node: NodeNo) -> Pid {
        let busy = self.dice.chance(1_000);
        let pid = self.qemus.add(Qemu {
            machine,
            node,
            alive: true,
            runs: false,
            out: Outgoing::None,
            incoming: None,
            job: None,
            peer: None,
            completed: false,
            outdated: false,
            busy,
            began: 0,
            turn: 0,
        });
        self.qemu_run(pid, true);
        pid
    }

    /// A paused one that is going to listen.
    pub(crate) fn qemu_incoming(&mut self, machine: MachineNo, node: NodeNo, job: JobNo) -> Pid {
        let busy = self.dice.chance(1_000);
        let pid = self.qemus.add(Qemu {
            machine,
            node,
            alive: true,
            runs: false,
            out: Outgoing::None,
            incoming: Some(Load::Starting),
            job: Some(job),
            peer: None,
            completed: false,
            outdated: false,
            busy,
            began: 0,
            turn: 0,
        });
        let takes = self.dice.between(60 * MS, 110 * MS);
        self.qemu_plan(pid, QemuStep::Listens, takes);
        pid
    }

    /// Begins a copy; `false` when there is nothing to copy to or from.
    pub(crate) fn qemu_begin(&mut self, pid: Pid, peer: Option<Pid>) -> bool {
        let now = self.now;
        let linked = peer.and_then(|peer| self.qemus.all.get_mut(&peer));
        let Some(linked) = linked.filter(|peer| peer.alive && peer.incoming == Some(Load::Waiting))
        else {
            return false;
        };
        linked.peer = Some(pid);
        let there = linked.node;
        let Some(qemu) = self.qemus.all.get_mut(&pid).filter(|qemu| qemu.runs) else {
            return false;
        };
        (qemu.peer, qemu.began) = (peer, now);
        qemu.completed = false;
        self.qemu_turn(pid, Outgoing::Active);
        if let Some(peer) = peer {
            self.agent_sees(there, peer);
        }
        let takes = self.dice.between(100 * MS, 3_000 * MS);
        self.qemu_plan(pid, QemuStep::Converges, takes);
        true
    }

    /// `migrate-continue`; `false` when refused.
    pub(crate) fn qemu_continue(&mut self, pid: Pid) -> bool {
        let waits = self.alive(pid, |qemu| qemu.out == Outgoing::PreSwitchover);
        if waits {
            self.qemu_turn(pid, Outgoing::Device);
            let takes = self.dice.between(2 * MS, 60 * MS);
            self.qemu_plan(pid, QemuStep::Sent, takes);
        }
        waits
    }

    /// `migrate_cancel`: works while a copy is under way, and says yes in any case.
    pub(crate) fn qemu_cancel(&mut self, pid: Pid) -> bool {
        if self.alive(pid, |qemu| copies(qemu.out)) {
            self.qemu_turn(pid, Outgoing::Cancelled);
            self.qemu_run(pid, true);
            self.qemu_unload_peer(pid);
        }
        self.alive(pid, |_| true)
    }

    /// `cont` on a source that was complete; whether the guest runs then.
    pub(crate) fn qemu_resume(&mut self, pid: Pid) -> bool {
        if self.alive(pid, |qemu| qemu.out == Outgoing::Completed && !qemu.runs) {
            self.counts.reverts += 1;
            self.qemu_run(pid, true);
        }
        self.alive(pid, |qemu| qemu.runs)
    }

    /// `cont` on a loaded target; whether the guest runs then.
    pub(crate) fn qemu_go_on(&mut self, pid: Pid) -> bool {
        if !self.alive(pid, |qemu| qemu.incoming == Some(Load::Loaded)) {
            return false;
        }
        if !self.alive(pid, |qemu| qemu.runs) {
            self.qemu_runs_here(pid);
        }
        true
    }

    /// The guest goes on where it was loaded.
    fn qemu_runs_here(&mut self, pid: Pid) {
        let peer = self.qemus.get(pid).and_then(|qemu| qemu.peer);
        if let Some(peer) = peer.and_then(|peer| self.qemus.all.get_mut(&peer)) {
            let proven = peer.completed;
            peer.outdated = true;
            if !proven {
                self.wrong("a target ran what its source did not complete");
            }
        }
        self.qemu_run(pid, true);
    }

    /// Ends a process.
    pub(crate) fn qemu_end(&mut self, pid: Pid) {
        if !self.alive(pid, |_| true) {
            return;
        }
        self.qemu_run(pid, false);
        let Some(qemu) = self.qemus.all.get_mut(&pid) else {
            return;
        };
        qemu.alive = false;
        qemu.turn += 1;
        let (copied, node, peer) = (copies(qemu.out), qemu.node, qemu.peer);
        if copied {
            self.qemu_unload_peer(pid);
        }
        if let Some(peer) = peer
            && self.alive(peer, |peer| {
                peer.peer == Some(pid) && matches!(peer.out, Outgoing::Active | Outgoing::Device)
            })
        {
            let soon = self.dice.between(MS, 10 * MS);
            self.qemu_plan(peer, QemuStep::Breaks, soon);
        }
        self.agent_sees(node, pid);
    }

    /// The stream of a copy is cut.
    pub(crate) fn qemu_cut(&mut self, pid: Pid) {
        // In pre-switchover nothing is sent, so nothing is noticed before the guest goes on.
        if self.alive(pid, |qemu| {
            matches!(qemu.out, Outgoing::Active | Outgoing::Device)
        }) {
            self.qemu_turn(pid, Outgoing::Failed);
            self.qemu_run(pid, true);
            self.qemu_unload_peer(pid);
        }
    }

    /// Something that was planned is due.
    pub(crate) fn qemu_step(&mut self, (pid, turn): (Pid, u32), step: QemuStep) {
        let Some(qemu) = self.qemus.get(pid).filter(|qemu| qemu.alive) else {
            return;
        };
        if qemu.turn != turn && !matches!(step, QemuStep::Breaks | QemuStep::Exits) {
            return;
        }
        let (out, node, peer, busy) = (qemu.out, qemu.node, qemu.peer, qemu.busy);
        let far = peer.and_then(|peer| self.qemus.get(peer));
        let there = far.filter(|far| far.alive).map(|far| far.node);
        match step {
            QemuStep::Listens => {
                self.qemu_load(pid, Load::Waiting);
            }
            QemuStep::Converges if busy || there.is_none_or(|there| !self.linked(node, there)) => {
                self.qemu_plan(pid, step, 50 * MS);
            }
            QemuStep::Converges => {
                self.qemu_run(pid, false);
                self.qemu_turn(pid, Outgoing::PreSwitchover);
            }
            QemuStep::Sent | QemuStep::Confirmed if there.is_none() => {
                self.qemu_plan(pid, QemuStep::Breaks, 3 * MS);
            }
            QemuStep::Sent if there.is_some_and(|there| self.linked(node, there)) => {
                if let Some(peer) = peer {
                    self.qemu_loaded(peer);
                }
                let takes = self.dice.between(MS, 10 * MS);
                self.qemu_plan(pid, QemuStep::Confirmed, takes);
            }
            QemuStep::Confirmed if there.is_some_and(|there| self.linked(there, node)) => {
                if let Some(qemu) = self.qemus.all.get_mut(&pid) {
                    qemu.completed = true;
                }
                self.qemu_turn(pid, Outgoing::Completed);
            }
            // A silent peer is waited for without end.
            QemuStep::Sent | QemuStep::Confirmed => self.qemu_plan(pid, step, 50 * MS),
            QemuStep::Breaks if matches!(out, Outgoing::Active | Outgoing::Device) => {
                self.qemu_cut(pid);
            }
            QemuStep::Breaks => {}
            QemuStep::Exits => self.qemu_end(pid),
        }
    }

    fn qemu_loaded(&mut self, pid: Pid) {
        self.qemu_load(pid, Load::Loaded);
        if self.options.removed == Some(Guard::PausedTarget) {
            self.qemu_runs_here(pid);
        }
    }

    /// The other end of a copy that broke: 7.2 ends, unless everything was there.
    fn qemu_unload_peer(&mut self, pid: Pid) {
        let Some(peer) = self.qemus.get(pid).and_then(|qemu| qemu.peer) else {
            return;
        };
        if self.alive(peer, |peer| {
            peer.peer == Some(pid) && peer.incoming == Some(Load::Waiting)
        }) {
            let soon = self.dice.between(MS, 20 * MS);
            self.qemu_plan(peer, QemuStep::Exits, soon);
        }
    }

    fn qemu_load(&mut self, pid: Pid, load: Load) {
        let Some(qemu) = self.qemus.all.get_mut(&pid) else {
            return;
        };
        qemu.incoming = Some(load);
        let node = qemu.node;
        self.agent_sees(node, pid);
    }

    /// The copy's status changes, and what was planned is void.
    fn qemu_turn(&mut self, pid: Pid, out: Outgoing) {
        let Some(qemu) = self.qemus.all.get_mut(&pid) else {
            return;
        };
        qemu.out = out;
        qemu.turn += 1;
        let node = qemu.node;
        self.agent_sees(node, pid);
    }

    fn qemu_plan(&mut self, pid: Pid, step: QemuStep, after: Time) {
        if let Some(qemu) = self.qemus.get(pid) {
            let event = Event::Qemu(pid, qemu.turn, step);
            self.queue.push(self.now + after, event);
        }
    }

    /// Whether it lives and is so.
    pub(crate) fn alive(&self, pid: Pid, so: impl FnOnce(&Qemu) -> bool) -> bool {
        self.qemus
            .get(pid)
            .is_some_and(|qemu| qemu.alive && so(qemu))
    }

    /// The guest's CPUs start or stop.
    fn qemu_run(&mut self, pid: Pid, runs: bool) {
        let Some(qemu) = self.qemus.all.get_mut(&pid) else {
            return;
        };
        if qemu.runs == runs {
            return;
        }
        qemu.runs = runs;
        let (machine, outdated) = (qemu.machine, qemu.outdated);
        self.oracle_runs(machine, runs);
        if runs && outdated {
            self.wrong("a source ran again after its target ran");
        }
    }
}

/// Whether a copy is under way.
pub(crate) const fn copies(out: Outgoing) -> bool {
    matches!(
        out,
        Outgoing::Active | Outgoing::PreSwitchover | Outgoing::Device
    )
}
