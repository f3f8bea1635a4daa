//! What the ledger says about one maintenance. Reads only; what follows from it is in `plan.rs`.

use std::sync::Arc;

use godwit_ledger::{
    InstanceRow, JobFound, JobRow, Ledger, LedgerError, MachineFound, MachinesWanted, Object,
    ObjectKey, Tx,
};
use godwit_model::maintenance::{Machine, Method, Stage, Step, decide};
use godwit_model::plan::Pace;
use godwit_model::{Bytes, JobId, MachineId, NodeName};
use jiff::Timestamp;
use serde_json::Value;

use crate::deadline::Deadline;
use crate::json::told;
use crate::ladder;
use crate::machines::{self, Fate, fate_of};
use crate::routes::{Routes, wants_one};

mod ground;
mod marked;
mod residents;
mod rows;

pub(crate) use ground::Settings;
use ground::{Ground, Traffic, wanted_of};
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

    async fn get_all(&mut self, keys: &[ObjectKey]) -> Result<Vec<Object>, LedgerError> {
        match self {
            Self::Ledger(ledger) => ledger.get_all(keys).await,
            Self::Tx(tx) => tx.get_all(keys).await,
        }
    }

    async fn machines_about(
        &mut self,
        wanted: &MachinesWanted,
    ) -> Result<Vec<MachineFound>, LedgerError> {
        match self {
            Self::Ledger(ledger) => ledger.machines_about(wanted).await,
            Self::Tx(tx) => tx.machines_about(wanted).await,
        }
    }

    async fn jobs_shown(&mut self) -> Result<Vec<JobFound>, LedgerError> {
        match self {
            Self::Ledger(ledger) => ledger.jobs_shown().await,
            Self::Tx(tx) => tx.jobs_shown().await,
        }
    }

    async fn jobs_about(
        &mut self,
        nodes: &[String],
        machines: &[MachineId],
    ) -> Result<Vec<JobFound>, LedgerError> {
        match self {
            Self::Ledger(ledger) => ledger.jobs_about(nodes, machines).await,
            Self::Tx(tx) => tx.jobs_about(nodes, machines).await,
        }
    }

    async fn migrations_failed(
        &mut self,
        machines: &[MachineId],
    ) -> Result<Vec<Object>, LedgerError> {
        match self {
            Self::Ledger(ledger) => ledger.migrations_failed(machines).await,
            Self::Tx(tx) => tx.migrations_failed(machines).await,
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
    /// All open migrations of about this moment, in the order of the queue, with what each carries.
    /// They are nobody's here.
    pub(crate) traffic: Arc<[(Way, Bytes)]>,
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

/// What is true about all of `maintenances`, of about one moment. Where machines go is not looked at.
///
/// # Errors
/// The ledger's.
pub(crate) async fn look_around(
    ledger: &Ledger,
    maintenances: Vec<Object>,
) -> Result<Vec<Situation>, LedgerError> {
    let mut reader = Reader::Ledger(ledger);
    let ground = Ground::read(&mut reader, wanted_of(&maintenances), Traffic::All).await?;
    let traffic: Arc<[(Way, Bytes)]> = ground.rows.traffic().into();
    let situations = maintenances.into_iter();
    Ok(situations
        .map(|maintenance| situation(&ground, maintenance, Arc::clone(&traffic)))
        .collect())
}

/// What is true about the maintenance that was looked at until the transaction ends; `None` when it
/// is gone. What others carry, and where machines go, is taken from that look: nothing but forecasts
/// and wishes follows from it.
///
/// # Errors
/// The ledger's.
pub(crate) async fn look_again(
    tx: &mut Tx,
    before: &Situation,
) -> Result<Option<Situation>, LedgerError> {
    let Some(maintenance) = tx.get(&before.maintenance.key).await? else {
        return Ok(None);
    };
    let wanted = wanted_of(std::slice::from_ref(&maintenance));
    let ground = Ground::read(&mut Reader::Tx(tx), wanted, Traffic::Own).await?;
    let mut situation = situation(&ground, maintenance, Arc::clone(&before.traffic));
    situation.routes = before.routes.clone();
    Ok(Some(situation))
}

fn situation(ground: &Ground, maintenance: Object, traffic: Arc<[(Way, Bytes)]>) -> Situation {
    let rows = &ground.rows;
    let node_name = maintenance.spec()["nodeName"].as_str().unwrap_or_default();
    let mut situation = Situation {
        cancellable: rows.cancellable(&maintenance),
        traffic,
        instances: vec![],
        guests: vec![],
        departed: vec![],
        routes: Routes::default(),
        pace: ground.settings.pace,
        deadline: Deadline::of(&maintenance, ground.now),
        lease: ground.object(&lease_key(node_name)).cloned(),
        drain_taint: ground.settings.drain_taint.clone(),
        now: ground.now,
        node: ground.node(node_name),
        node_name: node_name.to_owned(),
        maintenance,
    };
    if let Some((node, _)) = &situation.node {
        situation.guests = rows.guests((situation.account(), ground.now), node);
    }
    situation.ask_owners(ground);
    situation.departed = situation.fates(rows);
    let objects = rows.objects().filter(|object| situation.concerns(object));
    situation.instances = objects.cloned().collect();
    situation
}

/// The lease that says who maintains a node.
pub(crate) fn lease_key(node: &str) -> ObjectKey {
    ObjectKey::new(LEASES, LEASE_NAMESPACE, format!("node-{node}"))
}

/// The virtual machine of an instance has the newer word.
fn ask_owner(guest: &mut Guest, ground: &Ground) {
    match guest.machine.stage {
        Stage::Running | Stage::Migrating => {}
        Stage::Starting
        | Stage::Stopping
        | Stage::NeedsFencing
        | Stage::Arriving
        | Stage::Leaving => return,
    }
    let Some(named) = ground.rows.object(&guest.uid).and_then(machine_of) else {
        return;
    };
    let key = ObjectKey::new(MACHINES, &guest.key.namespace, &guest.key.name);
    // A namesake that was made later says nothing about this instance.
    let owner = ground.object(&key);
    let owner = owner.filter(|owner| named.is_none_or(|uid| uid == owner.uid));
    let newer = owner.and_then(|owner| {
        let newer = owner.spec().pointer("/template/spec/evictionStrategy")?;
        newer.as_str()
    });
    if guest.machine.stage == Stage::Running {
        guest.machine.strategy = guest.machine.strategy.or_newer(newer);
    }
    guest.owner = owner.cloned();
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
    fn ask_owners(&mut self, ground: &Ground) {
        let rows = &ground.rows;
        let mut guests = std::mem::take(&mut self.guests);
        for guest in &mut guests {
            ask_owner(guest, ground);
            if let Some(instance) = rows.object(&guest.uid) {
                let key = guest.key.clone();
                let failures = |method| rows.failures(&key, self.account(), method);
                ladder::ascend(guest, (self, instance), &failures);
            }
        }
        self.guests = guests;
    }

    /// What became of machines that were told of before and are not on the node.
    fn fates(&self, rows: &Rows) -> Vec<(String, Fate)> {
        let entries = told(&self.maintenance, "machines").as_array();
        let entries = entries.into_iter().flatten();
        let gone = entries.filter(|entry| {
            let uid = entry["uid"].as_str().unwrap_or_default();
            !self.guests.iter().any(|guest| guest.uid.as_str() == uid)
        });
        let rows: Vec<&InstanceRow> = rows.instances().collect();
        gone.map(|entry| fate_of(entry, &rows)).collect()
    }

    /// Whether some machine needs to know where it goes.
    pub(crate) fn wants_routes(&self) -> bool {
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

    /// Whether a place was looked for, for each machine that needs to know where it goes.
    pub(crate) fn is_routed(&self) -> bool {
        let Some((node, _)) = &self.node else {
            return true;
        };
        let mut guests = self.guests.iter();
        !self.wants_routes()
            || guests.all(|guest| {
                !wants_one(&decide(&guest.machine, node)) || self.routes.knows(&guest.uid)
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
