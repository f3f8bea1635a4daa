//! Answers of QEMU. Every field may be missing and every word may be new: QEMU adds both.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of a QEMU binary.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub micro: u32,
    /// The packager's text, possibly empty.
    pub package: String,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

#[derive(Deserialize)]
struct Greeting {
    #[serde(rename = "QMP")]
    qmp: GreetingBody,
}

#[derive(Deserialize)]
struct GreetingBody {
    version: VersionInfo,
}

#[derive(Deserialize)]
pub(super) struct VersionInfo {
    qemu: Triple,
    #[serde(default)]
    package: String,
}

#[derive(Deserialize)]
struct Triple {
    major: u32,
    minor: u32,
    micro: u32,
}

impl From<VersionInfo> for Version {
    fn from(info: VersionInfo) -> Self {
        let Triple {
            major,
            minor,
            micro,
        } = info.qemu;
        Self {
            major,
            minor,
            micro,
            package: info.package,
        }
    }
}

pub(super) fn parse_greeting(line: &str) -> Result<Version, serde_json::Error> {
    Ok(serde_json::from_str::<Greeting>(line)?.qmp.version.into())
}

/// What the machine as a whole is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// Stopped by the debugger.
    Debug,
    /// Receives a migration and isn't complete.
    #[serde(rename = "inmigrate")]
    InMigrate,
    /// Stopped by an error inside QEMU.
    InternalError,
    /// Stopped by an error of a disk.
    IoError,
    /// Stopped by command, or loaded and never started.
    Paused,
    /// Stopped complete: the guest went to the target.
    #[serde(rename = "postmigrate")]
    PostMigrate,
    /// Not started since QEMU's start (`-S`).
    #[serde(rename = "prelaunch")]
    PreLaunch,
    /// Stopped while the last pages travel.
    FinishMigrate,
    /// Loading a snapshot.
    RestoreVm,
    /// The CPUs run.
    Running,
    /// Saving a snapshot.
    SaveVm,
    /// The guest powered off.
    Shutdown,
    /// In ACPI sleep.
    Suspended,
    /// Stopped by the watchdog.
    Watchdog,
    /// The guest's kernel panicked.
    GuestPanicked,
    /// A word from a newer QEMU.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Answer to `query-status`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct StatusInfo {
    /// What the machine is doing.
    #[serde(default)]
    pub status: RunState,
    /// Whether the CPUs run.
    #[serde(default)]
    pub running: bool,
}

/// How far a migration is, in either direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStatus {
    /// Never begun in this process.
    #[default]
    None,
    /// Preparing.
    Setup,
    /// Waits for a device to be unplugged.
    WaitUnplug,
    /// Memory travels.
    Active,
    /// The guest is stopped and QEMU waits for `migrate-continue`.
    PreSwitchover,
    /// The last pages and the devices travel.
    Device,
    /// Everything arrived.
    Completed,
    /// Ended with an error; a source resumes by itself.
    Failed,
    /// Being cancelled.
    Cancelling,
    /// Cancelled; a source resumes by itself.
    Cancelled,
    /// The guest runs on the target and fetches pages.
    PostcopyActive,
    /// The devices of a post-copy travel.
    PostcopyDevice,
    /// The link of a post-copy broke.
    PostcopyPaused,
    /// A post-copy is about to be recovered.
    PostcopyRecoverSetup,
    /// A post-copy is being recovered.
    PostcopyRecover,
    /// A word from a newer QEMU, or of a feature that isn't used.
    #[serde(other)]
    Unknown,
}

impl MigrationStatus {
    pub(super) fn parse(value: &Value) -> Self {
        Self::deserialize(value).unwrap_or(Self::Unknown)
    }

    /// Whether the guest runs, or may already run, on the target while pages are still here.
    pub const fn is_postcopy(self) -> bool {
        matches!(
            self,
            Self::PostcopyActive
                | Self::PostcopyDevice
                | Self::PostcopyPaused
                | Self::PostcopyRecoverSetup
                | Self::PostcopyRecover
        )
    }
}

/// Answer to `query-migrate`, on either side.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MigrationInfo {
    /// How far it is.
    pub status: MigrationStatus,
    /// Memory numbers; missing before the first pass and on the target.
    pub ram: Option<MigrationRam>,
    /// Milliseconds since it began.
    pub total_time: Option<u64>,
    /// Milliseconds spent in setup.
    pub setup_time: Option<u64>,
    /// Milliseconds that the guest would stop for now, while active.
    pub expected_downtime: Option<u64>,
    /// Milliseconds that the guest was stopped for as the source saw it, once completed.
    pub downtime: Option<u64>,
    /// How much the guest is slowed down to let the copy converge.
    pub cpu_throttle_percentage: Option<u32>,
    /// First error, for people; never to be parsed.
    pub error_desc: Option<String>,
    /// Why this machine can't be migrated; empty when it can.
    pub blocked_reasons: Vec<String>,
    /// Where an incoming QEMU listens.
    pub socket_address: Vec<SocketAddress>,
}

/// Memory numbers of an outgoing migration, in bytes unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MigrationRam {
    /// Sent so far.
    pub transferred: u64,
    /// Left to send.
    pub remaining: u64,
    /// Guest memory.
    pub total: u64,
    /// Pages that were all zero.
    pub duplicate: u64,
    /// Bytes of pages that were sent whole.
    pub normal_bytes: u64,
    /// Pages dirtied per second over the last pass.
    pub dirty_pages_rate: u64,
    /// Throughput in 10^6 bits per second.
    pub mbps: f64,
    /// Passes over dirty memory that have begun.
    pub dirty_sync_count: u64,
    /// Size of a page.
    pub page_size: u64,
}

/// Where QEMU listens.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum SocketAddress {
    /// TCP.
    Inet {
        /// Address.
        host: String,
        /// Port, a string in QEMU.
        port: String,
    },
    /// A unix socket.
    Unix {
        /// Its path.
        path: String,
    },
    /// Anything else.
    #[serde(other)]
    Other,
}

/// Parameters of `migrate-set-parameters` that are set here; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationParameters {
    /// Bytes per second; 0 is unlimited. QEMU's own default is 128 MiB/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bandwidth: Option<u64>,
    /// Milliseconds that the guest may be stopped for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime_limit: Option<u64>,
    /// Self-announcements that QEMU sends on its own after loading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce_rounds: Option<u64>,
    /// Name of the object that a copy is encrypted with; "" for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_creds: Option<&'static str>,
    /// Whom an encrypted copy goes to, in TLS's words; "" for whoever the address names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_hostname: Option<&'static str>,
}

/// One of `query-machines`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct MachineInfo {
    /// Full name, for example `pc-q35-7.2`.
    pub name: String,
    /// Short name, for example `q35`.
    pub alias: Option<String>,
    /// Most CPUs it takes.
    pub cpu_max: u32,
    /// Whether QEMU will drop it.
    pub deprecated: bool,
}

/// One of `query-cpu-definitions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct CpuDefinition {
    /// Name for `-cpu`.
    pub name: String,
    /// Whether it means the same on every host.
    pub migration_safe: Option<bool>,
    /// Features that this host and accelerator lack; `None` when QEMU can't tell.
    pub unavailable_features: Option<Vec<String>>,
    /// Whether QEMU will drop it.
    pub deprecated: bool,
}

/// One of `query-block`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct BlockDevice {
    /// Legacy name, possibly empty.
    pub device: String,
    /// QOM path of the device; missing for anonymous back-ends.
    pub qdev: Option<String>,
    /// `ok`, `failed` or `nospace`; missing where the device doesn't track it.
    pub io_status: Option<String>,
    /// The image; missing when there is none.
    pub inserted: Option<BlockInserted>,
}

/// The image of a [`BlockDevice`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct BlockInserted {
    /// Path or description.
    pub file: String,
    /// Whether the guest may only read.
    pub ro: bool,
    /// Name of the node.
    pub node_name: Option<String>,
    /// Details of the image.
    pub image: BlockNode,
}

/// Details of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct BlockNode {
    /// Bytes that the guest sees.
    pub virtual_size: u64,
}
