//! Node inventory, placement, reservations, and where machines start and stop.

mod asked;
mod config;
mod fence;
mod fence_command;
mod floor_log;
mod inventory;
mod json;
mod launch;
mod machines;
mod node_object;
mod observe;
mod orders;
mod place;
mod server;
mod stale;
mod status;
mod telemetry;
#[cfg(test)]
mod tests;
mod told;
mod vm;
mod world;

fn main() -> std::process::ExitCode {
    godwit_runtime::run("scheduler", server::run)
}
