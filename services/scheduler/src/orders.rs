//! What is ordered of hosts for one machine, and what is recorded of how it went.
//!
//! An order runs beside the rounds, one at a time for each machine; recording is guarded by the
//! instance's state, so an order that is late records nothing.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use godwit_ledger::{EventKind, InstanceRow, InstanceState, LedgerError, Object, ObjectKey};
use godwit_model::MachineId;
use godwit_model::machine::MachineSpec;
use godwit_rpc::agent::v1::MachineReport;
use serde_json::json;
use tracing::{debug, info, warn};

use crate::json::now;
use crate::machines::Machines;
use crate::told::{handler_event, sync_failed};
use crate::{status, vm};

/// Pause before an order that failed is given again.
const ORDER_RETRY: Duration = Duration::from_secs(1);
/// KubeVirt's grace period where the spec has none, seconds.
const GRACE_DEFAULT: u32 = 30;

impl Machines {
    /// Gives the order to start, and records how it went.
    pub(crate) fn start(self: &Arc<Self>, key: ObjectKey, row: InstanceRow) {
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

    /// Ends a machine whose instance is to go.
    pub(crate) async fn end(
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

    pub(crate) fn is_busy(&self, machine: &MachineId) -> bool {
        self.busy
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(machine)
    }
}
