//! What hosts say of themselves: heartbeats in memory, changes in the ledger.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use godwit_ledger::{Capacity, Ledger, LedgerError, NodeRow, Tx};
use godwit_model::machine::PageSize;
use godwit_model::placement::{HostFacts, Hugepages, Pool};
use godwit_model::{Bytes, MachineId, NodeName};
use godwit_rpc::agent::v1::MachineReport;
use godwit_rpc::inventory::v1::{HostInventory, HostReport};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::node_object;

/// How often silence is looked for.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// How old the ledger's word about a host that is heard may get. Others go by it: a scheduler that
/// this host doesn't report to, or not yet.
const WORD_AGE_MAX: SignedDuration = SignedDuration::from_secs(20);

/// How long a word of another scheduler about a host stands against this one's own silence.
const OTHERS_WORD: SignedDuration = SignedDuration::from_secs(60);

/// The last word of each host.
#[derive(Debug)]
pub(crate) struct Inventory {
    heard: Mutex<HashMap<NodeName, Heard>>,
    /// A host that says nothing for so long is silent.
    silence: Duration,
    /// Something about machines changed.
    pub(crate) machines_changed: Notify,
}

#[derive(Debug, Clone)]
struct Heard {
    report: Arc<HostReport>,
    at: Instant,
    /// When the ledger got this host's word from here; `None` when it has to get them again.
    wrote: Option<Timestamp>,
}

impl Inventory {
    /// No host yet.
    pub(crate) fn new(silence: Duration) -> Self {
        Self {
            heard: Mutex::default(),
            silence,
            machines_changed: Notify::new(),
        }
    }

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
        let at = Instant::now();
        let before = self.heard().get(&node).cloned();
        let moved = before
            .as_ref()
            .is_none_or(|before| before.report.machines != report.machines);
        let mut wrote = before
            .filter(|before| same(&before.report, &report))
            .and_then(|before| before.wrote);
        if wrote.is_none() {
            info!(%node, address = %report.agent_address, "node ready");
            let mut tx = ledger.begin().await?;
            wrote = Some(tx.now());
            write_node(&mut tx, &node, &report).await?;
            tx.commit().await?;
        }
        let report = Arc::new(report);
        self.keep(node, Heard { report, at, wrote });
        if moved {
            self.machines_changed.notify_one();
        }
        Ok(())
    }

    /// A report that was under way for long doesn't replace a later one.
    fn keep(&self, node: NodeName, new: Heard) {
        let mut heard = self.heard();
        if heard.get(&node).is_none_or(|old| old.at <= new.at) {
            heard.insert(node, new);
        }
    }

    /// What `node` last said; `None` when it is silent.
    pub(crate) fn said(&self, node: &NodeName) -> Option<Arc<HostReport>> {
        let heard = self.heard();
        let heard = heard.get(node)?;
        (heard.at.elapsed() < self.silence).then(|| Arc::clone(&heard.report))
    }

    /// What `node` last said of `machine`; `None` when it said nothing, or is silent.
    pub(crate) fn machine(&self, node: &NodeName, machine: &MachineId) -> Option<MachineReport> {
        let report = self.said(node)?;
        let mut machines = report.machines.iter();
        machines
            .find(|report| report.machine == machine.as_str())
            .cloned()
    }

    /// Every host falls silent.
    #[cfg(test)]
    pub(crate) fn hush(&self) {
        for heard in self.heard().values_mut() {
            heard.at -= self.silence;
        }
    }

    /// How long `node` has been silent; `None` when it never said anything to this process.
    fn silent_for(&self, node: &NodeName) -> Option<Duration> {
        self.heard().get(node).map(|heard| heard.at.elapsed())
    }

    fn wrote(&self, node: &NodeName) -> Option<Timestamp> {
        self.heard().get(node)?.wrote
    }

    /// Has the next report of `node` written whatever it says.
    fn write_again(&self, node: &NodeName) {
        if let Some(heard) = self.heard().get_mut(node) {
            heard.wrote = None;
        }
    }

    /// The ledger got the word of `node` at `at`.
    fn noted(&self, node: &NodeName, at: Timestamp) {
        if let Some(heard) = self.heard().get_mut(node) {
            heard.wrote = heard.wrote.map(|wrote| wrote.max(at));
        }
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, HashMap<NodeName, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks hosts that are silent as not ready. Nothing is restarted for that.
pub(crate) async fn watch_silence(
    inventory: Arc<Inventory>,
    ledger: Ledger,
    shutdown: tokio_util::sync::CancellationToken,
) {
    let began = Instant::now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(WATCH_EVERY) => {} // poll
        }
        if let Err(error) = look_for_silence(&inventory, &ledger, began.elapsed()).await {
            warn!(%error, "silent nodes could not be marked");
        }
    }
}

/// One look at all nodes by a process that has been up for so long.
///
/// # Errors
/// The ledger's; the next look takes it up.
pub(crate) async fn look_for_silence(
    inventory: &Inventory,
    ledger: &Ledger,
    up: Duration,
) -> Result<(), LedgerError> {
    let objects = ledger.list("nodes").await?;
    let shown: HashSet<&str> = objects.iter().map(|object| &*object.key.name).collect();
    let mut old = Vec::new();
    let now = ledger.now().await?;
    for node in ledger.nodes().await? {
        // A host that this process never heard gets as long as one that it did.
        let heard = inventory.silent_for(&node.name);
        let silent_for = heard.unwrap_or(up);
        if silent_for < inventory.silence {
            if !node.ready || !shown.contains(node.name.as_str()) {
                inventory.write_again(&node.name);
            } else if heard.is_some() && now.duration_since(node.heartbeat_at) > WORD_AGE_MAX {
                old.push(node.name);
            }
        } else if node.ready {
            mark_silent(inventory, ledger, &node).await?;
        }
    }
    if !old.is_empty() {
        for (node, at) in ledger.nodes_heard(&old).await? {
            inventory.noted(&node, at);
        }
    }
    Ok(())
}

async fn mark_silent(
    inventory: &Inventory,
    ledger: &Ledger,
    node: &NodeRow,
) -> Result<(), LedgerError> {
    let mut tx = ledger.begin().await?;
    // Another scheduler may have heard it since.
    let age = tx.now().duration_since(node.heartbeat_at);
    let ours = inventory.wrote(&node.name) == Some(node.heartbeat_at);
    if (!ours && age < OTHERS_WORD) || !tx.nodes().await?.contains(node) {
        return Ok(());
    }
    warn!(node = %node.name, "node is silent");
    inventory.write_again(&node.name);
    tx.node_put(NodeRow {
        ready: false,
        ..node.clone()
    })
    .await?;
    node_object::mark_silent(&mut tx, &node.name).await?;
    tx.commit().await?;
    inventory.machines_changed.notify_one();
    Ok(())
}

async fn write_node(tx: &mut Tx, node: &NodeName, report: &HostReport) -> Result<(), LedgerError> {
    let inventory = report.inventory.clone().unwrap_or_default();
    let facts = serde_json::to_value(facts(&inventory)).unwrap_or_default();
    tx.node_put(NodeRow {
        name: node.clone(),
        agent_address: report.agent_address.clone(),
        boot_id: report.boot_id.clone(),
        ready: true,
        capacity: Capacity {
            memory: Bytes(inventory.memory_bytes),
            cpu_milli: inventory.cpu_milli,
            hugepages: hugepages(&inventory),
        },
        facts,
        heartbeat_at: tx.now(),
    })
    .await?;
    node_object::write(tx, node, &inventory, report).await
}

/// Sizes that aren't known here are of no use.
pub(crate) fn hugepages(inventory: &HostInventory) -> Hugepages {
    let total = |size: PageSize| {
        let of_size = inventory.hugepages.iter();
        let mut of_size = of_size.filter(|pages| pages.page_bytes == size.bytes().0);
        Bytes(of_size.next().map_or(0, |pages| pages.total_bytes))
    };
    Hugepages {
        mi2: total(PageSize::Mi2),
        gi1: total(PageSize::Gi1),
    }
}

fn facts(inventory: &HostInventory) -> HostFacts {
    HostFacts {
        accelerator: inventory.accelerator.clone(),
        qemu_version: inventory.qemu_version.clone(),
        machine_types: inventory.machine_types.clone(),
        cpu_models: inventory.cpu_models.clone(),
        networks: inventory.networks.clone(),
        images: inventory.images.clone(),
        pools: inventory
            .pools
            .iter()
            .map(|pool| Pool {
                path: pool.path.clone(),
                shared: pool.shared,
            })
            .collect(),
    }
}

/// Whether two reports differ in nothing but machines.
fn same(one: &HostReport, other: &HostReport) -> bool {
    one.agent_address == other.agent_address
        && one.boot_id == other.boot_id
        && one.agent_started_at == other.agent_started_at
        && one.inventory == other.inventory
}
