//! `cargo xtask bench telemetry`: what traces cost, on a small fleet of hosts that pretend.
//!
//! The same fleet is emptied again and again by services that send no traces (A), that send them to a
//! collector that takes them (B), and to one that takes connections and never answers (C), in the order
//! A B C C B A, each with a Postgres and services of its own. The collector and the hosts are this
//! process, so what they need is missing elsewhere on a small machine. Nothing is asserted: what is
//! measured is printed, and written as JSON. With `--lab` it is a real machine that moves.

mod lab;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use comfy_table::Table;
use godwit_testkit::collector::{self, Collector, Protocol};
use godwit_testkit::fleet::{
    Driver, Fleet, FleetOptions, Limits, Plane, Size, Telling, read_history,
};
use serde::Serialize;

use super::fleet::SERVICES;
use super::machine::{self, CpuTime};
use super::report::Machine;
use super::stats::Summary;
use crate::tools::{self, say};

/// The order of a round: what drifts with time is the same for all.
const ROUND: [Arm; 6] = [
    Arm::Off,
    Arm::Live,
    Arm::Hanging,
    Arm::Hanging,
    Arm::Live,
    Arm::Off,
];

/// `cargo xtask bench telemetry`
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    /// Rounds of six runs.
    #[arg(long, default_value_t = 4)]
    rounds: usize,
    /// Hosts.
    #[arg(long, default_value_t = 20)]
    nodes: usize,
    /// Machines.
    #[arg(long, default_value_t = 200)]
    machines: usize,
    /// Migrations that may be under way in the cluster.
    #[arg(long, default_value_t = 50)]
    parallel: usize,
    /// Longest wait for the filling, or for the next node that is done, in seconds.
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// Real machines instead: one that is moved so often in each run, one move after the other, on
    /// a lab of two hosts.
    #[arg(long, value_name = "MOVES", conflicts_with_all = ["http", "nodes", "machines", "parallel"])]
    lab: Option<usize>,
    /// Sends traces over HTTP instead of gRPC.
    #[arg(long)]
    http: bool,
    /// Build profile of the services: `dev` or `release`.
    #[arg(long, default_value = "release")]
    profile: String,
    /// Where the report is written as JSON.
    #[arg(long, default_value = "target/bench-telemetry.json")]
    json: PathBuf,
}

/// What services do with traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Arm {
    Off,
    Live,
    Hanging,
}

impl Arm {
    const fn words(self) -> &'static str {
        match self {
            Self::Off => "no traces",
            Self::Live => "a collector that takes them",
            Self::Hanging => "a collector that hangs",
        }
    }
}

/// What one run was like.
#[derive(Debug, Clone, Copy, Serialize)]
struct Run {
    arm: Arm,
    migrations: usize,
    failed: usize,
    a_second: f64,
    /// Of the three services, for each migration.
    cpu_ms_each: f64,
    /// That arrived, for each migration.
    spans_each: f64,
}

/// How an arm compares with no traces in the same half of a round: 1 is the same.
#[derive(Debug, Serialize)]
struct Ratio {
    arm: Arm,
    a_second: Summary,
    cpu: Summary,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    protocol: &'static str,
    /// Moves of a run on the lab; `null` on a fleet, of the size that follows.
    lab: Option<usize>,
    nodes: usize,
    machines: usize,
    runs: Vec<Run>,
    ratios: Vec<Ratio>,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let bar = tools::spinner();
    tools::ensure_packages(&bar)?;
    say(&bar, "building the services");
    let mut build = vec!["build", "--profile", &arguments.profile];
    build.extend(SERVICES.iter().flat_map(|package| ["--package", package]));
    bar.suspend(|| match arguments.lab {
        Some(_) => tools::build_programs(&arguments.profile),
        None => tools::cargo(&build),
    })?;
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
    let (collector, live) = Collector::start()?;
    let stand = Stand {
        arguments,
        bin_dir: tools::bin_dir(&arguments.profile),
        collector,
        ports: (live, collector::silent()?),
    };
    say("warming up");
    stand.run(Arm::Live).await?;
    let mut runs = vec![];
    for round in 1..=arguments.rounds {
        for arm in ROUND {
            let run = stand.run(arm).await?;
            say(&format!(
                "round {round} of {}, {}: {:.1} migrations a second",
                arguments.rounds,
                arm.words(),
                run.a_second
            ));
            runs.push(run);
        }
    }
    machine.load_after = machine::load();
    machine.steal_percent = cpu.stolen_since();
    Ok(Report {
        machine,
        protocol: protocol(arguments).as_str(),
        lab: arguments.lab,
        nodes: arguments.nodes,
        machines: arguments.machines,
        ratios: [Arm::Live, Arm::Hanging]
            .map(|arm| ratio(arm, &runs))
            .into(),
        runs,
    })
}

const fn protocol(arguments: &Arguments) -> Protocol {
    match arguments.http {
        true => Protocol::Http,
        false => Protocol::Grpc,
    }
}

/// What all runs have in common.
struct Stand<'a> {
    arguments: &'a Arguments,
    bin_dir: PathBuf,
    collector: Collector,
    /// Those of the collector, and of the one that hangs.
    ports: (u16, u16),
}

impl Stand<'_> {
    async fn run(&self, arm: Arm) -> Result<Run> {
        self.collector.forget();
        match self.arguments.lab {
            Some(moves) => self.move_often(arm, moves).await,
            None => self.empty_each(arm).await,
        }
    }

    const fn port(&self, arm: Arm) -> Option<u16> {
        match arm {
            Arm::Off => None,
            Arm::Live => Some(self.ports.0),
            Arm::Hanging => Some(self.ports.1),
        }
    }

    /// Fills a fleet and empties each of its nodes once.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    async fn empty_each(&self, arm: Arm) -> Result<Run> {
        let Self {
            arguments,
            collector,
            ..
        } = self;
        let to = self.port(arm).map(|port| (port, protocol(arguments)));
        let plane = Plane::start_telling(&self.bin_dir, Telling::to(to)).await?;
        let options = FleetOptions::standard(arguments.nodes, plane.scheduler().to_owned());
        let fleet = Fleet::start(options).await?;
        let driver = Driver {
            plane: &plane,
            fleet: &fleet,
            at_once: 0,
            patience: Duration::from_secs(arguments.seconds),
        };
        let limits = Limits {
            cluster: arguments.parallel,
            outbound: 4,
            inbound: 4,
        };
        driver.set_limits(limits).await?;
        let size = Size {
            nodes: arguments.nodes,
            machines: arguments.machines,
        };
        driver.fill(size).await?;
        let (before, seen) = (cpu_seconds(&plane)?, collector.count());
        driver.roll(&|_| ()).await?;
        let cpu = cpu_seconds(&plane)? - before;
        let steps = read_history(&plane.ledger, limits).await?;
        // What is still on its way is sent at the services' end.
        tokio::task::block_in_place(|| plane.terminate())?;
        let moved = steps.succeeded.max(1) as f64;
        Ok(Run {
            arm,
            migrations: steps.succeeded,
            failed: steps.failed,
            a_second: moved / steps.took.as_secs_f64().max(f64::MIN_POSITIVE),
            cpu_ms_each: cpu * 1e3 / moved,
            spans_each: (collector.count() - seen) as f64 / moved,
        })
    }
}

fn cpu_seconds(plane: &Plane) -> Result<f64> {
    let all = plane.services_use()?;
    let services = all.iter().filter(|one| one.name != "hosts");
    Ok(services.map(|one| one.cpu_seconds).sum())
}

/// Each run of an arm beside the one without traces in the same half of its round.
fn ratio(arm: Arm, runs: &[Run]) -> Ratio {
    let halves = runs.chunks(ROUND.len() / 2);
    let pairs: Vec<(Run, Run)> = halves
        .filter_map(|half| {
            let of = |arm| half.iter().find(|run| run.arm == arm).copied();
            of(arm).zip(of(Arm::Off))
        })
        .collect();
    let summary = |of: fn(&Run) -> f64| {
        let ratios = pairs.iter().map(|(run, off)| of(run) / of(off));
        Summary::of(ratios)
    };
    Ratio {
        arm,
        a_second: summary(|run| run.a_second),
        cpu: summary(|run| run.cpu_ms_each),
    }
}

fn print(report: &Report) {
    let what = match report.lab {
        Some(moves) => format!("a machine of the lab, {moves} moves"),
        None => format!(
            "{} nodes, {} machines, each node emptied once",
            report.nodes, report.machines
        ),
    };
    let (runs, protocol) = (report.runs.len(), report.protocol);
    println!("{what}; {runs} runs; traces over {protocol}");
    let mut table = Table::new();
    table.set_header([
        "services with",
        "runs",
        "migrations a second",
        "CPU ms a migration",
        "spans a migration",
    ]);
    for arm in [Arm::Off, Arm::Live, Arm::Hanging] {
        let runs = report.runs.iter().filter(|run| run.arm == arm);
        let median = |of: fn(&Run) -> f64| Summary::of(runs.clone().map(of)).p50;
        table.add_row([
            arm.words().to_owned(),
            runs.clone().count().to_string(),
            format!("{:.2}", median(|run| run.a_second)),
            format!("{:.2}", median(|run| run.cpu_ms_each)),
            format!("{:.0}", median(|run| run.spans_each)),
        ]);
    }
    println!("{table}");
    for ratio in &report.ratios {
        for (what, of) in [
            ("migrations a second", &ratio.a_second),
            ("CPU a migration", &ratio.cpu),
        ] {
            println!(
                "{} / no traces, {what}: {:.3} (95% {:.3} to {:.3}, {} pairs)",
                ratio.arm.words(),
                of.p50,
                of.p50_low,
                of.p50_high,
                of.n
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_is_compared_with_the_one_of_its_own_half() {
        let speeds = [100.0, 90.0, 80.0, 40.0, 45.0, 50.0];
        let run = |(arm, a_second)| Run {
            arm,
            migrations: 1,
            failed: 0,
            a_second,
            cpu_ms_each: 1.0,
            spans_each: 0.0,
        };
        let runs: Vec<Run> = ROUND.into_iter().zip(speeds).map(run).collect();
        let live = ratio(Arm::Live, &runs).a_second;
        assert_eq!(live.n, 2);
        assert!((live.min - 0.9).abs() < 1e-9 && (live.max - 0.9).abs() < 1e-9);
        let hanging = ratio(Arm::Hanging, &runs).a_second;
        assert!((hanging.p50 - 0.8).abs() < 1e-9);
    }
}
