//! A rolling maintenance of all hosts, with a hook that restarts each host's agent, while the
//! maintenance-service is killed again and again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use godwit_testkit::lab::Process;
use serde_json::{Value, json};

use crate::lab_env::{Env, Machine};
use crate::lab_suite::say;

const WORKERS: [&str; 3] = ["worker1", "worker2", "worker3"];
const SERVICE: &str = "maintenance-service";
/// Last byte of the first machine's address.
const FIRST: u8 = 120;
const LIMIT: Duration = Duration::from_secs(180);
/// Longest life of the maintenance-service.
const LIFE_MAX_MS: u64 = 2500;

/// Every host is visited, and no machine stops or moves more often than it must.
pub(crate) fn three_workers(env: &Env) -> Result<()> {
    let machines: Vec<Machine> = (0..4)
        .map(|n| Machine::small(&format!("roll-{n}"), FIRST + n))
        .collect();
    for (node, two) in ["worker1", "worker2"].into_iter().zip(machines.chunks(2)) {
        env.only(Some(node))?;
        env.run(two)?;
    }
    env.only(None)?;
    let mut guests = Guests::new(env, &machines)?;
    let agents: Result<Vec<Process>> = WORKERS.iter().map(|one| process(env, one)).collect();
    let agents = agents?;
    env.apply(&[order()])?;
    let began = Instant::now();
    let mut kills = 0;
    let mut life = 1;
    let ended = loop {
        guests.still_run(env)?;
        let rolling = env.json("rollingmaintenances/agents")?;
        let status = &rolling["status"];
        let phase = status["phase"].as_str().unwrap_or_default();
        if ["Succeeded", "Failed", "Aborted"].contains(&phase) {
            break rolling;
        }
        ensure!(began.elapsed() < LIMIT, "no end: {status:#}");
        env.lab().kill(SERVICE)?;
        env.lab().start(SERVICE)?;
        kills += 1;
        life = (life * 1_103_515_245 + 12_345) % (1 << 31);
        std::thread::sleep(Duration::from_millis(life % LIFE_MAX_MS)); // a life of random length
    };
    let took = began.elapsed().as_secs_f64();
    guests.still_run(env)?;
    check(env, &ended["status"])?;
    let moves = moved_once(env, &machines)?;
    for (worker, before) in WORKERS.into_iter().zip(agents) {
        ensure!(
            !before.is_alive() && process(env, worker)? != before,
            "the agent of {worker} was not restarted"
        );
    }
    say(&format!(
        "3 hosts in {took:.0} s, {kills} kills of the {SERVICE}, {moves} moves of {} machines",
        machines.len()
    ));
    say(&env.kubectl("get rollingmaintenances")?);
    say(&env.kubectl("describe rm agents")?);
    env.kubectl("delete rollingmaintenances/agents --timeout=60s")?;
    Ok(())
}

fn order() -> Value {
    json!({
        "apiVersion": "godwit.io/v1alpha1",
        "kind": "RollingMaintenance",
        "metadata": { "name": "agents" },
        "spec": {
            "nodeSelector": {},
            "maxUnavailable": 1,
            "hooks": { "drained": [{ "name": "restart", "command": "restart-agent" }] },
        },
    })
}

fn process(env: &Env, worker: &str) -> Result<Process> {
    let process = env.lab().service(worker)?.process();
    process.with_context(|| format!("{worker} has no agent"))
}

fn check(env: &Env, status: &Value) -> Result<()> {
    ensure!(status["phase"] == "Succeeded", "{status:#}");
    let nodes = status["nodes"].as_array().context("no nodes")?;
    ensure!(nodes.len() == WORKERS.len(), "{status:#}");
    for node in nodes {
        ensure!(node["state"] == "Done", "{node:#}");
        ensure!(node["hooks"][0]["exitCode"] == 0, "{node:#}");
    }
    for worker in WORKERS {
        let node = env.json(&format!("node/{worker}"))?;
        ensure!(node["spec"]["unschedulable"].is_null(), "{node:#}");
        ensure!(
            node["metadata"]["annotations"]["godwit.io/leaving"].is_null(),
            "{node:#}"
        );
    }
    let left = env.kubectl("get nodemaintenances.kubevirt.io -o name")?;
    ensure!(left.is_empty(), "left over: {left}");
    Ok(())
}

/// One host was empty, so that each machine has to move once; answers how many moves there were.
fn moved_once(env: &Env, machines: &[Machine]) -> Result<usize> {
    let jobs = env.json("vmim")?;
    let mut moves: BTreeMap<&str, usize> = BTreeMap::new();
    for job in jobs["items"].as_array().context("no list")? {
        ensure!(job["status"]["phase"] == "Succeeded", "{job:#}");
        *moves
            .entry(job["spec"]["vmiName"].as_str().unwrap_or_default())
            .or_default() += 1;
    }
    for machine in machines {
        ensure!(moves.get(machine.name.as_str()) == Some(&1), "{moves:?}");
    }
    Ok(moves.values().sum())
}

/// What the guests said last.
struct Guests(Vec<(u8, [u8; 16], u64)>);

impl Guests {
    fn new(env: &Env, machines: &[Machine]) -> Result<Self> {
        let guests = machines.iter().map(|machine| {
            let guest = env.ask(machine.last)?;
            Ok((machine.last, guest.boot_id, guest.counter))
        });
        guests.collect::<Result<_>>().map(Self)
    }

    /// None booted again, and each goes on counting.
    fn still_run(&mut self, env: &Env) -> Result<()> {
        for (last, boot, counter) in &mut self.0 {
            let guest = env.ask(*last)?;
            ensure!(guest.boot_id == *boot, "guest {last} booted again");
            ensure!(guest.counter >= *counter, "guest {last} went back");
            *counter = guest.counter;
        }
        Ok(())
    }
}
