//! What a host that pretends says of itself: to the scheduler at start, each second, and after each
//! change, as real agents do.

use std::sync::Arc;
use std::time::Duration;

use godwit_model::MachineId;
use godwit_rpc::client;
use godwit_rpc::inventory::v1::inventory_client::InventoryClient;
use godwit_rpc::inventory::v1::{HostInventory, HostReport, StaleMachine};

use super::host::Host;

/// Longest silence towards the scheduler.
const EVERY: Duration = Duration::from_secs(1);
/// Changes within this time travel together.
const SETTLE: Duration = Duration::from_millis(10);
/// Longest wait for the scheduler.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Hosts that begin to report in the same millisecond.
const TOGETHER: usize = 4;

/// Reports until the fleet ends. Hosts of a large fleet don't all begin at once.
pub(crate) async fn report(host: Arc<Host>, number: usize) {
    let Ok(channel) = client::connect(&host.world.options.scheduler, None) else {
        return;
    };
    let mut scheduler = InventoryClient::new(channel);
    let mut changes = host.changed.subscribe();
    let later = u64::try_from(number / TOGETHER).unwrap_or_default();
    tokio::time::sleep(Duration::from_millis(later)).await; // spreads the load
    while !host.world.shutdown.is_cancelled() {
        changes.mark_unchanged();
        let call = client::within(ANSWER_MAX, host.report());
        let heard = match scheduler.report(call).await {
            Ok(answer) => {
                host.end_stale(answer.into_inner().stale);
                true
            }
            Err(_) => false,
        };
        tokio::select! {
            () = host.world.shutdown.cancelled() => {}
            () = tokio::time::sleep(EVERY) => {}
            _ = changes.changed(), if heard => tokio::time::sleep(SETTLE).await,
        }
    }
}

impl Host {
    fn report(&self) -> HostReport {
        let options = &self.world.options;
        let labels = [
            ("topology.kubernetes.io/zone".to_owned(), self.zone.clone()),
            ("kubernetes.io/hostname".to_owned(), self.name.to_string()),
        ];
        HostReport {
            node: self.name.to_string(),
            agent_address: self.address.clone(),
            boot_id: "pretended".to_owned(),
            agent_started_at: "2026-01-01T00:00:00Z".to_owned(),
            inventory: Some(HostInventory {
                memory_bytes: options.memory.0,
                cpu_milli: options.cpu_milli,
                accelerator: "kvm".to_owned(),
                qemu_version: "7.2.22".to_owned(),
                machine_types: vec!["pc-q35-7.2".to_owned()],
                cpu_models: vec!["qemu64".to_owned()],
                networks: vec!["lan".to_owned()],
                images: vec![],
                labels: labels.into(),
                internal_ip: "127.0.0.1".to_owned(),
                agent_version: "pretended".to_owned(),
                ..HostInventory::default()
            }),
            machines: self.reports(),
        }
    }

    /// Ends machines that were taken from this host.
    fn end_stale(&self, stale: Vec<StaleMachine>) {
        for StaleMachine { machine, .. } in stale {
            let Ok(machine) = MachineId::parse(machine) else {
                continue;
            };
            self.state().machines.remove(&machine);
            self.world.oracle.stops(&machine, &self.name);
            self.tell();
        }
    }
}
