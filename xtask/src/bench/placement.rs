//! `cargo xtask bench placement`: placing machines and planning maintenance in memory, beside
//! Ganeti's htools on the same fleet.
//!
//! htools know no affinity, spread, taints or networks, so their fleet has none; and they read the
//! fleet from a file, which is within their times. `hbal` looks for a better balance as it empties a
//! node, and its time grows fast with the fleet: at 1,000 nodes it is asked for one move alone.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use comfy_table::Table;
use serde::{Deserialize, Serialize};

use super::machine;
use super::report::Machine;
use crate::tools::{self, say};

/// The node that is emptied.
const NODE: &str = "node00010";
const HTOOLS: [(&str, &str); 1] = [("/usr/bin/hbal", "ganeti-htools")];

/// `cargo xtask bench placement`
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    /// Where the report is written as JSON.
    #[arg(long, default_value = "target/bench-placement.json")]
    json: PathBuf,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    fleets: Vec<Fleet>,
    htools: Vec<Htool>,
}

/// What `crates/model/benches/placement.rs` tells of one fleet.
#[derive(Debug, Serialize, Deserialize)]
struct Fleet {
    nodes: u32,
    placements: Placements,
    evacuation: Evacuation,
    waves: Waves,
}

#[derive(Debug, Serialize, Deserialize)]
struct Placements {
    asked: u32,
    placed: u32,
    seconds: f64,
    a_second: f64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Evacuation {
    plans: u32,
    moves: u32,
    stuck: u32,
    p50_ms: f64,
    p99_ms: f64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Waves {
    seconds: f64,
    waves: u32,
    moves: u32,
    machines: u32,
    left: u32,
}

/// One run of a tool.
#[derive(Debug, Serialize)]
struct Htool {
    nodes: u32,
    what: String,
    seconds: f64,
    found: String,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let bar = tools::spinner();
    tools::ensure_installed(&bar, &HTOOLS)?;
    let dir = tempfile::Builder::new().prefix("gwbench-").tempdir()?;
    let mut machine = machine::describe();
    let (mut fleets, mut htools) = (vec![], vec![]);
    for sizes in ["100", "1000,5000"] {
        say(&bar, &format!("fleets of {sizes} nodes"));
        let file = dir.path().join("fleet");
        let measured = ours(sizes, &file)?;
        let nodes = measured.first().context("a fleet was measured")?.nodes;
        fleets.extend(measured);
        say(&bar, &format!("htools with {nodes} nodes"));
        htools.extend(theirs(nodes, &file)?);
    }
    bar.finish_and_clear();
    machine.load_after = machine::load();
    let report = Report {
        machine,
        fleets,
        htools,
    };
    print(&report);
    let json = &arguments.json;
    std::fs::write(json, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("write {}", json.display()))?;
    println!("\nAll of it: {}", json.display());
    Ok(())
}

fn ours(sizes: &str, file: &Path) -> Result<Vec<Fleet>> {
    let mut command = tools::cargo_command();
    command.args(["bench", "--quiet", "--package", "godwit-model"]);
    command.args(["--bench", "placement", "--", "--nodes", sizes, "--fleet"]);
    let (output, _) = timed(command.arg(file))?;
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().last().context("the bench printed nothing")?;
    Ok(serde_json::from_str(line)?)
}

fn theirs(nodes: u32, file: &Path) -> Result<Vec<Htool>> {
    let tool = |program: &str| {
        let mut command = Command::new(program);
        command.arg("-t").arg(file).arg("--quiet");
        command
    };
    let mut hbal = tool("hbal");
    hbal.args(["--evac-mode", "-O", NODE]);
    let mut what = "hbal: empty one node";
    if nodes > 100 {
        hbal.args(["--max-length", "1"]);
        what = "hbal: the first move";
    }
    let (output, took) = timed(&mut hbal)?;
    let moves = String::from_utf8_lossy(&output.stdout);
    let moves = moves.lines().filter(|line| line.contains("=>")).count();
    let one = Htool {
        nodes,
        what: what.to_owned(),
        seconds: took.as_secs_f64(),
        found: format!("{moves} moves"),
    };
    let (output, took) = timed(tool("hroller").arg("--force"))?;
    let groups = String::from_utf8_lossy(&output.stdout);
    let groups = groups.lines().filter(|line| line.starts_with("node"));
    let all = Htool {
        nodes,
        what: "hroller: groups of all nodes".to_owned(),
        seconds: took.as_secs_f64(),
        found: format!("{} groups", groups.count()),
    };
    Ok(vec![one, all])
}

fn timed(command: &mut Command) -> Result<(Output, Duration)> {
    let began = Instant::now();
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok((output, began.elapsed()))
}

fn print(report: &Report) {
    let mut table = Table::new();
    table.set_header(["nodes", "what", "goal", "found"]);
    for fleet in &report.fleets {
        let (placed, one, all) = (&fleet.placements, &fleet.evacuation, &fleet.waves);
        let goal = match fleet.nodes {
            1000 => ["50000", "5", "1"],
            5000 => ["10000", "", ""],
            _ => [""; 3],
        };
        let found = [
            ("placements a second", format!("{:.0}", placed.a_second)),
            (
                "plan for one node, ms",
                format!("{:.2} (p99 {:.2})", one.p50_ms, one.p99_ms),
            ),
            (
                "waves of all nodes, s",
                format!(
                    "{:.2}: {} waves, {} moves of {} machines, {} nodes left",
                    all.seconds, all.waves, all.moves, all.machines, all.left
                ),
            ),
        ];
        for ((what, found), goal) in found.into_iter().zip(goal) {
            table.add_row([
                fleet.nodes.to_string(),
                what.to_owned(),
                goal.to_owned(),
                found,
            ]);
        }
    }
    for tool in &report.htools {
        let found = format!("{:.2} s, {}", tool.seconds, tool.found);
        let nodes = tool.nodes.to_string();
        table.add_row([nodes, tool.what.clone(), String::new(), found]);
    }
    println!("{table}");
}
