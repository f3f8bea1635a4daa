//! From what the owner's host says of a machine to what is told of its instance.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use godwit_ledger::{EventKind, InstanceRow, InstanceState, LedgerError, Object, Tx};
use godwit_model::{Epoch, MachineId, NodeName, Revision};
use godwit_rpc::agent::v1::{MachineReport, MachineState};
use tracing::{info, warn};

use crate::machines::{Machines, same};
use crate::status;
use crate::told::{change, handler_event};
use crate::world::World;

/// A machine that its host has not named for so long is not one that is just changing hands.
const MISSING_MIN: Duration = Duration::from_secs(3);

/// Reports that say nothing new of an instance, by machine: most of them, each second.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<HashMap<MachineId, (Revision, MachineReport)>>);

impl Seen {
    fn is_known(&self, object: &Object, row: &InstanceRow, report: &MachineReport) -> bool {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = seen.get(&row.uid);
        known.is_some_and(|(revision, known)| *revision == object.revision && known == report)
    }

    fn note(&self, object: &Object, row: &InstanceRow, report: &MachineReport) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(row.uid.clone(), (object.revision, report.clone()));
    }

    /// Forgets machines that are no more, when there may be many of them.
    pub(crate) fn forget(&self, world: &World<'_>) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() > 2 * world.rows().count() {
            seen.retain(|machine, _| world.row(machine).is_some());
        }
    }
}

impl Machines {
    /// Brings the status in line with what the owner's host says.
    pub(crate) async fn observe(
        &self,
        object: &Object,
        row: &InstanceRow,
        world: &World<'_>,
    ) -> Result<(), LedgerError> {
        let Some(node) = &row.node else { return Ok(()) };
        if !world.node(node).is_some_and(|node| node.ready) {
            return self.silent(object, row).await;
        }
        // Where it reports to another scheduler alone, that one takes care of it.
        if self.inventory.said(node).is_none() {
            return Ok(());
        }
        let migrating = world.is_migrating(&row.uid);
        let Some(report) = self.inventory.machine(node, &row.uid) else {
            return self.missing(object, row, migrating).await;
        };
        self.orders.found(&row.uid);
        match report.state() {
            MachineState::Running | MachineState::Paused => {
                self.running(object, row, &report).await
            }
            // While a migration is open the coordinator says what became of the machine. A word
            // from before a hand-over says nothing about now.
            MachineState::Stopped | MachineState::Crashed
                if !migrating && Epoch(report.epoch) >= row.epoch =>
            {
                self.ended(object, row, &report).await
            }
            MachineState::Unspecified
            | MachineState::Starting
            | MachineState::Stopping
            | MachineState::Stopped
            | MachineState::Crashed
            | MachineState::Incoming
            | MachineState::Migrated => Ok(()),
        }
    }

    async fn running(
        &self,
        object: &Object,
        row: &InstanceRow,
        report: &MachineReport,
    ) -> Result<(), LedgerError> {
        if self.seen.is_known(object, row, report) {
            return Ok(());
        }
        let mut changed = object.status.clone().unwrap_or_default();
        status::observe(&mut changed, report);
        if object.status.as_ref() == Some(&changed) {
            self.seen.note(object, row, report);
            return Ok(());
        }
        self.write(async |tx| match still(tx, object, row).await? {
            Some((object, _)) => change(tx, object, |told| status::observe(told, report))
                .await
                .map(drop),
            None => Ok(()),
        })
        .await
    }

    /// The host says nothing at all. The machine may run as well as ever.
    pub(crate) async fn silent(
        &self,
        object: &Object,
        row: &InstanceRow,
    ) -> Result<(), LedgerError> {
        let node = row.node.as_ref().map(NodeName::as_str).unwrap_or_default();
        let text = format!(
            "node {node} does not answer; the machine may still run there, and is not started \
             elsewhere until a NodeFence says that the node is dead"
        );
        self.unknown(object, row, ("NodeUnresponsive", &text)).await
    }

    /// The host speaks, and not of this machine. It may have a QEMU that it can't make out, so this
    /// is no proof that the machine has ended.
    async fn missing(
        &self,
        object: &Object,
        row: &InstanceRow,
        migrating: bool,
    ) -> Result<(), LedgerError> {
        if migrating || self.orders.missing_for(&row.uid) < MISSING_MIN {
            return Ok(());
        }
        let node = row.node.as_ref().map(NodeName::as_str).unwrap_or_default();
        let text = format!(
            "node {node} knows nothing of this machine; make sure that it does not run there, then \
             delete the instance"
        );
        self.unknown(object, row, ("MachineUnknown", &text)).await
    }

    async fn unknown(
        &self,
        object: &Object,
        row: &InstanceRow,
        (reason, text): (&str, &str),
    ) -> Result<(), LedgerError> {
        let mut changed = object.status.clone().unwrap_or_default();
        status::unknown(&mut changed, reason, text);
        if object.status.as_ref() == Some(&changed) {
            return Ok(());
        }
        warn!(machine = %row.uid, reason, "{text}");
        self.write(async |tx| {
            let Some((object, row)) = still(tx, object, row).await? else {
                return Ok(());
            };
            let object = change(tx, object, |told| status::unknown(told, reason, text)).await?;
            handler_event(tx, (&object, &row), (EventKind::Warning, reason, text)).await
        })
        .await
    }

    /// The machine ended by itself.
    async fn ended(
        &self,
        object: &Object,
        row: &InstanceRow,
        report: &MachineReport,
    ) -> Result<(), LedgerError> {
        let (state, phase, kind, note) = match report.state() {
            MachineState::Crashed => (
                InstanceState::Failed,
                "Failed",
                EventKind::Warning,
                "The VirtualMachineInstance crashed.",
            ),
            MachineState::Stopped
            | MachineState::Unspecified
            | MachineState::Starting
            | MachineState::Running
            | MachineState::Paused
            | MachineState::Stopping
            | MachineState::Incoming
            | MachineState::Migrated => (
                InstanceState::Stopped,
                "Succeeded",
                EventKind::Normal,
                "The VirtualMachineInstance was shut down.",
            ),
        };
        self.write(async |tx| {
            let Some((object, mut row)) = still(tx, object, row).await? else {
                return Ok(());
            };
            let jobs = tx.jobs_open().await?;
            if jobs.iter().any(|job| job.machine == row.uid) {
                return Ok(());
            }
            info!(machine = %row.uid, phase, why = %report.message, "machine ended");
            row.state = state;
            tx.instance_put(&row).await?;
            if let Some(node) = &row.node {
                tx.reservation_release(&row.uid, node).await?;
            }
            let object = change(tx, object, |told| {
                status::ended(told, phase, &report.message);
            })
            .await?;
            self.telemetry.phase(&object, phase, tx.now());
            handler_event(tx, (&object, &row), (kind, "Stopped", note)).await
        })
        .await
    }
}

/// The instance and its row, if it still is the same, on the same node, under the same epoch.
pub(crate) async fn still(
    tx: &mut Tx,
    object: &Object,
    row: &InstanceRow,
) -> Result<Option<(Object, InstanceRow)>, LedgerError> {
    let (Some(object), Some(found)) = (same(tx, object).await?, tx.instance(&row.uid).await?)
    else {
        return Ok(None);
    };
    let unmoved = found.node == row.node && found.epoch == row.epoch && found.state == row.state;
    Ok(unmoved.then_some((object, found)))
}
