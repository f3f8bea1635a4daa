//! One QEMU on this host: its process, its monitor, its devices.
//!
//! Shared by the task that owns the machine and the task that owns a half of a job. It holds no
//! rule: who may call what is decided by those two.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tracing::warn;
use uuid::Uuid;

use godwit_model::MachineId;
use godwit_model::machine::{Kernel, MachineSpec};
use godwit_qemu::process::{self, Identity, Launch, Process, ProcessError, StartError};
use godwit_qemu::secret::Key;
use godwit_qemu::{
    CommandLine, Events, HostLayout, LineError, NicBackend, Qmp, QmpError, Role, image, seed,
};

use crate::confine::{self, ConfineError};
use crate::host::Host;
use crate::hugepages::{Lent, PagesError};
use crate::network::{self, NetworkError, Port, Tap};
use crate::text::chain;

/// How long QEMU may take until its monitor answers; it needs about 0.1 s.
const START_LIMIT: Duration = Duration::from_secs(15);

/// How long an adopted QEMU may take to greet: longer when it still serves an ended connection.
const LINK_LIMIT: Duration = Duration::from_secs(3);

/// Name of the monitor's socket in a QEMU's directory.
const MONITOR: &str = "qmp.sock";

/// Name of the directory with the key of a copy, from or to this QEMU.
const COPY_KEY: &str = "copy-key";

/// Name of the socket of the monitor for people and auditors.
pub(crate) const DEBUG_MONITOR: &str = "debug.sock";

/// Where a QEMU is found again after a restart of the agent; kept on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Its process; `None` while it is being started.
    pub(crate) process: Option<Identity>,
    /// Directory of its sockets.
    pub(crate) directory: PathBuf,
    /// Its taps.
    pub(crate) taps: Vec<Tap>,
}

/// Why a QEMU could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// The host's configuration has no such network.
    #[error("network {0:?} is not configured on this host")]
    Network(String),
    /// The host's configuration has no such image directory.
    #[error("image {0:?} is not configured on this host")]
    Image(String),
    /// A path of the kernel leaves its image directory.
    #[error("path {0:?} is not inside its image directory")]
    Path(String),
    /// A disk is missing and can't be made.
    #[error(transparent)]
    Disk(#[from] image::ImageError),
    /// The disk for cloud-init can't be made.
    #[error("make the disk for cloud-init")]
    Seed(#[from] seed::SeedError),
    /// The machine names what its QEMU may not have.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// A tap could not be made.
    #[error("make taps")]
    Tap(#[from] NetworkError),
    /// The directory of its sockets could not be made.
    #[error("make the run directory")]
    Directory(#[source] io::Error),
    /// There are no huge pages for it.
    #[error(transparent)]
    Pages(#[from] PagesError),
    /// The description can't be rendered.
    #[error("render the command line")]
    Line(#[from] LineError),
    /// An earlier process for the same purpose is still there.
    #[error("process {0} of this machine still runs")]
    Occupied(u32),
    /// The process could not be looked for.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// QEMU did not come up.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// A QEMU process and what belongs to it. Dropping it leaves the process alone.
#[derive(Debug)]
pub(crate) struct Vm {
    process: Process,
    place: Place,
    monitor: Mutex<Option<Qmp>>,
}

impl Vm {
    /// Starts a QEMU for `spec`, paused. `owner` is the job it is for, empty for a plain start.
    ///
    /// # Errors
    /// See [`LaunchError`]; nothing is left behind then.
    pub(crate) async fn launch(
        host: &Host,
        spec: &MachineSpec,
        role: Role,
        owner: &str,
    ) -> Result<Self, LaunchError> {
        let ports = ports(host, spec)?;
        let directory = directory(&host.config.run_dir, &spec.id, owner);
        if let Some(found) = process::find(&directory.join("qemu.pid"))? {
            return Err(LaunchError::Occupied(found.identity().pid));
        }
        let spec = &at_home(spec, &directory);
        for disk in spec.disks.iter().filter(|disk| disk.seed.is_none()) {
            confine::place(&host.config, disk)?;
            image::ensure(disk)?;
            confine::disk(&host.config, disk)?;
            image::check(disk)?;
        }
        let mut layout = HostLayout::in_directory(&directory, host.facts.accelerator, spec);
        if let Some(kernel) = &spec.kernel {
            (layout.kernel, layout.initrd) = kernel_files(host, kernel)?;
        }
        let user = host.config.qemu_user.as_ref();
        // Until QEMU has opened its file there.
        let lent = spec.hugepages.map(|size| Lent::new(size, &directory, user));
        let lent = lent.transpose()?;
        layout.hugepages = lent.as_ref().map(|lent| lent.0.clone());
        std::fs::create_dir_all(&directory).map_err(LaunchError::Directory)?;
        let taps = network::make(&spec.id, owner, &ports, user).await?;
        layout.nics = taps
            .iter()
            .map(|tap| NicBackend::Tap(tap.device.clone()))
            .collect();
        match start(host, spec, role, &layout).await {
            Ok((process, monitor)) => {
                network::follow(&host.addresses, &taps);
                let place = Place {
                    process: Some(process.identity().clone()),
                    directory,
                    taps,
                };
                Ok(Self {
                    process,
                    place,
                    monitor: Mutex::new(Some(monitor)),
                })
            }
            Err(error) => {
                clean(
                    host,
                    &Place {
                        process: None,
                        directory,
                        taps,
                    },
                )
                .await;
                Err(error)
            }
        }
    }

    /// The QEMU of `place`, when its process still runs. Its monitor is connected on first use.
    ///
    /// # Errors
    /// When `/proc` can't be read.
    pub(crate) fn adopt(host: &Host, place: Place) -> Result<Option<Self>, ProcessError> {
        let Some(identity) = &place.process else {
            return Ok(None);
        };
        let Some(process) = Process::adopt(identity)? else {
            return Ok(None);
        };
        network::follow(&host.addresses, &place.taps);
        Ok(Some(Self {
            process,
            place,
            monitor: Mutex::new(None),
        }))
    }

    /// Which process this is.
    pub(crate) const fn identity(&self) -> &Identity {
        self.process.identity()
    }

    /// Where it is found again.
    pub(crate) const fn place(&self) -> &Place {
        &self.place
    }

    /// The monitor, connected again when the connection has ended.
    ///
    /// # Errors
    /// When QEMU doesn't greet within 3 s.
    pub(crate) async fn monitor(&self) -> Result<Qmp, QmpError> {
        let mut monitor = self.monitor.lock().await;
        if let Some(qmp) = monitor.as_ref().filter(|qmp| !qmp.is_closed()) {
            return Ok(qmp.clone());
        }
        // The old connection first: QEMU serves one client a socket.
        *monitor = None;
        let (qmp, _) = Qmp::connect(&self.place.directory.join(MONITOR), LINK_LIMIT).await?;
        *monitor = Some(qmp.clone());
        Ok(qmp)
    }

    /// A reader of events from here on, with the monitor they belong to.
    ///
    /// # Errors
    /// As [`Self::monitor`].
    pub(crate) async fn events(&self) -> Result<(Qmp, Events), QmpError> {
        let qmp = self.monitor().await?;
        let events = qmp.events();
        Ok((qmp, events))
    }

    /// Waits until its process has ended. Cancel safe.
    pub(crate) async fn exited(&self) {
        self.process.exited().await;
    }

    /// Kills the process; see [`Self::exited`].
    ///
    /// # Errors
    /// When the kernel refuses the signal.
    pub(crate) fn kill(&self) -> Result<(), ProcessError> {
        self.process.kill()
    }

    /// Kills the process, waits until it is gone, and removes its devices and sockets.
    ///
    /// # Errors
    /// When the kernel refuses the signal; nothing is removed then.
    pub(crate) async fn end(&self, host: &Host) -> Result<(), ProcessError> {
        self.kill()?;
        self.process.exited().await;
        clean(host, &self.place).await;
        Ok(())
    }

    /// Where the key of a copy is while QEMU has yet to read it.
    pub(crate) fn copy_key(&self) -> PathBuf {
        self.place.directory.join(COPY_KEY)
    }

    /// Puts the key of a copy where QEMU reads it, in place of what is there.
    ///
    /// # Errors
    /// A text for people, when the disk refuses.
    pub(crate) fn put_copy_key(&self, host: &Host, key: &Key) -> Result<(), String> {
        let failed = |why: String| format!("keep the key of the copy: {why}");
        self.forget_copy_key();
        let directory = self.copy_key();
        key.write(&directory)
            .map_err(|error| failed(error.to_string()))?;
        let user = host.config.qemu_user.as_ref();
        confine::hand_over(&directory, user).map_err(|error| failed(chain(&error)))
    }

    /// Removes the key of a copy: QEMU has it in memory, or nobody needs it any more.
    pub(crate) fn forget_copy_key(&self) {
        if let Err(error) = Key::remove(&self.copy_key()) {
            warn!(directory = %self.place.directory.display(), %error, "key of a copy left behind");
        }
    }

    /// What it last wrote to its log, for the text of an error.
    pub(crate) fn last_words(&self) -> String {
        process::log_tail(&log(&self.place.directory))
    }
}

/// Removes the devices and sockets of a QEMU that has ended.
pub(crate) async fn clean(host: &Host, place: &Place) {
    for tap in &place.taps {
        host.addresses.forget(tap.index);
    }
    network::remove(&place.taps).await;
    match std::fs::remove_dir_all(&place.directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(directory = %place.directory.display(), %error, "run directory left behind");
        }
        _ => {}
    }
}

/// Ends a QEMU that was being started when the agent died: it never ran a guest.
///
/// # Errors
/// When it can't be looked for or killed.
pub(crate) async fn end_unfinished(
    host: &Host,
    machine: &MachineId,
    owner: &str,
) -> Result<(), ProcessError> {
    let directory = directory(&host.config.run_dir, machine, owner);
    if let Some(process) = process::find(&directory.join("qemu.pid"))? {
        process.kill()?;
        process.exited().await;
    }
    let taps = network::leftovers(machine, owner);
    clean(
        host,
        &Place {
            process: None,
            directory,
            taps,
        },
    )
    .await;
    Ok(())
}

/// `spec` with a place in `directory` for each disk that this host makes for the machine alone.
fn at_home(spec: &MachineSpec, directory: &Path) -> MachineSpec {
    let mut spec = spec.clone();
    for disk in spec.disks.iter_mut().filter(|disk| disk.seed.is_some()) {
        let place = directory.join(format!("{}.seed", disk.name));
        disk.path = place.display().to_string();
    }
    spec
}

/// What each interface of `spec` is to be connected to on this host.
///
/// # Errors
/// When a network isn't configured.
pub(crate) fn ports(host: &Host, spec: &MachineSpec) -> Result<Vec<Port>, LaunchError> {
    let port = |nic: &godwit_model::machine::Nic| {
        let bridge = host.config.networks.get(&nic.network).cloned();
        let bridge = bridge.ok_or_else(|| LaunchError::Network(nic.network.clone()))?;
        Ok(Port {
            nic: nic.clone(),
            bridge,
        })
    };
    spec.nics.iter().map(port).collect()
}

/// The files of `kernel` on this host: the kernel's, and the initial RAM disk's if there is one.
///
/// # Errors
/// When the image isn't configured or a path leaves its directory.
pub(crate) fn kernel_files(
    host: &Host,
    kernel: &Kernel,
) -> Result<(Option<PathBuf>, Option<PathBuf>), LaunchError> {
    let directory = host.config.images.get(&kernel.image);
    let directory = directory.ok_or_else(|| LaunchError::Image(kernel.image.clone()))?;
    let initrd = match kernel.initrd_path.as_str() {
        "" => None,
        path => Some(inside(directory, path)?),
    };
    Ok((Some(inside(directory, &kernel.kernel_path)?), initrd))
}

fn inside(directory: &Path, path: &str) -> Result<PathBuf, LaunchError> {
    use std::path::Component;
    let relative = path.trim_start_matches('/');
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if relative.is_empty() || !Path::new(relative).components().all(plain) {
        return Err(LaunchError::Path(path.to_owned()));
    }
    Ok(directory.join(relative))
}

async fn start(
    host: &Host,
    spec: &MachineSpec,
    role: Role,
    layout: &HostLayout,
) -> Result<(Process, Qmp), LaunchError> {
    for disk in &spec.disks {
        if let Some(seed) = &disk.seed {
            seed::write(seed, Path::new(&disk.path))?;
        }
    }
    let line = CommandLine::render(spec, layout, role)?;
    let directory = layout.qmp_socket.parent().unwrap_or(&host.config.run_dir);
    let user = host.config.qemu_user.as_ref();
    confine::hand_over(directory, user)?;
    let launch = Launch {
        binary: &host.facts.binary,
        arguments: &line.arguments,
        log: &log(directory),
        qmp_socket: &layout.qmp_socket,
        limit: START_LIMIT,
        user,
    };
    let (process, qmp, _) = process::launch(launch).await?;
    Ok((process, qmp))
}

fn log(directory: &Path) -> PathBuf {
    directory.join("qemu.log")
}

/// Whether anything is left of a QEMU for `owner`: its directory goes last.
pub(crate) fn has_remains(host: &Host, machine: &MachineId, owner: &str) -> bool {
    directory(&host.config.run_dir, machine, owner).exists()
}

/// Short, since a unix socket's path has 107 bytes; the same for the same purpose, so that it is
/// found again.
fn directory(run_dir: &Path, machine: &MachineId, owner: &str) -> PathBuf {
    let id = Uuid::new_v5(
        &Uuid::NAMESPACE_OID,
        format!("{machine}/{owner}").as_bytes(),
    );
    run_dir.join(&id.simple().to_string()[..16])
}

/// Whether [`directory`] may have made this name.
pub(crate) fn is_directory_name(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_path_never_leaves_its_image_directory() {
        let images = Path::new("/images/tiny");
        let found = inside(images, "/boot/vmlinuz").expect("inside");
        assert_eq!(found, Path::new("/images/tiny/boot/vmlinuz"));
        for bad in ["", "/", "../x", "a/../../x"] {
            assert!(inside(images, bad).is_err(), "{bad:?}");
        }
    }
}
