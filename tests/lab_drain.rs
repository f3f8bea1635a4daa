//! Many machines at once: in opposite directions, out of a node within the limits, and those
//! that stay where they are and say why.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use godwit_testkit::kubectl::Release;
use jiff::Timestamp;
use serde_json::Value;

use crate::lab_env::{Env, Machine, maintenance, migration, wait};
use crate::lab_suite::say;

/// Machines that leave a node together.
const MANY: u8 = 10;
/// Last byte of the first one's address.
const FIRST: u8 = 100;
const OUTBOUND_MAX: usize = 2;
const INBOUND_MAX: usize = 2;
/// A migration in one of these has passed the queue and not ended.
const UNDER_WAY: [&str; 4] = ["Scheduled", "PreparingTarget", "TargetReady", "Running"];

/// Two machines change places at the same time.
pub(crate) fn opposite_directions(env: &Env) -> Result<()> {
    let machines = [Machine::small("left", 80), Machine::small("right", 81)];
    env.only(Some("worker1"))?;
    env.run(&machines[..1])?;
    env.only(Some("worker2"))?;
    env.run(&machines[1..])?;
    env.only(None)?;
    let boots = [env.ask(80)?.boot_id, env.ask(81)?.boot_id];
    for round in 1..=3 {
        let places = [env.node_of("left")?, env.node_of("right")?];
        let jobs = [format!("left-{round}"), format!("right-{round}")];
        env.apply(&[
            migration(&jobs[0], "left", Some(&places[1])),
            migration(&jobs[1], "right", Some(&places[0])),
        ])?;
        let moves = [moved(env, &jobs[0])?, moved(env, &jobs[1])?];
        let now = [env.node_of("left")?, env.node_of("right")?];
        ensure!(now[0] == places[1] && now[1] == places[0], "{now:?}");
        let [one, other] = &moves;
        let together = one.start < other.end && other.start < one.end;
        ensure!(together, "one after the other: {moves:?}");
    }
    let now = [env.ask(80)?.boot_id, env.ask(81)?.boot_id];
    ensure!(now == boots, "a guest booted again");
    Ok(())
}

/// When a migration began to prepare its target, and when it had succeeded.
fn moved(env: &Env, job: &str) -> Result<Range<Timestamp>> {
    env.succeeded(job)?;
    let history = env.json(&format!("migrationhistory/{job}"))?;
    let steps = history["transitions"].as_array().context("no steps")?;
    let at = |state: &str| -> Result<Timestamp> {
        let step = steps.iter().find(|step| step["to"] == state);
        let at = step.and_then(|step| step["time"].as_str());
        Ok(at
            .with_context(|| format!("no {state} in {history}"))?
            .parse()?)
    };
    Ok(at("Preparing")?..at("Succeeded")?)
}

/// Ten machines leave a node for maintenance, no more at once than allowed, none restarted.
pub(crate) fn ten_leave(env: &Env) -> Result<()> {
    let machines: Vec<Machine> = (0..MANY)
        .map(|n| Machine::small(&format!("many-{n}"), FIRST + n))
        .collect();
    env.only(Some("worker1"))?;
    env.run(&machines)?;
    env.only(None)?;
    let before = many(env, &machines)?;
    ensure!(before.iter().all(|one| one.node == "worker1"), "{before:?}");
    let watch = env.watch(
        Release::Newest,
        "get vmim -w -o 'jsonpath={.metadata.name} {.spec.vmiName} {.status.phase}{\"\\n\"}'",
    )?;
    env.apply(&[maintenance("empty-worker1", "worker1")])?;
    let done = wait("the node to be empty", || {
        let maintenance = env.json("nodemaintenances.kubevirt.io/empty-worker1")?;
        let done = maintenance["status"]["phase"] == "Succeeded";
        Ok(done.then_some(maintenance))
    })?;
    ensure!(done["status"]["drainProgress"] == 100, "{done:#}");
    // An empty list is left out.
    ensure!(done["status"]["pendingPods"].is_null(), "{done:#}");
    let after = many(env, &machines)?;
    for (before, after) in before.iter().zip(&after) {
        ensure!(after.node != "worker1", "{after:?}");
        ensure!(after.uid == before.uid, "{before:?} became {after:?}");
        ensure!(
            after.boot == before.boot,
            "{before:?} booted again: {after:?}"
        );
        ensure!(
            after.counter > before.counter,
            "{before:?} became {after:?}"
        );
    }
    started_once(env, &machines)?;
    wait("the migrations' end", || {
        let ended = env.kubectl("get vmim -o 'jsonpath={.items[*].status.phase}'")?;
        let ended = ended.split(' ').all(|phase| phase == "Succeeded");
        Ok(ended.then_some(()))
    })?;
    within_limits(env, &watch.lines()?)?;
    env.kubectl("delete nodemaintenances.kubevirt.io/empty-worker1 --timeout=60s")?;
    let back = many(env, &machines)?;
    ensure!(back.iter().all(|one| one.node != "worker1"), "{back:?}");
    Ok(())
}

/// What must not change when a machine moves, and what must.
#[derive(Debug)]
struct Seen {
    uid: String,
    node: String,
    boot: [u8; 16],
    counter: u64,
}

fn many(env: &Env, machines: &[Machine]) -> Result<Vec<Seen>> {
    let list = env.json("vmi")?;
    let items = list["items"].as_array().context("no list")?;
    let seen = |machine: &Machine| {
        let found = items
            .iter()
            .find(|item| item["metadata"]["name"] == machine.name.as_str());
        let instance = found.with_context(|| format!("{} is not there", machine.name))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let guest = env.ask(machine.last)?;
        Ok(Seen {
            uid: text(&instance["metadata"]["uid"]),
            node: text(&instance["status"]["nodeName"]),
            boot: guest.boot_id,
            counter: guest.counter,
        })
    };
    machines.iter().map(seen).collect()
}

/// No machine was started by a host a second time.
fn started_once(env: &Env, machines: &[Machine]) -> Result<()> {
    let events = env.json("events")?;
    for machine in machines {
        let items = events["items"].as_array().context("no events")?;
        let starts: Vec<&Value> = items
            .iter()
            .filter(|event| event["involvedObject"]["name"] == machine.name.as_str())
            .filter(|event| event["reason"] == "Started")
            .filter(|event| event["involvedObject"]["kind"] == "VirtualMachineInstance")
            .collect();
        ensure!(starts.len() == 1, "{}: {starts:#?}", machine.name);
        let count = starts[0]["count"].as_u64().unwrap_or(1);
        ensure!(count == 1, "{}: started {count} times", machine.name);
    }
    Ok(())
}

/// Replays what a watch saw: how many migrations were under way at any moment.
fn within_limits(env: &Env, lines: &[String]) -> Result<()> {
    let jobs = env.json("vmim")?;
    let targets: BTreeMap<String, String> = jobs["items"]
        .as_array()
        .context("no list")?
        .iter()
        .map(|job| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let target = text(&job["status"]["migrationState"]["targetNode"]);
            (text(&job["metadata"]["name"]), target)
        })
        .collect();
    let mut under_way: BTreeSet<&str> = BTreeSet::new();
    let mut machines = BTreeSet::new();
    let (mut most, mut most_inbound) = (0, 0);
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let [job, machine, phase] = words[..] else {
            continue;
        };
        ensure!(phase != "Failed", "{line}");
        if UNDER_WAY.contains(&phase) {
            under_way.insert(job);
            machines.insert(machine);
        } else {
            under_way.remove(job);
        }
        let mut inbound: BTreeMap<&str, usize> = BTreeMap::new();
        for job in &under_way {
            let target = targets.get(*job).with_context(|| format!("no {job}"))?;
            *inbound.entry(target).or_default() += 1;
        }
        most = most.max(under_way.len());
        most_inbound = most_inbound.max(inbound.values().copied().max().unwrap_or(0));
    }
    say(&format!(
        "{} machines left; at most {most} at once, at most {most_inbound} towards a node",
        machines.len()
    ));
    ensure!(machines.len() == usize::from(MANY), "{machines:?}");
    // All of them leave one node, so the tightest limit is the one on what leaves it.
    ensure!(most <= OUTBOUND_MAX, "{most} at once");
    ensure!(most_inbound <= INBOUND_MAX, "{most_inbound} towards a node");
    Ok(())
}

/// `kubectl drain` empties a node as it does in a cluster of pods, whichever kubectl it is; a machine
/// that can't move holds it up.
pub(crate) fn by_kubectl(env: &Env) -> Result<()> {
    let local = Machine {
        example: "vm-local-disk.yaml",
        ..Machine::small("local-disk", 91)
    };
    let machines = [Machine::small("one", 92), Machine::small("two", 93)];
    env.only(Some("worker1"))?;
    env.run(&machines)?;
    env.only(None)?;
    for release in Release::ENDS {
        let from = env.node_of("one")?;
        let before = many(env, &machines)?;
        let drain = format!(
            "kubectl drain {from} --ignore-daemonsets --delete-emptydir-data --timeout=90s 2>&1"
        );
        let said = env.ok(release, &drain)?;
        let after = many(env, &machines)?;
        for (before, after) in before.iter().zip(&after) {
            ensure!(after.node != from, "{after:?} after:\n{said}");
            ensure!(
                after.boot == before.boot,
                "{before:?} booted again: {after:?}"
            );
            let moved = before.node == from;
            ensure!(
                !moved || said.contains("Eviction triggered evacuation of VMI"),
                "{said}"
            );
        }
        let pods = format!("get pods -A -o name --field-selector=spec.nodeName={from}");
        ensure!(env.kubectl(&pods)?.is_empty(), "pods are left on {from}");
        env.kubectl(&format!("uncordon {from}"))?;
    }
    started_once(env, &machines)?;
    env.only(Some("worker1"))?;
    env.run(std::slice::from_ref(&local))?;
    env.only(None)?;
    let held = "kubectl drain worker1 --ignore-daemonsets --delete-emptydir-data --timeout=12s";
    let said = env.shell(Release::Newest, held)?;
    ensure!(!said.ok, "it ended well: {}", said.stdout);
    let text = "VMI local-disk is configured with an eviction strategy but is not live-migratable";
    ensure!(said.stderr.contains(text), "{}", said.stderr);
    ensure!(env.node_of("local-disk")? == "worker1", "it was moved");
    env.kubectl("uncordon worker1")?;
    Ok(())
}

/// A machine that may not move and one that can't stay, say why, and let the others go.
pub(crate) fn some_stay(env: &Env) -> Result<()> {
    let like = |example, name: &str, last| Machine {
        example,
        ..Machine::small(name, last)
    };
    let machines = [
        like("vm-stays.yaml", "stays", 90),
        like("vm-local-disk.yaml", "local-disk", 91),
        Machine::small("leaves", 92),
    ];
    env.only(Some("worker1"))?;
    env.run(&machines)?;
    env.only(None)?;
    let before = many(env, &machines)?;
    env.apply(&[maintenance("empty-worker1", "worker1")])?;
    wait("the third to leave", || {
        Ok((env.node_of("leaves")? != "worker1").then_some(()))
    })?;
    let told = wait("the others to be all that is left", || {
        let told = env.json("nodemaintenances.kubevirt.io/empty-worker1")?;
        let pending = told["status"]["pendingPods"].as_array().map_or(0, Vec::len);
        Ok((pending == 2).then_some(told))
    })?;
    ensure!(told["status"]["phase"] == "Running", "{told:#}");
    let lasting = [
        ("stays", "EvictionStrategyNone", "evictionStrategy None"),
        (
            "local-disk",
            "DisksNotLiveMigratable",
            "cannot migrate VMI with non-shared HostDisk",
        ),
    ];
    for (name, reason, message) in lasting {
        says_why(env, &told, (name, reason, message))?;
    }
    let after = many(env, &machines)?;
    for (before, after) in before.iter().zip(&after).take(2) {
        ensure!(after.node == "worker1", "{after:?} was moved");
        ensure!(after.boot == before.boot, "{after:?} booted again");
    }
    let made = env.kubectl("get vmim -o 'jsonpath={.items[*].spec.vmiName}'")?;
    ensure!(made == "leaves", "migrations of {made}");
    env.kubectl("delete nodemaintenances.kubevirt.io/empty-worker1 --timeout=60s")?;
    for (name, ..) in lasting {
        let instance = env.json(&format!("vmi/{name}"))?;
        let blocked = condition(&instance, "EvictionBlocked");
        ensure!(blocked.is_none(), "{blocked:?} after the maintenance");
    }
    Ok(())
}

/// The maintenance's status, the instance's condition and an event on each name the cause.
fn says_why(env: &Env, told: &Value, (name, reason, message): (&str, &str, &str)) -> Result<()> {
    let blockers = told["status"]["blockers"]
        .as_array()
        .context("no blockers")?;
    let blocker = blockers.iter().find(|blocker| blocker["name"] == name);
    let blocker = blocker.with_context(|| format!("{name} not in {told:#}"))?;
    let says = |value: &Value| value.as_str().is_some_and(|text| text.contains(message));
    ensure!(
        blocker["reason"] == reason && says(&blocker["message"]),
        "{blocker:#}"
    );
    ensure!(
        blocker["remedy"]
            .as_str()
            .is_some_and(|text| !text.is_empty()),
        "{blocker:#}"
    );
    ensure!(says(&told["status"]["lastError"]), "{told:#}");
    let instance = env.json(&format!("vmi/{name}"))?;
    let condition = condition(&instance, "EvictionBlocked");
    let condition = condition.with_context(|| format!("no condition in {instance:#}"))?;
    ensure!(condition["status"] == "True", "{condition:#}");
    ensure!(
        condition["reason"] == reason && says(&condition["message"]),
        "{condition:#}"
    );
    let events = env.json("events")?;
    let items = events["items"].as_array().context("no events")?;
    for kind in ["VirtualMachineInstance", "NodeMaintenance"] {
        let has = items.iter().any(|event| {
            let about = &event["involvedObject"];
            let named = about["name"] == name || about["name"] == "empty-worker1";
            about["kind"] == kind && named && event["type"] == "Warning" && says(&event["message"])
        });
        ensure!(has, "no event on a {kind} about {name}");
    }
    Ok(())
}

fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions
        .iter()
        .find(|condition| condition["type"] == name)
}
