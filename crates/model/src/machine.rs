//! The canonical description of a machine: source and target render the same hardware from it.

use crate::seed::Seed;
use crate::{Bytes, MachineId};
use serde::{Deserialize, Serialize};

/// Everything a host needs to build the machine, and nothing that differs from host to host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// The instance's UID, also the machine's SMBIOS UUID.
    pub id: MachineId,
    /// Namespace of the instance.
    pub namespace: String,
    /// Name of the instance.
    pub name: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory.
    pub memory: Bytes,
    /// Versioned machine type, never an alias, for example `pc-q35-7.2`.
    pub machine_type: String,
    /// Named CPU model, never `host` or `max`, which are not safe to migrate.
    pub cpu_model: String,
    /// Disks in the order of their PCI slots.
    pub disks: Vec<Disk>,
    /// Network interfaces in the order of their PCI slots.
    pub nics: Vec<Nic>,
    /// Direct kernel boot; `None` boots from disk.
    pub kernel: Option<Kernel>,
}

impl MachineSpec {
    /// Writable disks that only one host can see.
    pub fn local_disks(&self) -> impl Iterator<Item = &Disk> {
        self.disks
            .iter()
            .filter(|disk| !disk.shared && !disk.read_only)
    }
}

/// One disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Name of the disk in the instance, also its device id.
    pub name: String,
    /// Path of the image, the same on all hosts when `shared`.
    pub path: String,
    /// Format of the image: fixed, since probing lets a guest choose.
    pub format: ImageFormat,
    /// Whether all hosts see the same image at this path.
    pub shared: bool,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Size to create a missing image with; `None` means that it must exist.
    pub create: Option<Bytes>,
    /// Whether the firmware boots from it.
    pub boot: bool,
    /// What each host makes the disk from, at a place of its own; `path` is empty until then.
    #[serde(default)]
    pub seed: Option<Seed>,
}

/// Format of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// Plain bytes.
    Raw,
    /// QEMU's copy-on-write format, version 3.
    Qcow2,
}

/// One network interface of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Name of the interface in the instance, also its device id.
    pub name: String,
    /// MAC address in lower-case colon form.
    pub mac: String,
    /// Network in the hosts' configuration, which maps it to a bridge.
    pub network: String,
}

/// Kernel and initial RAM disk from a named image directory of the hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// Name of the image directory in the hosts' configuration.
    pub image: String,
    /// Path of the kernel, relative to the directory.
    pub kernel_path: String,
    /// Path of the initial RAM disk, relative to the directory; empty means none.
    pub initrd_path: String,
    /// Kernel command line.
    pub arguments: String,
}
