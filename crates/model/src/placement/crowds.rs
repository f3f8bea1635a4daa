//! How many machines of which kind are where: what affinity, anti-affinity and spread are judged by.

use std::collections::HashMap;

use crate::affinity::{Crowd, Labels};

use super::demand::Near;

/// The domain of a node that lacks the label.
pub(super) const NOWHERE: u32 = u32::MAX;

/// Which domain each node is in, for each label that anybody asked about.
#[derive(Debug, Clone, Default)]
pub(super) struct Topology {
    keys: Vec<Key>,
}

#[derive(Debug, Clone)]
struct Key {
    name: String,
    values: HashMap<String, u32>,
    /// By node.
    domains: Vec<u32>,
}

impl Key {
    fn domain(&mut self, labels: &Labels) -> u32 {
        let Some(value) = labels.get(&self.name) else {
            return NOWHERE;
        };
        let next = u32::try_from(self.values.len()).unwrap_or(NOWHERE - 1);
        *self.values.entry(value.clone()).or_insert(next)
    }
}

impl Topology {
    /// The place of the label `name`; `nodes` are the labels of all nodes.
    fn key<'a>(&mut self, name: &str, nodes: impl Iterator<Item = &'a Labels>) -> usize {
        if let Some(at) = self.keys.iter().position(|key| key.name == name) {
            return at;
        }
        let mut key = Key {
            name: name.to_owned(),
            values: HashMap::new(),
            domains: vec![],
        };
        for labels in nodes {
            let domain = key.domain(labels);
            key.domains.push(domain);
        }
        self.keys.push(key);
        self.keys.len() - 1
    }

    /// A node came, or its labels changed.
    pub(super) fn set(&mut self, node: usize, labels: &Labels) {
        for key in &mut self.keys {
            let domain = key.domain(labels);
            match key.domains.get_mut(node) {
                Some(known) => *known = domain,
                None => key.domains.push(domain),
            }
        }
    }

    /// Domains of all nodes by the label at `key`.
    pub(super) fn domains(&self, key: usize) -> &[u32] {
        &self.keys[key].domains
    }
}

/// Crowds by domain, and how many there are.
#[derive(Debug, Clone, Default)]
pub(super) struct Crowds {
    counts: Vec<Count>,
    known: HashMap<Near, usize>,
    /// Crowds by a label that their members have: key, then value.
    by_label: HashMap<String, HashMap<String, Vec<usize>>>,
    /// The other crowds.
    by_nothing: Vec<usize>,
}

/// One crowd by one label of the nodes.
#[derive(Debug, Clone)]
pub(super) struct Count {
    pub(super) crowd: Crowd,
    /// Place of the label.
    pub(super) key: usize,
    /// Its machines, by domain.
    pub(super) members: Tally,
    /// Machines that don't bear it near, by domain.
    pub(super) enemies: Tally,
}

/// Numbers by domain, and their sum.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    by_domain: Vec<u32>,
    pub(super) total: u32,
}

impl Tally {
    /// One more of `domain`, or one less.
    pub(super) fn change(&mut self, domain: u32, more: bool) {
        let Some(at) = place(domain) else {
            return;
        };
        if self.by_domain.len() <= at {
            self.by_domain.resize(at + 1, 0);
        }
        if more {
            self.by_domain[at] += 1;
            self.total += 1;
        } else {
            self.by_domain[at] -= 1;
            self.total -= 1;
        }
    }

    pub(super) fn at(&self, domain: u32) -> u32 {
        let at = place(domain);
        at.and_then(|at| self.by_domain.get(at).copied())
            .unwrap_or(0)
    }

    pub(super) fn most(&self) -> u32 {
        self.by_domain.iter().copied().max().unwrap_or(0)
    }
}

fn place(domain: u32) -> Option<usize> {
    (domain != NOWHERE).then_some(domain as usize)
}

impl Crowds {
    /// The place of `near`, and whether it is new; its counts are empty then.
    pub(super) fn intern<'a>(
        &mut self,
        near: &Near,
        topology: &mut Topology,
        nodes: impl Iterator<Item = &'a Labels>,
    ) -> (usize, bool) {
        if let Some(&at) = self.known.get(near) {
            return (at, false);
        }
        let at = self.counts.len();
        self.counts.push(Count {
            crowd: near.crowd.clone(),
            key: topology.key(&near.topology_key, nodes),
            members: Tally::default(),
            enemies: Tally::default(),
        });
        self.known.insert(near.clone(), at);
        let labels = near.crowd.selector.iter();
        let mut labels = labels.flat_map(|selector| &selector.match_labels);
        match labels.next() {
            Some((key, value)) => {
                let values = self.by_label.entry(key.clone()).or_default();
                values.entry(value.clone()).or_default().push(at);
            }
            None => self.by_nothing.push(at),
        }
        (at, true)
    }

    /// Every crowd that a machine is one of.
    pub(super) fn of(&self, namespace: &str, labels: &Labels) -> Vec<usize> {
        let has = |at: &&usize| self.counts[**at].crowd.has(namespace, labels);
        let labelled = labels
            .iter()
            .filter_map(|(key, value)| self.by_label.get(key)?.get(value))
            .flatten();
        labelled
            .chain(&self.by_nothing)
            .filter(has)
            .copied()
            .collect()
    }

    pub(super) fn get(&self, at: usize) -> &Count {
        &self.counts[at]
    }

    pub(super) fn get_mut(&mut self, at: usize) -> &mut Count {
        &mut self.counts[at]
    }
}
