//! Where the machines of a node go. Made by the same code as a DrainPlan, so that what a plan
//! shows is what happens.

use std::collections::HashSet;

use godwit_model::maintenance::{Decision, Wait, decide};
use godwit_model::placement::{Fleet, Placement};
use godwit_model::plan::{Evacuation, evacuate, keep};
use godwit_model::{MachineId, NodeName};

use crate::ladder::entry;
use crate::look::Situation;

/// Where machines go.
#[derive(Debug, Clone, Default)]
pub(crate) struct Routes {
    /// Machines and their targets, in the order in which they are to be asked.
    pub(crate) targets: Vec<(MachineId, NodeName)>,
    /// Machines that no node takes, and why.
    pub(crate) nowhere: Vec<(MachineId, String)>,
    /// Machines for which a place was looked for, also those that nothing is known of.
    asked: HashSet<MachineId>,
}

impl Routes {
    /// Where `machine` goes; `None` when that isn't known or nowhere.
    pub(crate) fn target(&self, machine: &MachineId) -> Option<&NodeName> {
        let mut targets = self.targets.iter();
        targets
            .find(|(known, _)| known == machine)
            .map(|(_, node)| node)
    }

    /// Why no node takes `machine`; `None` when one does.
    pub(crate) fn refusal(&self, machine: &MachineId) -> Option<&str> {
        let mut nowhere = self.nowhere.iter();
        nowhere
            .find(|(known, _)| known == machine)
            .map(|(_, why)| &**why)
    }

    /// Whether a place was looked for, for `machine`.
    pub(crate) fn knows(&self, machine: &MachineId) -> bool {
        self.asked.contains(machine)
    }

    /// The place of `machine` in the order; those that go nowhere come last.
    pub(crate) fn place(&self, machine: &MachineId) -> usize {
        let mut targets = self.targets.iter();
        targets
            .position(|(known, _)| known == machine)
            .unwrap_or(usize::MAX)
    }
}

/// Whether a machine about which this was decided needs to know where it goes.
pub(crate) const fn wants_one(decision: &Decision) -> bool {
    match decision {
        Decision::Migrate | Decision::Pause | Decision::Restart => true,
        Decision::Wait(Wait::BackOff { .. } | Wait::Starting) => true,
        Decision::Shutdown
        | Decision::CallOff
        | Decision::Blocked(_)
        | Decision::Wait(Wait::Stopping | Wait::Migrating | Wait::Arriving | Wait::Leaving) => {
            false
        }
    }
}

/// Finds a place for each machine that is to leave, and leaves the fleet as it was. Those of a node
/// that comes later find the places of the former taken.
pub(crate) fn route(fleet: &mut Fleet, situations: &mut [Situation]) {
    let closed: Vec<NodeName> = situations
        .iter()
        .filter(|situation| !situation.maintenance.deleting())
        .filter_map(|situation| Some(situation.node.as_ref()?.0.clone()))
        .collect();
    for node in &closed {
        fleet.close(node);
    }
    let mut taken = Evacuation::default();
    if let Some(first) = situations.first() {
        promise(fleet, first, &mut taken);
    }
    for situation in situations.iter_mut() {
        if situation.wants_routes() {
            situation.routes = routes(fleet, situation, &mut taken);
        }
    }
    taken.undo(fleet);
    for node in &closed {
        fleet.reopen(node);
    }
}

/// A target that was planned before stays while nothing speaks against it.
fn routes(fleet: &mut Fleet, situation: &Situation, taken: &mut Evacuation) -> Routes {
    let Some((node, _)) = &situation.node else {
        return Routes::default();
    };
    let mut wanting: HashSet<&MachineId> = HashSet::new();
    let mut routes = Routes::default();
    for guest in &situation.guests {
        if !wants_one(&decide(&guest.machine, node)) {
            continue;
        }
        routes.asked.insert(guest.uid.clone());
        let planned = entry(&situation.maintenance, &guest.uid)["targetNode"].as_str();
        let planned = planned.and_then(|name| NodeName::parse(name).ok());
        let kept = planned.and_then(|target| keep(fleet, &guest.uid, (node, &target)));
        match kept {
            Some(way) => {
                let (machine, target) = (way.machine.clone(), way.target.clone());
                routes.targets.push((machine, target));
                taken.moves.push(way);
            }
            None => drop(wanting.insert(&guest.uid)),
        }
    }
    let nodes = std::slice::from_ref(node);
    let found = evacuate(fleet, nodes, &|machine| wanting.contains(machine), false);
    taken.moves.extend(found.moves.iter().cloned());
    routes.add(found);
    routes
}

impl Routes {
    fn add(&mut self, found: Evacuation) {
        let moves = found.moves.into_iter();
        self.targets
            .extend(moves.map(|way| (way.machine, way.target)));
        let stuck = found.stuck.into_iter().map(|stuck| {
            let placement = Placement {
                chosen: None,
                verdicts: stuck.verdicts,
            };
            (stuck.machine, placement.summary())
        });
        self.nowhere.extend(stuck);
    }
}

/// Holds the room that open migrations were promised by a plan and have not reserved yet.
fn promise(fleet: &mut Fleet, situation: &Situation, taken: &mut Evacuation) {
    for (way, _) in situation.traffic.iter() {
        let planned = way.planned.clone().filter(|_| way.job.target.is_none());
        let planned = planned.and_then(|name| NodeName::parse(name).ok());
        let (Some(target), Some(source)) = (planned, &way.job.source) else {
            continue;
        };
        let held = keep(fleet, &way.job.machine, (source, &target));
        taken.moves.extend(held);
    }
}
