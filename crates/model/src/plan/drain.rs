//! The whole plan of a drain: which nodes in which wave, where each machine goes and when, and who
//! has nowhere to go. Made for a person to read and for the service to carry out, by the same code.

use crate::forecast::{Forecast, Forecaster};
use crate::placement::Fleet;
use crate::{MachineId, NodeName};

use super::evacuation::{Evacuation, Move, Stuck, evacuate};
use super::schedule::Slot;
use super::timetable::{Pace, Span, timetable};
use super::waves::{Rules, Why, waves};

/// What is to be planned.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// Nodes that are to be emptied.
    pub nodes: &'a [NodeName],
    /// Whether all of them at once; else in waves.
    pub together: bool,
    /// What waves keep to.
    pub rules: &'a Rules,
    /// What moves keep to.
    pub pace: Pace,
}

/// Who leaves when, and to where.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DrainPlan {
    /// In their order.
    pub waves: Vec<Stage>,
    /// Machines that may leave and have nowhere to go.
    pub stuck: Vec<Stuck>,
    /// Nodes after which no other could fail. In waves they are in none; emptied together they are
    /// all of them.
    pub no_spare: Vec<NodeName>,
    /// Until the last machine has left, without the time between waves.
    pub span: Span,
}

/// A wave with its times.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stage {
    /// Nodes that are emptied in it.
    pub nodes: Vec<NodeName>,
    /// Who leaves them, in the order in which they are asked to.
    pub moves: Vec<Departure>,
}

/// One machine's move.
#[derive(Debug, Clone, PartialEq)]
pub struct Departure {
    /// From where to where.
    pub way: Move,
    /// When, counted from the beginning of the plan.
    pub slot: Slot,
    /// What it is expected to be.
    pub forecast: Forecast,
}

impl DrainPlan {
    /// All moves in their order, each with the number of its wave, from 1.
    pub fn departures(&self) -> impl Iterator<Item = (usize, &Departure)> {
        let waves = self.waves.iter().enumerate();
        waves.flat_map(|(at, stage)| stage.moves.iter().map(move |one| (at + 1, one)))
    }
}

/// Plans `order` for the machines of which `moves` says that they can leave. The fleet is as it was
/// afterwards.
///
/// In waves, a node with a machine that has nowhere to go comes last, alone: the others leave it.
pub fn drain(
    fleet: &mut Fleet,
    forecaster: &Forecaster,
    order: Order<'_>,
    moves: &dyn Fn(&MachineId) -> bool,
) -> DrainPlan {
    let mut plan = DrainPlan::default();
    let waves = match order.together {
        true => vec![at_once(fleet, order, moves, &mut plan)],
        false => one_by_one(fleet, order, moves, &mut plan),
    };
    for (nodes, found) in waves {
        let stage = timed(forecaster, nodes, &found, (order.pace, &mut plan.span));
        plan.waves.push(stage);
        plan.stuck
            .extend(found.into_iter().flat_map(|one| one.stuck));
    }
    plan
}

type Wave = (Vec<NodeName>, Vec<Evacuation>);

fn at_once(
    fleet: &mut Fleet,
    order: Order<'_>,
    moves: &dyn Fn(&MachineId) -> bool,
    plan: &mut DrainPlan,
) -> Wave {
    let nodes = order.nodes;
    nodes.iter().for_each(|node| fleet.close(node));
    let found = evacuate(fleet, nodes, moves, false);
    if order.rules.spare_node && !fleet.bears_a_loss() {
        plan.no_spare = nodes.to_vec();
    }
    found.undo(fleet);
    nodes.iter().for_each(|node| fleet.reopen(node));
    (nodes.to_vec(), vec![found])
}

fn one_by_one(
    fleet: &mut Fleet,
    order: Order<'_>,
    moves: &dyn Fn(&MachineId) -> bool,
    plan: &mut DrainPlan,
) -> Vec<Wave> {
    let found = waves(fleet, order.nodes, moves, order.rules);
    let mut all: Vec<Wave> = found
        .waves
        .into_iter()
        .map(|wave| (wave.nodes, wave.evacuations))
        .collect();
    let done = all.iter().flat_map(|(_, evacuations)| evacuations);
    done.for_each(|evacuation| evacuation.redo(fleet));
    for (node, why) in found.left {
        match why {
            Why::NoSpare => plan.no_spare.push(node),
            Why::Stuck(_) => {
                let node = [node];
                fleet.close(&node[0]);
                let rest = evacuate(fleet, &node, moves, false);
                fleet.reopen(&node[0]);
                all.push((node.to_vec(), vec![rest]));
            }
        }
    }
    let done = all
        .iter()
        .rev()
        .flat_map(|(_, evacuations)| evacuations.iter().rev());
    done.for_each(|evacuation| evacuation.undo(fleet));
    all
}

/// A wave begins when the one before it has ended, which `span` says, and adds to it.
fn timed(
    forecaster: &Forecaster,
    nodes: Vec<NodeName>,
    found: &[Evacuation],
    (pace, span): (Pace, &mut Span),
) -> Stage {
    let ways: Vec<&Move> = found.iter().flat_map(|one| &one.moves).collect();
    let times = timetable(forecaster, &ways, pace);
    let from = span.likely;
    *span = span.and_then(times.span);
    let expected = times.slots.into_iter().zip(times.forecasts);
    Stage {
        nodes,
        moves: ways
            .into_iter()
            .zip(expected)
            .map(|(way, (slot, forecast))| Departure {
                way: way.clone(),
                slot: Slot {
                    begins: slot.begins.saturating_add(from),
                    ends: slot.ends.saturating_add(from),
                },
                forecast,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{account_of, id, name};
    use super::*;
    use crate::limits::MigrationLimits;
    use std::time::Duration;

    fn pace() -> Pace {
        Pace::from(&MigrationLimits::default())
    }

    fn targets(plan: &DrainPlan) -> Vec<(usize, &MachineId, &str)> {
        let all = plan.departures();
        all.map(|(wave, one)| (wave, &one.way.machine, one.way.target.as_str()))
            .collect()
    }

    #[test]
    fn together_nobody_goes_to_a_node_that_is_emptied_too() {
        let account = account_of(4, &[(0, 1024), (1, 1024), (1, 512)]);
        let mut fleet = account.fleet();
        let nodes = [name("node00"), name("node01")];
        let rules = Rules::default();
        let order = Order {
            nodes: &nodes,
            together: true,
            rules: &rules,
            pace: pace(),
        };
        let forecaster = Forecaster::default();
        let plan = drain(&mut fleet, &forecaster, order, &|_| true);
        assert_eq!(plan.waves.len(), 1);
        let targets = targets(&plan);
        assert_eq!(targets.len(), 3);
        assert!(
            targets
                .iter()
                .all(|(_, _, to)| ["node02", "node03"].contains(to))
        );
        assert_eq!(
            plan,
            drain(&mut fleet, &forecaster, order, &|_| true),
            "undone"
        );
        let ends = plan.departures().map(|(_, one)| one.slot.ends).max();
        assert_eq!(Some(plan.span.likely), ends);
        assert!(plan.span.earliest < plan.span.likely && plan.span.likely < plan.span.latest);
    }

    #[test]
    fn a_wave_begins_when_the_one_before_it_has_ended() {
        let account = account_of(3, &[(0, 1024), (1, 2048)]);
        let nodes = [name("node00"), name("node01")];
        let rules = Rules {
            nodes_max: 1,
            ..Rules::default()
        };
        let order = Order {
            nodes: &nodes,
            together: false,
            rules: &rules,
            pace: pace(),
        };
        let mut fleet = account.fleet();
        let plan = drain(&mut fleet, &Forecaster::default(), order, &|_| true);
        let [first, second] = [&plan.waves[0].moves[0], &plan.waves[1].moves[0]];
        assert_eq!(first.slot.begins, Duration::ZERO);
        assert_eq!(second.slot.begins, first.slot.ends);
        assert_eq!(plan.span.likely, second.slot.ends);
        assert!(plan.stuck.is_empty() && plan.no_spare.is_empty());
    }

    #[test]
    fn a_node_that_cannot_be_emptied_comes_last_and_says_who_stays() {
        // Nobody else has room for the large one; the small one leaves all the same.
        let account = account_of(3, &[(0, 5000), (0, 64), (1, 1024), (2, 1024)]);
        let nodes = [name("node00"), name("node01")];
        let rules = Rules::default();
        let order = Order {
            nodes: &nodes,
            together: false,
            rules: &rules,
            pace: pace(),
        };
        let mut fleet = account.fleet();
        let plan = drain(&mut fleet, &Forecaster::default(), order, &|_| true);
        let waves: Vec<&[NodeName]> = plan.waves.iter().map(|wave| &*wave.nodes).collect();
        assert_eq!(waves, [&nodes[1..], &nodes[..1]]);
        let stuck: Vec<&MachineId> = plan.stuck.iter().map(|one| &one.machine).collect();
        assert_eq!(stuck, [&id(0)]);
        assert_eq!(plan.stuck[0].verdicts.len(), 3);
        assert!(
            targets(&plan)
                .iter()
                .any(|(wave, machine, _)| (*wave, *machine) == (2, &id(1)))
        );
        assert_eq!(
            plan,
            drain(&mut fleet, &Forecaster::default(), order, &|_| true),
            "undone"
        );
    }

    #[test]
    fn who_may_not_leave_is_not_planned_for_and_a_spare_is_asked_for() {
        let account = account_of(2, &[(0, 1024), (0, 512)]);
        let nodes = [name("node00")];
        let rules = Rules {
            spare_node: true,
            ..Rules::default()
        };
        let order = Order {
            nodes: &nodes,
            together: true,
            rules: &rules,
            pace: pace(),
        };
        let stays = id(1);
        let mut fleet = account.fleet();
        let plan = drain(&mut fleet, &Forecaster::default(), order, &|id| {
            *id != stays
        });
        assert_eq!(targets(&plan), [(1, &id(0), "node01")]);
        assert_eq!(plan.no_spare, nodes);
    }
}
