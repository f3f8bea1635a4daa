//! Machines that a host has under an epoch that is over: they were taken from it, and must end.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use godwit_ledger::{InstanceRow, Ledger, LedgerError};
use godwit_model::{Epoch, MachineId};
use godwit_rpc::agent::v1::{MachineReport, MachineState};
use godwit_rpc::inventory::v1::StaleMachine;
use tracing::warn;

/// For how long the epochs of a round will do.
const FRESH_MAX: Duration = Duration::from_secs(2);

/// The epochs of all machines as of the last round, so that most reports need no look at the ledger.
#[derive(Debug, Default)]
pub(crate) struct Epochs(RwLock<Option<Arc<Known>>>);

#[derive(Debug)]
struct Known {
    at: Instant,
    of: HashMap<MachineId, Epoch>,
}

impl Epochs {
    /// A round, whose look began at `at`, found these.
    pub(crate) fn set<'a>(&self, at: Instant, rows: impl Iterator<Item = &'a InstanceRow>) {
        let of = rows.map(|row| (row.uid.clone(), row.epoch)).collect();
        let known = Some(Arc::new(Known { at, of }));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// Whether each of these machines is known, lately, to have no newer epoch.
    fn are_current(&self, reported: &[(MachineId, Epoch)]) -> bool {
        let known = self
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let fresh = known.filter(|known| known.at.elapsed() < FRESH_MAX);
        fresh.is_some_and(|known| {
            let mut reported = reported.iter();
            reported.all(|(id, epoch)| known.of.get(id).is_some_and(|known| known <= epoch))
        })
    }
}

/// Those of the reported machines whose owner has a newer epoch. A machine with an open migration
/// is none: what becomes of its old copy is the coordinator's to order.
///
/// # Errors
/// The ledger's.
pub(crate) async fn find(
    (ledger, epochs): (&Ledger, &Epochs),
    reports: &[MachineReport],
) -> Result<Vec<StaleMachine>, LedgerError> {
    let reported: Vec<(MachineId, Epoch)> = reports
        .iter()
        .filter(|report| is_here(report.state()))
        .filter_map(|report| Some((MachineId::parse(&report.machine).ok()?, Epoch(report.epoch))))
        .collect();
    if reported.is_empty() || epochs.are_current(&reported) {
        return Ok(vec![]);
    }
    let ids: Vec<MachineId> = reported.iter().map(|(id, _)| id.clone()).collect();
    let known = ledger.machine_epochs(&ids).await?;
    let mut stale = vec![];
    for (id, epoch) in reported {
        let newer = known
            .iter()
            .find(|known| known.machine == id && known.epoch > epoch);
        if let Some(newer) = newer {
            stale.push((id, newer.epoch));
        }
    }
    if stale.is_empty() {
        return Ok(vec![]);
    }
    let jobs = ledger.jobs_open().await?;
    stale.retain(|(id, _)| !jobs.iter().any(|job| job.machine == *id));
    let told = stale.into_iter().map(|(machine, epoch)| {
        warn!(%machine, %epoch, "a host has a machine that was taken from it");
        StaleMachine {
            machine: machine.to_string(),
            epoch: epoch.0,
        }
    });
    Ok(told.collect())
}

/// Whether the host has something of it. `Migrated` counts: it stands there complete, and a job that
/// is over never comes to clean it up. So do records of machines that ended.
const fn is_here(state: MachineState) -> bool {
    match state {
        MachineState::Starting
        | MachineState::Running
        | MachineState::Paused
        | MachineState::Stopping
        | MachineState::Stopped
        | MachineState::Crashed
        | MachineState::Migrated => true,
        MachineState::Unspecified | MachineState::Incoming => false,
    }
}
