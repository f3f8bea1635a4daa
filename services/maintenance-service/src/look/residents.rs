//! Who is on some nodes, and what keeps them from leaving, as a maintenance of each would find it.

use godwit_ledger::LedgerError;
use godwit_model::NodeName;

use crate::ladder;

use super::{Account, Guest, INSTANCES, MIGRATIONS, Reader, Rows, ask_owner, cluster_strategy};

/// The machines on `nodes`, each with its node, by node and then by namespace and name.
///
/// # Errors
/// The ledger's.
pub(crate) async fn residents(
    reader: &mut Reader<'_>,
    nodes: &[NodeName],
) -> Result<Vec<(NodeName, Guest)>, LedgerError> {
    let rows = Rows {
        strategy: cluster_strategy(reader).await?,
        instances: reader.instances().await?,
        jobs: reader.jobs_open().await?,
        objects: reader.list(INSTANCES).await?,
        migrations: reader.list(MIGRATIONS).await?,
    };
    let now = reader.now().await?;
    let mut found = vec![];
    for node in nodes {
        let account = Account {
            node: node.as_str(),
            maintenance: None,
        };
        for mut guest in rows.guests((account, now), node) {
            ask_owner(reader, &mut guest, &rows).await?;
            if let Some(instance) = rows.object(&guest.uid) {
                ladder::begin(&mut guest, instance);
            }
            found.push((node.clone(), guest));
        }
    }
    Ok(found)
}
