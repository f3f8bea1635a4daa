//! Machines that were told to leave their node without a maintenance: one by one by evictions, or
//! all of a node by its taint.
//!
//! The mark on the instance, or the taint of its node, is all there is to it. A mark is set by the
//! API, and taken back by the coordinator when the machine arrives elsewhere. What is decided and how
//! a migration is asked for is the same as in a drain; on a node under maintenance the drain does it.

use std::collections::HashSet;

use godwit_ledger::{LedgerError, MachinesWanted, ObjectKey};
use godwit_model::maintenance::{Decision, Method, decide};
use godwit_runtime::failpoint;
use tracing::{info, warn};

use crate::drain::{Drains, request};
use crate::json::told;
use crate::look::{Account, EVACUATION, INSTANCES, MAINTENANCES, Marked, Reader, Settings, marked};
use crate::node;
use crate::plan::Evacuation;
use crate::rolling::Budgets;

impl Drains {
    /// Asks for a migration of each machine that is marked and can leave now.
    ///
    /// # Errors
    /// The ledger's, when the marks can't be read; a machine that fails doesn't stop others.
    pub(crate) async fn evictions(&self) -> Result<(), LedgerError> {
        // Who is on a node under maintenance is the drain's, although he is marked.
        let maintained = self.maintained().await?;
        let mut tainted = self.tainted().await?;
        tainted.retain(|node| !maintained.contains(node));
        let mut asked: Vec<ObjectKey> = vec![];
        for instance in self.ledger.list_told(INSTANCES, EVACUATION).await? {
            let node = told(&instance, EVACUATION).as_str().unwrap_or_default();
            if !maintained.contains(node) {
                asked.push(instance.key);
            }
        }
        if !tainted.is_empty() {
            let here = MachinesWanted {
                nodes: tainted.iter().cloned().collect(),
                ..MachinesWanted::default()
            };
            let found = self.ledger.machines_about(&here).await?.into_iter();
            asked.extend(found.filter_map(|found| found.row).map(|row| row.key));
        }
        asked.sort();
        asked.dedup();
        for key in asked {
            if let Err(error) = self.evict(&key, &tainted).await {
                warn!(%error, vmi = %key.name, "an eviction's step failed");
            }
        }
        Ok(())
    }

    /// Nodes under maintenance.
    async fn maintained(&self) -> Result<HashSet<String>, LedgerError> {
        let maintenances = self.ledger.list(MAINTENANCES).await?;
        let nodes = maintenances.iter();
        let nodes = nodes.filter_map(|maintenance| maintenance.spec()["nodeName"].as_str());
        Ok(nodes.map(str::to_owned).collect())
    }

    /// Nodes with the taint that asks all machines to leave.
    async fn tainted(&self) -> Result<HashSet<String>, LedgerError> {
        let settings = Settings::read(&mut Reader::Ledger(&self.ledger)).await?;
        let key = settings.drain_taint;
        let nodes = self.ledger.list("nodes").await?.into_iter();
        let tainted = nodes.filter(|node| node::has_taint(node, &key));
        Ok(tainted.map(|node| node.key.name).collect())
    }

    async fn evict(&self, key: &ObjectKey, tainted: &HashSet<String>) -> Result<(), LedgerError> {
        let mut reader = Reader::Ledger(&self.ledger);
        if due(marked(&mut reader, key, tainted).await?).is_none() {
            return Ok(());
        }
        let mut tx = self.ledger.begin().await?;
        let Some(Marked {
            instance,
            node,
            guest,
        }) = due(marked(&mut Reader::Tx(&mut tx), key, tainted).await?)
        else {
            return Ok(());
        };
        if !Budgets::read(&mut tx).await?.admit(&instance) {
            return Ok(());
        }
        let account = Account {
            node: node.as_str(),
            maintenance: None,
        };
        let evacuation = Evacuation {
            machine: guest.uid,
            instance,
            method: Method::Live,
            target: None,
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
