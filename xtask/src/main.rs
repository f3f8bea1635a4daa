//! Automation: `cargo xtask lab, test, tidy, bench`.

mod bench;
mod lab;
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
    Test {
        /// Part of a test's name.
        filter: Option<String>,
        /// Only the lab suite: the lab's document, moves, drains and restarts on a whole lab.
        #[arg(long, conflicts_with = "filter")]
        lab: bool,
    },
    /// Who may import what, sizes, words.
    Tidy,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Lab(arguments) => lab::run(&arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Test { lab: true, .. } => test::run_lab(),
        Command::Test { filter, lab: false } => test::run(filter.as_deref()),
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
