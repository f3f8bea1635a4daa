//! Client for the QEMU Machine Protocol: one JSON value a line over a unix socket.
//!
//! Commands of many callers are in flight at once, each with its own time limit; QEMU answers them
//! in the order they were sent. Events go to a bounded broadcast, so a slow reader never holds
//! QEMU up: it gets [`Event::Missed`] and has to ask for the state again. The same is true after
//! each new connection, since QEMU keeps no events for a client that isn't there.

mod commands;
mod events;
mod types;

pub use commands::{Endpoint, TlsKey};
pub use events::{Event, Events, Stamped};
pub use types::{
    BlockDevice, BlockInserted, BlockNode, CpuDefinition, MachineInfo, MigrationInfo,
    MigrationParameters, MigrationRam, MigrationStatus, RunState, SocketAddress, StatusInfo,
    Version,
};

use futures::StreamExt;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::codec::{FramedRead, LinesCodec};

/// Longest answer taken from QEMU; the schema, the longest one, has 0.3 MB in QEMU 7.2.
const LINE_BYTES_MAX: usize = 16 << 20;

/// Commands waiting for an answer at once; QEMU itself queues 8 and leaves the rest in the socket.
const PENDING_MAX: usize = 64;

/// Events kept for a slow reader. A migration has about a dozen, and one more for each pass.
const EVENTS_MAX: usize = 256;

/// Pause between two attempts to connect to a QEMU that is starting.
const CONNECT_RETRY: Duration = Duration::from_millis(2);

/// Time that a command may take unless its caller says otherwise.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// No connection: no QEMU listens there, or it does not speak QMP. Nothing was done.
    #[error("connect to qemu")]
    Connect(#[source] std::io::Error),
    /// The connection ended before the answer: whether QEMU acted is unknown.
    #[error("connection to qemu ended")]
    Closed,
    /// No answer in time: whether QEMU acted is unknown.
    #[error("no answer to {command} within {limit:?}")]
    Timeout {
        /// The command.
        command: &'static str,
        /// How long the caller waited.
        limit: Duration,
    },
    /// QEMU said no.
    #[error("qemu refused {command}: {description}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's error class, for example `GenericError` or `CommandNotFound`.
        class: String,
        /// Text for people; never to be parsed.
        description: String,
    },
    /// QEMU answered with a value of another shape.
    #[error("understand the answer to {command}")]
    Answer {
        /// The command.
        command: &'static str,
        /// What did not fit.
        #[source]
        source: serde_json::Error,
    },
    /// Too many commands wait for an answer; this one was not sent.
    #[error("too many commands in flight")]
    Busy,
}

impl QmpError {
    /// Whether QEMU may have acted although there is no result.
    pub const fn is_unknown(&self) -> bool {
        matches!(
            self,
            Self::Closed | Self::Timeout { .. } | Self::Answer { .. }
        )
    }
}

type Lines = FramedRead<OwnedReadHalf, LinesCodec>;

/// Who waits for which answer; `None` once the connection has ended.
type Waiting = Option<HashMap<u64, oneshot::Sender<Result<Value, Refused>>>>;

/// Error part of an answer.
#[derive(Debug, serde::Deserialize)]
struct Refused {
    #[serde(default)]
    class: String,
    #[serde(default)]
    desc: String,
}

/// A connection to one QEMU; cheap to clone, closed when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Qmp {
    shared: Arc<Shared>,
    version: Version,
}

/// A line for QEMU, and what travels beside it.
#[derive(Debug)]
struct Request {
    line: String,
    file: Option<OwnedFd>,
}

#[derive(Debug)]
struct Shared {
    requests: mpsc::Sender<Request>,
    waiting: Arc<Mutex<Waiting>>,
    events: broadcast::WeakSender<Stamped>,
    next_id: AtomicU64,
}

impl Qmp {
    /// Connects to a QEMU that listens on `socket`, or will within `limit`, and negotiates.
    ///
    /// QEMU serves one client a socket: a second one waits for the greeting until `limit`.
    ///
    /// # Errors
    /// [`QmpError::Connect`] when nobody greets within `limit`, and as [`Qmp::execute`].
    pub async fn connect(socket: &Path, limit: Duration) -> Result<(Self, Events), QmpError> {
        let deadline = Instant::now() + limit;
        let stream = open(socket, deadline).await?;
        let (reader, writer) = stream.into_split();
        let mut lines = FramedRead::new(reader, LinesCodec::new_with_max_length(LINE_BYTES_MAX));
        let left = deadline.saturating_duration_since(Instant::now());
        let version = timeout(left, greeting(&mut lines))
            .await
            .map_err(|_| no_greeting())??;
        let (qmp, events) = Self::start(lines, writer, version);
        qmp.execute::<Value>("qmp_capabilities", Value::Null)
            .await?;
        Ok((qmp, events))
    }

    fn start(lines: Lines, writer: OwnedWriteHalf, version: Version) -> (Self, Events) {
        let (requests, queue) = mpsc::channel(PENDING_MAX);
        let (sender, receiver) = broadcast::channel(EVENTS_MAX);
        let waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let shared = Shared {
            requests,
            waiting: Arc::clone(&waiting),
            events: sender.downgrade(),
            next_id: AtomicU64::new(1),
        };
        tokio::spawn(async move {
            // The writer ends when the last handle is dropped, the reader when QEMU hangs up.
            tokio::select! {
                () = read_answers(lines, &waiting, &sender) => {}
                () = write_requests(writer, queue) => {}
            }
            *locked(&waiting) = None;
        });
        (
            Self {
                shared: Arc::new(shared),
                version,
            },
            Events::new(receiver),
        )
    }

    /// Version of this QEMU.
    pub const fn version(&self) -> &Version {
        &self.version
    }

    /// Whether the connection has ended: nothing can be asked over it any more.
    pub fn is_closed(&self) -> bool {
        locked(&self.shared.waiting).is_none()
    }

    /// One more reader of events, from here on. Ends at once when the connection has ended.
    pub fn events(&self) -> Events {
        match self.shared.events.upgrade() {
            Some(sender) => Events::new(sender.subscribe()),
            None => Events::ended(),
        }
    }

    /// Runs one command with [`COMMAND_LIMIT`].
    ///
    /// # Errors
    /// As [`Qmp::execute_within`].
    pub async fn execute<R: DeserializeOwned>(
        &self,
        command: &'static str,
        arguments: Value,
    ) -> Result<R, QmpError> {
        self.execute_within(COMMAND_LIMIT, command, arguments).await
    }

    /// Runs one command. `arguments` is an object, or null for none.
    ///
    /// The command is queued at the first poll, so commands joined in one future are sent in the
    /// order written, without waiting for each other's answer.
    ///
    /// # Errors
    /// Any [`QmpError`] but `Connect`; [`QmpError::is_unknown`] tells which leave the effect open.
    pub async fn execute_within<R: DeserializeOwned>(
        &self,
        limit: Duration,
        command: &'static str,
        arguments: Value,
    ) -> Result<R, QmpError> {
        let value = timeout(limit, self.exchange(command, arguments, None))
            .await
            .map_err(|_| QmpError::Timeout { command, limit })??;
        serde_json::from_value(value).map_err(|source| QmpError::Answer { command, source })
    }

    async fn exchange(
        &self,
        command: &'static str,
        arguments: Value,
        file: Option<OwnedFd>,
    ) -> Result<Value, QmpError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let mut request = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let (sender, answer) = oneshot::channel();
        {
            let mut waiting = locked(&self.shared.waiting);
            let waiting = waiting.as_mut().ok_or(QmpError::Closed)?;
            // Callers that gave up still count until QEMU answers: it may be stuck for good.
            if waiting.len() >= PENDING_MAX {
                return Err(QmpError::Busy);
            }
            waiting.insert(id, sender);
        }
        let line = format!("{request}\n");
        self.shared
            .requests
            .send(Request { line, file })
            .await
            .map_err(|_| QmpError::Closed)?;
        let refused = match answer.await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(refused)) => refused,
            Err(_) => return Err(QmpError::Closed),
        };
        Err(QmpError::Refused {
            command,
            class: refused.class,
            description: refused.desc,
        })
    }
}

async fn open(socket: &Path, deadline: Instant) -> Result<UnixStream, QmpError> {
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= deadline => return Err(QmpError::Connect(error)),
            Err(_) => sleep(CONNECT_RETRY).await,
        }
    }
}

fn no_greeting() -> QmpError {
    QmpError::Connect(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        "no greeting",
    ))
}

/// The greeting. A QEMU that is just starting may let an event out before it (seen with 7.2).
async fn greeting(lines: &mut Lines) -> Result<Version, QmpError> {
    loop {
        let line = match lines.next().await {
            Some(Ok(line)) => line,
            Some(Err(error)) => return Err(QmpError::Connect(std::io::Error::other(error))),
            None => return Err(QmpError::Closed),
        };
        match types::parse_greeting(&line) {
            Ok(version) => return Ok(version),
            Err(_) if line.contains("\"event\"") => {}
            Err(error) => return Err(QmpError::Connect(std::io::Error::other(error))),
        }
    }
}

async fn write_requests(mut writer: OwnedWriteHalf, mut requests: mpsc::Receiver<Request>) {
    while let Some(Request { line, file }) = requests.recv().await {
        let mut rest = line.as_bytes();
        if let Some(file) = file {
            let Ok(sent) = send_with(&writer, rest, &file).await else {
                return;
            };
            rest = &rest[sent..];
        }
        if writer.write_all(rest).await.is_err() {
            return;
        }
    }
}

/// Sends `file` beside the first bytes of `line`; answers how many those were.
async fn send_with(writer: &OwnedWriteHalf, line: &[u8], file: &OwnedFd) -> io::Result<usize> {
    let socket: &UnixStream = writer.as_ref();
    let send = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        let files = [file.as_fd()];
        beside.push(SendAncillaryMessage::ScmRights(&files));
        let line = [io::IoSlice::new(line)];
        Ok(sendmsg(socket, &line, &mut beside, SendFlags::NOSIGNAL)?)
    };
    socket.async_io(Interest::WRITABLE, send).await
}

async fn read_answers(
    mut lines: Lines,
    waiting: &Mutex<Waiting>,
    events: &broadcast::Sender<Stamped>,
) {
    while let Some(line) = lines.next().await {
        let line = match line {
            Ok(line) => line,
            Err(error) => {
                tracing::debug!(%error, "qmp connection broke");
                return;
            }
        };
        match serde_json::from_str::<Value>(&line) {
            Ok(message) => dispatch(message, waiting, events),
            Err(error) => tracing::debug!(%error, "qemu sent something else than json"),
        }
    }
}

fn dispatch(mut message: Value, waiting: &Mutex<Waiting>, events: &broadcast::Sender<Stamped>) {
    if message.get("event").is_some() {
        // An error means that nobody reads, which is nobody's fault.
        let _ = events.send(events::parse(&message));
        return;
    }
    let id = message.get("id").and_then(Value::as_u64);
    let waits = |id| {
        locked(waiting)
            .as_mut()
            .and_then(|waiting| waiting.remove(&id))
    };
    let Some(sender) = id.and_then(waits) else {
        tracing::debug!("qemu answered nobody's command");
        return;
    };
    let answer = match message.get_mut("return") {
        Some(value) => Ok(value.take()),
        None => Err(refused(&mut message)),
    };
    // An error means that the caller gave up.
    let _ = sender.send(answer);
}

fn refused(message: &mut Value) -> Refused {
    let error = message
        .get_mut("error")
        .map(Value::take)
        .unwrap_or_default();
    serde_json::from_value(error).unwrap_or_else(|_| Refused {
        class: String::new(),
        desc: "no reason given".to_owned(),
    })
}

fn locked(waiting: &Mutex<Waiting>) -> std::sync::MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
