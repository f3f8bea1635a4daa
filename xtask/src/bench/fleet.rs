//! `cargo xtask bench fleet`: the real services over thousands of hosts that pretend.
//!
//! A private Postgres, the three services that move machines as processes of their own, and all
//! hosts in this process over real gRPC: everything shares the machine. The fleet is filled by the
//! scheduler, and then a RollingMaintenance empties every node once. What was done is checked as
//! `godwit audit` does, and the limits of parallel migrations at every moment of the history; that
//! alone is asserted.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use comfy_table::Table;
use godwit_testkit::fleet::{
    Driver, Fleet, FleetOptions, Limits, Plane, ServiceUse, Size, Steps, read_history,
};
use godwit_testkit::postgres::DatabaseUse;
use serde::Serialize;

use super::machine::{self, CpuTime};
use super::report::Machine;
use super::stats::Summary;
use crate::tools::{self, say};

/// The programs that are measured.
const SERVICES: [&str; 3] = [
    "godwit-scheduler",
    "godwit-migration-coordinator",
    "godwit-maintenance-service",
];
/// Log that Postgres may write between two checkpoints: a large ledger's setting.
const WAL_MAX: &str = "4GB";

/// `cargo xtask bench fleet`
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    /// Hosts.
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Machines.
    #[arg(long, default_value_t = 20_000)]
    machines: usize,
    /// Longest wait for the filling, or for the next node that is done, in seconds.
    #[arg(long, default_value_t = 1800)]
    seconds: u64,
    /// Migrations that may be under way in the cluster.
    #[arg(long, default_value_t = 200)]
    parallel: usize,
    /// Migrations that may leave a node, and as many that may arrive.
    #[arg(long, default_value_t = 4)]
    parallel_per_node: usize,
    /// Nodes that are emptied at once, at most; 0 is as many as is safe.
    #[arg(long, default_value_t = 40)]
    at_once: usize,
    /// Virtual seconds in a second of copying.
    #[arg(long, default_value_t = 1000.0)]
    speed: f64,
    /// Build profile of the services: `dev` or `release`.
    #[arg(long, default_value = "release")]
    profile: String,
    /// Where the report is written as JSON.
    #[arg(long, default_value = "target/bench-fleet.json")]
    json: PathBuf,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    nodes: usize,
    machines: usize,
    limits: (usize, usize),
    fill_seconds: f64,
    /// From the first request to the last end of a migration.
    seconds: f64,
    virtual_seconds: f64,
    waves: Vec<(usize, f64)>,
    migrations: usize,
    failed: usize,
    most_at_once: usize,
    a_second: f64,
    transitions: usize,
    commits_each: f64,
    wal_bytes_each: f64,
    processes: Vec<Process>,
    /// Milliseconds in each state.
    steps: Vec<(&'static str, Summary)>,
    audit_seconds: f64,
}

/// What one process has used while nodes were emptied.
#[derive(Debug, Serialize)]
struct Process {
    name: String,
    cpu_seconds: f64,
    cpu_ms_each: f64,
    /// `None` where many processes share their memory.
    resident_mb: Option<f64>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let bar = tools::spinner();
    tools::ensure_packages(&bar)?;
    say(&bar, "building the services");
    let mut build = vec!["build", "--profile", &arguments.profile];
    build.extend(SERVICES.iter().flat_map(|package| ["--package", package]));
    bar.suspend(|| tools::cargo(&build))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(measure(arguments, &|text| say(&bar, text)));
    bar.finish_and_clear();
    let report = report?;
    print(&report);
    let text = serde_json::to_string_pretty(&report)?;
    let json = &arguments.json;
    std::fs::write(json, text).with_context(|| format!("write {}", json.display()))?;
    println!("\nAll of it: {}", json.display());
    Ok(())
}

async fn measure(arguments: &Arguments, say: &dyn Fn(&str)) -> Result<Report> {
    let mut machine = machine::describe();
    let cpu = CpuTime::now();
    let size = Size {
        nodes: arguments.nodes,
        machines: arguments.machines,
    };
    let limits = Limits {
        cluster: arguments.parallel,
        outbound: arguments.parallel_per_node,
        inbound: arguments.parallel_per_node,
    };
    say("starting Postgres, the services and the hosts");
    let plane = Plane::start(&tools::bin_dir(&arguments.profile)).await?;
    plane.postgres().set("max_wal_size", WAL_MAX)?;
    let fleet = Fleet::start(FleetOptions {
        speed: arguments.speed,
        ..FleetOptions::standard(size.nodes, plane.scheduler().to_owned())
    });
    let fleet = fleet.await?;
    let driver = Driver {
        plane: &plane,
        fleet: &fleet,
        at_once: arguments.at_once,
        patience: Duration::from_secs(arguments.seconds),
    };
    driver.set_limits(limits).await?;
    say("filling the fleet");
    let filled = driver.fill(size).await?;
    say(&format!("filled in {:.1} s", filled.took.as_secs_f64()));
    let before = (plane.database_use()?, plane.services_use()?);
    let virtual_before = fleet.virtual_seconds();
    let rolled = driver.roll(say).await?;
    let virtual_seconds = fleet.virtual_seconds() - virtual_before;
    let after = (plane.database_use()?, plane.services_use()?);
    say("checking the history and the hosts");
    let began = Instant::now();
    let steps = read_history(&plane.ledger, limits).await?;
    let violations = fleet.violations();
    ensure!(violations.is_empty(), "{}", violations.join("\n"));
    ensure!(fleet.running() == size.machines, "machines are lost");
    plane.audit().await?;
    machine.load_after = machine::load();
    machine.steal_percent = cpu.stolen_since();
    let waves = rolled.waves.iter();
    Ok(Report {
        machine,
        limits: (limits.cluster, limits.outbound),
        fill_seconds: filled.took.as_secs_f64(),
        virtual_seconds,
        waves: waves
            .map(|(nodes, took)| (*nodes, took.as_secs_f64()))
            .collect(),
        audit_seconds: began.elapsed().as_secs_f64(),
        ..counted(size, &steps, (&before, &after))
    })
}

type Use = (DatabaseUse, Vec<ServiceUse>);

/// What follows from the history and from what was used before and after.
#[expect(clippy::cast_precision_loss, reason = "for people")]
fn counted(size: Size, steps: &Steps, (before, after): (&Use, &Use)) -> Report {
    let each = |sum: f64| sum / steps.succeeded.max(1) as f64;
    let mut processes = vec![Process {
        name: "postgres".to_owned(),
        cpu_seconds: after.0.cpu_seconds - before.0.cpu_seconds,
        cpu_ms_each: each(after.0.cpu_seconds - before.0.cpu_seconds) * 1e3,
        resident_mb: None,
    }];
    processes.extend(before.1.iter().zip(&after.1).map(|(before, after)| {
        let cpu_seconds = after.cpu_seconds - before.cpu_seconds;
        Process {
            name: after.name.clone(),
            cpu_seconds,
            cpu_ms_each: each(cpu_seconds) * 1e3,
            resident_mb: Some(after.resident as f64 / 1e6),
        }
    }));
    let millis =
        |times: &Vec<Duration>| times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    let summaries = steps.times.iter().map(|(state, times)| {
        let millis: Vec<f64> = millis(times);
        (*state, Summary::of(millis))
    });
    let seconds = steps.took.as_secs_f64();
    Report {
        machine: machine::describe(),
        nodes: size.nodes,
        machines: size.machines,
        limits: (0, 0),
        fill_seconds: 0.0,
        seconds,
        virtual_seconds: 0.0,
        waves: vec![],
        migrations: steps.succeeded,
        failed: steps.failed,
        most_at_once: steps.most_at_once,
        a_second: steps.succeeded as f64 / seconds.max(f64::MIN_POSITIVE),
        transitions: steps.transitions,
        commits_each: each((after.0.commits - before.0.commits) as f64),
        wal_bytes_each: each((after.0.wal_bytes - before.0.wal_bytes) as f64),
        processes,
        steps: summaries.collect(),
        audit_seconds: 0.0,
    }
}

fn print(report: &Report) {
    println!(
        "{} nodes, {} machines, at most {} migrations at once and {} a node each way",
        report.nodes, report.machines, report.limits.0, report.limits.1
    );
    println!(
        "filled in {:.1} s; all nodes emptied in {} waves and {:.1} s ({:.0} s of the hosts' time)",
        report.fill_seconds,
        report.waves.len(),
        report.seconds,
        report.virtual_seconds
    );
    println!(
        "{} migrations, {} failed, {:.0} a second, {} at once at most; {} transitions",
        report.migrations, report.failed, report.a_second, report.most_at_once, report.transitions
    );
    println!(
        "a migration: {:.1} commits, {:.1} kB of WAL; checked in {:.1} s",
        report.commits_each,
        report.wal_bytes_each / 1e3,
        report.audit_seconds
    );
    let mut table = Table::new();
    table.set_header(["process", "CPU s", "CPU ms a migration", "resident MB"]);
    for process in &report.processes {
        let resident = process
            .resident_mb
            .map(|megabytes| format!("{megabytes:.0}"));
        table.add_row([
            process.name.clone(),
            format!("{:.1}", process.cpu_seconds),
            format!("{:.2}", process.cpu_ms_each),
            resident.unwrap_or_default(),
        ]);
    }
    println!("{table}");
    let mut table = Table::new();
    table.set_header(["milliseconds in", "n", "p50", "p99", "max"]);
    for (state, summary) in &report.steps {
        let number = |value: f64| format!("{value:.1}");
        table.add_row([
            (*state).to_owned(),
            summary.n.to_string(),
            number(summary.p50),
            number(summary.p99),
            number(summary.max),
        ]);
    }
    println!("{table}");
}
