//! Taps: the host's ends of the guests' network interfaces.
//!
//! Made before QEMU starts and attached to the network's bridge; removed when the machine leaves.
//! They are persistent, so that they outlive the agent and are gone only when it says so.

use futures::TryStreamExt;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage,
};
use rtnetlink::{Handle, LinkUnspec};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio_tun::TunBuilder;
use uuid::Uuid;

use godwit_model::MachineId;
use godwit_model::machine::Nic;
use godwit_qemu::command_line::NICS_MAX;
use godwit_qemu::process::User;

use crate::addresses::{Addresses, parse_mac};

/// Ethernet's.
const MTU_DEFAULT: u32 = 1500;

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
    /// The kernel could not be talked to.
    #[error("open a netlink socket")]
    Netlink(#[source] std::io::Error),
    /// A device could not be made.
    #[error("make the tap {device}")]
    Make {
        /// Its name.
        device: String,
        #[source]
        source: tokio_tun::Error,
    },
    /// There is no such device.
    #[error("no device {0}")]
    Absent(String),
    /// The kernel said no.
    #[error("{what} {device}")]
    Refused {
        /// What was to be done.
        what: &'static str,
        /// To which device.
        device: String,
        #[source]
        source: rtnetlink::Error,
    },
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
/// `owner` tells apart the taps of one machine that is leaving and arriving on the same host, and
/// `user` is whose QEMU may open them, beside root's.
///
/// # Errors
/// When a bridge is missing or the kernel refuses.
pub(crate) async fn make(
    machine: &MachineId,
    owner: &str,
    ports: &[Port],
    user: Option<&User>,
) -> Result<Vec<Tap>, NetworkError> {
    let mut taps = Vec::with_capacity(ports.len());
    for (at, port) in ports.iter().enumerate() {
        let device = device_name(machine, owner, at);
        match make_one(&device, port, user).await {
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
        match remove_one(&tap.device).await {
            Ok(()) | Err(NetworkError::Absent(_)) => {}
            Err(error) => {
                let (device, error) = (&tap.device, crate::text::chain(&error));
                tracing::warn!(%device, %error, "tap left behind");
            }
        }
    }
}

async fn remove_one(device: &str) -> Result<(), NetworkError> {
    let netlink = netlink()?;
    let index = link(&netlink, device).await?.header.index;
    let deleted = netlink.link().del(index).execute().await;
    deleted.map_err(refused("remove", device))
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
/// `Absent` when it isn't.
pub(crate) async fn check_bridge(bridge: &str) -> Result<(), NetworkError> {
    link(&netlink()?, bridge).await.map(drop)
}

async fn make_one(device: &str, port: &Port, user: Option<&User>) -> Result<Tap, NetworkError> {
    let netlink = netlink()?;
    let bridge = link(&netlink, &port.bridge).await?;
    // What a crash left under this name belongs to nobody: the name is of this machine and owner.
    let mut tap = TunBuilder::new().name(device).tap().persist();
    if let Some(user) = user {
        tap = tap.owner(user.uid.cast_signed());
    }
    tap.build().map_err(|source| NetworkError::Make {
        device: device.to_owned(),
        source,
    })?;
    let index = link(&netlink, device).await?.header.index;
    // No IPv6 address of the host's own on a guest's wire.
    let silent = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let settings = LinkUnspec::new_with_index(index)
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![silent]))
        .append_extra_attribute(LinkAttribute::Mtu(mtu(&bridge)))
        .controller(bridge.header.index)
        .up();
    let set = netlink.link().set(settings.build()).execute().await;
    set.map_err(refused("set up", device))?;
    let Nic { name, mac, .. } = &port.nic;
    Ok(Tap {
        nic: name.clone(),
        mac: mac.clone(),
        device: device.to_owned(),
        index,
    })
}

/// A conversation with the kernel; ends when the handle is dropped.
fn netlink() -> Result<Handle, NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Netlink)?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn link(netlink: &Handle, device: &str) -> Result<LinkMessage, NetworkError> {
    let mut found = netlink.link().get().match_name(device).execute();
    match found.try_next().await {
        Ok(Some(link)) => Ok(link),
        Ok(None) => Err(NetworkError::Absent(device.to_owned())),
        Err(rtnetlink::Error::NetlinkError(error))
            if error.raw_code() == -Errno::NODEV.raw_os_error() =>
        {
            Err(NetworkError::Absent(device.to_owned()))
        }
        Err(error) => Err(refused("look at", device)(error)),
    }
}

fn mtu(link: &LinkMessage) -> u32 {
    let found = link.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::Mtu(mtu) = attribute {
            Some(*mtu)
        } else {
            None
        }
    });
    found.unwrap_or(MTU_DEFAULT)
}

fn refused(what: &'static str, device: &str) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let device = device.to_owned();
    move |source| NetworkError::Refused {
        what,
        device,
        source,
    }
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

/// Whether [`device_name`] may have made this name, for whichever agent.
pub(crate) fn is_ours(device: &str) -> bool {
    let hex = device.strip_prefix("gw").unwrap_or_default();
    hex.len() == 11 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
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
        assert!(names.iter().all(|name| is_ours(name)));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 80);
    }
}
