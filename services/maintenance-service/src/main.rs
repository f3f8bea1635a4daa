//! Closes nodes for maintenance and empties them. Any number of copies may run.

mod config;
mod deadline;
mod drain;
mod drain_plan;
mod evict;
mod json;
mod ladder;
mod lease;
mod look;
mod machines;
mod node;
mod outlook;
mod plan;
mod rolling;
mod routes;
mod server;
mod stop;
mod telemetry;
#[cfg(test)]
mod tests;
mod trace;
mod words;

fn main() -> std::process::ExitCode {
    godwit_runtime::run("maintenance-service", server::run)
}
