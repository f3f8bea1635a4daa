//! What is read for the maintenances of some nodes: a handful of statements, however many nodes and
//! however large the fleet.

use std::collections::{HashMap, HashSet};

use godwit_ledger::{LedgerError, MachinesWanted, Object, ObjectKey, SettingsFound};
use godwit_model::limits::MigrationLimits;
use godwit_model::plan::Pace;
use godwit_model::{MachineId, NodeName};
use jiff::Timestamp;

use super::rows::Rows;
use super::{INSTANCES, MACHINES, Reader, lease_key, machine_of};
use crate::json::told;

const KUBEVIRTS: &str = "kubevirts.kubevirt.io";
const CONFIG_MAPS: &str = "configmaps";
/// Resource of nodes.
pub(super) const NODES: &str = "nodes";
/// Key of the taint of nodes that are drained, where nothing else was set: KubeVirt's.
const DRAIN_TAINT: &str = "kubevirt.io/drain";

/// Everything that is about the same for all maintenances.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// What migrations keep to.
    pub(crate) pace: Pace,
    /// The cluster's eviction strategy.
    pub(crate) strategy: Option<String>,
    /// Key of the taint that says that a node is drained.
    pub(crate) drain_taint: String,
}

impl Settings {
    /// Reads them.
    ///
    /// # Errors
    /// The ledger's.
    pub(crate) async fn read(reader: &mut Reader<'_>) -> Result<Self, LedgerError> {
        let clusters = reader.list(KUBEVIRTS).await?;
        let found = SettingsFound::new(&clusters, &reader.list(CONFIG_MAPS).await?);
        // What makes no sense is told by the coordinator; a plan does with the defaults.
        let (limits, _) = MigrationLimits::resolve(
            &MigrationLimits::default(),
            &found.kubevirt.unwrap_or_default(),
            &found.config_map.unwrap_or_default(),
        );
        let of_cluster = |path: &str| {
            let found = clusters.first()?.spec().pointer(path)?.as_str();
            found.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let drain_taint = of_cluster("/configuration/migrations/nodeDrainTaintKey");
        Ok(Self {
            pace: Pace::from(&limits),
            strategy: of_cluster("/configuration/evictionStrategy"),
            drain_taint: drain_taint.unwrap_or_else(|| DRAIN_TAINT.to_owned()),
        })
    }
}

/// What was read.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(super) settings: Settings,
    pub(super) rows: Rows,
    /// Nodes, their leases, and the virtual machines of instances.
    objects: HashMap<ObjectKey, Object>,
    /// By the database's clock.
    pub(super) now: Timestamp,
}

/// Of which open migrations is to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// Of all: forecasts and routes look at them.
    All,
    /// Of those that have to do with what is asked for.
    Own,
}

impl Ground {
    /// Reads what `wanted` has to do with.
    ///
    /// # Errors
    /// The ledger's.
    pub(crate) async fn read(
        reader: &mut Reader<'_>,
        mut wanted: MachinesWanted,
        traffic: Traffic,
    ) -> Result<Self, LedgerError> {
        let settings = Settings::read(reader).await?;
        let jobs = match traffic {
            Traffic::All => reader.jobs_shown().await?,
            Traffic::Own => reader.jobs_about(&wanted.nodes, &wanted.machines).await?,
        };
        let asked: HashSet<MachineId> = wanted.machines.iter().cloned().collect();
        let moving = jobs.iter().map(|found| found.job.machine.clone());
        wanted.machines.extend(moving);
        let machines = reader.machines_about(&wanted).await?;
        let mut rows = Rows::new(settings.strategy.clone(), machines, jobs);
        let there = rows.there(&wanted.nodes, &asked);
        rows.failed(reader.migrations_failed(&there).await?);
        let mut keys: Vec<ObjectKey> = vec![];
        for node in &wanted.nodes {
            keys.extend([ObjectKey::new(NODES, "", node), lease_key(node)]);
        }
        keys.extend(there.iter().filter_map(|uid| owner_key(&rows, uid)));
        let objects = reader.get_all(&keys).await?.into_iter();
        let objects = objects.map(|object| (object.key.clone(), object));
        Ok(Self {
            settings,
            rows,
            objects: objects.collect(),
            now: reader.now().await?,
        })
    }

    pub(super) fn object(&self, key: &ObjectKey) -> Option<&Object> {
        self.objects.get(key)
    }

    pub(super) fn node(&self, name: &str) -> Option<(NodeName, Object)> {
        let object = self.object(&ObjectKey::new(NODES, "", name))?;
        Some((NodeName::parse(name).ok()?, object.clone()))
    }
}

/// What the maintenances have to do with: their nodes, and the machines that were told of before.
pub(crate) fn wanted_of(maintenances: &[Object]) -> MachinesWanted {
    let mut wanted = MachinesWanted::default();
    for maintenance in maintenances {
        let node = maintenance.spec()["nodeName"].as_str().unwrap_or_default();
        wanted.nodes.push(node.to_owned());
        let entries = |field| told(maintenance, field).as_array().into_iter().flatten();
        // Where a machine moved is told once, and stays so.
        let here = entries("machines").filter(|entry| entry["state"] != "Moved");
        for entry in entries("blockers").chain(here) {
            let text = |field: &str| entry[field].as_str().unwrap_or_default();
            let key = ObjectKey::new(INSTANCES, text("namespace"), text("name"));
            wanted.keys.push(key);
            wanted.machines.extend(MachineId::parse(text("uid")).ok());
        }
    }
    wanted
}

fn owner_key(rows: &Rows, uid: &MachineId) -> Option<ObjectKey> {
    let instance = rows.object(uid)?;
    machine_of(instance)?;
    Some(ObjectKey::new(
        MACHINES,
        &instance.key.namespace,
        &instance.key.name,
    ))
}
