//! Machines' lives: from an instance that is wanted to a machine that runs, and back.
//!
//! Level-triggered: each round looks at every instance and takes one step. Woken by pokes, by
//! commits, by hosts' reports, and by a slow poll. Only the owner's host is believed, and nothing
//! is started elsewhere because of silence.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use godwit_ledger::{
    EventKind, EventRecord, InstanceRow, InstanceState, Ledger, LedgerError, Object, ObjectKey, Tx,
};
use godwit_model::instance::{HostDefaults, Identity, machine_spec};
use godwit_model::machine::MachineSpec;
use godwit_model::vmi::VmiSpec;
use godwit_model::{Epoch, MachineId};
use godwit_rpc::agent::v1::{MachineReport, MachineState};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::config::Config;
use crate::inventory::Inventory;
use crate::json::{Condition, now, reference, set_condition};
use crate::launch::Agents;
use crate::place::{self, Wanted};
use crate::{status, vm};

/// Resource of instances.
pub(crate) const INSTANCES: &str = "virtualmachineinstances.kubevirt.io";
/// Resource of machines.
pub(crate) const MACHINES: &str = "virtualmachines.kubevirt.io";
/// How often everything is looked at although nothing woke us.
const POLL: Duration = Duration::from_secs(1);
/// Pause before an order that failed is given again.
const ORDER_RETRY: Duration = Duration::from_secs(1);
/// KubeVirt's grace period where the spec has none, seconds.
const GRACE_DEFAULT: u32 = 30;

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
    async fn write<F>(&self, work: F) -> Result<(), LedgerError>
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

    /// Gives the order to start, and records how it went.
    fn start(self: &Arc<Self>, key: ObjectKey, row: InstanceRow) {
        let machines = Arc::clone(self);
        self.order(row.uid.clone(), async move {
            let Some((address, spec)) = machines.start_facts(&row).await? else {
                return Ok(());
            };
            let paused = match machines.ledger.get(&key).await? {
                Some(object) => object.spec()["startStrategy"] == "Paused",
                None => return Ok(()),
            };
            match machines.agents.start(&address, (&row, &spec), paused).await {
                Ok(report) => machines.started(&key, &row, &report).await,
                Err(error) => {
                    warn!(machine = %row.uid, error = error.message(), "machine not started");
                    let why = error.message().to_owned();
                    machines
                        .write(async |tx| sync_failed(tx, (&key, &row), &why).await)
                        .await?;
                    tokio::time::sleep(ORDER_RETRY).await; // back-off
                    Ok(())
                }
            }
        });
    }

    async fn start_facts(
        &self,
        row: &InstanceRow,
    ) -> Result<Option<(String, MachineSpec)>, LedgerError> {
        let address = self.address(row).await?;
        Ok(address.zip(row.machine.clone()))
    }

    async fn address(&self, row: &InstanceRow) -> Result<Option<String>, LedgerError> {
        let nodes = self.ledger.nodes().await?;
        let node = nodes
            .into_iter()
            .find(|node| Some(&node.name) == row.node.as_ref());
        Ok(node.map(|node| node.agent_address))
    }

    async fn started(
        &self,
        key: &ObjectKey,
        row: &InstanceRow,
        report: &MachineReport,
    ) -> Result<(), LedgerError> {
        self.write(async |tx| {
            let (Some(mut object), Some(mut row)) =
                (tx.get(key).await?, tx.instance(&row.uid).await?)
            else {
                return Ok(());
            };
            if row.state != InstanceState::Starting {
                return Ok(());
            }
            row.state = InstanceState::Running;
            tx.instance_put(&row).await?;
            let mut told = object.status.take().unwrap_or_else(|| json!({}));
            status::observe(&mut told, report);
            status::set_phase(&mut told, "Running");
            object.status = Some(told);
            tx.put(&object).await?;
            for (reason, note) in [
                ("Created", "VirtualMachineInstance defined."),
                ("Started", "VirtualMachineInstance started."),
            ] {
                handler_event(tx, (&object, &row), (EventKind::Normal, reason, note)).await?;
            }
            Ok(())
        })
        .await
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

    /// Ends a machine whose instance is to go.
    async fn end(
        self: &Arc<Self>,
        object: &Object,
        row: &InstanceRow,
        migrating: bool,
    ) -> Result<(), LedgerError> {
        if migrating {
            let why = "the virtual machine instance was deleted";
            let jobs = self.ledger.jobs_open().await?;
            let open = jobs
                .iter()
                .find(|job| job.machine == row.uid && job.cancel.is_none());
            let Some(job) = open else { return Ok(()) };
            return self
                .write(async |tx| tx.job_cancel(&job.id, why).await.map(drop))
                .await;
        }
        let key = object.key.clone();
        let grace = object.spec()["terminationGracePeriodSeconds"]
            .as_u64()
            .and_then(|seconds| u32::try_from(seconds).ok())
            .unwrap_or(GRACE_DEFAULT);
        let (machines, row) = (Arc::clone(self), row.clone());
        self.order(row.uid.clone(), async move {
            let started = !matches!(row.state, InstanceState::Unplaced);
            if started && let Some(address) = machines.address(&row).await? {
                let stopped = machines.agents.stop(&address, &row, grace).await;
                let forgotten = match stopped {
                    Ok(_) => machines.agents.forget(&address, &row.uid).await,
                    Err(error) if error.code() == godwit_rpc::Code::NotFound => Ok(()),
                    Err(error) => Err(error),
                };
                if let Err(error) = forgotten {
                    warn!(machine = %row.uid, error = error.message(), "machine not stopped");
                    tokio::time::sleep(ORDER_RETRY).await; // back-off
                    return Ok(());
                }
            }
            machines.gone(&key, &row).await
        });
        Ok(())
    }

    /// The machine is nowhere any more: so is its instance.
    async fn gone(&self, key: &ObjectKey, row: &InstanceRow) -> Result<(), LedgerError> {
        info!(machine = %row.uid, "machine removed");
        self.write(async |tx| {
            tx.instance_remove(&row.uid).await?;
            let Some(mut object) = tx.get(key).await? else {
                return Ok(());
            };
            if object.uid != row.uid.as_str() {
                return Ok(());
            }
            let note = (EventKind::Normal, "Deleted", "Signaled Deletion");
            handler_event(tx, (&object, row), note).await?;
            if let serde_json::Value::Array(finalizers) = &mut object.metadata["finalizers"] {
                finalizers.retain(|finalizer| finalizer != vm::FINALIZER);
            }
            if !object.deleting() {
                object.metadata["deletionTimestamp"] = json!(now());
            }
            tx.put(&object).await.map(drop)
        })
        .await
    }

    /// Runs one order for a machine beside the rounds; one at a time for each machine.
    fn order<F>(self: &Arc<Self>, machine: MachineId, order: F)
    where
        F: Future<Output = Result<(), LedgerError>> + Send + 'static,
    {
        self.busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(machine.clone());
        let machines = Arc::clone(self);
        self.orders.spawn(async move {
            tokio::select! {
                done = order => if let Err(error) = done {
                    debug!(%machine, %error, "an order's outcome was not recorded");
                },
                () = machines.shutdown.cancelled() => {}
            }
            machines
                .busy
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&machine);
            machines.inventory.machines_changed.notify_one();
        });
    }

    fn is_busy(&self, machine: &MachineId) -> bool {
        self.busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(machine)
    }
}

async fn refuse(tx: &mut Tx, mut object: Object, problem: &str) -> Result<(), LedgerError> {
    let mut told = object.status.take().unwrap_or_else(|| json!({}));
    let condition = Condition::new("Synchronized", false).because("FailedCreate", problem);
    set_condition(&mut told, &condition);
    object.status = Some(told);
    tx.put(&object).await.map(drop)
}

async fn unschedulable(tx: &mut Tx, mut object: Object, summary: &str) -> Result<(), LedgerError> {
    let mut told = object.status.take().unwrap_or_else(|| json!({}));
    let before = told.clone();
    status::set_unschedulable(&mut told, summary);
    if told == before {
        return Ok(());
    }
    object.status = Some(told);
    tx.put(&object).await?;
    tx.event(EventRecord {
        regarding: reference(&object, "VirtualMachineInstance"),
        reason: "FailedScheduling".to_owned(),
        note: summary.to_owned(),
        kind: EventKind::Warning,
        component: "default-scheduler".to_owned(),
        host: String::new(),
    })
    .await
}

async fn sync_failed(
    tx: &mut Tx,
    (key, row): (&ObjectKey, &InstanceRow),
    why: &str,
) -> Result<(), LedgerError> {
    let Some(mut object) = tx.get(key).await? else {
        return Ok(());
    };
    let mut told = object.status.take().unwrap_or_else(|| json!({}));
    let condition = Condition::new("Synchronized", false).because("FailedCreate", why);
    set_condition(&mut told, &condition);
    object.status = Some(told);
    tx.put(&object).await?;
    handler_event(tx, (&object, row), (EventKind::Warning, "SyncFailed", why)).await
}

async fn handler_event(
    tx: &mut Tx,
    (object, row): (&Object, &InstanceRow),
    (kind, reason, note): (EventKind, &str, &str),
) -> Result<(), LedgerError> {
    tx.event(EventRecord {
        regarding: reference(object, "VirtualMachineInstance"),
        reason: reason.to_owned(),
        note: note.to_owned(),
        kind,
        component: "virt-handler".to_owned(),
        host: row
            .node
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    })
    .await
}
