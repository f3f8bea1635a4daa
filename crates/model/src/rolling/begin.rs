//! Which nodes may begin, and which may be closed: all the reasons to wait.

use std::collections::BTreeSet;

use super::decide::Round;
use super::facts::{Action, Maintenance, NodeFact};
use super::order::Approval;
use super::record::{NodeRecord, NodeState};
use super::room::{Machines, Trial};
use crate::placement::Fleet;
use crate::{MachineId, NodeName};

/// Most machines of a node that are remembered for their way back.
const HOMES_MAX: usize = 1000;

/// Why a node doesn't begin, and how it shows.
type Wait = (NodeState, String);

impl Round<'_> {
    /// Lets nodes of the current wave begin or close, or says what they wait for; leaves those that
    /// wait out when none may begin any more.
    pub(super) fn begin(&mut self, mut fleet: Option<&mut Fleet>) {
        if self.aborting || self.stopped() {
            self.leave_out();
            return;
        }
        let wave: BTreeSet<NodeName> = self
            .record
            .current_wave()
            .map(|node| node.name.clone())
            .collect();
        let mut out = self.out();
        let facts = self.facts;
        let moves = Self::moves(facts);
        let name = |machine: &MachineId| match facts.machines.get(machine) {
            Some(place) => place.name.clone(),
            None => machine.to_string(),
        };
        let closed = self.closed();
        let mut begun = vec![];
        let mut trial = fleet.as_deref_mut().map(|fleet| {
            let machines = Machines {
                moves: &moves,
                name: &name,
            };
            Trial::new(fleet, machines, (&closed, self.order.spare_node))
        });
        // Those that have begun come first: they hold a place among those that are out.
        let (first, then): (Vec<usize>, Vec<usize>) = (0..self.record.nodes.len())
            .filter(|&at| wave.contains(&self.record.nodes[at].name))
            .filter(|&at| self.record.nodes[at].state.is_leaving())
            .partition(|&at| self.record.nodes[at].state == NodeState::BeforeDrain);
        for at in first.into_iter().chain(then) {
            let node = &self.record.nodes[at];
            let running =
                node.state == NodeState::BeforeDrain && !self.may_close.contains(&node.name);
            let Some(fact) = self.fact(&node.name) else {
                self.vanished(at);
                continue;
            };
            let verdict = match (self.wait(node, fact, &out), &mut trial) {
                (Some(wait), _) => Err(wait),
                // Seen to by the next decision, which sees the fleet.
                (None, None) => continue,
                (None, Some(trial)) => trial
                    .admit(&node.name)
                    .map_err(|why| (NodeState::Waiting, why)),
            };
            match verdict {
                Ok(()) if !running => {
                    out.insert(node.name.clone());
                    begun.push(at);
                }
                // Its hooks run, and its room is kept.
                Ok(()) => {}
                Err(_) if running => {}
                Err(wait) => self.tell(at, wait),
            }
        }
        if let Some(trial) = trial {
            trial.end();
        }
        for at in begun {
            self.enter(at, fleet.as_deref());
        }
    }

    /// Whether nothing but a lack of room keeps a node from the next step.
    pub(super) fn might_begin(&self) -> bool {
        let out = self.out();
        let mut leaving = self
            .record
            .current_wave()
            .filter(|node| node.state.is_leaving());
        !self.aborting
            && leaving.any(|node| {
                let fact = self.fact(&node.name);
                fact.is_some_and(|fact| self.wait(node, fact, &out).is_none())
            })
    }

    /// The node begins, or is closed when there is nothing to do before that.
    fn enter(&mut self, at: usize, fleet: Option<&Fleet>) {
        let now = self.facts.now;
        let moves = Self::moves(self.facts);
        let node = &mut self.record.nodes[at];
        node.started_at.get_or_insert(now);
        if !self.order.hooks.before_drain.is_empty() && !self.may_close.contains(&node.name) {
            node.state = NodeState::BeforeDrain;
            node.message = String::new();
            return;
        }
        node.state = NodeState::Draining;
        node.message = "is being emptied".to_owned();
        node.closed_at = Some(now);
        if let Some(fleet) = fleet
            && self.order.fail_back
        {
            let tenants = fleet.tenants(&node.name).iter();
            node.homes = tenants
                .filter(|machine| moves(machine))
                .take(HOMES_MAX)
                .cloned()
                .collect();
        }
        self.actions.push(Action::Close(node.name.clone()));
    }

    fn vanished(&mut self, at: usize) {
        let mut node = self.record.nodes[at].clone();
        self.end(
            &mut node,
            (NodeState::Skipped, "there is no such node any more"),
        );
        self.record.nodes[at] = node;
    }

    fn tell(&mut self, at: usize, (state, message): Wait) {
        let node = &mut self.record.nodes[at];
        // One that has begun keeps its place, whatever it waits for.
        if node.state != NodeState::BeforeDrain {
            node.state = state;
        }
        node.message = message;
    }

    fn leave_out(&mut self) {
        let why = match self.aborting {
            true => "aborted",
            false => "not begun: another node failed (onFailure: Stop)",
        };
        for at in 0..self.record.nodes.len() {
            let mut node = self.record.nodes[at].clone();
            let waits = match node.state {
                NodeState::Waiting | NodeState::AwaitingApproval => true,
                // Its hooks ended well, and it is not closed.
                NodeState::BeforeDrain => self.may_close.contains(&node.name),
                NodeState::Draining
                | NodeState::Drained
                | NodeState::Reopening
                | NodeState::AfterReopen
                | NodeState::FailBack
                | NodeState::Done
                | NodeState::Skipped
                | NodeState::Failed => false,
            };
            if waits {
                self.end(&mut node, (NodeState::Skipped, why));
                self.record.nodes[at] = node;
            }
        }
    }

    /// Nodes that are out: closed or about to be, by us or by others, or not heard of.
    fn out(&self) -> BTreeSet<NodeName> {
        let nodes = self.record.nodes.iter();
        nodes
            .filter(|node| {
                let fact = self.fact(&node.name);
                let lost = |fact: &NodeFact| !fact.ready || fact.maintenance != Maintenance::None;
                node.state.is_out() || fact.is_some_and(lost)
            })
            .map(|node| node.name.clone())
            .collect()
    }

    /// Nodes of the whole cluster that have a maintenance, whoever's, or are to have one.
    fn closed(&self) -> Vec<NodeName> {
        let facts = self.facts.nodes.iter();
        let there = facts.filter(|(_, fact)| fact.maintenance != Maintenance::None);
        let nodes = self.record.nodes.iter();
        let ours = nodes.filter(|node| node.state.is_out() && !node.state.is_leaving());
        let all = there
            .map(|(name, _)| name)
            .chain(ours.map(|node| &node.name));
        all.collect::<BTreeSet<_>>().into_iter().cloned().collect()
    }

    /// What a node waits for, except for room.
    fn wait(&self, node: &NodeRecord, fact: &NodeFact, out: &BTreeSet<NodeName>) -> Option<Wait> {
        let waits = |why: String| Some((NodeState::Waiting, why));
        if self.order.paused {
            return waits("paused".to_owned());
        }
        if self.order.frozen_until(self.facts.now).is_some() {
            return waits("a freeze window: nothing begins in it".to_owned());
        }
        if node.state != NodeState::BeforeDrain
            && let Some(why) = self.unapproved(node)
        {
            return Some((NodeState::AwaitingApproval, why));
        }
        if let Maintenance::Foreign(name) = &fact.maintenance {
            return waits(format!("has a NodeMaintenance of somebody else: {name}"));
        }
        if !fact.ready {
            return waits("its agent is not heard".to_owned());
        }
        let most = self
            .order
            .max_unavailable
            .of(self.record.nodes.len())
            .unwrap_or(1);
        let others: Vec<&NodeName> = out.iter().filter(|other| **other != node.name).collect();
        if others.len() >= most {
            return waits(format!(
                "as many nodes are out as may be: {}",
                names(&others)
            ));
        }
        let elsewhere = |other: &&&NodeName| {
            self.fact(other)
                .is_some_and(|other| other.domain != fact.domain)
        };
        if !self.order.failure_domain.is_empty()
            && let Some(other) = others.iter().find(elsewhere)
        {
            return waits(format!("node {other} of another failure domain is out"));
        }
        None
    }

    fn unapproved(&self, node: &NodeRecord) -> Option<String> {
        let approved = |name: &str| self.order.approved.iter().any(|known| known == name);
        let by = match self.order.approval {
            Approval::None => return None,
            Approval::Node => node.name.as_str(),
            Approval::Wave => node.wave.as_str(),
        };
        let is = approved(node.name.as_str()) || approved(&node.wave);
        (!is).then(|| format!("add {by} to spec.approved"))
    }
}

fn names(nodes: &[&NodeName]) -> String {
    let names: Vec<&str> = nodes.iter().map(|node| node.as_str()).collect();
    names.join(", ")
}
