//! Where the machines of some nodes go.

use std::cmp::Reverse;

use crate::placement::{Ask, Choice, Fleet, Held, Leaning, RunnerUp, Verdict};
use crate::{Bytes, MachineId, NodeName};

/// Where machines go, in the order in which they are to go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evacuation {
    /// Machines that have a place to go to.
    pub moves: Vec<Move>,
    /// Machines that have none.
    pub stuck: Vec<Stuck>,
}

/// One machine's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The machine.
    pub machine: MachineId,
    /// Where it is.
    pub source: NodeName,
    /// Where it goes.
    pub target: NodeName,
    /// The guest's memory.
    pub memory: Bytes,
    /// The next best node; `None` where no other would do, or none was looked for.
    pub runner_up: Option<RunnerUp>,
    /// What it held on the source.
    held: Held,
}

/// A machine that no other node takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck {
    /// The machine.
    pub machine: MachineId,
    /// Where it is and stays.
    pub source: NodeName,
    /// What speaks against each node.
    pub verdicts: Vec<Verdict>,
}

impl Evacuation {
    /// Whether every machine has a place to go to.
    pub fn is_complete(&self) -> bool {
        self.stuck.is_empty()
    }

    /// Puts every machine to where it goes, after this was [undone](Self::undo).
    pub fn redo(&self, fleet: &mut Fleet) {
        for way in &self.moves {
            carry(fleet, &way.machine, (&way.source, &way.target), None);
        }
    }

    /// Puts every machine back to where it was.
    pub fn undo(&self, fleet: &mut Fleet) {
        for way in self.moves.iter().rev() {
            let back = (&way.target, &way.source);
            carry(fleet, &way.machine, back, Some(way.held));
        }
    }
}

/// Finds a place for each machine of `nodes` for which `moves` says that it can move live, and puts
/// it there. `nodes` must be closed; whoever only wants to know [undoes](Evacuation::undo) it.
///
/// With `all_or_nothing` the search ends with the first machine that has no place.
pub fn evacuate(
    fleet: &mut Fleet,
    nodes: &[NodeName],
    moves: &dyn Fn(&MachineId) -> bool,
    all_or_nothing: bool,
) -> Evacuation {
    let mut found = Evacuation::default();
    for (machine, source) in order(fleet, nodes, moves) {
        let Some(demand) = fleet.demand(&machine).cloned() else {
            continue;
        };
        let ask = Ask {
            machine: &machine,
            demand: &demand,
            source: Some(&source),
            home: None,
            // A plan is about where machines end up; the queue keeps links from being overrun.
            inbound_max: 0,
            leaning: Leaning::default(),
        };
        match fleet.choose_between(ask) {
            Some(Choice {
                node: target,
                runner_up,
            }) => {
                let held = carry(fleet, &machine, (&source, &target), None);
                found.moves.push(Move {
                    held,
                    memory: demand.guest,
                    runner_up,
                    machine,
                    source,
                    target,
                });
            }
            None => {
                found.stuck.push(Stuck {
                    verdicts: match all_or_nothing {
                        true => vec![],
                        false => fleet.explain(ask),
                    },
                    machine,
                    source,
                });
                if all_or_nothing {
                    return found;
                }
            }
        }
    }
    found
}

/// Puts a machine to where an earlier plan sent it, if nothing speaks against that; `None` when
/// something does. A plan that was shown is kept so, although another node may have become better.
pub fn keep(
    fleet: &mut Fleet,
    machine: &MachineId,
    (source, target): (&NodeName, &NodeName),
) -> Option<Move> {
    let demand = fleet.demand(machine).cloned()?;
    let ask = Ask {
        machine,
        demand: &demand,
        source: Some(source),
        home: None,
        inbound_max: 0,
        leaning: Leaning::default(),
    };
    let verdicts = fleet.explain(ask);
    let free = |verdict: &&Verdict| verdict.node == *target && verdict.obstacles.is_empty();
    verdicts.iter().find(free)?;
    let held = carry(fleet, machine, (source, target), None);
    Some(Move {
        held,
        memory: demand.guest,
        runner_up: None,
        machine: machine.clone(),
        source: source.clone(),
        target: target.clone(),
    })
}

/// Those that are hardest to place first: who has rules, then who is large. Names make it the same
/// each time.
fn order(
    fleet: &Fleet,
    nodes: &[NodeName],
    moves: &dyn Fn(&MachineId) -> bool,
) -> Vec<(MachineId, NodeName)> {
    let mut all = vec![];
    for node in nodes {
        for machine in fleet.tenants(node).iter().filter(|machine| moves(machine)) {
            let Some(demand) = fleet.demand(machine) else {
                continue;
            };
            let rules = demand.near.len() + demand.apart.len() + demand.spread.len();
            let key = (Reverse(rules), Reverse(demand.guest), machine.clone());
            all.push((key, node.clone()));
        }
    }
    all.sort();
    let ways = all.into_iter();
    ways.map(|((_, _, machine), node)| (machine, node))
        .collect()
}

/// Puts a machine to another node, and answers what it held where it was. It holds there what it
/// asks for, or what was `booked`.
fn carry(
    fleet: &mut Fleet,
    machine: &MachineId,
    (from, to): (&NodeName, &NodeName),
    booked: Option<Held>,
) -> Held {
    let Some(demand) = fleet.demand(machine).cloned() else {
        return Held::default();
    };
    let was = fleet.release(machine, from);
    match booked {
        Some(held) => fleet.hold_as(machine, &demand, to, held),
        None => fleet.hold(machine, &demand, to, false),
    }
    was.unwrap_or_default()
}
