//! Who is on some nodes, and what keeps them from leaving, as a maintenance of each would find it.

use godwit_ledger::{LedgerError, MachinesWanted};
use godwit_model::NodeName;

use crate::ladder;

use super::{Account, Ground, Guest, Reader, Traffic, ask_owner};

/// The machines on `nodes`, each with its node, by node and then by namespace and name.
///
/// # Errors
/// The ledger's.
pub(crate) async fn residents(
    reader: &mut Reader<'_>,
    nodes: &[NodeName],
) -> Result<Vec<(NodeName, Guest)>, LedgerError> {
    let wanted = MachinesWanted {
        nodes: nodes.iter().map(NodeName::to_string).collect(),
        ..MachinesWanted::default()
    };
    let ground = Ground::read(reader, wanted, Traffic::Own).await?;
    let (rows, now) = (&ground.rows, ground.now);
    let mut found = vec![];
    for node in nodes {
        let account = Account {
            node: node.as_str(),
            maintenance: None,
        };
        for mut guest in rows.guests((account, now), node) {
            ask_owner(&mut guest, &ground);
            if let Some(instance) = rows.object(&guest.uid) {
                ladder::begin(&mut guest, instance);
            }
            found.push((node.clone(), guest));
        }
    }
    Ok(found)
}
