//! The smallest service: it waits, does one step of a job, and fails in the way it is told to.

use std::process::ExitCode;
use std::time::SystemTime;

use godwit_runtime::config::Common;
use godwit_runtime::telemetry::{self, SpanKey, StepSpan};
use godwit_runtime::{Context, ServiceConfig};
use serde::{Deserialize, Serialize};
use tracing::Instrument;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    common: Common,
    /// `panic`: a task panics. `error`: the service fails. `stuck`: it ignores the shutdown.
    fault: String,
}

impl ServiceConfig for Config {
    fn common(&self) -> &Common {
        &self.common
    }

    fn validate(&self) -> Result<(), String> {
        match self.fault.as_str() {
            "" | "panic" | "error" | "stuck" => Ok(()),
            other => Err(format!("fault {other:?} is unknown")),
        }
    }
}

async fn serve(context: Context<Config>) -> anyhow::Result<()> {
    let trace = async { telemetry::trace_context() };
    let trace = trace.instrument(tracing::info_span!("request")).await;
    let key = SpanKey {
        job: "43f5b34d-94b4-4cda-9a69-cca8d4b4c587",
        step: "Copying",
        nth: 3,
    };
    let now = SystemTime::now();
    context.steps.record(StepSpan::new(&trace, key, (now, now)));
    context.readiness.set("example", true);
    match context.config.fault.as_str() {
        "panic" => {
            godwit_runtime::spawn("fragile", async { panic!("on purpose") });
        }
        "error" => anyhow::bail!("nothing works"),
        "stuck" => std::future::pending().await,
        _ => {}
    }
    context.shutdown.cancelled().await;
    Ok(())
}

fn main() -> ExitCode {
    godwit_runtime::run("tiny-service", serve)
}
