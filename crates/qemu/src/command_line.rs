//! The command line: from a machine's description and this host's paths to QEMU's arguments.
//!
//! Pure. Both hosts of a migration render the same hardware from the same description: every
//! device has a fixed id, bus and address, since QEMU notices a difference only at the switchover,
//! if at all. Only what [`HostLayout`] and [`Role`] carry may differ from host to host.

use godwit_model::Bytes;
use godwit_model::machine::{Disk, ImageFormat, MachineSpec, Nic, PageSize};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};

mod memory;

pub use memory::takes_hugepages;

/// First PCI slot of the disks; slots 1 and 2 stay free for a display and the like.
const DISK_SLOT: usize = 0x3;

/// Most disks of a machine: slots 0x3 to 0xe.
pub const DISKS_MAX: usize = 12;

/// First PCI slot of the network interfaces, apart from the disks so that adding a disk to a
/// machine never moves its interfaces.
const NIC_SLOT: usize = 0x10;

/// Most network interfaces of a machine: slots 0x10 to 0x17.
pub const NICS_MAX: usize = 8;

/// PCI slot of the controller for the guest agent's port.
const SERIAL_SLOT: usize = 0x1d;

/// Longest path of a unix socket (`sun_path` without its final zero).
const SOCKET_PATH_MAX: usize = 107;

/// How the CPUs are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The kernel's virtual machines.
    Kvm,
    /// QEMU's translator: slow, and works everywhere.
    Tcg,
}

impl Accelerator {
    /// QEMU's name for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// Whether a QEMU starts a guest or waits for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Starts from disk or kernel, paused.
    Start,
    /// Waits for `migrate-incoming`, then stays paused.
    Incoming,
}

/// What a network interface is connected to on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NicBackend {
    /// An existing tap device, by name.
    Tap(String),
    /// QEMU's own network, for hosts without rights to make devices: no address is reachable from
    /// outside. Each forward is `(host port on 127.0.0.1, guest port)`, TCP.
    User {
        /// Ports of this host that lead into the guest.
        forwards: Vec<(u16, u16)>,
    },
}

/// What differs from host to host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLayout {
    /// How the CPUs are run. A guest never moves between the two.
    pub accelerator: Accelerator,
    /// One for each of the machine's interfaces, in their order.
    pub nics: Vec<NicBackend>,
    /// Whether direct I/O works, for each of the machine's disks, in their order.
    /// See [`crate::image::direct_io`].
    pub direct_io: Vec<bool>,
    /// The kernel's file; `None` when the machine has no kernel of its own.
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk's file; `None` when there is none.
    pub initrd: Option<PathBuf>,
    /// Directory of a hugetlbfs with pages of the machine's size; `None` when its memory is ordinary.
    pub hugepages: Option<PathBuf>,
    /// File that serial output is appended to.
    pub serial_log: PathBuf,
    /// Socket of the serial console, both ways.
    pub serial_socket: PathBuf,
    /// QMP socket of the agent.
    pub qmp_socket: PathBuf,
    /// QMP socket for people.
    pub debug_socket: PathBuf,
    /// Socket of the guest agent's port.
    pub guest_agent_socket: PathBuf,
    /// File that QEMU writes its process id to; also how [`crate::process::find`] knows it.
    pub pid_file: PathBuf,
}

impl HostLayout {
    /// The usual names in a machine's own directory, without devices: no interfaces, no kernel,
    /// direct I/O as the images allow.
    pub fn in_directory(directory: &Path, accelerator: Accelerator, spec: &MachineSpec) -> Self {
        let direct = |disk: &Disk| crate::image::direct_io(Path::new(&disk.path));
        Self {
            accelerator,
            nics: Vec::new(),
            direct_io: spec.disks.iter().map(direct).collect(),
            kernel: None,
            initrd: None,
            hugepages: None,
            serial_log: directory.join("serial.log"),
            serial_socket: directory.join("serial.sock"),
            qmp_socket: directory.join("qmp.sock"),
            debug_socket: directory.join("debug.sock"),
            guest_agent_socket: directory.join("agent.sock"),
            pid_file: directory.join("qemu.pid"),
        }
    }
}

/// Why a machine can't be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// A word has characters that QEMU would read as something else.
    #[error("{what} {value:?} has characters that are not allowed")]
    Word {
        /// Which word.
        what: &'static str,
        /// What it says.
        value: String,
    },
    /// More of something than a machine can hold.
    #[error("machine has {count} {what}, at most {max} are possible")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// The host's layout was made for another machine.
    #[error("host layout has {found} {what}, machine has {needed}")]
    Layout {
        /// Of what.
        what: &'static str,
        /// How many the layout has.
        found: usize,
        /// How many the machine has.
        needed: usize,
    },
    /// A socket's path is longer than the kernel takes.
    #[error("socket path {0:?} is longer than 107 bytes")]
    SocketPath(PathBuf),
    /// A path that is not UTF-8, which QEMU's options can't carry.
    #[error("path {0:?} is not UTF-8")]
    Path(PathBuf),
    /// No CPU or no memory.
    #[error("machine has no {0}")]
    Nothing(&'static str),
    /// Memory that is not made of whole pages.
    #[error("memory of {memory} is no multiple of pages of {size}")]
    Pages {
        /// The machine's memory.
        memory: Bytes,
        /// Size of its pages.
        size: PageSize,
    },
}

/// Rendered arguments, without the name of the binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// The arguments, in a fixed order.
    pub arguments: Vec<String>,
}

impl CommandLine {
    /// Renders `spec` for this host. Always paused (`-S`): nothing runs before the agent says so.
    ///
    /// # Errors
    /// See [`LineError`]: the description or the layout can't be honoured.
    pub fn render(spec: &MachineSpec, host: &HostLayout, role: Role) -> Result<Self, LineError> {
        check(spec, host)?;
        let mut line = Line::default();
        machine(&mut line, spec, host)?;
        process(&mut line, host, role)?;
        let bus = if spec.machine_type.contains("i440fx") {
            "pci.0"
        } else {
            "pcie.0"
        };
        for (index, disk) in spec.disks.iter().enumerate() {
            line.disk(disk, Place { bus, index }, host.direct_io[index]);
        }
        for (index, nic) in spec.nics.iter().enumerate() {
            line.nic(nic, Place { bus, index }, &host.nics[index]);
        }
        serial(&mut line, host, bus)?;
        kernel(&mut line, spec, host)?;
        Ok(Self {
            arguments: line.arguments,
        })
    }
}

fn check(spec: &MachineSpec, host: &HostLayout) -> Result<(), LineError> {
    word("namespace", &spec.namespace)?;
    word("name", &spec.name)?;
    word("machine type", &spec.machine_type)?;
    word("cpu model", &spec.cpu_model)?;
    for disk in &spec.disks {
        word("disk name", &disk.name)?;
    }
    for nic in &spec.nics {
        word("interface name", &nic.name)?;
        word("mac address", &nic.mac)?;
    }
    for backend in &host.nics {
        if let NicBackend::Tap(device) = backend {
            word("tap device", device)?;
        }
    }
    if spec.cpus == 0 {
        return Err(LineError::Nothing("cpus"));
    }
    if spec.memory.0 == 0 {
        return Err(LineError::Nothing("memory"));
    }
    if let Some(size) = spec.hugepages
        && !spec.memory.0.is_multiple_of(size.bytes().0)
    {
        let memory = spec.memory;
        return Err(LineError::Pages { memory, size });
    }
    at_most("disks", spec.disks.len(), DISKS_MAX)?;
    at_most("interfaces", spec.nics.len(), NICS_MAX)?;
    same("disks", host.direct_io.len(), spec.disks.len())?;
    same("interfaces", host.nics.len(), spec.nics.len())?;
    same(
        "directories of huge pages",
        usize::from(host.hugepages.is_some()),
        usize::from(spec.hugepages.is_some()),
    )?;
    same(
        "kernels",
        usize::from(host.kernel.is_some()),
        usize::from(spec.kernel.is_some()),
    )
}

/// Words go between commas and equal signs, so they may hold neither.
fn word(what: &'static str, value: &str) -> Result<(), LineError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if !value.is_empty() && value.chars().all(allowed) {
        return Ok(());
    }
    Err(LineError::Word {
        what,
        value: value.to_owned(),
    })
}

const fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), LineError> {
    if count <= max {
        Ok(())
    } else {
        Err(LineError::TooMany { what, count, max })
    }
}

const fn same(what: &'static str, found: usize, needed: usize) -> Result<(), LineError> {
    if found == needed {
        Ok(())
    } else {
        Err(LineError::Layout {
            what,
            found,
            needed,
        })
    }
}

/// What the guest sees of the board: the same on both hosts but for the accelerator.
fn machine(line: &mut Line, spec: &MachineSpec, host: &HostLayout) -> Result<(), LineError> {
    let memory_kib = memory::kib(spec, host.accelerator);
    let cpus = spec.cpus;
    line.pair(
        "-name",
        format!("guest={}/{},debug-threads=on", spec.namespace, spec.name),
    );
    line.pair("-uuid", spec.id.to_string());
    line.pair(
        "-machine",
        format!("{},usb=off,memory-backend=ram0", spec.machine_type),
    );
    line.pair("-accel", host.accelerator.as_str());
    line.pair("-cpu", format!("{},enforce", spec.cpu_model));
    line.pair(
        "-smp",
        format!("cpus={cpus},sockets=1,cores={cpus},threads=1,maxcpus={cpus}"),
    );
    line.pair("-m", format!("size={memory_kib}K"));
    line.pair("-object", memory::backend(memory_kib, host)?);
    line.pair("-rtc", "base=utc,driftfix=slew");
    line.pair("-boot", "strict=on");
    Ok(())
}

/// How the process behaves on this host.
fn process(line: &mut Line, host: &HostLayout, role: Role) -> Result<(), LineError> {
    line.flag("-nodefaults");
    line.flag("-no-user-config");
    line.pair("-display", "none");
    // A guest that powers off leaves a process in runstate `shutdown`, which an agent that was away
    // can tell from a crash; the agent quits it.
    line.flag("-no-shutdown");
    line.flag("-S");
    line.pair(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    line.pair("-msg", "timestamp=on");
    line.pair("-pidfile", text(&host.pid_file)?);
    line.pair(
        "-qmp",
        format!("unix:{},server=on,wait=off", socket(&host.qmp_socket)?),
    );
    line.pair(
        "-qmp",
        format!("unix:{},server=on,wait=off", socket(&host.debug_socket)?),
    );
    match role {
        Role::Start => {}
        Role::Incoming => line.pair("-incoming", "defer"),
    }
    Ok(())
}

/// Console and guest agent: always there, so that they never make two hosts differ.
fn serial(line: &mut Line, host: &HostLayout, bus: &str) -> Result<(), LineError> {
    let console = socket(&host.serial_socket)?;
    let log = escaped(&host.serial_log)?;
    line.pair(
        "-chardev",
        format!("socket,id=serial0,path={console},server=on,wait=off,logfile={log},logappend=on"),
    );
    line.pair("-serial", "chardev:serial0");
    let agent = socket(&host.guest_agent_socket)?;
    line.pair(
        "-chardev",
        format!("socket,id=agent0,path={agent},server=on,wait=off"),
    );
    line.pair(
        "-device",
        format!("virtio-serial-pci,id=serial1,bus={bus},addr={SERIAL_SLOT:#x}"),
    );
    line.pair(
        "-device",
        "virtserialport,bus=serial1.0,nr=1,chardev=agent0,name=org.qemu.guest_agent.0",
    );
    Ok(())
}

fn kernel(line: &mut Line, spec: &MachineSpec, host: &HostLayout) -> Result<(), LineError> {
    let (Some(wanted), Some(kernel)) = (&spec.kernel, &host.kernel) else {
        return Ok(());
    };
    line.pair("-kernel", text(kernel)?);
    if let Some(initrd) = &host.initrd {
        line.pair("-initrd", text(initrd)?);
    }
    if !wanted.arguments.is_empty() {
        line.pair("-append", wanted.arguments.as_str());
    }
    Ok(())
}

fn text(path: &Path) -> Result<String, LineError> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| LineError::Path(path.to_owned()))
}

/// A path as the value of a key: QEMU reads two commas as one.
fn escaped(path: &Path) -> Result<String, LineError> {
    Ok(text(path)?.replace(',', ",,"))
}

fn socket(path: &Path) -> Result<String, LineError> {
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(LineError::SocketPath(path.to_owned()));
    }
    escaped(path)
}

/// Where a device sits.
#[derive(Clone, Copy)]
struct Place<'a> {
    bus: &'a str,
    /// Position among the devices of its kind.
    index: usize,
}

#[derive(Default)]
struct Line {
    arguments: Vec<String>,
}

impl Line {
    fn flag(&mut self, flag: &str) {
        self.arguments.push(flag.to_owned());
    }

    fn pair(&mut self, option: &str, value: impl Into<String>) {
        self.arguments.push(option.to_owned());
        self.arguments.push(value.into());
    }

    fn disk(&mut self, disk: &Disk, place: Place<'_>, direct: bool) {
        let Place { bus, index } = place;
        let driver = match disk.format {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
        };
        let cache = json!({ "direct": direct, "no-flush": false });
        // JSON, so that a path can hold anything.
        let file = json!({
            "driver": "file", "node-name": format!("file{index}"), "filename": disk.path,
            "locking": "on", "aio": "threads", "read-only": disk.read_only, "cache": cache,
        });
        let format = json!({
            "driver": driver, "node-name": format!("disk{index}"), "file": format!("file{index}"),
            "read-only": disk.read_only, "cache": cache,
        });
        self.pair("-blockdev", file.to_string());
        self.pair("-blockdev", format.to_string());
        let mut device = format!(
            "virtio-blk-pci,id=disk-{},drive=disk{index},bus={bus},addr={:#x},write-cache=on",
            disk.name,
            DISK_SLOT + index,
        );
        if disk.boot {
            device.push_str(&format!(",bootindex={index}"));
        }
        self.pair("-device", device);
    }

    fn nic(&mut self, nic: &Nic, place: Place<'_>, backend: &NicBackend) {
        let Place { bus, index } = place;
        let netdev = match backend {
            NicBackend::Tap(device) => {
                format!("tap,id=net{index},ifname={device},script=no,downscript=no,vhost=off")
            }
            NicBackend::User { forwards } => {
                let mut netdev = format!("user,id=net{index}");
                for (host, guest) in forwards {
                    netdev.push_str(&format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
                }
                netdev
            }
        };
        self.pair("-netdev", netdev);
        // An empty romfile: the boot ROM's size may differ between versions of QEMU's data files.
        self.pair(
            "-device",
            format!(
                "virtio-net-pci,id=nic-{},netdev=net{index},mac={},bus={bus},addr={:#x},romfile=",
                nic.name,
                nic.mac,
                NIC_SLOT + index,
            ),
        );
    }
}

#[cfg(test)]
mod tests;
