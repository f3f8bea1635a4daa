//! Which nodes can be emptied together, and after which.

use std::collections::BTreeMap;

use crate::placement::{Fleet, Room};
use crate::{MachineId, NodeName};

use super::evacuation::{Evacuation, Stuck, evacuate};

/// So many nodes that can't be emptied end the search for more: those that follow are fuller.
const MISFITS_MAX: usize = 8;

/// What waves must keep to.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Most nodes at once; 0 is no limit.
    pub nodes_max: usize,
    /// Label whose values are failure domains: a wave is of one of them. `None`: of any.
    pub domain_label: Option<String>,
    /// Whether any one other node must be able to fail while a wave's nodes are empty.
    pub spare_node: bool,
}

/// All waves, and the nodes that are in none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waves {
    /// In their order.
    pub waves: Vec<Wave>,
    /// Nodes that can't be emptied.
    pub left: BTreeMap<NodeName, Why>,
}

/// Why a node can't be emptied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// A machine has nowhere to go.
    Stuck(Stuck),
    /// No other node could fail then.
    NoSpare,
}

/// Nodes that are emptied together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wave {
    /// The nodes.
    pub nodes: Vec<NodeName>,
    /// Where their machines go.
    pub evacuations: Vec<Evacuation>,
}

impl Waves {
    /// Machines that are moved, each as often as it is.
    pub fn moves(&self) -> usize {
        let all = self.waves.iter().flat_map(|wave| &wave.evacuations);
        all.map(|evacuation| evacuation.moves.len()).sum()
    }
}

/// Puts `nodes` into waves: as few as it finds, each as large as is safe. A node that was emptied is
/// open again after its wave, and machines don't go back.
///
/// The fleet is as it was afterwards.
pub fn waves(
    fleet: &mut Fleet,
    nodes: &[NodeName],
    moves: &dyn Fn(&MachineId) -> bool,
    rules: &Rules,
) -> Waves {
    let mut search = Search {
        fleet,
        moves,
        rules,
        found: Waves::default(),
    };
    let mut rest = nodes.to_vec();
    // Whoever moves goes to a node that is done, if that can be.
    search.leaving(&rest, true);
    while !rest.is_empty() {
        // A domain is done before the next; in it the emptiest nodes first, since they make room.
        rest.sort_by_cached_key(|node| (search.domain(node), search.held(node), node.clone()));
        let wave = search.wave(&rest);
        if wave.nodes.is_empty() {
            search.leave(&rest);
            break;
        }
        rest.retain(|node| !wave.nodes.contains(node));
        search.leaving(&wave.nodes, false);
        search.found.waves.push(wave);
    }
    search.leaving(nodes, false);
    search.undo();
    search.found
}

struct Search<'a> {
    fleet: &'a mut Fleet,
    moves: &'a dyn Fn(&MachineId) -> bool,
    rules: &'a Rules,
    found: Waves,
}

impl Search<'_> {
    fn leaving(&mut self, nodes: &[NodeName], leaving: bool) {
        for node in nodes {
            self.fleet.mark_leaving(node, leaving);
        }
    }

    /// Memory that is held on a node, of whatever pages.
    fn held(&self, node: &NodeName) -> u64 {
        let Room {
            memory, hugepages, ..
        } = self.fleet.held_on(node);
        memory.0 + hugepages.mi2.0 + hugepages.gi1.0
    }

    /// The next wave, emptied. All its nodes are closed before the first is emptied, so that no
    /// machine is put on a node that is to be emptied next.
    fn wave(&mut self, rest: &[NodeName]) -> Wave {
        let tried = self.candidates(rest);
        for node in &tried {
            self.fleet.close(node);
        }
        let mut wave = Wave::default();
        let mut misfits = 0;
        for node in &tried {
            if misfits < MISFITS_MAX
                && let Some(evacuation) = self.empty(node)
            {
                wave.nodes.push(node.clone());
                wave.evacuations.push(evacuation);
            } else {
                // The others may need its room.
                self.fleet.reopen(node);
                misfits += 1;
            }
        }
        for node in &wave.nodes {
            self.fleet.reopen(node);
        }
        wave
    }

    /// As many as the room of the others could take, if it were in one piece; at least one.
    fn candidates(&self, rest: &[NodeName]) -> Vec<NodeName> {
        let mut spare = self.fleet.spare(self.rules.spare_node);
        let mut found = vec![];
        let domain = rest.first().and_then(|node| self.domain(node));
        for node in rest.iter().filter(|node| self.domain(node) == domain) {
            let full = self.rules.nodes_max > 0 && found.len() >= self.rules.nodes_max;
            // What it holds needs a place, and what it has free is none.
            spare = spare.and_then(|spare| spare.without(self.fleet.size_of(node)?));
            if full || (spare.is_none() && !found.is_empty()) {
                break;
            }
            found.push(node.clone());
        }
        found
    }

    fn domain(&self, node: &NodeName) -> Option<String> {
        let label = self.rules.domain_label.as_ref()?;
        self.fleet.labels(node)?.get(label).cloned()
    }

    /// Empties a closed node, unless that is not safe.
    fn empty(&mut self, node: &NodeName) -> Option<Evacuation> {
        let tried = evacuate(self.fleet, std::slice::from_ref(node), self.moves, true);
        let safe = !self.rules.spare_node || self.fleet.bears_a_loss();
        if tried.is_complete() && safe {
            return Some(tried);
        }
        tried.undo(self.fleet);
        None
    }

    /// Says why none of `rest` can be emptied.
    fn leave(&mut self, rest: &[NodeName]) {
        for node in rest {
            self.fleet.close(node);
            let tried = evacuate(self.fleet, std::slice::from_ref(node), self.moves, false);
            tried.undo(self.fleet);
            self.fleet.reopen(node);
            let stuck = tried.stuck.into_iter().next();
            let why = stuck.map_or(Why::NoSpare, Why::Stuck);
            self.found.left.insert(node.clone(), why);
        }
    }

    fn undo(&mut self) {
        for wave in self.found.waves.iter().rev() {
            for evacuation in wave.evacuations.iter().rev() {
                evacuation.undo(self.fleet);
            }
        }
    }
}
