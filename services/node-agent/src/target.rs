//! Target half of a job: a paused QEMU that loads, and runs only by proof.
//!
//! The rules are `godwit_model::migration::target`; this task carries them out, strictly in their
//! order, and keeps the log. From the proof to the running guest there is one write to the disk and
//! one command to QEMU.

mod effects;
mod key;
mod observed;
mod postcopy;

pub(crate) use self::key::KeyAsked;
pub(crate) use self::postcopy::{MendAsked, Mended};

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use godwit_model::machine::MachineSpec;
use godwit_model::migration::fact::TargetFact;
use godwit_model::migration::target::{Target, TargetEffect, TargetEvent, TargetState};
use godwit_model::{Epoch, JobId, MachineId, NodeName};
use godwit_qemu::{Events, Qmp};

use crate::half::{self, Command, Ends, Half, HalfError};
use crate::host::Host;
use crate::journal::{Log, Side};
use crate::text::chain;
use crate::vm::{Place, Vm};

/// Handle of a target half.
pub(crate) type Handle = Half<Order, TargetFact>;

/// A command for a target half.
#[derive(Debug)]
pub(crate) enum Order {
    /// Start a paused copy of this machine.
    Prepare(Epoch, Box<Coming>),
    /// The source wants the key of the copy.
    GiveKey(KeyAsked),
    /// The source wants to know where QEMU listens for it again.
    Mend(MendAsked),
    /// The source on this node asks whether its copy may end by post-copy now.
    Confirm(Epoch, NodeName),
    /// Destroy it, for ever.
    Discard(Epoch),
    /// End the guest, whose memory is lost.
    Abandon(Epoch),
    /// The source stopped complete; the epoch is the machine's from then on.
    Proof(godwit_model::migration::grant::Proof, Epoch),
}

/// A machine that is expected.
#[derive(Debug)]
pub(crate) struct Coming {
    pub(crate) spec: MachineSpec,
    /// The node that it comes from.
    pub(crate) source: NodeName,
    /// Whether the copy may end by post-copy.
    pub(crate) post_copy: bool,
}

/// One line of the log: all that a restarted agent needs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) half: Target,
    spec: Option<MachineSpec>,
    /// The only node whose word counts. `None` in a log of an agent that didn't ask.
    #[serde(default)]
    source: Option<NodeName>,
    /// Whether the copy is taken only with its key.
    #[serde(default)]
    encrypted: bool,
    /// Whether the copy may end by post-copy.
    #[serde(default)]
    post_copy: bool,
    /// Why it can't, here; empty where it can.
    #[serde(default)]
    no_post_copy: String,
    pub(crate) place: Place,
    /// Ownership epoch of the machine once it runs here.
    machine_epoch: Epoch,
    running_at_us: Option<u64>,
}

/// What this half's own helpers tell it.
#[derive(Debug)]
enum Note {
    Launched(Result<effects::Launched, String>),
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
    /// Whether this QEMU told this agent that its guest has all that it needs to go on.
    heard_loaded: bool,
    /// Whether this QEMU told this agent that memory follows.
    follows: bool,
    /// Since when the source says that the link of a post-copy is broken which hasn't loaded.
    broken: Option<Instant>,
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
        heard_loaded: false,
        follows: false,
        broken: None,
        look_at: None,
        retry: None,
        trouble: String::new(),
        facts,
    };
    godwit_runtime::spawn("target", owner.run(commands, notes_in, adopting));
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
            self.host
                .reopen(self.machine_id.clone(), self.job.clone(), Side::Target);
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
                () = self.host.shutdown.cancelled() => return Ok(()),
                event = half::next_event(&mut self.events) => self.event(event).await?,
                // Before a proof is taken: a copy that is gone has not run, and its source may go on.
                () = half::exited(vm.as_deref()) => self.exited().await?,
                command = commands.recv() => match command {
                    Some(command) => self.command(command).await?,
                    None => return Ok(()),
                },
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
        let outcome = match what {
            Order::Prepare(epoch, coming) => {
                if self.line.spec.is_none() {
                    self.line.spec = Some(coming.spec);
                    self.line.source = Some(coming.source);
                    self.line.post_copy = coming.post_copy;
                    self.line.encrypted = self.host.config.encrypt_copies;
                }
                self.feed(TargetEvent::Prepare { epoch }).await
            }
            Order::GiveKey(asked) => self.give_key(asked),
            Order::Confirm(epoch, source) => self.confirm(epoch, &source),
            Order::Mend(asked) => self.listen_again(asked).await,
            Order::Abandon(epoch) => self.abandon(epoch).await,
            Order::Discard(epoch) => self.feed(TargetEvent::Discard { epoch }).await,
            Order::Proof(proof, epoch) => match self.only_from(&proof.source) {
                Ok(()) => {
                    self.line.machine_epoch = self.line.machine_epoch.max(epoch);
                    self.feed(TargetEvent::Proof(proof)).await
                }
                Err(error) => Err(error),
            },
        };
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

    async fn qmp(&self) -> Result<Qmp, String> {
        let vm = self.vm.as_ref().ok_or_else(|| "no qemu".to_owned())?;
        vm.monitor().await.map_err(|error| chain(&error))
    }

    fn is_over(&self) -> bool {
        let ended = match self.line.half.state() {
            TargetState::Absent
            | TargetState::Running
            | TargetState::Discarded
            | TargetState::Lost { .. }
            | TargetState::MemoryLost => true,
            TargetState::Preparing
            | TargetState::Prepared
            | TargetState::Loaded
            | TargetState::Continuing
            | TargetState::Fetching => false,
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
        no_post_copy: line.no_post_copy.clone(),
    }
}
