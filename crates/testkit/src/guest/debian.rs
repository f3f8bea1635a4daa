//! Debian packages as a source of files: downloaded and unpacked, never installed.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package that the meta package `name` depends on first, for example the present kernel.
///
/// # Errors
/// When apt doesn't know it; `apt-get update` may help.
pub(super) fn resolve(name: &str) -> Result<String> {
    let output = run(Command::new("apt-cache").args(["depends", name]))?;
    let text = String::from_utf8_lossy(&output);
    let first = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "));
    first
        .map(str::to_owned)
        .with_context(|| format!("apt knows no {name}: run apt-get update"))
}

/// Downloads `package` and unpacks it below `directory`; returns the root of its files.
///
/// # Errors
/// When apt or dpkg fails.
pub(super) fn unpack(package: &str, directory: &Path) -> Result<PathBuf> {
    let downloads = directory.join(format!("{package}.download"));
    let root = directory.join(package);
    std::fs::create_dir_all(&downloads)?;
    run(Command::new("apt-get")
        .args(["download", package])
        .current_dir(&downloads))?;
    let file = std::fs::read_dir(&downloads)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let file = file.with_context(|| format!("apt-get download {package} left no file"))?;
    run(Command::new("dpkg-deb").arg("-x").arg(file).arg(&root))?;
    Ok(root)
}

/// Runs a command; returns what it printed.
///
/// # Errors
/// When it can't be run or fails, with what it wrote to standard error.
pub(super) fn run(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}

/// Whether a file is a program for 64-bit Linux that needs no loader.
///
/// # Errors
/// When it can't be read or isn't ELF.
pub(super) fn is_static(program: &Path) -> Result<bool> {
    const INTERPRETER: u32 = 3;
    let bytes = std::fs::read(program)?;
    let read = |at: usize, length: usize| -> Result<u64> {
        let field = bytes
            .get(at..at + length)
            .context("ELF header is cut off")?;
        Ok(field
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    ensure!(
        bytes.starts_with(b"\x7fELF\x02"),
        "{} is no 64-bit ELF file",
        program.display()
    );
    let table = usize::try_from(read(32, 8)?)?;
    let size = usize::try_from(read(54, 2)?)?;
    let count = usize::try_from(read(56, 2)?)?;
    for index in 0..count {
        if read(table + index * size, 4)? == u64::from(INTERPRETER) {
            return Ok(false);
        }
    }
    Ok(true)
}
