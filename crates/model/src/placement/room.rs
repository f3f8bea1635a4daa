//! How much room a machine takes on its node, and how far nodes are overcommitted.
//!
//! The only place that computes it: placement, reservations and plans all ask here. What was booked
//! once stays booked, whatever is asked for later.

use crate::Bytes;
use crate::limits::{Problem, Setting};
use crate::machine::{MachineSpec, PageSize};
use crate::vmi::VmiSpec;
use serde::{Deserialize, Serialize};

/// Memory that QEMU needs beside the guest's, whatever its size.
const OVERHEAD_FIXED: Bytes = Bytes::mib(64);
/// One byte of page tables and bookkeeping for so many bytes of guest memory.
const OVERHEAD_SHARE: u64 = 512;

/// How far nodes are overcommitted, in KubeVirt's sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overcommit {
    /// Virtual CPUs that share one CPU.
    pub cpu_ratio: u32,
    /// Guest memory that is placed on 100 bytes of a node's.
    pub memory_percent: u32,
}

impl Default for Overcommit {
    /// KubeVirt's.
    fn default() -> Self {
        Self {
            cpu_ratio: 10,
            memory_percent: 100,
        }
    }
}

/// What one place sets.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OvercommitSettings {
    /// See [`Overcommit::cpu_ratio`].
    #[serde(alias = "cpu-allocation-ratio")]
    pub cpu_allocation_ratio: Option<Setting>,
    /// See [`Overcommit::memory_percent`].
    #[serde(alias = "memory-overcommit")]
    pub memory_overcommit: Option<Setting>,
}

impl Overcommit {
    /// What `resource` and `config_map` ask for; the former goes first, and `last` stands in for
    /// bad values.
    pub fn resolve(
        last: Self,
        resource: &OvercommitSettings,
        config_map: &OvercommitSettings,
    ) -> (Self, Vec<Problem>) {
        let mut problems = vec![];
        type Get = fn(&OvercommitSettings) -> Option<&Setting>;
        let mut pick = |key, get: Get, [last, default]: [u32; 2]| {
            let Some(setting) = get(resource).or_else(|| get(config_map)) else {
                return default;
            };
            setting.count().unwrap_or_else(|| {
                problems.push(Problem {
                    key,
                    value: setting.to_string(),
                    expected: "a number of at least 1",
                });
                last
            })
        };
        let default = Self::default();
        let found = Self {
            cpu_ratio: pick(
                "cpuAllocationRatio",
                |set| set.cpu_allocation_ratio.as_ref(),
                [last.cpu_ratio, default.cpu_ratio],
            ),
            memory_percent: pick(
                "memoryOvercommit",
                |set| set.memory_overcommit.as_ref(),
                [last.memory_percent, default.memory_percent],
            ),
        };
        (found, problems)
    }
}

/// Memory in huge pages, by their size.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Hugepages {
    /// Bytes in pages of 2 MiB.
    pub mi2: Bytes,
    /// Bytes in pages of 1 GiB.
    pub gi1: Bytes,
}

impl Hugepages {
    /// So much in pages of one size.
    pub fn of(size: PageSize, bytes: Bytes) -> Self {
        let none = Self::default();
        match size {
            PageSize::Mi2 => Self { mi2: bytes, ..none },
            PageSize::Gi1 => Self { gi1: bytes, ..none },
        }
    }

    /// What is in pages of that size.
    pub const fn get(self, size: PageSize) -> Bytes {
        match size {
            PageSize::Mi2 => self.mi2,
            PageSize::Gi1 => self.gi1,
        }
    }

    /// Each size with what is in pages of it.
    pub fn each(self) -> impl Iterator<Item = (PageSize, Bytes)> {
        PageSize::ALL
            .into_iter()
            .map(move |size| (size, self.get(size)))
    }

    /// The larger one of each size.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            mi2: self.mi2.max(other.mi2),
            gi1: self.gi1.max(other.gi1),
        }
    }
}

/// Room that a machine needs on its node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Room {
    /// Memory for the guest and for QEMU, without what is in huge pages.
    pub memory: Bytes,
    /// CPU, thousandths.
    pub cpu_milli: u64,
    /// The guest's memory, when it is in huge pages.
    pub hugepages: Hugepages,
}

impl std::ops::AddAssign for Room {
    fn add_assign(&mut self, other: Self) {
        self.memory.0 += other.memory.0;
        self.cpu_milli += other.cpu_milli;
        self.hugepages.mi2.0 += other.hugepages.mi2.0;
        self.hugepages.gi1.0 += other.hugepages.gi1.0;
    }
}

impl Room {
    /// What is left without `other`; `None` when there is too little.
    pub fn without(self, other: Self) -> Option<Self> {
        let less = |one: Bytes, other: Bytes| one.0.checked_sub(other.0).map(Bytes);
        Some(Self {
            memory: less(self.memory, other.memory)?,
            cpu_milli: self.cpu_milli.checked_sub(other.cpu_milli)?,
            hugepages: Hugepages {
                mi2: less(self.hugepages.mi2, other.hugepages.mi2)?,
                gi1: less(self.hugepages.gi1, other.hugepages.gi1)?,
            },
        })
    }

    /// The larger of both in each respect.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            memory: self.memory.max(other.memory),
            cpu_milli: self.cpu_milli.max(other.cpu_milli),
            hugepages: self.hugepages.max(other.hugepages),
        }
    }
}

/// The room for a machine `spec`, made from `vmi`.
///
/// What is requested by name is asked for as it stands, by KubeVirt's rule: a limit counts as a
/// request where there is none. Only what isn't requested is overcommitted, and never what QEMU
/// needs beside the guest's memory. Huge pages aren't either: the kernel has each of them once.
pub fn room(spec: &MachineSpec, vmi: &VmiSpec, overcommit: Overcommit) -> Room {
    let resources = &vmi.domain.resources;
    let requested = |name: &str| {
        let request = resources.requests.get(name);
        request.or_else(|| resources.limits.get(name))
    };
    let memory = requested("memory").and_then(|quantity| quantity.whole().ok());
    let cpu = requested("cpu").and_then(|quantity| quantity.milli().ok());
    let (guest, own) = (spec.memory.0, overhead(spec.memory).0);
    let (memory, hugepages) = match spec.hugepages {
        Some(size) => (
            memory.unwrap_or(guest).saturating_sub(guest),
            Hugepages::of(size, spec.memory),
        ),
        None => (
            memory.unwrap_or_else(|| overcommitted(guest, overcommit.memory_percent)),
            Hugepages::default(),
        ),
    };
    let ratio = u64::from(overcommit.cpu_ratio.max(1));
    Room {
        memory: Bytes(memory.saturating_add(own)),
        cpu_milli: cpu.unwrap_or_else(|| (u64::from(spec.cpus) * 1000).div_ceil(ratio)),
        hugepages,
    }
}

fn overcommitted(guest: u64, percent: u32) -> u64 {
    let asked = u128::from(guest) * 100 / u128::from(percent.max(1));
    u64::try_from(asked).unwrap_or(u64::MAX)
}

/// Memory that QEMU needs beside a guest's of that size.
pub fn overhead(guest: Bytes) -> Bytes {
    Bytes(guest.0 / OVERHEAD_SHARE + OVERHEAD_FIXED.0)
}

/// The guest's memory of a machine of which only its room is known: what is added to memory that is
/// not overcommitted, taken off.
pub(super) fn guest_memory(room: Room) -> Bytes {
    let huge = room.hugepages.mi2.0 + room.hugepages.gi1.0;
    if huge > 0 {
        return Bytes(huge);
    }
    let both = room.memory.0.saturating_sub(OVERHEAD_FIXED.0);
    Bytes(both - both / (OVERHEAD_SHARE + 1))
}

#[cfg(test)]
mod tests {
    use super::super::tests::spec;
    use super::*;
    use serde_json::{Value, json};

    fn asked(vmi: Value, (cpu_ratio, memory_percent): (u32, u32)) -> Room {
        let vmi: VmiSpec = serde_json::from_value(vmi).expect("a spec");
        let overcommit = Overcommit {
            cpu_ratio,
            memory_percent,
        };
        room(&spec("vm", 256), &vmi, overcommit)
    }

    fn with(resources: &Value) -> Value {
        json!({"domain": {"resources": resources}})
    }

    #[test]
    fn only_the_guests_memory_is_overcommitted_and_never_what_qemu_needs() {
        let own = overhead(Bytes::mib(256));
        assert_eq!(own.0, (64 << 20) + (512 << 10));
        let memory = |percent| asked(json!({}), (10, percent)).memory.0 - own.0;
        assert_eq!(memory(100), 256 << 20);
        assert_eq!(memory(200), 128 << 20);
        assert_eq!(memory(50), 512 << 20);
        let cpu = |ratio| asked(json!({}), (ratio, 100)).cpu_milli;
        assert_eq!([cpu(10), cpu(1), cpu(3)], [100, 1000, 334]);
    }

    #[test]
    fn what_is_requested_by_name_is_asked_for_as_it_stands() {
        let own = overhead(Bytes::mib(256)).0;
        let requests = json!({"requests": {"memory": "300Mi", "cpu": "250m"}});
        let room = asked(with(&requests), (5, 200));
        assert_eq!((room.memory.0 - own, room.cpu_milli), (300 << 20, 250));
        let limits = json!({"limits": {"memory": "300Mi", "cpu": 2}});
        let room = asked(with(&limits), (5, 200));
        assert_eq!((room.memory.0 - own, room.cpu_milli), (300 << 20, 2000));
    }

    #[test]
    fn huge_pages_are_asked_for_whole_and_qemus_own_memory_beside_them() {
        let machine = MachineSpec {
            hugepages: Some(PageSize::Mi2),
            ..spec("vm", 256)
        };
        let overcommit = Overcommit {
            memory_percent: 400,
            ..Overcommit::default()
        };
        let room = room(&machine, &VmiSpec::default(), overcommit);
        assert_eq!(room.memory, overhead(Bytes::mib(256)));
        assert_eq!(room.hugepages.mi2, Bytes::mib(256));
        assert_eq!(room.hugepages.gi1, Bytes(0));
    }

    #[test]
    fn the_object_goes_first_and_a_bad_value_keeps_the_last_good_one_and_says_so() {
        let resource = json!({"memoryOvercommit": 0, "useEmulation": true});
        let config_map = json!({"cpu-allocation-ratio": "4", "memory-overcommit": "150"});
        let read = |value| serde_json::from_value::<OvercommitSettings>(value).expect("settings");
        let last = Overcommit {
            cpu_ratio: 7,
            memory_percent: 120,
        };
        let (found, problems) = Overcommit::resolve(last, &read(resource), &read(config_map));
        let expected = Overcommit {
            cpu_ratio: 4,
            memory_percent: 120,
        };
        assert_eq!(found, expected);
        let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(said, ["memoryOvercommit 0 is not a number of at least 1"]);
        let nothing = OvercommitSettings::default();
        let (found, problems) = Overcommit::resolve(last, &nothing, &nothing);
        assert_eq!((found, problems), (Overcommit::default(), vec![]));
    }

    #[test]
    fn a_guests_memory_is_found_again_in_its_room() {
        let room = asked(json!({}), (10, 100));
        assert_eq!(guest_memory(room), Bytes::mib(256));
    }
}
