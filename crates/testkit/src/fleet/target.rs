//! A host's target halves: the model's decisions, carried out on numbers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use godwit_model::machine::MachineSpec;
use godwit_model::migration::fact::{TargetAddress, TargetFact};
use godwit_model::migration::grant::{Proof, Refusal};
use godwit_model::migration::target::{LoadStatus, Target, TargetEffect, TargetEvent, TargetState};
use godwit_model::{Epoch, JobId};
use godwit_rpc::agent::v1::MachineState;
use godwit_rpc::convert::JobRef;

use super::host::{Host, Machine, State};

/// What QEMU takes to start and to listen, in virtual time.
const START: Duration = Duration::from_millis(250);

/// One target half.
#[derive(Debug)]
pub(crate) struct TargetHalf {
    pub(crate) half: Target,
    pub(crate) spec: MachineSpec,
    /// The machine's owner's epoch once it runs here; 0 before a proof came.
    machine_epoch: Epoch,
    running_at_us: Option<u64>,
    pub(crate) pid: u32,
}

impl TargetHalf {
    pub(crate) fn fact(&self) -> TargetFact {
        TargetFact {
            state: self.half.state(),
            reason: self.half.reason().to_owned(),
            address: self.half.address().cloned(),
            running_at_us: self.running_at_us,
            no_post_copy: String::new(),
        }
    }

    /// Whether a copy is being loaded, or about to run.
    pub(crate) const fn is_arriving(&self) -> bool {
        match self.half.state() {
            TargetState::Preparing
            | TargetState::Prepared
            | TargetState::Loaded
            | TargetState::Continuing => true,
            TargetState::Absent
            | TargetState::Fetching
            | TargetState::Running
            | TargetState::Discarded
            | TargetState::Lost { .. }
            | TargetState::MemoryLost => false,
        }
    }
}

impl Host {
    /// Takes a command of a job's owner; `spec` makes the half where there is none.
    ///
    /// # Errors
    /// A refusal by the half.
    pub(crate) fn command_target(
        self: &Arc<Self>,
        job: &JobRef,
        (event, spec): (TargetEvent, MachineSpec),
    ) -> Result<TargetFact, Refusal> {
        let mut state = self.state();
        let pid = self.pid();
        let half = state.targets.entry(job.job.clone());
        half.or_insert_with(|| TargetHalf {
            half: Target::default(),
            spec,
            machine_epoch: Epoch(0),
            running_at_us: None,
            pid,
        });
        self.feed_target(&mut state, &job.job, event)?;
        Ok(state.targets[&job.job].fact())
    }

    /// Takes a proof; `None` when the job isn't known here.
    ///
    /// # Errors
    /// A refusal by the half.
    pub(crate) fn take_proof(
        self: &Arc<Self>,
        proof: Proof,
        epoch: Epoch,
    ) -> Result<Option<TargetFact>, Refusal> {
        let mut state = self.state();
        let job = proof.job.clone();
        let Some(half) = state.targets.get_mut(&job) else {
            return Ok(None);
        };
        half.machine_epoch = epoch;
        self.feed_target(&mut state, &job, TargetEvent::Proof(proof))?;
        Ok(state.targets.get(&job).map(TargetHalf::fact))
    }

    /// All memory has arrived. Answers whether there was somebody to take it.
    pub(crate) fn loaded(self: &Arc<Self>, job: &JobId) -> bool {
        let mut state = self.state();
        let event = TargetEvent::Load(LoadStatus::Completed);
        let fed = self.feed_target(&mut state, job, event);
        let half = state.targets.get(job);
        fed.is_ok() && half.is_some_and(|half| half.half.state() == TargetState::Loaded)
    }

    fn feed_target(
        self: &Arc<Self>,
        state: &mut State,
        job: &JobId,
        event: TargetEvent,
    ) -> Result<(), Refusal> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Some(half) = state.targets.get_mut(job) else {
                return Ok(());
            };
            for effect in half.half.handle(event, self.world.time.now())? {
                events.extend(self.perform_target(state, job, effect));
            }
        }
        state.publish(job);
        self.tell();
        Ok(())
    }

    fn perform_target(
        self: &Arc<Self>,
        state: &mut State,
        job: &JobId,
        effect: TargetEffect,
    ) -> Option<TargetEvent> {
        let half = state.targets.get_mut(job)?;
        match effect {
            TargetEffect::Journal
            | TargetEffect::Announce
            | TargetEffect::EndQemu
            | TargetEffect::EndGuest => None,
            TargetEffect::StartQemu => {
                let (host, job) = (Arc::clone(self), job.clone());
                tokio::spawn(async move { host.launch(&job).await });
                None
            }
            TargetEffect::Continue => {
                half.running_at_us = Some(self.world.time.micros());
                self.world.oracle.starts(&half.spec.id, &self.name);
                Some(TargetEvent::Continued)
            }
            TargetEffect::KeepMachine => {
                let machine = Machine {
                    spec: half.spec.clone(),
                    epoch: half.machine_epoch,
                    state: MachineState::Running,
                    pid: half.pid,
                };
                state.machines.insert(machine.spec.id.clone(), machine);
                None
            }
        }
    }

    /// Starts a paused QEMU and lets it listen.
    async fn launch(self: Arc<Self>, job: &JobId) {
        self.world.time.sleep(START).await;
        let address = TargetAddress {
            uri: format!("tcp:{}:49152", self.name),
            address: self.name.to_string(),
            ports: vec![49152],
        };
        let mut state = self.state();
        // It takes that in every state.
        let _ = self.feed_target(&mut state, job, TargetEvent::Listening(address));
    }
}
