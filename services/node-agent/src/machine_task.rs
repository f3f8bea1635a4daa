//! The task that owns one machine: orders and QEMU's events in, record and view out.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use godwit_model::machine::MachineSpec;
use godwit_model::{Epoch, JobId};
use godwit_qemu::qmp::RunState;
use godwit_qemu::{Event, Events, Role};

use crate::host::Host;
use crate::machines::{End, MachineError, MachineState, Order, Outcome, Record, View};
use crate::vm::{self, Place, Vm};

/// Pause before the monitor of a living QEMU is connected again.
const RELINK_AFTER: Duration = Duration::from_millis(500);

/// Who holds the guest's CPUs.
#[derive(Debug, Clone)]
struct Hold {
    job: JobId,
    /// Whether the guest was left stopped complete.
    migrated: bool,
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
    host: Arc<Host>,
    record: Record,
    vm: Option<Arc<Vm>>,
    events: Option<Events>,
    hold: Option<Hold>,
    paused: bool,
    message: String,
    relink_at: Option<Instant>,
    kill_at: Option<Instant>,
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
                event = next_event(&mut self.events) => self.event(event).await,
                () = exited(vm.as_deref()) => self.exited().await,
                order = inbox.recv() => {
                    let Some(order) = order else { return };
                    if self.order(order).await == Next::End {
                        self.host.machine_gone(&self.record.spec.id);
                        return;
                    }
                }
                () = at(self.relink_at) => self.relink().await,
                () = at(self.kill_at) => self.kill().await,
            }
            self.publish();
        }
    }

    async fn order(&mut self, order: Order) -> Next {
        match order {
            Order::Start { spec, epoch, paused, reply } => {
                let outcome = Box::pin(self.start(*spec, epoch, paused)).await;
                let failed = outcome.is_err();
                self.answer(reply, outcome);
                // A machine that never was here isn't kept for a start that failed.
                if failed && self.vm.is_none() && self.record.started_at.is_none() {
                    return Next::End;
                }
            }
            Order::Stop { grace, epoch, reply } => {
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
                let outcome = self.remove().await;
                return self.last_answer(reply, outcome);
            }
            Order::Keep { kept, reply } => {
                let (record, vm) = *kept;
                let outcome = self.keep(record, vm);
                self.answer(reply, outcome);
            }
        }
        Next::Serve
    }

    /// Published before the answer, so that whoever got it sees what it is about.
    fn answer<T>(&self, reply: tokio::sync::oneshot::Sender<T>, outcome: T) {
        self.publish();
        // Whoever asked may be gone.
        let _ = reply.send(outcome);
    }

    fn last_answer(
        &self,
        reply: tokio::sync::oneshot::Sender<Outcome>,
        outcome: Outcome,
    ) -> Next {
        let next = if outcome.is_ok() { Next::End } else { Next::Serve };
        if next == Next::End {
            self.host.machine_gone(&self.record.spec.id);
        }
        let _ = reply.send(outcome);
        next
    }

    async fn start(&mut self, spec: MachineSpec, epoch: Epoch, paused: bool) -> Outcome {
        if epoch < self.record.epoch {
            return Err(MachineError::Fenced { mine: epoch, seen: self.record.epoch });
        }
        if self.hold.as_ref().is_some_and(|hold| hold.migrated) {
            return Err(not_now("the machine was migrated away"));
        }
        if let (None, Some(hold)) = (&self.vm, &self.hold) {
            return Err(not_now(&format!("migration {} is being undone", hold.job)));
        }
        if self.vm.is_some() {
            if self.record.spec != spec {
                return Err(not_now("the machine runs with another spec"));
            }
            if self.record.epoch != epoch {
                self.record.epoch = epoch;
                self.save()?;
            }
            return Ok(());
        }
        let started_before = self.record.started_at;
        self.record = Record { started_at: started_before, ..Record::new(spec, epoch) };
        self.message.clear();
        // On disk before there is a process: after a crash it is looked for.
        self.save()?;
        self.publish();
        match Vm::launch(&self.host, &self.record.spec, Role::Start, "").await {
            Ok(vm) => self.started(Arc::new(vm), paused).await,
            Err(error) => {
                let message = crate::text::chain(&error);
                self.record.ended = Some(End { crashed: true, message });
                if started_before.is_none() {
                    self.host.store.record_remove(&self.record.spec.id)?;
                }
                Err(error.into())
            }
        }
    }

    async fn started(&mut self, vm: Arc<Vm>, paused: bool) -> Outcome {
        let (qmp, events) = vm.events().await?;
        self.record.place = vm.place().clone();
        self.record.started_at = Some(Timestamp::now());
        self.vm = Some(vm);
        self.events = Some(events);
        self.paused = true;
        // The identity is on disk before the guest runs.
        self.save()?;
        if !paused {
            qmp.cont().await?;
            self.paused = false;
        }
        info!(machine = %self.record.spec.id, paused, "machine started");
        Ok(())
    }

    async fn stop(&mut self, grace: Duration, epoch: Epoch) -> Outcome {
        if epoch < self.record.epoch {
            return Err(MachineError::Fenced { mine: epoch, seen: self.record.epoch });
        }
        if self.hold.as_ref().is_some_and(|hold| hold.migrated) {
            return Err(not_now("the machine was migrated away"));
        }
        let Some(vm) = self.vm.clone() else { return Ok(()) };
        self.record.epoch = epoch;
        self.record.stopping = Some(grace);
        self.save()?;
        let due = Instant::now() + grace;
        self.kill_at = Some(self.kill_at.map_or(due, |earlier| earlier.min(due)));
        if !grace.is_zero() {
            // Not a reason to fail: the guest may be unable to listen, and is killed then.
            let pressed = match vm.monitor().await {
                Ok(qmp) => qmp.system_powerdown().await,
                Err(error) => Err(error),
            };
            if let Err(error) = pressed {
                warn!(machine = %self.record.spec.id, %error, "power button not pressed");
            }
        }
        Ok(())
    }

    async fn pause(&mut self) -> Outcome {
        let vm = self.free()?;
        vm.monitor().await?.stop().await?;
        self.paused = true;
        Ok(())
    }

    async fn unpause(&mut self) -> Outcome {
        let vm = self.free()?;
        let qmp = vm.monitor().await?;
        match qmp.query_status().await?.status {
            RunState::Running => {}
            RunState::Paused | RunState::PreLaunch | RunState::IoError => qmp.cont().await?,
            // Above all a copy that was migrated away, or one that is being loaded.
            other @ (RunState::Debug
            | RunState::InMigrate
            | RunState::InternalError
            | RunState::PostMigrate
            | RunState::FinishMigrate
            | RunState::RestoreVm
            | RunState::SaveVm
            | RunState::Shutdown
            | RunState::Suspended
            | RunState::Watchdog
            | RunState::GuestPanicked
            | RunState::Unknown) => {
                return Err(not_now(&format!("the guest cannot go on from {other:?}")));
            }
        }
        self.paused = false;
        Ok(())
    }

    /// The QEMU, when its CPUs are this task's to command.
    fn free(&self) -> Result<Arc<Vm>, MachineError> {
        if let Some(hold) = &self.hold {
            return Err(not_now(&format!("migration {} is under way", hold.job)));
        }
        self.vm.clone().ok_or_else(|| not_now("the machine does not run"))
    }

    fn forget(&mut self) -> Outcome {
        if self.vm.is_some() {
            return Err(not_now("the machine still runs"));
        }
        Ok(self.host.store.record_remove(&self.record.spec.id)?)
    }

    async fn hold(&mut self, job: JobId) -> Result<Arc<Vm>, MachineError> {
        if self.hold.as_ref().is_some_and(|hold| hold.job == job) {
            return self.vm.clone().ok_or_else(|| not_now("the machine does not run"));
        }
        let vm = self.free()?;
        // A half that is adopted finds its guest in any state; a new one needs a running guest.
        if self.record.job.as_ref() != Some(&job) {
            let status = vm.monitor().await?.query_status().await?.status;
            if status != RunState::Running || self.record.stopping.is_some() {
                return Err(not_now(&format!("the guest is {status:?}, not running")));
            }
            self.record.job = Some(job.clone());
            self.save()?;
        }
        self.hold = Some(Hold { job, migrated: false });
        Ok(vm)
    }

    fn migrated(&mut self, job: &JobId) {
        let mine = match &self.hold {
            Some(hold) => hold.job == *job,
            // After a restart its QEMU may be gone, so that there is nothing to hold.
            None => self.record.job.as_ref() == Some(job),
        };
        if mine {
            self.hold = Some(Hold { job: job.clone(), migrated: true });
        }
    }

    fn release(&mut self, job: &JobId) {
        if self.hold.as_ref().is_some_and(|hold| hold.job == *job) {
            self.hold = None;
            // QEMU continued the guest by itself, and its events may have been missed.
            self.relink_at = self.vm.is_some().then(Instant::now);
        }
    }

    async fn remove(&mut self) -> Outcome {
        match self.vm.take() {
            Some(vm) => vm.end(&self.host).await?,
            None => vm::clean(&self.host, &self.record.place).await,
        }
        self.host.store.record_remove(&self.record.spec.id)?;
        info!(machine = %self.record.spec.id, "machine removed from this host");
        Ok(())
    }

    fn keep(&mut self, record: Record, vm: Arc<Vm>) -> Outcome {
        if let Some(mine) = &self.vm {
            if mine.identity() != vm.identity() {
                return Err(not_now("another process of this machine runs here"));
            }
            return Ok(());
        }
        self.host.store.record_put(&record.spec.id, &record)?;
        self.record = record;
        self.vm = Some(vm);
        self.hold = None;
        self.paused = false;
        self.message.clear();
        self.relink_at = Some(Instant::now());
        Ok(())
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

    async fn look(&mut self, vm: &Vm) -> Result<RunState, godwit_qemu::QmpError> {
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
        let message =
            if asked { "stopped".to_owned() } else { format!("qemu ended: {}", vm.last_words()) };
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
        self.record.place = Place { process: self.record.place.process.take(), ..Place::default() };
        self.record.ended = Some(End { crashed, message });
        if let Err(error) = self.save() {
            warn!(machine = %self.record.spec.id, %error, "end of the machine not recorded");
        }
    }

    fn save(&self) -> std::io::Result<()> {
        self.host.store.record_put(&self.record.spec.id, &self.record)
    }

    fn publish(&self) {
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

fn not_now(why: &str) -> MachineError {
    MachineError::NotNow(why.to_owned())
}

/// The next event; waits for ever where there is no connection.
async fn next_event(events: &mut Option<Events>) -> Option<Event> {
    match events {
        Some(events) => events.next().await.map(|stamped| stamped.event),
        None => std::future::pending().await,
    }
}

async fn exited(vm: Option<&Vm>) {
    match vm {
        Some(vm) => vm.exited().await,
        None => std::future::pending().await,
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

