//! Drives each migration from Pending to its end. Any number of copies may run.

mod chapter;
mod claim;
mod config;
mod counts;
mod drive;
mod drives;
mod hosts;
mod queue;
mod server;
mod shared;
mod step;
mod story;
mod telemetry;
mod terms;
mod trace;
mod waiting;

fn main() -> std::process::ExitCode {
    godwit_runtime::run("migration-coordinator", server::run)
}
