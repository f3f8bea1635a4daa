//! What the ledger says about one machine that was marked by an eviction, or whose node is tainted.

use std::collections::HashSet;

use godwit_ledger::{LedgerError, MachinesWanted, Object, ObjectKey};
use godwit_model::{MachineId, NodeName};

use super::{Account, EVACUATION, Ground, Guest, MAINTENANCES, Reader, Traffic, ask_owner};
use crate::json::told;

/// A machine that shall leave its node by an eviction, without a maintenance.
#[derive(Debug)]
pub(crate) struct Marked {
    pub(crate) instance: Object,
    pub(crate) node: NodeName,
    pub(crate) guest: Guest,
}

/// What is true about the instance `key` that carries a mark to leave its node, or is on one of the
/// nodes `tainted`; `None` when it is not there any more, or a maintenance takes care of it.
///
/// # Errors
/// The ledger's.
pub(crate) async fn marked(
    reader: &mut Reader<'_>,
    key: &ObjectKey,
    tainted: &HashSet<String>,
) -> Result<Option<Marked>, LedgerError> {
    let Some(instance) = reader.get(key).await? else {
        return Ok(None);
    };
    let Ok(uid) = MachineId::parse(&instance.uid) else {
        return Ok(None);
    };
    let marked = told(&instance, EVACUATION).as_str().unwrap_or_default();
    let leaves = |node: &NodeName| node.as_str() == marked || tainted.contains(node.as_str());
    let wanted = MachinesWanted {
        machines: vec![uid.clone()],
        ..MachinesWanted::default()
    };
    let ground = Ground::read(reader, wanted, Traffic::Own).await?;
    let Some(row) = ground.rows.row(&uid) else {
        return Ok(None);
    };
    let Some(node) = row.node.clone().filter(leaves) else {
        return Ok(None);
    };
    let maintenances = reader.list(MAINTENANCES).await?;
    let is_here = |maintenance: &Object| maintenance.spec()["nodeName"] == node.as_str();
    if maintenances.iter().any(is_here) {
        return Ok(None);
    }
    let Some(stage) = ground.rows.stage(row) else {
        return Ok(None);
    };
    let account = Account {
        node: node.as_str(),
        maintenance: None,
    };
    let mut guest = ground.rows.guest(row, stage, (account, ground.now));
    ask_owner(&mut guest, &ground);
    Ok(Some(Marked {
        instance,
        node,
        guest,
    }))
}
