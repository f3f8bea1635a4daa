//! Machines in memory: instances, and objects of some resources, read whole once, and from then on
//! only what changed of them.
//!
//! They are of about one moment, and never ahead of the ledger: whatever follows from them is looked
//! at again in the transaction that writes.

use std::collections::{BTreeMap, HashMap, HashSet};

use godwit_model::{MachineId, Revision};
use sqlx::Row;
use uuid::Uuid;

use crate::convert::{self, At, bigint};
use crate::trail::{Reader, Trail};
use crate::{InstanceRow, Ledger, LedgerError, Mark, Object, ObjectKey, instance};

/// Changes read at a time.
const BATCH: i64 = 2000;

const NEWEST: &str = "SELECT value AS revision, \
    (SELECT changed_at FROM change WHERE revision = value) AS changed_at FROM revision_counter";
const OBJECTS: &str = "SELECT uid, resource, namespace, name, metadata, body, status, revision \
    FROM object WHERE resource = ANY($1)";
const OBJECTS_OF: &str = "SELECT uid, resource, namespace, name, metadata, body, status, revision \
    FROM object WHERE uid = ANY($1)";
const ROWS_OF: &str = "SELECT uid, namespace, name, node, epoch, state, machine FROM instance \
    WHERE uid = ANY($1)";

/// Keeps instances and objects for one task.
#[derive(Debug)]
pub struct MachineKeeper {
    resources: Vec<String>,
    rows: Option<Rows>,
    objects: Option<Objects>,
}

#[derive(Debug)]
struct Rows {
    trail: Trail,
    all: HashMap<MachineId, InstanceRow>,
}

#[derive(Debug)]
struct Objects {
    mark: Mark,
    all: BTreeMap<ObjectKey, Object>,
    keys: HashMap<String, ObjectKey>,
}

/// All instances and objects, as of the last look.
#[derive(Debug, Clone, Copy)]
pub struct KeptMachines<'a> {
    /// The instances.
    pub rows: &'a HashMap<MachineId, InstanceRow>,
    /// The objects, by resource, namespace and name.
    pub objects: &'a BTreeMap<ObjectKey, Object>,
}

impl MachineKeeper {
    /// Will keep the objects of `resources`, events not among them.
    pub fn new(resources: &[&str]) -> Self {
        Self {
            resources: resources
                .iter()
                .map(|&resource| resource.to_owned())
                .collect(),
            rows: None,
            objects: None,
        }
    }

    /// Takes in what changed since the last call.
    ///
    /// # Errors
    /// The ledger's; the next call reads all anew.
    pub async fn follow(&mut self, ledger: &Ledger) -> Result<KeptMachines<'_>, LedgerError> {
        // Whoever is cut off in the middle leaves nothing.
        let rows = match self.rows.take() {
            Some(mut rows) => rows.catch_up(ledger).await?.then_some(rows),
            None => None,
        };
        let rows = match rows {
            Some(rows) => rows,
            None => Rows::load(ledger).await?,
        };
        let objects = match self.objects.take() {
            Some(mut objects) => {
                let known = objects.catch_up(ledger, &self.resources).await?;
                known.then_some(objects)
            }
            None => None,
        };
        let objects = match objects {
            Some(objects) => objects,
            None => Objects::load(ledger, &self.resources).await?,
        };
        Ok(KeptMachines {
            rows: &self.rows.insert(rows).all,
            objects: &self.objects.insert(objects).all,
        })
    }
}

impl Rows {
    async fn load(ledger: &Ledger) -> Result<Self, LedgerError> {
        // First, so that whatever changes meanwhile is looked at again.
        let trail = Trail::begin(&mut Reader::Ledger(ledger)).await?;
        let all = ledger.instances().await?.into_iter();
        Ok(Self {
            trail,
            all: all.map(|row| (row.uid.clone(), row)).collect(),
        })
    }

    async fn catch_up(&mut self, ledger: &Ledger) -> Result<bool, LedgerError> {
        loop {
            let changed = self.trail.next(&mut Reader::Ledger(ledger)).await?;
            let Some(changed) = changed else {
                return Ok(false);
            };
            if !changed.machines.is_empty() {
                let statement = sqlx::query(ROWS_OF).bind(&changed.machines);
                let rows = ledger.fetch_all(statement).await?;
                for uid in &changed.machines {
                    let uid = MachineId::parse(uid.to_string());
                    self.all
                        .remove(&uid.map_err(|error| convert::broken("machine", error))?);
                }
                for row in &rows {
                    let row = instance::read(row)?;
                    self.all.insert(row.uid.clone(), row);
                }
            }
            if !changed.more {
                return Ok(true);
            }
        }
    }
}

impl Objects {
    async fn load(ledger: &Ledger, resources: &[String]) -> Result<Self, LedgerError> {
        // First, so that whatever changes meanwhile is looked at again.
        let newest = ledger.fetch_one(sqlx::query(NEWEST)).await?;
        let at: Option<At> = newest.try_get("changed_at")?;
        let mut kept = Self {
            mark: Mark {
                revision: Revision(convert::count(&newest, "revision")?),
                at: at.map(|at| at.0),
            },
            all: BTreeMap::new(),
            keys: HashMap::new(),
        };
        for row in ledger
            .fetch_all(sqlx::query(OBJECTS).bind(resources))
            .await?
        {
            kept.put(Object::read(&row)?);
        }
        Ok(kept)
    }

    async fn catch_up(
        &mut self,
        ledger: &Ledger,
        resources: &[String],
    ) -> Result<bool, LedgerError> {
        loop {
            let statement = sqlx::query(include_str!("../queries/objects_changed.sql"))
                .bind(bigint(self.mark.revision.0))
                .bind(self.mark.at.map(At))
                .bind(resources)
                .bind(BATCH);
            let rows = ledger.fetch_all(statement).await?;
            let mut changed = HashSet::new();
            for row in &rows {
                if !row.try_get::<bool, _>("known")? {
                    return Ok(false);
                }
                if let Some(revision) = row.try_get::<Option<i64>, _>("revision")? {
                    let at: At = row.try_get("changed_at")?;
                    self.mark = Mark {
                        revision: Revision(u64::try_from(revision).unwrap_or_default()),
                        at: Some(at.0),
                    };
                    changed.extend(row.try_get::<Option<Uuid>, _>("uid")?);
                }
            }
            self.look_at(ledger, changed.into_iter().collect()).await?;
            if rows.len() < usize::try_from(BATCH).unwrap_or(usize::MAX) {
                return Ok(true);
            }
        }
    }

    async fn look_at(&mut self, ledger: &Ledger, changed: Vec<Uuid>) -> Result<(), LedgerError> {
        if changed.is_empty() {
            return Ok(());
        }
        let rows = ledger
            .fetch_all(sqlx::query(OBJECTS_OF).bind(&changed))
            .await?;
        for uid in &changed {
            if let Some(key) = self.keys.remove(&uid.to_string()) {
                self.all.remove(&key);
            }
        }
        rows.iter().try_for_each(|row| {
            self.put(Object::read(row)?);
            Ok(())
        })
    }

    fn put(&mut self, object: Object) {
        self.keys.insert(object.uid.clone(), object.key.clone());
        self.all.insert(object.key.clone(), object);
    }
}
