//! What this host can run: the binary, its machine types and CPU models, and the accelerator.
//!
//! A `/dev/kvm` that opens proves little: there are nested hosts on which firmware runs and Linux
//! hangs. So KVM counts as working only after a real kernel has booted on it. What was found is
//! kept for this boot of the host and this QEMU: an agent that starts again has machines to find.

mod boot;

use crate::command_line::Accelerator;
use crate::process::{self, Launch, Process, StartError};
use crate::qmp::{CpuDefinition, MachineInfo, Qmp, QmpError, Version};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

/// How long a QEMU without a machine may take until it answers.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// How long one may take to end after `quit`.
const QUIT_LIMIT: Duration = Duration::from_secs(2);

/// Where the answer is kept.
const ANSWER_FILE: &str = "probe.json";

/// Name of the binary when none is configured.
const BINARY: &str = "qemu-system-x86_64";

/// Which accelerator the host's configuration wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wish {
    /// KVM when it works, else TCG.
    #[default]
    Auto,
    /// KVM without asking: for hosts that are known to be good.
    Kvm,
    /// TCG.
    Tcg,
}

/// A kernel to boot as the test of KVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestKernel {
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The initial RAM disk's file; `None` when there is none.
    pub initrd: Option<PathBuf>,
    /// Kernel command line; must put the console on `ttyS0`.
    pub arguments: String,
    /// What the serial output has to hold for the boot to count.
    pub marker: String,
}

impl TestKernel {
    /// The kernel that this host runs, where distributions keep it; `None` where none can be read.
    /// No part of what a kept answer depends on: another accelerator is for another boot.
    fn of_host() -> Option<Self> {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
        let release = release.trim();
        let places = [
            format!("/boot/vmlinuz-{release}"),
            format!("/usr/lib/modules/{release}/vmlinuz"),
        ];
        let kernel = places.into_iter().map(PathBuf::from);
        let kernel = kernel
            .into_iter()
            .find(|file| std::fs::File::open(file).is_ok())?;
        Some(Self::alone(kernel))
    }

    /// A kernel without a RAM disk: it boots until it looks for its root.
    pub fn alone(kernel: PathBuf) -> Self {
        Self {
            kernel,
            initrd: None,
            arguments: "console=ttyS0 quiet panic=0".to_owned(),
            marker: "Unable to mount root fs".to_owned(),
        }
    }
}

/// What to look for, and where to keep what was found.
#[derive(Debug, Clone)]
pub struct Request {
    /// The QEMU binary; `None` looks for `qemu-system-x86_64` on the path.
    pub binary: Option<PathBuf>,
    /// Which accelerator is wanted.
    pub wish: Wish,
    /// The kernel that decides about KVM; `None` takes the host's own.
    pub kernel: Option<TestKernel>,
    /// Directory for the answer and for sockets while probing; must exist and be short.
    pub directory: PathBuf,
}

/// What this host can run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The QEMU binary.
    pub binary: PathBuf,
    /// Its version.
    pub version: Version,
    /// The accelerator to use.
    pub accelerator: Accelerator,
    /// Why this accelerator, for people.
    pub reason: String,
    /// Versioned machine types of the PC family, newest first; no aliases.
    pub machine_types: Vec<String>,
    /// CPU models that run here and mean the same on every host, by name.
    pub cpu_models: Vec<String>,
}

/// Why a host can't be probed: it can't run machines.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// There is no QEMU.
    #[error("no qemu at {0:?}")]
    NoBinary(PathBuf),
    /// QEMU doesn't start.
    #[error("start qemu")]
    Start(#[from] StartError),
    /// QEMU doesn't answer.
    #[error("ask qemu")]
    Ask(#[from] QmpError),
    /// The directory can't be used.
    #[error("use the probe's directory")]
    Directory(#[source] io::Error),
}

/// Finds out what this host can run. Takes a tenth of a second, and the time that the test kernel
/// needs, the first time in a boot of the host; later the answer is read.
///
/// # Errors
/// See [`ProbeError`]. A KVM that doesn't work is a verdict, not an error.
pub async fn probe(request: &Request) -> Result<Host, ProbeError> {
    let binary = find_binary(request.binary.as_deref())?;
    let key = Key::new(&binary, request)?;
    let file = request.directory.join(ANSWER_FILE);
    if let Some(kept) = read(&file).filter(|kept| kept.key == key) {
        return Ok(kept.host);
    }
    let host = look(binary, request).await?;
    keep(
        &file,
        &Kept {
            key,
            host: host.clone(),
        },
    )
    .map_err(ProbeError::Directory)?;
    Ok(host)
}

async fn look(binary: PathBuf, request: &Request) -> Result<Host, ProbeError> {
    let with_tcg = ask(&binary, Accelerator::Tcg, &request.directory).await?;
    let verdict = match request.wish {
        Wish::Kvm => boot::Verdict::wished(Accelerator::Kvm),
        Wish::Tcg => boot::Verdict::wished(Accelerator::Tcg),
        Wish::Auto => boot::judge(&binary, request).await?,
    };
    let answers = match verdict.accelerator {
        Accelerator::Tcg => with_tcg,
        Accelerator::Kvm => ask(&binary, Accelerator::Kvm, &request.directory).await?,
    };
    Ok(Host {
        binary,
        version: answers.version,
        accelerator: verdict.accelerator,
        reason: verdict.reason,
        machine_types: machine_types(&answers.machines),
        cpu_models: cpu_models(&answers.cpus),
    })
}

/// An answer with all that it depends on.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    key: Key,
    host: Host,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    boot_id: String,
    binary: PathBuf,
    /// Nanoseconds since 1970; 0 when unknown.
    binary_changed: u64,
    has_kvm: bool,
    wish: Wish,
    kernel: Option<TestKernel>,
    kernel_changed: u64,
}

impl Key {
    fn new(binary: &Path, request: &Request) -> Result<Self, ProbeError> {
        let kernel = request.kernel.as_ref();
        Ok(Self {
            boot_id: process::boot_id().map_err(ProbeError::Directory)?,
            binary: binary.to_owned(),
            binary_changed: changed(binary),
            has_kvm: Path::new(boot::KVM_DEVICE).exists(),
            wish: request.wish,
            kernel: request.kernel.clone(),
            kernel_changed: kernel.map_or(0, |kernel| changed(&kernel.kernel)),
        })
    }
}

fn changed(file: &Path) -> u64 {
    let modified = std::fs::metadata(file).and_then(|metadata| metadata.modified());
    let since = modified
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or_default()
}

fn read(file: &Path) -> Option<Kept> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

fn keep(file: &Path, kept: &Kept) -> io::Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, serde_json::to_vec(kept)?)?;
    std::fs::rename(new, file)
}

fn find_binary(wanted: Option<&Path>) -> Result<PathBuf, ProbeError> {
    let wanted = wanted.unwrap_or_else(|| Path::new(BINARY));
    let missing = || ProbeError::NoBinary(wanted.to_owned());
    if wanted.components().count() > 1 {
        return wanted
            .is_file()
            .then(|| wanted.to_owned())
            .ok_or_else(missing);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(wanted))
        .find(|candidate| candidate.is_file())
        .ok_or_else(missing)
}

struct Answers {
    version: Version,
    machines: Vec<MachineInfo>,
    cpus: Vec<CpuDefinition>,
}

async fn ask(
    binary: &Path,
    accelerator: Accelerator,
    directory: &Path,
) -> Result<Answers, ProbeError> {
    let scratch = Scratch::new(directory).map_err(ProbeError::Directory)?;
    let mut arguments = bare(accelerator, &scratch);
    arguments.extend(["-machine", "none"].map(str::to_owned));
    let launch = Launch {
        binary,
        arguments: &arguments,
        log: &scratch.path("log"),
        qmp_socket: &scratch.path("qmp"),
        limit: ANSWER_LIMIT,
        user: None,
    };
    let (process, qmp, _events) = process::launch(launch).await?;
    let answers = tokio::join!(qmp.query_machines(), qmp.query_cpu_definitions());
    end(&process, &qmp).await;
    Ok(Answers {
        version: qmp.version().clone(),
        machines: answers.0?,
        cpus: answers.1?,
    })
}

fn bare(accelerator: Accelerator, scratch: &Scratch) -> Vec<String> {
    let qmp = format!("unix:{},server=on,wait=off", scratch.path("qmp").display());
    let accelerator = accelerator.as_str();
    [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-accel",
        accelerator,
        "-qmp",
        &qmp,
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Ends a QEMU that has no guest worth keeping.
async fn end(process: &Process, qmp: &Qmp) {
    // It may hang up before it answers, and is killed if it does neither.
    let _ = qmp.quit().await;
    if tokio::time::timeout(QUIT_LIMIT, process.exited())
        .await
        .is_ok()
    {
        return;
    }
    if let Err(error) = process.kill() {
        tracing::warn!(%error, pid = process.identity().pid, "could not kill a probe's qemu");
        return;
    }
    process.exited().await;
}

/// Newest first: by the numbers at the end, then by name.
fn machine_types(machines: &[MachineInfo]) -> Vec<String> {
    let mut names: Vec<String> = machines
        .iter()
        .filter(|machine| is_versioned(&machine.name))
        .map(|machine| machine.name.clone())
        .collect();
    names.sort_by_key(|name| (std::cmp::Reverse(numbers(name)), name.clone()));
    names
}

fn is_versioned(name: &str) -> bool {
    (name.starts_with("pc-q35-") || name.starts_with("pc-i440fx-")) && !numbers(name).is_empty()
}

/// `pc-q35-7.2` gives `[7, 2]`; anything without a version gives nothing.
fn numbers(name: &str) -> Vec<u32> {
    let version = name.rsplit('-').next().unwrap_or_default();
    version
        .split('.')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .unwrap_or_default()
}

fn cpu_models(cpus: &[CpuDefinition]) -> Vec<String> {
    let runnable = |cpu: &&CpuDefinition| {
        cpu.migration_safe.unwrap_or_default()
            && cpu.unavailable_features.as_ref().is_some_and(Vec::is_empty)
            // The bare one that others are built on; no machine is meant to have it.
            && cpu.name != "base"
    };
    let mut names: Vec<String> = cpus
        .iter()
        .filter(runnable)
        .map(|cpu| cpu.name.clone())
        .collect();
    names.sort();
    names
}

/// A private directory for one QEMU of a probe, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path) -> io::Result<Self> {
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = parent.join(format!("probe-{}-{count}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::debug!(%error, "could not remove a probe's directory");
        }
    }
}

#[cfg(test)]
mod tests;
