//! What the ledger says about one maintenance. Reads only; what follows from it is in `plan.rs`.

use godwit_ledger::{InstanceRow, JobRow, Ledger, LedgerError, Object, ObjectKey, Tx};
use godwit_model::maintenance::{Machine, Method, Stage, Step, decide};
use godwit_model::plan::Pace;
use godwit_model::{Bytes, JobId, MachineId, NodeName};
use jiff::Timestamp;
use serde_json::Value;

use crate::deadline::Deadline;
use crate::json::told;
use crate::ladder;
use crate::machines::{self, Fate, fate_of};
use crate::outlook::pace;
use crate::routes::{Routes, routes, wants_one};

mod marked;
mod residents;
mod rows;

pub(crate) use marked::{Marked, marked};
pub(crate) use residents::residents;
use rows::Rows;
pub(crate) use rows::since;

/// Resource of maintenances, whatever group they are shown in.
pub(crate) const MAINTENANCES: &str = "nodemaintenances";
/// Resource of migrations.
pub(crate) const MIGRATIONS: &str = "virtualmachineinstancemigrations.kubevirt.io";
pub(crate) const INSTANCES: &str = "virtualmachineinstances.kubevirt.io";
const MACHINES: &str = "virtualmachines.kubevirt.io";
const KUBEVIRTS: &str = "kubevirts.kubevirt.io";
/// Label of a migration that names its instance.
pub(crate) const INSTANCE_LABEL: &str = "kubevirt.io/vmi-name";
/// Annotation of an evacuation that names the node to leave.
pub(crate) const NODE_ANNOTATION: &str = "kubevirt.io/evacuationMigration";
/// Field of an instance that names the node it shall leave.
pub(crate) const EVACUATION: &str = "evacuationNodeName";
/// Annotation of a migration that names the node where a plan sends the machine.
pub(crate) const TARGET_ANNOTATION: &str = "godwit.io/target-node";
/// Annotation of a migration that says how it moves the machine; absent: live.
pub(crate) const METHOD_ANNOTATION: &str = "godwit.io/method";
/// Key of the taint of nodes that are drained, where nothing else was set: KubeVirt's.
const DRAIN_TAINT: &str = "kubevirt.io/drain";
/// Where medik8s' operators keep the leases of nodes.
const LEASE_NAMESPACE: &str = "medik8s-leases";
/// Resource of leases.
const LEASES: &str = "leases.coordination.k8s.io";
/// Annotation of an evacuation that names the maintenance it is for, by UID.
pub(crate) const MAINTENANCE_ANNOTATION: &str = "godwit.io/maintenance";

/// The ledger, with or without its lock.
pub(crate) enum Reader<'a> {
    /// What is true about now.
    Ledger(&'a Ledger),
    /// What is true until the transaction ends.
    Tx(&'a mut Tx),
}

impl Reader<'_> {
    async fn get(&mut self, key: &ObjectKey) -> Result<Option<Object>, LedgerError> {
        match self {
            Self::Ledger(ledger) => ledger.get(key).await,
            Self::Tx(tx) => tx.get(key).await,
        }
    }

    pub(crate) async fn list(&mut self, resource: &str) -> Result<Vec<Object>, LedgerError> {
        match self {
            Self::Ledger(ledger) => ledger.list(resource).await,
            Self::Tx(tx) => tx.list(resource).await,
        }
    }

    async fn instances(&mut self) -> Result<Vec<InstanceRow>, LedgerError> {
        match self {
            Self::Ledger(ledger) => ledger.instances().await,
            Self::Tx(tx) => tx.instances().await,
        }
    }

    async fn instance(&mut self, uid: &MachineId) -> Result<Option<InstanceRow>, LedgerError> {
        match self {
            Self::Ledger(ledger) => ledger.instance(uid).await,
            Self::Tx(tx) => tx.instance(uid).await,
        }
    }

    async fn jobs_open(&mut self) -> Result<Vec<JobRow>, LedgerError> {
        match self {
            Self::Ledger(ledger) => ledger.jobs_open().await,
            Self::Tx(tx) => tx.jobs_open().await,
        }
    }

    async fn now(&mut self) -> Result<Timestamp, LedgerError> {
        match self {
            Self::Ledger(ledger) => ledger.now().await,
            Self::Tx(tx) => Ok(tx.now()),
        }
    }
}

/// All that matters for one maintenance.
#[derive(Debug, Clone)]
pub(crate) struct Situation {
    pub(crate) maintenance: Object,
    /// `spec.nodeName` as it stands there.
    pub(crate) node_name: String,
    /// The node; `None` when there is none of that name.
    pub(crate) node: Option<(NodeName, Object)>,
    /// Who is on the node, by namespace and name.
    pub(crate) guests: Vec<Guest>,
    /// Instances that the maintenance has to do with: on the node, or marked by it before.
    pub(crate) instances: Vec<Object>,
    /// Open evacuations of this maintenance that have not begun to copy.
    pub(crate) cancellable: Vec<JobId>,
    /// All open migrations, in the order of the queue, with what each carries.
    pub(crate) traffic: Vec<(Way, Bytes)>,
    /// Machines that were told of before and are not on the node, by UID.
    pub(crate) departed: Vec<(String, Fate)>,
    /// Where machines go that are to leave.
    pub(crate) routes: Routes,
    /// What migrations keep to.
    pub(crate) pace: Pace,
    /// When the node is to be empty; `None` when nothing was said.
    pub(crate) deadline: Option<Deadline>,
    /// The lease of the node; `None` when there is none.
    pub(crate) lease: Option<Object>,
    /// Key of the taint that says that a node is drained.
    pub(crate) drain_taint: String,
    /// By the database's clock.
    pub(crate) now: Timestamp,
}

/// On whose account machines leave a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Account<'a> {
    /// The node.
    pub(crate) node: &'a str,
    /// The maintenance of the node; `None` for evictions of single machines.
    pub(crate) maintenance: Option<&'a Object>,
}

/// A machine on the node.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) uid: MachineId,
    pub(crate) key: ObjectKey,
    /// Name of its launcher on the node.
    pub(crate) pod: String,
    pub(crate) machine: Machine,
    /// Its last evacuation, if that failed.
    pub(crate) failed: Option<Failed>,
    /// Why no node takes it; `None` when one does or none was asked for.
    pub(crate) no_room: Option<String>,
    /// What a migration has to carry.
    pub(crate) memory: Bytes,
    /// Its open migration; `None` when there is none.
    pub(crate) way: Option<Way>,
    /// Its virtual machine; `None` when it has none, or neither runs nor moves.
    pub(crate) owner: Option<Object>,
    /// Since when it stands on its rung.
    pub(crate) stand: Stand,
    /// The step that took it there, if it takes it at this moment.
    pub(crate) step: Option<Step>,
}

/// An open migration.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub(crate) job: JobRow,
    /// Whether it was asked for on the same account.
    pub(crate) ours: bool,
    pub(crate) method: Method,
    /// The node where a plan sends the machine; `None` where no plan does.
    pub(crate) planned: Option<String>,
    /// How far the copy is; null before it has begun.
    pub(crate) progress: Value,
}

/// Since when a machine stands on its rung.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stand {
    /// Since then it stands there.
    pub(crate) since: Timestamp,
    /// From then the rung's time counts; `None` while the machine waits for its turn in the queue,
    /// since others' turns are no fault of this one.
    pub(crate) timed_from: Option<Timestamp>,
}

impl Stand {
    /// A machine that has just come there.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self {
            since: now,
            timed_from: None,
        }
    }
}

/// An evacuation that failed.
#[derive(Debug, Clone)]
pub(crate) struct Failed {
    pub(crate) at: Timestamp,
    pub(crate) message: String,
}

/// What is true about the maintenance `key`; `None` when there is none.
///
/// # Errors
/// The ledger's.
pub(crate) async fn look(
    reader: &mut Reader<'_>,
    key: &ObjectKey,
) -> Result<Option<Situation>, LedgerError> {
    let Some(maintenance) = reader.get(key).await? else {
        return Ok(None);
    };
    let node_name = maintenance.spec()["nodeName"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let node = match NodeName::parse(node_name.clone()) {
        Ok(name) => {
            let object = reader.get(&ObjectKey::new("nodes", "", &node_name)).await?;
            object.map(|object| (name, object))
        }
        Err(_) => None,
    };
    let rows = Rows {
        strategy: cluster_strategy(reader).await?,
        instances: reader.instances().await?,
        jobs: reader.jobs_open().await?,
        objects: reader.list(INSTANCES).await?,
        migrations: reader.list(MIGRATIONS).await?,
    };
    let now = reader.now().await?;
    let (pace, drain_taint) = settings(reader).await?;
    let mut situation = Situation {
        cancellable: rows.cancellable(&maintenance),
        traffic: rows.traffic(&node_name, &maintenance),
        instances: vec![],
        guests: vec![],
        departed: vec![],
        routes: Routes::default(),
        pace,
        deadline: Deadline::of(&maintenance, now),
        lease: reader.get(&lease_key(&node_name)).await?,
        drain_taint,
        now,
        maintenance,
        node_name,
        node,
    };
    if let Some((node, _)) = &situation.node {
        situation.guests = rows.guests((situation.account(), now), node);
    }
    situation.ask_owners(reader, &rows).await?;
    situation.departed = situation.fates(&rows);
    situation.instances = rows
        .objects
        .into_iter()
        .filter(|object| situation.concerns(object))
        .collect();
    if situation.wants_routes() {
        situation.routes = routes(reader, &situation).await?;
    }
    Ok(Some(situation))
}

/// What migrations keep to, and the key of the taint that says that a node is drained.
async fn settings(reader: &mut Reader<'_>) -> Result<(Pace, String), LedgerError> {
    Ok((pace(reader).await?, drain_taint(reader).await?))
}

/// Key of the taint that says that a node is drained: KubeVirt's setting.
pub(crate) async fn drain_taint(reader: &mut Reader<'_>) -> Result<String, LedgerError> {
    let clusters = reader.list(KUBEVIRTS).await?;
    let key = clusters.first().and_then(|cluster| {
        let migrations = cluster.spec().pointer("/configuration/migrations")?;
        migrations["nodeDrainTaintKey"].as_str()
    });
    Ok(key
        .filter(|key| !key.is_empty())
        .unwrap_or(DRAIN_TAINT)
        .to_owned())
}

/// The lease that says who maintains a node.
pub(crate) fn lease_key(node: &str) -> ObjectKey {
    ObjectKey::new(LEASES, LEASE_NAMESPACE, format!("node-{node}"))
}

async fn cluster_strategy(reader: &mut Reader<'_>) -> Result<Option<String>, LedgerError> {
    let clusters = reader.list(KUBEVIRTS).await?;
    let strategy = clusters
        .first()
        .and_then(|cluster| cluster.spec().pointer("/configuration/evictionStrategy"));
    Ok(strategy.and_then(Value::as_str).map(str::to_owned))
}

/// The virtual machine of an instance has the newer word.
async fn ask_owner(
    reader: &mut Reader<'_>,
    guest: &mut Guest,
    rows: &Rows,
) -> Result<(), LedgerError> {
    match guest.machine.stage {
        Stage::Running | Stage::Migrating => {}
        Stage::Starting
        | Stage::Stopping
        | Stage::NeedsFencing
        | Stage::Arriving
        | Stage::Leaving => return Ok(()),
    }
    let Some(named) = rows.object(&guest.uid).and_then(machine_of) else {
        return Ok(());
    };
    let key = ObjectKey::new(MACHINES, &guest.key.namespace, &guest.key.name);
    let owner = reader.get(&key).await?;
    // A namesake that was made later says nothing about this instance.
    let owner = owner.filter(|owner| named.is_none_or(|uid| uid == owner.uid));
    let newer = owner.as_ref().and_then(|owner| {
        let newer = owner.spec().pointer("/template/spec/evictionStrategy")?;
        newer.as_str()
    });
    if guest.machine.stage == Stage::Running {
        guest.machine.strategy = guest.machine.strategy.or_newer(newer);
    }
    guest.owner = owner;
    Ok(())
}

/// The UID of an instance's virtual machine, where its reference has one; `None` when it has none.
fn machine_of(instance: &Object) -> Option<Option<&str>> {
    let owners = instance.metadata["ownerReferences"].as_array();
    let mut owners = owners.into_iter().flatten();
    let owner = owners.find(|owner| owner["kind"] == "VirtualMachine")?;
    Some(owner["uid"].as_str())
}

impl Situation {
    /// On whose account its machines leave.
    pub(crate) fn account(&self) -> Account<'_> {
        Account {
            node: &self.node_name,
            maintenance: Some(&self.maintenance),
        }
    }

    /// Looks at each machine's owner, and puts it on the rung of its ladder.
    async fn ask_owners(
        &mut self,
        reader: &mut Reader<'_>,
        rows: &Rows,
    ) -> Result<(), LedgerError> {
        let mut guests = std::mem::take(&mut self.guests);
        for guest in &mut guests {
            ask_owner(reader, guest, rows).await?;
            if let Some(instance) = rows.object(&guest.uid) {
                let key = guest.key.clone();
                let failures = |method| rows.failures(&key, self.account(), method);
                ladder::ascend(guest, (self, instance), &failures);
            }
        }
        self.guests = guests;
        Ok(())
    }

    /// What became of machines that were told of before and are not on the node.
    fn fates(&self, rows: &Rows) -> Vec<(String, Fate)> {
        let entries = told(&self.maintenance, "machines").as_array();
        let entries = entries.into_iter().flatten();
        let gone = entries.filter(|entry| {
            let uid = entry["uid"].as_str().unwrap_or_default();
            !self.guests.iter().any(|guest| guest.uid.as_str() == uid)
        });
        gone.map(|entry| fate_of(entry, &rows.instances)).collect()
    }

    /// Whether some machine needs to know where it goes.
    fn wants_routes(&self) -> bool {
        let Some((node, _)) = &self.node else {
            return false;
        };
        !self.maintenance.deleting()
            && self.guests.iter().any(|guest| {
                let decision = decide(&guest.machine, node);
                let known = ladder::entry(&self.maintenance, &guest.uid);
                wants_one(&decision) && (decision.acts() || known["targetNode"].is_null())
            })
    }

    fn concerns(&self, object: &Object) -> bool {
        let listed = |field| {
            told(&self.maintenance, field)
                .as_array()
                .into_iter()
                .flatten()
        };
        // Who has left for good is another maintenance's, if anybody's.
        let here = listed("machines").filter(|entry| !machines::is_over(entry));
        let mut told_of = listed("blockers").chain(here);
        self.guests
            .iter()
            .any(|guest| guest.uid.as_str() == object.uid)
            || *told(object, EVACUATION) == self.node_name
            || told_of.any(|entry| is_about(entry, &object.key))
    }
}

/// Whether a blocker, or another entry of that form, is about the object `key`.
pub(crate) fn is_about(entry: &Value, key: &ObjectKey) -> bool {
    entry["namespace"] == key.namespace && entry["name"] == key.name
}
