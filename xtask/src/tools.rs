//! What the other commands need on this machine: packages, programs, a terminal.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};

/// What the lab runs on, by the program or file that shows that a package is there.
const PACKAGES: [(&str, &str); 9] = [
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/lib/postgresql", "postgresql"),
    ("/bin/busybox", "busybox-static"),
    ("/sbin/ip", "iproute2"),
    ("/bin/ping", "iputils-ping"),
    ("/usr/lib/x86_64-linux-gnu/libc.a", "libc6-dev"),
    ("/usr/bin/gcc", "gcc"),
    ("/usr/bin/setpriv", "util-linux"),
    ("/usr/sbin/nft", "nftables"),
];

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Where programs of `profile` are built.
pub(crate) fn bin_dir(profile: &str) -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join(if profile == "dev" { "debug" } else { profile })
}

/// What may be kept between runs.
pub(crate) fn cache_dir() -> PathBuf {
    bin_dir("dev").join("../lab-cache")
}

/// A line that shows what is being done, and for how long.
pub(crate) fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Says a step: on the line of a terminal, or as lines of their own where there is none.
pub(crate) fn say(bar: &ProgressBar, text: &str) {
    if bar.is_hidden() {
        println!("{text}");
    } else {
        bar.set_message(text.to_owned());
    }
}

/// Installs the Debian packages that are missing.
///
/// # Errors
/// When apt-get fails; what it said is on the terminal.
pub(crate) fn ensure_packages(bar: &ProgressBar) -> Result<()> {
    ensure_installed(bar, &PACKAGES)
}

/// Installs those of `wanted` that are missing: a file that shows it, and the Debian package.
///
/// # Errors
/// When apt-get fails; what it said is on the terminal.
pub(crate) fn ensure_installed(bar: &ProgressBar, wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(shows, _)| !Path::new(shows).exists())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() && has_package_lists() {
        return Ok(());
    }
    say(bar, &format!("installing packages: {}", missing.join(", ")));
    apt_get(&["update", "-qq"])?;
    // The package would make and start a cluster of its own; the lab's is private.
    let config = Path::new("/etc/postgresql-common/createcluster.d");
    if missing.contains(&"postgresql") {
        std::fs::create_dir_all(config)?;
        std::fs::write(
            config.join("godwit-lab.conf"),
            "create_main_cluster = false\n",
        )?;
    }
    if missing.is_empty() {
        return Ok(());
    }
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(missing);
    apt_get(&install)
}

/// Whether apt knows what there is: the guest and kubectl are unpacked from packages later.
fn has_package_lists() -> bool {
    let lists = std::fs::read_dir("/var/lib/apt/lists")
        .into_iter()
        .flatten()
        .flatten();
    lists
        .into_iter()
        .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let output = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .context("run apt-get: the lab needs Debian or Ubuntu, and root")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "apt-get {}: {}",
        arguments.join(" "),
        said.trim()
    );
    Ok(())
}

/// The packages of what a lab runs.
pub(crate) const PROGRAMS: [&str; 6] = [
    "godwit-cli",
    "godwit-api-gateway",
    "godwit-scheduler",
    "godwit-migration-coordinator",
    "godwit-maintenance-service",
    "godwit-node-agent",
];

/// Builds the services and the godwit command.
///
/// # Errors
/// When cargo fails; what it said is on the terminal.
pub(crate) fn build_programs(profile: &str) -> Result<()> {
    let mut arguments = vec!["build", "--bins", "--profile", profile];
    arguments.extend(PROGRAMS.iter().flat_map(|package| ["--package", package]));
    cargo(&arguments)
}

/// Runs cargo, with its own progress on the terminal.
///
/// # Errors
/// When it fails.
pub(crate) fn cargo(arguments: &[&str]) -> Result<()> {
    let status = cargo_command().args(arguments).status()?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}

/// The cargo that runs this, in the workspace's folder.
pub(crate) fn cargo_command() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root());
    command
}
