//! Guests' addresses, learned from what the guests themselves say on the wire.
//!
//! One packet socket for the whole host, with a filter in the kernel that lets ARP and IPv6
//! neighbour discovery pass and nothing else, so a busy guest never wakes the agent. A frame counts
//! only when it came in on the interface's own tap, from its own MAC: no guest speaks for another.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType};
use socket2::{SockFilter, Socket};
use tokio::io::unix::AsyncFd;
use tracing::warn;

/// Addresses kept for one interface; a guest that uses more is not followed further.
const ADDRESSES_MAX: usize = 16;

/// Longest part of a frame that is read: neighbour discovery's target ends at byte 78.
const FRAME_READ: usize = 128;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// Reads a MAC in colon form; `None` for anything else.
pub(crate) fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = Mac::default();
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = parts
            .next()
            .and_then(|part| u8::from_str_radix(part, 16).ok())?;
    }
    parts.next().is_none().then_some(mac)
}

/// Addresses by interface index of the tap and the guest's MAC.
type Seen = HashMap<(u32, Mac), Vec<IpAddr>>;

/// What was learned, by interface index of the tap and the guest's MAC.
#[derive(Debug, Clone, Default)]
pub(crate) struct Addresses {
    seen: Arc<Mutex<Seen>>,
}

impl Addresses {
    /// Follows the interface with `mac` behind the tap `index`.
    pub(crate) fn follow(&self, index: u32, mac: Mac) {
        self.locked().entry((index, mac)).or_default();
    }

    /// Forgets everything behind the tap `index`.
    pub(crate) fn forget(&self, index: u32) {
        self.locked().retain(|(tap, _), _| *tap != index);
    }

    /// Addresses in the order first seen; a link-local IPv6 address only when there is no other.
    pub(crate) fn of(&self, index: u32, mac: Mac) -> Vec<IpAddr> {
        let seen = self
            .locked()
            .get(&(index, mac))
            .cloned()
            .unwrap_or_default();
        let routable: Vec<IpAddr> = seen
            .iter()
            .copied()
            .filter(|address| !is_link_local(address))
            .collect();
        if routable.is_empty() { seen } else { routable }
    }

    /// Takes one frame from the tap `index`. `true` when it told something new.
    fn take(&self, index: u32, frame: &[u8]) -> bool {
        let Some((mac, address)) = sender(frame) else {
            return false;
        };
        let mut seen = self.locked();
        let Some(known) = seen.get_mut(&(index, mac)) else {
            return false;
        };
        if known.contains(&address) || known.len() >= ADDRESSES_MAX {
            return false;
        }
        known.push(address);
        true
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listens until dropped, and calls `changed` when an address is new.
///
/// # Errors
/// When packet sockets are not permitted (`CAP_NET_RAW`).
pub(crate) async fn listen(addresses: Addresses, changed: impl Fn() + Send) -> io::Result<()> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe, and this socket outlives its reader"
    )]
    let socket = AsyncFd::new(open()?)?;
    let mut frame = [0; FRAME_READ];
    loop {
        let mut ready = socket.readable().await?;
        match nix::sys::socket::recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame) {
            Ok((length, Some(from))) => {
                let index = u32::try_from(from.ifindex()).unwrap_or_default();
                if addresses.take(index, &frame[..length.min(FRAME_READ)]) {
                    changed();
                }
            }
            Ok((_, None)) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => ready.clear_ready(),
            // An interface went away, for example; the socket itself goes on.
            Err(error) => warn!(%error, "frame lost"),
        }
    }
}

fn open() -> io::Result<Socket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let family = AddressFamily::Packet;
    let fd = nix::sys::socket::socket(family, SockType::Raw, flags, SockProtocol::EthAll)?;
    let socket = Socket::from(fd);
    socket.attach_filter(&filter())?;
    Ok(socket)
}

/// Classic BPF: the first 128 bytes of ARP, neighbour solicitations and advertisements.
fn filter() -> [SockFilter; 10] {
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LOAD_HALF, 0, 0, 12),
        SockFilter::new(JUMP_EQUAL, 6, 0, u32::from(ETHERTYPE_ARP)),
        SockFilter::new(JUMP_EQUAL, 0, 6, u32::from(ETHERTYPE_IPV6)),
        SockFilter::new(LOAD_BYTE, 0, 0, 20),
        SockFilter::new(JUMP_EQUAL, 0, 4, u32::from(ICMPV6)),
        SockFilter::new(LOAD_BYTE, 0, 0, 54),
        SockFilter::new(JUMP_EQUAL, 1, 0, u32::from(NEIGHBOUR_SOLICITATION)),
        SockFilter::new(JUMP_EQUAL, 0, 1, u32::from(NEIGHBOUR_ADVERTISEMENT)),
        SockFilter::new(RETURN, 0, 0, 128),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// Who sent the frame and which address it claims; `None` when it claims none.
fn sender(frame: &[u8]) -> Option<(Mac, IpAddr)> {
    let mac: Mac = frame.get(6..12)?.try_into().ok()?;
    let address = match u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?) {
        ETHERTYPE_ARP => IpAddr::V4(arp_sender(frame.get(14..42)?, mac)?),
        ETHERTYPE_IPV6 => IpAddr::V6(neighbour(frame.get(14..)?)?),
        _ => return None,
    };
    (!address.is_unspecified() && !address.is_multicast()).then_some((mac, address))
}

fn arp_sender(arp: &[u8], mac: Mac) -> Option<Ipv4Addr> {
    const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
    // The sender inside must be the sender outside: proxies answer for others.
    if arp.get(..6)? != ETHERNET_IPV4 || arp.get(8..14)? != mac {
        return None;
    }
    let octets: [u8; 4] = arp.get(14..18)?.try_into().ok()?;
    Some(Ipv4Addr::from(octets))
}

fn neighbour(packet: &[u8]) -> Option<Ipv6Addr> {
    if *packet.get(6)? != ICMPV6 {
        return None;
    }
    let at = match *packet.get(40)? {
        NEIGHBOUR_SOLICITATION => 8,
        // An advertisement says which address is here; its sender may be another of the same host.
        NEIGHBOUR_ADVERTISEMENT => 48,
        _ => return None,
    };
    let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
    Some(Ipv6Addr::from(octets))
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [0x02, 0, 0, 0, 0, 7];
    const TAP: u32 = 4;

    fn arp(mac: Mac, inner: Mac, address: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend(mac);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(inner);
        frame.extend(address);
        frame.extend([0; 6]);
        frame.extend([192, 168, 123, 1]);
        frame
    }

    fn discovery(kind: u8, source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
        let mut frame = vec![0x33; 6];
        frame.extend(MAC);
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, ICMPV6, 255]);
        frame.extend(source.octets());
        frame.extend([0; 16]);
        frame.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(target.octets());
        frame
    }

    fn following() -> Addresses {
        let addresses = Addresses::default();
        addresses.follow(TAP, MAC);
        addresses
    }

    #[test]
    fn an_arp_request_tells_the_senders_address_once() {
        let addresses = following();
        let frame = arp(MAC, MAC, [192, 168, 123, 9]);
        assert!(addresses.take(TAP, &frame));
        assert!(!addresses.take(TAP, &frame));
        assert_eq!(addresses.of(TAP, MAC), [IpAddr::from([192, 168, 123, 9])]);
    }

    #[test]
    fn frames_of_others_probes_and_proxies_tell_nothing() {
        let addresses = following();
        let other = [0x02, 0, 0, 0, 0, 8];
        assert!(
            !addresses.take(TAP, &arp(other, other, [192, 168, 123, 9])),
            "another guest"
        );
        assert!(
            !addresses.take(TAP + 1, &arp(MAC, MAC, [192, 168, 123, 9])),
            "another tap"
        );
        assert!(
            !addresses.take(TAP, &arp(MAC, other, [192, 168, 123, 9])),
            "a proxy"
        );
        assert!(
            !addresses.take(TAP, &arp(MAC, MAC, [0, 0, 0, 0])),
            "a probe"
        );
        assert!(addresses.of(TAP, MAC).is_empty());
    }

    #[test]
    fn a_link_local_address_counts_only_while_it_is_alone() {
        let addresses = following();
        let local: Ipv6Addr = "fe80::7".parse().expect("an address");
        let global: Ipv6Addr = "2001:db8::7".parse().expect("an address");
        let solicitation = discovery(NEIGHBOUR_SOLICITATION, local, global);
        assert!(addresses.take(TAP, &solicitation));
        assert_eq!(addresses.of(TAP, MAC), [IpAddr::V6(local)]);
        assert!(addresses.take(TAP, &discovery(NEIGHBOUR_ADVERTISEMENT, local, global)));
        assert_eq!(addresses.of(TAP, MAC), [IpAddr::V6(global)]);
    }

    #[test]
    fn no_prefix_of_a_frame_is_mistaken_for_a_frame() {
        let addresses = following();
        let unspecified = Ipv6Addr::UNSPECIFIED;
        let target: Ipv6Addr = "2001:db8::7".parse().expect("an address");
        for frame in [
            arp(MAC, MAC, [192, 168, 123, 9]),
            discovery(NEIGHBOUR_ADVERTISEMENT, unspecified, target),
        ] {
            let needed = if frame[12] == 8 { 42 } else { frame.len() };
            for length in 0..needed {
                assert!(!addresses.take(TAP, &frame[..length]), "{length} bytes");
            }
        }
    }

    #[test]
    fn addresses_of_one_guest_are_bounded_and_forgotten_with_the_tap() {
        let addresses = following();
        for last in 1..=255 {
            addresses.take(TAP, &arp(MAC, MAC, [10, 0, 0, last]));
        }
        assert_eq!(addresses.of(TAP, MAC).len(), ADDRESSES_MAX);
        addresses.forget(TAP);
        assert!(addresses.of(TAP, MAC).is_empty());
    }

    #[test]
    fn a_mac_reads_only_in_colon_form() {
        assert_eq!(parse_mac("02:00:00:00:00:07"), Some(MAC));
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:07:08",
            "02-00-00-00-00-07",
            "g2:0:0:0:0:0",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad:?}");
        }
    }
}
