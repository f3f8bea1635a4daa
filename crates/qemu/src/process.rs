//! One QEMU process: started detached, known by identity, adopted again after a restart.
//!
//! A process outlives the agent that started it: it has its own session, writes to a log file, and
//! is found again by its id, start time and boot, never by its id alone. Ended only through a pid
//! file descriptor, so a reused id is never hit.

use crate::qmp::{Events, Qmp, QmpError};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How much of the log's end is kept for an error's text.
const LOG_TAIL_BYTES: u64 = 2048;

/// Clock ticks a second in `/proc/PID/stat`: fixed to 100 in Linux's user interface on x86.
const TICKS_PER_SECOND: u64 = 100;

/// Opens no link, and waits for nobody at a pipe.
const NO_LINK: i32 = OFlags::NOFOLLOW
    .union(OFlags::NONBLOCK)
    .bits()
    .cast_signed();

/// Which process: no other ever has the same three.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Process id.
    pub pid: u32,
    /// Start, in clock ticks (1/100 s) since boot.
    pub start_ticks: u64,
    /// The kernel's random id of this boot.
    pub boot_id: String,
}

/// An unprivileged user to run a QEMU as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id, not 0.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups, such as that of `/dev/kvm`.
    pub groups: Vec<u32>,
}

/// Why a process can't be started, found or ended.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct ProcessError {
    what: &'static str,
    #[source]
    source: io::Error,
}

impl ProcessError {
    fn of(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { what, source }
    }
}

/// Why a QEMU was started and is of no use.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It wasn't started.
    #[error("start the process")]
    Spawn(#[source] ProcessError),
    /// It ended at once; the text is what it wrote.
    #[error("qemu ended at start: {0}")]
    Exited(String),
    /// It doesn't answer; it was killed.
    #[error("qemu did not become ready")]
    NotReady(#[source] QmpError),
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    /// The QEMU binary.
    pub binary: &'a Path,
    /// Its arguments: [`crate::CommandLine`].
    pub arguments: &'a [String],
    /// File that its output is appended to.
    pub log: &'a Path,
    /// Its QMP socket, as in the arguments.
    pub qmp_socket: &'a Path,
    /// How long it may take until it answers.
    pub limit: Duration,
    /// Whom it runs as, without any capability; `None` as this process.
    pub user: Option<&'a User>,
}

/// Starts a QEMU and connects to it.
///
/// # Errors
/// See [`StartError`]; no process is left in any case.
pub async fn launch(launch: Launch<'_>) -> Result<(Process, Qmp, Events), StartError> {
    let process = Process::spawn(launch.binary, launch.arguments, launch.log, launch.user)
        .map_err(StartError::Spawn)?;
    tokio::select! {
        connected = Qmp::connect(launch.qmp_socket, launch.limit) => match connected {
            Ok((qmp, events)) => Ok((process, qmp, events)),
            Err(error) => {
                let died = !process.is_alive();
                end(&process).await;
                if died {
                    return Err(StartError::Exited(log_tail(launch.log)));
                }
                Err(StartError::NotReady(error))
            }
        },
        () = process.exited() => Err(StartError::Exited(log_tail(launch.log))),
    }
}

/// Takes on `user`, and gives up what else the agent may do, for good.
fn setpriv(user: &User) -> Vec<String> {
    let groups: Vec<String> = user.groups.iter().map(u32::to_string).collect();
    let groups = match groups.is_empty() {
        true => "--clear-groups".to_owned(),
        false => format!("--groups={}", groups.join(",")),
    };
    vec![
        "setpriv".to_owned(),
        format!("--reuid={}", user.uid),
        format!("--regid={}", user.gid),
        groups,
        "--inh-caps=-all".to_owned(),
        "--bounding-set=-all".to_owned(),
        "--no-new-privs".to_owned(),
    ]
}

async fn end(process: &Process) {
    if let Err(error) = process.kill() {
        tracing::warn!(%error, pid = process.identity.pid, "could not kill a qemu");
        return;
    }
    process.exited().await;
}

/// The end of a log file, for an error's text; empty when there is none.
pub fn log_tail(log: &Path) -> String {
    let tail = || -> io::Result<Vec<u8>> {
        // Its directory is QEMU's own, which may be the guest's by now.
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(NO_LINK)
            .open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&tail().unwrap_or_default())
        .trim()
        .to_owned()
}

/// A QEMU process on this host. Dropping it leaves the process alone.
#[derive(Debug)]
pub struct Process {
    identity: Identity,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Starts `binary` in a session of its own, as `user` or as this process, its output appended to
    /// `log`.
    ///
    /// # Errors
    /// When the log can't be opened or the process can't be started.
    pub fn spawn(
        binary: &Path,
        arguments: &[String],
        log: &Path,
        user: Option<&User>,
    ) -> Result<Self, ProcessError> {
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .custom_flags(NO_LINK)
            .open(log)
            .map_err(ProcessError::of("open the log"))?;
        let errors = output
            .try_clone()
            .map_err(ProcessError::of("open the log"))?;
        // util-linux's setsid and setpriv become the program they are given, so the id stays.
        let mut child = tokio::process::Command::new("setsid")
            .args(user.map(setpriv).unwrap_or_default())
            .arg(binary)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .kill_on_drop(false)
            .spawn()
            .map_err(ProcessError::of("run setsid"))?;
        let pid = child.id().ok_or_else(|| ProcessError {
            what: "run setsid",
            source: io::ErrorKind::NotFound.into(),
        })?;
        // Not reaped before the task below has run, so the id can't be another process' yet. One that
        // has ended already is told by `exited`, as later.
        let process = look(pid)
            .and_then(|found| found.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .and_then(|(identity, _)| Self::open(identity));
        if process.is_err() {
            // Nobody could end it later. It may have ended by itself, which is as good.
            let _ = child.start_kill();
        }
        tokio::spawn(async move {
            match child.wait().await {
                Ok(status) => tracing::debug!(pid, %status, "qemu ended"),
                Err(error) => tracing::debug!(pid, %error, "qemu's end could not be awaited"),
            }
        });
        process.map_err(ProcessError::of("identify the process"))
    }

    /// The process of `identity`, if it still runs.
    ///
    /// # Errors
    /// When `/proc` can't be read.
    pub fn adopt(identity: &Identity) -> Result<Option<Self>, ProcessError> {
        let failed = ProcessError::of("adopt the process");
        match Self::open(identity.clone()) {
            // Looked at again after opening: from here on the descriptor holds the process.
            Ok(process) if process.is_alive() => Ok(Some(process)),
            Ok(_) => Ok(None),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    fn open(identity: Identity) -> io::Result<Self> {
        let pid = i32::try_from(identity.pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::NotFound)?;
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        #[expect(
            deprecated,
            reason = "its replacement is unsafe because of types that change their descriptor; \
                      an OwnedFd never does, and unsafe code is forbidden here"
        )]
        let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
        Ok(Self { identity, pidfd })
    }

    /// Which process this is.
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether it runs. A process that ended and was not reaped doesn't.
    pub fn is_alive(&self) -> bool {
        matches!(identify(self.identity.pid), Ok(Some(found)) if found == self.identity)
    }

    /// Waits until it has ended. Cancel safe.
    pub async fn exited(&self) {
        // A pid descriptor becomes readable at the end of its process and stays so. An error
        // can only come from a runtime that shuts down.
        if let Err(error) = self.pidfd.readable().await {
            tracing::debug!(%error, "could not wait for a qemu");
        }
    }

    /// Kills it. Succeeds when it has already ended.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&self) -> Result<(), ProcessError> {
        match pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            Ok(()) => Ok(()),
            Err(error) if error == rustix::io::Errno::SRCH => Ok(()),
            Err(error) => Err(ProcessError::of("kill the process")(error.into())),
        }
    }
}

impl Identity {
    /// When it started, by this host's clock; `None` when `/proc` doesn't tell.
    pub fn started_at(&self) -> Option<SystemTime> {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        let boot = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
        let boot = Duration::from_secs(boot.trim().parse().ok()?);
        let since = Duration::from_millis(self.start_ticks * (1000 / TICKS_PER_SECOND));
        UNIX_EPOCH.checked_add(boot + since)
    }
}

/// The QEMU that was given `pid_file` as its argument, if it runs: for an agent that died between
/// the start of a process and writing down its identity.
///
/// # Errors
/// When the file or `/proc` can't be read.
pub fn find(pid_file: &Path) -> Result<Option<Process>, ProcessError> {
    let failed = ProcessError::of("find the process");
    let inner = || -> io::Result<Option<Process>> {
        let content = std::fs::read_to_string(pid_file)?;
        let Ok(pid) = content.trim().parse::<u32>() else {
            return Ok(None);
        };
        let Some(identity) = identify(pid)? else {
            return Ok(None);
        };
        let process = Process::open(identity)?;
        let arguments = std::fs::read(PathBuf::from(format!("/proc/{pid}/cmdline")))?;
        let wanted = pid_file.as_os_str().as_encoded_bytes();
        let ours = arguments
            .split(|byte| *byte == 0)
            .any(|argument| argument == wanted);
        Ok((ours && process.is_alive()).then_some(process))
    };
    match inner() {
        Err(error) if is_gone(&error) => Ok(None),
        other => other.map_err(failed),
    }
}

/// The kernel's random id of this boot.
///
/// # Errors
/// When `/proc` can't be read.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// Who has this id at present; `None` when nobody has, or only a process that has ended.
///
/// # Errors
/// When `/proc` can't be read.
pub fn identify(pid: u32) -> io::Result<Option<Identity>> {
    let found = look(pid)?;
    Ok(found.and_then(|(identity, ended)| (!ended).then_some(identity)))
}

/// The process with this id, and whether it has ended and was not reaped.
fn look(pid: u32) -> io::Result<Option<(Identity, bool)>> {
    let stat = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some((state, start_ticks)) = state_and_start(&stat) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "unknown form of /proc/PID/stat",
        ));
    };
    // Z has ended and waits to be reaped; X is going.
    let ended = matches!(state, "Z" | "X");
    let identity = Identity {
        pid,
        start_ticks,
        boot_id: boot_id()?,
    };
    Ok(Some((identity, ended)))
}

/// Fields 3 and 22; the name in field 2 may hold spaces and parentheses.
fn state_and_start(stat: &str) -> Option<(&str, u64)> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests;
