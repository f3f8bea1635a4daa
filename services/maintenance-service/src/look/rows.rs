//! Everything that was read about machines and migrations, sorted out for one node.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use godwit_ledger::{
    InstanceRow, InstanceState, JobFound, JobRow, MachineFound, Object, ObjectKey,
};
use godwit_model::instance::{EvictionStrategy, NotMigratable, live_migratable};
use godwit_model::maintenance::{Climb, Machine, Method, Stage};
use godwit_model::migration::job::JobState;
use godwit_model::migration::view::launcher_name;
use godwit_model::vmi::VmiSpec;
use godwit_model::{Bytes, JobId, MachineId, NodeName};
use jiff::Timestamp;
use serde_json::Value;

use super::{
    Account, Failed, Guest, INSTANCE_LABEL, MAINTENANCE_ANNOTATION, METHOD_ANNOTATION,
    NODE_ANNOTATION, Stand, TARGET_ANNOTATION, Way,
};
use crate::json::{condition, told};

/// Open migrations that a forecast looks at: who stands behind so many waits long anyway.
const TRAFFIC_MAX: usize = 512;

/// Everything that was read, before it is sorted out.
#[derive(Debug)]
pub(super) struct Rows {
    /// The cluster's eviction strategy.
    strategy: Option<String>,
    machines: BTreeMap<MachineId, MachineFound>,
    /// Open jobs, in the order of the queue.
    jobs: Vec<JobFound>,
    /// Places in `jobs`: a machine has one open migration at most.
    by_machine: HashMap<MachineId, usize>,
    /// Migrations that failed, by the instance's namespace and name.
    failed: HashMap<(String, String), Vec<Object>>,
}

impl Rows {
    pub(super) fn new(
        strategy: Option<String>,
        machines: Vec<MachineFound>,
        jobs: Vec<JobFound>,
    ) -> Self {
        let uid = |found: &MachineFound| match (&found.row, &found.object) {
            (Some(row), _) => Some(row.uid.clone()),
            (None, Some(object)) => MachineId::parse(&object.uid).ok(),
            (None, None) => None,
        };
        let by_machine = jobs.iter().enumerate();
        Self {
            strategy,
            machines: machines
                .into_iter()
                .filter_map(|found| Some((uid(&found)?, found)))
                .collect(),
            by_machine: by_machine
                .map(|(at, found)| (found.job.machine.clone(), at))
                .collect(),
            jobs,
            failed: HashMap::new(),
        }
    }

    /// Takes migrations that failed.
    pub(super) fn failed(&mut self, migrations: Vec<Object>) {
        for object in migrations {
            let Some(name) = object.label(INSTANCE_LABEL) else {
                continue;
            };
            let instance = (object.key.namespace.clone(), name.to_owned());
            self.failed.entry(instance).or_default().push(object);
        }
    }

    /// The machines on one of `nodes`, and those of `asked`.
    pub(super) fn there(&self, nodes: &[String], asked: &HashSet<MachineId>) -> Vec<MachineId> {
        let nodes: HashSet<&str> = nodes.iter().map(String::as_str).collect();
        let on = |found: &MachineFound| {
            let node = found.row.as_ref().and_then(|row| row.node.as_ref());
            node.is_some_and(|node| nodes.contains(node.as_str()))
        };
        let all = self.machines.iter();
        all.filter(|(uid, found)| asked.contains(*uid) || on(found))
            .map(|(uid, _)| uid.clone())
            .collect()
    }

    pub(super) fn object(&self, uid: &MachineId) -> Option<&Object> {
        self.machines.get(uid)?.object.as_ref()
    }

    pub(super) fn row(&self, uid: &MachineId) -> Option<&InstanceRow> {
        self.machines.get(uid)?.row.as_ref()
    }

    /// All instances that were read.
    pub(super) fn objects(&self) -> impl Iterator<Item = &Object> {
        self.machines
            .values()
            .filter_map(|found| found.object.as_ref())
    }

    /// All rows that were read, by UID.
    pub(super) fn instances(&self) -> impl Iterator<Item = &InstanceRow> {
        self.machines
            .values()
            .filter_map(|found| found.row.as_ref())
    }

    fn job(&self, machine: &MachineId) -> Option<&JobFound> {
        self.jobs.get(*self.by_machine.get(machine)?)
    }

    pub(super) fn cancellable(&self, maintenance: &Object) -> Vec<JobId> {
        let ours = |found: &&JobFound| {
            let object = found.object.as_ref();
            object.is_some_and(|object| is_of(object, maintenance))
        };
        self.jobs
            .iter()
            .filter(|found| found.job.cancel.is_none() && !copying(found.job.state))
            .filter(ours)
            .map(|found| found.job.id.clone())
            .collect()
    }

    pub(super) fn guests(&self, asked: (Account<'_>, Timestamp), node: &NodeName) -> Vec<Guest> {
        let mut guests: Vec<Guest> = self
            .instances()
            .filter(|row| row.node.as_ref() == Some(node))
            .filter_map(|row| Some(self.guest(row, self.stage(row)?, asked)))
            .collect();
        for JobFound { job, .. } in &self.jobs {
            if self.row(&job.machine).and_then(|row| row.node.as_ref()) == Some(node) {
                continue;
            }
            guests.extend(self.passing(job, node, asked));
        }
        guests.sort_by(|a, b| a.key.cmp(&b.key));
        guests
    }

    /// What a machine on the node is doing; `None` for one that has ended.
    pub(super) fn stage(&self, row: &InstanceRow) -> Option<Stage> {
        let job = self.job(&row.uid).map(|found| &found.job);
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

    pub(super) fn guest(
        &self,
        row: &InstanceRow,
        stage: Stage,
        (account, now): (Account<'_>, Timestamp),
    ) -> Guest {
        let object = self.object(&row.uid);
        let own = object.and_then(|object| object.spec()["evictionStrategy"].as_str());
        let (failures, failed) = self.failures(&row.key, account, Method::Live);
        Guest {
            uid: row.uid.clone(),
            pod: launcher(row, object, account.node),
            machine: Machine {
                stage,
                strategy: EvictionStrategy::effective(own, self.strategy.as_deref()),
                not_migratable: object.and_then(not_migratable),
                failures,
                since_failure: failed.as_ref().map(|failed| since(failed.at, now)),
                climb: Climb::default(),
            },
            key: row.key.clone(),
            failed,
            no_room: self.no_room(&row.uid),
            memory: memory(row),
            way: self.way(&row.uid, account),
            owner: None,
            stand: Stand::new(now),
            step: None,
        }
    }

    /// A machine that is elsewhere and has a part on the node: one that comes, or one that left.
    fn passing(
        &self,
        job: &JobRow,
        node: &NodeName,
        (account, now): (Account<'_>, Timestamp),
    ) -> Option<Guest> {
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
                climb: Climb::default(),
            },
            failed: None,
            no_room: None,
            memory: self.row(&job.machine).map(memory).unwrap_or_default(),
            way: self.way(&job.machine, account),
            owner: None,
            stand: Stand::new(now),
            step: None,
        })
    }

    /// How many evacuations of `instance` by `method` failed on this account, and the last of them.
    pub(super) fn failures(
        &self,
        instance: &ObjectKey,
        account: Account<'_>,
        method: Method,
    ) -> (u32, Option<Failed>) {
        let instance = (instance.namespace.clone(), instance.name.clone());
        let failed = self.failed.get(&instance).into_iter().flatten();
        let failed =
            failed.filter(|object| is_ours(object, account) && method_of(object) == method);
        let failed: Vec<Failed> = failed.filter_map(failure).collect();
        let count = u32::try_from(failed.len()).unwrap_or(u32::MAX);
        (count, failed.into_iter().max_by_key(|failed| failed.at))
    }

    /// All open migrations, in the order of the queue, with what each carries.
    pub(super) fn traffic(&self) -> Vec<(Way, Bytes)> {
        let jobs = self.jobs.iter().take(TRAFFIC_MAX);
        let ways = jobs.filter_map(|found| {
            let memory = self.row(&found.job.machine).map(memory);
            Some((way(found, None)?, memory.unwrap_or_default()))
        });
        ways.collect()
    }

    /// The open migration of a machine; `None` when there is none.
    fn way(&self, machine: &MachineId, account: Account<'_>) -> Option<Way> {
        way(self.job(machine)?, Some(account))
    }

    fn no_room(&self, machine: &MachineId) -> Option<String> {
        let object = self.job(machine)?.object.as_ref()?;
        let waiting = condition(object, "migrationWaiting")?;
        let unschedulable = waiting["reason"] == "Unschedulable";
        unschedulable.then(|| text(&waiting["message"]))
    }
}

/// A migration as somebody sees it who has asked for it, or not: `None` has asked for nothing.
fn way(found: &JobFound, account: Option<Account<'_>>) -> Option<Way> {
    let object = found.object.as_ref()?;
    Some(Way {
        job: found.job.clone(),
        ours: account.is_some_and(|account| is_ours(object, account)),
        method: method_of(object),
        planned: object.annotation(TARGET_ANNOTATION).map(str::to_owned),
        progress: told(object, "progress").clone(),
    })
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

/// How a migration moves its machine.
fn method_of(migration: &Object) -> Method {
    let method = migration.annotation(METHOD_ANNOTATION);
    method.and_then(Method::from_name).unwrap_or(Method::Live)
}

/// The time since `at`. The clocks of two hosts may differ: what lies in the future is of this moment.
pub(crate) fn since(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(at)).unwrap_or_default()
}

/// What a migration has to carry.
fn memory(row: &InstanceRow) -> Bytes {
    row.machine
        .as_ref()
        .map(|machine| machine.memory)
        .unwrap_or_default()
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
