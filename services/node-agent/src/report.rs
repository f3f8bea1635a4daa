//! What this host says of itself: to every scheduler at start, each second, and after each change.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use godwit_model::machine::MachineSpec;
use godwit_model::migration::target::TargetState;
use godwit_model::{Epoch, MachineId};
use godwit_rpc::agent::v1 as wire;
use godwit_rpc::inventory::v1::inventory_client::InventoryClient;
use godwit_rpc::inventory::v1::{HostInventory, HostReport, Hugepages, Pool, StaleMachine};

use crate::addresses::parse_mac;
use crate::check::from_meminfo;
use crate::config::Settings;
use crate::host::Host;
use crate::hugepages;
use crate::machines::{MachineState, View};
use crate::vm::Vm;

/// Label of a node: how memory leaves it and comes to it, `encrypted` or `clear`.
const COPIES_LABEL: &str = "godwit.io/copies";

/// Longest silence towards a scheduler.
const EVERY: Duration = Duration::from_secs(1);

/// Changes within this time travel together.
const SETTLE: Duration = Duration::from_millis(10);

/// Longest wait for a scheduler.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Reports to the scheduler at `address` until shutdown.
pub(crate) async fn report(host: Arc<Host>, address: String) {
    let shutdown = host.shutdown.clone();
    let inventory = inventory(&host);
    let mut changes = host.changes();
    let mut heard = true;
    let channel = match host.dial(&address) {
        Ok(channel) => channel,
        Err(error) => {
            warn!(
                address,
                error = crate::text::chain(&error),
                "no way to the scheduler"
            );
            return;
        }
    };
    let mut client = InventoryClient::new(channel);
    while !shutdown.is_cancelled() {
        changes.mark_unchanged();
        let report = host_report(&host, &inventory);
        let why = match timeout(ANSWER_LIMIT, client.report(report)).await {
            Ok(Ok(answer)) => {
                end_stale(&host, answer.into_inner().stale);
                None
            }
            Ok(Err(status)) => Some(status.to_string()),
            Err(_) => Some(format!("no answer within {} s", ANSWER_LIMIT.as_secs())),
        };
        match (heard, &why) {
            (true, Some(why)) => warn!(address, why, "scheduler does not take reports"),
            (false, None) => info!(address, "scheduler takes reports again"),
            (true, None) | (false, Some(_)) => {}
        }
        heard = why.is_none();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = sleep(EVERY) => {}
            // After a failure a change is no reason to hurry.
            _ = changes.changed(), if heard => sleep(SETTLE).await,
        }
    }
}

/// Ends machines that were taken from this host. Beside the reports, which don't wait for it.
fn end_stale(host: &Host, stale: Vec<StaleMachine>) {
    for StaleMachine { machine, epoch } in stale {
        let id = MachineId::parse(machine).ok();
        let Some(machine) = id.and_then(|id| host.machine(&id)) else {
            continue;
        };
        tokio::spawn(async move {
            if let Err(error) = machine.expel(Epoch(epoch)).await {
                let error = crate::text::chain(&error);
                warn!(error, "machine that was taken from this host is not ended");
            }
        });
    }
}

fn host_report(host: &Host, inventory: &HostInventory) -> HostReport {
    HostReport {
        node: host.config.node.to_string(),
        agent_address: host.config.advertise_address.clone(),
        boot_id: godwit_qemu::process::boot_id().unwrap_or_default(),
        agent_started_at: host.started_at.to_string(),
        inventory: Some(HostInventory {
            memory_bytes: memory(host),
            hugepages: pages(host),
            ..inventory.clone()
        }),
        machines: machines(host),
    }
}

/// Memory for guests and their QEMU, but for what is set apart in huge pages.
fn memory(host: &Host) -> u64 {
    let kept = host.config.memory_reserved.0 + hugepages::set_apart().0;
    total_memory().saturating_sub(kept)
}

fn pages(host: &Host) -> Vec<Hugepages> {
    let sizes = hugepages::usable(host).into_iter();
    sizes
        .map(|(size, total)| Hugepages {
            page_bytes: size.bytes().0,
            total_bytes: total.0,
        })
        .collect()
}

/// What stays so while the agent runs.
fn inventory(host: &Host) -> HostInventory {
    let config = &host.config;
    let system = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let pools = config.pools.iter().map(|(name, pool)| Pool {
        name: name.clone(),
        path: pool.path.to_string_lossy().into_owned(),
        shared: pool.shared,
    });
    HostInventory {
        cpu_milli: std::thread::available_parallelism()
            .map_or(0, |count| count.get() as u64 * 1000),
        accelerator: host.facts.accelerator.as_str().to_owned(),
        qemu_version: host.facts.version.to_string(),
        machine_types: host.facts.machine_types.clone(),
        cpu_models: host.facts.cpu_models.clone(),
        networks: config.networks.keys().cloned().collect(),
        pools: pools.collect(),
        images: config.images.keys().cloned().collect(),
        labels: labels(config),
        kernel_version: text(system.release()),
        os_image: os_image(),
        architecture: match text(system.machine()).as_str() {
            "x86_64" => "amd64".to_owned(),
            "aarch64" => "arm64".to_owned(),
            other => other.to_owned(),
        },
        internal_ip: internal_ip(&config.advertise_address),
        agent_version: godwit_runtime::build::VERSION.to_owned(),
        ..HostInventory::default()
    }
}

/// The labels of the configuration, and whether memory leaves and comes encrypted.
fn labels(config: &Settings) -> HashMap<String, String> {
    let copies = match config.encrypt_copies {
        true => "encrypted",
        false => "clear",
    };
    let labels = config.labels.clone().into_iter();
    labels
        .chain([(COPIES_LABEL.to_owned(), copies.to_owned())])
        .collect()
}

fn total_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    from_meminfo(&text, "MemTotal:").unwrap_or_default().0
}

fn os_image() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or_default().trim_matches('"').to_owned()
}

/// The host part of a URL, without the brackets of an IPv6 address.
fn internal_ip(url: &str) -> String {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned()
}

/// All machines of this host, and the copies that are arriving.
pub(crate) fn machines(host: &Host) -> Vec<wire::MachineReport> {
    let mut reports: Vec<wire::MachineReport> = host
        .machines()
        .iter()
        .map(|machine| machine_report(host, &machine.view()))
        .collect();
    host.metrics
        .machines(reports.iter().filter(|report| report.pid != 0).count());
    for (machine, half) in host.targets() {
        let fact = half.fact();
        let arriving = is_arriving(fact.state);
        if arriving
            && !reports
                .iter()
                .any(|report| report.machine == machine.as_str())
        {
            reports.push(incoming_report(&machine, fact.reason));
        }
    }
    reports
}

/// Whether a copy of the machine is being loaded here, or about to run.
pub(crate) const fn is_arriving(state: TargetState) -> bool {
    match state {
        TargetState::Preparing
        | TargetState::Prepared
        | TargetState::Loaded
        | TargetState::Continuing => true,
        TargetState::Absent
        | TargetState::Running
        | TargetState::Discarded
        | TargetState::Lost { .. } => false,
    }
}

/// One machine as it is reported.
pub(crate) fn machine_report(host: &Host, view: &View) -> wire::MachineReport {
    let state = match view.state {
        MachineState::Starting => wire::MachineState::Starting,
        MachineState::Running => wire::MachineState::Running,
        MachineState::Paused => wire::MachineState::Paused,
        MachineState::Stopping => wire::MachineState::Stopping,
        MachineState::Stopped => wire::MachineState::Stopped,
        MachineState::Crashed => wire::MachineState::Crashed,
        MachineState::Migrated => wire::MachineState::Migrated,
    };
    wire::MachineReport {
        machine: view.spec.id.to_string(),
        state: state.into(),
        message: view.message.clone(),
        interfaces: interfaces(host, &view.spec, view.vm.as_deref()),
        pid: view.vm.as_ref().map_or(0, |vm| vm.identity().pid),
        started_at: view.started_at.map(|at| at.to_string()).unwrap_or_default(),
        epoch: view.epoch.0,
    }
}

fn incoming_report(machine: &MachineId, message: String) -> wire::MachineReport {
    wire::MachineReport {
        machine: machine.to_string(),
        state: wire::MachineState::Incoming.into(),
        message,
        ..wire::MachineReport::default()
    }
}

fn interfaces(host: &Host, spec: &MachineSpec, vm: Option<&Vm>) -> Vec<wire::InterfaceReport> {
    let taps = vm.map(|vm| vm.place().taps.as_slice()).unwrap_or_default();
    let interface = |nic: &godwit_model::machine::Nic| {
        let tap = taps.iter().find(|tap| tap.nic == nic.name);
        let addresses = match (tap, parse_mac(&nic.mac)) {
            (Some(tap), Some(mac)) => host.addresses.of(tap.index, mac),
            _ => Vec::new(),
        };
        wire::InterfaceReport {
            name: nic.name.clone(),
            mac: nic.mac.clone(),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            device: tap.map(|tap| tap.device.clone()).unwrap_or_default(),
        }
    };
    spec.nics.iter().map(interface).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_internal_address_is_the_host_of_the_url() {
        assert_eq!(internal_ip("https://10.77.0.11:7110"), "10.77.0.11");
        assert_eq!(internal_ip("https://[fd00::7]:7110"), "fd00::7");
    }
}
