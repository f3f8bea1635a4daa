//! The decision: one step of every node that is under way, and which of the others may begin.

use std::collections::{BTreeMap, BTreeSet};

use super::budget::{Mover, over_budget};
use super::facts::{Action, Facts, Maintenance, NodeFact, Place, Step};
use super::hooks::{Hooked, Hooking};
use super::order::{OnFailure, Order};
use super::record::{NodeRecord, NodeState, Outcome, Phase, Record, Stage, Wave};
use super::time::Moment;
use crate::placement::{Ask, Fleet, Leaning};
use crate::plan::{Rules, waves};
use crate::{MachineId, NodeName};

/// Longest time for machines to go back to a node, seconds; the others stay where they are.
const FAIL_BACK_MAX: u64 = 3600;
/// With more nodes than that, hooks that ended well are forgotten with their node: a record that is
/// written with each step must not grow for ever.
const HOOKS_KEPT_MAX: usize = 200;

/// The next step of a rolling maintenance.
///
/// The record and everything but calls is written in one transaction, by whoever saw the record as
/// it was; a call is made by the one who recorded it. `fleet` is as it was afterwards; without it
/// nothing begins, and what [`needs_fleet`] stays as it is.
pub fn decide(
    order: &Order,
    record: &Record,
    facts: Facts<'_>,
    mut fleet: Option<&mut Fleet>,
) -> Step {
    let mut round = Round::new(order, record, facts);
    if !record.phase.is_over() {
        if record.phase == Phase::Planning && !round.aborting {
            round.plan(fleet);
        } else {
            for at in 0..round.record.nodes.len() {
                round.advance(at, fleet.as_deref_mut());
            }
            round.begin(fleet);
            round.conclude();
        }
    }
    Step {
        record: round.record,
        actions: round.actions,
    }
}

/// Whether the next decision has to see the fleet, which is large.
pub fn needs_fleet(order: &Order, record: &Record, facts: Facts<'_>) -> bool {
    let mut nodes = record.nodes.iter();
    let goes_home = nodes.any(|node| node.state == NodeState::FailBack);
    match record.phase {
        Phase::Planning => true,
        Phase::Aborted | Phase::Succeeded | Phase::Failed => false,
        Phase::Running | Phase::Waiting | Phase::Paused | Phase::Aborting => {
            goes_home || Round::new(order, record, facts).might_begin()
        }
    }
}

impl Record {
    /// Nodes of the first wave that has not ended.
    pub(super) fn current_wave(&self) -> impl Iterator<Item = &NodeRecord> {
        let current = self.nodes.iter().find(|node| !node.state.is_over());
        let wave = current.map(|node| node.wave.as_str());
        let nodes = self.nodes.iter();
        nodes.filter(move |node| wave == Some(node.wave.as_str()))
    }
}

/// One decision in the making.
pub(super) struct Round<'a> {
    pub(super) order: &'a Order,
    pub(super) facts: Facts<'a>,
    pub(super) record: Record,
    pub(super) actions: Vec<Action>,
    pub(super) aborting: bool,
    /// Nodes whose hooks before they are closed have ended well.
    pub(super) may_close: BTreeSet<NodeName>,
}

impl<'a> Round<'a> {
    fn new(order: &'a Order, record: &Record, facts: Facts<'a>) -> Self {
        Self {
            aborting: order.abort || record.phase == Phase::Aborting,
            order,
            facts,
            record: record.clone(),
            actions: vec![],
            may_close: BTreeSet::new(),
        }
    }

    pub(super) fn fact(&self, node: &NodeName) -> Option<&NodeFact> {
        self.facts.nodes.get(node)
    }

    /// Whether a machine may be counted on to leave.
    pub(super) fn moves(facts: Facts<'_>) -> impl Fn(&MachineId) -> bool {
        move |machine| {
            let place = facts.machines.get(machine);
            // One that is on its way holds its room there already.
            place.is_some_and(|place| place.moves && !place.migrating)
        }
    }

    /// Chooses the nodes and puts them into waves.
    fn plan(&mut self, fleet: Option<&mut Fleet>) {
        let Some(fleet) = fleet else {
            return;
        };
        let nodes = self.facts.nodes.iter();
        let chosen: Vec<NodeName> = nodes
            .filter(|(_, fact)| fact.selected)
            .map(|(name, _)| name.clone())
            .collect();
        let most = self.order.max_unavailable.of(chosen.len()).unwrap_or(1);
        let rules = Rules {
            nodes_max: if most == usize::MAX { 0 } else { most },
            domain_label: Some(self.order.failure_domain.clone()).filter(|key| !key.is_empty()),
            spare_node: self.order.spare_node,
        };
        let found = waves(fleet, &chosen, &Self::moves(self.facts), &rules);
        let mut groups: Vec<Vec<NodeName>> =
            found.waves.into_iter().map(|wave| wave.nodes).collect();
        // What can't be emptied as things are may be later: last, and each waits until it can.
        let mut left: BTreeMap<Option<&str>, Vec<NodeName>> = BTreeMap::new();
        for node in found.left.keys() {
            let domain = self.fact(node).and_then(|fact| fact.domain.as_deref());
            let domain = domain.filter(|_| rules.domain_label.is_some());
            left.entry(domain).or_default().push(node.clone());
        }
        for nodes in left.values() {
            groups.extend(
                nodes
                    .chunks(most.min(nodes.len()))
                    .map(<[NodeName]>::to_vec),
            );
        }
        for (at, nodes) in groups.into_iter().enumerate() {
            let name = format!("wave-{}", at + 1);
            let records = nodes.iter().map(|node| waiting(node, &name));
            self.record.nodes.extend(records);
            self.record.waves.push(Wave { name, nodes });
        }
        let (nodes, waves) = (self.record.nodes.len(), self.record.waves.len());
        if nodes == 0 {
            self.record.phase = Phase::Succeeded;
            self.record.message = "no node matches spec.nodeSelector".to_owned();
        } else {
            self.record.phase = Phase::Waiting;
            self.record.message = format!("{nodes} nodes in {waves} waves");
        }
    }

    /// Takes one step of a node that is under way.
    fn advance(&mut self, at: usize, fleet: Option<&mut Fleet>) {
        if !self.record.nodes[at].state.is_under_way() {
            return;
        }
        let mut node = self.record.nodes[at].clone();
        match node.state {
            NodeState::BeforeDrain => self.before_drain(at, &mut node),
            NodeState::Draining => self.draining(&mut node),
            NodeState::Drained => self.drained(at, &mut node),
            NodeState::Reopening => self.reopening(&mut node),
            NodeState::AfterReopen => self.after_reopen(at, &mut node),
            NodeState::FailBack => self.fail_back(&mut node, fleet),
            NodeState::Waiting
            | NodeState::AwaitingApproval
            | NodeState::Done
            | NodeState::Skipped
            | NodeState::Failed => {}
        }
        self.record.nodes[at] = node;
    }

    fn hooks(
        &mut self,
        at: usize,
        (stage, may_begin): (Stage, bool),
        node: &mut NodeRecord,
    ) -> Hooked {
        let hooking = Hooking {
            order: self.order,
            at,
            stage,
            may_begin,
            leave_rest: self.aborting,
        };
        hooking.advance(node, &self.facts, &mut self.actions)
    }

    fn before_drain(&mut self, at: usize, node: &mut NodeRecord) {
        match self.hooks(at, (Stage::BeforeDrain, true), node) {
            Hooked::Pending => node.message = "hooks before it is closed run".to_owned(),
            Hooked::Done if self.aborting => self.end(node, (NodeState::Skipped, "aborted")),
            Hooked::Done => {
                self.may_close.insert(node.name.clone());
            }
            Hooked::Skip(why) => self.end(node, (NodeState::Skipped, &why)),
            Hooked::Failed(why) => self.end(node, (NodeState::Failed, &why)),
        }
    }

    fn draining(&mut self, node: &mut NodeRecord) {
        let limit = self.order.deadline_seconds;
        let maintenance = self.fact(&node.name).map(|fact| fact.maintenance.clone());
        match maintenance.unwrap_or(Maintenance::None) {
            Maintenance::None | Maintenance::Foreign(_) | Maintenance::Ending => {
                let verdict = match self.aborting {
                    true => (NodeState::Skipped, "aborted"),
                    false => (
                        NodeState::Failed,
                        "its NodeMaintenance was taken away before it was empty",
                    ),
                };
                reopen(node, verdict);
            }
            Maintenance::Failed(why) => reopen(node, (NodeState::Failed, &why)),
            Maintenance::Drained => {
                node.state = NodeState::Drained;
                node.message = "empty; its hooks run".to_owned();
            }
            Maintenance::Draining if self.aborting => reopen(node, (NodeState::Skipped, "aborted")),
            Maintenance::Draining => {
                let late = |since: Moment| limit > 0 && self.facts.now > since.after(limit);
                if node.closed_at.is_some_and(late) {
                    let why = format!("it was not empty within {limit} s; see its NodeMaintenance");
                    reopen(node, (NodeState::Failed, &why));
                }
            }
        }
    }

    fn drained(&mut self, at: usize, node: &mut NodeRecord) {
        let fact = self.fact(&node.name);
        let maintenance = fact.map_or(Maintenance::None, |fact| fact.maintenance.clone());
        let empty = maintenance == Maintenance::Drained;
        let running = node.hooks.last().is_some_and(|run| run.exit_code.is_none());
        let closed = match maintenance {
            Maintenance::Draining | Maintenance::Drained | Maintenance::Failed(_) => true,
            Maintenance::None | Maintenance::Foreign(_) | Maintenance::Ending => false,
        };
        if !closed && !running {
            let why = "its NodeMaintenance was taken away while hooks were to run";
            self.end(node, (NodeState::Failed, why));
            return;
        }
        match self.hooks(at, (Stage::Drained, empty), node) {
            Hooked::Pending => {}
            Hooked::Done => {
                node.state = NodeState::Reopening;
                node.message = String::new();
            }
            Hooked::Skip(why) => reopen(node, (NodeState::Skipped, &why)),
            Hooked::Failed(why) => {
                let why = format!(
                    "{why}; the node stays closed: see to it, then delete its \
                     NodeMaintenance"
                );
                self.end(node, (NodeState::Failed, &why));
            }
        }
    }

    fn reopening(&mut self, node: &mut NodeRecord) {
        let fact = self.fact(&node.name);
        let ready = fact.is_some_and(|fact| fact.ready);
        let maintenance = fact.map_or(Maintenance::None, |fact| fact.maintenance.clone());
        match maintenance {
            Maintenance::Draining | Maintenance::Drained | Maintenance::Failed(_) => {
                let visited = node.verdict.is_none();
                if visited && !ready {
                    node.message = "waits for its agent to be heard again".to_owned();
                } else {
                    node.message = "is being opened".to_owned();
                    self.actions.push(Action::Reopen(node.name.clone()));
                }
            }
            Maintenance::Ending => {}
            Maintenance::None | Maintenance::Foreign(_) => match node.verdict.take() {
                Some(Outcome { state, message }) => self.end(node, (state, &message)),
                None => {
                    node.state = NodeState::AfterReopen;
                    node.message = String::new();
                }
            },
        }
    }

    fn after_reopen(&mut self, at: usize, node: &mut NodeRecord) {
        match self.hooks(at, (Stage::AfterReopen, true), node) {
            Hooked::Pending => node.message = "hooks after its opening run".to_owned(),
            Hooked::Done if node.homes.is_empty() || self.aborting => {
                self.end(node, (NodeState::Done, ""));
            }
            Hooked::Done => {
                node.state = NodeState::FailBack;
                node.message = "its machines go back".to_owned();
            }
            Hooked::Skip(why) => self.end(node, (NodeState::Skipped, &why)),
            Hooked::Failed(why) => self.end(node, (NodeState::Failed, &why)),
        }
    }

    /// Asks once for each machine that was here and would fit here again.
    fn fail_back(&mut self, node: &mut NodeRecord, fleet: Option<&mut Fleet>) {
        let Some(fleet) = fleet else {
            return;
        };
        let machines = self.facts.machines;
        let home = node.name.clone();
        let mut away = 0;
        for machine in node.homes.clone() {
            let Some(place) = machines.get(&machine) else {
                continue;
            };
            if place.migrating {
                away += 1;
            } else if !node.asked.contains(&machine) && place.node.as_ref() != Some(&home) {
                if over_budget(self.facts.budgets, &self.moving(), &place.mover).is_some() {
                    away += 1;
                    continue;
                }
                node.asked.push(machine.clone());
                if place.moves && !self.aborting && takes(fleet, (&machine, place), &home) {
                    away += 1;
                    let node = home.clone();
                    self.actions.push(Action::FailBack { machine, node });
                }
            }
        }
        let since = node.hooks.iter().filter_map(|run| run.ended_at).max();
        let since = since.max(node.closed_at).max(node.started_at);
        let late = since.is_some_and(|since| self.facts.now > since.after(FAIL_BACK_MAX));
        if away == 0 || self.aborting {
            self.end(node, (NodeState::Done, ""));
        } else if late {
            let why = format!("{away} machines were not back in time, and stay where they are");
            self.end(node, (NodeState::Done, &why));
        }
    }

    /// Machines that move, or were just asked to.
    fn moving(&self) -> Vec<Mover> {
        let machines = self.facts.machines;
        let asked = self.actions.iter().filter_map(|action| match action {
            Action::FailBack { machine, .. } => machines.get(machine),
            Action::Close(_) | Action::Reopen(_) | Action::Call(_) => None,
        });
        let migrating = machines.values().filter(|place| place.migrating);
        let all = migrating.chain(asked);
        all.map(|place| place.mover.clone()).collect()
    }

    pub(super) fn end(&self, node: &mut NodeRecord, (state, message): (NodeState, &str)) {
        node.state = state;
        message.clone_into(&mut node.message);
        node.ended_at = Some(self.facts.now);
        node.verdict = None;
        node.homes = vec![];
        node.asked = vec![];
        if state == NodeState::Done && self.record.nodes.len() > HOOKS_KEPT_MAX {
            node.hooks = vec![];
        }
    }

    /// Whether a node failed, and so those that wait are left out.
    pub(super) fn stopped(&self) -> bool {
        let mut nodes = self.record.nodes.iter();
        self.order.on_failure == OnFailure::Stop
            && nodes.any(|node| node.state == NodeState::Failed || failing(node))
    }

    /// Says how all of it stands.
    fn conclude(&mut self) {
        let nodes = &self.record.nodes;
        let count = |state| nodes.iter().filter(|node| node.state == state).count();
        let (done, skipped) = (count(NodeState::Done), count(NodeState::Skipped));
        let failed = count(NodeState::Failed);
        let under_way: Vec<&NodeRecord> = nodes
            .iter()
            .filter(|node| node.state.is_under_way())
            .collect();
        let over = nodes.iter().all(|node| node.state.is_over());
        let sum = format!(
            "{done} of {} nodes done, {skipped} skipped, {failed} failed",
            nodes.len()
        );
        let (phase, message) = if over {
            let phase = match (self.aborting, failed) {
                (true, _) => Phase::Aborted,
                (false, 0) => Phase::Succeeded,
                (false, _) => Phase::Failed,
            };
            (phase, sum)
        } else if self.aborting {
            (Phase::Aborting, told(&under_way))
        } else if self.order.paused {
            let message = match told(&under_way) {
                none if none.is_empty() => "spec.paused is set".to_owned(),
                some => format!("spec.paused is set; what has begun goes on: {some}"),
            };
            (Phase::Paused, message)
        } else if !under_way.is_empty() {
            (Phase::Running, told(&under_way))
        } else {
            let waits: Vec<&NodeRecord> = self
                .record
                .current_wave()
                .filter(|node| !node.state.is_over())
                .collect();
            (Phase::Waiting, told(&waits))
        };
        self.record.phase = phase;
        self.record.message = message;
    }
}

fn waiting(node: &NodeName, wave: &str) -> NodeRecord {
    NodeRecord {
        name: node.clone(),
        wave: wave.to_owned(),
        state: NodeState::Waiting,
        message: String::new(),
        started_at: None,
        closed_at: None,
        ended_at: None,
        verdict: None,
        hooks: vec![],
        homes: vec![],
        asked: vec![],
    }
}

/// Whether a node will fail once it is open again.
fn failing(node: &NodeRecord) -> bool {
    let verdict = node.verdict.as_ref();
    verdict.is_some_and(|verdict| verdict.state == NodeState::Failed)
}

/// The node is opened again and ends so.
fn reopen(node: &mut NodeRecord, (state, message): (NodeState, &str)) {
    node.state = NodeState::Reopening;
    message.clone_into(&mut node.message);
    node.verdict = Some(Outcome {
        state,
        message: message.to_owned(),
    });
}

/// Whether nothing speaks against a machine's way home.
fn takes(fleet: &mut Fleet, (machine, place): (&MachineId, &Place), home: &NodeName) -> bool {
    let Some(demand) = fleet.demand(machine).cloned() else {
        return false;
    };
    let ask = Ask {
        machine,
        demand: &demand,
        source: place.node.as_ref(),
        home: Some(home),
        inbound_max: 0,
        leaning: Leaning::default(),
    };
    fleet.choose(ask).is_some()
}

/// Nodes and how they stand, a few of them by name.
fn told(nodes: &[&NodeRecord]) -> String {
    const NAMED_MAX: usize = 4;
    let mut parts: Vec<String> = nodes
        .iter()
        .take(NAMED_MAX)
        .map(|node| match node.message.as_str() {
            "" => format!("{}: {:?}", node.name, node.state),
            message => format!("{}: {:?}: {message}", node.name, node.state),
        })
        .collect();
    if nodes.len() > NAMED_MAX {
        parts.push(format!("and {} more", nodes.len() - NAMED_MAX));
    }
    parts.join("; ")
}
