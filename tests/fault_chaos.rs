//! What happens to many machines at once: their host's agent dies, the ledger dies under twenty
//! migrations, and a node is drained while processes die at random.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use godwit_testkit::api::Method;
use godwit_testkit::lab::Process;
use godwit_testkit::postgres::Postgres;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::fault_env::{Faults, INSTANCES, MIGRATIONS};
use crate::fault_guest::Guest;
use crate::lab_suite::say;

/// Machines on a host whose agent dies.
const MACHINES: u8 = 10;
/// Silences are compared over so much time before and after.
const WINDOW: Duration = Duration::from_secs(5);
/// How often a process dies in the chaos.
const KILL_EVERY: Duration = Duration::from_secs(3);
/// Migrations under way when the ledger dies, two of each machine.
const ROUNDS: usize = 2;
/// Nodes.
const NODES: &str = "/api/v1/nodes";
/// Maintenances.
const MAINTENANCES: &str = "/apis/nodemaintenance.medik8s.io/v1beta1/nodemaintenances";

/// Lets machines start and go to these workers alone.
fn only(env: &Faults, open: &[&str]) -> Result<()> {
    for worker in ["worker1", "worker2", "worker3"] {
        let change = json!({ "spec": { "unschedulable": !open.contains(&worker) } });
        let path = format!("{NODES}/{worker}");
        env.ask(&Method::PATCH, &path, Some(&change))?.object()?;
    }
    Ok(())
}

fn pids(env: &Faults, worker: &str) -> Vec<i32> {
    let mut pids: Vec<i32> = env.qemus(worker).iter().map(|qemu| qemu.pid).collect();
    pids.sort_unstable();
    pids
}

/// `kill -9` of an agent with ten machines: the same processes run on, no guest notices, and the
/// new agent has them all.
pub(crate) fn agent_dies(env: &Faults) -> Result<()> {
    only(env, &["worker1"])?;
    let guests = Guest::many(env, "kept", (90, MACHINES))?;
    only(env, &["worker1", "worker2", "worker3"])?;
    let before = pids(env, "worker1");
    ensure!(before.len() == usize::from(MACHINES), "{before:?}");
    std::thread::sleep(WINDOW); // measured beside what follows
    let lost: u64 = guests.iter().map(Guest::missing).sum();
    let killed = Instant::now();
    let service = env.lab().service("worker1")?;
    let mark = usize::try_from(std::fs::metadata(service.log())?.len())?;
    let adopted = env.without("worker1", || {
        let started = Instant::now();
        service.start()?;
        env.until("the agent to be ready", || {
            let log = std::fs::read(service.log())?;
            let log = String::from_utf8_lossy(&log[mark..]).into_owned();
            let all = log.matches("machine adopted").count() == usize::from(MACHINES);
            Ok(all.then(|| started.elapsed()))
        })
    })?;
    std::thread::sleep(WINDOW); // measured beside what was before
    ensure!(pids(env, "worker1") == before, "other processes run");
    let missing: u64 = guests.iter().map(Guest::missing).sum();
    let gap = |from, to| {
        guests
            .iter()
            .map(move |guest| guest.longest_gap(from, to))
            .max()
    };
    let quiet = gap(killed - WINDOW, killed).unwrap_or_default();
    let noisy = gap(killed, killed + WINDOW).unwrap_or_default();
    say(&format!(
        "agent killed: {MACHINES} machines adopted {} ms after its start, the same processes; \
         longest gap of a heartbeat each 10 ms {} ms, {} ms in the 5 s before; lost {}",
        adopted.as_millis(),
        noisy.as_millis(),
        quiet.as_millis(),
        missing - lost,
    ));
    ensure!(missing == lost, "{} heartbeats were lost", missing - lost);
    env.ready()?;
    guests.iter().try_for_each(Guest::judge)?;
    guests.iter().try_for_each(|guest| guest.remove_only(env))?;
    env.audit(0)
}

/// `kill -9` of Postgres and its restart, in the middle of twenty migrations: all end, each once.
pub(crate) fn ledger_dies(env: &Faults) -> Result<()> {
    let guests = Guest::many(env, "moved", (110, MACHINES))?;
    env.configure(&json!({
        "parallelMigrationsPerCluster": 10, "parallelOutboundMigrationsPerNode": 5,
    }))?;
    let boots: Vec<_> = guests.iter().map(Guest::boots).collect();
    let dir = env.lab().options().dir.join("pg");
    let mut wrong = vec![];
    let mut succeeded = 0;
    for round in 0..ROUNDS {
        env.ready()?;
        let jobs: Vec<String> = guests
            .iter()
            .map(|guest| format!("{}-{round}", guest.name))
            .collect();
        for (job, guest) in jobs.iter().zip(&guests) {
            env.migrate_anywhere(job, &guest.name)?;
        }
        env.until("a copy", || {
            let list = env.get(MIGRATIONS)?.unwrap_or_default();
            let phases = list["items"].as_array().cloned().unwrap_or_default();
            let running = |object: &Value| object["status"]["phase"] == "Running";
            Ok(phases.iter().any(running).then_some(()))
        })?;
        Postgres::kill(&dir)?;
        wrong.extend(outage_answers(env, round)?);
        Postgres::start_detached(&dir)?;
        for job in &jobs {
            let (phase, object) = env.until("the end", || env.ended(job))?;
            // A guest that stands still is not kept waiting for the ledger: its copy is cancelled.
            let why = &object["status"]["migrationState"]["failureReason"];
            match phase.as_str() {
                "Succeeded" => succeeded += 1,
                _ => say(&format!("  {job}: {phase}: {why}")),
            }
            ensure!(
                phase == "Succeeded" || why.is_string(),
                "{job}: {}",
                object["status"]
            );
        }
    }
    ensure!(wrong.is_empty(), "wrong answers in the outage: {wrong:?}");
    for (guest, boots) in guests.iter().zip(boots) {
        guest.beats(env)?;
        guest.judge()?;
        ensure!(guest.boots() == boots, "{} booted again", guest.name);
    }
    let done = ROUNDS * guests.len();
    say(&format!(
        "ledger killed twice: {done} migrations under way or waiting, all ended, {succeeded} well; \
         every machine runs once, none booted again"
    ));
    ensure!(
        2 * succeeded >= done,
        "only {succeeded} of {done} went well"
    );
    guests.iter().try_for_each(|guest| guest.remove_only(env))?;
    env.audit(0)
}

/// While there is no ledger: what is written is refused with 503 and Retry-After. Answers what
/// was said instead.
fn outage_answers(env: &Faults, round: usize) -> Result<Vec<String>> {
    let mut wrong = vec![];
    for number in 0..5 {
        let name = format!("never-{round}-{number}");
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name },
        });
        let path = "/api/v1/namespaces/default/configmaps";
        let answer = env.call(Method::POST, path, Some(&object))?;
        if answer.status != 503 || answer.retry_after.is_none() {
            wrong.push(format!(
                "{} {:?} {}",
                answer.status, answer.retry_after, answer.body
            ));
        }
    }
    Ok(wrong)
}

/// Drains, one after another, while a random process dies every three seconds: in the end every
/// machine runs exactly once, and none on the drained node.
pub(crate) fn drain_goes_on(env: &Faults, lasts: Duration) -> Result<()> {
    let guests = Guest::many(env, "drained", (130, MACHINES))?;
    let boots: Vec<_> = guests.iter().map(Guest::boots).collect();
    let seed = rand::rng().random();
    say(&format!("chaos: seed {seed}"));
    let mut chaos = Chaos {
        rng: rand::rngs::SmallRng::seed_from_u64(seed),
        next: Instant::now() + KILL_EVERY,
        until: Instant::now() + lasts,
        killed: BTreeMap::new(),
    };
    let mut drains = 0;
    let mut node = 0;
    while Instant::now() < chaos.until {
        node = node % 3 + 1;
        drain(env, &mut chaos, node, drains)?;
        drains += 1;
    }
    env.ready()?;
    for (guest, boots) in guests.iter().zip(boots) {
        guest.beats(env)?;
        guest.judge()?;
        ensure!(guest.boots() == boots, "{} booted again", guest.name);
    }
    env.audit(guests.len())?;
    say(&format!(
        "chaos: {drains} drains in {} s, killed {:?}; every machine runs once, none booted again",
        lasts.as_secs(),
        chaos.killed
    ));
    guests.iter().try_for_each(|guest| guest.remove_only(env))?;
    env.audit(0)
}

/// Kills a process now and then.
struct Chaos {
    rng: rand::rngs::SmallRng,
    next: Instant,
    until: Instant,
    killed: BTreeMap<String, usize>,
}

impl Chaos {
    fn strike(&mut self, env: &Faults) -> Result<()> {
        let now = Instant::now();
        if now < self.next || now > self.until {
            return Ok(());
        }
        self.next = now + KILL_EVERY;
        let services = env.lab().services();
        let victim = services.choose(&mut self.rng).context("no services")?;
        if let Some(process) = victim.process() {
            Process::kill(&process)?;
            *self.killed.entry(victim.name.clone()).or_default() += 1;
        }
        Ok(())
    }
}

/// Empties a node, and opens it again.
fn drain(env: &Faults, chaos: &mut Chaos, node: usize, number: usize) -> Result<()> {
    let name = format!("chaos-{number}");
    let worker = format!("worker{node}");
    let object = json!({
        "apiVersion": "nodemaintenance.medik8s.io/v1beta1",
        "kind": "NodeMaintenance",
        "metadata": { "name": name },
        "spec": { "nodeName": worker, "reason": "chaos" },
    });
    env.create(MAINTENANCES, &object)?;
    let began = Instant::now();
    let emptied = env.until_long(&format!("{worker} to be empty"), || {
        chaos.strike(env)?;
        let list = env.get(INSTANCES)?.unwrap_or_default();
        let here = list["items"].as_array().cloned().unwrap_or_default();
        let here = here
            .iter()
            .filter(|vmi| vmi["status"]["nodeName"] == worker.as_str());
        Ok((here.count() == 0 && env.qemus(&worker).is_empty()).then(|| began.elapsed()))
    })?;
    say(&format!(
        "chaos: {worker} empty after {:.1} s",
        emptied.as_secs_f64()
    ));
    env.delete(&format!("{MAINTENANCES}/{name}"))?;
    env.until("the maintenance to be gone", || {
        chaos.strike(env)?;
        Ok(env
            .get(&format!("{MAINTENANCES}/{name}"))?
            .is_none()
            .then_some(()))
    })
}
