//! Commands of this host's own allow list, run for rolling maintenances, each run once.
//!
//! A run is a directory under `hooks` in the state directory, named by who asked. What is to run is
//! written there first. A shell of its own session then claims the run by making `started`, which
//! only one can, and leaves the command's exit code in `exit`. So a run outlives the agent, is never
//! started twice, and is found again by whichever agent is asked.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tracing::info;

use godwit_qemu::process::boot_id;
use godwit_rpc::agent::v1::hooks_server;
use godwit_rpc::agent::v1::{HookReport, HookState, RunHookRequest};
use godwit_rpc::peer::{self, Role};
use godwit_rpc::{Request, Response, Status, async_trait};

use crate::config::{HookCommand, Settings};
use crate::host::Host;
use crate::text::chain;

/// The end of the output that is kept, bytes.
const OUTPUT_MAX: u64 = 4096;
/// Longest name of a run.
const RUN_MAX: usize = 200;
/// Runs that are remembered; of more, the oldest that ended are forgotten.
const RUNS_MAX: usize = 256;
/// Exit code of a run that ended without one.
const LOST: i32 = 255;
/// Exit code of a run that ran out of time: that of `timeout`.
const OUT_OF_TIME: i32 = 124;
/// Between the signals that ask a command to end and that end it, seconds.
const KILL_AFTER: &str = "5";
/// How long the end of the output is waited for, once there is an exit code. A daemon that the
/// command started may hold it open for ever.
const OUTPUT_WAIT: Duration = Duration::from_millis(300);
const OUTPUT_POLL: Duration = Duration::from_millis(10);

const ORDER: &str = "order.json";
const STARTED: &str = "started";
const EXIT: &str = "exit";
const OUTPUT: &str = "output";

/// `$1` is the run's directory, the rest the command. The exit code appears whole or not at all.
const SCRIPT: &str = r#"run=$1; shift
mkdir "$run/started" 2>/dev/null || exit 0
sync "$run"
{ "$@" 2>&1; echo $? >"$run/exit.draft"; sync "$run/exit.draft"; mv "$run/exit.draft" "$run/exit"; } |
    tail -c 4096 >"$run/output"
"#;

/// Why a run is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    #[error("a run has a name of letters, digits and dashes, at most {RUN_MAX}")]
    Run,
    #[error("this host has no hook {name:?} in its configuration")]
    Unknown { name: String },
    #[error("hook {name:?} takes no arguments on this host")]
    Arguments { name: String },
    #[error("start the hook")]
    Start(#[source] io::Error),
}

/// What a run is, from before it is started.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    hook: String,
    arguments: Vec<String>,
    seconds: u32,
    reboots: bool,
    boot_id: String,
    /// Seconds since the epoch, by this host's clock.
    at: i64,
}

/// The runs of this host.
#[derive(Debug)]
pub(crate) struct Hooks {
    allowed: BTreeMap<String, HookCommand>,
    node: String,
    root: PathBuf,
    /// Held while a run is looked at or started.
    looking: Arc<Mutex<()>>,
}

impl Hooks {
    /// The runs under the state directory.
    pub(crate) fn new(config: &Settings) -> Self {
        Self {
            allowed: config.hooks.clone(),
            node: config.node.to_string(),
            root: config.state_dir.join("hooks"),
            looking: Arc::default(),
        }
    }

    /// Starts a run, or answers how it stands.
    ///
    /// # Errors
    /// See [`HookError`]; only of `Start` it isn't known whether it runs.
    pub(crate) async fn ask(&self, request: RunHookRequest) -> Result<HookReport, HookError> {
        if !is_run(&request.run) {
            return Err(HookError::Run);
        }
        let directory = self.root.join(&request.run);
        let held = Arc::clone(&self.looking).lock_owned().await;
        let looked = {
            let directory = directory.clone();
            tokio::task::spawn_blocking(move || look(&directory)).await
        };
        let stands = match looked {
            Ok(looked) => looked.map_err(HookError::Start)?,
            Err(error) => return Err(HookError::Start(io::Error::other(error))),
        };
        let report = match stands {
            Stands::Absent => self.start(&directory, &request).await?,
            Stands::Running => running(),
            Stands::Ended(code) => {
                drop(held);
                wait_for_output(&directory).await;
                HookReport {
                    state: HookState::Ended.into(),
                    exit_code: code,
                    output: tail(&directory.join(OUTPUT)),
                }
            }
        };
        Ok(report)
    }

    async fn start(
        &self,
        directory: &Path,
        request: &RunHookRequest,
    ) -> Result<HookReport, HookError> {
        let name = &request.hook;
        let unknown = || HookError::Unknown { name: name.clone() };
        let allowed = self.allowed.get(name).ok_or_else(unknown)?;
        if !allowed.arguments && !request.arguments.is_empty() {
            return Err(HookError::Arguments { name: name.clone() });
        }
        let seconds = match request.timeout_seconds {
            0 => allowed.timeout_seconds,
            asked => asked.min(allowed.timeout_seconds),
        };
        let order = Order {
            hook: name.clone(),
            arguments: request.arguments.clone(),
            seconds,
            reboots: allowed.reboots,
            boot_id: boot_id().map_err(HookError::Start)?,
            at: jiff::Timestamp::now().as_second(),
        };
        let (root, place) = (self.root.clone(), directory.to_owned());
        let written = tokio::task::spawn_blocking(move || {
            forget_old(&root)?;
            write_order(&place, &order)
        });
        let written = written
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)));
        written.map_err(HookError::Start)?;
        self.spawn(directory, (allowed, seconds), request)
            .map_err(HookError::Start)?;
        info!(hook = name, run = request.run, "hook started");
        Ok(running())
    }

    fn spawn(
        &self,
        directory: &Path,
        (allowed, seconds): (&HookCommand, u32),
        request: &RunHookRequest,
    ) -> io::Result<()> {
        // util-linux's setsid and coreutils' timeout: it ends with its time, whoever is left to see.
        let mut child = tokio::process::Command::new("setsid")
            .args(["sh", "-c", SCRIPT, "godwit-hook"])
            .arg(directory)
            .args(["timeout", "--kill-after", KILL_AFTER, &seconds.to_string()])
            .args(&allowed.command)
            .args(&request.arguments)
            // Not with the prefix of our configuration: a hook may start our services.
            .env("HOOK_NODE", &self.node)
            .env("HOOK_NAME", &request.hook)
            .env("HOOK_RUN", &request.run)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(false)
            .spawn()?;
        // Reaped when it ends; its answer is in its directory.
        tokio::spawn(async move { drop(child.wait().await) });
        Ok(())
    }
}

/// The door to them.
#[derive(Debug)]
pub(crate) struct Server {
    host: Arc<Host>,
}

impl Server {
    pub(crate) const fn new(host: Arc<Host>) -> Self {
        Self { host }
    }
}

#[async_trait]
impl hooks_server::Hooks for Server {
    async fn run_hook(
        &self,
        request: Request<RunHookRequest>,
    ) -> Result<Response<HookReport>, Status> {
        peer::require(&request, &[Role::MaintenanceService])?;
        let report = self.host.hooks.ask(request.into_inner()).await;
        report.map(Response::new).map_err(|error| refused(&error))
    }
}

fn refused(error: &HookError) -> Status {
    let text = chain(error);
    match error {
        HookError::Unknown { .. } => Status::not_found(text),
        HookError::Run | HookError::Arguments { .. } => Status::invalid_argument(text),
        HookError::Start(_) => Status::unavailable(text),
    }
}

/// How a run stands.
enum Stands {
    /// It was never started, and nobody is about to.
    Absent,
    Running,
    Ended(i32),
}

fn running() -> HookReport {
    HookReport {
        state: HookState::Running.into(),
        ..HookReport::default()
    }
}

fn is_run(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=RUN_MAX).contains(&name.len()) && name.bytes().all(plain)
}

fn look(directory: &Path) -> io::Result<Stands> {
    let Some(bytes) = maybe(fs::read(directory.join(ORDER)))? else {
        return Ok(Stands::Absent);
    };
    let order: Order = serde_json::from_slice(&bytes)?;
    let rebooted = order.boot_id != boot_id()?;
    let started = directory.join(STARTED).exists();
    // Before the exit code is looked for, so that one that ends now is not missed.
    let alive = is_alive(directory)?;
    if let Some(code) = exit_code(directory)? {
        return Ok(ended(&order, (code, rebooted)));
    }
    Ok(match (alive, rebooted, started) {
        (true, ..) => Stands::Running,
        (false, true, _) if order.reboots => Stands::Ended(0),
        // A boot may have lost the mark of the start.
        (false, true, _) | (false, false, true) => Stands::Ended(LOST),
        (false, false, false) => Stands::Absent,
    })
}

/// How a run stands that has an exit code: one that reboots the host ends well only by that.
fn ended(order: &Order, (code, rebooted): (i32, bool)) -> Stands {
    if !order.reboots || code != 0 || rebooted {
        return Stands::Ended(code);
    }
    let now = jiff::Timestamp::now().as_second();
    if now > order.at + i64::from(order.seconds) {
        return Stands::Ended(OUT_OF_TIME);
    }
    Stands::Running
}

fn exit_code(directory: &Path) -> io::Result<Option<i32>> {
    let text = maybe(fs::read_to_string(directory.join(EXIT)))?;
    Ok(text.map(|text| text.trim().parse().unwrap_or(LOST)))
}

fn maybe<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the shell of the run is there, under whichever agent it was started.
fn is_alive(directory: &Path) -> io::Result<bool> {
    let wanted = directory.as_os_str().as_encoded_bytes();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes()[0].is_ascii_digit()
            // One that ended meanwhile can't be read, and one that was not reaped says nothing.
            && let Ok(line) = fs::read(entry.path().join("cmdline"))
            && line.split(|byte| *byte == 0).any(|argument| argument == wanted)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes down what is to run, so that no boot makes it unknown.
fn write_order(directory: &Path, order: &Order) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let draft = directory.join("order.draft");
    let mut file = File::create(&draft)?;
    file.write_all(&serde_json::to_vec(order)?)?;
    file.sync_all()?;
    fs::rename(&draft, directory.join(ORDER))?;
    for place in [Some(directory), directory.parent()].into_iter().flatten() {
        OpenOptions::new().read(true).open(place)?.sync_all()?;
    }
    Ok(())
}

fn forget_old(root: &Path) -> io::Result<()> {
    let Some(entries) = maybe(fs::read_dir(root))? else {
        return Ok(());
    };
    let mut ended = vec![];
    let mut all = 0;
    for entry in entries {
        let entry = entry?;
        all += 1;
        let exit = maybe(fs::metadata(entry.path().join(EXIT)))?;
        if let Some(exit) = exit {
            ended.push((exit.modified()?, entry.path()));
        }
    }
    ended.sort();
    for (_, old) in ended.iter().take((all + 1_usize).saturating_sub(RUNS_MAX)) {
        fs::remove_dir_all(old)?;
    }
    Ok(())
}

async fn wait_for_output(directory: &Path) {
    let deadline = tokio::time::Instant::now() + OUTPUT_WAIT;
    while tokio::time::Instant::now() < deadline {
        let place = directory.to_owned();
        let alive = tokio::task::spawn_blocking(move || is_alive(&place)).await;
        if !matches!(alive, Ok(Ok(true))) {
            return;
        }
        tokio::time::sleep(OUTPUT_POLL).await; // poll
    }
}

/// The end of what a run wrote; empty when there is none.
fn tail(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(OUTPUT_MAX)))?;
        let mut bytes = vec![];
        file.take(OUTPUT_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}
