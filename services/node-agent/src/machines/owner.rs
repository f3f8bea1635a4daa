//! The task that owns one machine: orders and QEMU's events in, record and view out.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use godwit_model::{Epoch, JobId};
use godwit_qemu::qmp::RunState;
use godwit_qemu::{Event, Events, QmpError};

use super::{End, MachineState, Order, Outcome, Record, View};
use crate::half;
use crate::host::Host;
use crate::vm::{self, Place, Vm};

/// Pause before the monitor of a living QEMU is connected again.
const RELINK_AFTER: Duration = Duration::from_millis(500);

/// Who holds the guest's CPUs.
#[derive(Debug, Clone)]
pub(super) struct Hold {
    pub(super) job: JobId,
    /// Whether the guest was left stopped complete.
    pub(super) migrated: bool,
}

/// Whether the task goes on after an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Serve,
    /// The machine is gone from this host.
    End,
}

/// Owner of a machine.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(super) host: Arc<Host>,
    pub(super) record: Record,
    pub(super) vm: Option<Arc<Vm>>,
    pub(super) events: Option<Events>,
    pub(super) hold: Option<Hold>,
    pub(super) paused: bool,
    pub(super) message: String,
    pub(super) relink_at: Option<Instant>,
    pub(super) kill_at: Option<Instant>,
    /// Whether nothing is left of it here.
    pub(super) gone: bool,
    view: watch::Sender<View>,
}

impl Owner {
    /// The owner and what others see of the machine.
    pub(crate) fn new(
        host: Arc<Host>,
        record: Record,
        vm: Option<Arc<Vm>>,
    ) -> (Self, watch::Receiver<View>) {
        let view = View {
            spec: Arc::new(record.spec.clone()),
            state: MachineState::Starting,
            message: String::new(),
            epoch: record.epoch,
            vm: vm.clone(),
            started_at: record.started_at,
            job: record.job.clone(),
        };
        let (view, seen) = watch::channel(view);
        let relink_at = vm.is_some().then(Instant::now);
        let kill_at = record.stopping.map(|grace| Instant::now() + grace);
        let owner = Self {
            host,
            record,
            vm,
            events: None,
            hold: None,
            paused: false,
            message: String::new(),
            relink_at,
            kill_at,
            gone: false,
            view,
        };
        owner.publish();
        (owner, seen)
    }

    /// Serves until the machine is gone from this host.
    pub(crate) async fn run(mut self, mut inbox: mpsc::Receiver<Order>) {
        loop {
            let vm = self.vm.clone();
            tokio::select! {
                biased;
                () = self.host.shutdown.cancelled() => return,
                event = half::next_event(&mut self.events) => {
                    self.event(event.map(|stamped| stamped.event)).await;
                }
                () = half::exited(vm.as_deref()) => self.exited().await,
                order = inbox.recv() => {
                    let Some(order) = order else { return };
                    if self.order(order).await == Next::End {
                        self.host.machine_gone(&self.record.spec.id);
                        return;
                    }
                }
                () = half::at(self.relink_at) => self.relink().await,
                () = half::at(self.kill_at) => self.kill().await,
            }
            self.publish();
        }
    }

    async fn order(&mut self, order: Order) -> Next {
        match order {
            Order::Start {
                spec,
                epoch,
                paused,
                reply,
            } => {
                let outcome = Box::pin(self.start(*spec, epoch, paused)).await;
                self.answer(reply, outcome);
                if self.gone {
                    return Next::End;
                }
            }
            Order::Stop {
                grace,
                epoch,
                reply,
            } => {
                let outcome = self.stop(grace, epoch).await;
                self.answer(reply, outcome);
            }
            Order::Pause { reply } => {
                let outcome = self.pause().await;
                self.answer(reply, outcome);
            }
            Order::Unpause { reply } => {
                let outcome = self.unpause().await;
                self.answer(reply, outcome);
            }
            Order::Forget { reply } => {
                let outcome = self.forget();
                return self.last_answer(reply, outcome);
            }
            Order::Hold { job, reply } => {
                let outcome = self.hold(job).await;
                self.answer(reply, outcome);
            }
            Order::Migrated { job } => self.migrated(&job),
            Order::Release { job } => self.release(&job),
            Order::Drop { process, reply } => {
                if self.record.place.process.as_ref() != Some(&process) {
                    let _ = reply.send(Ok(()));
                    return Next::Serve;
                }
                return self.leave(self.record.epoch.next(), reply).await;
            }
            Order::Expel { epoch, reply } => {
                let mine = self.record.epoch;
                if mine >= epoch {
                    let _ = reply.send(Ok(()));
                    return Next::Serve;
                }
                warn!(machine = %self.record.spec.id, %mine, %epoch, "machine was taken from this host: ended");
                return self.leave(epoch, reply).await;
            }
            Order::Keep { kept, reply } => {
                let (record, vm) = *kept;
                let outcome = self.keep(record, vm);
                self.answer(reply, outcome);
            }
        }
        Next::Serve
    }

    /// Ends what is left of a machine that is another host's from epoch `next` on.
    async fn leave(&mut self, next: Epoch, reply: oneshot::Sender<Outcome>) -> Next {
        let outcome = self.end_here(next).await;
        let ended = outcome.is_ok();
        self.answer(reply, outcome);
        if !ended {
            return Next::Serve;
        }
        // Nobody waits for the kernel to take the devices away.
        self.clear().await;
        Next::End
    }

    /// Published before the answer, so that whoever got it sees what it is about.
    fn answer<T>(&self, reply: oneshot::Sender<T>, outcome: T) {
        self.publish();
        // Whoever asked may be gone.
        let _ = reply.send(outcome);
    }

    fn last_answer(&self, reply: oneshot::Sender<Outcome>, outcome: Outcome) -> Next {
        let next = if outcome.is_ok() {
            Next::End
        } else {
            Next::Serve
        };
        if next == Next::End {
            self.host.machine_gone(&self.record.spec.id);
        }
        let _ = reply.send(outcome);
        next
    }

    async fn event(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Stop) => self.paused = true,
            Some(Event::Resume) => self.paused = false,
            Some(Event::Shutdown { guest, reason }) => {
                info!(machine = %self.record.spec.id, guest, reason, "guest powered off");
                self.end(false, &format!("powered off: {reason}")).await;
            }
            Some(Event::GuestPanicked) => "the guest panicked".clone_into(&mut self.message),
            Some(Event::BlockIoError { device, action }) => {
                self.message = format!("disk {device} failed, guest told: {action}");
            }
            Some(Event::Missed) => self.relink_at = Some(Instant::now()),
            // The connection ended; the process says for itself whether it did, too.
            None => {
                self.events = None;
                self.relink_at = Some(Instant::now() + RELINK_AFTER);
            }
            Some(
                Event::Migration(_)
                | Event::MigrationPass(_)
                | Event::Powerdown
                | Event::Reset
                | Event::Other(_),
            ) => {}
        }
    }

    /// Connects the monitor and asks for the state, which no event may have told.
    async fn relink(&mut self) {
        self.relink_at = None;
        let Some(vm) = self.vm.clone() else { return };
        match Box::pin(self.look(&vm)).await {
            Ok(RunState::Shutdown) => self.end(false, "powered off").await,
            Ok(status) => {
                self.paused = status != RunState::Running;
                self.message.clear();
            }
            // Alive and silent is not ended: its guest may run, so it is reported as before.
            Err(error) => {
                warn!(machine = %self.record.spec.id, %error, "qemu does not answer");
                "qemu does not answer".clone_into(&mut self.message);
                self.relink_at = Some(Instant::now() + RELINK_AFTER);
            }
        }
    }

    async fn look(&mut self, vm: &Vm) -> Result<RunState, QmpError> {
        let (qmp, events) = vm.events().await?;
        self.events = Some(events);
        if self.record.stopping.is_some() {
            qmp.system_powerdown().await?;
        }
        Ok(qmp.query_status().await?.status)
    }

    async fn kill(&mut self) {
        self.kill_at = None;
        self.end(false, "stopped").await;
    }

    /// Ends the QEMU of a machine that is off.
    async fn end(&mut self, crashed: bool, message: &str) {
        let Some(vm) = self.vm.take() else { return };
        if let Err(error) = vm.end(&self.host).await {
            warn!(machine = %self.record.spec.id, %error, "qemu could not be ended");
            self.vm = Some(vm);
            return;
        }
        self.ended(crashed, message.to_owned());
    }

    async fn exited(&mut self) {
        let Some(vm) = self.vm.take() else { return };
        let asked = self.record.stopping.is_some();
        let message = if asked {
            "stopped".to_owned()
        } else {
            format!("qemu ended: {}", vm.last_words())
        };
        vm::clean(&self.host, vm.place()).await;
        if !asked {
            warn!(machine = %self.record.spec.id, "qemu ended unasked");
        }
        self.ended(!asked, message);
    }

    fn ended(&mut self, crashed: bool, message: String) {
        self.events = None;
        self.kill_at = None;
        self.relink_at = None;
        // The identity stays: a half that retires this machine knows it by that.
        self.record.place = Place {
            process: self.record.place.process.take(),
            ..Place::default()
        };
        self.record.ended = Some(End { crashed, message });
        if let Err(error) = self.save() {
            warn!(machine = %self.record.spec.id, %error, "end of the machine not recorded");
        }
    }

    pub(super) fn save(&self) -> std::io::Result<()> {
        self.host
            .store
            .record_put(&self.record.spec.id, &self.record)
    }

    pub(super) fn publish(&self) {
        let next = View {
            spec: Arc::new(self.record.spec.clone()),
            state: self.state(),
            message: self.said(),
            epoch: self.record.epoch,
            vm: self.vm.clone(),
            started_at: self.record.started_at,
            job: self.record.job.clone(),
        };
        let changed = self.view.send_if_modified(|view| {
            let same = view.state == next.state
                && view.message == next.message
                && view.epoch == next.epoch
                && view.vm.is_some() == next.vm.is_some();
            *view = next;
            !same
        });
        if changed {
            self.host.changed();
        }
    }

    fn state(&self) -> MachineState {
        if self.hold.as_ref().is_some_and(|hold| hold.migrated) {
            return MachineState::Migrated;
        }
        match (&self.vm, &self.record.ended) {
            (None, Some(End { crashed: true, .. })) => MachineState::Crashed,
            (None, Some(End { crashed: false, .. })) => MachineState::Stopped,
            (None, None) => MachineState::Starting,
            (Some(_), _) if self.record.stopping.is_some() => MachineState::Stopping,
            // A held guest stops only to switch over, which is no pause of the user's.
            (Some(_), _) if self.paused && self.hold.is_none() => MachineState::Paused,
            (Some(_), _) => MachineState::Running,
        }
    }

    fn said(&self) -> String {
        match &self.record.ended {
            Some(end) if self.vm.is_none() => end.message.clone(),
            _ => self.message.clone(),
        }
    }
}
