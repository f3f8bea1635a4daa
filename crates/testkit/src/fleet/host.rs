//! One host: its machines and its halves of migrations, in memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use godwit_model::machine::MachineSpec;
use godwit_model::migration::fact::{SourceFact, TargetFact};
use godwit_model::{Epoch, JobId, MachineId, NodeName};
use godwit_rpc::agent::v1::{self as wire, MachineState};
use tokio::sync::watch;

use super::World;
use super::source::SourceHalf;
use super::target::TargetHalf;

/// One host.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: NodeName,
    /// Where its agent listens.
    pub(crate) address: String,
    pub(crate) zone: String,
    pub(crate) world: Arc<World>,
    state: Mutex<State>,
    /// Told of every change that the scheduler should hear of.
    pub(crate) changed: watch::Sender<()>,
    next_pid: AtomicU32,
}

/// What the host has.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) machines: HashMap<MachineId, Machine>,
    pub(crate) sources: HashMap<JobId, SourceHalf>,
    pub(crate) targets: HashMap<JobId, TargetHalf>,
    /// Machines whose starts under older epochs are refused.
    pub(crate) fences: HashMap<MachineId, Epoch>,
    watchers: HashMap<JobId, watch::Sender<wire::JobFacts>>,
}

/// A machine of this host.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) spec: MachineSpec,
    pub(crate) epoch: Epoch,
    pub(crate) state: MachineState,
    pub(crate) pid: u32,
}

impl Host {
    pub(crate) fn new(
        name: NodeName,
        (address, zone): (String, String),
        world: Arc<World>,
    ) -> Self {
        Self {
            name,
            address,
            zone,
            world,
            state: Mutex::default(),
            changed: watch::Sender::new(()),
            next_pid: AtomicU32::new(1000),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.next_pid.fetch_add(1, Ordering::Relaxed)
    }

    /// Has the scheduler hear of a change.
    pub(crate) fn tell(&self) {
        self.changed.send_replace(());
    }

    /// The facts of a job here now, and each time that they change.
    pub(crate) fn watch(&self, job: &JobId) -> watch::Receiver<wire::JobFacts> {
        let mut state = self.state();
        let facts = state.facts(job);
        let watcher = state.watchers.entry(job.clone());
        watcher
            .or_insert_with(|| watch::Sender::new(facts))
            .subscribe()
    }

    /// Each machine as it is reported.
    pub(crate) fn reports(&self) -> Vec<wire::MachineReport> {
        let state = self.state();
        let machines = state.machines.values().map(Machine::report);
        let arriving = state
            .targets
            .values()
            .filter(|half| half.is_arriving() && !state.machines.contains_key(&half.spec.id));
        let arriving = arriving.map(|half| wire::MachineReport {
            machine: half.spec.id.to_string(),
            state: MachineState::Incoming.into(),
            ..wire::MachineReport::default()
        });
        machines.chain(arriving).collect()
    }
}

impl State {
    fn facts(&self, job: &JobId) -> wire::JobFacts {
        let source = self.sources.get(job).map(SourceHalf::fact);
        let target = self.targets.get(job).map(TargetHalf::fact);
        wire::JobFacts {
            source: source.as_ref().map(|fact: &SourceFact| fact.into()),
            target: target.as_ref().map(|fact: &TargetFact| fact.into()),
        }
    }

    /// Tells whoever watches the job, and forgets those who went.
    pub(crate) fn publish(&mut self, job: &JobId) {
        let facts = self.facts(job);
        let Some(watcher) = self.watchers.get(job) else {
            return;
        };
        if watcher.receiver_count() == 0 {
            self.watchers.remove(job);
        } else {
            watcher.send_replace(facts);
        }
    }
}

impl Machine {
    /// As it is reported.
    pub(crate) fn report(&self) -> wire::MachineReport {
        wire::MachineReport {
            machine: self.spec.id.to_string(),
            state: self.state.into(),
            message: String::new(),
            interfaces: self.spec.nics.iter().map(interface).collect(),
            pid: self.pid,
            started_at: String::new(),
            epoch: self.epoch.0,
        }
    }
}

fn interface(nic: &godwit_model::machine::Nic) -> wire::InterfaceReport {
    wire::InterfaceReport {
        name: nic.name.clone(),
        mac: nic.mac.clone(),
        addresses: vec![],
        device: String::new(),
    }
}
