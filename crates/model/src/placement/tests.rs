use super::*;
use crate::MachineId;
use crate::machine::{MachineSpec, PageSize};
use crate::vmi::VmiSpec;
use serde_json::{Value, json};

const GIB: u64 = 1024;

pub(super) fn spec(name: &str, mib: u64) -> MachineSpec {
    MachineSpec {
        id: id(1),
        namespace: "default".into(),
        name: name.into(),
        cpus: 1,
        memory: Bytes::mib(mib),
        machine_type: "pc-q35-7.2".into(),
        cpu_model: "qemu64".into(),
        disks: vec![],
        nics: vec![],
        kernel: None,
        hugepages: None,
    }
}

fn id(number: u32) -> MachineId {
    MachineId::parse(format!("43f5b34d-94b4-4cda-9a69-{number:012}")).expect("a uuid")
}

fn name(node: &str) -> NodeName {
    NodeName::parse(node).expect("a name")
}

fn node(node: &str, mib: u64) -> Candidate {
    Candidate {
        name: name(node),
        ready: true,
        cordoned: false,
        leaving: false,
        taints: vec![],
        labels: Labels::from([("kubernetes.io/hostname".to_owned(), node.to_owned())]),
        memory: Bytes::mib(mib),
        cpu_milli: 2000,
        hugepages: Hugepages::default(),
        facts: HostFacts {
            accelerator: "tcg".into(),
            machine_types: vec!["pc-q35-7.2".into()],
            cpu_models: vec!["qemu64".into()],
            ..HostFacts::default()
        },
    }
}

fn fleet(nodes: &[Candidate]) -> Fleet {
    let mut fleet = Fleet::default();
    nodes.iter().for_each(|node| fleet.node_set(node.clone()));
    fleet
}

fn demand(labels: &[(&str, &str)], vmi: Value) -> Demand {
    let vmi: VmiSpec = serde_json::from_value(vmi).expect("a spec");
    let labels = labels.iter();
    let labels = labels.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let overcommit = Overcommit::default();
    Demand::new(&spec("vm", 256), &vmi, labels.collect(), overcommit)
}

fn ask<'a>(machine: &'a MachineId, demand: &'a Demand) -> Ask<'a> {
    Ask {
        machine,
        demand,
        source: None,
        home: None,
        inbound_max: 2,
        leaning: Leaning::default(),
    }
}

fn chosen(fleet: &mut Fleet, machine: u32, demand: &Demand) -> Option<String> {
    let chosen = fleet.choose(ask(&id(machine), demand));
    chosen.map(|node| node.to_string())
}

fn summary(fleet: &mut Fleet, machine: u32, demand: &Demand) -> String {
    fleet.place(ask(&id(machine), demand)).summary()
}

#[test]
fn the_node_with_most_room_wins_and_the_source_never() {
    let nodes = [
        node("worker1", 4 * GIB),
        node("worker2", GIB),
        node("worker3", 2 * GIB),
    ];
    let (machine, source) = (id(1), name("worker1"));
    let mut demand = demand(&[], json!({}));
    demand.needs.accelerator = Some("tcg".to_owned());
    let ask = Ask {
        source: Some(&source),
        ..ask(&machine, &demand)
    };
    let placement = fleet(&nodes).place(ask);
    assert_eq!(placement.chosen, Some(name("worker3")));
    assert_eq!(
        placement.summary(),
        "2/3 nodes are available: 1 node(s) were the migration's source."
    );
}

#[test]
fn a_planned_node_is_taken_if_it_will_do_and_one_to_be_avoided_only_if_no_other_does() {
    let nodes = ["worker1", "worker2", "worker3"].map(name);
    let demand = demand(&[], json!({}));
    let machine = id(1);
    let choose = |full: &[usize], preferred: usize, avoid: &[usize]| {
        let room = |at: usize| {
            if full.contains(&at) {
                10
            } else {
                (4 - at as u64) * GIB
            }
        };
        let fleet = &mut fleet(&[0, 1, 2].map(|at| node(nodes[at].as_str(), room(at))));
        let avoid: Vec<NodeName> = avoid.iter().map(|&at| nodes[at].clone()).collect();
        let leaning = Leaning {
            preferred: Some(&nodes[preferred]),
            avoid: &avoid,
        };
        let ask = Ask {
            leaning,
            ..ask(&machine, &demand)
        };
        fleet.choose(ask).map(|node| node.to_string())
    };
    assert_eq!(choose(&[], 2, &[]).as_deref(), Some("worker3"));
    assert_eq!(choose(&[2], 2, &[]).as_deref(), Some("worker1"));
    assert_eq!(choose(&[], 2, &[2, 0]).as_deref(), Some("worker2"));
    assert_eq!(choose(&[0, 1], 2, &[2]).as_deref(), Some("worker3"));
    assert_eq!(choose(&[0, 1, 2], 2, &[]), None);
}

#[test]
fn every_reason_is_counted_as_users_of_kubernetes_know_it() {
    let mut nodes = [
        node("worker1", 4 * GIB),
        node("worker2", 10),
        node("worker3", 10),
    ];
    nodes[0].cordoned = true;
    nodes[0].taints.push(Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    });
    let demand = demand(&[], json!({}));
    assert_eq!(chosen(&mut fleet(&nodes), 1, &demand), None);
    assert_eq!(
        summary(&mut fleet(&nodes), 1, &demand),
        "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient memory."
    );
}

#[test]
fn a_shared_disk_is_only_where_its_pool_is() {
    let pool = |path: &str, shared| Pool {
        path: path.into(),
        shared,
    };
    let mut nodes = ["worker1", "worker2", "worker3", "worker4"].map(|name| node(name, GIB));
    nodes[0].facts.pools = vec![pool("/srv/other", true)];
    nodes[1].facts.pools = vec![pool("/srv/disks", false)];
    nodes[2].facts.pools = vec![pool("/srv/disks", true)];
    let disk = |path: &str, shared| crate::machine::Disk {
        name: "root".into(),
        path: path.into(),
        format: crate::machine::ImageFormat::Raw,
        shared,
        read_only: false,
        create: None,
        boot: true,
        seed: None,
    };
    let mut spec = spec("vm", 256);
    spec.disks = vec![disk("/srv/disks/vm", true), disk("/var/scratch", false)];
    let overcommit = Overcommit::default();
    let demand = Demand::new(&spec, &VmiSpec::default(), Labels::new(), overcommit);
    let placement = fleet(&nodes).place(ask(&id(1), &demand));
    let refused: Vec<&[Obstacle]> = placement
        .verdicts
        .iter()
        .map(|one| &*one.obstacles)
        .collect();
    let storage = [Obstacle::Storage("/srv/disks/vm".into())];
    // The last one names no pools: its agent finds out when it opens the disk.
    assert_eq!(refused, [&storage[..], &storage[..], &[], &[]]);
    assert_eq!(
        placement.summary(),
        "2/4 nodes are available: 2 node(s) had no storage for /srv/disks/vm."
    );
}

#[test]
fn a_node_without_free_huge_pages_takes_no_machine_that_needs_them_and_any_other() {
    let mut nodes = [node("worker1", 4 * GIB), node("worker2", 4 * GIB)];
    nodes[0].hugepages.mi2 = Bytes::mib(512);
    let mut fleet = fleet(&nodes);
    let spec = MachineSpec {
        hugepages: Some(PageSize::Mi2),
        ..spec("vm", 256)
    };
    let overcommit = Overcommit::default();
    let huge = Demand::new(&spec, &VmiSpec::default(), Labels::new(), overcommit);
    for machine in [1, 2] {
        let node = chosen(&mut fleet, machine, &huge);
        assert_eq!(node.as_deref(), Some("worker1"));
        fleet.hold(&id(machine), &huge, &name("worker1"), false);
    }
    assert_eq!(
        summary(&mut fleet, 3, &huge),
        "0/2 nodes are available: 2 Insufficient hugepages-2Mi."
    );
    // The host gives pages back that are held: that keeps nobody else away.
    nodes[0].hugepages = Hugepages::default();
    nodes[1].cordoned = true;
    nodes.iter().for_each(|node| fleet.node_set(node.clone()));
    let plain = demand(&[], json!({}));
    assert_eq!(chosen(&mut fleet, 3, &plain).as_deref(), Some("worker1"));
    let held = fleet.held_on(&name("worker1"));
    assert_eq!(held.hugepages.mi2, Bytes::mib(512));
    assert_eq!(held.memory.0, 2 * overhead(Bytes::mib(256)).0);
}

#[test]
fn what_was_booked_stays_booked_when_more_is_asked_for_elsewhere() {
    let mut fleet = fleet(&[node("worker1", GIB), node("worker2", GIB)]);
    let (worker1, worker2) = (name("worker1"), name("worker2"));
    let now = demand(&[], json!({}));
    let then = Held {
        room: Room {
            memory: Bytes::mib(100),
            ..now.room
        },
        inbound: false,
    };
    fleet.hold_as(&id(1), &now, &worker1, then);
    fleet.hold(&id(1), &now, &worker2, true);
    assert_eq!(fleet.held_on(&worker1).memory, Bytes::mib(100));
    assert_eq!(fleet.held_on(&worker2), now.room);
    let free = |fleet: &Fleet| fleet.spare(false).map(|room| room.memory.0);
    let both = Bytes::mib(2 * GIB).0;
    let left = both - Bytes::mib(100).0 - now.room.memory.0;
    assert_eq!(free(&fleet), Some(left));
    assert_eq!(fleet.release(&id(1), &worker1), Some(then));
    fleet.release(&id(1), &worker2);
    assert_eq!(free(&fleet), Some(both));
}

#[test]
fn a_choice_names_the_next_best_node() {
    let nodes = [
        node("worker1", GIB),
        node("worker2", 4 * GIB),
        node("worker3", 2 * GIB),
    ];
    let mut fleet = fleet(&nodes);
    let (machine, demand) = (id(1), demand(&[], json!({})));
    let choice = fleet
        .choose_between(ask(&machine, &demand))
        .expect("a node");
    assert_eq!(choice.node, name("worker2"));
    let next = choice.runner_up.expect("another");
    assert_eq!(next.node, name("worker3"));
    assert!(next.points[0] > next.points[1], "{next:?}");
    fleet.close(&name("worker1"));
    fleet.close(&name("worker3"));
    let choice = fleet
        .choose_between(ask(&machine, &demand))
        .expect("a node");
    assert_eq!(choice.runner_up, None);
}

#[test]
fn a_machine_never_changes_its_accelerator_or_overfills_a_nodes_inbound() {
    let mut nodes = [node("worker1", 4 * GIB), node("worker2", 4 * GIB)];
    nodes[0].facts.accelerator = "kvm".into();
    let mut fleet = fleet(&nodes);
    let mut demand = demand(&[], json!({}));
    demand.needs.accelerator = Some("tcg".to_owned());
    for machine in [7, 8] {
        fleet.hold(&id(machine), &demand, &name("worker2"), true);
    }
    let placement = fleet.place(ask(&id(1), &demand));
    assert_eq!(placement.chosen, None);
    assert_eq!(placement.verdicts[0].obstacles, [Obstacle::Accelerator]);
    assert_eq!(placement.verdicts[1].obstacles, [Obstacle::Inbound]);
    let held = fleet.release(&id(7), &name("worker2"));
    assert!(held.is_some_and(|held| held.inbound));
    assert_eq!(chosen(&mut fleet, 1, &demand).as_deref(), Some("worker2"));
}

#[test]
fn a_machine_with_local_disks_comes_back_to_them_or_waits() {
    let (machine, home) = (id(1), name("worker1"));
    let demand = demand(&[], json!({}));
    let ask = Ask {
        home: Some(&home),
        ..ask(&machine, &demand)
    };
    let mut nodes = [node("worker1", GIB), node("worker2", 4 * GIB)];
    assert_eq!(fleet(&nodes).choose(ask).as_ref(), Some(&home));
    nodes[0].ready = false;
    let placement = fleet(&nodes).place(ask);
    assert_eq!(placement.chosen, None);
    assert_eq!(
        placement.summary(),
        "0/2 nodes are available: 1 node(s) were not ready, \
         1 node(s) didn't have the machine's local disks."
    );
}

fn apart(app: &str, key: &str) -> Value {
    json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key},
    ]}}})
}

#[test]
fn those_that_bear_each_other_not_are_kept_apart_both_ways() {
    let nodes = [node("worker1", 4 * GIB), node("worker2", 4 * GIB)];
    let mut fleet = fleet(&nodes);
    let first = demand(&[("app", "db")], apart("db", "kubernetes.io/hostname"));
    fleet.hold(&id(1), &first, &name("worker1"), false);
    assert_eq!(chosen(&mut fleet, 2, &first).as_deref(), Some("worker2"));
    fleet.hold(&id(2), &first, &name("worker2"), false);
    assert_eq!(
        summary(&mut fleet, 3, &first),
        "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules, \
         2 node(s) didn't satisfy existing pods anti-affinity rules."
    );
    // One that bears everybody, but isn't borne.
    let plain = demand(&[("app", "db")], json!({}));
    assert_eq!(
        summary(&mut fleet, 3, &plain),
        "0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules."
    );
    assert_eq!(
        chosen(&mut fleet, 3, &demand(&[("app", "web")], json!({}))).as_deref(),
        Some("worker1")
    );
    fleet.release(&id(1), &name("worker1"));
    assert_eq!(chosen(&mut fleet, 3, &first).as_deref(), Some("worker1"));
}

#[test]
fn a_machine_is_not_in_its_own_way() {
    let mut nodes = [node("worker1", 4 * GIB), node("worker2", 4 * GIB)];
    for node in &mut nodes {
        node.labels.insert("zone".to_owned(), "a".to_owned());
    }
    let mut fleet = fleet(&nodes);
    let demand = demand(&[("app", "db")], apart("db", "zone"));
    let (machine, source) = (id(1), name("worker1"));
    fleet.hold(&machine, &demand, &source, false);
    let ask = Ask {
        source: Some(&source),
        ..ask(&machine, &demand)
    };
    assert_eq!(fleet.choose(ask), Some(name("worker2")));
    assert_eq!(chosen(&mut fleet, 2, &demand), None);
}

#[test]
fn the_first_of_a_crowd_may_go_anywhere_and_the_others_follow() {
    let nodes = [node("worker1", 4 * GIB), node("worker2", 8 * GIB)];
    let mut fleet = fleet(&nodes);
    let near = |app: &str| {
        json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
            "labelSelector": {"matchExpressions": [
                {"key": "app", "operator": "In", "values": [app]},
            ]},
            "topologyKey": "kubernetes.io/hostname",
        }]}}})
    };
    let together = demand(&[("app", "web")], near("web"));
    assert_eq!(chosen(&mut fleet, 1, &together).as_deref(), Some("worker2"));
    fleet.hold(&id(1), &together, &name("worker1"), false);
    assert_eq!(chosen(&mut fleet, 2, &together).as_deref(), Some("worker1"));
    let follower = demand(&[("app", "cache")], near("db"));
    assert_eq!(
        summary(&mut fleet, 2, &follower),
        "0/2 nodes are available: 2 node(s) didn't match pod affinity rules."
    );
}

#[test]
fn machines_are_spread_no_less_evenly_than_asked() {
    let mut nodes = [
        node("worker1", 8 * GIB),
        node("worker2", 8 * GIB),
        node("worker3", 64 * GIB),
    ];
    nodes[2].labels.clear();
    let mut fleet = fleet(&nodes);
    let spread = |when: &str| {
        json!({"topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": {"app": "web"}},
        }]})
    };
    let even = demand(&[("app", "web")], spread("DoNotSchedule"));
    fleet.hold(&id(1), &even, &name("worker1"), false);
    assert_eq!(chosen(&mut fleet, 2, &even).as_deref(), Some("worker2"));
    assert_eq!(
        summary(&mut fleet, 2, &even),
        "1/3 nodes are available: 1 node(s) didn't match pod topology spread constraints, \
         1 node(s) didn't match pod topology spread constraints (missing required label)."
    );
    let loose = demand(&[("app", "web")], spread("ScheduleAnyway"));
    fleet.node_remove(&name("worker2"));
    fleet.node_remove(&name("worker3"));
    assert_eq!(chosen(&mut fleet, 2, &loose).as_deref(), Some("worker1"));
}

#[test]
fn preferences_decide_between_nodes_that_would_do() {
    let mut nodes = [
        node("worker1", 4 * GIB),
        node("worker2", 4 * GIB),
        node("worker3", 4 * GIB),
    ];
    nodes[1].labels.insert("disk".to_owned(), "fast".to_owned());
    nodes[0].taints.push(Taint {
        key: "noisy".into(),
        effect: "PreferNoSchedule".into(),
        ..Taint::default()
    });
    let mut fleet = fleet(&nodes);
    let plain = demand(&[], json!({}));
    assert_eq!(chosen(&mut fleet, 1, &plain).as_deref(), Some("worker2"));
    let slow = json!({"affinity": {"nodeAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 10, "preference": {
            "matchExpressions": [{"key": "disk", "operator": "DoesNotExist"}],
        }}],
    }}});
    assert_eq!(
        chosen(&mut fleet, 1, &demand(&[], slow)).as_deref(),
        Some("worker3")
    );
    let away = json!({"affinity": {"podAntiAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": {
            "labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname",
        }}],
    }}});
    fleet.hold(
        &id(9),
        &demand(&[("app", "web")], json!({})),
        &name("worker2"),
        false,
    );
    assert_eq!(
        chosen(&mut fleet, 1, &demand(&[], away)).as_deref(),
        Some("worker3")
    );
    // A node that is about to be emptied is the last resort.
    for at in [1, 2] {
        nodes[at].leaving = true;
        fleet.node_set(nodes[at].clone());
    }
    assert_eq!(chosen(&mut fleet, 1, &plain).as_deref(), Some("worker1"));
}

#[test]
fn required_node_affinity_speaks_of_labels_and_names() {
    let mut nodes = [node("worker1", 4 * GIB), node("worker2", 4 * GIB)];
    nodes[1].labels.insert("cores".to_owned(), "64".to_owned());
    let mut fleet = fleet(&nodes);
    let required = |term: Value| {
        demand(
            &[],
            json!({"affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]},
            }}}),
        )
    };
    let large = json!({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["32"]}]});
    assert_eq!(
        chosen(&mut fleet, 1, &required(large)).as_deref(),
        Some("worker2")
    );
    let named = json!({"matchFields": [
        {"key": "metadata.name", "operator": "NotIn", "values": ["worker2"]},
    ]});
    assert_eq!(
        chosen(&mut fleet, 1, &required(named)).as_deref(),
        Some("worker1")
    );
    assert_eq!(chosen(&mut fleet, 1, &required(json!({}))), None);
}

/// Whatever comes, goes and changes, the counts are those of a fleet that is made anew.
/// Demands with rules and without, for more and less room, some of it in huge pages.
fn varied() -> Vec<Demand> {
    let apps = ["a", "b", "c"];
    let mut demands: Vec<Demand> = apps
        .iter()
        .flat_map(|app| {
            let rules = [
                json!({}),
                apart(app, "zone"),
                apart("a", "kubernetes.io/hostname"),
            ];
            rules.map(|rule| demand(&[("app", app)], rule))
        })
        .collect();
    for (demand, factor) in demands.iter_mut().zip(0..) {
        demand.room.memory.0 += factor << 26;
        if factor % 2 == 0 {
            demand.room.hugepages = Hugepages::of(PageSize::Mi2, Bytes::mib(64 << (factor % 3)));
        }
    }
    demands
}

#[test]
fn a_fleet_that_changed_answers_as_one_that_is_made_anew() {
    let mut random = 7_u64;
    let mut next = move |below: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let demands = varied();
    let mut nodes: Vec<Candidate> = (0..6)
        .map(|at| Candidate {
            hugepages: Hugepages::of(PageSize::Mi2, Bytes::mib(128 * at)),
            ..node(&format!("worker{at}"), 4 * GIB)
        })
        .collect();
    let mut fleet = fleet(&nodes);
    let mut held: BTreeMap<(u32, String), (usize, Held)> = BTreeMap::new();
    for step in 0..3000 {
        let (machine, at) = (u32::try_from(next(12)).unwrap(), next(6));
        let on = format!("worker{at}");
        match next(10) {
            0 => {
                let node = &mut nodes[usize::try_from(at).unwrap()];
                node.labels.insert("zone".to_owned(), next(3).to_string());
                node.cordoned = next(4) == 0;
                fleet.node_set(node.clone());
            }
            1..=4 => {
                held.remove(&(machine, on.clone()));
                fleet.release(&id(machine), &name(&on));
            }
            _ => {
                let wish = usize::try_from(next(9)).unwrap();
                let inbound = next(2) == 0;
                for ((other, _), (demand, _)) in &mut held {
                    if *other == machine {
                        *demand = wish;
                    }
                }
                // What was booked may be what another asks for by now.
                let room = demands[usize::try_from(next(9)).unwrap()].room;
                let booked = Held { room, inbound };
                held.insert((machine, on.clone()), (wish, booked));
                fleet.hold_as(&id(machine), &demands[wish], &name(&on), booked);
            }
        }
        if step % 10 == 0 {
            let mut anew = self::fleet(&nodes);
            for ((machine, on), (wish, booked)) in &held {
                anew.hold_as(&id(*machine), &demands[*wish], &name(on), *booked);
            }
            for demand in &demands {
                let asked = id(machine);
                let (old, new) = (
                    fleet.place(ask(&asked, demand)),
                    anew.place(ask(&asked, demand)),
                );
                assert_eq!(old, new, "after {step}");
            }
        }
    }
}
