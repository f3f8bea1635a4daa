//! Closes nodes for maintenance and empties them. Any number of copies may run.

mod config;
mod drain;
mod evict;
mod json;
mod look;
mod node;
mod plan;
mod server;
mod telemetry;
#[cfg(test)]
mod tests;
mod words;

fn main() -> std::process::ExitCode {
    godwit_runtime::run("maintenance-service", server::run)
}
