//! Machines of this host: one task owns each, and nobody else changes what it is.
//!
//! A half of a job borrows a machine by [`Machine::hold`]: until it is released, nobody pauses or
//! continues the guest but the half. A machine that was migrated away is never continued here but
//! by its half, after the target's tombstone.

mod orders;
mod owner;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use godwit_model::machine::MachineSpec;
use godwit_model::{Epoch, JobId, MachineId};
use godwit_qemu::QmpError;
use godwit_qemu::process::{Identity, ProcessError};

use crate::host::Host;
use crate::vm::{LaunchError, Place, Vm};

use self::owner::Owner;

/// Orders waiting for one machine: callers are few, and wait when there are more.
const ORDERS_MAX: usize = 16;

/// What a host must know of its machine after a restart; on disk as `machine.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// What it is.
    pub(crate) spec: MachineSpec,
    /// Ownership epoch under which it runs here.
    pub(crate) epoch: Epoch,
    /// Its QEMU.
    pub(crate) place: Place,
    /// When that QEMU was started; `None` before.
    pub(crate) started_at: Option<Timestamp>,
    /// The last job that held it: the only one whose half may still act on its QEMU.
    pub(crate) job: Option<JobId>,
    /// Grace of a stop that was asked for; `None` while nobody did.
    pub(crate) stopping: Option<Duration>,
    /// How it ended; `None` while it may run.
    pub(crate) ended: Option<End>,
}

impl Record {
    /// A machine that isn't started yet.
    pub(crate) fn new(spec: MachineSpec, epoch: Epoch) -> Self {
        Self {
            spec,
            epoch,
            place: Place::default(),
            started_at: None,
            job: None,
            stopping: None,
            ended: None,
        }
    }
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    /// Whether nobody asked for it, neither the guest nor its owner.
    pub(crate) crashed: bool,
    /// Why, for people.
    pub(crate) message: String,
}

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MachineState {
    /// Its QEMU is being started.
    Starting,
    /// The guest runs.
    Running,
    /// Paused on request.
    Paused,
    /// Asked to power off.
    Stopping,
    /// Powered off.
    Stopped,
    /// Its QEMU ended unasked.
    Crashed,
    /// Stopped complete by a migration: the machine is the target's.
    Migrated,
}

/// What others see of a machine.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// What it is.
    pub(crate) spec: Arc<MachineSpec>,
    /// What it is doing.
    pub(crate) state: MachineState,
    /// More for people; empty when there is nothing to say.
    pub(crate) message: String,
    /// Ownership epoch.
    pub(crate) epoch: Epoch,
    /// Its QEMU; `None` when there is none.
    pub(crate) vm: Option<Arc<Vm>>,
    /// When that QEMU was started.
    pub(crate) started_at: Option<Timestamp>,
    /// The last job that ever held it.
    pub(crate) job: Option<JobId>,
}

/// Why a machine doesn't do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    /// It isn't here.
    #[error("machine {0} is not on this host")]
    Absent(MachineId),
    /// A newer owner has spoken.
    #[error("epoch {mine} is older than {seen}")]
    Fenced {
        /// Epoch of the order.
        mine: Epoch,
        /// The machine's.
        seen: Epoch,
    },
    /// Not in its present state; the text says what is in the way.
    #[error("{0}")]
    NotNow(String),
    /// Its QEMU could not be started.
    #[error("start qemu")]
    Launch(#[from] LaunchError),
    /// Its QEMU refused, or didn't answer.
    #[error(transparent)]
    Qemu(#[from] QmpError),
    /// Its QEMU could not be ended.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The disk refused; nothing was done.
    #[error("write the machine's record")]
    Record(#[from] io::Error),
}

/// Handle of a machine; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    orders: mpsc::Sender<Order>,
    view: watch::Receiver<View>,
}

/// How an order ended.
pub(crate) type Outcome = Result<(), MachineError>;

/// What the owner of a machine is asked.
#[derive(Debug)]
pub(crate) enum Order {
    Start {
        spec: Box<MachineSpec>,
        epoch: Epoch,
        paused: bool,
        reply: oneshot::Sender<Outcome>,
    },
    Stop {
        grace: Duration,
        epoch: Epoch,
        reply: oneshot::Sender<Outcome>,
    },
    Pause {
        reply: oneshot::Sender<Outcome>,
    },
    Unpause {
        reply: oneshot::Sender<Outcome>,
    },
    Forget {
        reply: oneshot::Sender<Outcome>,
    },
    Hold {
        job: JobId,
        reply: oneshot::Sender<Result<Arc<Vm>, MachineError>>,
    },
    Migrated {
        job: JobId,
    },
    Release {
        job: JobId,
    },
    Drop {
        process: Identity,
        reply: oneshot::Sender<Outcome>,
    },
    Expel {
        epoch: Epoch,
        reply: oneshot::Sender<Outcome>,
    },
    Keep {
        kept: Box<(Record, Option<Arc<Vm>>)>,
        reply: oneshot::Sender<Outcome>,
    },
}

impl Machine {
    /// The machine of `record`, and the task that owns it. `vm` is its QEMU, if one runs.
    pub(crate) fn spawn(host: Arc<Host>, record: Record, vm: Option<Arc<Vm>>) -> Self {
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        let (owner, seen) = Owner::new(host, record, vm);
        godwit_runtime::spawn("machine", owner.run(inbox));
        Self { orders, view: seen }
    }

    /// What it is and does.
    pub(crate) fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Starts it, or finds that it runs with the same spec.
    ///
    /// # Errors
    /// `NotNow` when it runs with another spec or was migrated away, and [`LaunchError`]s.
    pub(crate) async fn start(&self, spec: MachineSpec, epoch: Epoch, paused: bool) -> Outcome {
        let (id, spec) = (spec.id.clone(), Box::new(spec));
        self.ask(id, |reply| Order::Start {
            spec,
            epoch,
            paused,
            reply,
        })
        .await
    }

    /// Asks the guest to power off, and kills its QEMU after `grace`. Answers at once.
    ///
    /// # Errors
    /// `Fenced`, and `NotNow` when it was migrated away.
    pub(crate) async fn stop(&self, grace: Duration, epoch: Epoch) -> Outcome {
        self.ask(self.id(), |reply| Order::Stop {
            grace,
            epoch,
            reply,
        })
        .await
    }

    /// Stops the guest's CPUs.
    ///
    /// # Errors
    /// `NotNow` while a job holds it.
    pub(crate) async fn pause(&self) -> Outcome {
        self.ask(self.id(), |reply| Order::Pause { reply }).await
    }

    /// Lets a paused guest go on.
    ///
    /// # Errors
    /// `NotNow` unless it was paused by request and no job holds it.
    pub(crate) async fn unpause(&self) -> Outcome {
        self.ask(self.id(), |reply| Order::Unpause { reply }).await
    }

    /// Forgets a machine that doesn't run.
    ///
    /// # Errors
    /// `NotNow` when it does.
    pub(crate) async fn forget(&self) -> Outcome {
        self.ask(self.id(), |reply| Order::Forget { reply }).await
    }

    /// Reserves the guest's CPUs for `job`; durable before it answers. Repeatable.
    ///
    /// # Errors
    /// `NotNow` when another job holds it, or the guest doesn't run.
    pub(crate) async fn hold(&self, job: &JobId) -> Result<Arc<Vm>, MachineError> {
        let (reply, answer) = oneshot::channel();
        let order = Order::Hold {
            job: job.clone(),
            reply,
        };
        self.orders
            .send(order)
            .await
            .map_err(|_| MachineError::Absent(self.id()))?;
        answer.await.map_err(|_| MachineError::Absent(self.id()))?
    }

    /// Tells that `job` left the guest stopped complete.
    pub(crate) async fn migrated(&self, job: &JobId) {
        // A machine that is gone needs no telling.
        let _ = self.orders.send(Order::Migrated { job: job.clone() }).await;
    }

    /// Tells that `job` needs the guest's CPUs no longer.
    pub(crate) async fn release(&self, job: &JobId) {
        let _ = self.orders.send(Order::Release { job: job.clone() }).await;
    }

    /// Ends the QEMU `process` and removes the machine. Another process of it is left alone: the
    /// machine has come back.
    ///
    /// # Errors
    /// When the process can't be ended or the record can't be removed.
    pub(crate) async fn remove(&self, process: Identity) -> Outcome {
        match self
            .ask(self.id(), |reply| Order::Drop { process, reply })
            .await
        {
            Err(MachineError::Absent(_)) => Ok(()),
            other => other,
        }
    }

    /// Ends and removes it at once, if it is here under an epoch older than `epoch`, and refuses
    /// older starts from then on. A machine of that epoch or a newer one is left alone.
    ///
    /// # Errors
    /// When the process can't be ended or the fence can't be written.
    pub(crate) async fn expel(&self, epoch: Epoch) -> Outcome {
        match self
            .ask(self.id(), |reply| Order::Expel { epoch, reply })
            .await
        {
            Err(MachineError::Absent(_)) => Ok(()),
            other => other,
        }
    }

    /// Takes over a guest that was continued here by a migration. Repeatable.
    ///
    /// # Errors
    /// `NotNow` when another QEMU of it runs here, `Record` when the disk refuses.
    pub(crate) async fn keep(&self, record: Record, vm: Option<Arc<Vm>>) -> Outcome {
        let kept = Box::new((record, vm));
        self.ask(self.id(), |reply| Order::Keep { kept, reply })
            .await
    }

    fn id(&self) -> MachineId {
        self.view.borrow().spec.id.clone()
    }

    async fn ask(
        &self,
        id: MachineId,
        order: impl FnOnce(oneshot::Sender<Outcome>) -> Order,
    ) -> Outcome {
        let (reply, answer) = oneshot::channel();
        if self.orders.send(order(reply)).await.is_err() {
            return Err(MachineError::Absent(id));
        }
        answer.await.unwrap_or(Err(MachineError::Absent(id)))
    }
}
