//! A host's agent: the real halves in memory, their lines on disk, and the process around them.
//!
//! A half takes one event at a time and carries its effects out in their order, each of which takes
//! time; between any two the agent may crash, and then memory is gone and the disk is as it was. A
//! line that was being written at that moment is there, or isn't.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use godwit_model::migration::source::{Source, SourceEffect, SourceEvent};
use godwit_model::migration::target::{Target, TargetEffect, TargetEvent};

use super::net::{Addr, Fact, Msg, Reply};
use super::qemu::{Load, Pid};
use super::time::{MS, SEC, Time};
use super::{Event, Fleet, JobNo, MachineNo, NodeNo};
use crate::halves::Outgoing;
use crate::owner::Side;

/// A host.
#[derive(Debug, Default)]
pub(crate) struct Host {
    /// The agent; `None` while it is down.
    pub(crate) agent: Option<Agent>,
    /// What a crash leaves.
    pub(crate) disk: Disk,
    /// Counts the agent's starts.
    pub(crate) starts: u32,
    /// When the host came up: its monotonic clock counts from here.
    pub(crate) booted: Time,
    /// Until when nothing of the agent moves.
    pub(crate) asleep: Time,
    /// Until when every write to disk is slow.
    pub(crate) slow: Time,
    /// Whether the whole host is down.
    pub(crate) down: bool,
}

/// What is on a host's disk.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) machines: BTreeMap<MachineNo, Record>,
    pub(crate) sources: BTreeMap<JobNo, SourceLine>,
    pub(crate) targets: BTreeMap<JobNo, TargetLine>,
}

/// A machine that is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) pid: Pid,
    /// The last job that held it.
    pub(crate) job: Option<JobNo>,
}

/// The newest line of a source's log.
#[derive(Debug, Clone, Default)]
pub(crate) struct SourceLine {
    pub(crate) half: Source,
    pub(crate) process: Option<Pid>,
    pub(crate) target: Option<NodeNo>,
}

/// The newest line of a target's log.
#[derive(Debug, Clone, Default)]
pub(crate) struct TargetLine {
    pub(crate) half: Target,
    pub(crate) process: Option<Pid>,
}

/// An agent's memory.
#[derive(Debug, Default)]
pub(crate) struct Agent {
    pub(crate) sources: BTreeMap<JobNo, SourceHalf>,
    pub(crate) targets: BTreeMap<JobNo, TargetHalf>,
    /// Who follows which half, under which epoch.
    pub(crate) watchers: BTreeMap<(JobNo, Side, usize), u64>,
    /// Counts what was said, so that a listener can tell old from new.
    pub(crate) said: u64,
}

/// A source half at work.
#[derive(Debug, Default)]
pub(crate) struct SourceHalf {
    pub(crate) line: SourceLine,
    /// What listeners are told: true when all of the last event was done.
    pub(crate) told: Source,
    pub(crate) work: Work<SourceEvent, SourceEffect>,
    pub(crate) writing: Option<SourceLine>,
    /// Whether it listens to QEMU for this job.
    pub(crate) begun: bool,
    pub(crate) retry: Option<SourceEffect>,
    /// Whether the proof is on its way, again and again.
    pub(crate) sending: bool,
    /// Highest epoch of an order that it followed; the oracle's, not the half's.
    pub(crate) obeyed: u64,
}

/// A target half at work.
#[derive(Debug, Default)]
pub(crate) struct TargetHalf {
    pub(crate) line: TargetLine,
    /// What listeners are told: true when all of the last event was done.
    pub(crate) told: Target,
    pub(crate) work: Work<TargetEvent, TargetEffect>,
    pub(crate) writing: Option<TargetLine>,
    /// Started, and not heard of yet.
    pub(crate) launching: Option<Pid>,
    /// The process that it holds.
    pub(crate) attached: Option<Pid>,
    pub(crate) retry: Option<TargetEffect>,
    /// Whether it takes the copy for one in use, which is never discarded for its age.
    pub(crate) loading: bool,
    pub(crate) obeyed: u64,
}

/// Where an order's answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// To a coordinator's call.
    Call(usize, u64),
    /// To the source's host, about the proof.
    Proof(NodeNo),
}

/// What a half has to do, in order.
#[derive(Debug)]
pub(crate) struct Work<E, F> {
    doing: VecDeque<F>,
    outcomes: VecDeque<E>,
    inbox: VecDeque<(E, Option<Answer>)>,
    answer: Option<Answer>,
    open: bool,
    busy: bool,
}

impl<E, F> Default for Work<E, F> {
    fn default() -> Self {
        Self {
            doing: VecDeque::new(),
            outcomes: VecDeque::new(),
            inbox: VecDeque::new(),
            answer: None,
            open: false,
            busy: false,
        }
    }
}

/// What a half does next.
#[derive(Debug)]
pub(crate) enum Next<E, F> {
    /// Carry this out.
    Effect(F),
    /// Take this; with an answer it is somebody's order or proof.
    Event(E, Option<Answer>),
    /// All of an event is done: tell everyone.
    Done(Option<Answer>),
    /// Nothing.
    Idle,
}

impl<E, F> Work<E, F> {
    /// Adds an event; `true` when the half has to be woken.
    fn post(&mut self, event: E, answer: Option<Answer>) -> bool {
        self.inbox.push_back((event, answer));
        !std::mem::replace(&mut self.busy, true)
    }

    pub(crate) fn effects(&mut self, effects: Vec<F>) {
        self.doing.extend(effects);
    }

    pub(crate) fn outcome(&mut self, event: Option<E>) {
        self.outcomes.extend(event);
    }

    pub(crate) fn next(&mut self) -> Next<E, F> {
        if let Some(effect) = self.doing.pop_front() {
            return Next::Effect(effect);
        }
        if let Some(event) = self.outcomes.pop_front() {
            return Next::Event(event, None);
        }
        if std::mem::take(&mut self.open) {
            return Next::Done(self.answer.take());
        }
        match self.inbox.pop_front() {
            Some((event, answer)) => {
                (self.open, self.answer) = (true, answer);
                Next::Event(event, answer)
            }
            None => {
                self.busy = false;
                Next::Idle
            }
        }
    }
}

/// What an agent is woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum AgentTimer {
    /// A half goes on with its work.
    Works(JobNo, Side),
    /// A process changed, and looked like this.
    Sees(Pid, Seen),
    /// A half's deadline may have passed.
    Ticks(JobNo, Side),
    /// What failed is tried again.
    Retries(JobNo, Side),
    /// QEMU is asked what it says.
    Polls(JobNo),
    /// The proof is sent again, after this pause.
    Proves(JobNo, Time),
}

/// What a process looked like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    pub(crate) alive: bool,
    pub(crate) runs: bool,
    pub(crate) out: Outgoing,
    pub(crate) load: Option<Load>,
    /// Whether it has another end.
    pub(crate) linked: bool,
}

impl Fleet {
    /// The agent of this node.
    pub(crate) fn agent(&mut self, node: NodeNo) -> Option<&mut Agent> {
        self.hosts.get_mut(node)?.agent.as_mut()
    }

    /// The host's monotonic clock.
    pub(crate) fn clock(&self, node: NodeNo) -> Duration {
        let booted = self.hosts.get(node).map_or(0, |host| host.booted);
        Duration::from_micros(self.now - booted + SEC)
    }

    pub(crate) fn agent_plan(&mut self, node: NodeNo, timer: AgentTimer, after: Time) {
        let starts = self.hosts.get(node).map_or(0, |host| host.starts);
        let event = Event::Agent(node, starts, timer);
        self.queue.push(self.now + after, event);
    }

    /// A process of this host changed; its agent, if it is up, will see it.
    pub(crate) fn agent_sees(&mut self, node: NodeNo, pid: Pid) {
        let soon = self.dice.between(MS / 10, 2 * MS);
        if let Some(seen) = self.seen(pid) {
            self.agent_plan(node, AgentTimer::Sees(pid, seen), soon);
        }
    }

    pub(crate) fn seen(&self, pid: Pid) -> Option<Seen> {
        let qemu = self.qemus.get(pid)?;
        Some(Seen {
            alive: qemu.alive,
            runs: qemu.runs,
            out: qemu.out,
            load: qemu.incoming,
            linked: qemu.peer.is_some(),
        })
    }

    pub(crate) fn agent_timer(&mut self, node: NodeNo, starts: u32, timer: AgentTimer) {
        let Some(host) = self.hosts.get(node) else {
            return;
        };
        if host.agent.is_none() || host.starts != starts {
            return;
        }
        if host.asleep > self.now {
            let event = Event::Agent(node, starts, timer);
            self.queue.push(host.asleep, event);
            return;
        }
        match timer {
            AgentTimer::Works(job, Side::Source) => self.source_works(node, job),
            AgentTimer::Works(job, Side::Target) => self.target_works(node, job),
            AgentTimer::Ticks(job, Side::Source) => {
                self.source_post(node, job, SourceEvent::Tick, None);
            }
            AgentTimer::Ticks(job, Side::Target) => {
                let half = self.agent(node).and_then(|a| a.targets.get(&job));
                if half.is_some_and(|half| !half.loading) {
                    self.target_post(node, job, TargetEvent::Tick, None);
                }
            }
            AgentTimer::Retries(job, Side::Source) => self.source_retries(node, job),
            AgentTimer::Retries(job, Side::Target) => self.target_retries(node, job),
            AgentTimer::Sees(pid, seen) => self.agent_saw(node, pid, seen),
            AgentTimer::Polls(job) => self.source_polls(node, job),
            AgentTimer::Proves(job, pause) => self.source_proves(node, job, pause),
        }
    }

    fn agent_saw(&mut self, node: NodeNo, pid: Pid, seen: Seen) {
        let Some(agent) = self.agent(node) else {
            return;
        };
        let of_source = agent.sources.iter();
        let sources: Vec<_> = of_source
            .filter(|(_, half)| half.line.process == Some(pid))
            .map(|(job, _)| *job)
            .collect();
        let of_target = agent.targets.iter();
        let targets: Vec<_> = of_target
            .filter(|(_, half)| half.attached == Some(pid) || half.launching == Some(pid))
            .map(|(job, _)| *job)
            .collect();
        for job in sources {
            self.source_sees(node, job, seen);
        }
        for job in targets {
            self.target_sees(node, job, seen);
        }
    }

    /// Adds an event for a source half, and wakes it.
    pub(crate) fn source_post(
        &mut self,
        node: NodeNo,
        job: JobNo,
        event: SourceEvent,
        answer: Option<Answer>,
    ) {
        let half = self.agent(node).and_then(|a| a.sources.get_mut(&job));
        if half.is_some_and(|half| half.work.post(event, answer)) {
            self.agent_plan(node, AgentTimer::Works(job, Side::Source), 0);
        }
    }

    /// Adds an event for a target half, and wakes it.
    pub(crate) fn target_post(
        &mut self,
        node: NodeNo,
        job: JobNo,
        event: TargetEvent,
        answer: Option<Answer>,
    ) {
        let half = self.agent(node).and_then(|a| a.targets.get_mut(&job));
        if half.is_some_and(|half| half.work.post(event, answer)) {
            self.agent_plan(node, AgentTimer::Works(job, Side::Target), 0);
        }
    }

    /// How long a write to this host's disk takes.
    pub(crate) fn fsync(&mut self, node: NodeNo) -> Time {
        let slow = self.hosts.get(node).is_some_and(|h| h.slow > self.now);
        if slow {
            self.dice.between(200 * MS, 500 * MS)
        } else {
            self.dice.between(MS / 5, 4 * MS)
        }
    }

    /// Tells everyone who follows this half.
    pub(crate) fn publish(&mut self, node: NodeNo, job: JobNo, side: Side) {
        let Some(agent) = self.agent(node) else {
            return;
        };
        let following = (job, side, 0)..=(job, side, usize::MAX);
        let watchers = agent.watchers.range(following);
        let owners: Vec<_> = watchers.map(|((_, _, o), e)| (*o, *e)).collect();
        for owner in owners {
            self.tell(node, (job, side), owner);
        }
    }

    /// Tells one listener what is true.
    pub(crate) fn tell(
        &mut self,
        node: NodeNo,
        (job, side): (JobNo, Side),
        (owner, epoch): (usize, u64),
    ) {
        let Some(fact) = self.fact(node, job, side) else {
            return;
        };
        let starts = self.hosts.get(node).map_or(0, |host| host.starts);
        let Some(agent) = self.agent(node) else {
            return;
        };
        agent.said += 1;
        let version = (starts, agent.said);
        let message = Msg::Says((job, epoch), version, fact);
        self.send(Addr::Agent(node), Addr::Owner(owner), message);
    }

    /// What a half says of itself; `None` when the agent is down.
    pub(crate) fn fact(&self, node: NodeNo, job: JobNo, side: Side) -> Option<Fact> {
        let agent = self.hosts.get(node)?.agent.as_ref()?;
        Some(match side {
            Side::Source => self.source_fact(agent.sources.get(&job)?),
            Side::Target => Fact::Target(agent.targets.get(&job)?.told.state()),
        })
    }

    /// An order's or a proof's answer.
    pub(crate) fn answer(
        &mut self,
        node: NodeNo,
        (job, side): (JobNo, Side),
        to: Answer,
        reply: Reply,
    ) {
        let from = Addr::Agent(node);
        match (to, self.fact(node, job, side)) {
            (Answer::Call(owner, call), fact) => {
                let starts = self.hosts.get(node).map_or(0, |host| host.starts);
                let said = self.agent(node).map_or(0, |agent| {
                    agent.said += 1;
                    agent.said
                });
                let fact = fact.map(|fact| ((starts, said), fact));
                self.send(from, Addr::Owner(owner), Msg::Ordered(call, reply, fact));
            }
            (Answer::Proof(source), Some(Fact::Target(state))) => {
                self.send(from, Addr::Agent(source), Msg::ProofAnswer(job, state));
            }
            (Answer::Proof(_), _) => {}
        }
    }

    /// The agent dies; what it was writing is on disk, or isn't.
    pub(crate) fn agent_crash(&mut self, node: NodeNo) {
        let Some(agent) = self.hosts.get_mut(node).and_then(|host| host.agent.take()) else {
            return;
        };
        self.counts.agent_crashes += 1;
        for (job, half) in agent.sources {
            if let Some(line) = half.writing.filter(|_| self.dice.chance(5_000)) {
                self.hosts[node].disk.sources.insert(job, line);
            }
        }
        for (job, half) in agent.targets {
            if let Some(line) = half.writing.filter(|_| self.dice.chance(5_000)) {
                self.hosts[node].disk.targets.insert(job, line);
            }
        }
        self.agents_restart(node);
    }

    /// The agent starts, and goes on with what is on disk.
    pub(crate) fn agent_start(&mut self, node: NodeNo) {
        let Some(host) = self.hosts.get_mut(node).filter(|host| !host.down) else {
            return;
        };
        if host.agent.is_some() {
            return;
        }
        host.starts += 1;
        host.agent = Some(Agent::default());
        let sources: Vec<_> = host.disk.sources.keys().copied().collect();
        let targets: Vec<_> = host.disk.targets.keys().copied().collect();
        for job in sources {
            if self.source_is_open(node, job) {
                self.source_open(node, job);
            }
        }
        for job in targets {
            if self.target_is_open(node, job) {
                self.target_open(node, job);
            }
        }
    }
}
