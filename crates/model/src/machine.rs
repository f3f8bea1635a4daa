//! The canonical description of a machine: source and target render the same hardware from it.

use crate::seed::Seed;
use crate::{Bytes, MachineId};
use serde::{Deserialize, Serialize};
use std::fmt;

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
    /// Pages that the guest's memory is made of, a multiple of their size; `None` for ordinary ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugepages: Option<PageSize>,
}

/// Size of huge pages: those that amd64 has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PageSize {
    /// 2 MiB.
    #[serde(rename = "2Mi")]
    Mi2,
    /// 1 GiB.
    #[serde(rename = "1Gi")]
    Gi1,
}

impl PageSize {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Mi2, Self::Gi1];

    /// How large one page is.
    pub const fn bytes(self) -> Bytes {
        match self {
            Self::Mi2 => Bytes::mib(2),
            Self::Gi1 => Bytes::gib(1),
        }
    }

    /// The size of pages of so many bytes; `None` where there are none.
    pub fn of(bytes: Bytes) -> Option<Self> {
        Self::ALL.into_iter().find(|size| size.bytes() == bytes)
    }

    /// The same, where 0 stands for no huge pages.
    ///
    /// # Errors
    /// When there are no such pages: with others it would be another machine.
    pub fn maybe(bytes: u64) -> Result<Option<Self>, NoSuchPages> {
        match Self::of(Bytes(bytes)) {
            None if bytes > 0 => Err(NoSuchPages(bytes)),
            known => Ok(known),
        }
    }
}

/// A number of bytes that is no size of huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are no huge pages of {0} bytes")]
pub struct NoSuchPages(u64);

impl fmt::Display for PageSize {
    /// As Kubernetes has it in `hugepages-2Mi`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mi2 => "2Mi",
            Self::Gi1 => "1Gi",
        })
    }
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
