//! What the ledger says about one maintenance. Reads only; what follows from it is in `plan.rs`.

use std::time::Duration;

use godwit_ledger::{
    InstanceRow, InstanceState, JobRow, Ledger, LedgerError, Object, ObjectKey, Tx,
};
use godwit_model::instance::{EvictionStrategy, NotMigratable, live_migratable};
use godwit_model::maintenance::{Machine, Stage};
use godwit_model::migration::job::JobState;
use godwit_model::migration::view::launcher_name;
use godwit_model::vmi::VmiSpec;
use godwit_model::{JobId, MachineId, NodeName};
use jiff::Timestamp;
use serde_json::Value;

use crate::json::{condition, told};

mod marked;

pub(crate) use marked::{Marked, marked};

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

    async fn list(&mut self, resource: &str) -> Result<Vec<Object>, LedgerError> {
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
}

/// An evacuation that failed.
#[derive(Debug, Clone)]
pub(crate) struct Failed {
    pub(crate) at: Timestamp,
    pub(crate) message: String,
}

/// Everything that was read, before it is sorted out.
struct Rows {
    instances: Vec<InstanceRow>,
    jobs: Vec<JobRow>,
    objects: Vec<Object>,
    migrations: Vec<Object>,
    /// The cluster's eviction strategy.
    strategy: Option<String>,
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
    let mut situation = Situation {
        now: reader.now().await?,
        cancellable: rows.cancellable(&maintenance),
        instances: vec![],
        guests: vec![],
        maintenance,
        node_name,
        node,
    };
    if let Some((node, _)) = &situation.node {
        situation.guests = rows.guests(&situation, node);
    }
    for guest in &mut situation.guests {
        ask_owner(reader, guest, &rows).await?;
    }
    situation.instances = rows
        .objects
        .into_iter()
        .filter(|object| situation.concerns(object))
        .collect();
    Ok(Some(situation))
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
    if guest.machine.strategy.moves() || guest.machine.stage != Stage::Running {
        return Ok(());
    }
    let owned = rows.object(&guest.uid).is_some_and(|object| {
        let owners = object.metadata["ownerReferences"].as_array();
        let mut owners = owners.into_iter().flatten();
        owners.any(|owner| owner["kind"] == "VirtualMachine")
    });
    if !owned {
        return Ok(());
    }
    let key = ObjectKey::new(MACHINES, &guest.key.namespace, &guest.key.name);
    let owner = reader.get(&key).await?;
    let newer = owner.as_ref().and_then(|owner| {
        let newer = owner.spec().pointer("/template/spec/evictionStrategy")?;
        newer.as_str()
    });
    guest.machine.strategy = guest.machine.strategy.or_newer(newer);
    Ok(())
}

impl Situation {
    /// On whose account its machines leave.
    pub(crate) fn account(&self) -> Account<'_> {
        Account {
            node: &self.node_name,
            maintenance: Some(&self.maintenance),
        }
    }

    fn concerns(&self, object: &Object) -> bool {
        let blockers = told(&self.maintenance, "blockers").as_array();
        self.guests
            .iter()
            .any(|guest| guest.uid.as_str() == object.uid)
            || *told(object, EVACUATION) == self.node_name
            || blockers
                .into_iter()
                .flatten()
                .any(|blocker| is_about(blocker, &object.key))
    }
}

/// Whether a blocker, or another entry of that form, is about the object `key`.
pub(crate) fn is_about(entry: &Value, key: &ObjectKey) -> bool {
    entry["namespace"] == key.namespace && entry["name"] == key.name
}

impl Rows {
    fn object(&self, uid: &MachineId) -> Option<&Object> {
        self.objects
            .iter()
            .find(|object| object.uid == uid.as_str())
    }

    fn row(&self, uid: &MachineId) -> Option<&InstanceRow> {
        self.instances.iter().find(|row| row.uid == *uid)
    }

    fn cancellable(&self, maintenance: &Object) -> Vec<JobId> {
        let ours = |job: &&JobRow| {
            let object = self
                .migrations
                .iter()
                .find(|object| object.uid == job.id.as_str());
            object.is_some_and(|object| is_of(object, maintenance))
        };
        self.jobs
            .iter()
            .filter(|job| job.cancel.is_none() && !copying(job.state))
            .filter(ours)
            .map(|job| job.id.clone())
            .collect()
    }

    fn guests(&self, situation: &Situation, node: &NodeName) -> Vec<Guest> {
        let asked = (situation.account(), situation.now);
        let mut guests: Vec<Guest> = self
            .instances
            .iter()
            .filter(|row| row.node.as_ref() == Some(node))
            .filter_map(|row| Some(self.guest(row, self.stage(row)?, asked)))
            .collect();
        for job in &self.jobs {
            if self.row(&job.machine).and_then(|row| row.node.as_ref()) == Some(node) {
                continue;
            }
            guests.extend(self.passing(job, node));
        }
        guests.sort_by(|a, b| a.key.cmp(&b.key));
        guests
    }

    /// What a machine on the node is doing; `None` for one that has ended.
    fn stage(&self, row: &InstanceRow) -> Option<Stage> {
        let job = self.jobs.iter().find(|job| job.machine == row.uid);
        let there = self
            .object(&row.uid)
            .is_some_and(|object| !object.deleting());
        match (row.state, job) {
            (InstanceState::Unplaced | InstanceState::Stopped | InstanceState::Failed, _) => None,
            (_, Some(job)) if job.state == JobState::NeedsFencing => Some(Stage::NeedsFencing),
            (_, Some(_)) => Some(Stage::Migrating),
            (InstanceState::Starting, None) => Some(Stage::Starting),
            (InstanceState::Running, None) if there => Some(Stage::Running),
            (InstanceState::Running | InstanceState::Stopping, None) => Some(Stage::Stopping),
        }
    }

    fn guest(
        &self,
        row: &InstanceRow,
        stage: Stage,
        (account, now): (Account<'_>, Timestamp),
    ) -> Guest {
        let object = self.object(&row.uid);
        let own = object.and_then(|object| object.spec()["evictionStrategy"].as_str());
        let (failures, failed) = self.failures(&row.key, account);
        let since_failure = failed
            .as_ref()
            .map(|failed| Duration::try_from(now.duration_since(failed.at)));
        Guest {
            uid: row.uid.clone(),
            pod: launcher(row, object, account.node),
            machine: Machine {
                stage,
                strategy: EvictionStrategy::effective(own, self.strategy.as_deref()),
                not_migratable: object.and_then(not_migratable),
                failures,
                // The clocks of two hosts may differ: an end in the future is one of this moment.
                since_failure: since_failure.map(Result::unwrap_or_default),
            },
            key: row.key.clone(),
            failed,
            no_room: self.no_room(&row.uid),
        }
    }

    /// A machine that is elsewhere and has a part on the node: one that comes, or one that left.
    fn passing(&self, job: &JobRow, node: &NodeName) -> Option<Guest> {
        let object = self.object(&job.machine);
        let (stage, pod) = if job.target.as_ref() == Some(node) {
            let pod = launcher_name(&job.vmi.name, job.id.as_str());
            (Stage::Arriving, pod)
        } else if job.source.as_ref() == Some(node) && job.state == JobState::HandedOver {
            let pod =
                object.and_then(|object| told(object, "migrationState")["sourcePod"].as_str());
            (Stage::Leaving, pod.unwrap_or_default().to_owned())
        } else {
            return None;
        };
        Some(Guest {
            uid: job.machine.clone(),
            key: job.vmi.clone(),
            pod,
            machine: Machine {
                stage,
                strategy: EvictionStrategy::None,
                not_migratable: None,
                failures: 0,
                since_failure: None,
            },
            failed: None,
            no_room: None,
        })
    }

    /// How many evacuations of `instance` failed on this account, and the last of them.
    fn failures(&self, instance: &ObjectKey, account: Account<'_>) -> (u32, Option<Failed>) {
        let failed = self.migrations.iter().filter(|object| {
            object.key.namespace == instance.namespace
                && object.label(INSTANCE_LABEL) == Some(&instance.name)
                && is_ours(object, account)
        });
        let failed: Vec<Failed> = failed.filter_map(failure).collect();
        let count = u32::try_from(failed.len()).unwrap_or(u32::MAX);
        (count, failed.into_iter().max_by_key(|failed| failed.at))
    }

    fn no_room(&self, machine: &MachineId) -> Option<String> {
        let job = self.jobs.iter().find(|job| job.machine == *machine)?;
        let object = self
            .migrations
            .iter()
            .find(|object| object.uid == job.id.as_str())?;
        let waiting = condition(object, "migrationWaiting")?;
        let unschedulable = waiting["reason"] == "Unschedulable";
        unschedulable.then(|| text(&waiting["message"]))
    }
}

/// Whether a migration was asked for on this account.
fn is_ours(migration: &Object, account: Account<'_>) -> bool {
    match account.maintenance {
        Some(maintenance) => is_of(migration, maintenance),
        None => {
            migration.annotation(MAINTENANCE_ANNOTATION).is_none()
                && migration.annotation(NODE_ANNOTATION) == Some(account.node)
        }
    }
}

fn is_of(migration: &Object, maintenance: &Object) -> bool {
    migration.annotation(MAINTENANCE_ANNOTATION) == Some(&maintenance.uid)
}

/// Whether the copy may have begun: such a job is left to its end.
const fn copying(state: JobState) -> bool {
    match state {
        JobState::Pending
        | JobState::Placing
        | JobState::Reserved
        | JobState::Preparing
        | JobState::Prepared => false,
        JobState::Copying
        | JobState::SwitchAllowed
        | JobState::HandedOver
        | JobState::Aborting
        | JobState::NeedsFencing
        | JobState::Succeeded
        | JobState::Failed => true,
    }
}

/// When and why a migration failed; `None` when it didn't.
fn failure(migration: &Object) -> Option<Failed> {
    if *told(migration, "phase") != "Failed" {
        return None;
    }
    let times = told(migration, "phaseTransitionTimestamps").as_array()?;
    let failed = times.iter().find(|time| time["phase"] == "Failed")?;
    let at = failed["phaseTransitionTimestamp"].as_str()?.parse().ok()?;
    let message = condition(migration, "migrationFailed").map(|c| text(&c["message"]));
    Some(Failed {
        at,
        message: message.unwrap_or_default(),
    })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn not_migratable(instance: &Object) -> Option<NotMigratable> {
    let spec: VmiSpec = serde_json::from_value(instance.spec().clone()).ok()?;
    live_migratable(&spec).err()
}

/// Name of the launcher of a machine on `node`.
fn launcher(row: &InstanceRow, object: Option<&Object>, node: &str) -> String {
    let pods = object.and_then(|object| told(object, "activePods").as_object());
    let seed = pods.and_then(|pods| {
        let here = pods.iter().find(|(_, place)| **place == node);
        here.map(|(seed, _)| seed.as_str())
    });
    launcher_name(&row.key.name, seed.unwrap_or(row.uid.as_str()))
}
