//! Random worlds: nodes, machines, hooks and people, a ledger that a service writes to, and a service
//! that dies between any two of its writes, and whose copies see old records.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::affinity::Labels;
use crate::placement::{Ask, Candidate, Demand, Fleet, HostFacts, Hugepages, Leaning, Room};
use crate::{Bytes, MachineId, NodeName};

const NODE_MIB: u64 = 16_384;
const SEEDS: u64 = 120;
/// Ticks in which each world must come to its end.
const TICKS_MAX: i64 = 6_000;

fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |below| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

fn name(at: usize) -> NodeName {
    NodeName::parse(format!("node{at:02}")).expect("a name")
}

#[derive(Clone)]
struct Machine {
    at: NodeName,
    /// Where it is going, and when it is there.
    way: Option<(NodeName, i64)>,
    mib: u64,
    app: String,
}

#[derive(Clone, Default)]
struct Closed {
    ending: bool,
    failed: bool,
}

struct World {
    next: Box<dyn FnMut(u64) -> u64>,
    order: Order,
    nodes: Vec<NodeName>,
    machines: BTreeMap<MachineId, Machine>,
    /// What the ledger has.
    record: Record,
    revision: u64,
    closed: BTreeMap<NodeName, Closed>,
    /// What the hosts have: runs, when they end and how.
    runs: BTreeMap<String, (i64, i32)>,
    /// Answers in the service's memory.
    answers: BTreeMap<String, Heard>,
    calls: BTreeSet<String>,
    closings: BTreeMap<NodeName, usize>,
    silent: BTreeMap<NodeName, i64>,
    moves: usize,
    now: i64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut next = random(seed);
        let count = 3 + usize::try_from(next(6)).expect("small");
        let nodes: Vec<NodeName> = (0..count).map(name).collect();
        let mut machines = BTreeMap::new();
        for number in 0..next(3 * count as u64) {
            let id = MachineId::parse(format!("43f5b34d-94b4-4cda-9a69-{number:012}"));
            let machine = Machine {
                at: nodes[usize::try_from(next(count as u64)).expect("small")].clone(),
                way: None,
                mib: 256 << next(3),
                app: format!("app{}", next(3)),
            };
            machines.insert(id.expect("a uuid"), machine);
        }
        let order = order(&mut next, count);
        Self {
            next: Box::new(next),
            order,
            nodes,
            machines,
            record: Record::default(),
            revision: 0,
            closed: BTreeMap::new(),
            runs: BTreeMap::new(),
            answers: BTreeMap::new(),
            calls: BTreeSet::new(),
            closings: BTreeMap::new(),
            silent: BTreeMap::new(),
            moves: 0,
            now: 1_795_917_394,
        }
    }

    fn chance(&mut self, one_in: u64) -> bool {
        (self.next)(one_in) == 0
    }

    fn domain(&self, node: &NodeName) -> Option<String> {
        let at = self.nodes.iter().position(|known| known == node)?;
        Some((at % 2).to_string())
    }

    fn ready(&self, node: &NodeName) -> bool {
        self.silent.get(node).is_none_or(|until| *until <= self.now)
    }

    fn fleet(&self) -> Fleet {
        let mut fleet = Fleet::default();
        for node in &self.nodes {
            let recorded = self.record.nodes.iter().find(|known| known.name == *node);
            fleet.node_set(Candidate {
                name: node.clone(),
                ready: self.ready(node),
                cordoned: self.closed.contains_key(node),
                leaving: recorded.is_some_and(|known| known.state.is_leaving()),
                taints: vec![],
                labels: Labels::from([("rack".to_owned(), self.domain(node).expect("one"))]),
                memory: Bytes::mib(NODE_MIB),
                cpu_milli: 100_000,
                hugepages: Hugepages::default(),
                facts: HostFacts {
                    machine_types: vec![String::new()],
                    cpu_models: vec![String::new()],
                    ..HostFacts::default()
                },
            });
        }
        for (id, machine) in &self.machines {
            let demand = Demand::of_room(Room {
                memory: Bytes::mib(machine.mib),
                cpu_milli: 100,
                ..Room::default()
            });
            fleet.hold(id, &demand, &machine.at, false);
            if let Some((target, _)) = &machine.way {
                fleet.hold(id, &demand, target, true);
            }
        }
        fleet
    }

    fn facts(&self) -> (BTreeMap<NodeName, NodeFact>, BTreeMap<MachineId, Place>) {
        let nodes = self.nodes.iter().map(|node| {
            let maintenance = match self.closed.get(node) {
                None => Maintenance::None,
                Some(closed) if closed.ending => Maintenance::Ending,
                Some(closed) if closed.failed => Maintenance::Failed("it broke".to_owned()),
                Some(_) if self.machines.values().any(|m| m.at == *node) => Maintenance::Draining,
                Some(_) => Maintenance::Drained,
            };
            let fact = NodeFact {
                selected: true,
                ready: self.ready(node),
                domain: self.domain(node),
                maintenance,
            };
            (node.clone(), fact)
        });
        let machines = self.machines.iter().map(|(id, machine)| {
            let place = Place {
                name: id.to_string(),
                node: Some(machine.at.clone()),
                moves: true,
                migrating: machine.way.is_some(),
                mover: mover(machine),
            };
            (id.clone(), place)
        });
        (nodes.collect(), machines.collect())
    }

    /// What the service hears of the hooks that are recorded as running.
    fn heard(&mut self) -> BTreeMap<String, Heard> {
        let mut heard = self.answers.clone();
        let record = self.record.clone();
        for node in &record.nodes {
            for run in node.hooks.iter().filter(|run| run.exit_code.is_none()) {
                let hook = self.hook(run);
                if hook.webhook.is_some() {
                    continue;
                }
                let answer = if !self.ready(&node.name) {
                    Heard::Silent("no answer".to_owned())
                } else {
                    self.ask(&run.run)
                };
                heard.insert(call_key(run), answer);
            }
        }
        heard
    }

    /// A host that is asked for a run starts it once.
    fn ask(&mut self, run: &str) -> Heard {
        if !self.runs.contains_key(run) {
            let code = match (self.next)(20) {
                0 => 70,
                1 => 1,
                _ => 0,
            };
            let end = self.now + i64::try_from((self.next)(20)).expect("small");
            self.runs.insert(run.to_owned(), (end, code));
        }
        match self.runs[run] {
            (end, code) if end <= self.now => Heard::Ended {
                code,
                output: String::new(),
            },
            _ => Heard::Running,
        }
    }

    fn hook(&self, run: &HookRecord) -> Hook {
        let hooks = match run.stage {
            Stage::BeforeDrain => &self.order.hooks.before_drain,
            Stage::Drained => &self.order.hooks.drained,
            Stage::AfterReopen => &self.order.hooks.after_reopen,
        };
        hooks
            .iter()
            .find(|hook| hook.name == run.name)
            .expect("a hook")
            .clone()
    }

    /// One round of the service, which may die on its way.
    fn round(&mut self) {
        let heard = self.heard();
        let (nodes, machines) = self.facts();
        let mut fleet = self.fleet();
        let facts = Facts {
            uid: "uid",
            now: Moment(self.now),
            nodes: &nodes,
            machines: &machines,
            budgets: &self.order.budgets,
            heard: &heard,
        };
        let seen = needs_fleet(&self.order, &self.record, facts);
        let step = decide(&self.order, &self.record, facts, seen.then_some(&mut fleet));
        let again = decide(&self.order, &self.record, facts, seen.then_some(&mut fleet));
        assert_eq!(step, again, "asked again it answers the same");
        if step.record == self.record && step.actions.is_empty() {
            return;
        }
        if self.chance(6) {
            self.dies();
            return;
        }
        let seen = self.revision;
        if self.chance(6) {
            // A copy of the service decided by the same record, and was first.
            self.write(seen, &step);
        }
        let written = self.write(seen, &step);
        if self.chance(6) {
            self.dies();
        } else if written {
            self.call(&step);
        }
    }

    fn dies(&mut self) {
        self.answers.clear();
    }

    /// Writes a step, unless the record is not what it was decided by.
    fn write(&mut self, seen: u64, step: &Step) -> bool {
        if self.revision != seen {
            return false;
        }
        self.revision += 1;
        self.record = step.record.clone();
        for action in &step.actions {
            match action {
                Action::Close(node) => self.close(node),
                Action::Reopen(node) => {
                    self.closed.get_mut(node).expect("it is closed").ending = true;
                }
                Action::FailBack { machine, node } => {
                    let end = self.now + 5;
                    let machine = self.machines.get_mut(machine).expect("it is there");
                    assert!(machine.way.is_none() && machine.at != *node);
                    machine.way = Some((node.clone(), end));
                    self.budgets_hold();
                }
                Action::Call(_) => {}
            }
        }
        true
    }

    fn close(&mut self, node: &NodeName) {
        assert!(!self.order.paused, "closed while paused");
        assert!(!self.order.abort, "closed after the abort");
        assert_eq!(
            self.order.frozen_until(Moment(self.now)),
            None,
            "closed in a freeze"
        );
        assert!(!self.closed.contains_key(node), "closed twice");
        self.closed.insert(node.clone(), Closed::default());
        *self.closings.entry(node.clone()).or_default() += 1;
        let most = self
            .order
            .max_unavailable
            .of(self.nodes.len())
            .expect("a share");
        let silent = self.nodes.iter().filter(|node| !self.ready(node));
        let out: BTreeSet<&NodeName> = self.closed.keys().chain(silent).collect();
        assert!(out.len() <= most, "{out:?} are out");
        if !self.order.failure_domain.is_empty() {
            let domains: BTreeSet<_> = out.iter().map(|node| self.domain(node)).collect();
            assert_eq!(domains.len(), 1, "{out:?} are out");
        }
        if self.order.spare_node {
            let open = self.nodes.len() - out.len();
            let needed: u64 = self.machines.values().map(|machine| machine.mib).sum();
            let dead = |machine: &&Machine| !self.ready(&machine.at);
            let lost: u64 = self.machines.values().filter(dead).map(|m| m.mib).sum();
            let room = (open as u64).saturating_sub(1) * NODE_MIB;
            assert!(
                needed - lost <= room,
                "{needed} MiB on {open} nodes but one"
            );
        }
        let record = self.record.nodes.iter().find(|known| known.name == *node);
        let record = record.expect("recorded");
        let approved = |name: &str| self.order.approved.iter().any(|known| known == name);
        match self.order.approval {
            Approval::None => {}
            Approval::Node | Approval::Wave => {
                assert!(
                    approved(node.as_str()) || approved(&record.wave),
                    "not approved"
                );
            }
        }
    }

    fn call(&mut self, step: &Step) {
        for action in &step.actions {
            let Action::Call(call) = action else {
                continue;
            };
            assert!(
                self.calls.insert(call.key.clone()),
                "{} was called twice",
                call.key
            );
            let answer = match (self.next)(4) {
                0 => Heard::Silent("503".to_owned()),
                _ => Heard::Ended {
                    code: 0,
                    output: String::new(),
                },
            };
            self.answers.insert(call.key.clone(), answer);
        }
    }

    /// Everybody else: drains, hosts, and people.
    fn others(&mut self) {
        self.now += 1;
        let now = self.now;
        for machine in self.machines.values_mut() {
            if let Some((target, end)) = machine.way.clone()
                && end <= now
            {
                machine.at = target;
                machine.way = None;
            }
        }
        self.drain();
        let ended: Vec<NodeName> = self
            .closed
            .iter()
            .filter(|(_, c)| c.ending)
            .map(|(n, _)| n.clone())
            .collect();
        for node in ended {
            if self.chance(3) {
                self.closed.remove(&node);
            }
        }
        if self.chance(40) {
            self.people();
        }
    }

    /// Machines on closed nodes leave, as their budgets let them.
    fn drain(&mut self) {
        let leaving: Vec<MachineId> = self
            .machines
            .iter()
            .filter(|(_, m)| m.way.is_none() && self.closed.get(&m.at).is_some_and(|c| !c.ending))
            .map(|(id, _)| id.clone())
            .collect();
        for id in leaving {
            let moving: Vec<Mover> = self
                .machines
                .values()
                .filter(|m| m.way.is_some())
                .map(mover)
                .collect();
            let machine = self.machines[&id].clone();
            if over_budget(&self.order.budgets, &moving, &mover(&machine)).is_some() {
                continue;
            }
            let demand = Demand::of_room(Room {
                memory: Bytes::mib(machine.mib),
                cpu_milli: 100,
                ..Room::default()
            });
            let ask = Ask {
                machine: &id,
                demand: &demand,
                source: Some(&machine.at),
                home: None,
                inbound_max: 0,
                leaning: Leaning::default(),
            };
            if let Some(target) = self.fleet().choose(ask) {
                self.moves += 1;
                let end = self.now + 1 + i64::try_from((self.next)(8)).expect("small");
                self.machines.get_mut(&id).expect("it is there").way = Some((target, end));
            }
            self.budgets_hold();
        }
    }

    fn budgets_hold(&self) {
        for budget in &self.order.budgets {
            let all = self.machines.values().filter(|m| m.way.is_some());
            let group = all
                .map(mover)
                .filter(|one| budget.has(&one.namespace, &one.labels));
            assert!(group.count() <= budget.max_moving, "{budget:?}");
        }
    }

    fn people(&mut self) {
        let what = (self.next)(12);
        let at = usize::try_from((self.next)(self.nodes.len() as u64)).expect("small");
        let node = self.nodes[at].clone();
        match what {
            0..=2 => self.order.paused = !self.order.paused,
            3 if self.chance(4) => self.order.abort = true,
            4 if self.silent.values().all(|until| *until <= self.now) => {
                self.silent.insert(node, self.now + 30);
            }
            5 if self.chance(6) => {
                if let Some(closed) = self.closed.get_mut(&node) {
                    closed.failed = true;
                }
            }
            6 if self.chance(6) => {
                if let Some(closed) = self.closed.get_mut(&node) {
                    closed.ending = true;
                }
            }
            _ => {
                self.order.paused = false;
                let waits = self
                    .record
                    .nodes
                    .iter()
                    .find(|known| known.state == NodeState::AwaitingApproval);
                if let Some(waits) = waits {
                    let approved = match self.order.approval {
                        Approval::Wave => waits.wave.clone(),
                        Approval::None | Approval::Node => waits.name.to_string(),
                    };
                    self.order.approved.push(approved);
                }
                // What failed is seen to.
                let failed = self
                    .record
                    .nodes
                    .iter()
                    .filter(|known| known.state == NodeState::Failed);
                for node in failed {
                    self.closed.remove(&node.name);
                }
            }
        }
        self.revision += 1;
    }

    fn run(&mut self) {
        let end = self.now + TICKS_MAX;
        while !self.record.phase.is_over() {
            assert!(self.now < end, "no end: {:#?}", self.record);
            self.round();
            self.others();
        }
    }
}

fn mover(machine: &Machine) -> Mover {
    Mover {
        namespace: "default".to_owned(),
        labels: Labels::from([("app".to_owned(), machine.app.clone())]),
    }
}

fn order(next: &mut impl FnMut(u64) -> u64, nodes: usize) -> Order {
    let hook = |name: &str, webhook: bool| Hook {
        name: name.to_owned(),
        command: (!webhook).then(|| "update".to_owned()),
        webhook: webhook.then(|| Webhook {
            url: "https://example.org".to_owned(),
            timeout_seconds: Some(10),
        }),
        ..Hook::default()
    };
    let some = |next: &mut dyn FnMut(u64) -> u64| -> Vec<Hook> {
        let hooks = [hook("one", false), hook("two", true), hook("three", false)];
        hooks
            .into_iter()
            .take(usize::try_from(next(4)).expect("small"))
            .collect()
    };
    Order {
        max_unavailable: match next(4) {
            0 => Share::Words("Safe".to_owned()),
            1 => Share::Words("50%".to_owned()),
            _ => Share::Count(1 + usize::try_from(next(nodes as u64)).expect("small")),
        },
        failure_domain: if next(3) == 0 {
            "rack".to_owned()
        } else {
            String::new()
        },
        spare_node: next(3) != 0,
        budgets: vec![Budget {
            name: "app0".to_owned(),
            selector: crate::affinity::LabelSelector {
                match_labels: Labels::from([("app".to_owned(), "app0".to_owned())]),
                match_expressions: vec![],
            },
            max_moving: 1,
            ..Budget::default()
        }],
        approval: [Approval::None, Approval::Node, Approval::Wave]
            [usize::try_from(next(3)).expect("small")],
        hooks: Hooks {
            before_drain: some(next),
            drained: some(next),
            after_reopen: some(next),
        },
        on_failure: if next(2) == 0 {
            OnFailure::Stop
        } else {
            OnFailure::Continue
        },
        deadline_seconds: if next(4) == 0 { 200 } else { 0 },
        fail_back: next(3) == 0,
        freeze_windows: vec![Window {
            from: "2026-11-29T01:57:00Z".to_owned(),
            to: "2026-11-29T01:58:00Z".to_owned(),
            days: vec![],
        }],
        ..Order::default()
    }
}

#[test]
fn whatever_dies_every_node_is_visited_once_or_left_out_with_a_reason() {
    let (mut done, mut other) = (0, 0);
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        world.run();
        for node in &world.record.nodes {
            let closings = world.closings.get(&node.name).copied().unwrap_or_default();
            assert!(
                closings <= 1,
                "seed {seed}: {node:?} was closed {closings} times"
            );
            if node.state == NodeState::Done {
                assert_eq!(closings, 1, "seed {seed}: {node:?}");
                assert!(
                    !world.closed.contains_key(&node.name),
                    "seed {seed}: {node:?}"
                );
                done += 1;
            } else {
                assert!(!node.message.is_empty(), "seed {seed}: {node:?}");
                other += 1;
            }
        }
        assert_eq!(world.record.nodes.len(), world.nodes.len(), "seed {seed}");
    }
    assert!(
        done > 150 && other > 60,
        "{done} done, {other} not: too few to tell"
    );
}

#[test]
fn no_machine_moves_twice_where_one_node_is_empty() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        world.order = Order::default();
        let empty = world.nodes[0].clone();
        for machine in world
            .machines
            .values_mut()
            .filter(|machine| machine.at == empty)
        {
            machine.at = world.nodes[1].clone();
        }
        let end = world.now + TICKS_MAX;
        while !world.record.phase.is_over() {
            assert!(world.now < end, "no end: {:#?}", world.record);
            world.round();
            world.now += 1;
            let now = world.now;
            for machine in world.machines.values_mut() {
                if let Some((target, end)) = machine.way.clone()
                    && end <= now
                {
                    machine.at = target;
                    machine.way = None;
                }
            }
            world.drain();
            world.closed.retain(|_, closed| !closed.ending);
        }
        assert_eq!(
            world.record.phase,
            Phase::Succeeded,
            "seed {seed}: {:#?}",
            world.record
        );
        // Only the first node can be empty at its turn.
        let machines = world.machines.len();
        assert!(
            world.moves <= machines,
            "seed {seed}: {} moves of {machines}",
            world.moves
        );
    }
}
