//! Who is where, for a DrainPlan.

use godwit_ledger::{Floor, Ledger, LedgerError};
use godwit_model::NodeName;

use crate::look::MAINTENANCES;

/// Who is where. Nodes with a maintenance are closed, whether or not it has come to that.
///
/// # Errors
/// The ledger's.
pub(crate) async fn floor(ledger: &Ledger) -> Result<Floor, LedgerError> {
    let floor = Floor::glance(ledger).await?;
    let maintenances = ledger.list(MAINTENANCES).await?;
    let mut fleet = floor.fleet();
    for maintenance in maintenances.iter().filter(|one| !one.deleting()) {
        let node = maintenance.spec()["nodeName"].as_str().unwrap_or_default();
        if let Ok(node) = NodeName::parse(node) {
            fleet.close(&node);
        }
    }
    drop(fleet);
    Ok(floor)
}
