//! Automation: `cargo xtask lab, test, tidy, bench`.

mod lab;
mod tools;

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
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Lab(arguments) => lab::run(&arguments),
    }
}
