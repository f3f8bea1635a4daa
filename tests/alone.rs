//! Tests of what is true of a whole process.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::lab_suite::say;

/// Set for a test that has a process to itself: its name.
const ALONE: &str = "GODWIT_ALONE";

/// Whether this process runs `test`, a path, alone, for what is true of a whole process: its memory, and its
/// log. Else another process is made that does, and its end is waited for.
pub(crate) fn alone(test: &str) -> Result<bool> {
    if std::env::var(ALONE).is_ok_and(|name| name == test) {
        return Ok(true);
    }
    let run = Command::new(std::env::current_exe()?)
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, test)
        .output()?;
    let said = [run.stdout, run.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(run.status.success() && said.contains("1 passed"), "{said}");
    said.lines()
        .filter(|line| line.contains("p99"))
        .for_each(say);
    Ok(false)
}
