//! `cargo xtask test observability`: dashboards, alerts and metrics against a real Prometheus.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::test::{prepare, step};
use crate::tools;

/// What Debian calls Prometheus, and what draws the pictures.
const PACKAGES: [&str; 2] = ["prometheus", "python3-matplotlib"];

/// Checks the alerts by promtool, and every panel and rule on a lab at work; draws the panels.
///
/// # Errors
/// With the first part that failed.
pub(crate) fn run() -> Result<()> {
    prepare()?;
    step("packages", packages)?;
    let folder = tools::root().join("observability");
    step("alerts", || {
        promtool(&folder, &["check", "rules", "alerts.yaml"])?;
        promtool(&folder, &["test", "rules", "alerts_test.yaml"])
    })?;
    step("build", || {
        tools::cargo(&["build", "--workspace", "--all-targets"])
    })?;
    let suite = [
        "test",
        "--workspace",
        "--test",
        "godwit",
        "observability_suite",
    ];
    let suite = [&suite[..], &["--", "--nocapture", "--test-threads=1"]].concat();
    step("panels and rules", || tools::cargo(&suite))?;
    step("pictures", || {
        let panels = tools::root().join("target/tmp/panels.json");
        let mut draw = Command::new("/usr/bin/python3");
        draw.arg(folder.join("draw.py"));
        draw.arg(panels).arg(tools::root().join("docs/pictures"));
        succeeds(draw)
    })
}

/// Installs what is missing. The package's own server is not needed and is stopped.
fn packages() -> Result<()> {
    let there = |program: &str| Path::new("/usr/bin").join(program).exists();
    let drawn = Path::new("/usr/lib/python3/dist-packages/matplotlib").exists();
    if there("prometheus") && there("promtool") && drawn {
        return Ok(());
    }
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "--no-install-recommends"]);
    // Nothing is to be started by the installation.
    install.args(PACKAGES).env("RUNLEVEL", "1");
    succeeds(install)?;
    let mut disable = Command::new("systemctl");
    disable.args(["disable", "--now", "prometheus"]);
    // A machine without systemd has not started it.
    let _ = disable.output();
    Ok(())
}

fn promtool(folder: &Path, arguments: &[&str]) -> Result<()> {
    let mut promtool = Command::new("promtool");
    promtool.args(arguments).current_dir(folder);
    succeeds(promtool)
}

fn succeeds(mut command: Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
