//! Metrics: one registry a process, served as OpenMetrics text.

use std::fmt::Error;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::build;

/// Media type of the text that [`Metrics::text`] gives.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Ticks a second in `/proc/PID/stat`: `USER_HZ`, the same on every Linux that we run on.
const TICKS: f64 = 100.0;

/// The process's registry.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    certificates: Arc<OnceLock<Certificates>>,
}

impl Metrics {
    /// A registry that tells of the process itself.
    pub(crate) fn of_process(service: &'static str) -> Self {
        let metrics = Self::default();
        metrics.registry(|registry| {
            registry.register_collector(Box::new(Process {
                started: SystemTime::now(),
            }));
            let labels = vec![
                ("service", service),
                ("version", build::VERSION),
                ("commit", build::COMMIT),
            ];
            registry.register("godwit_build", "Which build runs", Info::new(labels));
        });
        metrics
    }

    /// Registers metrics.
    pub fn registry<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Those of certificates, registered when somebody first has one to tell of.
    pub(crate) fn certificates(&self) -> Certificates {
        let register = || self.registry(Certificates::register);
        self.certificates.get_or_init(register).clone()
    }

    /// All metrics as text.
    ///
    /// # Errors
    /// When a metric can't be written as text.
    pub fn text(&self) -> Result<String, Error> {
        let mut text = String::new();
        encode(
            &mut text,
            &self.registry.lock().unwrap_or_else(PoisonError::into_inner),
        )?;
        Ok(text)
    }
}

/// How the files of certificates are, by path.
#[derive(Debug, Clone, Default)]
pub(crate) struct Certificates {
    ends: Family<[(&'static str, String); 1], Gauge>,
    read: Family<[(&'static str, String); 1], Gauge>,
    refused: Family<[(&'static str, String); 1], Gauge>,
}

impl Certificates {
    fn register(registry: &mut Registry) -> Self {
        let all = Self::default();
        registry.register_with_unit(
            "godwit_certificate_not_after",
            "When the certificate in force is over, since the Unix epoch; of several, the first",
            Unit::Seconds,
            all.ends.clone(),
        );
        registry.register_with_unit(
            "godwit_certificate_read",
            "When the certificate in force and its authorities were read, since the Unix epoch",
            Unit::Seconds,
            all.read.clone(),
        );
        registry.register(
            "godwit_certificate_refused",
            "Whether the files beside this certificate can't be used as they are, and older ones are in force",
            all.refused.clone(),
        );
        all
    }

    /// The certificate in `file` is over at `ends`, seconds since 1970.
    pub(crate) fn ends(&self, file: &Path, ends: i64) {
        self.ends.get_or_create(&label(file)).set(ends);
    }

    /// The certificate in `file` was read at `now`, seconds since 1970.
    pub(crate) fn read(&self, file: &Path, now: i64) {
        self.read.get_or_create(&label(file)).set(now);
    }

    /// Whether what is in `file` was refused.
    pub(crate) fn refused(&self, file: &Path, refused: bool) {
        let refused = i64::from(refused);
        self.refused.get_or_create(&label(file)).set(refused);
    }
}

fn label(file: &Path) -> [(&'static str, String); 1] {
    [("file", file.display().to_string())]
}

/// What the kernel knows of this process, under the names that Prometheus' clients agreed on.
#[derive(Debug)]
struct Process {
    started: SystemTime,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let started = self.started.duration_since(SystemTime::UNIX_EPOCH);
        let started = started.unwrap_or_default().as_secs_f64();
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: f64| {
            let metric = ConstGauge::new(value);
            let kind = metric.metric_type();
            metric.encode(encoder.encode_descriptor(name, help, unit, kind)?)
        };
        gauge(
            "process_start_time",
            "Start of the process since the Unix epoch",
            Some(&Unit::Seconds),
            started,
        )?;
        if let Some((resident, threads)) = memory_and_threads() {
            gauge(
                "process_resident_memory",
                "Memory that the process holds",
                Some(&Unit::Bytes),
                resident,
            )?;
            gauge("process_threads", "Threads of the process", None, threads)?;
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            let open = u32::try_from(open.count()).unwrap_or(u32::MAX);
            gauge(
                "process_open_fds",
                "Open file descriptors",
                None,
                open.into(),
            )?;
        }
        if let Some(seconds) = cpu_seconds() {
            let metric = ConstCounter::new(seconds);
            let kind = metric.metric_type();
            let help = "CPU time used in user and kernel mode";
            let unit = Some(&Unit::Seconds);
            metric.encode(encoder.encode_descriptor("process_cpu", help, unit, kind)?)?;
        }
        Ok(())
    }
}

/// Resident bytes and threads of this process.
fn memory_and_threads() -> Option<(f64, f64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let number = |key: &str| -> Option<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some((number("VmRSS:")? * 1024.0, number("Threads:")?))
}

fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the name in brackets and may hold anything; utime is the 14th.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_tells_of_itself() {
        let text = Metrics::of_process("test").text().unwrap();
        for name in [
            "process_resident_memory_bytes ",
            "process_cpu_seconds_total ",
            "process_start_time_seconds ",
            "process_threads ",
            "process_open_fds ",
            "godwit_build_info{service=\"test\"",
        ] {
            assert!(
                text.contains(&format!("\n{name}")),
                "{name} is not in:\n{text}"
            );
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
