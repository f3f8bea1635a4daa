//! Moving a guest: the QMP conversations of the source and of the target.
//!
//! Carries out what a host's half of a migration decided, and never decides. The one rule it
//! enforces by itself is the last line of defence: [`continue_guest`] runs a loaded guest only when
//! QEMU says that it is complete. Whether this copy may run at all is decided by
//! `godwit_model::migration`, from the source's proof.

use crate::outgoing::Outgoing;
use crate::qmp::{
    Endpoint, MigrationInfo, MigrationParameters, MigrationStatus, Qmp, QmpError, RunState,
    SocketAddress, TlsKey,
};
use crate::secret::KEY_NAME;
use godwit_model::migration::fact::Progress;
use godwit_model::migration::source::CopyStatus;
use godwit_model::{Bytes, BytesPerSecond};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// QEMU's name for the object that holds the key of a copy.
const KEY_OBJECT: &str = "copy-key";

/// Longest wait for a machine whose migration is completed already, and how often it is asked.
const FINISH_MAX: Duration = Duration::from_secs(1);
const FINISH_POLL: Duration = Duration::from_millis(2);

/// Limits of one copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes per second while copying; 0 is unlimited. QEMU lifts it for the switchover.
    pub bandwidth: BytesPerSecond,
    /// Longest stop that QEMU may plan for.
    pub downtime: Duration,
    /// Whether QEMU may slow the guest down to let the copy converge.
    pub auto_converge: bool,
}

/// Where a target listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// For the source's QEMU, for example `tcp:10.77.0.12:39037`.
    pub uri: String,
    /// The TCP port that QEMU chose.
    pub port: u16,
}

/// How [`continue_guest`] or [`resume_source`] found the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Continued {
    /// It was paused and runs since this call.
    Now,
    /// It ran before this call.
    Already,
}

/// Why a step of a migration wasn't done.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// QEMU refused or didn't answer.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// The guest is not in a state that allows the step; nothing was done.
    #[error("cannot {step}: machine is {runstate:?}, migration is {migration:?}")]
    State {
        /// What was to be done.
        step: &'static str,
        /// What the machine does.
        runstate: RunState,
        /// How far the migration is.
        migration: MigrationStatus,
    },
    /// No connection to the target.
    #[error("connect to {uri}")]
    Connect {
        /// Where to.
        uri: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// QEMU listens, but does not say on which port.
    #[error("qemu does not say where it listens")]
    NoAddress,
    /// Something about the machine keeps it from moving, in QEMU's words.
    #[error("machine cannot be migrated: {}", .0.join("; "))]
    Blocked(Vec<String>),
    /// The copy did not end within the limit.
    #[error("migration is still {0:?}")]
    NotEnded(MigrationStatus),
}

/// Whether a copy travels encrypted: the directory of its key, as [`crate::secret::Key::write`]
/// left it; `None` sends memory in the clear.
pub type Encryption<'a> = Option<&'a Path>;

/// Makes a QEMU that was started with `-incoming defer` listen on a free port of `address`. With a
/// key it takes a copy from nobody else than who has that key, too; it reads the key again when it
/// is connected to.
///
/// # Errors
/// Any; the QEMU is of no further use then.
pub async fn prepare_incoming(
    qmp: &Qmp,
    address: IpAddr,
    encryption: Encryption<'_>,
) -> Result<Incoming, MigrateError> {
    let tls_creds = encrypt(qmp, encryption, Endpoint::Server).await?;
    let known = qmp.migrate_capabilities().await?;
    // Without `late-block-activate` a loaded target takes the image locks before it may run, and
    // the source could not resume (measured with QEMU 7.2); without `return-path` the source would
    // report `completed` before this side has loaded everything.
    let wanted: Vec<(&str, bool)> = [
        "events",
        "return-path",
        "late-block-activate",
        "validate-uuid",
    ]
    .into_iter()
    .filter(|name| known.iter().any(|listed| listed == name))
    .map(|name| (name, true))
    .collect();
    // The real announcement comes after `cont`, by command: see `announce`. Not 0, which leaves
    // virtio-net without its timer, and the guest's next reset or power-off then kills QEMU
    // (SIGSEGV in `timer_del`, measured with QEMU 7.2).
    let parameters = MigrationParameters {
        announce_rounds: Some(1),
        tls_creds: Some(tls_creds),
        ..Default::default()
    };
    let host = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let listen = format!("tcp:{host}:0");
    let (capabilities, parameters) = tokio::join!(
        qmp.migrate_set_capabilities(&wanted),
        qmp.migrate_set_parameters(parameters),
    );
    capabilities.and(parameters)?;
    qmp.migrate_incoming(&listen).await?;
    let port = port(&qmp.query_migrate().await?).ok_or(MigrateError::NoAddress)?;
    Ok(Incoming {
        uri: format!("tcp:{host}:{port}"),
        port,
    })
}

fn port(info: &MigrationInfo) -> Option<u16> {
    info.socket_address
        .iter()
        .find_map(|address| match address {
            SocketAddress::Inet { port, .. } => port.parse().ok(),
            SocketAddress::Unix { .. } | SocketAddress::Other => None,
        })
}

/// Gives QEMU the key of a copy, and returns what its parameter `tls-creds` has to be.
async fn encrypt(
    qmp: &Qmp,
    encryption: Encryption<'_>,
    endpoint: Endpoint,
) -> Result<&'static str, QmpError> {
    // What an earlier copy from here, or the one that it came by, has left; mostly there is none.
    match qmp.remove_object(KEY_OBJECT).await {
        Ok(()) | Err(QmpError::Refused { .. }) => {}
        Err(other) => return Err(other),
    }
    let Some(directory) = encryption else {
        return Ok("");
    };
    let key = TlsKey {
        directory,
        name: KEY_NAME,
        endpoint,
    };
    qmp.add_tls_key(KEY_OBJECT, key).await?;
    Ok(KEY_OBJECT)
}

/// Begins the copy to `uri`. It stops in pre-switchover and stays there. A key is read at once and
/// needed no longer afterwards.
///
/// # Errors
/// [`MigrateError::Blocked`] when a device can't travel, [`MigrateError::State`] when the guest
/// isn't running or paused, [`MigrateError::Connect`], and any refusal of QEMU. On an unknown
/// outcome, ask [`status`].
pub async fn begin(
    qmp: &Qmp,
    uri: &str,
    limits: Limits,
    encryption: Encryption<'_>,
) -> Result<(), MigrateError> {
    let wanted = [
        ("events", true),
        ("return-path", true),
        ("pause-before-switchover", true),
        ("validate-uuid", true),
        ("auto-converge", limits.auto_converge),
    ];
    let parameters = MigrationParameters {
        tls_creds: Some(encrypt(qmp, encryption, Endpoint::Client).await?),
        // QEMU wants a name where it doesn't know the address; with a shared key it means nothing.
        tls_hostname: Some(if encryption.is_some() { KEY_NAME } else { "" }),
        ..parameters(limits)
    };
    let (machine, info, capabilities, parameters) = tokio::join!(
        qmp.query_status(),
        qmp.query_migrate(),
        qmp.migrate_set_capabilities(&wanted),
        qmp.migrate_set_parameters(parameters),
    );
    let (machine, info) = (machine?, info?);
    if !matches!(machine.status, RunState::Running | RunState::Paused) {
        return Err(MigrateError::State {
            step: "begin a copy",
            runstate: machine.status,
            migration: info.status,
        });
    }
    if !info.blocked_reasons.is_empty() {
        return Err(MigrateError::Blocked(info.blocked_reasons));
    }
    capabilities?;
    parameters?;
    // Only now: with a refused capability QEMU would run through to the end without permission.
    let to_target = Outgoing::connect(uri).await;
    let to_target = to_target.map_err(|source| MigrateError::Connect {
        uri: uri.to_owned(),
        source,
    })?;
    Ok(to_target.hand_over(qmp).await?)
}

/// Changes the limits, also while a copy runs (`auto_converge` only before it begins).
///
/// # Errors
/// As [`Qmp::execute`].
pub async fn set_limits(qmp: &Qmp, limits: Limits) -> Result<(), MigrateError> {
    Ok(qmp.migrate_set_parameters(parameters(limits)).await?)
}

fn parameters(limits: Limits) -> MigrationParameters {
    let downtime = u64::try_from(limits.downtime.as_millis()).unwrap_or(u64::MAX);
    MigrationParameters {
        max_bandwidth: Some(limits.bandwidth.0),
        downtime_limit: Some(downtime.max(1)),
        ..Default::default()
    }
}

/// What QEMU says of its migration, on either side.
///
/// # Errors
/// As [`Qmp::execute`].
pub async fn status(qmp: &Qmp) -> Result<MigrationInfo, MigrateError> {
    Ok(qmp.query_migrate().await?)
}

/// Lets a source go from pre-switchover to its end. Only with recorded permission.
///
/// # Errors
/// QEMU refuses it in any other state; the copy's status tells what happened.
pub async fn continue_switchover(qmp: &Qmp) -> Result<(), MigrateError> {
    Ok(qmp.migrate_continue().await?)
}

/// Cancels an outgoing copy. The guest runs on once the status is `Cancelled` or `Failed`.
///
/// # Errors
/// [`MigrateError::State`] in post-copy, where QEMU 7.2 would accept it and lose the machine.
pub async fn cancel(qmp: &Qmp) -> Result<(), MigrateError> {
    let info = qmp.query_migrate().await?;
    if info.status.is_postcopy() {
        let runstate = qmp.query_status().await?.status;
        return Err(MigrateError::State {
            step: "cancel the copy",
            runstate,
            migration: info.status,
        });
    }
    Ok(qmp.migrate_cancel().await?)
}

/// Runs the guest that was loaded here. Only with the source's proof, journaled.
///
/// # Errors
/// [`MigrateError::State`] unless QEMU is complete and paused: `cont` on a loading QEMU would
/// let it start by itself later. A refusal when the disks can't be locked; it stays paused then.
pub async fn continue_guest(qmp: &Qmp) -> Result<Continued, MigrateError> {
    let (machine, info) = tokio::join!(qmp.query_status(), qmp.query_migrate());
    let (machine, info) = (machine?, info?);
    match (machine.status, info.status) {
        (RunState::Running, MigrationStatus::Completed) => Ok(Continued::Already),
        (RunState::Paused, MigrationStatus::Completed) => {
            qmp.cont().await?;
            Ok(Continued::Now)
        }
        (runstate, migration) => Err(MigrateError::State {
            step: "continue the guest",
            runstate,
            migration,
        }),
    }
}

/// Runs a source again that stopped complete. Only after the target's tombstone.
///
/// # Errors
/// [`MigrateError::State`] unless it is stopped complete, or runs already.
pub async fn resume_source(qmp: &Qmp) -> Result<Continued, MigrateError> {
    let deadline = Instant::now() + FINISH_MAX;
    loop {
        let (machine, info) = tokio::join!(qmp.query_status(), qmp.query_migrate());
        let (machine, info) = (machine?, info?);
        if machine.status == RunState::Running {
            return Ok(Continued::Already);
        }
        if machine.status == RunState::PostMigrate {
            break;
        }
        // The migration is completed a moment before the machine is.
        if machine.status != RunState::FinishMigrate || Instant::now() >= deadline {
            return Err(MigrateError::State {
                step: "resume the source",
                runstate: machine.status,
                migration: info.status,
            });
        }
        sleep(FINISH_POLL).await; // poll
    }
    qmp.cont().await?;
    Ok(Continued::Now)
}

/// Tells switches and the guest that the guest is here: after a switch, and after a rollback.
///
/// # Errors
/// As [`Qmp::execute`].
pub async fn announce(qmp: &Qmp) -> Result<(), MigrateError> {
    Ok(qmp.announce_self().await?)
}

/// Waits until the migration ends or stops in pre-switchover, by asking; for tools and tests,
/// which have no event loop of their own.
///
/// # Errors
/// [`MigrateError::NotEnded`] after `limit`.
pub async fn settle(qmp: &Qmp, limit: Duration) -> Result<MigrationInfo, MigrateError> {
    const ASK_EVERY: Duration = Duration::from_millis(5);
    let deadline = Instant::now() + limit;
    loop {
        let info = qmp.query_migrate().await?;
        match info.copy_status() {
            CopyStatus::None | CopyStatus::Active | CopyStatus::Device => {}
            CopyStatus::PreSwitchover
            | CopyStatus::Completed
            | CopyStatus::Failed(_)
            | CopyStatus::Cancelled => return Ok(info),
        }
        if Instant::now() >= deadline {
            return Err(MigrateError::NotEnded(info.status));
        }
        sleep(ASK_EVERY).await;
    }
}

impl MigrationInfo {
    /// The status in the words of the source host's half.
    ///
    /// `Completed` alone is no proof of this copy: QEMU says it of the copy that it came by, too,
    /// until it begins one of its own, and still after a revert. A source is complete only when
    /// its runstate is `postmigrate` as well.
    pub fn copy_status(&self) -> CopyStatus {
        match self.status {
            MigrationStatus::None => CopyStatus::None,
            MigrationStatus::PreSwitchover => CopyStatus::PreSwitchover,
            // Post-copy states come after the stop; whoever asks for post-copy looks at `status`.
            MigrationStatus::Device
            | MigrationStatus::PostcopyActive
            | MigrationStatus::PostcopyDevice
            | MigrationStatus::PostcopyPaused
            | MigrationStatus::PostcopyRecoverSetup
            | MigrationStatus::PostcopyRecover => CopyStatus::Device,
            MigrationStatus::Completed => CopyStatus::Completed,
            MigrationStatus::Failed => CopyStatus::Failed(
                self.error_desc
                    .clone()
                    .unwrap_or_else(|| "failed".to_owned()),
            ),
            MigrationStatus::Cancelled => CopyStatus::Cancelled,
            // A cancelled copy counts as one only once QEMU is done with it.
            MigrationStatus::Setup
            | MigrationStatus::WaitUnplug
            | MigrationStatus::Active
            | MigrationStatus::Cancelling
            | MigrationStatus::Unknown => CopyStatus::Active,
        }
    }

    /// The numbers in bytes, for reports. Zero where QEMU has none yet.
    pub fn progress(&self) -> Progress {
        let ram = self.ram.unwrap_or_default();
        Progress {
            transferred: Bytes(ram.transferred),
            remaining: Bytes(ram.remaining),
            total: Bytes(ram.total),
            throughput: bytes_per_second(ram.mbps),
            dirty_rate: ram.dirty_pages_rate.saturating_mul(ram.page_size),
            passes: u32::try_from(ram.dirty_sync_count).unwrap_or(u32::MAX),
            throttle_percent: self.cpu_throttle_percentage.unwrap_or_default(),
            expected_downtime_ms: self.expected_downtime.unwrap_or_default(),
            downtime_ms: self.downtime.unwrap_or_default(),
            elapsed_ms: self.total_time.unwrap_or_default(),
        }
    }
}

/// From 10^6 bits per second, as QEMU counts.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn bytes_per_second(mbps: f64) -> u64 {
    // A float-to-integer cast saturates; a negative or undefined rate becomes 0.
    (mbps * 125_000.0) as u64
}
