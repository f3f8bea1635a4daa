//! Choosing a node: what rules a node out, which of the rest is best, and why, for every node.
//!
//! Used by the scheduler for a machine's start and for a migration's target.

use crate::machine::MachineSpec;
use crate::vmi::Toleration;
use crate::{Bytes, NodeName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Memory that QEMU needs beside the guest's, whatever its size.
const OVERHEAD_FIXED: Bytes = Bytes::mib(64);
/// One byte of page tables and bookkeeping for so many bytes of guest memory.
const OVERHEAD_SHARE: u64 = 512;
/// Virtual CPUs that share one CPU: KubeVirt's `cpuAllocationRatio`.
const CPU_RATIO: u64 = 10;

/// What a host said of itself when it registered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostFacts {
    /// `kvm` or `tcg`, by having run a guest.
    pub accelerator: String,
    /// Version of QEMU.
    pub qemu_version: String,
    /// Versioned machine types that its QEMU has.
    pub machine_types: Vec<String>,
    /// CPU models that it can run.
    pub cpu_models: Vec<String>,
    /// Names of its networks.
    pub networks: Vec<String>,
    /// Names of its image directories.
    pub images: Vec<String>,
}

/// A taint of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value; often empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// A node that might take the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: NodeName,
    /// Whether its agent answers.
    pub ready: bool,
    /// Whether it is closed for placement.
    pub cordoned: bool,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Memory that nobody holds.
    pub free_memory: Bytes,
    /// CPU that nobody holds, thousandths.
    pub free_cpu_milli: u64,
    /// Migrations towards it.
    pub inbound: u32,
    /// What it can do.
    pub facts: HostFacts,
}

/// What a machine asks of a node.
#[derive(Debug, Clone, Copy)]
pub struct Demand<'a> {
    /// The machine.
    pub spec: &'a MachineSpec,
    /// Labels that the node must have.
    pub selectors: [&'a BTreeMap<String, String>; 2],
    /// Taints that the machine bears.
    pub tolerations: &'a [Toleration],
    /// Where it is and must leave; `None` for a start.
    pub source: Option<&'a NodeName>,
    /// The only node that has its local disks; `None` when it has none, or has never run.
    pub home: Option<&'a NodeName>,
    /// Accelerator that it runs under; `None` for a start.
    pub accelerator: Option<&'a str>,
    /// Most migrations towards one node; 0 is no limit.
    pub inbound_max: u32,
}

/// Room that a machine needs on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// The guest's memory and QEMU's own.
    pub memory: Bytes,
    /// CPU, thousandths.
    pub cpu_milli: u64,
}

/// The room for `spec`.
pub fn room(spec: &MachineSpec) -> Room {
    let memory = spec.memory.0 + spec.memory.0 / OVERHEAD_SHARE + OVERHEAD_FIXED.0;
    Room {
        memory: Bytes(memory),
        cpu_milli: u64::from(spec.cpus) * 1000 / CPU_RATIO,
    }
}

/// Why a node was ruled out; printed as `kubectl describe` shows it for pods.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// The machine is there and must leave.
    Source,
    /// The agent doesn't answer.
    NotReady,
    /// Closed for placement.
    Cordoned,
    /// A taint that the machine doesn't bear.
    Taint(String),
    /// A label is missing or different.
    Selector,
    /// Too little memory.
    Memory,
    /// Too little CPU.
    Cpu,
    /// The machine's local disks are on another node.
    LocalDisks,
    /// A network is missing.
    Network(String),
    /// An image directory is missing.
    Image(String),
    /// Its QEMU doesn't have the machine type.
    MachineType(String),
    /// It can't run the CPU model.
    CpuModel(String),
    /// Another accelerator: state doesn't carry over.
    Accelerator,
    /// As many migrations towards it as allowed.
    Inbound,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source => f.write_str("node(s) were the migration's source"),
            Self::NotReady => f.write_str("node(s) were not ready"),
            Self::Cordoned => f.write_str("node(s) were unschedulable"),
            Self::Taint(key) => write!(f, "node(s) had untolerated taint {{{key}}}"),
            Self::Selector => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Self::Memory => f.write_str("Insufficient memory"),
            Self::Cpu => f.write_str("Insufficient cpu"),
            Self::LocalDisks => f.write_str("node(s) didn't have the machine's local disks"),
            Self::Network(name) => write!(f, "node(s) had no network {name}"),
            Self::Image(name) => write!(f, "node(s) had no image {name}"),
            Self::MachineType(name) => write!(f, "node(s) had no machine type {name}"),
            Self::CpuModel(name) => write!(f, "node(s) could not run CPU model {name}"),
            Self::Accelerator => f.write_str("node(s) had another accelerator"),
            Self::Inbound => f.write_str("node(s) had as many inbound migrations as allowed"),
        }
    }
}

/// A node and what speaks against it; nothing does for a node that would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The node.
    pub node: NodeName,
    /// Every obstacle.
    pub obstacles: Vec<Obstacle>,
}

/// Where the machine goes, and why not elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The best node; `None` when none will do.
    pub chosen: Option<NodeName>,
    /// Every node.
    pub verdicts: Vec<Verdict>,
}

impl Placement {
    /// One line in the style of FailedScheduling: `0/3 nodes are available: 2 Insufficient memory.`
    pub fn summary(&self) -> String {
        let fit = self
            .verdicts
            .iter()
            .filter(|verdict| verdict.obstacles.is_empty())
            .count();
        let mut counts: BTreeMap<&Obstacle, usize> = BTreeMap::new();
        for obstacle in self.verdicts.iter().flat_map(|verdict| &verdict.obstacles) {
            *counts.entry(obstacle).or_default() += 1;
        }
        let reasons: Vec<String> = counts
            .into_iter()
            .map(|(obstacle, count)| format!("{count} {obstacle}"))
            .collect();
        let total = self.verdicts.len();
        if reasons.is_empty() {
            return format!("{fit}/{total} nodes are available.");
        }
        format!("{fit}/{total} nodes are available: {}.", reasons.join(", "))
    }
}

/// Chooses among `candidates`.
pub fn place(demand: Demand<'_>, candidates: &[Candidate]) -> Placement {
    let verdicts: Vec<Verdict> = candidates
        .iter()
        .map(|node| Verdict {
            node: node.name.clone(),
            obstacles: obstacles(demand, node),
        })
        .collect();
    let fits = candidates
        .iter()
        .zip(&verdicts)
        .filter(|(_, verdict)| verdict.obstacles.is_empty());
    // Most free memory first, then fewest inbound; names make ties the same everywhere.
    let chosen = fits
        .max_by_key(|(node, _)| {
            (
                node.free_memory,
                std::cmp::Reverse(node.inbound),
                std::cmp::Reverse(&node.name),
            )
        })
        .map(|(node, _)| node.name.clone());
    Placement { chosen, verdicts }
}

fn obstacles(demand: Demand<'_>, node: &Candidate) -> Vec<Obstacle> {
    let spec = demand.spec;
    let room = room(spec);
    let facts = &node.facts;
    let mut found = vec![];
    let mut rule = |broken: bool, obstacle: Obstacle| {
        if broken {
            found.push(obstacle);
        }
    };
    rule(demand.source == Some(&node.name), Obstacle::Source);
    rule(!node.ready, Obstacle::NotReady);
    rule(node.cordoned, Obstacle::Cordoned);
    for taint in &node.taints {
        let borne = demand
            .tolerations
            .iter()
            .any(|toleration| bears(toleration, taint));
        // Kubernetes counts a cordon once, not as a taint too.
        let counts = taint.effect != "PreferNoSchedule"
            && !(node.cordoned && taint.key == "node.kubernetes.io/unschedulable");
        rule(counts && !borne, Obstacle::Taint(taint.key.clone()));
    }
    let matches = demand.selectors.iter().all(|selector| {
        selector
            .iter()
            .all(|(key, value)| node.labels.get(key) == Some(value))
    });
    rule(!matches, Obstacle::Selector);
    // Anywhere else it would find no disk, or be given an empty one.
    let away = demand.home.is_some_and(|home| *home != node.name);
    rule(away, Obstacle::LocalDisks);
    rule(node.free_memory < room.memory, Obstacle::Memory);
    rule(node.free_cpu_milli < room.cpu_milli, Obstacle::Cpu);
    for nic in &spec.nics {
        rule(
            !facts.networks.contains(&nic.network),
            Obstacle::Network(nic.network.clone()),
        );
    }
    if let Some(kernel) = &spec.kernel {
        rule(
            !facts.images.contains(&kernel.image),
            Obstacle::Image(kernel.image.clone()),
        );
    }
    let machine_type = &spec.machine_type;
    rule(
        !facts.machine_types.contains(machine_type),
        Obstacle::MachineType(machine_type.clone()),
    );
    rule(
        !facts.cpu_models.contains(&spec.cpu_model),
        Obstacle::CpuModel(spec.cpu_model.clone()),
    );
    let other = demand
        .accelerator
        .is_some_and(|accelerator| accelerator != facts.accelerator);
    rule(other, Obstacle::Accelerator);
    rule(
        demand.inbound_max > 0 && node.inbound >= demand.inbound_max,
        Obstacle::Inbound,
    );
    found
}

fn bears(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration
        .effect
        .as_deref()
        .is_none_or(|e| e.is_empty() || e == taint.effect);
    let exists = toleration.operator.as_deref() == Some("Exists");
    let key = (exists && toleration.key.is_empty()) || toleration.key == taint.key;
    effect && key && (exists || toleration.value == taint.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MachineId;

    fn spec() -> MachineSpec {
        MachineSpec {
            id: MachineId::parse("43f5b34d-94b4-4cda-9a69-cca8d4b4c587").expect("a uuid"),
            namespace: "default".into(),
            name: "vm".into(),
            cpus: 1,
            memory: Bytes::mib(256),
            machine_type: "pc-q35-7.2".into(),
            cpu_model: "qemu64".into(),
            disks: vec![],
            nics: vec![],
            kernel: None,
        }
    }

    fn node(name: &str, free: u64) -> Candidate {
        Candidate {
            name: NodeName::parse(name).expect("a name"),
            ready: true,
            cordoned: false,
            taints: vec![],
            labels: BTreeMap::new(),
            free_memory: Bytes::mib(free),
            free_cpu_milli: 2000,
            inbound: 0,
            facts: HostFacts {
                accelerator: "tcg".into(),
                machine_types: vec!["pc-q35-7.2".into()],
                cpu_models: vec!["qemu64".into()],
                ..HostFacts::default()
            },
        }
    }

    fn placed(nodes: &[Candidate], source: Option<&str>) -> Placement {
        let spec = spec();
        let none = BTreeMap::new();
        let source = source.map(|name| NodeName::parse(name).expect("a name"));
        let demand = Demand {
            spec: &spec,
            selectors: [&none, &none],
            tolerations: &[],
            source: source.as_ref(),
            home: None,
            accelerator: Some("tcg"),
            inbound_max: 2,
        };
        place(demand, nodes)
    }

    #[test]
    fn the_node_with_most_room_wins_and_the_source_never() {
        let nodes = [
            node("worker1", 4096),
            node("worker2", 1024),
            node("worker3", 2048),
        ];
        let placement = placed(&nodes, Some("worker1"));
        assert_eq!(
            placement.chosen.as_ref().map(NodeName::as_str),
            Some("worker3")
        );
        assert_eq!(
            placement.summary(),
            "2/3 nodes are available: 1 node(s) were the migration's source."
        );
    }

    #[test]
    fn every_reason_is_counted_as_users_of_kubernetes_know_it() {
        let mut nodes = [
            node("worker1", 4096),
            node("worker2", 10),
            node("worker3", 10),
        ];
        nodes[0].cordoned = true;
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        nodes[0].taints.push(taint);
        let placement = placed(&nodes, None);
        assert_eq!(placement.chosen, None);
        assert_eq!(
            placement.summary(),
            "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient memory."
        );
    }

    #[test]
    fn a_machine_never_changes_its_accelerator_or_overfills_a_nodes_inbound() {
        let mut nodes = [node("worker1", 4096), node("worker2", 4096)];
        nodes[0].facts.accelerator = "kvm".into();
        nodes[1].inbound = 2;
        let placement = placed(&nodes, None);
        assert_eq!(placement.verdicts[0].obstacles, [Obstacle::Accelerator]);
        assert_eq!(placement.verdicts[1].obstacles, [Obstacle::Inbound]);
    }

    #[test]
    fn a_machine_with_local_disks_comes_back_to_them_or_waits() {
        let (spec, none) = (spec(), BTreeMap::new());
        let home = NodeName::parse("worker1").expect("a name");
        let demand = Demand {
            spec: &spec,
            selectors: [&none, &none],
            tolerations: &[],
            source: None,
            home: Some(&home),
            accelerator: None,
            inbound_max: 0,
        };
        let mut nodes = [node("worker1", 1024), node("worker2", 4096)];
        assert_eq!(place(demand, &nodes).chosen.as_ref(), Some(&home));
        nodes[0].ready = false;
        let placement = place(demand, &nodes);
        assert_eq!(placement.chosen, None);
        assert_eq!(
            placement.summary(),
            "0/2 nodes are available: 1 node(s) were not ready, \
             1 node(s) didn't have the machine's local disks."
        );
    }
}
