//! `cargo xtask test fuzz`: made-up requests to a running gateway, and made-up input to the parsers.
//!
//! `FUZZ_SECONDS` says how long each part takes (ten minutes when it doesn't), `FUZZ_SEED` with which
//! seed. See docs/fuzzing.md.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::test::{prepare, step};
use crate::tools;

/// Seconds of the requests, and of each parser, unless `FUZZ_SECONDS` says otherwise.
const SECONDS: u64 = 600;
/// A file that shows that Python makes environments, and the package that brings it.
const PYTHON_VENV: (&str, &str) = ("/usr/share/doc/python3-venv", "python3-venv");
/// Where `fuzz/` is built for.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// What libFuzzer needs to know of a run; the passes are plain options of the stable compiler.
const INSTRUMENTED: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    --cfg fuzzing";
/// Longest input, longest time for one, and most memory; beyond them it is a finding.
const LIMITS: [&str; 3] = ["-max_len=8192", "-timeout=10", "-rss_limit_mb=1024"];
/// Targets at once: as many as the smallest machine that this runs on has processors.
const AT_ONCE: usize = 2;

/// Both parts.
///
/// # Errors
/// With the parts that found something.
pub(crate) fn run() -> Result<()> {
    let began = Instant::now();
    prepare()?;
    step("tools", ensure_tools)?;
    step("build", || {
        tools::cargo(&["build", "--package", "godwit-tests", "--all-targets"])
    })?;
    step("requests", || {
        tools::cargo(
            &[
                "test",
                "--package",
                "godwit-tests",
                "--test",
                "godwit",
                "fuzz_suite",
            ]
            .into_iter()
            .chain(["--", "--nocapture"])
            .collect::<Vec<_>>(),
        )
    })?;
    step("build the targets", build)?;
    step("parsers", parsers)?;
    println!("==> fuzz: good after {} s", began.elapsed().as_secs());
    Ok(())
}

/// schemathesis and the validator of OpenAPI, in the versions that are written down.
fn ensure_tools() -> Result<()> {
    let wanted = tools::root().join("tests/openapi/requirements.txt");
    let folder = tools::cache_dir().join("openapi");
    let mark = folder.join("requirements.txt");
    let text = std::fs::read(&wanted).context("read the requirements")?;
    if std::fs::read(&mark).is_ok_and(|known| known == text) {
        return Ok(());
    }
    let bar = tools::spinner();
    tools::ensure_installed(&bar, &[PYTHON_VENV])?;
    bar.finish_and_clear();
    std::fs::create_dir_all(tools::cache_dir())?;
    let python = folder.join("bin/python");
    finish(Command::new("python3").args(["-m", "venv"]).arg(&folder))
        .context("make a Python environment")?;
    let install = ["-m", "pip", "install", "-q", "-r"];
    finish(Command::new(python).args(install).arg(&wanted))?;
    std::fs::write(mark, text).context("write the mark")
}

fn finish(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}

fn build() -> Result<()> {
    let mut command = tools::cargo_command();
    command
        .args(["build", "--release", "--bins", "--target", TRIPLE])
        .arg("--target-dir")
        .arg(work_dir())
        .current_dir(tools::root().join("fuzz"))
        .env("RUSTFLAGS", INSTRUMENTED);
    finish(&mut command)
}

/// Programs, found inputs and failures.
fn work_dir() -> PathBuf {
    tools::bin_dir("dev").join("../fuzz-run")
}

/// All targets, some at a time.
fn parsers() -> Result<()> {
    let folder = tools::root().join("fuzz/corpus");
    let mut names = vec![];
    for entry in std::fs::read_dir(folder).context("read fuzz/corpus")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    names.reverse();
    let seconds = number("FUZZ_SECONDS")?.unwrap_or(SECONDS);
    let seed = number("FUZZ_SEED")?.unwrap_or_else(by_the_clock);
    println!(
        "FUZZ_SEED={seed}, {seconds} s for each of {} targets",
        names.len()
    );
    let waiting = Mutex::new(names);
    let failed = Mutex::new(vec![]);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(name) = pop(&waiting) {
                    if let Err(error) = target(&name, seconds, seed) {
                        println!("{name}: {error:#}");
                        failed
                            .lock()
                            .unwrap_or_else(|lock| lock.into_inner())
                            .push(name);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(|lock| lock.into_inner());
    ensure!(failed.is_empty(), "findings in {}", failed.join(", "));
    Ok(())
}

fn pop(names: &Mutex<Vec<String>>) -> Option<String> {
    names.lock().unwrap_or_else(|lock| lock.into_inner()).pop()
}

fn number(variable: &str) -> Result<Option<u64>> {
    let Some(text) = std::env::var_os(variable) else {
        return Ok(None);
    };
    let number = text.to_string_lossy().parse();
    number
        .map(Some)
        .with_context(|| format!("understand {variable}"))
}

/// libFuzzer takes seeds of 31 bits, and 0 for one of its own.
fn by_the_clock() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    1 + now.as_secs() % 0x7fff_fffe
}

/// Runs one target, and says how many inputs it tried and how much code they reached.
fn target(name: &str, seconds: u64, seed: u64) -> Result<()> {
    let found = work_dir().join("corpus").join(name);
    let failures = work_dir().join("failures");
    for folder in [&found, &failures] {
        std::fs::create_dir_all(folder)?;
    }
    let log = work_dir().join(format!("{name}.log"));
    let output = std::fs::File::create(&log)?;
    let mut command = Command::new(work_dir().join(TRIPLE).join("release").join(name));
    command
        .arg(&found)
        .arg(tools::root().join("fuzz/corpus").join(name))
        .args(LIMITS)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-seed={seed}"))
        .arg(format!("-artifact_prefix={}/{name}-", failures.display()))
        .arg("-print_final_stats=1")
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::null())
        .stderr(output);
    let status = command.status().with_context(|| format!("run {name}"))?;
    println!("{name}: {}", summary(&log)?);
    ensure!(
        status.success(),
        "a failure is in {}, its log is {}",
        failures.display(),
        log.display()
    );
    Ok(())
}

/// The counts of a run, from libFuzzer's last words.
fn summary(log: &Path) -> Result<String> {
    let text = String::from_utf8_lossy(&std::fs::read(log)?).into_owned();
    let value = |key: &str| {
        // Not what a failing input made the target print.
        let mut lines = text.lines().rev();
        let line = lines.find(|line| line.starts_with(['#', 's']) && line.contains(key))?;
        let rest = line.split_once(key)?.1.trim_start();
        rest.split_whitespace().next().map(str::to_owned)
    };
    let value = |key: &str| value(key).unwrap_or_else(|| "?".to_owned());
    Ok(format!(
        "{} inputs, {} edges, {} features, slowest {} s",
        value("number_of_executed_units:"),
        value("cov:"),
        value("ft:"),
        value("slowest_unit_time_sec:"),
    ))
}
