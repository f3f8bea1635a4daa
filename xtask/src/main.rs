//! Automation: `cargo xtask lab, test, tidy, chart, bench`.

mod bench;
mod chart;
mod dashboards;
mod fuzz;
mod lab;
mod mutants;
mod observability;
mod safety;
mod sbom;
mod test;
mod tidy;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Godwit's automation.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A running Godwit with real machines on this machine.
    Lab(lab::Arguments),
    /// What Godwit adds to a move, beside a script that does the same by hand; printed, and as JSON.
    Bench(bench::Arguments),
    /// Every check; with a filter, only the tests that match it.
    ///
    /// `safety`, `chaos`, `watch`, `fuzz` and `observability` are suites of their own. `safety`: the model check,
    /// simulated runs, and every fault at every step on real machines. `chaos`: takeovers, frozen
    /// owners, an agent and the ledger killed, and drains under random deaths. `watch`: two hundred
    /// watchers, fifty writers, and the faults of a database and of gateways. `fuzz`: requests made
    /// from the published OpenAPI documents, and made-up input for every parser of the API.
    /// `observability`: every panel, rule and alert against Debian's Prometheus on a lab at work.
    Test {
        /// Part of a test's name, `safety`, `chaos`, `watch`, `fuzz` or `observability`.
        filter: Option<String>,
        /// Only the lab suite: the lab's document, moves, drains and restarts on a whole lab.
        #[arg(long, conflicts_with = "filter")]
        lab: bool,
    },
    /// The Helm chart: lints it, renders it for each file of values in its folder `ci`, and checks
    /// what comes out by schemas, security rules, the services' configuration, and golden files.
    Chart(chart::Arguments),
    /// Takes one guard of the protocol away at a time: each has to make a check fail.
    Mutants,
    /// What each program is made of: a bill of materials for each, in CycloneDX's JSON.
    Sbom(sbom::Arguments),
    /// Writes Grafana's dashboards from the table of their panels.
    Dashboards,
    /// Who may import what, sizes, words.
    Tidy,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Lab(arguments) => lab::run(&arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Test { lab: true, .. } => test::run_lab(),
        Command::Test { filter, lab: false } => match filter.as_deref() {
            Some("safety") => safety::run(),
            Some("chaos") => safety::chaos(),
            Some("watch") => safety::watch(),
            Some("fuzz") => fuzz::run(),
            Some("observability") => observability::run(),
            filter => test::run(filter),
        },
        Command::Chart(arguments) => chart::run(&arguments),
        Command::Mutants => mutants::run(),
        Command::Sbom(arguments) => sbom::run(&arguments),
        Command::Dashboards => dashboards::run(),
        Command::Tidy => tidy::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
