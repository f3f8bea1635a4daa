//! Facts about the machine that the bench runs on.

use std::process::Command;

use super::report::Machine;
use crate::tools;

/// What can be said before anything runs.
pub(crate) fn describe() -> Machine {
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let memory = read("/proc/meminfo");
    let memory = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    Machine {
        date: jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string(),
        commit: commit(),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        cpu: cpu.map(|(_, model)| model.to_owned()).unwrap_or_default(),
        memory_kib: memory
            .and_then(|text| text.split_whitespace().next()?.parse().ok())
            .unwrap_or_default(),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        qemu: String::new(),
        accelerator: String::new(),
        load_before: load(),
        load_after: String::new(),
        steal_percent: 0.0,
    }
}

/// Load averages: 1, 5 and 15 minutes.
pub(crate) fn load() -> String {
    let text = read("/proc/loadavg");
    let averages: Vec<&str> = text.split_whitespace().take(3).collect();
    averages.join(" ")
}

/// CPU time of the machine so far: all, and what the hypervisor took away.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CpuTime {
    all: u64,
    stolen: u64,
}

impl CpuTime {
    /// So far.
    pub(crate) fn now() -> Self {
        let text = read("/proc/stat");
        let line = text.lines().next().unwrap_or_default();
        let fields = line.split_whitespace().skip(1).take(8);
        let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
        Self {
            all: ticks.iter().sum(),
            stolen: ticks.get(7).copied().unwrap_or_default(),
        }
    }

    /// Stolen share since then, in percent.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn stolen_since(self) -> f64 {
        let now = Self::now();
        let all = now.all.saturating_sub(self.all).max(1);
        now.stolen.saturating_sub(self.stolen) as f64 * 100.0 / all as f64
    }
}

fn commit() -> String {
    let git = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .current_dir(tools::root())
        .output();
    git.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
