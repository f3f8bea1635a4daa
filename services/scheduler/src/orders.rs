//! What is ordered of hosts for one machine, and what is recorded of how it went.
//!
//! An order runs beside the rounds, one at a time for each machine; recording is guarded by the
//! instance's state, so an order that is late records nothing.

use std::sync::Arc;

use godwit_ledger::{EventKind, InstanceRow, InstanceState, LedgerError, Object};
use godwit_model::machine::MachineSpec;
use godwit_rpc::agent::v1::{MachineReport, MachineState};
use godwit_rpc::{Code, Status};
use tracing::{info, warn};

use crate::machines::{Machines, same};
use crate::observe::still;
use crate::status;
use crate::told::{change, handler_event, release, sync_failed};
use crate::world::World;

mod desk;

pub(crate) use desk::Orders;

/// KubeVirt's grace period where the spec has none, seconds.
const GRACE_DEFAULT: u32 = 30;

/// Where an order goes, and about which machine.
struct Order {
    object: Object,
    row: InstanceRow,
    /// The agent.
    address: String,
}

impl Machines {
    /// Gives the order to start, and records how it went.
    pub(crate) async fn start(
        self: &Arc<Self>,
        object: &Object,
        row: &InstanceRow,
        world: &World<'_>,
    ) -> Result<(), LedgerError> {
        let node = row.node.as_ref().and_then(|node| world.node(node));
        let (Some(node), Some(spec)) = (node, &row.machine) else {
            return Ok(());
        };
        if !node.ready {
            return self.silent(object, row).await;
        }
        if self.orders.pauses(&row.uid) {
            return Ok(());
        }
        let Some(room) = self.orders.room_to_start() else {
            return Ok(());
        };
        let order = Order {
            object: object.clone(),
            row: row.clone(),
            address: node.agent_address.clone(),
        };
        let (machines, spec) = (Arc::clone(self), spec.clone());
        let work = async move {
            let _room = room;
            machines.carry_out_start(order, spec).await
        };
        self.orders.give(self, row.uid.clone(), work);
        Ok(())
    }

    async fn carry_out_start(&self, order: Order, spec: MachineSpec) -> Result<(), LedgerError> {
        let Order {
            object,
            row,
            address,
        } = order;
        let paused = object.spec()["startStrategy"] == "Paused";
        match self.agents.start(&address, (&row, &spec), paused).await {
            Ok(report) => self.started(&object, &row, &report).await,
            Err(error) => {
                let why = error.message();
                warn!(machine = %row.uid, error = why, "machine not started");
                self.orders.failed(&row.uid);
                self.write(async |tx| match still(tx, &object, &row).await? {
                    Some((object, row)) => sync_failed(tx, (object, &row), why).await,
                    None => Ok(()),
                })
                .await
            }
        }
    }

    async fn started(
        &self,
        object: &Object,
        row: &InstanceRow,
        report: &MachineReport,
    ) -> Result<(), LedgerError> {
        self.write(async |tx| {
            let Some((object, mut row)) = still(tx, object, row).await? else {
                return Ok(());
            };
            self.orders.worked(&row.uid);
            row.state = InstanceState::Running;
            tx.instance_put(&row).await?;
            let object = change(tx, object, |told| {
                status::observe(told, report);
                status::set_phase(told, "Running");
            })
            .await?;
            self.telemetry.phase(&object, "Running", tx.now());
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
        world: &World<'_>,
    ) -> Result<(), LedgerError> {
        if world.is_migrating(&row.uid) {
            return self.cancel_migration(row, world).await;
        }
        let Some(node) = &row.node else {
            return self.gone(object, row).await;
        };
        let Some(host) = world.node(node).filter(|host| host.ready) else {
            return match row.state {
                // Its host said so before it fell silent.
                InstanceState::Stopped | InstanceState::Failed => self.gone(object, row).await,
                InstanceState::Unplaced
                | InstanceState::Starting
                | InstanceState::Running
                | InstanceState::Stopping => self.silent(object, row).await,
            };
        };
        let reported = self.inventory.machine(node, &row.uid);
        match reported.map(|report| report.state()) {
            // It was asked, and has its grace; its host says when it is off.
            Some(MachineState::Stopping) if row.state == InstanceState::Stopping => Ok(()),
            Some(
                MachineState::Unspecified
                | MachineState::Starting
                | MachineState::Running
                | MachineState::Paused
                | MachineState::Stopping
                | MachineState::Stopped
                | MachineState::Crashed
                | MachineState::Incoming
                | MachineState::Migrated,
            )
            | None => {
                if self.orders.pauses(&row.uid) && row.state == InstanceState::Stopping {
                    return Ok(());
                }
                self.give_stop(object, row, &host.agent_address);
                Ok(())
            }
        }
    }

    async fn cancel_migration(
        &self,
        row: &InstanceRow,
        world: &World<'_>,
    ) -> Result<(), LedgerError> {
        let why = "the virtual machine instance was deleted";
        let mut jobs = world.jobs.iter();
        match jobs.find(|job| job.machine == row.uid && job.cancel.is_none()) {
            Some(job) => {
                self.write(async |tx| tx.job_cancel(&job.id, why).await.map(drop))
                    .await
            }
            None => Ok(()),
        }
    }

    fn give_stop(self: &Arc<Self>, object: &Object, row: &InstanceRow, address: &str) {
        let order = Order {
            object: object.clone(),
            row: row.clone(),
            address: address.to_owned(),
        };
        let machines = Arc::clone(self);
        let work = async move { machines.carry_out_stop(order).await };
        self.orders.give(self, row.uid.clone(), work);
    }

    async fn carry_out_stop(&self, order: Order) -> Result<(), LedgerError> {
        let Order {
            object,
            row,
            address,
        } = order;
        let Some(row) = self.stopping(&object, &row).await? else {
            return Ok(());
        };
        match self.stop_and_forget(&object, &row, &address).await {
            Ok(true) => self.gone(&object, &row).await,
            Ok(false) => Ok(()),
            Err(error) => {
                let why = error.message();
                warn!(machine = %row.uid, error = why, "machine not stopped");
                self.orders.failed(&row.uid);
                self.write(async |tx| match still(tx, &object, &row).await? {
                    Some((object, row)) => sync_failed(tx, (object, &row), why).await,
                    None => Ok(()),
                })
                .await
            }
        }
    }

    /// Records that the machine is on its way out, before its host is told; `None` when it isn't.
    async fn stopping(
        &self,
        object: &Object,
        row: &InstanceRow,
    ) -> Result<Option<InstanceRow>, LedgerError> {
        match row.state {
            InstanceState::Stopping | InstanceState::Stopped | InstanceState::Failed => {
                return Ok(Some(row.clone()));
            }
            InstanceState::Unplaced | InstanceState::Starting | InstanceState::Running => {}
        }
        let mut stopping = None;
        self.write(async |tx| {
            let Some((object, mut row)) = still(tx, object, row).await? else {
                return Ok(());
            };
            // From now on no migration of it can begin, and one that did goes first.
            let jobs = tx.jobs_open().await?;
            if jobs.iter().any(|job| job.machine == row.uid) {
                return Ok(());
            }
            row.state = InstanceState::Stopping;
            tx.instance_put(&row).await?;
            for (reason, note) in [
                ("Deleted", "VirtualMachineInstance stopping"),
                ("ShuttingDown", "Signaled Graceful Shutdown"),
            ] {
                handler_event(tx, (&object, &row), (EventKind::Normal, reason, note)).await?;
            }
            stopping = Some(row);
            Ok(())
        })
        .await?;
        Ok(stopping)
    }

    /// Answers whether nothing is left of the machine on its host.
    async fn stop_and_forget(
        &self,
        object: &Object,
        row: &InstanceRow,
        address: &str,
    ) -> Result<bool, Status> {
        let grace = object.spec()["terminationGracePeriodSeconds"]
            .as_u64()
            .and_then(|seconds| u32::try_from(seconds).ok())
            .unwrap_or(GRACE_DEFAULT);
        let report = match self.agents.stop(address, row, grace).await {
            Ok(report) => report,
            Err(error) if error.code() == Code::NotFound => return Ok(true),
            Err(error) => return Err(error),
        };
        match report.state() {
            MachineState::Stopped | MachineState::Crashed => {
                self.agents.forget(address, &row.uid).await?;
                Ok(true)
            }
            MachineState::Unspecified
            | MachineState::Starting
            | MachineState::Running
            | MachineState::Paused
            | MachineState::Stopping
            | MachineState::Incoming
            | MachineState::Migrated => Ok(false),
        }
    }

    /// The machine is nowhere any more: so is its instance.
    async fn gone(&self, object: &Object, row: &InstanceRow) -> Result<(), LedgerError> {
        self.write(async |tx| {
            match tx.instance(&row.uid).await? {
                Some(found) if found.node == row.node && found.epoch == row.epoch => {}
                Some(_) | None => return Ok(()),
            }
            info!(machine = %row.uid, "machine removed");
            tx.instance_remove(&row.uid).await?;
            self.orders.worked(&row.uid);
            let Some(object) = same(tx, object).await? else {
                return Ok(());
            };
            if row.node.is_some() {
                let note = (EventKind::Normal, "Deleted", "Signaled Deletion");
                handler_event(tx, (&object, row), note).await?;
            }
            release(tx, object).await
        })
        .await
    }
}
