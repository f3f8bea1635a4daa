//! Rolling maintenances: one node, or some, after another, each closed, emptied, worked on and opened.
//!
//! Level-triggered: each round looks at what is true and takes the step that follows
//! (`godwit_model::rolling`). It looks without the ledger's lock; the step is written only if the
//! record is still the one that was looked at, so two copies of this service never do a thing twice.
//! Nodes are emptied by the NodeMaintenances that are made here; see `drain.rs`.

mod budgets;
mod calls;
mod look;
mod status;
mod write;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use godwit_ledger::{Ledger, LedgerError, Object, ObjectKey};
use godwit_model::rolling::{Action, Heard, Step};
use godwit_rpc::Credentials;
use godwit_runtime::failpoint;
use godwit_runtime::telemetry::StepSpans;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub(crate) use budgets::Budgets;

use crate::telemetry::RollingTelemetry;
use calls::Callers;
use look::{Situation, look};

/// Resource of rolling maintenances.
pub(crate) const ROLLINGS: &str = "rollingmaintenances.godwit.io";
const NODES: &str = "nodes";
/// Mark of a node that is to be emptied: nothing should be put there.
const LEAVING: &str = "godwit.io/leaving";
/// Keeps a rolling maintenance until it has let go of its nodes.
const FINALIZER: &str = "godwit.io/rolling-maintenance";
/// How often everything is looked at although nothing woke us: hooks are asked for so.
const POLL: Duration = Duration::from_secs(1);
/// Shortest time until the next round, after one that took a step and after one that took none: a
/// look may be at the whole fleet, and everybody's commits wake us.
const STEP_PAUSE: Duration = Duration::from_millis(50);
const IDLE_PAUSE: Duration = Duration::from_millis(400);

/// What the rounds share.
pub(crate) struct Rollings {
    ledger: Ledger,
    /// Tells the drains that there are maintenances.
    made: Arc<Notify>,
    /// Tells the coordinator that there are new jobs.
    requested: Arc<Notify>,
    callers: Callers,
    /// Answers to the calls that this copy of the service made.
    answers: Arc<Mutex<BTreeMap<String, Heard>>>,
    /// A call was answered.
    answered: Arc<Notify>,
    telemetry: RollingTelemetry,
    spans: StepSpans,
    shutdown: CancellationToken,
}

/// Runs rounds until shutdown.
pub(crate) async fn run(rollings: Rollings) {
    let mut wakeups = rollings.ledger.wakeups();
    while !rollings.shutdown.is_cancelled() {
        let pause = match rollings.round().await {
            Ok(true) => STEP_PAUSE,
            Ok(false) => IDLE_PAUSE,
            Err(error) => {
                warn!(%error, "a round over the rolling maintenances was cut short");
                IDLE_PAUSE
            }
        };
        tokio::time::sleep(pause).await; // debounce
        tokio::select! {
            () = rollings.shutdown.cancelled() => return,
            () = rollings.answered.notified() => {}
            _ = wakeups.next(POLL) => {}
        }
    }
}

impl Rollings {
    /// Whom it tells: the drains of maintenances that it `made`, the coordinator of what it
    /// `requested`.
    pub(crate) fn new(
        ledger: Ledger,
        credentials: Option<Credentials>,
        (made, requested): (Arc<Notify>, Arc<Notify>),
        (telemetry, spans): (RollingTelemetry, StepSpans),
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            ledger,
            made,
            requested,
            callers: Callers::new(credentials),
            answers: Arc::default(),
            answered: Arc::default(),
            telemetry,
            spans,
            shutdown,
        }
    }

    /// Takes the step that follows for each rolling maintenance; answers whether there was one.
    ///
    /// # Errors
    /// The ledger's, when they can't be listed; one that fails doesn't stop others.
    pub(crate) async fn round(&self) -> Result<bool, LedgerError> {
        let mut stepped = false;
        let rollings = self.ledger.list(ROLLINGS).await?;
        let records = rollings.iter().filter_map(|rolling| {
            let record = status::record(rolling).ok()?;
            Some((rolling.key.name.as_str(), record))
        });
        self.telemetry.stand(records);
        if rollings.is_empty() {
            return Ok(false);
        }
        let nodes = self.ledger.list(NODES).await?;
        for rolling in rollings.iter().filter(|rolling| is_due(rolling, &nodes)) {
            match self.reconcile(&rolling.key).await {
                Ok(step) => stepped |= step,
                Err(error) => {
                    let rolling = &rolling.key.name;
                    warn!(%rolling, %error, "a rolling maintenance's step failed");
                }
            }
        }
        Ok(stepped)
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<bool, LedgerError> {
        let Some(mut situation) = look(&self.ledger, key).await? else {
            return Ok(false);
        };
        let mut heard = self.answers().clone();
        heard.extend(self.callers.ask(&situation).await);
        let step = situation.decide(&heard);
        failpoint!("ledger.rolling.before");
        if !write::write((&self.ledger, &self.spans), &situation, &step).await? {
            return Ok(false);
        }
        failpoint!("ledger.rolling.after");
        self.tell(&situation, &step);
        self.call(&situation.object, &step);
        Ok(true)
    }

    fn tell(&self, situation: &Situation, step: &Step) {
        let rolling = &situation.object.key.name;
        for action in &step.actions {
            match action {
                Action::Close(node) => {
                    info!(rolling, %node, "node is to be emptied");
                    self.made.notify_one();
                }
                Action::Reopen(node) => {
                    info!(rolling, %node, "node is to be opened");
                    self.made.notify_one();
                }
                Action::FailBack { machine, node } => {
                    info!(rolling, %node, %machine, "machine is to go home");
                    self.requested.notify_one();
                }
                Action::Call(call) => {
                    info!(rolling, node = %call.node, hook = call.hook.name, "webhook is called");
                }
            }
        }
        if step.record.phase != situation.record.phase {
            let phase = step.record.phase;
            info!(
                rolling,
                ?phase,
                message = step.record.message,
                "phase changed"
            );
        }
        // What is recorded need not be remembered.
        let ended = step.record.nodes.iter().flat_map(|node| &node.hooks);
        for run in ended.filter(|run| run.exit_code.is_some()) {
            self.answers().retain(|key, _| !key.starts_with(&run.run));
        }
    }

    /// Makes the calls that were just recorded as made by this copy of the service.
    fn call(&self, rolling: &Object, step: &Step) {
        for action in &step.actions {
            let Action::Call(call) = action else {
                continue;
            };
            let answering = self.callers.webhook(&rolling.key.name, call);
            let (answers, answered) = (Arc::clone(&self.answers), Arc::clone(&self.answered));
            let key = call.key.clone();
            tokio::spawn(async move {
                let heard = answering.await;
                locked(&answers).insert(key, heard);
                answered.notify_one();
            });
        }
    }

    fn answers(&self) -> MutexGuard<'_, BTreeMap<String, Heard>> {
        locked(&self.answers)
    }
}

/// Whether there may be anything to do: one that is over has only to let go of its nodes.
fn is_due(rolling: &Object, nodes: &[Object]) -> bool {
    let over = status::record(rolling).is_ok_and(|record| record.phase.is_over());
    let marks = |node: &Object| node.annotation(LEAVING) == Some(&rolling.key.name);
    !over || rolling.deleting() || nodes.iter().any(marks)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
