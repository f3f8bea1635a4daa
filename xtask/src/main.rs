//! Automation: `cargo xtask lab, test, tidy, bench`.

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
    /// Every check there is; with a filter, only the tests that match it.
    Test {
        /// Part of a test's name.
        filter: Option<String>,
    },
    /// Who may import what, sizes, words.
    Tidy,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Lab(arguments) => lab::run(&arguments),
        Command::Test { filter } => test::run(filter.as_deref()),
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
