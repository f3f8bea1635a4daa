//! This host: what it can run, which machines and halves it has, and who is told of changes.
//!
//! Holds handles only; each machine and each half belongs to its own task.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use godwit_model::machine::MachineSpec;
use godwit_model::{Epoch, JobId, MachineId};
use godwit_qemu::probe;
use godwit_rpc::client::ConnectError;
use godwit_rpc::{Channel, Credentials};
use godwit_runtime::telemetry::StepSpans;

use crate::addresses::Addresses;
use crate::cgroup::Groups;
use crate::config::Settings;
use crate::half::{Half, HalfError};
use crate::hooks::Hooks;
use crate::journal::{Side, Store};
use crate::machines::{Machine, MachineError, Record};
use crate::metrics::Metrics;
use crate::text::chain;
use crate::vm::Vm;
use crate::{source, target};

/// Pause before a half that lost its log starts over.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// A job on one machine.
type JobKey = (MachineId, JobId);

/// What a host is made of beside its configuration and its store.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) facts: probe::Host,
    pub(crate) groups: Groups,
    /// `None` only when TLS is switched off.
    pub(crate) credentials: Option<Credentials>,
    pub(crate) metrics: Metrics,
    pub(crate) steps: StepSpans,
    pub(crate) shutdown: CancellationToken,
}

/// This host. Shared by all tasks.
#[derive(Debug)]
pub(crate) struct Host {
    /// The configuration.
    pub(crate) config: Settings,
    /// What QEMU can do here.
    pub(crate) facts: probe::Host,
    /// Where each QEMU is held.
    pub(crate) groups: Groups,
    /// What it shows others; `None` only when TLS is switched off.
    pub(crate) credentials: Option<Credentials>,
    /// What must not be forgotten.
    pub(crate) store: Store,
    /// What rolling maintenances run here.
    pub(crate) hooks: Hooks,
    /// What guests say their addresses are.
    pub(crate) addresses: Addresses,
    /// What is counted.
    pub(crate) metrics: Metrics,
    /// Where the passes of copies are told.
    pub(crate) steps: StepSpans,
    /// Cancelled when the agent must end. Tasks end between two events, machines go on.
    pub(crate) shutdown: CancellationToken,
    /// When this agent started.
    pub(crate) started_at: Timestamp,
    began: Instant,
    machines: Mutex<BTreeMap<MachineId, Machine>>,
    sources: Mutex<BTreeMap<JobKey, source::Handle>>,
    targets: Mutex<BTreeMap<JobKey, target::Handle>>,
    /// Held while a half is opened from the disk.
    opening: tokio::sync::Mutex<()>,
    changes: watch::Sender<u64>,
}

impl Host {
    /// A host with nothing on it.
    pub(crate) fn new(config: Settings, store: Store, parts: Parts) -> Arc<Self> {
        let Parts {
            facts,
            groups,
            credentials,
            metrics,
            steps,
            shutdown,
        } = parts;
        Arc::new(Self {
            hooks: Hooks::new(&config),
            config,
            facts,
            groups,
            credentials,
            store,
            addresses: Addresses::default(),
            metrics,
            steps,
            shutdown,
            started_at: Timestamp::now(),
            began: Instant::now(),
            machines: Mutex::default(),
            sources: Mutex::default(),
            targets: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            changes: watch::Sender::new(0),
        })
    }

    /// Monotonic time since this agent started.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The instant of a monotonic time.
    pub(crate) fn at(&self, time: Duration) -> Instant {
        self.began + time
    }

    /// A channel to another agent or a service.
    ///
    /// # Errors
    /// When the address can't be used.
    pub(crate) fn dial(&self, address: &str) -> Result<Channel, ConnectError> {
        godwit_rpc::client::connect(address, self.credentials.as_ref())
    }

    /// Tells that a report would differ from the last one.
    pub(crate) fn changed(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// To be woken by [`Self::changed`].
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The machine `id`, when it is on this host.
    pub(crate) fn machine(&self, id: &MachineId) -> Option<Machine> {
        locked(&self.machines).get(id).cloned()
    }

    /// All machines of this host.
    pub(crate) fn machines(&self) -> Vec<Machine> {
        locked(&self.machines).values().cloned().collect()
    }

    /// The machine of `record`, with a new task when there is none.
    pub(crate) fn machine_or_new(self: &Arc<Self>, record: Record, vm: Option<Arc<Vm>>) -> Machine {
        let mut machines = locked(&self.machines);
        if let Some(machine) = machines.get(&record.spec.id) {
            return machine.clone();
        }
        let id = record.spec.id.clone();
        let machine = Machine::spawn(Arc::clone(self), record, vm);
        machines.insert(id, machine.clone());
        machine
    }

    /// Keeps a guest that was continued here as a machine of this host; without a QEMU, as one that
    /// has ended.
    ///
    /// # Errors
    /// When another QEMU of it runs here, or the disk refuses.
    pub(crate) async fn keep(
        self: &Arc<Self>,
        record: Record,
        vm: Option<Arc<Vm>>,
    ) -> Result<(), MachineError> {
        let machine = self.machine_or_new(Record::new(record.spec.clone(), record.epoch), None);
        machine.keep(record, vm).await
    }

    pub(crate) fn machine_gone(&self, id: &MachineId) {
        locked(&self.machines).remove(id);
        self.changed();
    }

    /// The machine to start as `spec`, with a new task when there is none.
    ///
    /// # Errors
    /// `Fenced` when it left this host under a newer epoch.
    pub(crate) fn machine_to_start(
        self: &Arc<Self>,
        spec: &MachineSpec,
        epoch: Epoch,
    ) -> Result<Machine, MachineError> {
        if let Some(machine) = self.machine(&spec.id) {
            return Ok(machine);
        }
        match self.store.fence(&spec.id)? {
            Some(seen) if epoch < seen => Err(MachineError::Fenced { mine: epoch, seen }),
            _ => Ok(self.machine_or_new(Record::new(spec.clone(), epoch), None)),
        }
    }

    /// The source half of `job`, opened when it isn't.
    ///
    /// # Errors
    /// When its log can't be read.
    pub(crate) async fn source(
        self: &Arc<Self>,
        machine: &MachineId,
        job: &JobId,
    ) -> Result<source::Handle, HalfError> {
        let key = (machine.clone(), job.clone());
        if let Some(half) = open(&self.sources, &key) {
            return Ok(half);
        }
        // The disk is slow, and a proof for another job must not wait for it.
        let _opening = self.opening.lock().await;
        if let Some(half) = open(&self.sources, &key) {
            return Ok(half);
        }
        let half = source::open(Arc::clone(self), machine.clone(), job.clone())?;
        locked(&self.sources).insert(key, half.clone());
        self.changed();
        Ok(half)
    }

    /// The target half of `job`, opened when it isn't.
    ///
    /// # Errors
    /// When its log can't be read.
    pub(crate) async fn target(
        self: &Arc<Self>,
        machine: &MachineId,
        job: &JobId,
    ) -> Result<target::Handle, HalfError> {
        let key = (machine.clone(), job.clone());
        if let Some(half) = open(&self.targets, &key) {
            return Ok(half);
        }
        let _opening = self.opening.lock().await;
        if let Some(half) = open(&self.targets, &key) {
            return Ok(half);
        }
        let half = target::open(Arc::clone(self), machine.clone(), job.clone())?;
        locked(&self.targets).insert(key, half.clone());
        self.changed();
        Ok(half)
    }

    /// The target half of `job`; `None` when this host never heard of it.
    ///
    /// # Errors
    /// When its log can't be read.
    pub(crate) async fn target_known(
        self: &Arc<Self>,
        machine: &MachineId,
        job: &JobId,
    ) -> Result<Option<target::Handle>, HalfError> {
        if let Some(half) = open(&self.targets, &(machine.clone(), job.clone())) {
            return Ok(Some(half));
        }
        if !self.sides(machine, job)?.contains(&Side::Target) {
            return Ok(None);
        }
        self.target(machine, job).await.map(Some)
    }

    /// Target halves in memory, with their machines.
    pub(crate) fn targets(&self) -> Vec<(MachineId, target::Handle)> {
        let targets = locked(&self.targets);
        targets
            .iter()
            .map(|((machine, _), half)| (machine.clone(), half.clone()))
            .collect()
    }

    /// Which halves of `job` this host has or had.
    ///
    /// # Errors
    /// When the logs can't be listed.
    pub(crate) fn sides(&self, machine: &MachineId, job: &JobId) -> std::io::Result<Vec<Side>> {
        let jobs = self.store.jobs(machine)?;
        Ok(jobs
            .into_iter()
            .filter(|(found, _)| found == job)
            .map(|(_, side)| side)
            .collect())
    }

    pub(crate) fn half_gone(&self, machine: &MachineId, job: &JobId, side: Side) {
        let key = (machine.clone(), job.clone());
        match side {
            Side::Source => drop(locked(&self.sources).remove(&key)),
            Side::Target => drop(locked(&self.targets).remove(&key)),
        }
    }

    /// Opens a half again after a while: its log failed it.
    pub(crate) fn reopen(self: &Arc<Self>, machine: MachineId, job: JobId, side: Side) {
        let host = Arc::clone(self);
        godwit_runtime::spawn("reopen", async move {
            tokio::select! {
                () = host.shutdown.cancelled() => return,
                () = tokio::time::sleep(REOPEN_AFTER) => {}
            }
            let opened = match side {
                Side::Source => host.source(&machine, &job).await.map(drop),
                Side::Target => host.target(&machine, &job).await.map(drop),
            };
            if let Err(error) = opened {
                warn!(%job, error = chain(&error), "half could not be opened again");
                host.reopen(machine, job, side);
            }
        });
    }
}

/// The half under `key` whose owner still serves.
fn open<C, F: Clone>(
    halves: &Mutex<BTreeMap<JobKey, Half<C, F>>>,
    key: &JobKey,
) -> Option<Half<C, F>> {
    locked(halves)
        .get(key)
        .filter(|half| !half.is_closed())
        .cloned()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
