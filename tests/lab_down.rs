//! What a lab has on this machine, so that before and after can be compared.
//!
//! Other labs and other tests may come and go meanwhile: what living processes that are not the
//! lab's hold is theirs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

/// How names of other labs and of other tests' folders begin.
const OTHERS: [&str; 5] = ["godwit-", "gwtr-", "gw-trace", "gwapi-", "gwpg-"];
/// How long the end of a process may take to be seen.
const ENDED_MAX: Duration = Duration::from_secs(20);
/// How often one looks.
const POLL: Duration = Duration::from_millis(500);

/// What there is.
pub(crate) struct Footprint {
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
            things,
            networks,
        })
    }

    /// Fails with what is there and was not there before; `during` proves that one looks at the
    /// right things. Whoever adopted a process may take a moment to see that it ended.
    pub(crate) fn compare(&self, during: &Self, options: &LabOptions) -> Result<()> {
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
        let began = Instant::now();
        loop {
            let left = self.left(during, options)?;
            if left.is_empty() {
                return Ok(());
            }
            ensure!(
                began.elapsed() < ENDED_MAX,
                "left behind:\n{}",
                left.join("\n")
            );
            std::thread::sleep(POLL); // poll
        }
    }

    fn left(&self, during: &Self, options: &LabOptions) -> Result<Vec<String>> {
        let after = Self::take(options)?;
        let mut left: Vec<String> = after.processes.into_iter().collect();
        left.extend(processes(&options.dir, &during.networks));
        let new = after.things.difference(&self.things);
        left.extend(new.filter(|thing| !is_anothers(thing)).cloned());
        if options.dir.exists() {
            left.push(options.dir.display().to_string());
        }
        Ok(left)
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

/// Whether it belongs to another lab or test, or a living process that isn't the lab's has it.
fn is_anothers(thing: &str) -> bool {
    let path = thing.strip_prefix("mount ").unwrap_or(thing);
    let name = path.rsplit('/').next().unwrap_or_default();
    if OTHERS.iter().any(|other| name.starts_with(other)) {
        return true;
    }
    path.starts_with('/') && running().any(|process| holds(&process, path))
}

fn holds(process: &Path, path: &str) -> bool {
    let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
    let mut files = names(&process.join("fd")).chain([process.join("cwd")]);
    maps.contains(path)
        || command_line(process).contains(path)
        || files.any(|file| fs::read_link(file).is_ok_and(|file| file.starts_with(path)))
}
