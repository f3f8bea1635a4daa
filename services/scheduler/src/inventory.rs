//! What hosts say of themselves: heartbeats in memory, changes in the ledger.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use godwit_ledger::{Capacity, Ledger, LedgerError, NodeRow, Tx};
use godwit_model::placement::HostFacts;
use godwit_model::{Bytes, MachineId, NodeName};
use godwit_rpc::agent::v1::MachineReport;
use godwit_rpc::inventory::v1::{HostInventory, HostReport};
use jiff::Timestamp;
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::node_object;

/// How often silence is looked for.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// The last word of each host.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    heard: Mutex<HashMap<NodeName, Heard>>,
    /// Something about machines changed.
    pub(crate) machines_changed: Notify,
}

#[derive(Debug, Clone)]
struct Heard {
    report: Arc<HostReport>,
    at: Instant,
    /// Whether the ledger says that the host is ready.
    ready: bool,
}

impl Inventory {
    /// Takes a report; writes the ledger when anything but the machines changed.
    ///
    /// # Errors
    /// The ledger's; the agent reports again.
    pub(crate) async fn report(
        &self,
        ledger: &Ledger,
        node: NodeName,
        report: HostReport,
    ) -> Result<(), LedgerError> {
        let before = self.heard().get(&node).cloned();
        let known = before
            .as_ref()
            .is_some_and(|before| before.ready && same(&before.report, &report));
        let moved = before
            .as_ref()
            .is_none_or(|before| before.report.machines != report.machines);
        if !known {
            info!(%node, address = %report.agent_address, "node ready");
            let mut tx = ledger.begin().await?;
            write_node(&mut tx, &node, &report, true).await?;
            tx.commit().await?;
        }
        let heard = Heard {
            report: Arc::new(report),
            at: Instant::now(),
            ready: true,
        };
        self.heard().insert(node, heard);
        if moved {
            self.machines_changed.notify_one();
        }
        Ok(())
    }

    /// What `node` last said of `machine`; `None` when it said nothing, or is silent.
    pub(crate) fn machine(&self, node: &NodeName, machine: &MachineId) -> Option<MachineReport> {
        let heard = self.heard();
        let report = &heard.get(node).filter(|heard| heard.ready)?.report;
        report
            .machines
            .iter()
            .find(|report| report.machine == machine.as_str())
            .cloned()
    }

    /// Whether `node` answers.
    pub(crate) fn answers(&self, node: &NodeName) -> bool {
        self.heard().get(node).is_some_and(|heard| heard.ready)
    }

    /// How long `node` has been silent; `None` when it never said anything to this process.
    fn silence(&self, node: &NodeName) -> Option<Duration> {
        self.heard().get(node).map(|heard| heard.at.elapsed())
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, HashMap<NodeName, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fell_silent(&self, node: &NodeName) {
        if let Some(heard) = self.heard().get_mut(node) {
            heard.ready = false;
        }
    }
}

/// Marks hosts that are silent for `limit` as not ready. Nothing is restarted for that.
pub(crate) async fn watch_silence(
    inventory: Arc<Inventory>,
    ledger: Ledger,
    limit: Duration,
    shutdown: tokio_util::sync::CancellationToken,
) {
    let began = Instant::now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(WATCH_EVERY) => {} // poll
        }
        if let Err(error) = mark_silent(&inventory, &ledger, (limit, began.elapsed())).await {
            warn!(%error, "silent nodes could not be marked");
        }
    }
}

async fn mark_silent(
    inventory: &Inventory,
    ledger: &Ledger,
    (limit, up): (Duration, Duration),
) -> Result<(), LedgerError> {
    for node in ledger.nodes().await?.into_iter().filter(|node| node.ready) {
        // A host that this process never heard gets as long as one that it did.
        if inventory.silence(&node.name).unwrap_or(up) < limit {
            continue;
        }
        warn!(node = %node.name, "node is silent");
        inventory.fell_silent(&node.name);
        let mut tx = ledger.begin().await?;
        let name = node.name.clone();
        tx.node_put(NodeRow {
            ready: false,
            ..node
        })
        .await?;
        node_object::mark_silent(&mut tx, &name).await?;
        tx.commit().await?;
        inventory.machines_changed.notify_one();
    }
    Ok(())
}

async fn write_node(
    tx: &mut Tx,
    node: &NodeName,
    report: &HostReport,
    ready: bool,
) -> Result<(), LedgerError> {
    let inventory = report.inventory.clone().unwrap_or_default();
    let facts = serde_json::to_value(facts(&inventory)).unwrap_or_default();
    tx.node_put(NodeRow {
        name: node.clone(),
        agent_address: report.agent_address.clone(),
        boot_id: report.boot_id.clone(),
        ready,
        capacity: Capacity {
            memory: Bytes(inventory.memory_bytes),
            cpu_milli: inventory.cpu_milli,
        },
        facts,
        heartbeat_at: Timestamp::now(),
    })
    .await?;
    node_object::write(tx, node, &inventory, report).await
}

fn facts(inventory: &HostInventory) -> HostFacts {
    HostFacts {
        accelerator: inventory.accelerator.clone(),
        qemu_version: inventory.qemu_version.clone(),
        machine_types: inventory.machine_types.clone(),
        cpu_models: inventory.cpu_models.clone(),
        networks: inventory.networks.clone(),
        images: inventory.images.clone(),
    }
}

/// Whether two reports differ in nothing but machines.
fn same(one: &HostReport, other: &HostReport) -> bool {
    one.agent_address == other.agent_address
        && one.boot_id == other.boot_id
        && one.agent_started_at == other.agent_started_at
        && one.inventory == other.inventory
}
