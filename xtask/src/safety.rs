//! `cargo xtask test safety`, `chaos` and `watch`: what docs/safety.md and docs/watch.md promise.

use std::time::Instant;

use anyhow::Result;

use crate::test::{prepare, step};
use crate::tools;

/// Simulated runs of a safety run.
const SEEDS: &str = "5000";
const MATRIX: &str = "fault_suite_matrix";
const CHAOS: [(&str, &str); 4] = [
    ("owners", "fault_suite_owners"),
    ("hosts", "fault_suite_hosts"),
    ("ledger", "fault_suite_ledger"),
    ("drain", "fault_suite_drain"),
];
const WATCH: [(&str, &str); 4] = [
    ("load", "watch_suite_load"),
    ("two gateways", "watch_suite_two_gateways_side_by_side"),
    ("faults", "watch_suite_one_gateway_and_faults"),
    (
        "two gateways and faults",
        "watch_suite_two_gateways_and_faults",
    ),
];

/// The model check, the simulation, and every fault at every step of real migrations.
///
/// # Errors
/// With the first part that failed.
pub(crate) fn run() -> Result<()> {
    let began = Instant::now();
    prepare()?;
    step("model check", || sim("check", &[]))?;
    step("simulation", || sim("simulate", &["--seeds", SEEDS]))?;
    step("build", build)?;
    step("fault matrix", || suite(MATRIX))?;
    println!("==> safety: good after {} s", began.elapsed().as_secs());
    Ok(())
}

/// Deaths and freezes under load, on a lab with two coordinators.
///
/// # Errors
/// With the first part that failed.
pub(crate) fn chaos() -> Result<()> {
    prepare()?;
    step("build", build)?;
    for (name, test) in CHAOS {
        step(name, || suite(test))?;
    }
    Ok(())
}

/// Watches under load: every change once and in order, also while everything around them breaks.
///
/// # Errors
/// With the first part that failed.
pub(crate) fn watch() -> Result<()> {
    prepare()?;
    step("build", build)?;
    for (name, test) in WATCH {
        step(name, || suite(test))?;
    }
    Ok(())
}

/// A program of the checker, at full speed.
pub(crate) fn sim(example: &str, arguments: &[&str]) -> Result<()> {
    let run = [
        "run",
        "--release",
        "--package",
        "godwit-sim",
        "--example",
        example,
        "--",
    ];
    tools::cargo(&[&run[..], arguments].concat())
}

fn build() -> Result<()> {
    tools::cargo(&["build", "--workspace", "--all-targets"])
}

fn suite(test: &str) -> Result<()> {
    let run = [
        "test",
        "--workspace",
        "--test",
        "godwit",
        test,
        "--",
        "--nocapture",
    ];
    tools::cargo(&run)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name that no test has would run nothing, and be good.
    #[test]
    fn each_suite_is_there() {
        for (test, file) in [(MATRIX, "fault_suite.rs")]
            .into_iter()
            .chain(CHAOS.map(|(_, test)| (test, "fault_suite.rs")))
            .chain(WATCH.map(|(_, test)| (test, "watch_suite.rs")))
        {
            let text = std::fs::read_to_string(tools::root().join("tests").join(file)).unwrap();
            assert!(text.contains(&format!("fn {test}()")), "{test}");
        }
    }
}
