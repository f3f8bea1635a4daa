//! `cargo xtask mutants`: takes one guard of the protocol out of the code at a time, in a copy, and
//! runs the check that has to notice. A guard that nobody misses is not tested.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::test::prepare;
use crate::tools;

/// A guard, how it is taken away, and the check that must fail without it.
struct Mutant {
    guard: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
    check: &'static [&'static str],
    /// What the check says when it fails for want of the guard, and not for another reason.
    says: &'static str,
}

const MUTANTS: [Mutant; 5] = [
    Mutant {
        guard: "the agents refuse orders of older epochs",
        file: "crates/model/src/migration/grant.rs",
        from: "if epoch < self.seen {",
        to: "if false && epoch < self.seen {",
        check: MODEL_CHECK,
        says: "VIOLATED",
    },
    Mutant {
        guard: "the ledger refuses writes of older epochs",
        file: "crates/ledger/queries/job_record.sql",
        from: "WHERE id = $1 AND state = $2 AND epoch = $4",
        to: "WHERE id = $1 AND state = $2 AND epoch >= $4",
        check: LEDGER_JOBS,
        says: "a_job_has_one_owner_and_a_stale_one_changes_nothing ... FAILED",
    },
    Mutant {
        guard: "the target's QEMU starts paused (-S)",
        file: "crates/qemu/src/command_line.rs",
        from: "    line.flag(\"-S\");",
        to: "    if matches!(role, Role::Start) {\n        line.flag(\"-S\");\n    }",
        check: FAULTS,
        says: "the guest said again",
    },
    Mutant {
        guard: "a source is reverted only after the target's tombstone",
        file: "crates/model/src/migration/decide/undo.rs",
        from: "        Some(TargetState::Discarded) => Action::Command(Command::RevertSource),\n        Some(target) => discard(target),\n",
        to: "        Some(_) => Action::Command(Command::RevertSource),\n",
        check: MODEL_CHECK,
        says: "VIOLATED",
    },
    Mutant {
        guard: "the proof is sent only of a QEMU that completed",
        file: "crates/model/src/migration/source.rs",
        from: "                self.deadline.get_or_insert(due);\n                vec![]",
        to: "                self.deadline.get_or_insert(due);\n                vec![SourceEffect::SendProof]",
        check: MODEL_CHECK,
        says: "VIOLATED",
    },
];

impl Mutant {
    /// The file without the guard.
    fn take_out(&self, sound: &str) -> Result<String> {
        ensure!(
            sound.matches(self.from).count() == 1,
            "{}: the guard is not where it was: {:?}",
            self.file,
            self.from
        );
        Ok(sound.replacen(self.from, self.to, 1))
    }
}

/// The exhaustive check of the real decision code, as far as every test run goes.
const MODEL_CHECK: &[&str] = &[
    "run",
    "--release",
    "--package",
    "godwit-sim",
    "--example",
    "check",
    "--",
    "--quick",
];
/// Jobs in a real Postgres.
const LEDGER_JOBS: &[&str] = &[
    "test",
    "--package",
    "godwit-tests",
    "--test",
    "godwit",
    "ledger_jobs",
];
/// Real machines: a migration cancelled when its source has stopped.
const FAULTS: &[&str] = &[
    "test",
    "--workspace",
    "--test",
    "godwit",
    "fault_suite_matrix",
    "--",
    "--nocapture",
];

/// Runs every mutant, and prints which check noticed.
///
/// # Errors
/// When a mutant survives, or a check fails without any.
pub(crate) fn run() -> Result<()> {
    prepare()?;
    let copy = Copied::make()?;
    for check in [MODEL_CHECK, LEDGER_JOBS, FAULTS] {
        let began = Instant::now();
        let passed = copy.cargo(&build_only(check))? && copy.cargo(check)?;
        ensure!(passed, "fails without a mutant: {}", check.join(" "));
        let (check, seconds) = (check.join(" "), began.elapsed().as_secs());
        println!("  passes  with all guards  ({check}, {seconds} s)");
    }
    let mut survivors = vec![];
    for mutant in &MUTANTS {
        let began = Instant::now();
        let noticed = copy.noticed(mutant)?;
        let verdict = if noticed { "noticed" } else { "SURVIVED" };
        println!(
            "{verdict:>8}  without: {}  ({}, {} s)",
            mutant.guard,
            mutant.check.join(" "),
            began.elapsed().as_secs()
        );
        if !noticed {
            survivors.push(mutant.guard);
        }
    }
    ensure!(
        survivors.is_empty(),
        "nobody missed: {}",
        survivors.join("; ")
    );
    Ok(())
}

/// A copy of the committed sources, with its own build.
struct Copied {
    dir: PathBuf,
}

impl Copied {
    /// One that is there is brought up to date, so that only what changed is built anew.
    fn make() -> Result<Self> {
        let dir = tools::cache_dir().join("mutants");
        let root = tools::root().to_string_lossy().into_owned();
        if dir.exists() {
            git(&dir, &["fetch", "--quiet", &root, "HEAD"])?;
            git(&dir, &["reset", "--quiet", "--hard", "FETCH_HEAD"])?;
        } else {
            let path = dir.to_string_lossy().into_owned();
            git(
                Path::new(&root),
                &["clone", "--quiet", "--shared", ".", &path],
            )?;
        }
        Ok(Self { dir })
    }

    /// Whether the check fails, that has to hold before, and for want of the guard.
    fn noticed(&self, mutant: &Mutant) -> Result<bool> {
        let file = self.dir.join(mutant.file);
        let sound = fs::read_to_string(&file)?;
        fs::write(&file, mutant.take_out(&sound)?)?;
        let built = self.cargo(&build_only(mutant.check))?;
        let passed = built && self.cargo(mutant.check)?;
        fs::write(&file, sound)?;
        ensure!(built, "{}: the mutant does not build", mutant.guard);
        let log = fs::read_to_string(self.log())?;
        ensure!(
            passed || log.contains(mutant.says),
            "{}: the check fails for another reason than {:?}: {}",
            mutant.guard,
            mutant.says,
            self.log().display()
        );
        Ok(!passed)
    }

    /// What the last command said.
    fn log(&self) -> PathBuf {
        self.dir.join("mutant.log")
    }

    fn cargo(&self, arguments: &[&str]) -> Result<bool> {
        let log = fs::File::create(self.log())?;
        let status = Command::new("cargo")
            .args(arguments)
            .env("CARGO_TARGET_DIR", target(&self.dir))
            .env("FAULTS", "CancelledComplete+Coordinator+ledger.Copying")
            .current_dir(&self.dir)
            .stdout(log.try_clone()?)
            .stderr(log)
            .status()
            .context("run cargo")?;
        Ok(status.success())
    }
}

fn git(dir: &Path, arguments: &[&str]) -> Result<()> {
    let status = Command::new("git")
        .args(arguments)
        .current_dir(dir)
        .status();
    ensure!(
        status.context("run git")?.success(),
        "the sources could not be copied"
    );
    Ok(())
}

/// Builds of mutants are kept apart from the sound ones.
fn target(dir: &Path) -> PathBuf {
    dir.with_file_name("mutants-target")
}

/// The same command, that stops before it runs anything.
fn build_only<'a>(check: &[&'a str]) -> Vec<&'a str> {
    let end = check
        .iter()
        .position(|word| *word == "--")
        .unwrap_or(check.len());
    if check[0] == "run" {
        return [&["build"], &check[1..end]].concat();
    }
    if check.contains(&"--workspace") {
        return vec!["build", "--workspace", "--all-targets"];
    }
    [&check[..end], &["--no-run"]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_guard_is_where_it_was() {
        for mutant in &MUTANTS {
            let sound = fs::read_to_string(tools::root().join(mutant.file)).unwrap();
            assert_ne!(mutant.take_out(&sound).unwrap(), sound);
        }
    }
}
