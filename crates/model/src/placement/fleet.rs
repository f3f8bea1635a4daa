//! The fleet in memory: what each node offers and holds, kept up to date change by change.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};

use crate::affinity::Labels;
use crate::{MachineId, NodeName};

use super::crowds::{Crowds, Topology};
use super::demand::{Demand, Near, Needs};
use super::mask::Mask;
use super::row::Row;
use super::{Candidate, Room};

/// Wishes that nobody holds any more are forgotten when there are so many. Few in tests, so that they
/// see it.
const WISHES_SPARE: usize = if cfg!(test) { 4 } else { 4096 };

/// Nodes, machines, and who is where.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    pub(super) nodes: Vec<Candidate>,
    /// What changes with every placement, apart from the rest because each placement reads it all.
    pub(super) rows: Vec<Row>,
    names: HashMap<NodeName, usize>,
    pub(super) topology: Topology,
    pub(super) crowds: Crowds,
    pub(super) masks: Vec<Mask>,
    masks_known: HashMap<Needs, usize>,
    pub(super) wishes: Vec<Wish>,
    known: HashMap<Demand, usize>,
    /// Wishes by the labels that crowds are looked up by: key, then value.
    by_label: HashMap<String, HashMap<String, Vec<usize>>>,
    machines: HashMap<MachineId, Placed>,
    /// By node.
    tenants: Vec<Vec<MachineId>>,
}

/// A demand, with what it speaks of looked up.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) demand: Demand,
    pub(super) mask: usize,
    /// Places of its crowds, in the order of the demand.
    pub(super) near: Vec<usize>,
    pub(super) apart: Vec<usize>,
    pub(super) liked: Vec<usize>,
    pub(super) spread: Vec<usize>,
    /// Crowds that it is one of.
    pub(super) within: Vec<usize>,
    /// How many of those that hold it are on which node.
    places: BTreeMap<usize, u32>,
}

#[derive(Debug, Clone)]
struct Placed {
    wish: usize,
    places: Vec<Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    node: usize,
    held: Held,
}

/// What is held for a machine on a node. It stays what it was when it was booked, whatever the
/// machine would ask of another node by now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// So much.
    pub room: Room,
    /// Whether it is held for a migration towards the node.
    pub inbound: bool,
}

impl Fleet {
    /// A node came, or is different.
    pub fn node_set(&mut self, node: Candidate) {
        match self.names.get(&node.name).copied() {
            Some(at) => self.node_change(at, node),
            None => self.node_add(node),
        }
    }

    fn node_add(&mut self, node: Candidate) {
        let at = self.nodes.len();
        self.names.insert(node.name.clone(), at);
        self.topology.set(at, &node.labels);
        for mask in &mut self.masks {
            mask.set(at, &node);
        }
        self.rows.push(Row::new(&node, Room::default(), 0));
        self.tenants.push(vec![]);
        self.nodes.push(node);
    }

    fn node_change(&mut self, at: usize, node: Candidate) {
        if self.nodes[at] == node {
            return;
        }
        let closed = self.rows[at].closed;
        self.rows[at] = Row {
            closed,
            ..Row::new(&node, self.held(at), self.rows[at].inbound)
        };
        for mask in &mut self.masks {
            mask.set(at, &node);
        }
        if self.nodes[at].labels != node.labels {
            let tenants = self.tenants[at].clone();
            self.recount(&tenants, false);
            self.topology.set(at, &node.labels);
            self.recount(&tenants, true);
        }
        self.nodes[at] = node;
    }

    fn held(&self, at: usize) -> Room {
        let mut held = Room::default();
        for tenant in &self.tenants[at] {
            let mut places = self.machines[tenant].places.iter();
            let place = places.find(|place| place.node == at);
            held += place.map(|place| place.held.room).unwrap_or_default();
        }
        held
    }

    fn recount(&mut self, machines: &[MachineId], there: bool) {
        for machine in machines {
            self.count_all(machine, there);
        }
    }

    /// The node is no more; what it holds stays held.
    pub fn node_remove(&mut self, name: &NodeName) {
        if let Some(&at) = self.names.get(name) {
            let gone = Candidate {
                ready: false,
                ..self.nodes[at].clone()
            };
            self.node_change(at, gone);
        }
    }

    /// Holds what `machine` asks for on `node`; `inbound` when it migrates there. Nothing is held on
    /// a node that isn't known.
    pub fn hold(&mut self, machine: &MachineId, demand: &Demand, node: &NodeName, inbound: bool) {
        let room = demand.room;
        self.hold_as(machine, demand, node, Held { room, inbound });
    }

    /// Holds for `machine` on `node` what was booked there.
    pub fn hold_as(&mut self, machine: &MachineId, demand: &Demand, node: &NodeName, held: Held) {
        let Some(&at) = self.names.get(node) else {
            return;
        };
        self.release(machine, node);
        let wish = self.intern(demand);
        self.adopt(machine, wish);
        let place = Place { node: at, held };
        if let Some(placed) = self.machines.get_mut(machine) {
            placed.places.push(place);
        }
        self.tenants[at].push(machine.clone());
        self.rows[at].hold(held.room, 1);
        self.rows[at].inbound += u32::from(held.inbound);
        self.count(wish, at, true);
    }

    /// Makes `wish` the machine's, also where it is already.
    fn adopt(&mut self, machine: &MachineId, wish: usize) {
        let old = self.machines.get(machine).map(|placed| placed.wish);
        if old == Some(wish) {
            return;
        }
        let places = self.lift(machine);
        for &place in &places {
            self.count(wish, place.node, true);
        }
        self.machines
            .insert(machine.clone(), Placed { wish, places });
    }

    /// Takes a machine out of the crowds wherever it is, and answers where that was. Its room stays
    /// held.
    fn lift(&mut self, machine: &MachineId) -> Vec<Place> {
        let Some(Placed { wish, places }) = self.machines.remove(machine) else {
            return vec![];
        };
        for &place in &places {
            self.count(wish, place.node, false);
        }
        places
    }

    /// Frees what `machine` holds on `node`, and answers what that was; `None` when it held nothing.
    pub fn release(&mut self, machine: &MachineId, node: &NodeName) -> Option<Held> {
        let at = self.node(node)?;
        let placed = self.machines.get_mut(machine)?;
        let index = placed.places.iter().position(|place| place.node == at)?;
        let place = placed.places.remove(index);
        let (wish, last) = (placed.wish, placed.places.is_empty());
        self.rows[at].hold(place.held.room, -1);
        self.rows[at].inbound -= u32::from(place.held.inbound);
        self.count(wish, at, false);
        self.tenants[at].retain(|tenant| tenant != machine);
        if last {
            self.machines.remove(machine);
        }
        Some(place.held)
    }

    /// Closes a node for a plan, whatever its host says.
    pub fn close(&mut self, node: &NodeName) {
        self.close_or_open(node, true);
    }

    /// Takes [`Self::close`] back.
    pub fn reopen(&mut self, node: &NodeName) {
        self.close_or_open(node, false);
    }

    fn close_or_open(&mut self, node: &NodeName, closed: bool) {
        if let Some(at) = self.node(node) {
            self.rows[at].closed = closed;
        }
    }

    /// Says whether a node is about to be emptied.
    pub fn mark_leaving(&mut self, node: &NodeName, leaving: bool) {
        if let Some(at) = self.node(node) {
            self.rows[at].leaving = leaving;
        }
    }

    /// What machines hold on a node.
    pub fn held_on(&self, node: &NodeName) -> Room {
        self.node(node).map(|at| self.held(at)).unwrap_or_default()
    }

    /// Labels of a node.
    pub fn labels(&self, node: &NodeName) -> Option<&Labels> {
        self.node(node).map(|at| &self.nodes[at].labels)
    }

    /// Whether any one of the open nodes could fail, and the others would have as much room as its
    /// machines take. It is a sum: whether each machine fits somewhere isn't looked at.
    pub fn bears_a_loss(&self) -> bool {
        self.spare(true).is_some()
    }

    /// Room that is free on all open nodes together; with `loss`, what is left of it when the
    /// largest node fails: what it had free is lost, and what it held needs a place. `None` when it
    /// is less than nothing.
    pub fn spare(&self, loss: bool) -> Option<Room> {
        let (mut free, mut largest) = (Room::default(), Room::default());
        for (row, node) in self.rows.iter().zip(&self.nodes) {
            if row.open && !row.closed {
                free += row.free();
                largest = largest.max(node.room());
            }
        }
        match loss {
            true => free.without(largest),
            false => Some(free),
        }
    }

    /// What the others lose when a node is emptied: its free room, and room for what it holds.
    pub fn size_of(&self, node: &NodeName) -> Option<Room> {
        let at = self.node(node)?;
        let (row, node) = (&self.rows[at], &self.nodes[at]);
        Some(if row.open && !row.closed {
            node.room()
        } else {
            self.held(at)
        })
    }

    /// Machines that hold room on `node`.
    pub fn tenants(&self, node: &NodeName) -> &[MachineId] {
        match self.node(node) {
            Some(at) => &self.tenants[at],
            None => &[],
        }
    }

    /// What `machine` was placed by.
    pub fn demand(&self, machine: &MachineId) -> Option<&Demand> {
        let placed = self.machines.get(machine)?;
        Some(&self.wishes[placed.wish].demand)
    }

    pub(super) fn node(&self, name: &NodeName) -> Option<usize> {
        self.names.get(name).copied()
    }

    /// Adds a machine to the crowds where it is, or takes it out of them.
    pub(super) fn count_all(&mut self, machine: &MachineId, there: bool) {
        let Some(placed) = self.machines.get(machine) else {
            return;
        };
        let wish = placed.wish;
        // A machine is in two places at most.
        for node in placed
            .places
            .iter()
            .map(|place| place.node)
            .collect::<Vec<_>>()
        {
            self.count(wish, node, there);
        }
    }

    fn count(&mut self, wish: usize, node: usize, there: bool) {
        let wish = &mut self.wishes[wish];
        match (there, wish.places.entry(node)) {
            (true, entry) => *entry.or_default() += 1,
            (false, Entry::Occupied(entry)) if *entry.get() == 1 => drop(entry.remove()),
            (false, Entry::Occupied(mut entry)) => *entry.get_mut() -= 1,
            (false, Entry::Vacant(_)) => {}
        }
        for &at in &wish.within {
            let count = self.crowds.get_mut(at);
            let domain = self.topology.domains(count.key)[node];
            count.members.change(domain, there);
        }
        for &at in &wish.apart {
            let count = self.crowds.get_mut(at);
            let domain = self.topology.domains(count.key)[node];
            count.enemies.change(domain, there);
        }
    }

    /// The place of `demand` among the wishes.
    pub(super) fn intern(&mut self, demand: &Demand) -> usize {
        if let Some(&at) = self.known.get(demand) {
            return at;
        }
        if self.wishes.len() > 2 * self.machines.len() + WISHES_SPARE {
            self.forget();
        }
        let mut all = |nears: &mut dyn Iterator<Item = &Near>| -> Vec<usize> {
            nears.map(|near| self.intern_near(near)).collect()
        };
        let near = all(&mut demand.near.iter());
        let apart = all(&mut demand.apart.iter());
        let liked = all(&mut demand.liked.iter().map(|(_, near)| near));
        let spread = all(&mut demand.spread.iter().map(|spread| &spread.near));
        let wish = Wish {
            mask: self.intern_mask(demand),
            within: self.crowds.of(&demand.namespace, &demand.labels),
            demand: demand.clone(),
            near,
            apart,
            liked,
            spread,
            places: BTreeMap::new(),
        };
        let at = self.wishes.len();
        for (key, values) in &mut self.by_label {
            index(values, (key, at), &wish);
        }
        self.wishes.push(wish);
        self.known.insert(demand.clone(), at);
        at
    }

    fn intern_near(&mut self, near: &Near) -> usize {
        let labels = self.nodes.iter().map(|node| &node.labels);
        let (at, new) = self.crowds.intern(near, &mut self.topology, labels);
        if new {
            self.join(at);
        }
        at
    }

    /// Counts who is in a crowd that nobody asked about before.
    fn join(&mut self, at: usize) {
        let crowd = self.crowds.get(at).crowd.clone();
        let labels = crowd.selector.iter();
        let label = labels.flat_map(|selector| &selector.match_labels).next();
        let candidates: Vec<usize> = match label {
            Some((key, value)) => self.labelled(key, value).to_vec(),
            None => (0..self.wishes.len()).collect(),
        };
        for wish in candidates {
            let wish = &mut self.wishes[wish];
            if !crowd.has(&wish.demand.namespace, &wish.demand.labels) {
                continue;
            }
            wish.within.push(at);
            let count = self.crowds.get_mut(at);
            let domains = self.topology.domains(count.key);
            for (&node, &machines) in &wish.places {
                for _ in 0..machines {
                    count.members.change(domains[node], true);
                }
            }
        }
    }

    /// Wishes of machines with that label.
    fn labelled(&mut self, key: &str, value: &str) -> &[usize] {
        if !self.by_label.contains_key(key) {
            let mut values = HashMap::new();
            for (at, wish) in self.wishes.iter().enumerate() {
                index(&mut values, (key, at), wish);
            }
            self.by_label.insert(key.to_owned(), values);
        }
        let found = self.by_label.get(key).and_then(|values| values.get(value));
        found.map_or(&[], Vec::as_slice)
    }

    fn intern_mask(&mut self, demand: &Demand) -> usize {
        if let Some(&at) = self.masks_known.get(&demand.needs) {
            return at;
        }
        let mask = Mask::new(&demand.needs, self.nodes.iter());
        self.masks.push(mask);
        let at = self.masks.len() - 1;
        self.masks_known.insert(demand.needs.clone(), at);
        at
    }

    /// Begins anew with what is held: wishes that nobody holds, and what only they spoke of, are
    /// forgotten.
    fn forget(&mut self) {
        let old = std::mem::take(self);
        for node in &old.nodes {
            self.node_add(node.clone());
        }
        for (row, old) in self.rows.iter_mut().zip(&old.rows) {
            row.closed = old.closed;
            row.leaving = old.leaving;
        }
        for (machine, placed) in &old.machines {
            for place in &placed.places {
                let (demand, node) = (&old.wishes[placed.wish].demand, &old.nodes[place.node]);
                self.hold_as(machine, demand, &node.name, place.held);
            }
        }
    }
}

fn index(values: &mut HashMap<String, Vec<usize>>, (key, at): (&str, usize), wish: &Wish) {
    if let Some(value) = wish.demand.labels.get(key) {
        values.entry(value.clone()).or_default().push(at);
    }
}
