//! `cargo xtask test`: everything, from a fresh machine, in one command.

use std::time::Instant;

use anyhow::{Context, Result};
use godwit_testkit::kubectl::{self, Release};

use crate::{chart, sbom, tidy, tools};

/// The suite that runs alone and last, with its output seen: it takes minutes, and the machine to
/// itself. See `.config/nextest.toml` too.
const LAB_SUITE: &str = "lab_suite";
/// The suites of `cargo xtask test safety` and `chaos`.
const FAULT_SUITES: &str = "fault_suite";
/// The suite of `cargo xtask test watch`.
const WATCH_SUITE: &str = "watch_suite";
/// The suite of `cargo xtask test fuzz`.
const FUZZ_SUITE: &str = "fuzz_suite";
/// The suite of `cargo xtask test observability`.
const OBSERVABILITY_SUITE: &str = "observability_suite";

/// Runs every check, or only the tests that match `filter`.
///
/// # Errors
/// With the first check that failed.
pub(crate) fn run(filter: Option<&str>) -> Result<()> {
    prepare()?;
    if filter.is_none() {
        step("tidy", tidy::run)?;
        step("format", || tools::cargo(&["fmt", "--all", "--check"]))?;
        step("lints", lints)?;
        step("dependencies", dependencies)?;
        step("bills of materials", sbom::check_all)?;
    }
    step("build", || {
        tools::cargo(&["build", "--workspace", "--all-targets"])
    })?;
    if filter.is_none() {
        step("chart", chart::check)?;
    }
    step("tests", || tests(filter))?;
    if filter.is_none() {
        step("lab", lab_suite)?;
    }
    Ok(())
}

pub(crate) fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("==> {name}");
    let began = Instant::now();
    work().with_context(|| format!("{name} failed"))?;
    println!("==> {name}: good after {} s", began.elapsed().as_secs());
    Ok(())
}

fn lints() -> Result<()> {
    tools::cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ])
}

/// Needs a tool that not every machine has: said, not skipped silently.
fn dependencies() -> Result<()> {
    if !has("cargo-deny") {
        println!("cargo-deny is not installed: the dependency rules of deny.toml were not checked");
        return Ok(());
    }
    tools::cargo(&["deny", "check", "bans", "licenses", "sources"])
}

fn tests(filter: Option<&str>) -> Result<()> {
    let mut arguments = if has("cargo-nextest") {
        vec!["nextest", "run", "--workspace", "--profile", profile()]
    } else {
        vec!["test", "--workspace"]
    };
    arguments.extend(filter);
    if !has("cargo-nextest") {
        arguments.push("--");
        for suite in [
            LAB_SUITE,
            FAULT_SUITES,
            WATCH_SUITE,
            FUZZ_SUITE,
            OBSERVABILITY_SUITE,
        ] {
            arguments.extend(["--skip", suite]);
        }
    }
    tools::cargo(&arguments)
}

/// The profile of nextest: where everybody's changes are tested, that of `CI`.
fn profile() -> &'static str {
    match std::env::var_os("CI") {
        Some(_) => "ci",
        None => "default",
    }
}

/// Runs the lab suite alone: real kubectls type the lab's document against a lab of its own.
///
/// # Errors
/// With the sections that failed.
pub(crate) fn run_lab() -> Result<()> {
    prepare()?;
    step("build", || {
        tools::cargo(&["build", "--workspace", "--all-targets"])
    })?;
    step("lab", lab_suite)
}

fn lab_suite() -> Result<()> {
    let suite = ["test", "--workspace", "--test", "godwit", LAB_SUITE];
    tools::cargo(&[&suite[..], &["--", "--nocapture"]].concat())
}

/// Installs and fetches what the tests need.
pub(crate) fn prepare() -> Result<()> {
    let bar = tools::spinner();
    tools::ensure_packages(&bar)?;
    for release in Release::ALL {
        kubectl::program(&tools::cache_dir(), release, &|text| {
            tools::say(&bar, text);
        })?;
    }
    bar.finish_and_clear();
    Ok(())
}

fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
