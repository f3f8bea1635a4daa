//! Taps: the host's ends of the guests' network interfaces.
//!
//! Made before QEMU starts and attached to the network's bridge; removed when the machine leaves.
//! A persistent tap is made by `ip tuntap` of iproute2: the ioctl behind it has no safe binding,
//! and the kernel offers it over no netlink.

use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use uuid::Uuid;

use godwit_model::MachineId;
use godwit_model::machine::Nic;
use godwit_qemu::command_line::NICS_MAX;

use crate::addresses::{Addresses, parse_mac};

/// Longest run of `ip`; it needs milliseconds.
const IP_LIMIT: Duration = Duration::from_secs(10);

/// One tap of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tap {
    /// Name of the interface in the machine's spec.
    pub(crate) nic: String,
    /// The guest's MAC.
    pub(crate) mac: String,
    /// Name of the device, unique in this host's network namespace.
    pub(crate) device: String,
    /// Kernel's index of the device.
    pub(crate) index: u32,
}

/// Why a host's network could not be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// `ip` could not be run.
    #[error("run ip")]
    Run(#[source] std::io::Error),
    /// `ip` took longer than it ever should.
    #[error("ip did not end within {} s", IP_LIMIT.as_secs())]
    Timeout,
    /// `ip` said no.
    #[error("ip: {0}")]
    Refused(String),
    /// Its answer was none of the kind asked for.
    #[error("understand the answer of ip")]
    Answer(#[source] serde_json::Error),
}

/// A device as `ip -json link` describes it.
#[derive(Debug, Deserialize)]
struct Link {
    ifindex: u32,
    mtu: u32,
}

/// What a nic is to be connected to.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    /// The guest's interface.
    pub(crate) nic: Nic,
    /// Bridge device of its network on this host.
    pub(crate) bridge: String,
}

/// Makes a tap for each of `ports`, in order, up and on its bridge. All of them, or none.
///
/// `owner` tells apart the taps of one machine that is leaving and arriving on the same host.
///
/// # Errors
/// When a bridge is missing or the kernel refuses.
pub(crate) async fn make(
    machine: &MachineId,
    owner: &str,
    ports: &[Port],
) -> Result<Vec<Tap>, NetworkError> {
    let mut taps = Vec::with_capacity(ports.len());
    for (at, port) in ports.iter().enumerate() {
        let device = device_name(machine, owner, at);
        match make_one(&device, port).await {
            Ok(tap) => taps.push(tap),
            Err(error) => {
                remove(&taps).await;
                return Err(error);
            }
        }
    }
    Ok(taps)
}

/// Removes `taps`. A tap that is gone already is no error, and one that stays is logged.
pub(crate) async fn remove(taps: &[Tap]) {
    for tap in taps {
        let arguments = ["link", "delete", "dev", &tap.device];
        match ip(&arguments, "").await {
            Ok(_) => {}
            Err(NetworkError::Refused(why)) if why.contains("Cannot find device") => {}
            Err(error) => tracing::warn!(device = %tap.device, %error, "tap left behind"),
        }
    }
}

/// What may be left of taps of `owner` when nobody wrote down which were made.
pub(crate) fn leftovers(machine: &MachineId, owner: &str) -> Vec<Tap> {
    let tap = |at| Tap {
        nic: String::new(),
        mac: String::new(),
        device: device_name(machine, owner, at),
        index: 0,
    };
    (0..NICS_MAX).map(tap).collect()
}

/// Starts learning addresses behind `taps`.
pub(crate) fn follow(addresses: &Addresses, taps: &[Tap]) {
    for tap in taps {
        if let Some(mac) = parse_mac(&tap.mac) {
            addresses.follow(tap.index, mac);
        }
    }
}

/// Checks that the bridge is there.
///
/// # Errors
/// `Refused` with the kernel's words when it isn't.
pub(crate) async fn check_bridge(bridge: &str) -> Result<(), NetworkError> {
    link(bridge).await.map(drop)
}

async fn make_one(device: &str, port: &Port) -> Result<Tap, NetworkError> {
    let bridge = &port.bridge;
    let mtu = link(bridge).await?.mtu;
    // No IPv6 address of the host's own on a guest's wire.
    let batch = format!(
        "tuntap add dev {device} mode tap\n\
         link set dev {device} addrgenmode none\n\
         link set dev {device} mtu {mtu}\n\
         link set dev {device} master {bridge}\n\
         link set dev {device} up\n"
    );
    // What a crash left under this name belongs to nobody: the name is of this machine and owner.
    let _ = ip(&["link", "delete", "dev", device], "").await;
    ip(&["-batch", "-"], &batch).await?;
    let index = link(device).await?.ifindex;
    let Nic { name, mac, .. } = &port.nic;
    Ok(Tap {
        nic: name.clone(),
        mac: mac.clone(),
        device: device.to_owned(),
        index,
    })
}

/// 13 characters of at most 15: no two owners on one host get the same, short of a hash collision
/// in 44 bits.
fn device_name(machine: &MachineId, owner: &str, at: usize) -> String {
    let id = Uuid::new_v5(
        &Uuid::NAMESPACE_OID,
        format!("{machine}/{owner}/{at}").as_bytes(),
    );
    let hex = id.simple().to_string();
    format!("gw{}", &hex[..11])
}

async fn link(device: &str) -> Result<Link, NetworkError> {
    let answer = ip(&["-json", "link", "show", "dev", device], "").await?;
    let links: Vec<Link> = serde_json::from_str(&answer).map_err(NetworkError::Answer)?;
    links
        .into_iter()
        .next()
        .ok_or_else(|| NetworkError::Refused(format!("no device {device}")))
}

async fn ip(arguments: &[&str], input: &str) -> Result<String, NetworkError> {
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(NetworkError::Run)?;
    let run = async {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(IP_LIMIT, run)
        .await
        .map_err(|_| NetworkError::Timeout)?
        .map_err(NetworkError::Run)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(NetworkError::Refused(
        String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_fit_the_kernel_and_differ_by_owner_and_place() {
        let machine = MachineId::parse("11111111-94b4-4cda-9a69-cca8d4b4c587").expect("a uuid");
        let mut names: Vec<String> = ["", "job"]
            .iter()
            .flat_map(|owner| (0..40).map(|at| device_name(&machine, owner, at)))
            .collect();
        assert!(
            names.iter().all(|name| name.len() <= 15),
            "IFNAMSIZ is 16 with its zero"
        );
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 80);
    }
}
