//! What each service of a lab holds in memory.

use anyhow::Result;
use godwit_testkit::lab::Lab;

use super::report::Memory;

/// Every service, as it is at this moment.
pub(crate) fn of(lab: &Lab) -> Result<Vec<Memory>> {
    lab.services()
        .iter()
        .filter_map(|service| Some((service.name.clone(), service.process()?.pid)))
        .map(|(service, pid)| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            Ok(Memory {
                service,
                rss_kib: field(&status, "VmRSS:"),
                rss_anon_kib: field(&status, "RssAnon:"),
                peak_kib: field(&status, "VmHWM:"),
                threads: field(&status, "Threads:"),
            })
        })
        .collect()
}

/// A number of `/proc/PID/status`; 0 when it has none.
fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}
