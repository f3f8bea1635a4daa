//! From what a user wrote to what a host builds; and whether the machine can move live.
//!
//! Called at admission, to refuse with the field's path what plain hosts can't honour, and again
//! when the machine starts.

use crate::machine::{Disk, ImageFormat, Kernel, MachineSpec, Nic};
use crate::vmi::{self, Quantity, Rest, VmiSpec};
use crate::{Bytes, MachineId, quantity};

/// Least memory of a machine.
const MEMORY_MIN: Bytes = Bytes::mib(1);
/// Most virtual CPUs of a machine: the limit of q35 in QEMU 7.2.
const CPUS_MAX: u32 = 288;
/// Most disks, and most interfaces, of a machine: what fits on the root bus beside each other.
const DEVICES_MAX: usize = 12;

/// A field that can't be honoured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldProblem {
    /// Path below `spec`, for example `domain.devices.disks[0].lun`.
    pub path: String,
    /// What is wrong, and what would do.
    pub message: String,
}

/// Whose machine it is.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// The instance's UID.
    pub id: &'a MachineId,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// What the hosts offer where the user leaves the choice open.
#[derive(Debug, Clone, Copy)]
pub struct HostDefaults<'a> {
    /// Versioned machine type.
    pub machine_type: &'a str,
    /// CPU model that every host can run.
    pub cpu_model: &'a str,
}

/// What to do with a machine when its node is emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EvictionStrategy {
    /// Nothing: the machine stays where it is until somebody stops it.
    None,
    /// Move it live, or keep it.
    LiveMigrate,
    /// Move it live when that is possible.
    LiveMigrateIfPossible,
    /// Somebody else does something about it.
    External,
}

impl EvictionStrategy {
    /// Reads KubeVirt's name; `None` for a name that KubeVirt doesn't have.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "None" => Self::None,
            "LiveMigrate" => Self::LiveMigrate,
            "LiveMigrateIfPossible" => Self::LiveMigrateIfPossible,
            "External" => Self::External,
            _ => return None,
        })
    }

    /// KubeVirt's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::LiveMigrate => "LiveMigrate",
            Self::LiveMigrateIfPossible => "LiveMigrateIfPossible",
            Self::External => "External",
        }
    }

    /// The strategy in force: the machine's own, else the cluster's, else `None`.
    pub fn effective(own: Option<&str>, cluster: Option<&str>) -> Self {
        own.or(cluster)
            .and_then(Self::from_name)
            .unwrap_or(Self::None)
    }
}

/// Why a machine can't move live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotMigratable {
    /// KubeVirt's reason.
    pub reason: &'static str,
    /// KubeVirt's message.
    pub message: String,
}

/// Whether a machine can move live.
///
/// A bridge on the pod network is migratable here, unlike in KubeVirt: on plain hosts the guest
/// keeps its address wherever it runs.
///
/// # Errors
/// The first reason why it can't.
pub fn live_migratable(spec: &VmiSpec) -> Result<(), NotMigratable> {
    let local = spec.volumes.iter().find(|volume| {
        volume.host_disk.as_ref().is_some_and(|disk| !disk.shared)
            && !is_read_only(spec, &volume.name)
    });
    match local {
        None => Ok(()),
        Some(_) => Err(NotMigratable {
            reason: "DisksNotLiveMigratable",
            message: "cannot migrate VMI with non-shared HostDisk".to_owned(),
        }),
    }
}

fn is_read_only(spec: &VmiSpec, volume: &str) -> bool {
    let disk = spec
        .domain
        .devices
        .disks
        .iter()
        .find(|disk| disk.name == volume);
    disk.and_then(|disk| disk.disk.as_ref())
        .is_some_and(|target| target.readonly)
}

/// What a host builds for `spec`.
///
/// # Errors
/// Every field that can't be honoured.
pub fn machine_spec(
    spec: &VmiSpec,
    identity: Identity<'_>,
    defaults: HostDefaults<'_>,
) -> Result<MachineSpec, Vec<FieldProblem>> {
    let mut problems = Problems::default();
    problems.unknown(spec);
    let machine = MachineSpec {
        id: identity.id.clone(),
        namespace: identity.namespace.to_owned(),
        name: identity.name.to_owned(),
        cpus: cpus(&spec.domain.cpu, &mut problems),
        memory: memory(&spec.domain, &mut problems),
        machine_type: machine_type(&spec.domain.machine, defaults, &mut problems),
        cpu_model: cpu_model(&spec.domain.cpu, defaults, &mut problems),
        disks: disks(spec, &mut problems),
        nics: nics(spec, identity.id, &mut problems),
        kernel: kernel(&spec.domain.firmware, &mut problems),
    };
    if machine.kernel.is_none() && machine.disks.is_empty() {
        problems.add("domain.devices.disks", "there is nothing to boot from");
    }
    if problems.0.is_empty() {
        Ok(machine)
    } else {
        Err(problems.0)
    }
}

#[derive(Default)]
struct Problems(Vec<FieldProblem>);

impl Problems {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldProblem {
            path: path.into(),
            message: message.into(),
        });
    }

    fn rest(&mut self, path: &str, rest: &Rest) {
        for field in rest.keys() {
            let dot = if path.is_empty() { "" } else { "." };
            self.add(
                format!("{path}{dot}{field}"),
                "not supported on plain hosts",
            );
        }
    }

    /// Fields whose meaning nothing here carries out.
    fn unknown(&mut self, spec: &VmiSpec) {
        let domain = &spec.domain;
        self.rest("", &spec.rest);
        self.rest("domain", &domain.rest);
        self.rest("domain.cpu", &domain.cpu.rest);
        self.rest("domain.memory", &domain.memory.rest);
        self.rest("domain.resources", &domain.resources.rest);
        self.rest("domain.firmware", &domain.firmware.rest);
        self.rest("domain.devices", &domain.devices.rest);
        self.rest("domain.features", &domain.features.rest);
        self.rest("domain.clock", &domain.clock.rest);
        if let Some(utc) = &domain.clock.utc {
            self.rest("domain.clock.utc", &utc.rest);
        }
        self.only("architecture", spec.architecture.as_deref(), "amd64");
        self.only("startStrategy", spec.start_strategy.as_deref(), "Paused");
        if let Some(strategy) = &spec.eviction_strategy
            && EvictionStrategy::from_name(strategy).is_none()
        {
            let message = format!("is set with an unrecognized option: {strategy}");
            self.add("evictionStrategy", message);
        }
        let devices = &domain.devices;
        self.fixed(
            "autoattachMemBalloon",
            devices.autoattach_mem_balloon,
            false,
        );
        self.fixed(
            "autoattachGraphicsDevice",
            devices.autoattach_graphics_device,
            false,
        );
        self.fixed(
            "autoattachPodInterface",
            devices.autoattach_pod_interface,
            false,
        );
        self.fixed(
            "autoattachSerialConsole",
            devices.autoattach_serial_console,
            true,
        );
        self.fixed("logSerialConsole", devices.log_serial_console, true);
    }

    fn only(&mut self, path: &str, value: Option<&str>, supported: &str) {
        if let Some(value) = value
            && value != supported
        {
            self.add(
                path,
                format!("{value:?} is not supported on plain hosts, only {supported:?}"),
            );
        }
    }

    fn fixed(&mut self, field: &str, value: Option<bool>, supported: bool) {
        if value.is_some_and(|value| value != supported) {
            let path = format!("domain.devices.{field}");
            self.add(
                path,
                format!("not supported on plain hosts, only {supported}"),
            );
        }
    }

    fn quantity(&mut self, path: &str, value: &Quantity) -> Option<u64> {
        match value {
            Quantity::Number(number) => Some(*number),
            Quantity::Text(text) => match quantity::parse(text) {
                Ok(number) => Some(number),
                Err(error) => {
                    self.add(path, error.to_string());
                    None
                }
            },
        }
    }
}

fn cpus(cpu: &vmi::Cpu, problems: &mut Problems) -> u32 {
    let counts = [cpu.sockets, cpu.cores, cpu.threads].map(|count| count.unwrap_or(1));
    let total = counts.into_iter().try_fold(1_u32, u32::checked_mul);
    match total {
        Some(total) if (1..=CPUS_MAX).contains(&total) => total,
        Some(_) | None => {
            problems.add(
                "domain.cpu",
                format!("must make 1 to {CPUS_MAX} virtual CPUs"),
            );
            1
        }
    }
}

fn memory(domain: &vmi::Domain, problems: &mut Problems) -> Bytes {
    let (path, value) = match (
        &domain.memory.guest,
        domain.resources.requests.get("memory"),
    ) {
        (Some(guest), _) => ("domain.memory.guest", guest),
        (None, Some(request)) => ("domain.resources.requests.memory", request),
        (None, None) => {
            problems.add("domain.memory.guest", "is required");
            return MEMORY_MIN;
        }
    };
    let bytes = Bytes(problems.quantity(path, value).unwrap_or(MEMORY_MIN.0));
    if bytes < MEMORY_MIN || bytes.0 > i64::MAX.unsigned_abs() {
        problems.add(path, format!("must be at least {MEMORY_MIN}"));
    }
    // QEMU takes memory in whole mebibytes.
    Bytes(bytes.0.next_multiple_of(1 << 20).max(MEMORY_MIN.0))
}

fn machine_type(
    machine: &vmi::Machine,
    defaults: HostDefaults<'_>,
    problems: &mut Problems,
) -> String {
    match machine.r#type.as_str() {
        "" | "q35" => defaults.machine_type.to_owned(),
        name if name.starts_with("pc-q35-") => name.to_owned(),
        name => {
            let message = format!("{name:?} is not a q35 type, for example pc-q35-7.2");
            problems.add("domain.machine.type", message);
            String::new()
        }
    }
}

fn cpu_model(cpu: &vmi::Cpu, defaults: HostDefaults<'_>, problems: &mut Problems) -> String {
    match cpu.model.as_deref() {
        None | Some("" | "host-model") => defaults.cpu_model.to_owned(),
        Some(model @ ("host-passthrough" | "host" | "max")) => {
            let message = format!("{model:?} is not safe to migrate: name a model, or host-model");
            problems.add("domain.cpu.model", message);
            String::new()
        }
        Some(model) if is_word(model) => model.to_owned(),
        Some(model) => {
            problems.add(
                "domain.cpu.model",
                format!("{model:?} is not a model's name"),
            );
            String::new()
        }
    }
}

/// Whether a text is safe as one value of a QEMU option: no comma, no equals sign, no blank.
fn is_word(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !text.is_empty() && text.len() <= 64 && text.chars().all(good)
}

fn disks(spec: &VmiSpec, problems: &mut Problems) -> Vec<Disk> {
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
        disks.extend(host_disk(spec, volume, disk, problems).map(|disk| Disk { boot, ..disk }));
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
            "only hostDisk is supported on plain hosts",
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
    })
}

fn nics(spec: &VmiSpec, id: &MachineId, problems: &mut Problems) -> Vec<Nic> {
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

fn kernel(firmware: &vmi::Firmware, problems: &mut Problems) -> Option<Kernel> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn lab() -> Value {
        json!({
            "evictionStrategy": "LiveMigrate",
            "domain": {
                "cpu": {"cores": 1},
                "memory": {"guest": "256Mi"},
                "firmware": {"kernelBoot": {
                    "kernelArgs": "console=ttyS0 godwit.ip=192.168.123.62/24",
                    "container": {
                        "image": "lab-guest", "kernelPath": "/vmlinuz", "initrdPath": "/initrd.gz"
                    },
                }},
                "devices": {
                    "disks": [{"name": "rootdisk", "disk": {"bus": "virtio"}}],
                    "interfaces": [{"name": "nic0", "bridge": {}}],
                },
            },
            "networks": [{"name": "nic0", "multus": {"networkName": "lab-net"}}],
            "volumes": [{"name": "rootdisk", "hostDisk": {
                "path": "/srv/rhel8.img", "type": "DiskOrCreate", "capacity": "64Mi", "shared": true
            }}],
        })
    }

    fn build(spec: Value) -> Result<MachineSpec, Vec<String>> {
        let spec: VmiSpec = serde_json::from_value(spec).expect("the schema's types");
        let id = MachineId::parse("43f5b34d-94b4-4cda-9a69-cca8d4b4c587").expect("a uuid");
        let identity = Identity {
            id: &id,
            namespace: "default",
            name: "rhel8-server-nfs",
        };
        let defaults = HostDefaults {
            machine_type: "pc-q35-7.2",
            cpu_model: "qemu64",
        };
        machine_spec(&spec, identity, defaults).map_err(|problems| {
            problems
                .into_iter()
                .map(|p| format!("{}: {}", p.path, p.message))
                .collect()
        })
    }

    #[test]
    fn the_labs_machine_is_built_as_written() {
        let machine = build(lab()).expect("nothing to refuse");
        assert_eq!(machine.memory, Bytes::mib(256));
        assert_eq!(machine.machine_type, "pc-q35-7.2");
        assert_eq!(machine.nics[0].network, "lab-net");
        assert_eq!(machine.nics[0].mac, "02:00:d4:b4:c5:87");
        assert_eq!(machine.disks[0].create, Some(Bytes::mib(64)));
        assert_eq!(machine.kernel.expect("a kernel").kernel_path, "vmlinuz");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_its_path() {
        let mut spec = lab();
        spec["domain"]["devices"]["gpus"] = json!([{}]);
        spec["domain"]["cpu"]["model"] = json!("host-passthrough");
        spec["volumes"][0] = json!({"name": "rootdisk", "containerDisk": {"image": "x"}});
        spec["livenessProbe"] = json!({});
        let problems = build(spec).expect_err("refused");
        for path in [
            "livenessProbe: ",
            "domain.devices.gpus: ",
            "domain.cpu.model: ",
            "volumes[0].containerDisk: ",
            "volumes[0]: only hostDisk",
        ] {
            assert!(
                problems.iter().any(|p| p.starts_with(path)),
                "{path} not in {problems:?}"
            );
        }
    }

    #[test]
    fn a_text_cannot_smuggle_an_option_into_qemus_command_line() {
        for (pointer, value) in [
            ("/domain/devices/disks/0/name", "a,readonly=on"),
            ("/volumes/0/hostDisk/path", "/srv/a,format=qcow2"),
            ("/volumes/0/hostDisk/path", "/srv/../etc/shadow"),
            (
                "/domain/firmware/kernelBoot/container/kernelPath",
                "../../etc/passwd",
            ),
            ("/domain/devices/interfaces/0/name", "n0,script=/bin/sh"),
        ] {
            let mut spec = lab();
            *spec.pointer_mut(pointer).expect("a field") = json!(value);
            assert!(build(spec).is_err(), "{pointer} = {value} was accepted");
        }
    }

    #[test]
    fn a_disk_that_is_not_shared_keeps_a_machine_in_its_place() {
        let mut spec = lab();
        spec["volumes"][0]["hostDisk"]["shared"] = json!(false);
        let parsed: VmiSpec = serde_json::from_value(spec).expect("the schema's types");
        let refused = live_migratable(&parsed).expect_err("not migratable");
        assert_eq!(refused.reason, "DisksNotLiveMigratable");
    }

    #[test]
    fn the_machines_own_eviction_strategy_goes_before_the_clusters() {
        let effective = EvictionStrategy::effective;
        assert_eq!(
            effective(Some("None"), Some("LiveMigrate")),
            EvictionStrategy::None
        );
        assert_eq!(
            effective(None, Some("LiveMigrate")),
            EvictionStrategy::LiveMigrate
        );
        assert_eq!(effective(None, None), EvictionStrategy::None);
    }
}
