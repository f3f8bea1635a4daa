//! Machines that were told to leave their node one by one: by evictions, without a maintenance.
//!
//! The mark on the instance is all there is to it. It is set by the API, and taken back by the
//! coordinator when the machine arrives elsewhere. What is decided and how a migration is asked for
//! is the same as in a drain; on a node under maintenance the drain does it.

use godwit_ledger::{LedgerError, ObjectKey};
use godwit_model::maintenance::{Decision, decide};
use godwit_runtime::failpoint;
use tracing::{info, warn};

use crate::drain::{Drains, request};
use crate::look::{Account, EVACUATION, INSTANCES, Marked, Reader, marked};
use crate::plan::Evacuation;

impl Drains {
    /// Asks for a migration of each machine that is marked and can leave now.
    ///
    /// # Errors
    /// The ledger's, when the marks can't be read; a machine that fails doesn't stop others.
    pub(crate) async fn evictions(&self) -> Result<(), LedgerError> {
        for instance in self.ledger.list_told(INSTANCES, EVACUATION).await? {
            if let Err(error) = self.evict(&instance.key).await {
                warn!(%error, vmi = %instance.key.name, "an eviction's step failed");
            }
        }
        Ok(())
    }

    async fn evict(&self, key: &ObjectKey) -> Result<(), LedgerError> {
        if due(marked(&mut Reader::Ledger(&self.ledger), key).await?).is_none() {
            return Ok(());
        }
        let mut tx = self.ledger.begin().await?;
        let Some(Marked {
            instance,
            node,
            guest,
        }) = due(marked(&mut Reader::Tx(&mut tx), key).await?)
        else {
            return Ok(());
        };
        let account = Account {
            node: node.as_str(),
            maintenance: None,
        };
        let evacuation = Evacuation {
            machine: guest.uid,
            instance,
        };
        let Some(migration) = request(&mut tx, account, &evacuation).await? else {
            return Ok(());
        };
        failpoint!("ledger.eviction.before");
        tx.commit().await?;
        failpoint!("ledger.eviction.after");
        self.telemetry.requested(1);
        self.requested.notify_one();
        info!(%node, vmi = %key.name, %migration, "evacuation requested by an eviction");
        Ok(())
    }
}

fn due(marked: Option<Marked>) -> Option<Marked> {
    marked.filter(|marked| decide(&marked.guest.machine, &marked.node) == Decision::Migrate)
}
