//! When the moves of a plan begin and end, under the limits of the queue.

use std::collections::HashMap;
use std::time::Duration;

use crate::NodeName;
use crate::migration::queue::QueueLimits;

/// A move, and how long it takes.
#[derive(Debug, Clone, Copy)]
pub struct Leg<'a> {
    /// From where.
    pub source: &'a NodeName,
    /// To where.
    pub target: &'a NodeName,
    /// From its turn to its end.
    pub takes: Duration,
}

/// When a move begins and ends, counted from now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Slot {
    /// Its turn.
    pub begins: Duration,
    /// Its end.
    pub ends: Duration,
}

/// When each of `legs` begins and ends: those at the front go first, and one that a limit holds up
/// lets others pass, as in [`crate::migration::queue`]. Legs that are under way already stand at
/// the front, with what is left of them.
pub fn schedule(legs: &[Leg<'_>], limits: QueueLimits) -> Vec<Slot> {
    let mut slots = vec![Slot::default(); legs.len()];
    let mut waiting: Vec<usize> = (0..legs.len()).collect();
    let mut running: Vec<usize> = vec![];
    let mut now = Duration::ZERO;
    while !waiting.is_empty() {
        let mut links = Links::of(legs, &running);
        waiting.retain(|&at| {
            let starts = links.admit(&legs[at], limits);
            if starts {
                slots[at] = Slot {
                    begins: now,
                    ends: now.saturating_add(legs[at].takes),
                };
                running.push(at);
            }
            !starts
        });
        let Some(next) = running.iter().map(|&at| slots[at].ends).min() else {
            // A limit of nothing: they never begin.
            for at in waiting {
                slots[at] = Slot {
                    begins: Duration::MAX,
                    ends: Duration::MAX,
                };
            }
            return slots;
        };
        now = next;
        running.retain(|&at| slots[at].ends > now);
    }
    slots
}

/// Until the last of `slots` has ended.
pub fn whole(slots: &[Slot]) -> Duration {
    let ends = slots.iter().map(|slot| slot.ends);
    ends.max().unwrap_or_default()
}

/// Moves under way.
#[derive(Default)]
struct Links<'a> {
    all: u32,
    out: HashMap<&'a NodeName, u32>,
    into: HashMap<&'a NodeName, u32>,
}

impl<'a> Links<'a> {
    fn of(legs: &[Leg<'a>], running: &[usize]) -> Self {
        let mut links = Self::default();
        running.iter().for_each(|&at| links.add(&legs[at]));
        links
    }

    fn add(&mut self, leg: &Leg<'a>) {
        self.all += 1;
        *self.out.entry(leg.source).or_default() += 1;
        *self.into.entry(leg.target).or_default() += 1;
    }

    fn admit(&mut self, leg: &Leg<'a>, limits: QueueLimits) -> bool {
        let out = self.out.get(leg.source).copied().unwrap_or_default();
        let into = self.into.get(leg.target).copied().unwrap_or_default();
        let free = self.all < limits.per_cluster
            && out < limits.outbound_per_node
            && into < limits.inbound_per_node;
        if free {
            self.add(leg);
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: QueueLimits = QueueLimits {
        per_cluster: 3,
        outbound_per_node: 2,
        inbound_per_node: 1,
    };

    fn names(names: &[&str]) -> Vec<NodeName> {
        let names = names.iter().copied();
        names
            .map(|name| NodeName::parse(name).expect("a name"))
            .collect()
    }

    fn leg<'a>(nodes: &'a [NodeName], from: usize, to: usize, seconds: u64) -> Leg<'a> {
        Leg {
            source: &nodes[from],
            target: &nodes[to],
            takes: Duration::from_secs(seconds),
        }
    }

    fn begin(slots: &[Slot]) -> Vec<u64> {
        slots.iter().map(|slot| slot.begins.as_secs()).collect()
    }

    #[test]
    fn moves_wait_for_their_limits_and_let_others_pass() {
        let nodes = names(&["a", "b", "c", "d"]);
        let legs = [
            leg(&nodes, 0, 1, 10),
            // The same target.
            leg(&nodes, 0, 1, 10),
            leg(&nodes, 0, 2, 4),
            // A third away from the same node.
            leg(&nodes, 0, 3, 1),
            leg(&nodes, 2, 3, 5),
        ];
        let slots = schedule(&legs, LIMITS);
        assert_eq!(begin(&slots), [0, 10, 0, 5, 0]);
        assert_eq!(whole(&slots), Duration::from_secs(20));
    }

    #[test]
    fn no_limit_is_ever_broken() {
        let nodes = names(&["a", "b", "c", "d"]);
        let legs: Vec<Leg<'_>> = (0..40_u64)
            .map(|at| {
                let place = usize::try_from(at).expect("small");
                leg(&nodes, place % 2, 2 + place % 2, 1 + at % 7)
            })
            .collect();
        let slots = schedule(&legs, LIMITS);
        for second in 0..whole(&slots).as_secs() {
            let at = Duration::from_secs(second);
            let under_way = |slot: &Slot| slot.begins <= at && at < slot.ends;
            let running: Vec<usize> = (0..40).filter(|&one| under_way(&slots[one])).collect();
            assert!(!running.is_empty() && running.len() <= 3);
            for node in &nodes {
                let into = running.iter().filter(|&&one| legs[one].target == node);
                assert!(into.count() <= 1);
                let out = running.iter().filter(|&&one| legs[one].source == node);
                assert!(out.count() <= 2);
            }
        }
    }

    #[test]
    fn what_may_never_begin_has_no_end() {
        let nodes = names(&["a", "b"]);
        let none = QueueLimits {
            per_cluster: 0,
            ..LIMITS
        };
        let slots = schedule(&[leg(&nodes, 0, 1, 1)], none);
        assert_eq!(whole(&slots), Duration::MAX);
    }
}
