//! Machines' lives: from an instance that is wanted to a machine that runs, and back.
//!
//! Level-triggered: each round looks at every instance and takes one step. Woken by pokes, by
//! commits, by hosts' reports, and by a slow poll. Only the owner's host is believed, and nothing
//! is started elsewhere because of silence.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use godwit_ledger::{
    EventKind, InstanceRow, InstanceState, Ledger, LedgerError, Object, ObjectKey, Tx,
};
use godwit_model::instance::{HostDefaults, Identity, machine_spec};
use godwit_model::machine::MachineSpec;
use godwit_model::vmi::VmiSpec;
use godwit_model::{Epoch, MachineId};
use godwit_rpc::agent::v1::{MachineReport, MachineState};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::config::Config;
use crate::inventory::Inventory;
use crate::launch::Agents;
use crate::place::{self, Wanted};
use crate::told::{handler_event, refuse, unschedulable};
use crate::{status, vm};

/// Resource of instances.
pub(crate) const INSTANCES: &str = "virtualmachineinstances.kubevirt.io";
/// Resource of machines.
pub(crate) const MACHINES: &str = "virtualmachines.kubevirt.io";
/// How often everything is looked at although nothing woke us.
const POLL: Duration = Duration::from_secs(1);

/// What the rounds share.
pub(crate) struct Machines {
    pub(crate) config: Config,
    pub(crate) ledger: Ledger,
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) agents: Agents,
    pub(crate) shutdown: CancellationToken,
    /// Machines with an order under way.
    pub(crate) busy: Mutex<HashSet<MachineId>>,
    pub(crate) orders: TaskTracker,
}

/// Runs rounds until shutdown.
pub(crate) async fn run(machines: Arc<Machines>) {
    let mut wakeups = machines.ledger.wakeups();
    while !machines.shutdown.is_cancelled() {
        if let Err(error) = machines.round().await {
            warn!(%error, "a round over the machines was cut short");
        }
        tokio::select! {
            () = machines.shutdown.cancelled() => break,
            () = machines.inventory.machines_changed.notified() => {}
            _ = wakeups.next(POLL) => {}
        }
    }
    machines.orders.close();
    machines.orders.wait().await;
}

impl Machines {
    async fn round(self: &Arc<Self>) -> Result<(), LedgerError> {
        for machine in self.ledger.list(MACHINES).await? {
            self.write(async |tx| vm::reconcile(tx, &machine.key).await)
                .await?;
        }
        let migrating: HashSet<MachineId> = self
            .ledger
            .jobs_open()
            .await?
            .into_iter()
            .map(|job| job.machine)
            .collect();
        let rows = self.ledger.instances().await?;
        for object in self.ledger.list(INSTANCES).await? {
            let Ok(id) = MachineId::parse(object.uid.clone()) else {
                continue;
            };
            let row = rows.iter().find(|row| row.uid == id);
            let step = self
                .step(&object, (&id, row), migrating.contains(&id))
                .await;
            if let Err(error) = step {
                warn!(machine = %id, %error, "a machine's step failed");
            }
        }
        Ok(())
    }

    /// One write transaction; nothing is written when nothing changed.
    pub(crate) async fn write<F>(&self, work: F) -> Result<(), LedgerError>
    where
        F: AsyncFnOnce(&mut Tx) -> Result<(), LedgerError>,
    {
        let mut tx = self.ledger.begin().await?;
        work(&mut tx).await?;
        tx.commit().await.map(drop)
    }

    async fn step(
        self: &Arc<Self>,
        object: &Object,
        (id, row): (&MachineId, Option<&InstanceRow>),
        migrating: bool,
    ) -> Result<(), LedgerError> {
        let Some(row) = row else {
            return self.adopt(object, id).await;
        };
        if self.is_busy(id) {
            return Ok(());
        }
        let orphan = self.is_orphan(object).await?;
        if object.deleting() || orphan {
            return self.end(object, row, migrating).await;
        }
        match row.state {
            InstanceState::Unplaced => self.place(object, row).await,
            InstanceState::Starting => {
                self.start(object.key.clone(), row.clone());
                Ok(())
            }
            InstanceState::Running | InstanceState::Stopping => {
                self.observe(object, row, migrating).await
            }
            InstanceState::Stopped | InstanceState::Failed => Ok(()),
        }
    }

    /// Whether the machine that made this instance is gone.
    async fn is_orphan(&self, object: &Object) -> Result<bool, LedgerError> {
        let owner = &object.metadata["ownerReferences"][0];
        if owner["kind"] != "VirtualMachine" {
            return Ok(false);
        }
        let key = ObjectKey::new(MACHINES, &object.key.namespace, &object.key.name);
        let machine = self.ledger.get(&key).await?;
        Ok(machine.is_none_or(|machine| owner["uid"] != machine.uid))
    }

    /// Takes a new instance in.
    async fn adopt(&self, object: &Object, id: &MachineId) -> Result<(), LedgerError> {
        self.write(async |tx| {
            let Some(mut object) = tx.get(&object.key).await? else {
                return Ok(());
            };
            let row = InstanceRow {
                uid: id.clone(),
                key: object.key.clone(),
                node: None,
                epoch: Epoch(1),
                state: InstanceState::Unplaced,
                machine: None,
            };
            tx.instance_create(row).await?;
            let mut told = object.status.take().unwrap_or_else(|| json!({}));
            status::set_phase(&mut told, "Scheduling");
            object.status = Some(told);
            tx.put(&object).await.map(drop)
        })
        .await
    }

    /// Finds a node and holds room there.
    async fn place(&self, object: &Object, row: &InstanceRow) -> Result<(), LedgerError> {
        self.write(async |tx| {
            let (Some(mut object), Some(mut row)) =
                (tx.get(&object.key).await?, tx.instance(&row.uid).await?)
            else {
                return Ok(());
            };
            let (vmi, spec) = match self.hardware(&object, &row.uid) {
                Ok(both) => both,
                Err(problem) => return refuse(tx, object, &problem).await,
            };
            let none = BTreeMap::new();
            let wanted = Wanted {
                instance: &row,
                spec: &spec,
                vmi: &vmi,
                job: None,
                added_selector: &none,
                inbound_max: 0,
            };
            let placement = place::place(tx, wanted).await?;
            let Some(node) = &placement.chosen else {
                return unschedulable(tx, object, &placement.summary()).await;
            };
            info!(machine = %row.uid, %node, "machine placed");
            status::bind(&mut object, node, &spec);
            let told = object.status.get_or_insert_default();
            status::set_migratable(told, &vmi);
            status::set_phase(told, "Scheduled");
            row.node = Some(node.clone());
            row.state = InstanceState::Starting;
            row.machine = Some(spec);
            tx.instance_put(&row).await?;
            tx.put(&object).await.map(drop)
        })
        .await
    }

    fn hardware(&self, object: &Object, id: &MachineId) -> Result<(VmiSpec, MachineSpec), String> {
        let vmi: VmiSpec =
            serde_json::from_value(object.spec().clone()).map_err(|error| error.to_string())?;
        let identity = Identity {
            id,
            namespace: &object.key.namespace,
            name: &object.key.name,
        };
        let defaults = HostDefaults {
            machine_type: &self.config.machine_type,
            cpu_model: &self.config.cpu_model,
        };
        let spec = machine_spec(&vmi, identity, defaults).map_err(|problems| {
            let texts: Vec<String> = problems
                .iter()
                .map(|p| format!("spec.{}: {}", p.path, p.message))
                .collect();
            texts.join("; ")
        })?;
        Ok((vmi, spec))
    }

    /// Brings the status in line with what the owner's host says.
    async fn observe(
        self: &Arc<Self>,
        object: &Object,
        row: &InstanceRow,
        migrating: bool,
    ) -> Result<(), LedgerError> {
        let Some(node) = &row.node else { return Ok(()) };
        if !self.inventory.answers(node) {
            return self.silent(object, row).await;
        }
        let Some(report) = self.inventory.machine(node, &row.uid) else {
            return Ok(());
        };
        match report.state() {
            MachineState::Running | MachineState::Paused => self.running(object, &report).await,
            // While a migration is open the coordinator says what became of the machine.
            MachineState::Stopped | MachineState::Crashed if !migrating => {
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

    async fn running(&self, object: &Object, report: &MachineReport) -> Result<(), LedgerError> {
        let mut told = object.status.clone().unwrap_or_else(|| json!({}));
        status::observe(&mut told, report);
        if object.status.as_ref() == Some(&told) {
            return Ok(());
        }
        self.write(async |tx| {
            let Some(mut object) = tx.get(&object.key).await? else {
                return Ok(());
            };
            let mut told = object.status.take().unwrap_or_else(|| json!({}));
            status::observe(&mut told, report);
            object.status = Some(told);
            tx.put(&object).await.map(drop)
        })
        .await
    }

    async fn silent(&self, object: &Object, row: &InstanceRow) -> Result<(), LedgerError> {
        let node = row
            .node
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        let message = format!("node {node} does not answer; the machine may still run there");
        let mut told = object.status.clone().unwrap_or_else(|| json!({}));
        status::not_ready(&mut told, "NodeUnresponsive", &message);
        if object.status.as_ref() == Some(&told) {
            return Ok(());
        }
        self.write(async |tx| {
            let Some(mut object) = tx.get(&object.key).await? else {
                return Ok(());
            };
            let mut told = object.status.take().unwrap_or_else(|| json!({}));
            status::not_ready(&mut told, "NodeUnresponsive", &message);
            object.status = Some(told);
            tx.put(&object).await.map(drop)
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
        let crashed = report.state() == MachineState::Crashed;
        info!(machine = %row.uid, crashed, "machine ended");
        self.write(async |tx| {
            let (Some(mut object), Some(mut row)) =
                (tx.get(&object.key).await?, tx.instance(&row.uid).await?)
            else {
                return Ok(());
            };
            row.state = if crashed {
                InstanceState::Failed
            } else {
                InstanceState::Stopped
            };
            tx.instance_put(&row).await?;
            if let Some(node) = &row.node {
                tx.reservation_release(&row.uid, node).await?;
            }
            let mut told = object.status.take().unwrap_or_else(|| json!({}));
            status::set_phase(&mut told, if crashed { "Failed" } else { "Succeeded" });
            status::not_ready(
                &mut told,
                "GuestNotRunning",
                "Guest VM is not reported as running",
            );
            object.status = Some(told);
            tx.put(&object).await?;
            let event = if crashed {
                (
                    EventKind::Warning,
                    "Stopped",
                    "The VirtualMachineInstance crashed.",
                )
            } else {
                (
                    EventKind::Normal,
                    "Stopped",
                    "The VirtualMachineInstance was shut down.",
                )
            };
            handler_event(tx, (&object, &row), event).await
        })
        .await
    }
}
