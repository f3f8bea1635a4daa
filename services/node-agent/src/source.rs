//! Source half of a job: QEMU's events and the coordinator's commands in, the model's effects out.
//!
//! The rules are `godwit_model::migration::source`; this task only carries them out, strictly in
//! their order, and keeps the log. One exception to the order is the model's own: the proof may
//! leave before the log says so, since it leaves in a task of its own that repeats it.

mod effects;
mod key;
mod observed;
mod passes;
mod postcopy;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use godwit_model::migration::convergence::planned_blackout;
use godwit_model::migration::fact::{Progress, SourceFact};
use godwit_model::migration::source::{Source, SourceEffect, SourceEvent, SourceState};
use godwit_model::{BytesPerSecond, Epoch, JobId, MachineId, NodeName};
use godwit_qemu::process::Identity;
use godwit_qemu::qmp::{MigrationInfo, RunState};
use godwit_qemu::{Events, Limits, QmpError};
use godwit_rpc::Channel;

use crate::half::{self, Command, Ends, Half, HalfError};
use crate::host::Host;
use crate::journal::{Log, Side};
use crate::machines::Machine;
use crate::metrics::CopyLabels;
use crate::proof;
use crate::text::chain;
use crate::vm::Vm;
use passes::Passes;
use postcopy::Link;

/// Handle of a source half.
pub(crate) type Handle = Half<Order, SourceFact>;

/// A command for a source half.
#[derive(Debug)]
pub(crate) enum Order {
    /// The copy shall begin.
    Start(Epoch, CopyOrder),
    /// Anything else that the model decides about.
    Event(SourceEvent),
    /// The copy shall end by post-copy, where it may. No permission either.
    Postcopy(Epoch),
    /// The blackout may take so long from this moment on. No matter of the model: it is no
    /// permission.
    RaiseDowntime(Epoch, Duration),
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
    /// Longest stop that QEMU may ever plan for.
    pub(crate) downtime: Duration,
    /// Whether QEMU may slow the guest down.
    pub(crate) auto_converge: bool,
    /// Whether QEMU may plan for the longest stop from now on, rather than step by step.
    #[serde(default)]
    pub(crate) at_once: bool,
    /// Whether it may end by post-copy.
    #[serde(default)]
    pub(crate) post_copy: bool,
    /// Whether it does so after its first pass.
    #[serde(default)]
    pub(crate) post_copy_at_once: bool,
    /// `traceparent` of the order, for the copy's passes; may be empty.
    #[serde(default)]
    pub(crate) trace: String,
}

impl CopyOrder {
    /// What QEMU is told to keep to, when it has been resending for so long.
    fn limits(&self, resending: Duration) -> Limits {
        let downtime = match self.at_once {
            true => self.downtime,
            false => planned_blackout(resending, self.downtime),
        };
        Limits {
            bandwidth: BytesPerSecond(self.bandwidth),
            downtime,
            auto_converge: self.auto_converge,
        }
    }
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
    /// Whether both QEMUs are ready for a post-copy.
    #[serde(default)]
    post_copy: bool,
}

/// What this half's own helpers tell it.
#[derive(Debug)]
enum Note {
    Polled(Box<Result<(MigrationInfo, RunState), QmpError>>),
    Proof(proof::Outcome),
    /// Whether the target has its half, so that a post-copy may begin.
    Confirmed(Result<(), String>),
    /// The link of a post-copy was made anew, or why not.
    Recovered(Result<(), String>),
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
    /// Why the machine can't be copied; empty when it can.
    obstacle: String,
    labels: Option<CopyLabels>,
    peer: Option<Channel>,
    sender: Option<JoinHandle<()>>,
    notes: mpsc::Sender<Note>,
    /// Whether `migrate` was given to this QEMU for this job, so that its status is this job's.
    begun: bool,
    poll_at: Option<Instant>,
    /// When it began to send again what the guest wrote meanwhile, and the limits that it has.
    resending: Option<(Instant, Limits)>,
    passes: Passes,
    /// Whether QEMU was asked and hasn't answered.
    polling: bool,
    retry: Option<(SourceEffect, Instant)>,
    link: Link,
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
        obstacle: String::new(),
        labels: None,
        peer: None,
        sender: None,
        notes,
        begun: false,
        poll_at: None,
        resending: None,
        passes: Passes::default(),
        polling: false,
        retry: None,
        link: Link::default(),
        facts,
    };
    godwit_runtime::spawn("source", owner.run(commands, notes_in, adopting));
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
            self.host
                .reopen(self.machine_id.clone(), self.job.clone(), Side::Source);
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
                () = self.host.shutdown.cancelled() => return Ok(()),
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
        let Command { what, reply } = command;
        let outcome = match what {
            Order::Start(epoch, copy) => {
                self.prepare(copy).await;
                self.feed(SourceEvent::Start { epoch }).await
            }
            Order::Event(event) => self.ordered(event).await,
            Order::Postcopy(epoch) => self.order_postcopy(epoch).await,
            Order::RaiseDowntime(epoch, limit) => self.raise_downtime(epoch, limit).await,
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
        if broken {
            Err(HalfError::Closed)
        } else {
            Ok(())
        }
    }

    /// Takes hold of the machine before the model is told to start a copy of it. What is in the way
    /// becomes the reason of a copy that ended, durably, rather than an answer that can be lost.
    async fn prepare(&mut self, copy: CopyOrder) {
        if self.line.half.state() != SourceState::Absent {
            return;
        }
        self.line.copy = Some(copy);
        let Some(machine) = self.host.machine(&self.machine_id) else {
            "the machine is not on this host".clone_into(&mut self.obstacle);
            return;
        };
        let vm = match machine.hold(&self.job).await {
            Ok(vm) => vm,
            Err(error) => {
                self.obstacle = chain(&error);
                return;
            }
        };
        self.line.machine_epoch = machine.view().epoch;
        self.line.process = Some(vm.identity().clone());
        self.take(machine);
        self.vm = Some(vm);
        self.dial();
    }

    fn take(&mut self, machine: Machine) {
        self.labels = Some(CopyLabels::new(
            &machine.view().spec,
            &self.host.config.node,
        ));
        self.machine = Some(machine);
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

    /// Tells the machine what this half needs of it.
    async fn settle(&mut self) {
        let state = self.line.half.state();
        match state {
            SourceState::Completed | SourceState::Serving | SourceState::ServerLost => {
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
        let serves = state == SourceState::Serving;
        if !self.is_copying() && !serves {
            self.poll_at = None;
        }
        if !self.is_copying() && !serves && state != SourceState::Completed {
            self.end_pass(SystemTime::now());
            self.tell_passes();
        }
        if !matches!(state, SourceState::Completed | SourceState::Serving)
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

    const fn is_copying(&self) -> bool {
        matches!(
            self.line.half.state(),
            SourceState::Copying | SourceState::Switching
        )
    }

    fn is_over(&self) -> bool {
        match self.line.half.state() {
            SourceState::Absent
            | SourceState::Resumed
            | SourceState::Retired
            | SourceState::Lost => self.retry.is_none(),
            SourceState::Copying
            | SourceState::Switching
            | SourceState::Serving
            | SourceState::ServerLost
            | SourceState::Completed => false,
        }
    }

    fn publish(&self) {
        let mut next = fact(&self.line);
        if next.reason.is_empty() {
            next.reason.clone_from(self.link.trouble());
        }
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
        post_copied: line.half.post_copied(),
    }
}
