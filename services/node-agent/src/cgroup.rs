//! A control group (version 2) for each QEMU, which holds what a QEMU that was taken over can take.
//!
//! They stand at the top of the hierarchy, in `godwit-agent/NODE-...`, beside the agent's own group and
//! not in it: a group with limits for others below it can have no process of its own, so that a
//! restarted agent could not get back into it while machines run.
//!
//! Made and entered by a launch, removed with what else a QEMU leaves. Where a host has no such
//! groups a machine runs without, unless the configuration requires them.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use godwit_model::machine::MachineSpec;
use godwit_model::placement::overhead;
use godwit_qemu::Accelerator;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use uuid::Uuid;

use crate::config::Settings;

/// What is mounted where.
const MOUNTS: &str = "/proc/self/mounts";
/// Which groups this process is in.
const OWN: &str = "/proc/self/cgroup";
/// The group of all agents of this host.
const ALL: &str = "godwit-agent";
/// What the name of a QEMU's group ends with.
const SCOPE: &str = ".scope";
/// Who is in a group.
const PROCESSES: &str = "cgroup.procs";
/// Most of a group's memory that may be swapped out; hosts without swap don't have it.
const SWAP: &str = "memory.swap.max";
/// The kernel's number of the file system of these groups (`CGROUP2_SUPER_MAGIC`).
const CGROUP2: rustix::fs::FsWord = 0x6367_7270;
/// Which limits the groups below can have.
const BELOW: &str = "cgroup.subtree_control";

/// Memory beyond what the scheduler reckons with: the limit is for a QEMU that has gone astray, and
/// not for one that keeps the pages of a large copy for a moment.
const ROOM: u64 = 512 << 20;
/// Of so many bytes of a guest one is for tables, when each page of 4 KiB has an entry of its own twice.
const TABLES: u64 = 256;
/// QEMU's translator keeps so much translated code at most.
const TRANSLATED: u64 = 1 << 30;
/// Threads beside those of the CPUs: QEMU takes 64 for each disk's slow calls, and some for copies.
const THREADS: u32 = 1024;
/// Weight of one CPU of a guest; the kernel's default for a group.
const WEIGHT: u32 = 100;
/// Largest weight that the kernel takes.
const WEIGHT_MAX: u32 = 10_000;

/// How often and how long the kernel is asked to let go of a group whose last process has ended.
const REMOVALS: u32 = 10;
/// Between two of these.
const REMOVE_AGAIN: Duration = Duration::from_millis(20);

/// Whether QEMUs have groups of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wish {
    /// Where the host can have them, with the limits that it can have.
    #[default]
    Auto,
    /// With every limit, or nothing is started.
    Require,
    /// Never.
    Off,
}

/// A limit that a group can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Limit {
    Cpu,
    Memory,
    Pids,
}

impl Limit {
    const ALL: [Self; 3] = [Self::Cpu, Self::Memory, Self::Pids];

    /// The kernel's name for who holds it.
    const fn controller(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }

    /// The file that sets it.
    const fn file(self) -> &'static str {
        match self {
            Self::Cpu => "cpu.weight",
            Self::Memory => "memory.max",
            Self::Pids => "pids.max",
        }
    }

    /// Its value for the QEMU of `spec`.
    fn of(self, spec: &MachineSpec, accelerator: Accelerator) -> u64 {
        match self {
            Self::Cpu => spec.cpus.saturating_mul(WEIGHT).clamp(1, WEIGHT_MAX).into(),
            Self::Memory => {
                let translated = match accelerator {
                    Accelerator::Kvm => 0,
                    Accelerator::Tcg => TRANSLATED,
                };
                // The kernel charges huge pages to nobody, and page tables to whoever has the memory:
                // QEMU's own, KVM's, and what a copy keeps of dirty pages.
                let (own, tables) = match spec.hugepages {
                    Some(_) => (0, 0),
                    None => (spec.memory.0, spec.memory.0 / TABLES),
                };
                own + tables + overhead(spec.memory).0 + ROOM + translated
            }
            Self::Pids => spec.cpus.saturating_add(THREADS).into(),
        }
    }
}

/// The groups of this host's QEMUs.
#[derive(Debug)]
pub(crate) struct Groups {
    wish: Wish,
    accelerator: Accelerator,
    /// `None` where QEMUs have none.
    parent: Option<Parent>,
}

/// The group that those of the QEMUs are in.
#[derive(Debug)]
struct Parent {
    path: PathBuf,
    limits: Vec<Limit>,
}

impl Groups {
    /// Finds out what this host can do, says so, and removes groups whose QEMU has ended.
    ///
    /// # Errors
    /// When groups with every limit are required and can't be had.
    pub(crate) fn find(settings: &Settings, accelerator: Accelerator) -> anyhow::Result<Self> {
        let wish = settings.cgroups;
        let found = match wish {
            Wish::Off => Err(anyhow::anyhow!("cgroups is off")),
            // A group of its own takes it out of the agent's, and of the device rules that hold there.
            Wish::Auto | Wish::Require if settings.qemu_user.is_none() => Err(anyhow::anyhow!(
                "qemu_user is not set: what holds a qemu that is root is the agent's own group"
            )),
            Wish::Auto | Wish::Require => root(settings).and_then(|root| Parent::make(&root)),
        };
        let parent = match (found, wish) {
            (Ok(parent), Wish::Require) if parent.limits.len() < Limit::ALL.len() => {
                anyhow::bail!(
                    "{} can limit {} only, and cgroups requires cpu, memory and pids",
                    parent.path.display(),
                    parent.names("nothing")
                );
            }
            (Ok(parent), _) => {
                info!(
                    path = %parent.path.display(),
                    limits = parent.names("none"),
                    "qemus have control groups of their own"
                );
                parent.sweep();
                Some(parent)
            }
            (Err(error), Wish::Require) => return Err(error.context("find control groups")),
            (Err(why), Wish::Auto | Wish::Off) => {
                info!(
                    why = format!("{why:#}"),
                    "qemus have no control groups of their own"
                );
                None
            }
        };
        Ok(Self {
            wish,
            accelerator,
            parent,
        })
    }

    /// For the node's label: the limits that hold, `no-limits`, or `none` where there are no groups.
    pub(crate) fn label(&self) -> String {
        let parent = self.parent.as_ref();
        parent.map_or_else(|| "none".to_owned(), |parent| parent.names("no-limits"))
    }

    /// Puts the QEMU with the run directory `own` into a group of its own.
    ///
    /// # Errors
    /// When groups are required and the kernel refuses.
    pub(crate) fn enter(&self, own: &Path, spec: &MachineSpec, pid: u32) -> io::Result<()> {
        let Some(parent) = &self.parent else {
            return Ok(());
        };
        let group = parent.group(own);
        match (
            parent.enter(&group, (spec, self.accelerator), pid),
            self.wish,
        ) {
            (Err(error), Wish::Require) => Err(error),
            (Err(error), Wish::Auto | Wish::Off) => {
                warn!(group = %group.display(), %error, "a qemu has no control group of its own");
                Ok(())
            }
            (Ok(()), _) => Ok(()),
        }
    }

    /// Removes the group of a QEMU that has ended, if it had one.
    pub(crate) async fn remove(&self, own: &Path) {
        let Some(parent) = &self.parent else {
            return;
        };
        let group = parent.group(own);
        for _ in 0..REMOVALS {
            match fs::remove_dir(&group) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    warn!(group = %group.display(), %error, "control group left behind");
                    return;
                }
                Ok(()) | Err(_) => return,
            }
            tokio::time::sleep(REMOVE_AGAIN).await;
        }
        warn!(group = %group.display(), "control group left behind: it still has a process");
    }
}

impl Parent {
    /// Makes the group below `root`, with every limit that the kernel gives it.
    fn make(root: &Path) -> anyhow::Result<Self> {
        let made = |path: &Path| {
            let made = fs::create_dir_all(path);
            made.with_context(|| format!("make {}", path.display()))
        };
        let top = root.parent().context("a control group has one above it")?;
        let mut limits = vec![];
        made(root)?;
        let kind = rustix::fs::statfs(root).context("look at the control group")?;
        anyhow::ensure!(
            kind.f_type == CGROUP2,
            "{} is in no cgroup2",
            root.display()
        );
        for limit in Limit::ALL {
            let add = format!("+{}", limit.controller());
            // One that is missing is told by the label, and by the log.
            let given = [top, root]
                .iter()
                .all(|group| has(group, BELOW, limit) || put(&group.join(BELOW), &add).is_ok());
            if given {
                limits.push(limit);
            }
        }
        Ok(Self {
            path: root.to_owned(),
            limits,
        })
    }

    fn group(&self, own: &Path) -> PathBuf {
        let name = own.file_name().unwrap_or_default().to_string_lossy();
        self.path.join(format!("{name}{SCOPE}"))
    }

    fn enter(
        &self,
        group: &Path,
        (spec, accelerator): (&MachineSpec, Accelerator),
        pid: u32,
    ) -> io::Result<()> {
        match fs::create_dir(group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        for limit in &self.limits {
            let value = limit.of(spec, accelerator).to_string();
            put(&group.join(limit.file()), &value)?;
            let swap = group.join(SWAP);
            if *limit == Limit::Memory && swap.exists() {
                put(&swap, &value)?;
            }
        }
        put(&group.join(PROCESSES), &pid.to_string())
    }

    /// Removes groups that no process is in: their QEMUs ended while no agent ran.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().ends_with(SCOPE) {
                // The kernel removes no group that has a process.
                let _ = fs::remove_dir(entry.path());
            }
        }
    }

    fn names(&self, none: &str) -> String {
        let names: Vec<&str> = self.limits.iter().map(|limit| limit.controller()).collect();
        match names.is_empty() {
            true => none.to_owned(),
            false => names.join("."),
        }
    }
}

/// Where the group of this agent's QEMUs is to be.
fn root(settings: &Settings) -> anyhow::Result<PathBuf> {
    // Agents that share a host have directories of their own.
    let id = Uuid::new_v5(
        &Uuid::NAMESPACE_OID,
        settings.run_dir.as_os_str().as_bytes(),
    );
    let node = format!("{}-{}", settings.node, &id.simple().to_string()[..8]);
    if settings.cgroup_root != Path::new("") {
        return Ok(settings.cgroup_root.join(node));
    }
    let mounts = fs::read_to_string(MOUNTS).context("read the mounts")?;
    let mount = mounted(&mounts).context("no cgroup2 is mounted")?;
    // The kernel's own top has no type; what a container sees as the top is somebody's group.
    anyhow::ensure!(
        !mount.join("cgroup.type").exists(),
        "{} is not the top of the host's control groups",
        mount.display()
    );
    let own = fs::read_to_string(OWN).context("read the agent's own group")?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = mount.join(own.unwrap_or_default()).join(PROCESSES);
    let inside = fs::read_to_string(&own).unwrap_or_default();
    // From a namespace of its own the kernel lets nobody out, and no QEMU either.
    anyhow::ensure!(
        inside
            .lines()
            .any(|pid| pid == std::process::id().to_string()),
        "the agent is in a namespace of control groups: {} does not name it",
        own.display()
    );
    let all = mount.join(ALL);
    fs::create_dir_all(&all).with_context(|| format!("make {}", all.display()))?;
    for limit in Limit::ALL {
        // Where it can't be had, the groups below don't have it either.
        if !has(mount, BELOW, limit) {
            let _ = put(&mount.join(BELOW), &format!("+{}", limit.controller()));
        }
    }
    Ok(all.join(node))
}

/// Writes a file of the kernel's. It makes none: anywhere else there would be no limit.
fn put(file: &Path, value: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(file)?;
    file.write_all(value.as_bytes())
}

/// Where the hierarchy is; a path that the kernel writes with escapes is none of a real system.
fn mounted(mounts: &str) -> Option<&Path> {
    let mut found = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, kind) = (words.next()?, words.next()?);
        (kind == "cgroup2" && !path.contains('\\')).then_some(Path::new(path))
    });
    found.next()
}

/// Whether a file of a group names who holds `limit`.
fn has(group: &Path, file: &str, limit: Limit) -> bool {
    let names = fs::read_to_string(group.join(file)).unwrap_or_default();
    names
        .split_whitespace()
        .any(|name| name == limit.controller())
}

#[cfg(test)]
mod tests;
