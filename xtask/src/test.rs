//! `cargo xtask test`: everything, from a fresh machine, in one command.

use std::time::Instant;

use anyhow::{Context, Result};
use godwit_testkit::kubectl::{self, Release};

use crate::{tidy, tools};

/// The suite that has a command of its own: it takes minutes. See `.config/nextest.toml` too.
const LONG_SUITE: &str = "lab_suite";

/// Runs every check but the long suite, or only the tests that match `filter`.
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
    }
    step("build", || {
        tools::cargo(&["build", "--workspace", "--all-targets"])
    })?;
    step("tests", || tests(filter))
}

fn step(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
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
        vec!["nextest", "run", "--workspace"]
    } else {
        vec!["test", "--workspace"]
    };
    arguments.extend(filter);
    if !has("cargo-nextest") {
        arguments.extend(["--", "--skip", LONG_SUITE]);
    }
    tools::cargo(&arguments)
}

/// Runs the long suite: real kubectls type the lab's document against a lab of its own.
///
/// # Errors
/// With the sections that failed.
pub(crate) fn run_lab() -> Result<()> {
    prepare()?;
    step("build", || {
        tools::cargo(&["build", "--workspace", "--all-targets"])
    })?;
    let suite = [
        "test",
        "--workspace",
        "--test",
        "godwit",
        LONG_SUITE,
        "--",
        "--nocapture",
    ];
    step("lab", || tools::cargo(&suite))
}

/// Installs and fetches what the tests need.
fn prepare() -> Result<()> {
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
