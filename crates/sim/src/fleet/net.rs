//! What travels between processes, and how it is lost, repeated, reordered and delayed.

use godwit_model::migration::decide::Command;
use godwit_model::migration::grant::{ProcessIdentity, Proof};
use godwit_model::migration::job::JobState;
use godwit_model::migration::source::SourceEvent;
use godwit_model::migration::target::{TargetEvent, TargetState};
use godwit_model::{Epoch, NodeName};

use super::agent::Answer;
use super::qemu::Pid;
use super::time::{MS, SEC, Time};
use super::{Event, Fleet, JobNo, NodeNo};
use crate::owner::Side;
use crate::state::SourceWord;

/// A process that talks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Addr {
    /// A coordinator.
    Owner(usize),
    /// A node's agent.
    Agent(NodeNo),
    /// Postgres, with the scheduler's transaction.
    Ledger,
}

impl Addr {
    /// Most processes there are.
    pub(crate) const MAX: usize = 16;

    /// A number of its own.
    pub(crate) const fn number(self) -> usize {
        match self {
            Self::Ledger => 0,
            Self::Owner(owner) => 1 + owner,
            Self::Agent(node) => 8 + node,
        }
    }
}

/// What a half says, small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Fact {
    /// State and permission, bytes that remain, and milliseconds since the copy began.
    Source(SourceWord, u64, u64),
    /// The state.
    Target(TargetState),
}

/// How new a fact is: the agent's start, and a count since then.
pub(crate) type Version = (u32, u64);

/// How an order ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reply {
    /// Its effects are done.
    Done,
    /// A newer owner has spoken.
    Fenced,
    /// Not possible in this state.
    NotNow,
    /// Nobody is there.
    Down,
}

/// What a coordinator asks of the ledger; each is one transaction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Ask {
    /// A job without a lease.
    Claim,
    /// A longer lease.
    Renew(JobNo, u64),
    /// The end of a lease.
    Release(JobNo, u64),
    /// The job as it is.
    Read(JobNo),
    /// A slot, if it is the job's turn.
    TakeTurn(JobNo, u64),
    /// Room on a node, held by the scheduler.
    Reserve(JobNo, u64),
    /// Transitions that follow from one another: the states, the first being the one it is in.
    Record(JobNo, u64, Vec<JobState>),
}

/// What the ledger answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Told {
    /// The job, under this epoch.
    Job(JobNo, Row),
    /// Done.
    Yes,
    /// Not done: nothing to claim, not its turn, no room.
    No,
    /// Somebody else has the job.
    Stale,
    /// The database does not answer.
    Unavailable,
}

/// A job as a coordinator knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Row {
    pub(crate) state: JobState,
    pub(crate) epoch: u64,
    pub(crate) cancel: bool,
    pub(crate) switch_allowed: bool,
    pub(crate) source: NodeNo,
    pub(crate) target: Option<NodeNo>,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Msg {
    /// Coordinator to ledger, by call.
    Ask(usize, u64, Ask),
    /// And back.
    Told(u64, Told),
    /// Coordinator to agent: by call, the job, the epoch, the order, and where a copy goes.
    Order(usize, u64, (JobNo, u64), Command, Option<NodeNo>),
    /// And back, with the fact as it is then.
    Ordered(u64, Reply, Option<(Version, Fact)>),
    /// Coordinator to agent: say what is true, now and whenever it changes. A stream of its own
    /// for each epoch.
    Follow(usize, (JobNo, u64), Side),
    /// Agent to coordinator, on that stream.
    Says((JobNo, u64), Version, Fact),
    /// Source's agent to target's: this process stopped complete.
    Proof(JobNo, NodeNo, Pid),
    /// And back.
    ProofAnswer(JobNo, TargetState),
}

impl Fleet {
    /// Sends a message, with the luck of the day.
    pub(crate) fn send(&mut self, from: Addr, to: Addr, message: Msg) {
        if self.cut[from.number()][to.number()] > self.now {
            return;
        }
        let faulty = self.now < self.plan.faults_end;
        let copies = if faulty && self.dice.chance(self.plan.lost) {
            0
        } else {
            1 + u64::from(faulty && self.dice.chance(self.plan.repeated))
        };
        if copies == 2 {
            let delay = self.delay(faulty);
            let event = Event::Arrives(from, to, message.clone());
            self.queue.push(self.now + delay, event);
        }
        if copies > 0 {
            let delay = self.delay(faulty);
            let event = Event::Arrives(from, to, message);
            self.queue.push(self.now + delay, event);
        }
    }

    fn delay(&mut self, faulty: bool) -> Time {
        if faulty && self.dice.chance(self.plan.late) {
            // Minutes are seconds here; what matters is that everything else goes on meanwhile.
            return self.dice.between(MS, 15 * SEC);
        }
        if faulty && self.dice.chance(self.plan.slow) {
            return self.dice.between(MS, 400 * MS);
        }
        self.dice.between(MS / 10, MS)
    }

    /// Whether memory can travel between two hosts.
    pub(crate) fn linked(&self, from: NodeNo, to: NodeNo) -> bool {
        let (from, to) = (Addr::Agent(from).number(), Addr::Agent(to).number());
        let up = |at: usize| {
            let host = at.checked_sub(Addr::Agent(0).number());
            host.and_then(|host| self.hosts.get(host))
                .is_some_and(|host| !host.down)
        };
        self.stalled[from][to] <= self.now && up(from) && up(to)
    }

    /// A message arrives.
    pub(crate) fn arrives(&mut self, from: Addr, to: Addr, message: Msg) {
        if self.cut[from.number()][to.number()] > self.now {
            return;
        }
        let (asleep, up) = match to {
            Addr::Owner(owner) => (self.owners[owner].asleep, self.owners[owner].up),
            Addr::Agent(node) => (self.hosts[node].asleep, self.hosts[node].agent.is_some()),
            Addr::Ledger => (0, self.ledger.down_until <= self.now),
        };
        if asleep > self.now {
            self.queue.push(asleep, Event::Arrives(from, to, message));
            return;
        }
        if !up {
            self.bounces(to, &message);
            return;
        }
        match message {
            Msg::Ask(owner, call, ask) => {
                let told = self.ledger_does(owner, ask);
                self.send(Addr::Ledger, Addr::Owner(owner), Msg::Told(call, told));
            }
            Msg::Order(owner, call, job, command, target) => {
                if let Addr::Agent(node) = to {
                    self.ordered(node, Answer::Call(owner, call), job, (command, target));
                }
            }
            Msg::Follow(owner, (job, epoch), side) => {
                if let Addr::Agent(node) = to {
                    self.followed(node, (owner, epoch), (job, side));
                }
            }
            Msg::Proof(job, source, pid) => {
                if let Addr::Agent(node) = to {
                    self.proven(node, job, source, pid);
                }
            }
            Msg::ProofAnswer(job, state) => {
                if let Addr::Agent(node) = to {
                    self.proof_answered(node, job, state);
                }
            }
            Msg::Told(call, told) => {
                if let Addr::Owner(owner) = to {
                    self.owner_told(owner, call, told);
                }
            }
            Msg::Ordered(call, reply, fact) => {
                if let Addr::Owner(owner) = to {
                    self.owner_answered(owner, call, reply, fact);
                }
            }
            Msg::Says(job, version, fact) => {
                if let Addr::Owner(owner) = to {
                    self.owner_hears(owner, job, version, fact);
                }
            }
        }
    }

    /// Nobody listens: whoever called learns it, mostly.
    fn bounces(&mut self, to: Addr, message: &Msg) {
        if self.dice.chance(2_000) {
            return;
        }
        if let Msg::Order(owner, call, ..) = message {
            let bounced = Msg::Ordered(*call, Reply::Down, None);
            self.send(to, Addr::Owner(*owner), bounced);
        } else if let Msg::Ask(owner, call, _) = message {
            let bounced = Msg::Told(*call, Told::Unavailable);
            self.send(to, Addr::Owner(*owner), bounced);
        }
    }

    fn ordered(
        &mut self,
        node: NodeNo,
        answer: Answer,
        (job, epoch): (JobNo, u64),
        (command, target): (Command, Option<NodeNo>),
    ) {
        let epoch = Epoch(epoch);
        let to_source = match command {
            Command::StartCopy => SourceEvent::Start { epoch },
            Command::AllowSwitchover => SourceEvent::Allow { epoch },
            Command::CancelCopy => SourceEvent::Cancel { epoch },
            Command::RevertSource => SourceEvent::Revert { epoch },
            Command::RetireSource => SourceEvent::Retire { epoch },
            Command::PrepareTarget | Command::DiscardTarget | Command::AbandonTarget => {
                let event = if command == Command::PrepareTarget {
                    TargetEvent::Prepare { epoch }
                } else if command == Command::AbandonTarget {
                    TargetEvent::Abandon { epoch }
                } else {
                    TargetEvent::Discard { epoch }
                };
                self.target_open(node, job);
                self.target_post(node, job, event, Some(answer));
                return;
            }
        };
        self.source_ordered(node, job, target);
        self.source_post(node, job, to_source, Some(answer));
    }

    fn followed(&mut self, node: NodeNo, (owner, epoch): (usize, u64), (job, side): (JobNo, Side)) {
        match side {
            Side::Source => self.source_open(node, job),
            Side::Target => self.target_open(node, job),
        }
        if let Some(agent) = self.agent(node) {
            agent.watchers.insert((job, side, owner), epoch);
        }
        self.tell(node, (job, side), (owner, epoch));
    }

    fn proven(&mut self, node: NodeNo, job: JobNo, source: NodeNo, pid: Pid) {
        self.target_open(node, job);
        let row = &self.ledger.jobs[job];
        let proof = Proof {
            machine: self.ledger.machines[row.machine].id.clone(),
            job: row.id.clone(),
            source: node_name(source),
            process: ProcessIdentity {
                pid,
                start_ticks: u64::from(pid),
                boot_id: String::new(),
            },
        };
        let answer = Some(Answer::Proof(source));
        self.target_post(node, job, TargetEvent::Proof(proof), answer);
    }

    fn proof_answered(&mut self, node: NodeNo, job: JobNo, state: TargetState) {
        let half = self.agent(node).and_then(|a| a.sources.get_mut(&job));
        let Some(half) = half.filter(|half| half.sending) else {
            return;
        };
        match state {
            TargetState::Continuing
            | TargetState::Fetching
            | TargetState::Running
            | TargetState::Lost { continued: true }
            | TargetState::MemoryLost => {
                half.sending = false;
                self.source_post(node, job, SourceEvent::ProofTaken, None);
            }
            TargetState::Discarded | TargetState::Lost { continued: false } => {
                half.sending = false;
            }
            TargetState::Absent
            | TargetState::Preparing
            | TargetState::Prepared
            | TargetState::Loaded => {}
        }
    }
}

/// A node's name.
pub(crate) fn node_name(node: NodeNo) -> NodeName {
    NodeName::parse(format!("worker{}", node + 1)).expect("a name")
}
