//! How fast machines are placed, a node's evacuation is planned, and a fleet is put into waves.
//!
//! `cargo xtask bench placement` runs it beside other tools. Takes `--nodes 1000,5000`, prints JSON;
//! with `--fleet FILE` the first fleet is written there in the text format of Ganeti's htools,
//! without what that can't say.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Instant;

use godwit_model::affinity::{
    Crowd, LabelSelector, Labels, NodeSelector, NodeTerm, Operator, PreferredNode, Requirement,
};
use godwit_model::placement::{
    Ask, Candidate, Demand, Fleet, HostFacts, Hugepages, Leaning, Near, Needs, Room, Spread, Taint,
};
use godwit_model::plan::{Rules, evacuate, waves};
use godwit_model::vmi::Toleration;
use godwit_model::{Bytes, MachineId, NodeName};
use serde_json::json;

/// Machines on each node, when all are placed.
const MACHINES: usize = 20;
const NODE_MIB: u64 = 64 << 10;
const NODE_CPUS: u64 = 32;
/// Machines that bear each other not on one node.
const APART: usize = 5;
/// Machines that are spread evenly over zones.
const SPREAD: usize = 40;
const ZONES: usize = 10;
const RACKS: usize = 50;
const NETWORKS: usize = 8;
const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(at + 1)
    };
    let mut all = vec![];
    let sizes = after("--nodes").map_or("1000,5000", String::as_str);
    let sizes = sizes.split(',').map(|size| size.parse().expect("a number"));
    for (at, size) in sizes.enumerate() {
        let mut made = Made::new(size);
        let placed = made.place_all();
        if let (0, Some(path)) = (at, after("--fleet")) {
            std::fs::write(path, made.text()).expect("the file can be written");
        }
        let one = made.evacuations();
        let fleet = made.waves();
        all.push(json!({
            "nodes": size, "placements": placed, "evacuation": one, "waves": fleet,
        }));
    }
    let written = writeln!(std::io::stdout(), "{}", json!(all));
    written.expect("somebody reads it");
}

struct Made {
    fleet: Fleet,
    nodes: Vec<Candidate>,
    /// With where each is.
    machines: Vec<(MachineId, Demand, Option<NodeName>)>,
}

impl Made {
    fn new(size: usize) -> Self {
        let nodes: Vec<Candidate> = (0..size).map(node).collect();
        let mut fleet = Fleet::default();
        nodes.iter().for_each(|node| fleet.node_set(node.clone()));
        let machines = (0..size * MACHINES).map(|at| (id(at), demand(at), None));
        Self {
            fleet,
            nodes,
            machines: machines.collect(),
        }
    }

    fn place_all(&mut self) -> serde_json::Value {
        let began = Instant::now();
        for (machine, demand, place) in &mut self.machines {
            let ask = Ask {
                machine,
                demand,
                source: None,
                home: None,
                inbound_max: 2,
                leaning: Leaning::default(),
            };
            *place = self.fleet.choose(ask);
            if let Some(node) = place {
                self.fleet.hold(machine, demand, node, false);
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let placed = self.machines.iter().filter(|one| one.2.is_some()).count();
        json!({
            "asked": self.machines.len(), "placed": placed, "seconds": seconds,
            "a_second": self.machines.len() as f64 / seconds,
        })
    }

    /// A plan for one node at a time.
    fn evacuations(&mut self) -> serde_json::Value {
        let mut times = vec![];
        let (mut moves, mut stuck) = (0, 0);
        for node in self.nodes.iter().step_by(self.nodes.len() / 100) {
            let began = Instant::now();
            self.fleet.close(&node.name);
            let found = evacuate(
                &mut self.fleet,
                std::slice::from_ref(&node.name),
                &|_| true,
                false,
            );
            found.undo(&mut self.fleet);
            self.fleet.reopen(&node.name);
            times.push(began.elapsed().as_secs_f64() * 1e3);
            moves += found.moves.len();
            stuck += found.stuck.len();
        }
        times.sort_by(f64::total_cmp);
        json!({
            "plans": times.len(), "moves": moves, "stuck": stuck,
            "p50_ms": times[times.len() / 2], "p99_ms": times[times.len() * 99 / 100],
        })
    }

    fn waves(&mut self) -> serde_json::Value {
        let nodes: Vec<NodeName> = self.nodes.iter().map(|node| node.name.clone()).collect();
        let rules = Rules {
            spare_node: true,
            ..Rules::default()
        };
        let began = Instant::now();
        let found = waves(&mut self.fleet, &nodes, &|_| true, &rules);
        let seconds = began.elapsed().as_secs_f64();
        json!({
            "seconds": seconds, "waves": found.waves.len(), "moves": found.moves(),
            "machines": self.machines.len(), "left": found.left.len(),
        })
    }

    /// As htools read it: groups, nodes, instances, tags, policies.
    fn text(&self) -> String {
        let mut text = String::from("default|g|preferred||\n\n");
        for node in &self.nodes {
            let name = &node.name;
            let held = self.fleet.held_on(name).memory.0 >> 20;
            let free = NODE_MIB - held;
            let line = writeln!(
                text,
                "{name}|{NODE_MIB}|0|{free}|10000000|9000000|{NODE_CPUS}|N|g|1|"
            );
            line.expect("a string takes everything");
        }
        text.push('\n');
        for (at, (_, demand, place)) in self.machines.iter().enumerate() {
            let Some(node) = place else { continue };
            let memory = demand.room.memory.0 >> 20;
            let line = writeln!(
                text,
                "vm{at}|{memory}|1024|1|running|Y|{node}||sharedfile||1"
            );
            line.expect("a string takes everything");
        }
        text.push_str("\n\n");
        text
    }
}

fn node(at: usize) -> Candidate {
    let name = format!("node{at:05}");
    let label = |key: &str, value: String| (key.to_owned(), value);
    let mut taints = vec![];
    if at.is_multiple_of(20) {
        taints.push(Taint {
            key: "dedicated".to_owned(),
            value: "db".to_owned(),
            effect: "NoSchedule".to_owned(),
        });
    }
    Candidate {
        ready: true,
        cordoned: false,
        leaving: false,
        taints,
        labels: Labels::from([
            label(HOST, name.clone()),
            label(ZONE, (at % ZONES).to_string()),
            label("rack", (at % RACKS).to_string()),
            label(
                "disk",
                if at.is_multiple_of(2) { "fast" } else { "slow" }.to_owned(),
            ),
        ]),
        memory: Bytes::mib(NODE_MIB),
        cpu_milli: NODE_CPUS * 1000,
        hugepages: Hugepages::default(),
        facts: HostFacts {
            accelerator: "kvm".to_owned(),
            qemu_version: "7.2".to_owned(),
            machine_types: vec!["pc-q35-7.1".to_owned(), "pc-q35-7.2".to_owned()],
            cpu_models: vec!["qemu64".to_owned(), "Cascadelake-Server".to_owned()],
            networks: (0..NETWORKS).map(|net| format!("net{net}")).collect(),
            images: vec!["guest".to_owned()],
            pools: vec![],
        },
        name: NodeName::parse(name).expect("a name"),
    }
}

fn id(at: usize) -> MachineId {
    MachineId::parse(format!("43f5b34d-94b4-4cda-9a69-{at:012}")).expect("a uuid")
}

/// A tenth of the machines each is kept apart, spread, asks for fast disks, likes slow ones, is
/// together with others; a twentieth bears the taint; all have labels of their own.
fn demand(at: usize) -> Demand {
    let app = match at % 10 {
        0 => format!("apart{}", at / 10 / APART),
        1 => format!("spread{}", at / 10 / SPREAD),
        2 => format!("near{}", at / 10 / APART),
        _ => format!("app{}", at / 100),
    };
    let near = |key: &str| Near {
        crowd: Crowd {
            namespaces: Some(std::collections::BTreeSet::from(["default".to_owned()])),
            selector: Some(LabelSelector {
                match_labels: Labels::from([("app".to_owned(), app.clone())]),
                match_expressions: vec![],
            }),
        },
        topology_key: key.to_owned(),
    };
    let mut demand = Demand {
        namespace: "default".to_owned(),
        labels: Labels::from([
            ("app".to_owned(), app.clone()),
            ("kubevirt.io/domain".to_owned(), format!("vm{at}")),
        ]),
        needs: Needs {
            networks: vec![format!("net{}", at % NETWORKS)],
            machine_type: "pc-q35-7.2".to_owned(),
            cpu_model: "Cascadelake-Server".to_owned(),
            ..Needs::default()
        },
        ..Demand::of_room(Room {
            memory: Bytes::mib(1024 + 1024 * (at as u64 * 7919 % 4)),
            cpu_milli: 100,
            ..Room::default()
        })
    };
    match at % 10 {
        0 => demand.apart.push(near(HOST)),
        1 => demand.spread.push(Spread {
            near: near(ZONE),
            max_skew: 1,
            min_domains: 1,
            required: true,
        }),
        2 => demand.near.push(near(ZONE)),
        3 => {
            demand.needs.affinity = Some(NodeSelector {
                node_selector_terms: vec![disk("fast")],
            })
        }
        4 => demand.needs.preferred.push(PreferredNode {
            weight: 50,
            preference: disk("slow"),
        }),
        5 if at % 20 == 5 => demand.needs.tolerations.push(Toleration {
            key: "dedicated".to_owned(),
            operator: Some("Exists".to_owned()),
            ..Toleration::default()
        }),
        6 => demand.liked.push((-10, near(HOST))),
        _ => {}
    }
    demand
}

fn disk(kind: &str) -> NodeTerm {
    NodeTerm {
        match_expressions: vec![Requirement {
            key: "disk".to_owned(),
            operator: Operator::In,
            values: vec![kind.to_owned()],
        }],
        match_fields: vec![],
    }
}
