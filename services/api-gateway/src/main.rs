//! The process of the api-gateway.

use std::process::ExitCode;

fn main() -> ExitCode {
    godwit_runtime::run("api-gateway", godwit_api_gateway::run)
}
