//! Everything that was read about machines and migrations, sorted out for one node.

use std::time::Duration;

use godwit_ledger::{InstanceRow, InstanceState, JobRow, Object, ObjectKey};
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
pub(super) struct Rows {
    pub(super) instances: Vec<InstanceRow>,
    pub(super) jobs: Vec<JobRow>,
    pub(super) objects: Vec<Object>,
    pub(super) migrations: Vec<Object>,
    /// The cluster's eviction strategy.
    pub(super) strategy: Option<String>,
}

impl Rows {
    pub(super) fn object(&self, uid: &MachineId) -> Option<&Object> {
        self.objects
            .iter()
            .find(|object| object.uid == uid.as_str())
    }

    pub(super) fn row(&self, uid: &MachineId) -> Option<&InstanceRow> {
        self.instances.iter().find(|row| row.uid == *uid)
    }

    pub(super) fn cancellable(&self, maintenance: &Object) -> Vec<JobId> {
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

    pub(super) fn guests(&self, asked: (Account<'_>, Timestamp), node: &NodeName) -> Vec<Guest> {
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
            guests.extend(self.passing(job, node, asked));
        }
        guests.sort_by(|a, b| a.key.cmp(&b.key));
        guests
    }

    /// What a machine on the node is doing; `None` for one that has ended.
    pub(super) fn stage(&self, row: &InstanceRow) -> Option<Stage> {
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
        let failed = self.migrations.iter().filter(|object| {
            object.key.namespace == instance.namespace
                && object.label(INSTANCE_LABEL) == Some(&instance.name)
                && is_ours(object, account)
                && method_of(object) == method
        });
        let failed: Vec<Failed> = failed.filter_map(failure).collect();
        let count = u32::try_from(failed.len()).unwrap_or(u32::MAX);
        (count, failed.into_iter().max_by_key(|failed| failed.at))
    }

    /// All open migrations, in the order of the queue, with what each carries.
    pub(super) fn traffic(&self, node: &str, maintenance: &Object) -> Vec<(Way, Bytes)> {
        let account = Account {
            node,
            maintenance: Some(maintenance),
        };
        let jobs = self.jobs.iter().take(TRAFFIC_MAX);
        let ways = jobs.filter_map(|job| {
            let memory = self.row(&job.machine).map(memory).unwrap_or_default();
            Some((self.way(&job.machine, account)?, memory))
        });
        ways.collect()
    }

    /// The open migration of a machine; `None` when there is none.
    fn way(&self, machine: &MachineId, account: Account<'_>) -> Option<Way> {
        let job = self.jobs.iter().find(|job| job.machine == *machine)?;
        let object = self.migration(job)?;
        Some(Way {
            job: job.clone(),
            ours: is_ours(object, account),
            method: method_of(object),
            planned: object.annotation(TARGET_ANNOTATION).map(str::to_owned),
            progress: told(object, "progress").clone(),
        })
    }

    fn migration(&self, job: &JobRow) -> Option<&Object> {
        let mut all = self.migrations.iter();
        all.find(|object| object.uid == job.id.as_str())
    }

    fn no_room(&self, machine: &MachineId) -> Option<String> {
        let job = self.jobs.iter().find(|job| job.machine == *machine)?;
        let object = self.migration(job)?;
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
