//! `cargo xtask bench api`: how fast the API is, and how much memory it takes.
//!
//! One api-gateway in a process of its own over a real Postgres, and clients over TLS and HTTP/2 in
//! this process: both share the machine. Nothing is asserted.

mod client;
mod gateway;
mod load;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use comfy_table::Table;
use serde::Serialize;

use self::gateway::Gateway;
use super::machine::{self, CpuTime};
use super::report::Machine;
use super::stats::Summary;
use crate::tools::{self, say};

/// `cargo xtask bench api`
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    /// Instances of about 1 KB each.
    #[arg(long, default_value_t = 50_000)]
    objects: u32,
    /// Watchers of all instances.
    #[arg(long, default_value_t = 5_000)]
    watchers: usize,
    /// Creations a second.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Seconds of creations.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Changes that all watchers are told of.
    #[arg(long, default_value_t = 50)]
    changes: usize,
    /// Build profile of the gateway: `dev` or `release`.
    #[arg(long, default_value = "release")]
    profile: String,
    /// Where the report is written as JSON.
    #[arg(long, default_value = "target/bench-api.json")]
    json: PathBuf,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    objects: u32,
    object_bytes: f64,
    watchers: usize,
    rate: u32,
    lines: Vec<Line>,
    memory: Vec<(String, f64)>,
    start_seconds: f64,
}

/// One line of the table: milliseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    what: String,
    goal: &'static str,
    summary: Summary,
}

impl Line {
    pub(crate) fn new(what: impl Into<String>, goal: &'static str, times: &[Duration]) -> Self {
        Self {
            what: what.into(),
            goal,
            summary: Summary::of(times.iter().map(|time| time.as_secs_f64() * 1e3)),
        }
    }
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let bar = tools::spinner();
    tools::ensure_packages(&bar)?;
    say(&bar, "building the api-gateway");
    let build = [
        "build",
        "--profile",
        &arguments.profile,
        "--package",
        "godwit-api-gateway",
    ];
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
    say("starting Postgres, and writing the instances");
    let gateway = Gateway::start(arguments.objects, &tools::bin_dir(&arguments.profile)).await?;
    let mut memory = vec![("at its start".to_owned(), gateway.resident()?)];
    let mut lines = Vec::new();
    say("lists");
    let (listed, object_bytes) = load::lists(&gateway, arguments.objects).await?;
    lines.extend(listed);
    memory.push(("after the lists".to_owned(), gateway.resident()?));
    say("reads");
    lines.push(load::gets(&gateway, arguments.objects).await?);
    say("creations");
    lines.push(load::creates(&gateway, (arguments.rate, arguments.seconds)).await?);
    say("watchers");
    let told = load::fan_out(&gateway, (arguments.watchers, arguments.changes), say).await?;
    lines.push(told.line);
    memory.push((
        format!("with {} watchers", arguments.watchers),
        told.resident,
    ));
    machine.load_after = machine::load();
    machine.steal_percent = cpu.stolen_since();
    Ok(Report {
        machine,
        objects: arguments.objects,
        object_bytes,
        watchers: arguments.watchers,
        rate: arguments.rate,
        lines,
        memory,
        start_seconds: gateway.started_in.as_secs_f64(),
    })
}

fn print(report: &Report) {
    let mut table = Table::new();
    table.set_header(["milliseconds", "goal", "n", "p50", "p99", "max"]);
    for line in &report.lines {
        let Summary {
            n, p50, p99, max, ..
        } = line.summary;
        let number = |value: f64| format!("{value:.1}");
        table.add_row([
            line.what.clone(),
            line.goal.to_owned(),
            n.to_string(),
            number(p50),
            number(p99),
            number(max),
        ]);
    }
    println!("{table}");
    println!(
        "{} instances of {:.0} bytes; from start to ready {:.1} s",
        report.objects, report.object_bytes, report.start_seconds
    );
    for (when, megabytes) in &report.memory {
        println!("resident {when}: {megabytes:.0} MB (goal 250)");
    }
}
