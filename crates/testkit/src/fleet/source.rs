//! A host's source halves: the model's decisions, carried out on numbers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use godwit_model::migration::fact::{Progress, SourceFact};
use godwit_model::migration::grant::{ProcessIdentity, Proof, Refusal};
use godwit_model::migration::source::{CopyStatus, Source, SourceEffect, SourceEvent, SourceState};
use godwit_model::{Epoch, JobId, MachineId, NodeName};
use godwit_rpc::agent::v1::agent_client::AgentClient;
use godwit_rpc::agent::v1::{self as wire, MachineState};
use godwit_rpc::convert::{JobRef, proof_to_wire};
use tokio::sync::Notify;

use super::copying;
use super::host::{Host, State};

/// Longest wait of a proof for its answer, and how long its sender then waits, in real time.
const PROOF_PATIENCE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_millis(50));

/// What the copy shall do.
#[derive(Debug, Clone)]
pub(crate) struct CopyOrder {
    pub(crate) target: NodeName,
    /// The target's agent.
    pub(crate) agent: String,
    /// Bytes a second; 0 is unlimited.
    pub(crate) bandwidth: u64,
    pub(crate) downtime: Duration,
}

/// One source half.
#[derive(Debug)]
pub(crate) struct SourceHalf {
    pub(crate) half: Source,
    pub(crate) machine: MachineId,
    pub(crate) order: Option<CopyOrder>,
    pub(crate) progress: Progress,
    pub(crate) stopped_at_us: Option<u64>,
    pub(crate) completed_at_us: Option<u64>,
    /// Wakes the copy: the half is further than it was.
    pub(crate) moved: Arc<Notify>,
    /// The copy may leave pre-switchover.
    pub(crate) go: bool,
    /// The copy is to be undone.
    pub(crate) cancelled: bool,
}

impl SourceHalf {
    fn new(machine: MachineId) -> Self {
        Self {
            half: Source::default(),
            machine,
            order: None,
            progress: Progress::default(),
            stopped_at_us: None,
            completed_at_us: None,
            moved: Arc::new(Notify::new()),
            go: false,
            cancelled: false,
        }
    }

    pub(crate) fn fact(&self) -> SourceFact {
        SourceFact {
            state: self.half.state(),
            allowed: self.half.allowed(),
            reason: self.half.reason().to_owned(),
            progress: self.progress,
            stopped_at_us: self.stopped_at_us,
            completed_at_us: self.completed_at_us,
            post_copied: false,
        }
    }
}

impl Host {
    /// Takes a command of a job's owner.
    ///
    /// # Errors
    /// A refusal by the half.
    pub(crate) fn command_source(
        self: &Arc<Self>,
        job: &JobRef,
        (event, order): (SourceEvent, Option<CopyOrder>),
    ) -> Result<SourceFact, Refusal> {
        let mut state = self.state();
        let half = state.sources.entry(job.job.clone());
        let half = half.or_insert_with(|| SourceHalf::new(job.machine.clone()));
        if half.order.is_none() {
            half.order = order;
        }
        self.feed_source(&mut state, &job.job, event)?;
        let half = &state.sources[&job.job];
        Ok(half.fact())
    }

    /// Lets the blackout of a copy take longer.
    ///
    /// # Errors
    /// A refusal of an owner that was replaced.
    pub(crate) fn raise_downtime(
        &self,
        job: &JobRef,
        limit: Duration,
    ) -> Result<SourceFact, Refusal> {
        let mut state = self.state();
        let Some(half) = state.sources.get_mut(&job.job) else {
            return Ok(SourceFact::bare(SourceState::Absent, false));
        };
        let seen = half.half.epoch();
        if job.epoch < seen {
            return Err(Refusal::Fenced {
                mine: job.epoch,
                seen,
            });
        }
        if let Some(order) = &mut half.order {
            order.downtime = order.downtime.max(limit);
            half.moved.notify_one();
        }
        Ok(half.fact())
    }

    /// Takes what the copy says.
    pub(crate) fn copy_says(self: &Arc<Self>, job: &JobId, status: CopyStatus) {
        let mut state = self.state();
        if self
            .feed_source(&mut state, job, SourceEvent::Copy(status))
            .is_err()
        {
            self.world
                .oracle
                .refused(&self.name, "a copy's word was refused");
        }
    }

    fn feed_source(
        self: &Arc<Self>,
        state: &mut State,
        job: &JobId,
        event: SourceEvent,
    ) -> Result<(), Refusal> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Some(half) = state.sources.get_mut(job) else {
                return Ok(());
            };
            for effect in half.half.handle(event, self.world.time.now())? {
                events.extend(self.perform_source(state, job, effect));
            }
        }
        if let Some(half) = state.sources.get(job) {
            half.moved.notify_one();
        }
        state.publish(job);
        Ok(())
    }

    fn perform_source(
        self: &Arc<Self>,
        state: &mut State,
        job: &JobId,
        effect: SourceEffect,
    ) -> Option<SourceEvent> {
        let half = state.sources.get_mut(job)?;
        match effect {
            // What is in memory is as durable as this host.
            // Post-copy, which these agents don't offer.
            SourceEffect::SwitchToPostcopy | SourceEffect::EndGuest => {}
            SourceEffect::Journal | SourceEffect::EndQemu => {}
            SourceEffect::BeginCopy => return self.begin_copy(state, job),
            SourceEffect::ContinueSwitchover => half.go = true,
            SourceEffect::CancelCopy => half.cancelled = true,
            SourceEffect::SendProof => self.send_proof(state, job),
            SourceEffect::ResumeGuest => {
                let machine = half.machine.clone();
                self.resume(state, &machine);
            }
            SourceEffect::DropMachine => {
                let machine = half.machine.clone();
                self.world.oracle.stops(&machine, &self.name);
                if let Some(gone) = state.machines.remove(&machine) {
                    state.fences.insert(machine, gone.epoch.next());
                }
                self.tell();
            }
        }
        None
    }

    fn begin_copy(self: &Arc<Self>, state: &State, job: &JobId) -> Option<SourceEvent> {
        let half = state.sources.get(job)?;
        let machine = state.machines.get(&half.machine);
        let machine = machine.filter(|machine| machine.state == MachineState::Running);
        let (Some(order), Some(machine)) = (half.order.clone(), machine) else {
            let why = "the machine does not run here".to_owned();
            return Some(SourceEvent::Copy(CopyStatus::Failed(why)));
        };
        let copy = copying::Copy {
            host: Arc::clone(self),
            job: job.clone(),
            machine: machine.spec.id.clone(),
            memory: machine.spec.memory,
            order,
            moved: Arc::clone(&half.moved),
        };
        tokio::spawn(copy.run());
        None
    }

    /// The guest goes on here after all.
    pub(crate) fn resume(&self, state: &mut State, machine: &MachineId) {
        if let Some(here) = state.machines.get_mut(machine) {
            here.state = MachineState::Running;
            self.world.oracle.starts(machine, &self.name);
            self.tell();
        }
    }

    fn send_proof(self: &Arc<Self>, state: &State, job: &JobId) {
        let Some(half) = state.sources.get(job) else {
            return;
        };
        let (Some(order), Some(machine)) = (&half.order, state.machines.get(&half.machine)) else {
            return;
        };
        let proof = Proof {
            machine: half.machine.clone(),
            job: job.clone(),
            source: self.name.clone(),
            process: ProcessIdentity {
                pid: machine.pid,
                start_ticks: 1,
                boot_id: "pretended".to_owned(),
            },
        };
        let mut proof = proof_to_wire(&proof, half.half.epoch());
        proof.machine_epoch = Epoch(machine.epoch.0).next().0;
        let (host, agent, job) = (Arc::clone(self), order.agent.clone(), job.clone());
        tokio::spawn(async move { host.deliver(&agent, proof, &job).await });
    }

    /// Sends the proof until it is taken, or can't be any more.
    async fn deliver(self: Arc<Self>, agent: &str, proof: wire::Proof, job: &JobId) {
        let Ok(channel) = self.world.channel(agent) else {
            return;
        };
        while self.is_completed(job) && !self.world.shutdown.is_cancelled() {
            let mut agent = AgentClient::new(channel.clone());
            let call = godwit_rpc::client::within(PROOF_PATIENCE.0, proof.clone());
            if agent.deliver_proof(call).await.is_ok() {
                let mut state = self.state();
                // It can't refuse that.
                let _ = self.feed_source(&mut state, job, SourceEvent::ProofTaken);
                return;
            }
            tokio::time::sleep(PROOF_PATIENCE.1).await; // back-off
        }
    }

    fn is_completed(&self, job: &JobId) -> bool {
        let state = self.state();
        let half = state.sources.get(job);
        half.is_some_and(|half| half.half.state() == SourceState::Completed)
    }
}
