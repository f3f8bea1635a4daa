//! What is true about one rolling maintenance. Reads only.

use std::collections::{BTreeMap, HashMap};

use godwit_ledger::{
    Floor, InstanceRow, JobRow, Ledger, LedgerError, NodeRow, Object, ObjectKey, labels,
};
use godwit_model::instance::{EvictionStrategy, live_migratable};
use godwit_model::placement::Fleet;
use godwit_model::rolling::{
    Budget, Facts, Heard, Maintenance, Moment, NodeFact, Order, Place, Record, Step, decide,
    needs_fleet,
};
use godwit_model::vmi::VmiSpec;
use godwit_model::{MachineId, NodeName};
use jiff::Timestamp;
use serde_json::Value;
use tracing::warn;

use super::budgets::{in_force, mover};
use super::{NODES, ROLLINGS, status};
use crate::json::told;
use crate::look::{INSTANCES, MAINTENANCES};

const KUBEVIRTS: &str = "kubevirts.kubevirt.io";

/// All that matters for one rolling maintenance.
pub(super) struct Situation {
    pub(super) object: Object,
    pub(super) order: Order,
    pub(super) record: Record,
    /// The API's nodes.
    pub(super) nodes: BTreeMap<NodeName, Object>,
    /// Where agents listen.
    pub(super) agents: BTreeMap<NodeName, String>,
    /// The maintenances that it made.
    pub(super) maintenances: BTreeMap<NodeName, Object>,
    /// Instances, where machines may have to go home.
    pub(super) instances: HashMap<MachineId, Object>,
    /// By the database's clock.
    pub(super) now: Timestamp,
    facts: BTreeMap<NodeName, NodeFact>,
    machines: BTreeMap<MachineId, Place>,
    /// Those of all rolling maintenances.
    budgets: Vec<Budget>,
    /// All that is placed; `None` when nothing depends on it.
    fleet: Option<Fleet>,
}

impl Situation {
    /// The step that follows, with what was `heard` of hooks.
    pub(super) fn decide(&mut self, heard: &BTreeMap<String, Heard>) -> Step {
        let facts = Facts {
            uid: &self.object.uid,
            now: Moment(self.now.as_second()),
            nodes: &self.facts,
            machines: &self.machines,
            budgets: &self.budgets,
            heard,
        };
        decide(&self.order, &self.record, facts, self.fleet.as_mut())
    }

    fn needs_fleet(&self) -> bool {
        let facts = Facts {
            uid: &self.object.uid,
            now: Moment(self.now.as_second()),
            nodes: &self.facts,
            machines: &self.machines,
            budgets: &self.budgets,
            heard: &BTreeMap::new(),
        };
        needs_fleet(&self.order, &self.record, facts)
    }
}

/// What is true about the rolling maintenance `key`; `None` when there is none, or one that nobody
/// can make sense of.
///
/// # Errors
/// The ledger's.
pub(super) async fn look(
    ledger: &Ledger,
    key: &ObjectKey,
) -> Result<Option<Situation>, LedgerError> {
    let Some(object) = ledger.get(key).await? else {
        return Ok(None);
    };
    let order = serde_json::from_value::<Order>(object.spec().clone());
    let (mut order, record) = match (order, status::record(&object)) {
        (Ok(order), Ok(record)) => (order, record),
        (Err(error), _) | (_, Err(error)) => {
            warn!(%error, rolling = %key.name, "a rolling maintenance can't be understood");
            return Ok(None);
        }
    };
    // Whoever deletes it wants no more of it; what has begun is brought to a good end first.
    order.abort |= object.deleting();
    let (rows, objects) = (ledger.nodes().await?, ledger.list(NODES).await?);
    let nodes: BTreeMap<NodeName, Object> = objects
        .into_iter()
        .filter_map(|object| Some((NodeName::parse(object.key.name.clone()).ok()?, object)))
        .collect();
    let maintenances = by_node(ledger.list(MAINTENANCES).await?);
    let mut situation = Situation {
        facts: node_facts((&nodes, &rows), &maintenances, (&order, &object)),
        agents: rows
            .iter()
            .map(|row| (row.name.clone(), row.agent_address.clone()))
            .collect(),
        maintenances: maintenances
            .into_iter()
            .filter(|(_, maintenance)| is_ours(maintenance, &object))
            .collect(),
        instances: HashMap::new(),
        machines: BTreeMap::new(),
        budgets: vec![],
        fleet: None,
        now: ledger.now().await?,
        object,
        order,
        record,
        nodes,
    };
    if situation.needs_fleet() {
        situation.look_at_fleet(ledger, rows).await?;
    }
    Ok(Some(situation))
}

impl Situation {
    async fn look_at_fleet(
        &mut self,
        ledger: &Ledger,
        rows: Vec<NodeRow>,
    ) -> Result<(), LedgerError> {
        let clusters = ledger.list(KUBEVIRTS).await?;
        let strategy = clusters
            .first()
            .and_then(|one| one.spec().pointer("/configuration/evictionStrategy"))
            .and_then(Value::as_str);
        let rollings = ledger.list(ROLLINGS).await?;
        self.budgets = rollings.iter().flat_map(in_force).collect();
        let (machines, objects) = (ledger.instances().await?, ledger.list(INSTANCES).await?);
        let jobs = ledger.jobs_open().await?;
        let by_uid: HashMap<&str, &Object> = objects.iter().map(|o| (o.uid.as_str(), o)).collect();
        self.machines = machines
            .iter()
            .filter_map(|row| {
                let object = by_uid.get(row.uid.as_str())?;
                Some((row.uid.clone(), place(row, (object, strategy), &jobs)))
            })
            .collect();
        let machines: HashMap<MachineId, InstanceRow> = machines
            .into_iter()
            .map(|row| (row.uid.clone(), row))
            .collect();
        let nodes: Vec<Object> = self.nodes.values().cloned().collect();
        let held = ledger.reservations().await?;
        let overcommit = ledger.overcommit().await?;
        let floor = Floor::new(rows, &nodes, held, (&machines, &objects, overcommit));
        self.fleet = Some(std::mem::take(&mut *floor.fleet()));
        self.instances = objects
            .into_iter()
            .filter_map(|object| Some((MachineId::parse(object.uid.clone()).ok()?, object)))
            .collect();
        Ok(())
    }
}

fn by_node(maintenances: Vec<Object>) -> BTreeMap<NodeName, Object> {
    let named = maintenances.into_iter().filter_map(|maintenance| {
        let node = maintenance.spec()["nodeName"].as_str()?.to_owned();
        Some((NodeName::parse(node).ok()?, maintenance))
    });
    named.collect()
}

/// Whether the rolling maintenance made it.
fn is_ours(maintenance: &Object, rolling: &Object) -> bool {
    let owners = maintenance.metadata["ownerReferences"].as_array();
    let mut owners = owners.into_iter().flatten();
    owners.any(|owner| owner["uid"] == rolling.uid)
}

fn node_facts(
    (objects, rows): (&BTreeMap<NodeName, Object>, &[NodeRow]),
    maintenances: &BTreeMap<NodeName, Object>,
    (order, rolling): (&Order, &Object),
) -> BTreeMap<NodeName, NodeFact> {
    let ready: HashMap<&NodeName, bool> = rows.iter().map(|row| (&row.name, row.ready)).collect();
    let fact = |(name, object): (&NodeName, &Object)| {
        let labels = labels(object);
        let fact = NodeFact {
            selected: order.node_selector.matches(&labels),
            ready: !object.deleting() && ready.get(name).copied().unwrap_or_default(),
            domain: labels.get(&order.failure_domain).cloned(),
            maintenance: match maintenances.get(name) {
                None => Maintenance::None,
                Some(one) if is_ours(one, rolling) => stands(one),
                Some(one) => Maintenance::Foreign(one.key.name.clone()),
            },
        };
        (name.clone(), fact)
    };
    objects.iter().map(fact).collect()
}

fn stands(maintenance: &Object) -> Maintenance {
    if maintenance.deleting() {
        return Maintenance::Ending;
    }
    match told(maintenance, "phase").as_str() {
        Some("Succeeded") => Maintenance::Drained,
        Some("Failed") => {
            let why = told(maintenance, "lastError").as_str().unwrap_or_default();
            Maintenance::Failed(format!("its NodeMaintenance failed: {why}"))
        }
        Some(_) | None => Maintenance::Draining,
    }
}

fn place(row: &InstanceRow, (object, strategy): (&Object, Option<&str>), jobs: &[JobRow]) -> Place {
    let own = object.spec()["evictionStrategy"].as_str();
    let can = serde_json::from_value::<VmiSpec>(object.spec().clone())
        .is_ok_and(|spec| live_migratable(&spec).is_ok());
    Place {
        name: format!("{}/{}", row.key.namespace, row.key.name),
        node: row.node.clone(),
        moves: can && EvictionStrategy::effective(own, strategy).moves(),
        migrating: jobs.iter().any(|job| job.machine == row.uid),
        mover: mover(object),
    }
}
