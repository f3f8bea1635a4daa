//! The part of KubeVirt's VirtualMachineInstance spec that plain hosts can honour, as users write it.
//!
//! Every struct keeps the names of fields that it doesn't know in `rest`, so that what can't be
//! honoured is refused by name instead of being ignored.

use crate::affinity::{Affinity, TopologySpread};
use crate::quantity::{self, InvalidQuantity};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;

/// Fields that a struct doesn't know.
pub type Rest = BTreeMap<String, IgnoredAny>;

/// `spec` of a VirtualMachineInstance.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VmiSpec {
    /// The hardware.
    pub domain: Domain,
    /// Labels that a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the machine bears.
    pub tolerations: Vec<Toleration>,
    /// Which nodes it wants, and whom near.
    pub affinity: Affinity,
    /// How evenly it and its like are to be spread.
    pub topology_spread_constraints: Vec<TopologySpread>,
    /// What to do when its node is emptied; unset takes the cluster's default.
    pub eviction_strategy: Option<String>,
    /// `Paused` leaves the guest paused after the start.
    pub start_strategy: Option<String>,
    /// Seconds between the power button and the end of the process; unset is 30.
    pub termination_grace_period_seconds: Option<u32>,
    /// Where disks come from.
    pub volumes: Vec<Volume>,
    /// Where interfaces go.
    pub networks: Vec<Network>,
    /// Only `amd64`.
    pub architecture: Option<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `spec.tolerations[]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    /// Key of the taint; empty with `Exists` matches all.
    pub key: String,
    /// `Exists` or `Equal`; unset is `Equal`.
    pub operator: Option<String>,
    /// Value of the taint.
    pub value: String,
    /// Effect; unset matches all.
    pub effect: Option<String>,
    /// Seconds of tolerance; only for NoExecute.
    pub toleration_seconds: Option<i64>,
}

/// `spec.domain`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Domain {
    /// CPUs.
    pub cpu: Cpu,
    /// Memory that the guest sees.
    pub memory: Memory,
    /// What Kubernetes would reserve; its memory stands in for `memory.guest`.
    pub resources: Resources,
    /// Machine type.
    pub machine: Machine,
    /// How it boots.
    pub firmware: Firmware,
    /// Disks and interfaces.
    pub devices: Devices,
    /// Only `acpi`, which every machine has.
    pub features: Features,
    /// Only `utc` without offset, which every machine has.
    pub clock: Clock,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `spec.domain.cpu`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cpu {
    /// Cores of a socket.
    pub cores: Option<u32>,
    /// Sockets.
    pub sockets: Option<u32>,
    /// Threads of a core.
    pub threads: Option<u32>,
    /// A named model; unset or `host-model` takes the cluster's.
    pub model: Option<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `spec.domain.memory`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    /// A quantity.
    pub guest: Option<Quantity>,
    /// Pages that it is made of; unset are ordinary ones.
    pub hugepages: Option<Hugepages>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// A quantity, which may be written as a number.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Quantity {
    /// `268435456`
    Number(u64),
    /// `256Mi`
    Text(String),
}

impl Quantity {
    /// As a whole number, rounded up.
    ///
    /// # Errors
    /// When it is none.
    pub fn whole(&self) -> Result<u64, InvalidQuantity> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Text(text) => quantity::parse(text),
        }
    }

    /// In thousandths, rounded up.
    ///
    /// # Errors
    /// When it is no number.
    pub fn milli(&self) -> Result<u64, InvalidQuantity> {
        match self {
            Self::Number(number) => Ok(number.saturating_mul(1000)),
            Self::Text(text) => quantity::parse_milli(text),
        }
    }
}

/// `spec.domain.memory.hugepages`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hugepages {
    /// Size of a page.
    pub page_size: Option<Quantity>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `spec.domain.resources`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// What is reserved.
    pub requests: BTreeMap<String, Quantity>,
    /// What is never passed.
    pub limits: BTreeMap<String, Quantity>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `spec.domain.machine`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// A versioned q35 type; empty or `q35` takes the hosts' newest.
    pub r#type: String,
}

/// `spec.domain.firmware`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Firmware {
    /// Boot a kernel from an image directory of the hosts.
    pub kernel_boot: Option<KernelBoot>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `spec.domain.firmware.kernelBoot`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KernelBoot {
    /// Kernel command line.
    pub kernel_args: String,
    /// Where the kernel is.
    pub container: KernelContainer,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `spec.domain.firmware.kernelBoot.container`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KernelContainer {
    /// Name of an image directory in the hosts' configuration.
    pub image: String,
    /// Path of the kernel in it.
    pub kernel_path: String,
    /// Path of the initial RAM disk in it; empty is none.
    pub initrd_path: String,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `spec.domain.devices`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Devices {
    /// Disks.
    pub disks: Vec<Disk>,
    /// Interfaces.
    pub interfaces: Vec<Interface>,
    /// Machines have no memory balloon: only `false`.
    pub autoattach_mem_balloon: Option<bool>,
    /// Machines have no graphics: only `false`.
    pub autoattach_graphics_device: Option<bool>,
    /// Machines get the interfaces that are listed: only `false`.
    pub autoattach_pod_interface: Option<bool>,
    /// Machines have a serial console: only `true`.
    pub autoattach_serial_console: Option<bool>,
    /// The serial console is kept in a file of the host: only `true`.
    pub log_serial_console: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `spec.domain.devices.disks[]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Disk {
    /// Name of its volume.
    pub name: String,
    /// A plain disk.
    pub disk: Option<DiskTarget>,
    /// The lowest boots.
    pub boot_order: Option<u32>,
    /// Only `none`, which every disk has.
    pub cache: Option<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `spec.domain.devices.disks[].disk`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct DiskTarget {
    /// Only `virtio`.
    pub bus: Option<String>,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `spec.domain.devices.interfaces[]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Interface {
    /// Name of its network.
    pub name: String,
    /// A port of the network's bridge.
    pub bridge: Option<Empty>,
    /// On plain hosts the same as `bridge`: the guest keeps its own address.
    pub masquerade: Option<Empty>,
    /// Fixed MAC address; unset derives one from the machine.
    pub mac_address: Option<String>,
    /// Only `virtio`.
    pub model: Option<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// An object without fields.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Empty {
    /// Everything.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `spec.domain.features`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Features {
    /// Every machine has it.
    pub acpi: Option<IgnoredAny>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `spec.domain.clock`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Clock {
    /// The guest's clock is in UTC.
    pub utc: Option<Empty>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `spec.volumes[]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Volume {
    /// Name that a disk refers to.
    pub name: String,
    /// An image at a path of the host.
    pub host_disk: Option<HostDisk>,
    /// A disk for cloud-init's NoCloud.
    pub cloud_init_no_cloud: Option<CloudInit>,
    /// A disk for cloud-init's ConfigDrive.
    pub cloud_init_config_drive: Option<CloudInit>,
    /// Every other kind of volume.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `spec.volumes[].hostDisk`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct HostDisk {
    /// Absolute path; `.qcow2` at its end makes the format qcow2, else it is raw.
    pub path: String,
    /// `Disk` must exist, `DiskOrCreate` is created with `capacity`.
    pub r#type: String,
    /// Size to create it with.
    pub capacity: Option<Quantity>,
    /// Whether all hosts see the same image at this path; unset is no.
    pub shared: bool,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `spec.volumes[].cloudInitNoCloud` and `.cloudInitConfigDrive`
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CloudInit {
    /// User data as it is.
    pub user_data: Option<String>,
    /// User data in base64.
    pub user_data_base64: Option<String>,
    /// A secret with the user data.
    pub secret_ref: Option<LocalRef>,
    /// Network data as it is.
    pub network_data: Option<String>,
    /// Network data in base64.
    pub network_data_base64: Option<String>,
    /// A secret with the network data.
    pub network_data_secret_ref: Option<LocalRef>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

impl std::fmt::Debug for CloudInit {
    /// Leaves out what may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CloudInit").finish_non_exhaustive()
    }
}

/// An object of the same namespace, by its name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LocalRef {
    /// The name.
    pub name: String,
}

/// `spec.networks[]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Network {
    /// Name that an interface refers to.
    pub name: String,
    /// The hosts' network called `default`.
    pub pod: Option<Empty>,
    /// A network of the hosts by its name.
    pub multus: Option<Multus>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// `spec.networks[].multus`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Multus {
    /// Name of the network in the hosts' configuration.
    pub network_name: String,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}
