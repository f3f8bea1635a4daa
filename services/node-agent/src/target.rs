//! Target half of a job: a paused QEMU that loads, and runs only by proof.
//!
//! The rules are `godwit_model::migration::target`; this task carries them out, strictly in their
//! order, and keeps the log. From the proof to the running guest there is one write to the disk and
//! one command to QEMU.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant as Clock;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use godwit_model::machine::MachineSpec;
use godwit_model::migration::fact::{TargetAddress, TargetFact};
use godwit_model::migration::target::{
    LoadStatus, Target, TargetEffect, TargetEvent, TargetState,
};
use godwit_model::{Epoch, JobId, MachineId};
use godwit_qemu::qmp::{MigrationInfo, MigrationStatus, RunState};
use godwit_qemu::{Event, Events, Qmp, QmpError, Role, Stamped, migrate};

use crate::half::{self, Command, Ends, Half, HalfError};
use crate::host::Host;
use crate::journal::{Log, Side};
use crate::machines::{Machine, Record};
use crate::metrics::Piece;
use crate::text::chain;
use crate::vm::{self, Place, Vm};

/// Handle of a target half.
pub(crate) type Handle = Half<Order, TargetFact>;

/// A command for a target half.
#[derive(Debug)]
pub(crate) enum Order {
    /// Start a paused copy of this machine.
    Prepare(Epoch, Box<MachineSpec>),
    /// Destroy it, for ever.
    Discard(Epoch),
    /// The source stopped complete; the epoch is the machine's from then on.
    Proof(godwit_model::migration::grant::Proof, Epoch),
}

/// One line of the log: all that a restarted agent needs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) half: Target,
    spec: Option<MachineSpec>,
    pub(crate) place: Place,
    /// Ownership epoch of the machine once it runs here.
    machine_epoch: Epoch,
    running_at_us: Option<u64>,
}

/// What this half's own helpers tell it.
#[derive(Debug)]
enum Note {
    Launched(Result<(Vm, TargetAddress), String>),
}

/// Owner of a target half.
#[derive(Debug)]
struct Owner {
    host: Arc<Host>,
    machine_id: MachineId,
    job: JobId,
    line: Line,
    log: Log,
    vm: Option<Arc<Vm>>,
    events: Option<Events>,
    notes: mpsc::Sender<Note>,
    launching: bool,
    /// Whether data arrives: a copy in use is never discarded for its age.
    loading: bool,
    look_at: Option<Instant>,
    retry: Option<(TargetEffect, Instant)>,
    trouble: String,
    facts: watch::Sender<TargetFact>,
}

/// Opens the half of `job`, from its log if there is one, and starts the task that owns it.
pub(crate) fn open(
    host: Arc<Host>,
    machine_id: MachineId,
    job: JobId,
) -> Result<Handle, HalfError> {
    let log = host.store.log_make(&machine_id, &job, Side::Target)?;
    let found: Option<Line> = log.last()?;
    let adopting = found.is_some();
    let line = found.unwrap_or_default();
    let (handle, Ends { commands, facts }) = Half::new(fact(&line, ""));
    let (notes, notes_in) = mpsc::channel(half::NOTES_MAX);
    let owner = Owner {
        host,
        machine_id,
        job,
        line,
        log,
        vm: None,
        events: None,
        notes,
        launching: false,
        loading: false,
        look_at: None,
        retry: None,
        trouble: String::new(),
        facts,
    };
    tokio::spawn(owner.run(commands, notes_in, adopting));
    Ok(handle)
}

impl Owner {
    async fn run(
        mut self,
        commands: mpsc::Receiver<Command<Order, TargetFact>>,
        notes: mpsc::Receiver<Note>,
        adopting: bool,
    ) {
        let served = async {
            if adopting {
                Box::pin(self.adopt()).await?;
            }
            self.serve(commands, notes).await
        };
        if let Err(error) = Box::pin(served).await {
            // As after a restart: what is on disk is what happened.
            warn!(job = %self.job, error = chain(&error), "target half starts over from its log");
            self.host.reopen(self.machine_id.clone(), self.job.clone(), Side::Target);
        }
    }

    async fn serve(
        &mut self,
        mut commands: mpsc::Receiver<Command<Order, TargetFact>>,
        mut notes: mpsc::Receiver<Note>,
    ) -> Result<(), HalfError> {
        loop {
            let vm = self.vm.clone();
            let due = self.line.half.next_deadline().filter(|_| !self.loading);
            let tick = due.map(|due| self.host.at(due));
            let idle = self.is_over().then(|| Instant::now() + half::LINGER);
            tokio::select! {
                biased;
                event = half::next_event(&mut self.events) => self.event(event).await?,
                command = commands.recv() => match command {
                    Some(command) => self.command(command).await?,
                    None => return Ok(()),
                },
                () = half::exited(vm.as_deref()) => self.exited().await?,
                Some(note) = notes.recv() => self.note(note).await?,
                () = half::at(tick) => self.feed(TargetEvent::Tick).await?,
                () = half::at(self.look_at) => self.look().await?,
                () = half::at(self.retry.map(|(_, due)| due)) => self.again().await?,
                () = half::at(idle) => {
                    self.host.half_gone(&self.machine_id, &self.job, Side::Target);
                    return Ok(());
                }
            }
        }
    }

    async fn command(&mut self, command: Command<Order, TargetFact>) -> Result<(), HalfError> {
        let Command { what, reply } = command;
        let event = match what {
            Order::Prepare(epoch, spec) => {
                self.line.spec.get_or_insert(*spec);
                TargetEvent::Prepare { epoch }
            }
            Order::Discard(epoch) => TargetEvent::Discard { epoch },
            Order::Proof(proof, epoch) => {
                self.line.machine_epoch = self.line.machine_epoch.max(epoch);
                TargetEvent::Proof(proof)
            }
        };
        let outcome = self.feed(event).await;
        let broken = matches!(outcome, Err(HalfError::Log(_)));
        let answer = match outcome {
            Ok(()) => Ok(self.facts.borrow().clone()),
            Err(error) => Err(error),
        };
        // Whoever asked may be gone; the log isn't.
        let _ = reply.send(answer);
        if broken { Err(HalfError::Closed) } else { Ok(()) }
    }

    /// Feeds the model, carries out what it says, and tells what is true then.
    async fn feed(&mut self, event: TargetEvent) -> Result<(), HalfError> {
        let mut queue = VecDeque::from([event]);
        while let Some(event) = queue.pop_front() {
            let before = self.line.half.state();
            let effects = self.line.half.handle(event, self.host.now())?;
            let after = self.line.half.state();
            if before != after {
                info!(job = %self.job, from = before.as_str(), to = after.as_str(), "target");
            }
            for effect in effects {
                queue.extend(Box::pin(self.perform(effect)).await?);
            }
        }
        self.publish();
        Ok(())
    }

    /// Carries one effect out; its outcome may be an event in turn.
    async fn perform(&mut self, effect: TargetEffect) -> Result<Option<TargetEvent>, HalfError> {
        let outcome = match effect {
            TargetEffect::Journal => {
                let took = self.log.append(&self.line).await?;
                self.host.metrics.fsync(took);
                if self.line.half.state() == TargetState::Continuing {
                    self.host.metrics.blackout(Piece::Journal, took);
                }
                return Ok(None);
            }
            TargetEffect::StartQemu => {
                self.launch();
                return Ok(None);
            }
            TargetEffect::Continue => match self.go_on().await {
                Ok(()) => return Ok(Some(TargetEvent::Continued)),
                Err(why) => Err(why),
            },
            TargetEffect::Announce => {
                self.announce();
                Ok(())
            }
            TargetEffect::KeepMachine => self.keep().await,
            TargetEffect::EndQemu => self.end().await,
        };
        match outcome {
            Ok(()) => self.trouble.clear(),
            Err(why) => {
                warn!(job = %self.job, ?effect, why, "not done");
                self.trouble = why;
                self.retry = Some((effect, Instant::now() + half::RETRY_AFTER));
            }
        }
        Ok(None)
    }

    async fn again(&mut self) -> Result<(), HalfError> {
        let Some((effect, _)) = self.retry.take() else { return Ok(()) };
        let wanted = match effect {
            TargetEffect::Continue => self.line.half.state() == TargetState::Continuing,
            TargetEffect::KeepMachine | TargetEffect::EndQemu => true,
            TargetEffect::Journal | TargetEffect::StartQemu | TargetEffect::Announce => false,
        };
        if !wanted {
            return Ok(());
        }
        match self.perform(effect).await? {
            Some(event) => self.feed(event).await,
            None => {
                self.publish();
                Ok(())
            }
        }
    }

    /// Starts QEMU in a task of its own, so that a discard needn't wait for it.
    fn launch(&mut self) {
        let Some(spec) = self.line.spec.clone() else { return };
        self.launching = true;
        let (host, notes) = (Arc::clone(&self.host), self.notes.clone());
        let owner = self.job.to_string();
        tokio::spawn(async move {
            let launched = launch(&host, &spec, &owner).await;
            // This half may have ended; then the next one finds the process by its place.
            let _ = notes.send(Note::Launched(launched)).await;
        });
    }

    async fn note(&mut self, note: Note) -> Result<(), HalfError> {
        let Note::Launched(launched) = note;
        self.launching = false;
        match launched {
            Ok((vm, address)) => {
                self.line.place = vm.place().clone();
                self.vm = Some(Arc::new(vm));
                self.feed(TargetEvent::Listening(address)).await?;
                self.look().await
            }
            Err(why) => self.feed(TargetEvent::PrepareFailed(why)).await,
        }
    }

    async fn qmp(&self) -> Result<Qmp, String> {
        let vm = self.vm.as_ref().ok_or_else(|| "no qemu".to_owned())?;
        vm.monitor().await.map_err(|error| chain(&error))
    }

    async fn go_on(&mut self) -> Result<(), String> {
        let began = Clock::now();
        let qmp = self.qmp().await?;
        migrate::continue_guest(&qmp).await.map_err(|error| chain(&error))?;
        self.host.metrics.blackout(Piece::Continue, began.elapsed());
        // QEMU tells of it before it answers, so the time of the event is there already.
        let now = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or_default();
        self.line.running_at_us = Some(self.resumed_at().await.unwrap_or(now));
        Ok(())
    }

    /// When the guest went on, by the events that have arrived.
    async fn resumed_at(&mut self) -> Option<u64> {
        let mut found = None;
        loop {
            let next = half::next_event(&mut self.events);
            match tokio::time::timeout(std::time::Duration::ZERO, next).await {
                Ok(Some(stamped)) if half::is_resume(&stamped) => {
                    found = Some(half::micros(&stamped));
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return found,
            }
        }
    }

    fn announce(&self) {
        let Some(vm) = self.vm.clone() else { return };
        let job = self.job.clone();
        tokio::spawn(async move {
            let announced = match vm.monitor().await {
                Ok(qmp) => migrate::announce(&qmp).await.map_err(|error| chain(&error)),
                Err(error) => Err(chain(&error)),
            };
            if let Err(why) = announced {
                warn!(%job, why, "guest not announced");
            }
        });
    }

    async fn keep(&mut self) -> Result<(), String> {
        let (Some(spec), Some(vm)) = (self.line.spec.clone(), self.vm.clone()) else {
            return Err("no qemu".to_owned());
        };
        let started = vm.identity().started_at();
        let record = Record {
            place: vm.place().clone(),
            started_at: started.and_then(|at| jiff::Timestamp::try_from(at).ok()),
            ..Record::new(spec, self.line.machine_epoch)
        };
        self.host.keep(record, Arc::clone(&vm)).await.map_err(|error| chain(&error))?;
        // From here on it is a machine like any other.
        self.vm = None;
        self.events = None;
        Ok(())
    }

    async fn end(&mut self) -> Result<(), String> {
        self.events = None;
        if let Some(vm) = self.vm.clone() {
            vm.end(&self.host).await.map_err(|error| chain(&error))?;
            self.vm = None;
        }
        Ok(())
    }

    async fn event(&mut self, event: Option<Stamped>) -> Result<(), HalfError> {
        let Some(stamped) = event else {
            self.events = None;
            self.look_at = Some(Instant::now() + half::RETRY_AFTER);
            return Ok(());
        };
        match &stamped.event {
            Event::Migration(MigrationStatus::Completed) => {
                self.feed(TargetEvent::Load(LoadStatus::Completed)).await
            }
            Event::Migration(MigrationStatus::Failed) => {
                let why = "the copy could not be loaded".to_owned();
                self.feed(TargetEvent::Load(LoadStatus::Failed(why))).await
            }
            Event::Migration(MigrationStatus::Active) => {
                self.loading = true;
                Ok(())
            }
            Event::Resume => {
                self.line.running_at_us = Some(half::micros(&stamped));
                self.feed(TargetEvent::Load(LoadStatus::Running)).await
            }
            Event::Missed => self.look().await,
            Event::Migration(_)
            | Event::MigrationPass(_)
            | Event::Stop
            | Event::Shutdown { .. }
            | Event::Powerdown
            | Event::Reset
            | Event::GuestPanicked
            | Event::BlockIoError { .. }
            | Event::Other(_) => Ok(()),
        }
    }

    /// Connects to QEMU and asks for what no event may have told.
    async fn look(&mut self) -> Result<(), HalfError> {
        self.look_at = None;
        let Some(vm) = self.vm.clone() else { return Ok(()) };
        match self.link(&vm).await {
            Ok(status) => self.feed(TargetEvent::Load(status)).await,
            Err(error) => {
                warn!(job = %self.job, %error, "qemu does not answer");
                self.look_at = Some(Instant::now() + half::RETRY_AFTER);
                Ok(())
            }
        }
    }

    async fn link(&mut self, vm: &Vm) -> Result<LoadStatus, QmpError> {
        let (qmp, events) = vm.events().await?;
        self.events = Some(events);
        let (info, machine) = tokio::join!(qmp.query_migrate(), qmp.query_status());
        Ok(load_status(&info?, machine?.status))
    }

    async fn exited(&mut self) -> Result<(), HalfError> {
        self.events = None;
        if let Some(vm) = self.vm.take() {
            info!(job = %self.job, said = vm.last_words(), "incoming qemu ended");
            vm::clean(&self.host, vm.place()).await;
        }
        self.feed(TargetEvent::Gone).await
    }

    /// After a restart: finds out what became of the QEMU of this job, and feeds the model that.
    async fn adopt(&mut self) -> Result<(), HalfError> {
        let state = self.line.half.state();
        if state == TargetState::Running {
            return Ok(());
        }
        // What the machine's own task has adopted is shared, since QEMU serves one connection.
        let kept = self.host.machine(&self.machine_id).map(|machine: Machine| machine.view());
        let kept = kept.and_then(|view| view.vm);
        let mine = self.line.place.process.as_ref();
        let kept = kept.filter(|vm| Some(vm.identity()) == mine);
        let unknown = |error| not_now(&chain(&error));
        self.vm = match kept {
            Some(vm) => Some(vm),
            None => Vm::adopt(&self.host, self.line.place.clone()).map_err(unknown)?.map(Arc::new),
        };
        if let Some(vm) = self.vm.clone() {
            if matches!(state, TargetState::Discarded | TargetState::Lost { .. }) {
                // It has to go, whatever it says.
                return self.feed(TargetEvent::Adopted(LoadStatus::Active)).await;
            }
            let status = self.link(&vm).await.map_err(|error| not_now(&chain(&error)))?;
            self.loading = status == LoadStatus::Active;
            return self.feed(TargetEvent::Adopted(status)).await;
        }
        if self.line.place.process.is_none() {
            let owner = self.job.to_string();
            vm::end_unfinished(&self.host, &self.machine_id, &owner).await.map_err(unknown)?;
        } else if self.line.place.directory.exists() {
            vm::clean(&self.host, &self.line.place).await;
        }
        match state {
            TargetState::Preparing => self.feed(TargetEvent::Adopted(LoadStatus::Active)).await,
            TargetState::Prepared | TargetState::Loaded | TargetState::Continuing => {
                self.feed(TargetEvent::Gone).await
            }
            TargetState::Absent
            | TargetState::Running
            | TargetState::Discarded
            | TargetState::Lost { .. } => Ok(()),
        }
    }

    fn is_over(&self) -> bool {
        let ended = match self.line.half.state() {
            TargetState::Absent
            | TargetState::Running
            | TargetState::Discarded
            | TargetState::Lost { .. } => true,
            TargetState::Preparing
            | TargetState::Prepared
            | TargetState::Loaded
            | TargetState::Continuing => false,
        };
        ended && self.retry.is_none() && !self.launching
    }

    fn publish(&self) {
        let next = fact(&self.line, &self.trouble);
        let changed = self.facts.send_if_modified(|fact| {
            let changed = *fact != next;
            *fact = next;
            changed
        });
        if changed {
            self.host.changed();
        }
    }
}

/// Starts a paused QEMU and lets it listen.
async fn launch(
    host: &Host,
    spec: &MachineSpec,
    owner: &str,
) -> Result<(Vm, TargetAddress), String> {
    let vm = Vm::launch(host, spec, Role::Incoming, owner).await.map_err(|error| chain(&error))?;
    let address = host.config.migration_address;
    let listening = match vm.monitor().await {
        Ok(qmp) => migrate::prepare_incoming(&qmp, address).await.map_err(|e| chain(&e)),
        Err(error) => Err(chain(&error)),
    };
    match listening {
        Ok(incoming) => {
            let address = TargetAddress {
                uri: incoming.uri,
                address: address.to_string(),
                ports: vec![incoming.port],
            };
            Ok((vm, address))
        }
        Err(why) => {
            vm.end(host).await.map_err(|error| chain(&error))?;
            Err(why)
        }
    }
}

fn not_now(why: &str) -> HalfError {
    HalfError::NotNow(why.to_owned())
}

fn fact(line: &Line, trouble: &str) -> TargetFact {
    let reason = match line.half.reason() {
        "" => trouble,
        reason => reason,
    };
    TargetFact {
        state: line.half.state(),
        reason: reason.to_owned(),
        address: line.half.address().cloned(),
        running_at_us: line.running_at_us,
    }
}

fn load_status(info: &MigrationInfo, runstate: RunState) -> LoadStatus {
    match (info.status, runstate) {
        (_, RunState::Running) => LoadStatus::Running,
        (MigrationStatus::Completed, _) => LoadStatus::Completed,
        (MigrationStatus::Failed, _) => {
            let why = info.error_desc.clone();
            LoadStatus::Failed(why.unwrap_or_else(|| "the copy could not be loaded".to_owned()))
        }
        _ => LoadStatus::Active,
    }
}
