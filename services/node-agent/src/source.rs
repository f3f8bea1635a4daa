//! Source half of a job: QEMU's events and the coordinator's commands in, the model's effects out.
//!
//! The rules are `godwit_model::migration::source`; this task only carries them out, strictly in
//! their order, and keeps the log. One exception to the order is the model's own: the proof may
//! leave before the log says so, since it leaves in a task of its own that repeats it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use godwit_model::migration::fact::{Progress, SourceFact};
use godwit_model::migration::grant::{ProcessIdentity, Proof};
use godwit_model::migration::source::{
    CopyStatus, Source, SourceEffect, SourceEvent, SourceState,
};
use godwit_model::{BytesPerSecond, Epoch, JobId, MachineId, NodeName};
use godwit_qemu::process::Identity;
use godwit_qemu::qmp::{MigrationInfo, MigrationStatus, RunState};
use godwit_qemu::{Event, Events, Limits, Qmp, QmpError, Stamped, migrate};
use godwit_rpc::Channel;

use crate::half::{self, Command, Ends, Half, HalfError};
use crate::host::Host;
use crate::journal::{Log, Side};
use crate::machines::Machine;
use crate::metrics::CopyLabels;
use crate::proof;
use crate::text::chain;
use crate::vm::Vm;

/// Handle of a source half.
pub(crate) type Handle = Half<Order, SourceFact>;

/// A command for a source half.
#[derive(Debug)]
pub(crate) struct Order {
    /// What it is to the model.
    pub(crate) event: SourceEvent,
    /// Where to copy to; only with a start.
    pub(crate) copy: Option<CopyOrder>,
}

/// Where a copy goes and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CopyOrder {
    /// The target's node.
    pub(crate) node: NodeName,
    /// The target's QEMU.
    pub(crate) uri: String,
    /// The target's agent, for the proof.
    pub(crate) agent: String,
    /// Bytes per second; 0 is unlimited.
    pub(crate) bandwidth: u64,
    /// Longest stop that QEMU may plan for.
    pub(crate) downtime: Duration,
    /// Whether QEMU may slow the guest down.
    pub(crate) auto_converge: bool,
}

/// One line of the log: all that a restarted agent needs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) half: Source,
    copy: Option<CopyOrder>,
    /// The QEMU that is copied.
    pub(crate) process: Option<Identity>,
    /// Ownership epoch of the machine here.
    machine_epoch: Epoch,
    stopped_at_us: Option<u64>,
    completed_at_us: Option<u64>,
    progress: Progress,
}

/// What this half's own helpers tell it.
#[derive(Debug)]
enum Note {
    Polled(Box<Result<(MigrationInfo, RunState), QmpError>>),
    Proof(proof::Outcome),
}

/// Owner of a source half.
#[derive(Debug)]
struct Owner {
    host: Arc<Host>,
    machine_id: MachineId,
    job: JobId,
    line: Line,
    log: Log,
    machine: Option<Machine>,
    vm: Option<Arc<Vm>>,
    events: Option<Events>,
    labels: Option<CopyLabels>,
    peer: Option<Channel>,
    sender: Option<JoinHandle<()>>,
    notes: mpsc::Sender<Note>,
    /// Whether `migrate` was given to this QEMU for this job, so that its status is this job's.
    begun: bool,
    poll_at: Option<Instant>,
    /// Whether QEMU was asked and hasn't answered.
    polling: bool,
    retry: Option<(SourceEffect, Instant)>,
    facts: watch::Sender<SourceFact>,
}

/// Opens the half of `job`, from its log if there is one, and starts the task that owns it.
pub(crate) fn open(
    host: Arc<Host>,
    machine_id: MachineId,
    job: JobId,
) -> Result<Handle, HalfError> {
    let log = host.store.log_make(&machine_id, &job, Side::Source)?;
    let found: Option<Line> = log.last()?;
    let adopting = found.is_some();
    let line = found.unwrap_or_default();
    let (handle, Ends { commands, facts }) = Half::new(fact(&line));
    let (notes, notes_in) = mpsc::channel(half::NOTES_MAX);
    let owner = Owner {
        host,
        machine_id,
        job,
        line,
        log,
        machine: None,
        vm: None,
        events: None,
        labels: None,
        peer: None,
        sender: None,
        notes,
        begun: false,
        poll_at: None,
        polling: false,
        retry: None,
        facts,
    };
    tokio::spawn(owner.run(commands, notes_in, adopting));
    Ok(handle)
}

impl Owner {
    async fn run(
        mut self,
        commands: mpsc::Receiver<Command<Order, SourceFact>>,
        notes: mpsc::Receiver<Note>,
        adopting: bool,
    ) {
        let served = async {
            if adopting {
                Box::pin(self.adopt()).await?;
            }
            self.serve(commands, notes).await
        };
        let ended = Box::pin(served).await;
        if let Some(sender) = self.sender.take() {
            sender.abort();
        }
        if let Err(error) = ended {
            // As after a restart: what is on disk is what happened.
            warn!(job = %self.job, error = chain(&error), "source half starts over from its log");
            self.host.reopen(self.machine_id.clone(), self.job.clone(), Side::Source);
        }
    }

    async fn serve(
        &mut self,
        mut commands: mpsc::Receiver<Command<Order, SourceFact>>,
        mut notes: mpsc::Receiver<Note>,
    ) -> Result<(), HalfError> {
        loop {
            let vm = self.vm.clone();
            let tick = self.line.half.next_deadline().map(|due| self.host.at(due));
            let idle = self.is_over().then(|| Instant::now() + half::LINGER);
            tokio::select! {
                biased;
                event = half::next_event(&mut self.events) => self.event(event).await?,
                () = half::exited(vm.as_deref()) => self.exited().await?,
                command = commands.recv() => match command {
                    Some(command) => self.command(command).await?,
                    None => return Ok(()),
                },
                Some(note) = notes.recv() => self.note(note).await?,
                () = half::at(tick) => self.feed(SourceEvent::Tick).await?,
                () = half::at(self.poll_at) => self.poll(),
                () = half::at(self.retry.map(|(_, due)| due)) => self.again().await?,
                () = half::at(idle) => {
                    self.host.half_gone(&self.machine_id, &self.job, Side::Source);
                    return Ok(());
                }
            }
        }
    }

    async fn command(&mut self, command: Command<Order, SourceFact>) -> Result<(), HalfError> {
        let Command { what: Order { event, copy }, reply } = command;
        let outcome = match self.prepare(copy).await {
            Ok(()) => self.feed(event).await,
            Err(error) => Err(error),
        };
        if self.line.half.state() == SourceState::Absent {
            // Refused before it began: the machine is nobody's.
            self.let_go().await;
        }
        let broken = matches!(outcome, Err(HalfError::Log(_)));
        let answer = match outcome {
            Ok(()) => Ok(self.facts.borrow().clone()),
            Err(error) => Err(error),
        };
        // Whoever asked may be gone; the log isn't.
        let _ = reply.send(answer);
        if broken { Err(HalfError::Closed) } else { Ok(()) }
    }

    /// Takes hold of the machine before the model is told to start a copy of it.
    async fn prepare(&mut self, copy: Option<CopyOrder>) -> Result<(), HalfError> {
        let Some(copy) = copy else { return Ok(()) };
        if self.line.half.state() != SourceState::Absent {
            return Ok(());
        }
        let machine = self.host.machine(&self.machine_id);
        let machine = machine.ok_or_else(|| not_now("the machine is not on this host"))?;
        let vm = machine.hold(&self.job).await.map_err(|error| not_now(&chain(&error)))?;
        self.line.machine_epoch = machine.view().epoch;
        self.line.process = Some(vm.identity().clone());
        self.line.copy = Some(copy);
        self.take(machine);
        self.vm = Some(vm);
        self.dial();
        Ok(())
    }

    fn take(&mut self, machine: Machine) {
        self.labels = Some(CopyLabels::new(&machine.view().spec, &self.host.config.node));
        self.machine = Some(machine);
    }

    /// Brings the connection to the target's agent up, so that the proof finds it warm.
    fn dial(&mut self) {
        let Some(copy) = &self.line.copy else { return };
        match self.host.dial(&copy.agent) {
            Ok(channel) => {
                self.peer = Some(channel.clone());
                let (job, node) = (self.job.clone(), copy.node.clone());
                tokio::spawn(async move {
                    if let Err(error) = godwit_rpc::client::warm(channel).await {
                        warn!(%job, %node, %error, "target's agent does not answer yet");
                    }
                });
            }
            Err(error) => warn!(job = %self.job, error = chain(&error), "no way to the target"),
        }
    }

    /// Feeds the model, carries out what it says, and tells what is true then.
    async fn feed(&mut self, event: SourceEvent) -> Result<(), HalfError> {
        let mut queue = VecDeque::from([event]);
        while let Some(event) = queue.pop_front() {
            let before = self.line.half.state();
            let effects = self.line.half.handle(event, self.host.now())?;
            let after = self.line.half.state();
            if before != after {
                info!(job = %self.job, from = before.as_str(), to = after.as_str(), "source");
            }
            for effect in effects {
                queue.extend(Box::pin(self.perform(effect)).await?);
            }
        }
        self.settle().await;
        self.publish();
        Ok(())
    }

    /// Carries one effect out; its outcome may be an event in turn.
    async fn perform(&mut self, effect: SourceEffect) -> Result<Option<SourceEvent>, HalfError> {
        let outcome = match effect {
            SourceEffect::Journal => {
                let took = self.log.append(&self.line).await?;
                self.host.metrics.fsync(took);
                return Ok(None);
            }
            SourceEffect::SendProof => {
                self.send_proof();
                return Ok(None);
            }
            SourceEffect::BeginCopy => return Ok(self.begin().await),
            SourceEffect::ContinueSwitchover => match self.qmp().await {
                // Refused when the copy has ended meanwhile, of which there is an event.
                Ok(qmp) => migrate::continue_switchover(&qmp).await.map_err(|e| chain(&e)),
                Err(error) => Err(error),
            },
            SourceEffect::CancelCopy => match self.qmp().await {
                Ok(qmp) => migrate::cancel(&qmp).await.map_err(|e| chain(&e)),
                Err(error) => Err(error),
            },
            SourceEffect::ResumeGuest => self.resume().await,
            SourceEffect::EndQemu => {
                // With the machine, in the next effect: its own task ends it.
                self.vm = None;
                self.events = None;
                Ok(())
            }
            SourceEffect::DropMachine => self.drop_machine().await,
        };
        if let Err(why) = outcome {
            warn!(job = %self.job, ?effect, why, "not done");
            self.retry = Some((effect, Instant::now() + half::RETRY_AFTER));
        }
        Ok(None)
    }

    async fn again(&mut self) -> Result<(), HalfError> {
        let Some((effect, _)) = self.retry.take() else { return Ok(()) };
        let wanted = matches!(
            (effect, self.line.half.state()),
            (
                SourceEffect::CancelCopy | SourceEffect::ContinueSwitchover,
                SourceState::Copying | SourceState::Switching,
            )
            | (SourceEffect::ResumeGuest, SourceState::Resumed)
            | (SourceEffect::DropMachine, SourceState::Retired)
        );
        if wanted {
            self.perform(effect).await?;
            self.settle().await;
        }
        Ok(())
    }

    async fn qmp(&self) -> Result<Qmp, String> {
        let vm = self.vm.as_ref().ok_or_else(|| "no qemu".to_owned())?;
        vm.monitor().await.map_err(|error| chain(&error))
    }

    async fn begin(&mut self) -> Option<SourceEvent> {
        let failed = |why: String| Some(SourceEvent::Copy(CopyStatus::Failed(why)));
        let (Some(copy), Some(vm)) = (self.line.copy.clone(), self.vm.clone()) else {
            return failed("the machine is not on this host".to_owned());
        };
        // Listening first: an event that comes before the answer is not lost.
        let qmp = match vm.events().await {
            Ok((qmp, events)) => {
                self.events = Some(events);
                qmp
            }
            Err(error) => return failed(chain(&error)),
        };
        let limits = Limits {
            bandwidth: BytesPerSecond(copy.bandwidth),
            downtime: copy.downtime,
            auto_converge: copy.auto_converge,
        };
        let begun = migrate::begin(&qmp, &copy.uri, limits).await;
        self.poll_at = Some(Instant::now() + half::POLL_EVERY);
        match begun {
            Ok(()) => {}
            // The next poll is answered after it, and says whether it began.
            Err(migrate::MigrateError::Qmp(error)) if error.is_unknown() => {
                warn!(job = %self.job, %error, "unknown whether the copy began");
            }
            Err(error) => return failed(chain(&error)),
        }
        self.begun = true;
        None
    }

    async fn resume(&mut self) -> Result<(), String> {
        let qmp = self.qmp().await?;
        migrate::resume_source(&qmp).await.map_err(|error| chain(&error))?;
        if let Err(error) = migrate::announce(&qmp).await {
            warn!(job = %self.job, %error, "resumed guest not announced");
        }
        Ok(())
    }

    async fn drop_machine(&mut self) -> Result<(), String> {
        let Some(process) = self.line.process.clone() else { return Ok(()) };
        let machine = self.machine.clone().or_else(|| self.host.machine(&self.machine_id));
        match machine {
            Some(machine) => machine.remove(process).await.map_err(|error| chain(&error)),
            None => Ok(()),
        }
    }

    /// Tells the machine what this half needs of it.
    async fn settle(&mut self) {
        let state = self.line.half.state();
        match state {
            SourceState::Completed => {
                if let Some(machine) = &self.machine {
                    machine.migrated(&self.job).await;
                }
            }
            SourceState::Resumed | SourceState::Lost if self.retry.is_none() => {
                self.let_go().await;
            }
            SourceState::Absent
            | SourceState::Copying
            | SourceState::Switching
            | SourceState::Resumed
            | SourceState::Retired
            | SourceState::Lost => {}
        }
        if !self.is_copying() {
            self.poll_at = None;
        }
        if !matches!(state, SourceState::Completed)
            && let Some(sender) = self.sender.take()
        {
            sender.abort();
        }
    }

    async fn let_go(&mut self) {
        if let Some(machine) = self.machine.take() {
            machine.release(&self.job).await;
        }
        self.vm = None;
        self.events = None;
    }

    fn send_proof(&mut self) {
        if self.sender.as_ref().is_some_and(|sender| !sender.is_finished()) {
            return;
        }
        if self.peer.is_none() {
            self.dial();
        }
        let (Some(process), Some(peer)) = (&self.line.process, self.peer.clone()) else {
            warn!(job = %self.job, "no way to send the proof; the coordinator has to undo");
            return;
        };
        let proof = Proof {
            machine: self.machine_id.clone(),
            job: self.job.clone(),
            source: self.host.config.node.clone(),
            process: ProcessIdentity {
                pid: process.pid,
                start_ticks: process.start_ticks,
                boot_id: process.boot_id.clone(),
            },
        };
        let mut wire = godwit_rpc::convert::proof_to_wire(&proof, self.line.half.epoch());
        wire.machine_epoch = self.line.machine_epoch.next().0;
        let (notes, metrics) = (self.notes.clone(), self.host.metrics.clone());
        self.sender = Some(tokio::spawn(async move {
            let outcome = proof::deliver(peer, wire, &metrics).await;
            // This half may have ended.
            let _ = notes.send(Note::Proof(outcome)).await;
        }));
    }

    async fn event(&mut self, event: Option<Stamped>) -> Result<(), HalfError> {
        let Some(stamped) = event else {
            self.events = None;
            self.poll_at = Some(Instant::now());
            return Ok(());
        };
        match &stamped.event {
            Event::Migration(status) => {
                if *status == MigrationStatus::Completed {
                    self.line.completed_at_us = Some(half::micros(&stamped));
                }
                let status = self.status(*status).await;
                self.feed(SourceEvent::Copy(status)).await?;
            }
            Event::MigrationPass(pass) => {
                self.line.progress.passes = u32::try_from(*pass).unwrap_or(u32::MAX);
                self.poll();
            }
            Event::Stop if self.is_copying() => {
                self.line.stopped_at_us = Some(half::micros(&stamped));
                self.publish();
            }
            Event::Missed => self.poll_at = Some(Instant::now()),
            Event::Stop
            | Event::Resume
            | Event::Shutdown { .. }
            | Event::Powerdown
            | Event::Reset
            | Event::GuestPanicked
            | Event::BlockIoError { .. }
            | Event::Other(_) => {}
        }
        Ok(())
    }

    /// An event's status with what only a question tells: why a copy failed.
    async fn status(&self, status: MigrationStatus) -> CopyStatus {
        let info = MigrationInfo { status, ..MigrationInfo::default() };
        if status != MigrationStatus::Failed {
            return info.copy_status();
        }
        match self.qmp().await {
            Ok(qmp) => qmp.query_migrate().await.unwrap_or(info).copy_status(),
            Err(_) => info.copy_status(),
        }
    }

    async fn exited(&mut self) -> Result<(), HalfError> {
        self.vm = None;
        self.events = None;
        self.feed(SourceEvent::Gone).await
    }

    /// Asks QEMU in a task of its own: it may be slow exactly when an event matters.
    fn poll(&mut self) {
        self.poll_at = None;
        let Some(vm) = self.vm.clone().filter(|_| !self.polling) else { return };
        self.polling = true;
        let notes = self.notes.clone();
        tokio::spawn(async move {
            let answer = match vm.monitor().await {
                Ok(qmp) => ask(&qmp).await,
                Err(error) => Err(error),
            };
            let _ = notes.send(Note::Polled(Box::new(answer))).await;
        });
    }

    async fn note(&mut self, note: Note) -> Result<(), HalfError> {
        match note {
            Note::Polled(answer) => self.polled(*answer).await,
            Note::Proof(proof::Outcome::Taken) => self.feed(SourceEvent::ProofTaken).await,
            Note::Proof(proof::Outcome::Refused(why)) => {
                info!(job = %self.job, why, "the target has no use for the proof");
                Ok(())
            }
        }
    }

    async fn polled(
        &mut self,
        answer: Result<(MigrationInfo, RunState), QmpError>,
    ) -> Result<(), HalfError> {
        self.polling = false;
        if !self.is_copying() || !self.begun {
            return Ok(());
        }
        self.poll_at = Some(Instant::now() + half::POLL_EVERY);
        let (info, runstate) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                warn!(job = %self.job, %error, "qemu does not answer");
                return Ok(());
            }
        };
        self.listen().await;
        let progress = info.progress();
        if progress.total.0 > 0 {
            self.line.progress = progress;
            if let Some(labels) = &self.labels {
                self.host.metrics.copying(labels, &progress);
            }
        }
        let mut status = of_this_copy(&info, runstate);
        if status == CopyStatus::None {
            status = CopyStatus::Failed("the copy did not begin".to_owned());
        }
        self.feed(SourceEvent::Copy(status)).await
    }

    /// Listens again when the connection to QEMU was made anew.
    async fn listen(&mut self) {
        if self.events.is_some() {
            return;
        }
        if let Some(vm) = &self.vm {
            self.events = vm.events().await.ok().map(|(_, events)| events);
        }
    }

    /// After a restart: finds out what became of the QEMU of this job, and feeds the model that.
    async fn adopt(&mut self) -> Result<(), HalfError> {
        let state = self.line.half.state();
        let machine = self.host.machine(&self.machine_id);
        let view = machine.as_ref().map(Machine::view);
        // Only the last job that held the machine may act on its QEMU: an older one's status is
        // not this QEMU's, and a machine that came back must not be touched by the job it left by.
        let last = view.as_ref().is_some_and(|view| view.job.as_ref() == Some(&self.job));
        let vm = view.and_then(|view| view.vm);
        let vm = vm.filter(|vm| last && Some(vm.identity()) == self.line.process.as_ref());
        if let Some(machine) = machine.filter(|_| last) {
            self.take(machine);
        }
        let Some(vm) = vm else {
            return match state {
                SourceState::Copying | SourceState::Switching => {
                    self.feed(SourceEvent::Gone).await
                }
                SourceState::Completed | SourceState::Retired if last => {
                    self.feed(SourceEvent::Adopted(CopyStatus::Completed)).await
                }
                SourceState::Absent
                | SourceState::Completed
                | SourceState::Resumed
                | SourceState::Retired
                | SourceState::Lost => Ok(()),
            };
        };
        if let Some(machine) = &self.machine
            && matches!(
                state,
                SourceState::Copying | SourceState::Switching | SourceState::Completed
            )
        {
            machine.hold(&self.job).await.map_err(|error| not_now(&chain(&error)))?;
        }
        self.vm = Some(vm.clone());
        self.dial();
        let (qmp, events) = vm.events().await.map_err(|error| not_now(&chain(&error)))?;
        self.events = Some(events);
        let (info, runstate) = ask(&qmp).await.map_err(|error| not_now(&chain(&error)))?;
        let status = of_this_copy(&info, runstate);
        self.begun = status != CopyStatus::None;
        self.poll_at = Some(Instant::now());
        self.feed(SourceEvent::Adopted(status)).await
    }

    const fn is_copying(&self) -> bool {
        matches!(self.line.half.state(), SourceState::Copying | SourceState::Switching)
    }

    fn is_over(&self) -> bool {
        match self.line.half.state() {
            SourceState::Absent | SourceState::Resumed | SourceState::Retired
            | SourceState::Lost => self.retry.is_none(),
            SourceState::Copying | SourceState::Switching | SourceState::Completed => false,
        }
    }

    fn publish(&self) {
        let next = fact(&self.line);
        let changed = self.facts.send_if_modified(|fact| {
            let changed = *fact != next;
            *fact = next;
            changed
        });
        if !changed {
            return;
        }
        if !self.is_copying()
            && let Some(labels) = &self.labels
        {
            self.host.metrics.copied(labels);
        }
    }
}

fn not_now(why: &str) -> HalfError {
    HalfError::NotNow(why.to_owned())
}

fn fact(line: &Line) -> SourceFact {
    SourceFact {
        state: line.half.state(),
        allowed: line.half.allowed(),
        reason: line.half.reason().to_owned(),
        progress: line.progress,
        stopped_at_us: line.stopped_at_us,
        completed_at_us: line.completed_at_us,
    }
}

async fn ask(qmp: &Qmp) -> Result<(MigrationInfo, RunState), QmpError> {
    let (info, status) = tokio::join!(qmp.query_migrate(), qmp.query_status());
    Ok((info?, status?.status))
}

/// The status, unless it is what an earlier copy left: a QEMU that was reverted says `completed`
/// until its next copy, while its guest runs.
fn of_this_copy(info: &MigrationInfo, runstate: RunState) -> CopyStatus {
    match (info.copy_status(), runstate) {
        (CopyStatus::Completed, RunState::PostMigrate | RunState::FinishMigrate) => {
            CopyStatus::Completed
        }
        (CopyStatus::Completed, _) => CopyStatus::None,
        (status, _) => status,
    }
}
