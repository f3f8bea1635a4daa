//! Choosing a node: what rules a node out, which of the rest is best, and why, for every node.
//!
//! Used by the scheduler for a machine's start and for a migration's target, and by the plans of
//! maintenance. [`Fleet`] knows all nodes and machines; [`Fleet::choose`] and [`Fleet::explain`]
//! answer an [`Ask`].

mod choose;
mod crowds;
mod demand;
mod fleet;
mod mask;
mod room;
mod row;
mod shown;
#[cfg(test)]
mod tests;

use crate::affinity::Labels;
use crate::machine::PageSize;
use crate::{Bytes, NodeName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

pub use choose::{Choice, RunnerUp};
pub use demand::{Ask, Demand, Leaning, Near, Needs, Spread};
pub use fleet::{Fleet, Held};
pub use room::{Hugepages, Overcommit, OvercommitSettings, Room, overhead, room};
pub use shown::{Line, Shown};

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
    /// Its directories for disks. One that names none says nothing of where its disks are.
    pub pools: Vec<Pool>,
}

impl HostFacts {
    /// Whether the host has shared storage at `path`, as far as it says.
    pub fn has_storage(&self, path: &str) -> bool {
        let mut pools = self.pools.iter();
        self.pools.is_empty()
            || pools.any(|pool| pool.shared && Path::new(path).starts_with(&pool.path))
    }
}

/// A directory for disks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pool {
    /// Where it is.
    pub path: String,
    /// Whether all hosts that have it see the same files there.
    pub shared: bool,
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

/// A node that might take machines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: NodeName,
    /// Whether its agent answers.
    pub ready: bool,
    /// Whether it is closed for placement.
    pub cordoned: bool,
    /// Whether it is about to be emptied: taken only when nothing else will do.
    pub leaving: bool,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Its labels.
    pub labels: Labels,
    /// Memory for machines.
    pub memory: Bytes,
    /// CPU for machines, thousandths.
    pub cpu_milli: u64,
    /// Huge pages for machines.
    pub hugepages: Hugepages,
    /// What it can do.
    pub facts: HostFacts,
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
    /// Too few huge pages of that size.
    Hugepages(PageSize),
    /// The machine's local disks are on another node.
    LocalDisks,
    /// A network is missing.
    Network(String),
    /// An image directory is missing.
    Image(String),
    /// The place of a shared disk is missing.
    Storage(String),
    /// Its QEMU doesn't have the machine type.
    MachineType(String),
    /// It can't run the CPU model.
    CpuModel(String),
    /// Another accelerator: state doesn't carry over.
    Accelerator,
    /// As many migrations towards it as allowed.
    Inbound,
    /// Whom the machine wants near isn't.
    Affinity,
    /// Whom the machine doesn't want near is.
    AntiAffinity,
    /// Somebody near doesn't want the machine near.
    ForeignAntiAffinity,
    /// The machines would be spread less evenly than they must.
    Spread,
    /// It lacks the label that machines are spread over.
    SpreadLabel,
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
            Self::Hugepages(size) => write!(f, "Insufficient hugepages-{size}"),
            Self::LocalDisks => f.write_str("node(s) didn't have the machine's local disks"),
            Self::Network(name) => write!(f, "node(s) had no network {name}"),
            Self::Image(name) => write!(f, "node(s) had no image {name}"),
            Self::Storage(path) => write!(f, "node(s) had no storage for {path}"),
            Self::MachineType(name) => write!(f, "node(s) had no machine type {name}"),
            Self::CpuModel(name) => write!(f, "node(s) could not run CPU model {name}"),
            Self::Accelerator => f.write_str("node(s) had another accelerator"),
            Self::Inbound => f.write_str("node(s) had as many inbound migrations as allowed"),
            Self::Affinity => f.write_str("node(s) didn't match pod affinity rules"),
            Self::AntiAffinity => f.write_str("node(s) didn't match pod anti-affinity rules"),
            Self::ForeignAntiAffinity => {
                f.write_str("node(s) didn't satisfy existing pods anti-affinity rules")
            }
            Self::Spread => f.write_str("node(s) didn't match pod topology spread constraints"),
            Self::SpreadLabel => f.write_str(
                "node(s) didn't match pod topology spread constraints (missing required label)",
            ),
        }
    }
}

impl Candidate {
    /// All of it.
    pub const fn room(&self) -> Room {
        Room {
            memory: self.memory,
            cpu_milli: self.cpu_milli,
            hugepages: self.hugepages,
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
