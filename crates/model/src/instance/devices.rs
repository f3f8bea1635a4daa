//! Disks, network interfaces and the kernel of a machine.

use super::Identity;
use super::problems::{Problems, is_word};
use crate::machine::{Disk, ImageFormat, Kernel, Nic};
use crate::seed::{Content, Seed, SeedSource};
use crate::vmi::{self, CloudInit, LocalRef, VmiSpec};
use crate::{Bytes, MachineId};

/// Most disks, and most interfaces, of a machine: what fits on the root bus beside each other.
const DEVICES_MAX: usize = 12;
/// Longest user data, and longest network data, in bytes. Two of them fit into a message to an
/// agent many times; a Secret holds up to 1 MiB.
const SEED_BYTES_MAX: usize = 512 << 10;

/// The machine's disks.
pub(super) fn disks(spec: &VmiSpec, identity: Identity<'_>, problems: &mut Problems) -> Vec<Disk> {
    let listed = &spec.domain.devices.disks;
    if listed.len() > DEVICES_MAX {
        problems.add(
            "domain.devices.disks",
            format!("at most {DEVICES_MAX} are supported"),
        );
    }
    let first = listed.iter().filter_map(|disk| disk.boot_order).min();
    for (at, volume) in spec.volumes.iter().enumerate() {
        problems.rest(&format!("volumes[{at}]"), &volume.rest);
        if !listed.iter().any(|disk| disk.name == volume.name) {
            let message = format!("no disk refers to volume {:?}", volume.name);
            problems.add(format!("volumes[{at}].name"), message);
        }
    }
    let mut disks = vec![];
    for (at, disk) in listed.iter().enumerate() {
        let path = format!("domain.devices.disks[{at}]");
        check_disk(disk, &path, problems);
        let volume = spec
            .volumes
            .iter()
            .position(|volume| volume.name == disk.name);
        let Some(volume) = volume else {
            problems.add(
                format!("{path}.name"),
                format!("'{}' not found.", disk.name),
            );
            continue;
        };
        let boot = first.is_some_and(|first| disk.boot_order == Some(first));
        let made = match spec.volumes[volume].cloud_init() {
            Some(init) => Some(seed_disk(disk, (volume, init), identity, problems)),
            None => host_disk(spec, volume, disk, problems),
        };
        disks.extend(made.map(|disk| Disk { boot, ..disk }));
    }
    disks
}

fn check_disk(disk: &vmi::Disk, path: &str, problems: &mut Problems) {
    problems.rest(path, &disk.rest);
    problems.only(&format!("{path}.cache"), disk.cache.as_deref(), "none");
    if let Some(target) = &disk.disk {
        problems.rest(&format!("{path}.disk"), &target.rest);
        problems.only(&format!("{path}.disk.bus"), target.bus.as_deref(), "virtio");
    }
    if !is_word(&disk.name) {
        problems.add(
            format!("{path}.name"),
            "must be letters, digits, dots and dashes",
        );
    }
}

fn host_disk(
    spec: &VmiSpec,
    volume: usize,
    disk: &vmi::Disk,
    problems: &mut Problems,
) -> Option<Disk> {
    let path = format!("volumes[{volume}].hostDisk");
    let Some(host) = spec
        .volumes
        .get(volume)
        .and_then(|volume| volume.host_disk.as_ref())
    else {
        problems.add(
            format!("volumes[{volume}]"),
            "only hostDisk, cloudInitNoCloud and cloudInitConfigDrive are supported on plain hosts",
        );
        return None;
    };
    problems.rest(&path, &host.rest);
    let clean = host.path.starts_with('/') && !host.path.split('/').any(|part| part == "..");
    if !clean || host.path.contains([',', '\n', '\0']) {
        let message = "must be absolute, without .. and without commas";
        problems.add(format!("{path}.path"), message);
    }
    let capacity = host.capacity.as_ref();
    let capacity = capacity.and_then(|size| problems.quantity(&format!("{path}.capacity"), size));
    let create = match (host.r#type.as_str(), capacity) {
        ("Disk", _) => None,
        ("DiskOrCreate", Some(size)) => Some(Bytes(size)),
        ("DiskOrCreate", None) => {
            problems.add(format!("{path}.capacity"), "is required for DiskOrCreate");
            None
        }
        _ => {
            problems.add(format!("{path}.type"), "must be Disk or DiskOrCreate");
            None
        }
    };
    let format = if host.path.ends_with(".qcow2") {
        ImageFormat::Qcow2
    } else {
        ImageFormat::Raw
    };
    if format == ImageFormat::Qcow2 && create.is_some() {
        problems.add(format!("{path}.type"), "only raw images can be created");
    }
    Some(Disk {
        name: disk.name.clone(),
        path: host.path.clone(),
        format,
        shared: host.shared,
        read_only: disk.disk.as_ref().is_some_and(|target| target.readonly),
        create,
        boot: false,
        seed: None,
    })
}

/// A disk for cloud-init. Secrets that aren't filled in yet leave it empty.
fn seed_disk(
    disk: &vmi::Disk,
    (volume, (source, init)): (usize, (SeedSource, &CloudInit)),
    identity: Identity<'_>,
    problems: &mut Problems,
) -> Disk {
    let name = match source {
        SeedSource::NoCloud => "cloudInitNoCloud",
        SeedSource::ConfigDrive => "cloudInitConfigDrive",
    };
    let path = format!("volumes[{volume}].{name}");
    problems.rest(&path, &init.rest);
    let user = content(
        (&init.user_data, &init.user_data_base64, &init.secret_ref),
        (&path, "userdata"),
        problems,
    );
    let network = content(
        (
            &init.network_data,
            &init.network_data_base64,
            &init.network_data_secret_ref,
        ),
        (&path, "networkdata"),
        problems,
    );
    let is_empty = user.is_none() && network.is_none();
    if is_empty && init.secret_ref.is_none() && init.network_data_secret_ref.is_none() {
        let why =
            format!("{name} must have at least one userdatasource or one networkdatasource set.");
        problems.add(path, why);
    }
    Disk {
        name: disk.name.clone(),
        path: String::new(),
        format: ImageFormat::Raw,
        shared: false,
        read_only: true,
        create: None,
        boot: false,
        seed: Some(Seed {
            source,
            instance_id: format!("{}.{}", identity.name, identity.namespace),
            hostname: identity.name.to_owned(),
            user_data: user.unwrap_or_else(|| Content::Text(String::new())),
            network_data: network,
        }),
    }
}

/// One of three ways to say it.
fn content(
    (text, base64, secret): (&Option<String>, &Option<String>, &Option<LocalRef>),
    (path, what): (&str, &str),
    problems: &mut Problems,
) -> Option<Content> {
    let text = text.as_ref().filter(|text| !text.is_empty());
    let base64 = base64.as_ref().filter(|text| !text.is_empty());
    let ways = [text.is_some(), base64.is_some(), secret.is_some()];
    if ways.into_iter().filter(|is_used| *is_used).count() > 1 {
        problems.add(path, format!("must have only one {what} source set."));
    }
    let longest = text.max(base64).map_or(0, |text| text.len());
    if longest > SEED_BYTES_MAX {
        problems.add(path, format!("{what} exceeds {SEED_BYTES_MAX} byte limit"));
    }
    let text = text.cloned().map(Content::Text);
    text.or_else(|| base64.cloned().map(Content::Base64))
}

/// The machine's nics.
pub(super) fn nics(spec: &VmiSpec, id: &MachineId, problems: &mut Problems) -> Vec<Nic> {
    let listed = &spec.domain.devices.interfaces;
    if listed.len() > DEVICES_MAX {
        problems.add(
            "domain.devices.interfaces",
            format!("at most {DEVICES_MAX} are supported"),
        );
    }
    for (at, network) in spec.networks.iter().enumerate() {
        problems.rest(&format!("networks[{at}]"), &network.rest);
        if !listed
            .iter()
            .any(|interface| interface.name == network.name)
        {
            let message = format!("no interface refers to network {:?}", network.name);
            problems.add(format!("networks[{at}].name"), message);
        }
    }
    let mut nics = vec![];
    for (at, interface) in listed.iter().enumerate() {
        let path = format!("domain.devices.interfaces[{at}]");
        problems.rest(&path, &interface.rest);
        problems.only(
            &format!("{path}.model"),
            interface.model.as_deref(),
            "virtio",
        );
        if interface.bridge.is_none() && interface.masquerade.is_none() {
            problems.add(path.clone(), "bridge or masquerade is needed");
        }
        if !is_word(&interface.name) {
            problems.add(
                format!("{path}.name"),
                "must be letters, digits, dots and dashes",
            );
        }
        let Some(network) = network_of(spec, &interface.name) else {
            problems.add(
                format!("{path}.name"),
                format!("'{}' not found.", interface.name),
            );
            continue;
        };
        let mac = match &interface.mac_address {
            None => derived_mac(id, at),
            Some(mac) => mac.to_ascii_lowercase().replace('-', ":"),
        };
        if !is_mac(&mac) {
            problems.add(
                format!("{path}.macAddress"),
                format!("{mac:?} is no MAC address"),
            );
        }
        nics.push(Nic {
            name: interface.name.clone(),
            mac,
            network,
        });
    }
    nics
}

/// Name of the hosts' network that the instance's network `name` stands for.
fn network_of(spec: &VmiSpec, name: &str) -> Option<String> {
    let network = spec.networks.iter().find(|network| network.name == name)?;
    match &network.multus {
        // NAMESPACE/NAME is how a network attachment of another namespace is written.
        Some(multus) => multus.network_name.rsplit('/').next().map(str::to_owned),
        None => network.pod.as_ref().map(|_| "default".to_owned()),
    }
}

/// A locally administered address that stays the same wherever the machine runs.
pub fn derived_mac(id: &MachineId, index: usize) -> String {
    let digits: String = id.as_str().chars().filter(|c| *c != '-').collect();
    // The last eight digits of a UUID are random in every version that has randomness.
    let tail = &digits[digits.len() - 8..];
    format!(
        "02:{:02x}:{}:{}:{}:{}",
        index % 256,
        &tail[..2],
        &tail[2..4],
        &tail[4..6],
        &tail[6..]
    )
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    let octet = |part: &&str| part.len() == 2 && u8::from_str_radix(part, 16).is_ok();
    parts.len() == 6
        && parts.iter().all(octet)
        && u8::from_str_radix(parts[0], 16).is_ok_and(|first| first & 1 == 0)
}

/// The machine's kernel.
pub(super) fn kernel(firmware: &vmi::Firmware, problems: &mut Problems) -> Option<Kernel> {
    let boot = firmware.kernel_boot.as_ref()?;
    let path = "domain.firmware.kernelBoot";
    problems.rest(path, &boot.rest);
    problems.rest(&format!("{path}.container"), &boot.container.rest);
    let relative = |file: &str| !file.split('/').any(|part| part == "..") && !file.contains(',');
    let container = &boot.container;
    if !is_word(&container.image) {
        let message = "must name an image directory of the hosts";
        problems.add(format!("{path}.container.image"), message);
    }
    if container.kernel_path.is_empty() || !relative(&container.kernel_path) {
        let message = "must be a path in the image, without .. and without commas";
        problems.add(format!("{path}.container.kernelPath"), message);
    }
    if !relative(&container.initrd_path) {
        let message = "must be a path in the image, without .. and without commas";
        problems.add(format!("{path}.container.initrdPath"), message);
    }
    Some(Kernel {
        image: container.image.clone(),
        kernel_path: container.kernel_path.trim_start_matches('/').to_owned(),
        initrd_path: container.initrd_path.trim_start_matches('/').to_owned(),
        arguments: boot.kernel_args.clone(),
    })
}
