//! Makes a plan from what is true about now. Reads only.

use std::collections::{BTreeMap, BTreeSet};

use godwit_ledger::{Experience, Ledger, LedgerError, Object, ObjectKey, labels};
use godwit_model::affinity::LabelSelector;
use godwit_model::maintenance::{Blocker, Decision, Machine, Method, Stage, decide};
use godwit_model::placement::{Placement, Verdict};
use godwit_model::plan::{DrainPlan, Order, Rules, Stuck, drain};
use godwit_model::{MachineId, NodeName, Revision};
use serde::Deserialize;

use crate::look::{Guest, Reader, Settings, residents};
use crate::outlook::floor;

/// The spec of a DrainPlan, as admission let it pass.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Spec {
    pub(crate) nodes: Vec<String>,
    pub(crate) node_selector: Option<LabelSelector>,
    pub(crate) together: bool,
    pub(crate) max_unavailable: usize,
    pub(crate) failure_domain: Option<String>,
    pub(crate) spare_nodes: bool,
    pub(crate) execute: bool,
}

/// A plan with all that is told of it.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) plan: DrainPlan,
    /// The machines that leave for another node.
    pub(crate) movers: BTreeMap<MachineId, Mover>,
    /// The machines that are stopped, and stay so, each with its node.
    pub(crate) shutdowns: Vec<(NodeName, ObjectKey)>,
    /// What is in the way, by node and machine.
    pub(crate) blockers: Vec<Hindrance>,
    /// Nodes that are emptied, planned or not.
    pub(crate) nodes: Vec<NodeName>,
    /// Everything is at least as new as this.
    pub(crate) revision: Revision,
}

/// A machine that leaves for another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mover {
    pub(crate) key: ObjectKey,
    /// How.
    pub(crate) method: Method,
}

/// What becomes of the machines.
#[derive(Debug, Default)]
struct Sorted {
    movers: BTreeMap<MachineId, Mover>,
    shutdowns: Vec<(NodeName, ObjectKey)>,
    blockers: Vec<Hindrance>,
}

/// Something in the way of emptying a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hindrance {
    pub(crate) node: String,
    /// The machine; `None` when it is about the node.
    pub(crate) machine: Option<ObjectKey>,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) remedy: &'static str,
    /// What speaks against each node; empty where no place was looked for.
    pub(crate) verdicts: Vec<Verdict>,
}

impl Spec {
    pub(crate) fn of(plan: &Object) -> Self {
        Self::deserialize(plan.spec()).unwrap_or_default()
    }

    /// The names of the nodes that are meant, of those that there are.
    pub(crate) fn names(&self, nodes: &[Object]) -> Vec<String> {
        let Some(selector) = &self.node_selector else {
            return self.nodes.clone();
        };
        let meant = nodes.iter().filter(|node| selector.matches(&labels(node)));
        meant.map(|node| node.key.name.clone()).collect()
    }
}

/// Plans the emptying of `names` within what `spec` says, with at most `nodes_max` nodes at once.
///
/// # Errors
/// The ledger's.
pub(crate) async fn make(
    (ledger, experience): (&Ledger, &Experience),
    spec: &Spec,
    names: &[String],
    nodes_max: Option<usize>,
) -> Result<Made, LedgerError> {
    let revision = ledger.revision().await?;
    let mut reader = Reader::Ledger(ledger);
    let floor = floor(ledger).await?;
    let pace = Settings::read(&mut reader).await?.pace;
    let known: BTreeSet<String> = reader
        .list("nodes")
        .await?
        .into_iter()
        .map(|node| node.key.name)
        .collect();
    let (there, gone): (Vec<&String>, Vec<&String>) =
        names.iter().partition(|name| known.contains(*name));
    let nodes: Vec<NodeName> = there
        .into_iter()
        .filter_map(|name| NodeName::parse(name.clone()).ok())
        .collect();
    let found = residents(&mut reader, &nodes).await?;
    let Sorted {
        movers,
        shutdowns,
        mut blockers,
    } = sort_out(&found);
    let rules = Rules {
        nodes_max: nodes_max.unwrap_or(0),
        domain_label: spec.failure_domain.clone(),
        spare_node: spec.spare_nodes,
    };
    let order = Order {
        nodes: &nodes,
        together: spec.together,
        rules: &rules,
        pace,
    };
    let moves = |machine: &MachineId| movers.contains_key(machine);
    let plan = drain(&mut floor.fleet(), &experience.forecaster(), order, &moves);
    blockers.extend(plan.stuck.iter().map(|stuck| nowhere(stuck, &movers)));
    blockers.extend(plan.no_spare.iter().map(no_spare));
    blockers.extend(gone.into_iter().map(no_node));
    blockers.sort_by(|a, b| (&a.node, &a.machine).cmp(&(&b.node, &b.machine)));
    Ok(Made {
        plan,
        movers,
        shutdowns,
        blockers,
        nodes,
        revision,
    })
}

/// Who is to move, and who can't, by what a maintenance of the node would decide.
fn sort_out(found: &[(NodeName, Guest)]) -> Sorted {
    let mut sorted = Sorted::default();
    for (node, guest) in found {
        let method = match decide(&at_its_time(&guest.machine), node) {
            Decision::Migrate => Method::Live,
            Decision::Pause => Method::Pause,
            Decision::Restart => Method::Restart,
            Decision::Shutdown => {
                sorted.shutdowns.push((node.clone(), guest.key.clone()));
                continue;
            }
            // It leaves already.
            Decision::Wait(_) | Decision::CallOff => continue,
            Decision::Blocked(blocker) => {
                sorted.blockers.push(stays(node, guest, blocker));
                continue;
            }
        };
        let key = guest.key.clone();
        sorted
            .movers
            .insert(guest.uid.clone(), Mover { key, method });
    }
    sorted
}

/// What a machine will be when its turn comes: one that starts runs then, and pauses after failures
/// are over.
fn at_its_time(machine: &Machine) -> Machine {
    let stage = match machine.stage {
        Stage::Starting | Stage::Running => Stage::Running,
        Stage::Stopping
        | Stage::Migrating
        | Stage::NeedsFencing
        | Stage::Arriving
        | Stage::Leaving => machine.stage,
    };
    Machine {
        stage,
        failures: 0,
        since_failure: None,
        ..machine.clone()
    }
}

fn stays(node: &NodeName, guest: &Guest, blocker: Blocker) -> Hindrance {
    Hindrance {
        node: node.to_string(),
        machine: Some(guest.key.clone()),
        reason: blocker.reason,
        message: blocker.message,
        remedy: blocker.remedy,
        verdicts: vec![],
    }
}

fn nowhere(stuck: &Stuck, movers: &BTreeMap<MachineId, Mover>) -> Hindrance {
    let placement = Placement {
        chosen: None,
        verdicts: stuck.verdicts.clone(),
    };
    Hindrance {
        node: stuck.source.to_string(),
        machine: movers.get(&stuck.machine).map(|one| one.key.clone()),
        reason: "Unschedulable",
        message: placement.summary(),
        remedy: "make room on another node, open one, or relax the machine's rules",
        verdicts: placement.verdicts,
    }
}

fn no_spare(node: &NodeName) -> Hindrance {
    Hindrance {
        node: node.to_string(),
        machine: None,
        reason: "NoSpareNode",
        message: format!("no other node could fail while node {node} is empty"),
        remedy: "add a node, stop machines, or set spareNodes: false",
        verdicts: vec![],
    }
}

fn no_node(name: &String) -> Hindrance {
    Hindrance {
        node: name.clone(),
        machine: None,
        reason: "NoSuchNode",
        message: format!("there is no node {name}"),
        remedy: "make a plan without it",
        verdicts: vec![],
    }
}
