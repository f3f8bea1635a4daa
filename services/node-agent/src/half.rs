//! What both halves of a job share: the handle that others hold, and what can go wrong.

use std::future::pending;
use std::io;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use godwit_model::migration::grant::Refusal;
use godwit_qemu::{Event, Events, Stamped};

use crate::vm::Vm;

/// Commands waiting for one half: the coordinator, a proof, and their repetitions.
const COMMANDS_MAX: usize = 16;

/// Notes waiting for one half from its own helpers.
pub(crate) const NOTES_MAX: usize = 16;

/// How often QEMU is asked for numbers, and for what an event may have failed to tell.
pub(crate) const POLL_EVERY: Duration = Duration::from_millis(100);

/// Pause before something that failed and has to be done is tried again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(200);

/// How long a half that has ended is kept in memory; its log stays.
pub(crate) const LINGER: Duration = Duration::from_secs(600);

/// Why a half didn't take a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HalfError {
    /// By the rules of the protocol.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Not on this host, or not with this machine; the text says what is in the way.
    #[error("{0}")]
    NotNow(String),
    /// Not for this host to ask.
    #[error("{0}")]
    Denied(String),
    /// There isn't enough of something.
    #[error("{0}")]
    NoRoom(String),
    /// The log could not be read or written: nothing is known to have happened.
    #[error("use the job's log")]
    Log(#[from] io::Error),
    /// The half ended in the meantime; asking again opens it again.
    #[error("the job's half was closed")]
    Closed,
}

/// A command and where its answer goes.
#[derive(Debug)]
pub(crate) struct Command<C, F> {
    pub(crate) what: C,
    pub(crate) reply: oneshot::Sender<Result<F, HalfError>>,
}

/// Handle of a half: orders in, facts out. Cheap to clone.
#[derive(Debug)]
pub(crate) struct Half<C, F> {
    commands: mpsc::Sender<Command<C, F>>,
    facts: watch::Receiver<F>,
}

impl<C, F> Clone for Half<C, F> {
    fn clone(&self) -> Self {
        Self {
            commands: self.commands.clone(),
            facts: self.facts.clone(),
        }
    }
}

/// The owner's ends of a [`Half`].
#[derive(Debug)]
pub(crate) struct Ends<C, F> {
    pub(crate) commands: mpsc::Receiver<Command<C, F>>,
    pub(crate) facts: watch::Sender<F>,
}

impl<C, F: Clone> Half<C, F> {
    /// A handle and its owner's ends.
    pub(crate) fn new(fact: F) -> (Self, Ends<C, F>) {
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (publish, facts) = watch::channel(fact);
        (
            Self {
                commands: sender,
                facts,
            },
            Ends {
                commands,
                facts: publish,
            },
        )
    }

    /// Gives a command and waits until its effects are done.
    pub(crate) async fn command(&self, what: C) -> Result<F, HalfError> {
        let (reply, answer) = oneshot::channel();
        let command = Command { what, reply };
        self.commands
            .send(command)
            .await
            .map_err(|_| HalfError::Closed)?;
        answer.await.unwrap_or(Err(HalfError::Closed))
    }

    /// What is true at present.
    pub(crate) fn fact(&self) -> F {
        self.facts.borrow().clone()
    }

    /// To follow what is true.
    pub(crate) fn facts(&self) -> watch::Receiver<F> {
        self.facts.clone()
    }

    /// The fact once `done` holds for it, or the present one after `limit`.
    pub(crate) async fn settled(&self, limit: Duration, done: impl FnMut(&F) -> bool) -> F {
        let mut facts = self.facts.clone();
        let settled = tokio::time::timeout(limit, facts.wait_for(done)).await;
        match settled {
            Ok(Ok(fact)) => fact.clone(),
            _ => self.fact(),
        }
    }

    /// Whether its owner has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }
}

/// The next event; waits for ever where there is no connection. `None` when it ended.
pub(crate) async fn next_event(events: &mut Option<Events>) -> Option<Stamped> {
    match events {
        Some(events) => events.next().await,
        None => pending().await,
    }
}

/// Returns when the process has ended; never for none.
pub(crate) async fn exited(vm: Option<&Vm>) {
    match vm {
        Some(vm) => vm.exited().await,
        None => pending().await,
    }
}

/// Returns at `due`; never for none.
pub(crate) async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

/// When an event was; this host's clock when it has no time.
pub(crate) fn moment(stamped: &Stamped) -> SystemTime {
    stamped.at.unwrap_or_else(SystemTime::now)
}

/// Microseconds since the Unix epoch of an event.
pub(crate) fn micros(stamped: &Stamped) -> u64 {
    let since = moment(stamped).duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Whether the event says that CPUs run again.
pub(crate) const fn is_resume(stamped: &Stamped) -> bool {
    matches!(stamped.event, Event::Resume)
}
