//! What plans are made of: who is where, and what moves keep to. The same for a drain and for a
//! DrainPlan, so that both send each machine to the same node.

use godwit_ledger::{Floor, LedgerError, SettingsFound};
use godwit_model::NodeName;
use godwit_model::limits::MigrationLimits;
use godwit_model::plan::Pace;

use crate::look::{MAINTENANCES, Reader};

const KUBEVIRTS: &str = "kubevirts.kubevirt.io";
const CONFIG_MAPS: &str = "configmaps";

/// Who is where. Nodes with a maintenance are closed, whether or not it has come to that.
///
/// # Errors
/// The ledger's.
pub(crate) async fn floor(reader: &mut Reader<'_>) -> Result<Floor, LedgerError> {
    let floor = match reader {
        Reader::Ledger(ledger) => Floor::glance(ledger).await?,
        Reader::Tx(tx) => Floor::read(tx).await?,
    };
    let maintenances = reader.list(MAINTENANCES).await?;
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

/// What moves keep to.
///
/// # Errors
/// The ledger's.
pub(crate) async fn pace(reader: &mut Reader<'_>) -> Result<Pace, LedgerError> {
    let found = SettingsFound::new(
        &reader.list(KUBEVIRTS).await?,
        &reader.list(CONFIG_MAPS).await?,
    );
    // What makes no sense is told by the coordinator; a plan does with the defaults.
    let (limits, _) = MigrationLimits::resolve(
        &MigrationLimits::default(),
        &found.kubevirt.unwrap_or_default(),
        &found.config_map.unwrap_or_default(),
    );
    Ok(Pace::from(&limits))
}
