//! From what a user wrote to what a host builds; and whether the machine can move live.
//!
//! Called at admission, to refuse with the field's path what plain hosts can't honour, and again
//! when the machine starts.

mod affinity;
mod devices;
mod problems;

use crate::machine::{MachineSpec, PageSize};
use crate::vmi::{self, VmiSpec};
use crate::{Bytes, MachineId};
use problems::{Problems, is_word};

pub use affinity::label_selector_problems;
pub use devices::derived_mac;

/// Least memory of a machine.
const MEMORY_MIN: Bytes = Bytes::mib(1);
/// Most virtual CPUs of a machine: the limit of q35 in QEMU 7.2.
const CPUS_MAX: u32 = 288;

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

    /// Whether machines are moved under it.
    pub const fn moves(self) -> bool {
        match self {
            Self::LiveMigrate | Self::LiveMigrateIfPossible => true,
            Self::None | Self::External => false,
        }
    }

    /// A machine that may not be moved may be since: an instance keeps the strategy that it was
    /// made with, and its virtual machine, which says `newer`, has the newer word.
    #[must_use]
    pub fn or_newer(self, newer: Option<&str>) -> Self {
        match self.moves() {
            true => self,
            false => newer.and_then(Self::from_name).unwrap_or(self),
        }
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
    affinity::check(spec, &mut problems);
    let memory = memory(&spec.domain, &mut problems);
    let machine = MachineSpec {
        id: identity.id.clone(),
        namespace: identity.namespace.to_owned(),
        name: identity.name.to_owned(),
        cpus: cpus(&spec.domain.cpu, &mut problems),
        memory,
        machine_type: machine_type(&spec.domain.machine, defaults, &mut problems),
        cpu_model: cpu_model(&spec.domain.cpu, defaults, &mut problems),
        disks: devices::disks(spec, identity, &mut problems),
        nics: devices::nics(spec, identity.id, &mut problems),
        kernel: devices::kernel(&spec.domain.firmware, &mut problems),
        hugepages: hugepages(&spec.domain.memory, memory, &mut problems),
    };
    requests(&spec.domain.resources, &mut problems);
    if machine.kernel.is_none() && machine.disks.is_empty() {
        problems.add("domain.devices.disks", "there is nothing to boot from");
    }
    if problems.0.is_empty() {
        Ok(machine)
    } else {
        Err(problems.0)
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

/// Path of a problem with huge pages for which KubeVirt has words of its own.
pub const HUGEPAGES: &str = "domain.memory.hugepages";

fn hugepages(wanted: &vmi::Memory, memory: Bytes, problems: &mut Problems) -> Option<PageSize> {
    let wanted = wanted.hugepages.as_ref()?;
    let bytes = match wanted.page_size.as_ref().map(vmi::Quantity::whole) {
        Some(Ok(bytes)) => Bytes(bytes),
        Some(Err(error)) => {
            problems.add(HUGEPAGES, error.to_string());
            return None;
        }
        None => {
            problems.add(format!("{HUGEPAGES}.pageSize"), "is required");
            return None;
        }
    };
    let Some(size) = PageSize::of(bytes) else {
        let message = format!("{bytes} is not supported on plain hosts, only 2Mi and 1Gi");
        problems.add(format!("{HUGEPAGES}.pageSize"), message);
        return None;
    };
    if !memory.0.is_multiple_of(size.bytes().0) {
        problems.add(HUGEPAGES, format!("{memory} is not a multiple of {size}"));
    }
    Some(size)
}

/// What a machine is placed by must be readable.
fn requests(resources: &vmi::Resources, problems: &mut Problems) {
    for (field, list) in [
        ("requests", &resources.requests),
        ("limits", &resources.limits),
    ] {
        for (name, quantity) in list {
            let read = match name.as_str() {
                "cpu" => quantity.milli(),
                "memory" => quantity.whole(),
                _ => continue,
            };
            if let Err(error) = read {
                let path = format!("domain.resources.{field}.{name}");
                problems.add(path, error.to_string());
            }
        }
    }
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
            "volumes[0]: only hostDisk, cloudInit",
        ] {
            assert!(
                problems.iter().any(|p| p.starts_with(path)),
                "{path} not in {problems:?}"
            );
        }
    }

    #[test]
    fn a_guests_memory_fits_its_huge_pages_or_is_refused() {
        let with = |guest: &str, size: &str| {
            let mut spec = lab();
            spec["domain"]["memory"] = json!({"guest": guest, "hugepages": {"pageSize": size}});
            build(spec)
        };
        let machine = with("256Mi", "2Mi").expect("nothing to refuse");
        assert_eq!(machine.hugepages, Some(PageSize::Mi2));
        let machine = with("2Gi", "1024Mi").expect("nothing to refuse");
        assert_eq!(machine.hugepages, Some(PageSize::Gi1));
        for (guest, size, said) in [
            (
                "255Mi",
                "2Mi",
                "hugepages: 255 MiB is not a multiple of 2Mi",
            ),
            (
                "256Mi",
                "1Gi",
                "hugepages: 256 MiB is not a multiple of 1Gi",
            ),
            (
                "256Mi",
                "64Ki",
                "hugepages.pageSize: 64 KiB is not supported",
            ),
            ("256Mi", "much", "hugepages: \"much\" is not a quantity"),
        ] {
            let problems = with(guest, size).expect_err("refused");
            assert!(
                problems.len() == 1 && problems[0].starts_with(&format!("domain.memory.{said}")),
                "{problems:?}"
            );
        }
    }

    #[test]
    fn a_request_that_cannot_be_read_is_refused() {
        let mut spec = lab();
        spec["domain"]["resources"] = json!({
            "requests": {"memory": "lots", "example.com/thing": "x"}, "limits": {"cpu": "-1"},
        });
        let problems = build(spec).expect_err("refused");
        assert!(problems[0].starts_with("domain.resources.requests.memory: "));
        assert!(problems[1].starts_with("domain.resources.limits.cpu: "));
        assert_eq!(problems.len(), 2);
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
