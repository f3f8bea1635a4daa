//! Processes that outlive their starter, found again by pid and start time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::os::unix::process::CommandExt;

/// How long a process may take to end after SIGTERM.
const STOP_MAX: Duration = Duration::from_secs(8);
/// How often a process that must end is looked at.
const POLL: Duration = Duration::from_millis(10);

/// A process that this lab started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Start in clock ticks since boot: another process with this id has another.
    started: u64,
}

impl Process {
    /// The process that has this id at present; `None` when there is none.
    pub fn of_pid(pid: i32) -> Option<Self> {
        let (state, started) = stat(pid)?;
        (state != "Z").then_some(Self { pid, started })
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        let alive = stat(self.pid).is_some_and(|(state, started)| {
            // Its other threads may hold its ports for a moment longer than the first one lives.
            started == self.started && (state != "Z" || threads(self.pid) > 1)
        });
        if !alive {
            // Takes the exit of a child of ours, after it was seen to have ended, so that none is
            // left; fails for all others, which is as good.
            let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        }
        alive
    }

    /// Ends it: SIGTERM, and SIGKILL when that isn't enough.
    ///
    /// # Errors
    /// When it still runs after that.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGTERM);
        if self.ended_within(STOP_MAX) {
            return Ok(());
        }
        self.kill()
    }

    /// Ends it by SIGTERM alone.
    ///
    /// # Errors
    /// When it still runs after 8 s.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::SIGTERM);
        ensure!(
            self.ended_within(STOP_MAX),
            "process {} does not end when asked to",
            self.pid
        );
        Ok(())
    }

    /// Ends it at once (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// When it still runs after that.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL);
        ensure!(
            self.ended_within(STOP_MAX),
            "process {} does not end",
            self.pid
        );
        Ok(())
    }

    /// Resident memory in bytes; `None` when it ended.
    pub fn resident(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    }

    fn signal(&self, signal: Signal) {
        if self.is_alive() {
            // It may end between the two: then there is nothing to signal.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    fn ended_within(&self, limit: Duration) -> bool {
        let began = Instant::now();
        while self.is_alive() {
            if began.elapsed() > limit {
                return false;
            }
            std::thread::sleep(POLL); // poll
        }
        true
    }
}

fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

fn stat(pid: i32) -> Option<(String, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold blanks and brackets; the fields begin after its last bracket.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some(((*fields.first()?).to_owned(), fields.get(19)?.parse().ok()?))
}

/// A service of the lab: how to start it, where its pid and its log are.
#[derive(Debug, Clone)]
pub struct Service {
    /// Name in messages and files.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Namespace that it runs in; `None` for this one.
    pub namespace: Option<String>,
    /// Directory of the lab.
    pub dir: PathBuf,
    /// Where it says whether it is ready: `http://.../readyz` as host and port.
    pub admin: String,
}

impl Service {
    /// The running process; `None` when it doesn't run.
    pub fn process(&self) -> Option<Process> {
        let text = fs::read(self.pid_file()).ok()?;
        let process: Process = serde_json::from_slice(&text).ok()?;
        process.is_alive().then_some(process)
    }

    /// Where its log is.
    pub fn log(&self) -> PathBuf {
        self.dir.join("logs").join(format!("{}.log", self.name))
    }

    pub(super) fn pid_file(&self) -> PathBuf {
        self.dir.join("pids").join(&self.name)
    }

    /// Starts it, unless it runs.
    ///
    /// # Errors
    /// When the program can't be started.
    pub fn start(&self) -> Result<Process> {
        if let Some(process) = self.process() {
            return Ok(process);
        }
        let mut command = match &self.namespace {
            Some(namespace) => {
                let mut ip = Command::new("ip");
                ip.args(["netns", "exec", namespace]).arg(&self.program);
                ip
            }
            None => Command::new(&self.program),
        };
        let log = File::options().create(true).append(true).open(self.log())?;
        let child = command
            .args(&self.arguments)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        let pid = i32::try_from(child.id())?;
        let process =
            Process::of_pid(pid).with_context(|| format!("{} ended at once", self.name))?;
        fs::write(self.pid_file(), serde_json::to_vec(&process)?)?;
        Ok(process)
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// When it ends or isn't ready within `limit`; with the end of its log.
    pub fn wait_ready(&self, limit: Duration) -> Result<()> {
        let began = Instant::now();
        loop {
            let said = http_get(&self.admin, "/readyz");
            if said
                .as_ref()
                .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
            {
                return Ok(());
            }
            let alive = self.process().is_some();
            if !alive || began.elapsed() > limit {
                let state = if alive { "is not ready" } else { "ended" };
                bail!(
                    "{} {state}; its log ends:\n{}",
                    self.name,
                    tail(&self.log(), 15)
                );
            }
            std::thread::sleep(POLL); // poll
        }
    }
}

/// One plain HTTP GET; the answer whole.
///
/// # Errors
/// When nobody answers within a second.
pub fn http_get(address: &str, path: &str) -> Result<String> {
    http(address, &format!("GET {path}"), "")
}

/// One plain HTTP PUT; the answer whole.
///
/// # Errors
/// When nobody answers within a second.
pub fn http_put(address: &str, path: &str, body: &str) -> Result<String> {
    http(address, &format!("PUT {path}"), body)
}

fn http(address: &str, request: &str, body: &str) -> Result<String> {
    use std::io::{Read, Write};
    let address: std::net::SocketAddr = address.parse()?;
    let limit = Duration::from_secs(1);
    let mut stream = std::net::TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    let length = body.len();
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The last `lines` of a file; empty when it can't be read.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Every process in a network namespace.
///
/// # Errors
/// When `ip` can't be run.
pub(super) fn in_namespace(namespace: &str) -> Result<Vec<Process>> {
    let output = Command::new("ip")
        .args(["netns", "pids", namespace])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .lines()
        .filter_map(|line| Process::of_pid(line.trim().parse().ok()?))
        .collect())
}
