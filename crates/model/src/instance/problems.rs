//! Collects what can't be honoured, each with its path.

use super::{EvictionStrategy, FieldProblem};
use crate::vmi::{Quantity, Rest, VmiSpec};

/// Every field that can't be honoured.
#[derive(Default)]
pub(super) struct Problems(pub(super) Vec<FieldProblem>);

impl Problems {
    pub(super) fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldProblem {
            path: path.into(),
            message: message.into(),
        });
    }

    pub(super) fn rest(&mut self, path: &str, rest: &Rest) {
        for field in rest.keys() {
            let dot = if path.is_empty() { "" } else { "." };
            self.add(
                format!("{path}{dot}{field}"),
                "not supported on plain hosts",
            );
        }
    }

    /// Fields whose meaning nothing here carries out.
    pub(super) fn unknown(&mut self, spec: &VmiSpec) {
        let domain = &spec.domain;
        self.rest("", &spec.rest);
        self.rest("domain", &domain.rest);
        self.rest("domain.cpu", &domain.cpu.rest);
        self.rest("domain.memory", &domain.memory.rest);
        if let Some(hugepages) = &domain.memory.hugepages {
            self.rest("domain.memory.hugepages", &hugepages.rest);
        }
        self.rest("domain.resources", &domain.resources.rest);
        self.rest("domain.firmware", &domain.firmware.rest);
        self.rest("domain.devices", &domain.devices.rest);
        self.rest("domain.features", &domain.features.rest);
        self.rest("domain.clock", &domain.clock.rest);
        if let Some(utc) = &domain.clock.utc {
            self.rest("domain.clock.utc", &utc.rest);
        }
        self.only("architecture", spec.architecture.as_deref(), "amd64");
        self.only("startStrategy", spec.start_strategy.as_deref(), "Paused");
        if let Some(strategy) = &spec.eviction_strategy
            && EvictionStrategy::from_name(strategy).is_none()
        {
            let message = format!("is set with an unrecognized option: {strategy}");
            self.add("evictionStrategy", message);
        }
        let devices = &domain.devices;
        self.fixed(
            "autoattachMemBalloon",
            devices.autoattach_mem_balloon,
            false,
        );
        self.fixed(
            "autoattachGraphicsDevice",
            devices.autoattach_graphics_device,
            false,
        );
        self.fixed(
            "autoattachPodInterface",
            devices.autoattach_pod_interface,
            false,
        );
        self.fixed(
            "autoattachSerialConsole",
            devices.autoattach_serial_console,
            true,
        );
        self.fixed("logSerialConsole", devices.log_serial_console, true);
    }

    pub(super) fn only(&mut self, path: &str, value: Option<&str>, supported: &str) {
        if let Some(value) = value
            && value != supported
        {
            self.add(
                path,
                format!("{value:?} is not supported on plain hosts, only {supported:?}"),
            );
        }
    }

    fn fixed(&mut self, field: &str, value: Option<bool>, supported: bool) {
        if value.is_some_and(|value| value != supported) {
            let path = format!("domain.devices.{field}");
            self.add(
                path,
                format!("not supported on plain hosts, only {supported}"),
            );
        }
    }

    pub(super) fn quantity(&mut self, path: &str, value: &Quantity) -> Option<u64> {
        match value.whole() {
            Ok(number) => Some(number),
            Err(error) => {
                self.add(path, error.to_string());
                None
            }
        }
    }
}

/// Whether a text is safe as one value of a QEMU option: no comma, no equals sign, no blank.
pub(super) fn is_word(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !text.is_empty() && text.len() <= 64 && text.chars().all(good)
}
