use super::*;
use crate::affinity::Labels;
use crate::machine::PageSize;
use crate::placement::{Candidate, Demand, Fleet, HostFacts, Hugepages, Leaning, Near, Room};
use crate::{Bytes, MachineId, NodeName};
use std::collections::BTreeMap;

const HOST: &str = "kubernetes.io/hostname";
const RACK: &str = "rack";

pub(super) fn name(node: &str) -> NodeName {
    NodeName::parse(node).expect("a name")
}

pub(super) fn id(number: u32) -> MachineId {
    MachineId::parse(format!("43f5b34d-94b4-4cda-9a69-{number:012}")).expect("a uuid")
}

fn node(at: usize, mib: u64) -> Candidate {
    let host = format!("node{at:02}");
    Candidate {
        name: name(&host),
        ready: true,
        cordoned: false,
        leaving: false,
        taints: vec![],
        labels: Labels::from([
            (HOST.to_owned(), host),
            (RACK.to_owned(), (at % 3).to_string()),
        ]),
        memory: Bytes::mib(mib),
        cpu_milli: 100_000,
        hugepages: Hugepages::default(),
        facts: HostFacts {
            machine_types: vec![String::new()],
            cpu_models: vec![String::new()],
            ..HostFacts::default()
        },
    }
}

fn demand(app: &str, mib: u64, apart: bool) -> Demand {
    let labels = Labels::from([("app".to_owned(), app.to_owned())]);
    let selector = crate::affinity::LabelSelector {
        match_labels: labels.clone(),
        match_expressions: vec![],
    };
    let near = Near {
        crowd: crate::affinity::Crowd {
            namespaces: None,
            selector: Some(selector),
        },
        topology_key: HOST.to_owned(),
    };
    Demand {
        namespace: "default".to_owned(),
        labels,
        apart: if apart { vec![near] } else { vec![] },
        ..Demand::of_room(Room {
            memory: Bytes::mib(mib),
            cpu_milli: 100,
            ..Room::default()
        })
    }
}

/// A fleet, and what an independent account knows of it.
pub(super) struct Account {
    nodes: BTreeMap<NodeName, Candidate>,
    at: BTreeMap<MachineId, (NodeName, Demand)>,
}

impl Account {
    pub(super) fn fleet(&self) -> Fleet {
        let mut fleet = Fleet::default();
        for node in self.nodes.values() {
            fleet.node_set(node.clone());
        }
        for (machine, (node, demand)) in &self.at {
            fleet.hold(machine, demand, node, false);
        }
        fleet
    }

    fn on<'a>(&'a self, node: &'a NodeName) -> impl Iterator<Item = &'a Demand> {
        let all = self.at.values().filter(move |(at, _)| at == node);
        all.map(|(_, demand)| demand)
    }

    fn go(&mut self, way: &Move) {
        let at = self.at.get_mut(&way.machine).expect("it is there");
        assert_eq!(at.0, way.source, "it moves from where it is");
        at.0 = way.target.clone();
        let mut held = Room::default();
        self.on(&way.target).for_each(|demand| held += demand.room);
        let node = &self.nodes[&way.target];
        assert!(held.memory <= node.memory, "{way:?}");
        assert!(held.hugepages.mi2 <= node.hugepages.mi2, "{way:?}");
        let apps = self.on(&way.target);
        let apart: Vec<&str> = apps
            .filter(|demand| !demand.apart.is_empty())
            .map(|demand| demand.labels["app"].as_str())
            .collect();
        for app in &apart {
            let alike = self
                .on(&way.target)
                .filter(|demand| demand.labels["app"] == *app);
            assert_eq!(alike.count(), 1, "{way:?}");
        }
    }
}

/// Nodes of 4 GiB, and machines 0, 1, ... by node and MiB.
pub(super) fn account_of(nodes: usize, machines: &[(usize, u64)]) -> Account {
    let nodes = (0..nodes).map(|at| node(at, 4096));
    let machines = (0..).zip(machines).map(|(number, &(at, mib))| {
        let place = name(&format!("node{at:02}"));
        (id(number), (place, demand("app", mib, false)))
    });
    Account {
        nodes: nodes.map(|node| (node.name.clone(), node)).collect(),
        at: machines.collect(),
    }
}

fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |below| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

fn made(seed: u64, nodes: usize, machines: u32) -> Account {
    let mut next = random(seed);
    let nodes = (0..nodes).map(|at| Candidate {
        hugepages: Hugepages::of(PageSize::Mi2, Bytes::mib(2048)),
        ..node(at, 16_384)
    });
    let mut account = Account {
        nodes: nodes.map(|node| (node.name.clone(), node)).collect(),
        at: BTreeMap::new(),
    };
    let mut fleet = account.fleet();
    for number in 0..machines {
        let apart = next(3) == 0;
        let app = format!("{}{}", if apart { "apart" } else { "app" }, next(8));
        let mut demand = demand(&app, 512 << next(4), apart);
        if next(4) == 0 {
            demand.room.hugepages = Hugepages::of(PageSize::Mi2, Bytes::mib(128 << next(3)));
        }
        let machine = id(number);
        let ask = crate::placement::Ask {
            machine: &machine,
            demand: &demand,
            source: None,
            home: None,
            inbound_max: 0,
            leaning: Leaning::default(),
        };
        if let Some(node) = fleet.choose(ask) {
            fleet.hold(&machine, &demand, &node, false);
            account.at.insert(machine, (node, demand));
        }
    }
    account
}

#[test]
fn waves_empty_every_node_once_without_breaking_a_rule() {
    for seed in 0..20 {
        let mut account = made(seed, 12, 60);
        let mut fleet = account.fleet();
        let nodes: Vec<NodeName> = account.nodes.keys().cloned().collect();
        let rules = Rules {
            nodes_max: 4,
            domain_label: (seed % 2 == 0).then(|| RACK.to_owned()),
            spare_node: seed % 3 == 0,
        };
        let plan = waves(&mut fleet, &nodes, &|_| true, &rules);
        assert_eq!(plan, waves(&mut fleet, &nodes, &|_| true, &rules), "undone");
        assert_eq!(plan.left, BTreeMap::new());
        let mut visited = vec![];
        for wave in &plan.waves {
            assert!(wave.nodes.len() <= 4);
            for way in wave.evacuations.iter().flat_map(|one| &one.moves) {
                assert!(!wave.nodes.contains(&way.target), "{way:?}");
                account.go(way);
            }
            for node in &wave.nodes {
                assert_eq!(account.on(node).count(), 0);
            }
            let rack = |node: &NodeName| account.nodes[node].labels[RACK].clone();
            let racks = wave.nodes.iter().map(rack);
            if rules.domain_label.is_some() {
                assert!(racks.collect::<std::collections::BTreeSet<_>>().len() <= 1);
            }
            visited.extend(wave.nodes.clone());
        }
        visited.sort();
        assert_eq!(visited, nodes);
    }
}

#[test]
fn a_plan_is_not_made_of_what_cannot_be() {
    let mut account = Account {
        nodes: (0..3)
            .map(|at| (name(&format!("node{at:02}")), node(at, 4096)))
            .collect(),
        at: BTreeMap::new(),
    };
    for at in 0..3 {
        let demand = demand("db", 1024, true);
        account
            .at
            .insert(id(at), (name(&format!("node{at:02}")), demand));
    }
    let mut fleet = account.fleet();
    let nodes: Vec<NodeName> = account.nodes.keys().cloned().collect();
    let plan = waves(&mut fleet, &nodes, &|_| true, &Rules::default());
    assert_eq!(plan.waves, []);
    assert_eq!(plan.left.len(), 3);
    let Why::Stuck(stuck) = &plan.left[&nodes[0]] else {
        panic!("{plan:?}");
    };
    assert_eq!(stuck.machine, id(0));
    assert_eq!(stuck.verdicts.len(), 3);

    // A machine that stays is nobody's hindrance here: the drain tells of it.
    let only = waves(
        &mut fleet,
        &nodes,
        &|machine| *machine == id(9),
        &Rules::default(),
    );
    assert_eq!((only.left.len(), only.moves()), (0, 0));
    let spare = Rules {
        spare_node: true,
        ..Rules::default()
    };
    let one = waves(&mut fleet, &nodes, &|machine| *machine == id(9), &spare);
    // Two open nodes with 1 GiB held of 4 each: the one could not take the other's all.
    assert_eq!(one.waves.len(), 3);
    account
        .at
        .insert(id(7), (nodes[1].clone(), demand("big", 3072, false)));
    let mut fleet = account.fleet();
    let none = waves(
        &mut fleet,
        &nodes[..1],
        &|machine| *machine == id(9),
        &spare,
    );
    assert_eq!(none.left.get(&nodes[0]), Some(&Why::NoSpare));
}

#[test]
fn machines_move_no_more_often_than_they_must() {
    // Three nodes, each with a machine: the first two moves are on to nodes that are yet to come,
    // and nobody needs to move more than twice.
    let mut account = Account {
        nodes: (0..4)
            .map(|at| (name(&format!("node{at:02}")), node(at, 4096)))
            .collect(),
        at: BTreeMap::new(),
    };
    for at in 1..4 {
        let node = name(&format!("node{at:02}"));
        account
            .at
            .insert(id(at), (node, demand("app", 1024, false)));
    }
    let mut fleet = account.fleet();
    let nodes: Vec<NodeName> = account.nodes.keys().cloned().collect();
    let rules = Rules {
        nodes_max: 1,
        ..Rules::default()
    };
    let plan = waves(&mut fleet, &nodes, &|_| true, &rules);
    assert_eq!(
        plan.waves[0].nodes,
        [nodes[0].clone()],
        "the empty one first"
    );
    assert_eq!(plan.moves(), 3, "each to a node that is done");
}
