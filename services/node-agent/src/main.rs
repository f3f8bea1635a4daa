//! The agent's program.

use std::process::ExitCode;

fn main() -> ExitCode {
    godwit_runtime::run("node-agent", godwit_node_agent::run)
}
