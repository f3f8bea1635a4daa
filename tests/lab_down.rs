//! What a lab has on this machine, so that before and after can be compared.
//!
//! Other labs and other tests may come and go meanwhile: what living processes that are not the
//! lab's hold is theirs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use godwit_testkit::lab::LabOptions;

/// Where programs leave files, sockets and locks.
const FOLDERS: [&str; 8] = [
    "/dev/shm",
    "/run",
    "/run/lock",
    "/run/netns",
    "/tmp",
    "/var/lib",
    "/var/log",
    "/var/tmp",
];
/// Programs that a lab runs.
const PROGRAMS: [&str; 4] = ["godwit", "qemu", "postgres", "kubectl"];

/// What there is.
pub(crate) struct Footprint {
    dir: PathBuf,
    /// Named namespaces, devices, mounts, files, shared memory, and zombies.
    things: BTreeSet<String>,
    /// Processes of the lab.
    processes: BTreeSet<String>,
    /// The lab's network namespaces.
    networks: BTreeSet<u64>,
}

impl Footprint {
    /// What there is at present.
    pub(crate) fn take(options: &LabOptions) -> Result<Self> {
        let mut things = BTreeSet::new();
        for folder in FOLDERS.into_iter().chain(["/sys/class/net"]) {
            things.extend(names(Path::new(folder)).map(|path| path.display().to_string()));
        }
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        things.extend(places.map(|place| format!("mount {place}")));
        let shared = fs::read_to_string("/proc/sysvipc/shm")?;
        // Key and id; a segment that somebody is attached to is theirs.
        let unattached = shared.lines().skip(1).filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words.get(6) == Some(&"0")).then(|| format!("shared memory {}", words[1]))
        });
        things.extend(unattached);
        things.extend(zombies());
        let start = format!("{}-", options.prefix);
        let networks: BTreeSet<u64> = names(Path::new("/run/netns"))
            .filter(|path| {
                path.file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with(&start))
            })
            .filter_map(|path| Some(fs::metadata(path).ok()?.ino()))
            .collect();
        Ok(Self {
            processes: processes(&options.dir, &networks),
            dir: options.dir.clone(),
            things,
            networks,
        })
    }

    /// Fails with what is there `after` and was not there before; `during` proves that one looks
    /// at the right things.
    pub(crate) fn compare(&self, during: &Self, after: &Self) -> Result<()> {
        ensure!(during.networks.len() >= 3, "the lab had no namespaces");
        ensure!(
            during.processes.len() >= 8,
            "the lab had {:?}",
            during.processes
        );
        ensure!(
            during.things.len() > self.things.len(),
            "the lab had no names"
        );
        let mut left: Vec<String> = processes(&self.dir, &during.networks)
            .into_iter()
            .chain(after.processes.iter().cloned())
            .collect();
        let new = after.things.difference(&self.things);
        left.extend(new.filter(|thing| !is_held(thing)).cloned());
        ensure!(left.is_empty(), "left behind:\n{}", left.join("\n"));
        ensure!(!self.dir.exists(), "{} is still there", self.dir.display());
        Ok(())
    }
}

fn names(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

/// Every process's folder in `/proc`, but this process's.
fn running() -> impl Iterator<Item = PathBuf> {
    let own = std::process::id().to_string();
    names(Path::new("/proc")).filter(move |path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name != own && name.bytes().all(|byte| byte.is_ascii_digit())
    })
}

fn command_line(process: &Path) -> String {
    let bytes = fs::read(process.join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Processes that name the lab's folder, stand in it, or are on one of its networks.
fn processes(dir: &Path, networks: &BTreeSet<u64>) -> BTreeSet<String> {
    let folder = dir.display().to_string();
    let is_ours = |process: &PathBuf| {
        let network = fs::metadata(process.join("ns/net")).map(|network| network.ino());
        command_line(process).contains(&folder)
            || fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir))
            || network.is_ok_and(|network| networks.contains(&network))
    };
    running()
        .filter(is_ours)
        .map(|process| format!("{} {}", process.display(), command_line(&process)))
        .collect()
}

/// Ended processes of a lab's programs that nobody has taken.
fn zombies() -> Vec<String> {
    let stats = running().filter_map(|process| fs::read_to_string(process.join("stat")).ok());
    stats
        .filter(|stat| stat.contains(") Z ") && PROGRAMS.iter().any(|name| stat.contains(name)))
        .map(|stat| format!("zombie {}", stat.split(") Z ").next().unwrap_or_default()))
        .collect()
}

/// Whether a living process that isn't the lab's has to do with it.
fn is_held(thing: &str) -> bool {
    let path = thing.strip_prefix("mount ").unwrap_or(thing);
    // Names of namespaces and devices of another lab are held by nobody but carry its prefix.
    let name = path.rsplit('/').next().unwrap_or_default();
    if ["godwit-", "gwtr-"]
        .iter()
        .any(|other| name.starts_with(other))
    {
        return true;
    }
    path.starts_with('/')
        && running().any(|process| {
            let files = names(&process.join("fd")).chain([process.join("cwd")]);
            let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
            command_line(&process).contains(path)
                || maps.contains(path)
                || files
                    .filter_map(|file| fs::read_link(file).ok())
                    .any(|file| file.starts_with(path))
        })
}
