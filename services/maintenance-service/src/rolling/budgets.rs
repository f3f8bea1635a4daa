//! The budgets of rolling maintenances, kept where migrations are asked for: also by `drain.rs` and
//! `evict.rs`.

use godwit_ledger::{LedgerError, Object, Tx, labels};
use godwit_model::rolling::{Budget, Mover, Order, Phase, over_budget};
use serde_json::Value;

use super::{ROLLINGS, status};

/// The budgets in force, and who moves.
#[derive(Debug, Default)]
pub(crate) struct Budgets {
    budgets: Vec<Budget>,
    moving: Vec<Mover>,
}

impl Budgets {
    /// Reads them, and which machines have an open migration, whoever asked for it.
    ///
    /// # Errors
    /// The ledger's.
    pub(crate) async fn read(tx: &mut Tx) -> Result<Self, LedgerError> {
        let mut budgets = vec![];
        for rolling in tx.list(ROLLINGS).await? {
            budgets.extend(in_force(&rolling));
        }
        let mut moving = vec![];
        if !budgets.is_empty() {
            for job in tx.jobs_open().await? {
                moving.extend(tx.get(&job.vmi).await?.as_ref().map(mover));
            }
        }
        Ok(Self { budgets, moving })
    }

    /// Whether `instance` may move beside those that do; then it is one of them.
    pub(crate) fn admit(&mut self, instance: &Object) -> bool {
        let machine = mover(instance);
        if over_budget(&self.budgets, &self.moving, &machine).is_some() {
            return false;
        }
        self.moving.push(machine);
        true
    }
}

/// A rolling maintenance's budgets hold until it is over.
pub(super) fn in_force(rolling: &Object) -> Vec<Budget> {
    let phase = status::record(rolling).map_or(Phase::Planning, |record| record.phase);
    if phase.is_over() || rolling.spec()["budgets"] == Value::Null {
        return vec![];
    }
    let order = serde_json::from_value::<Order>(rolling.spec().clone());
    order.map(|order| order.budgets).unwrap_or_default()
}

pub(super) fn mover(instance: &Object) -> Mover {
    Mover {
        namespace: instance.key.namespace.clone(),
        labels: labels(instance),
    }
}
