//! What is really on this host: for an auditor, who believes nobody's memory.
//!
//! Reads `/proc`, the state directory and the run directory, and asks each QEMU on its monitor for
//! people, so that the agent's own connection is left alone. Never changes anything, and judges
//! nothing. Called by `server.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use serde_json::Value;

use godwit_model::{JobId, MachineId};
use godwit_qemu::Qmp;
use godwit_qemu::process::identify;
use godwit_rpc::agent::v1 as wire;

use crate::host::Host;
use crate::journal::{Side, Store};
use crate::machines::Record;
use crate::text::chain;
use crate::{network, source, target, vm};

/// Longest wait for the greeting of a QEMU, and for its answer. Its main loop may be busy with the
/// end of a copy.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// State of a listening socket in `/proc/net/tcp`.
const TCP_LISTEN: &str = "0A";

/// Looks at everything.
pub(crate) async fn inspect(host: &Arc<Host>) -> wire::HostInspection {
    let looking = Arc::clone(host);
    let looked = tokio::task::spawn_blocking(move || Look::at(&looking)).await;
    let mut found = match looked {
        Ok(look) => look.found,
        Err(error) => wire::HostInspection {
            unreadable: vec![format!("this host: {error}")],
            ..wire::HostInspection::default()
        },
    };
    found.node = host.config.node.to_string();
    join_all(found.qemus.iter_mut().map(|qemu| ask(host, qemu))).await;
    found
}

/// Asks a QEMU what it does, over the monitor that no agent uses.
async fn ask(host: &Host, qemu: &mut wire::FoundQemu) {
    let directory = host.config.run_dir.join(&qemu.directory);
    let asked = async {
        let (qmp, _) = Qmp::connect(&directory.join(vm::DEBUG_MONITOR), ANSWER_LIMIT).await?;
        qmp.execute_within::<Value>(ANSWER_LIMIT, "query-status", Value::Null)
            .await
    };
    match asked.await {
        Ok(status) => {
            qemu.run_state = status["status"].as_str().unwrap_or_default().to_owned();
            qemu.running = status["running"] == true;
        }
        Err(error) => qemu.error = chain(&error),
    }
}

/// One look, from the processes to the files.
struct Look {
    found: wire::HostInspection,
}

/// A process and what it was started with.
struct Process {
    pid: u32,
    arguments: Vec<String>,
}

impl Look {
    fn at(host: &Host) -> Self {
        let mut look = Self {
            found: wire::HostInspection::default(),
        };
        let processes = look.or_note("/proc", processes());
        look.qemus(&host.config.run_dir, &processes);
        look.taps(&processes);
        look.directories(&host.config.run_dir);
        look.state(&host.store);
        look
    }

    /// The value, or the default and a note of what could not be read.
    fn or_note<T: Default>(&mut self, what: impl std::fmt::Display, read: io::Result<T>) -> T {
        read.unwrap_or_else(|error| {
            self.found.unreadable.push(format!("{what}: {error}"));
            T::default()
        })
    }

    fn qemus(&mut self, run_dir: &Path, processes: &[Process]) {
        for process in processes {
            let Some(directory) = process.directory_in(run_dir) else {
                continue;
            };
            let pid = process.pid;
            // None: it ended while we looked.
            let Some(identity) = self.or_note(format!("process {pid}"), identify(pid)) else {
                continue;
            };
            let listening = self.or_note(format!("ports of process {pid}"), listening(pid));
            self.found.qemus.push(wire::FoundQemu {
                pid,
                start_ticks: identity.start_ticks,
                machine: process.after("-uuid").unwrap_or_default().to_owned(),
                directory,
                incoming: process.after("-incoming").is_some(),
                listening,
                ..wire::FoundQemu::default()
            });
        }
    }

    fn taps(&mut self, processes: &[Process]) {
        let devices = self.or_note("/proc/self/net/dev", devices());
        self.found.taps = devices
            .into_iter()
            .filter(|device| network::is_ours(device))
            .map(|device| {
                let pid = processes.iter().find(|process| process.uses(&device));
                let pid = pid.map_or(0, |process| process.pid);
                wire::FoundTap { device, pid }
            })
            .collect();
    }

    fn directories(&mut self, run_dir: &Path) {
        for path in self.or_note(run_dir.display(), entries(run_dir)) {
            let name = file_name(&path);
            if !vm::is_directory_name(&name) || !path.is_dir() {
                continue;
            }
            let files = match entries(&path) {
                // It went while we looked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => self.or_note(path.display(), other),
            };
            let owner = self.found.qemus.iter().find(|qemu| qemu.directory == name);
            let pid = owner.map_or(0, |qemu| qemu.pid);
            let files = files.iter().map(|file| file_name(file)).collect();
            self.found
                .directories
                .push(wire::FoundDirectory { name, pid, files });
        }
    }

    fn state(&mut self, store: &Store) {
        for machine in self.or_note("the state directory", store.machines()) {
            self.record(store, &machine);
            let jobs = store.jobs(&machine);
            for (job, side) in self.or_note(format!("jobs of machine {machine}"), jobs) {
                let what = format!("log of job {job}");
                let half = half(store, &machine, (&job, side));
                let half = self.or_note(what, half);
                self.found.halves.extend(half);
            }
        }
        self.found.strays = self.or_note("the state directory", store.strays());
    }

    fn record(&mut self, store: &Store, machine: &MachineId) {
        let record = store.record::<Record>(machine);
        let record = self.or_note(format!("record of machine {machine}"), record);
        self.found.records.extend(record.map(|record| {
            let process = record.place.process.as_ref();
            wire::FoundRecord {
                machine: machine.to_string(),
                epoch: record.epoch.0,
                pid: process.map_or(0, |process| process.pid),
                ended: record.ended.is_some(),
            }
        }));
        let fence = self.or_note(format!("fence of machine {machine}"), store.fence(machine));
        self.found
            .fences
            .extend(fence.map(|epoch| wire::FoundFence {
                machine: machine.to_string(),
                epoch: epoch.0,
            }));
    }
}

/// The last line of a log; `None` for a log that was never written to.
fn half(
    store: &Store,
    machine: &MachineId,
    (job, side): (&JobId, Side),
) -> io::Result<Option<wire::FoundHalf>> {
    let Some(log) = store.log(machine, job, side)? else {
        return Ok(None);
    };
    let mut half = wire::FoundHalf {
        machine: machine.to_string(),
        job: job.to_string(),
        ..wire::FoundHalf::default()
    };
    match side {
        Side::Source => {
            let Some(line) = log.last::<source::Line>()? else {
                return Ok(None);
            };
            half.set_source(line.half.state().into());
            half.epoch = line.half.epoch().0;
        }
        Side::Target => {
            let Some(line) = log.last::<target::Line>()? else {
                return Ok(None);
            };
            half.set_target(line.half.state().into());
            half.epoch = line.half.epoch().0;
        }
    }
    Ok(Some(half))
}

impl Process {
    /// The argument that follows `option`.
    fn after(&self, option: &str) -> Option<&str> {
        let at = self.arguments.iter().position(|found| found == option)?;
        self.arguments.get(at + 1).map(String::as_str)
    }

    /// Name of its directory, when that is in `run_dir`: then it is a QEMU of this agent.
    fn directory_in(&self, run_dir: &Path) -> Option<String> {
        let directory = Path::new(self.after("-pidfile")?).parent()?;
        (directory.parent()? == run_dir).then(|| file_name(directory))
    }

    fn uses(&self, device: &str) -> bool {
        let option = format!("ifname={device}");
        let named = |argument: &String| argument.split(',').any(|part| part == option);
        self.arguments.iter().any(named)
    }
}

fn processes() -> io::Result<Vec<Process>> {
    let pids = entries(Path::new("/proc"))?;
    let pids = pids
        .iter()
        .filter_map(|path| file_name(path).parse::<u32>().ok());
    // One that ends meanwhile has no arguments any more, and nothing else either.
    let arguments = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words = line.split(|byte| *byte == 0);
        let arguments = words.map(|word| String::from_utf8_lossy(word).into_owned());
        let arguments = arguments.collect();
        Some(Process { pid, arguments })
    };
    Ok(pids.filter_map(arguments).collect())
}

/// TCP ports on which a process listens; none for one that ended.
fn listening(pid: u32) -> io::Result<Vec<u32>> {
    let mut ports = BTreeMap::new();
    for family in ["tcp", "tcp6"] {
        let table = gone_is_empty(fs::read_to_string(format!("/proc/{pid}/net/{family}")))?;
        ports.extend(table.lines().skip(1).filter_map(listener));
    }
    let mut found = Vec::new();
    for descriptor in gone_is_empty(entries(Path::new(&format!("/proc/{pid}/fd"))))? {
        let link = match fs::read_link(descriptor) {
            Ok(link) => link,
            // One that was closed meanwhile listens no more.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let link = link.to_string_lossy();
        let inode = link.strip_prefix("socket:[");
        let inode = inode.and_then(|rest| rest.strip_suffix(']'));
        found.extend(inode.and_then(|inode| ports.get(inode).copied()));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Inode and port of a line of `/proc/net/tcp` that is about a listening socket.
fn listener(line: &str) -> Option<(String, u32)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    let (_, port) = local.rsplit_once(':')?;
    let port = u32::from_str_radix(port, 16).ok()?;
    (*state == TCP_LISTEN).then(|| ((*inode).to_owned(), port))
}

/// Network devices of this process' network namespace.
fn devices() -> io::Result<Vec<String>> {
    let table = fs::read_to_string("/proc/self/net/dev")?;
    let names = table
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0));
    Ok(names.map(|name| name.trim().to_owned()).collect())
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)?;
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<_>>()?;
    paths.sort();
    Ok(paths)
}

fn gone_is_empty<T: Default>(read: io::Result<T>) -> io::Result<T> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        other => other,
    }
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(line: &str) -> Process {
        Process {
            pid: 7,
            arguments: line.split(' ').map(str::to_owned).collect(),
        }
    }

    #[test]
    fn a_qemu_is_known_by_the_directory_of_its_pid_file() {
        let qemu = process("qemu -uuid u -pidfile /run/a/0123456789abcdef/qemu.pid");
        let found = qemu.directory_in(Path::new("/run/a"));
        assert_eq!(found.as_deref(), Some("0123456789abcdef"));
        // Another agent's, whose directory begins alike.
        assert_eq!(qemu.directory_in(Path::new("/run")), None);
        assert_eq!(qemu.directory_in(Path::new("/run/ab")), None);
    }

    #[test]
    fn a_tap_is_used_by_the_qemu_that_names_it_whole() {
        let qemu = process("qemu -netdev tap,id=net0,ifname=gw0123456789a,script=no");
        assert!(qemu.uses("gw0123456789a"));
        assert!(!qemu.uses("gw0123456789"));
    }

    #[test]
    fn only_listening_sockets_have_a_port_that_matters() {
        let head = "0: 0B4D0A0A:A7FB 00000000:0000";
        let tail = "00000000:00000000 00:00000000 00000000 0 0 4711 1 0 100 0 0 10 0";
        assert_eq!(
            listener(&format!("{head} 0A {tail}")),
            Some(("4711".to_owned(), 0xA7FB))
        );
        assert_eq!(listener(&format!("{head} 01 {tail}")), None);
    }
}
