//! What a machine asks of a node.

use crate::NodeName;
use crate::affinity::{Crowd, Labels, NodeSelector, PreferredNode};
use crate::machine::MachineSpec;
use crate::vmi::{Toleration, VmiSpec};
use crate::{Bytes, MachineId};

use super::Overcommit;
use super::room::{self, Room};

/// All that placing a machine depends on. Machines with equal demands are placed alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Demand {
    /// What it takes on a node where it is placed.
    pub room: Room,
    /// The guest's memory.
    pub guest: Bytes,
    /// What the node must be, whoever else is there.
    pub needs: Needs,
    /// Namespace of the machine.
    pub namespace: String,
    /// Labels of the machine.
    pub labels: Labels,
    /// Who else must be near.
    pub near: Vec<Near>,
    /// Who must not be near.
    pub apart: Vec<Near>,
    /// Who should be near, by weight; below zero: should not.
    pub liked: Vec<(i32, Near)>,
    /// How evenly machines are to be spread.
    pub spread: Vec<Spread>,
}

/// What a node must be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Needs {
    /// Labels that it must have, by whoever asked.
    pub selectors: Vec<Labels>,
    /// Required node affinity.
    pub affinity: Option<NodeSelector>,
    /// Preferred node affinity.
    pub preferred: Vec<PreferredNode>,
    /// Taints that are borne.
    pub tolerations: Vec<Toleration>,
    /// Networks that it must have.
    pub networks: Vec<String>,
    /// Image directory that it must have.
    pub image: Option<String>,
    /// Paths of disks that it must see as the other hosts do.
    pub storage: Vec<String>,
    /// Machine type that its QEMU must have.
    pub machine_type: String,
    /// CPU model that it must be able to run.
    pub cpu_model: String,
    /// Accelerator that the machine runs under; `None` for a start.
    pub accelerator: Option<String>,
}

/// Machines, and how far "near" reaches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Near {
    /// Which machines.
    pub crowd: Crowd,
    /// Nodes with the same value of this label are near each other.
    pub topology_key: String,
}

/// How evenly machines are to be spread.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Spread {
    /// Which machines, over which domains.
    pub near: Near,
    /// By how many a domain may be fuller than the emptiest.
    pub max_skew: u32,
    /// With fewer domains than this the emptiest counts as empty.
    pub min_domains: u32,
    /// Whether it must be so; else it should.
    pub required: bool,
}

/// One question.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The machine.
    pub machine: &'a MachineId,
    /// What it asks for.
    pub demand: &'a Demand,
    /// Where it is and must leave; `None` for a start.
    pub source: Option<&'a NodeName>,
    /// The only node that has its local disks; `None` when it has none, or has never run.
    pub home: Option<&'a NodeName>,
    /// Most migrations towards one node; 0 is no limit.
    pub inbound_max: u32,
    /// What decides among the nodes that nothing speaks against.
    pub leaning: Leaning<'a>,
}

/// Which of the nodes that will do is taken, before any points are counted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Leaning<'a> {
    /// A plan's node: taken unless it is to be avoided.
    pub preferred: Option<&'a NodeName>,
    /// Taken only when no other node will do.
    pub avoid: &'a [NodeName],
}

impl Demand {
    /// What the machine `spec` asks for, made from `vmi` and labelled with `labels`, of nodes that
    /// are overcommitted so far.
    pub fn new(spec: &MachineSpec, vmi: &VmiSpec, labels: Labels, overcommit: Overcommit) -> Self {
        let namespace = &spec.namespace;
        let near = |term: &crate::affinity::PodTerm| Near {
            crowd: term.crowd(namespace),
            topology_key: term.topology_key.clone(),
        };
        let (wanted, unwanted) = (&vmi.affinity.pod_affinity, &vmi.affinity.pod_anti_affinity);
        let liked = |sign: i32, of: &crate::affinity::PodAffinity| {
            let terms = of
                .preferred_during_scheduling_ignored_during_execution
                .iter();
            let weighted = terms.map(|one| (sign * one.weight, near(&one.pod_affinity_term)));
            weighted.collect::<Vec<_>>()
        };
        let required = |of: &crate::affinity::PodAffinity| {
            let terms = of
                .required_during_scheduling_ignored_during_execution
                .iter();
            terms.map(near).collect::<Vec<_>>()
        };
        Self {
            room: room::room(spec, vmi, overcommit),
            guest: spec.memory,
            needs: Needs::new(spec, vmi),
            near: required(wanted),
            apart: required(unwanted),
            liked: [liked(1, wanted), liked(-1, unwanted)].concat(),
            spread: spread(vmi, namespace),
            namespace: namespace.clone(),
            labels,
        }
    }

    /// A machine of which only its room is known.
    pub fn of_room(room: Room) -> Self {
        Self {
            room,
            guest: room::guest_memory(room),
            needs: Needs::default(),
            namespace: String::new(),
            labels: Labels::new(),
            near: vec![],
            apart: vec![],
            liked: vec![],
            spread: vec![],
        }
    }
}

impl Needs {
    fn new(spec: &MachineSpec, vmi: &VmiSpec) -> Self {
        let affinity = &vmi.affinity.node_affinity;
        Self {
            selectors: vec![vmi.node_selector.clone()],
            affinity: affinity
                .required_during_scheduling_ignored_during_execution
                .clone(),
            preferred: affinity
                .preferred_during_scheduling_ignored_during_execution
                .clone(),
            tolerations: vmi.tolerations.clone(),
            networks: spec.nics.iter().map(|nic| nic.network.clone()).collect(),
            image: spec.kernel.as_ref().map(|kernel| kernel.image.clone()),
            storage: storage(spec),
            machine_type: spec.machine_type.clone(),
            cpu_model: spec.cpu_model.clone(),
            accelerator: None,
        }
    }
}

/// A disk with a seed is made by each host at a place of its own.
fn storage(spec: &MachineSpec) -> Vec<String> {
    let shared = spec
        .disks
        .iter()
        .filter(|disk| disk.shared && disk.seed.is_none());
    shared.map(|disk| disk.path.clone()).collect()
}

fn spread(vmi: &VmiSpec, namespace: &str) -> Vec<Spread> {
    let rules = vmi.topology_spread_constraints.iter();
    rules
        .map(|rule| Spread {
            near: Near {
                crowd: rule.crowd(namespace),
                topology_key: rule.topology_key.clone(),
            },
            max_skew: rule.max_skew.max(1).unsigned_abs(),
            min_domains: rule.min_domains.unwrap_or(1).max(1).unsigned_abs(),
            required: rule.when_unsatisfiable != "ScheduleAnyway",
        })
        .collect()
}
