//! The floor in memory: read whole once, and from then on only what changed of it.
//!
//! It never runs ahead of the ledger: what a transaction writes is taken in when it is read back,
//! after the commit. So one that rolls back leaves nothing behind, and several services may keep a
//! floor each. The ledger's constraints have the last word.
//!
//! How far nodes are overcommitted is part of it: when that changes, each machine asks for other
//! room from then on, and all is read again.

use std::collections::{BTreeMap, HashMap};

use godwit_model::machine::MachineSpec;
use godwit_model::placement::{Fleet, Overcommit};
use godwit_model::vmi::VmiSpec;
use godwit_model::{MachineId, NodeName};
use serde::Deserialize;
use serde_json::Value;
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};
use uuid::Uuid;

use crate::convert::{self, bigint};
use crate::floor::{NODES, booked, candidate, facts, labels_of, placed_by};
use crate::settings::{self, overcommit};
use crate::trail::{Reader, Trail};
use crate::{Ledger, LedgerError, NodeRow, Object, ReservationRow, Tx, node, object, reservation};

const NODE_ROWS: &str = "SELECT name, agent_address, boot_id, ready, memory_bytes, cpu_milli, \
    hugepages_2mi_bytes, hugepages_1gi_bytes, facts, heartbeat_at FROM node WHERE name = ANY($1)";
const NODE_OBJECTS: &str = "SELECT uid, resource, namespace, name, metadata, body, status, \
    revision FROM object WHERE resource = 'nodes' AND namespace = '' AND name = ANY($1)";
const HOLDERS: &str = "SELECT reservation.machine, reservation.node, job, memory_bytes, cpu_milli, \
    hugepages_2mi_bytes, hugepages_1gi_bytes, instance.machine AS spec, \
    metadata -> 'labels' AS labels, body -> 'spec' AS vmi \
    FROM reservation JOIN instance ON instance.uid = reservation.machine \
    LEFT JOIN object ON object.uid = reservation.machine";
const HOLDERS_OF: &str = "SELECT reservation.machine, reservation.node, job, memory_bytes, \
    cpu_milli, hugepages_2mi_bytes, hugepages_1gi_bytes, instance.machine AS spec, \
    metadata -> 'labels' AS labels, body -> 'spec' AS vmi \
    FROM reservation JOIN instance ON instance.uid = reservation.machine \
    LEFT JOIN object ON object.uid = reservation.machine \
    WHERE reservation.machine = ANY($1)";

/// Keeps the floor of one process.
#[derive(Debug, Default)]
pub struct FloorKeeper(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// `None` before the first look, and after one that was cut off.
    floor: Option<KeptFloor>,
    /// The last good values, which outlive the floor.
    overcommit: Overcommit,
}

/// The nodes, what is held on them, and by whom, as of the last look.
#[derive(Debug, Default)]
pub struct KeptFloor {
    nodes: BTreeMap<NodeName, NodeRow>,
    held: HashMap<MachineId, Vec<ReservationRow>>,
    fleet: Fleet,
    overcommit: Overcommit,
    /// The newest change that is in here.
    trail: Trail,
}

impl FloorKeeper {
    /// The floor as this transaction sees it, which has written nothing of it yet. Nobody else uses
    /// it until the answer is dropped.
    ///
    /// # Errors
    /// The ledger's.
    pub async fn current(
        &self,
        tx: &mut Tx,
    ) -> Result<MappedMutexGuard<'_, KeptFloor>, LedgerError> {
        self.follow(Reader::Tx(tx)).await
    }

    /// The floor without the ledger's lock: good enough to look, not to act on.
    ///
    /// # Errors
    /// The ledger's.
    pub async fn glance(
        &self,
        ledger: &Ledger,
    ) -> Result<MappedMutexGuard<'_, KeptFloor>, LedgerError> {
        self.follow(Reader::Ledger(ledger)).await
    }

    async fn follow(
        &self,
        mut reader: Reader<'_>,
    ) -> Result<MappedMutexGuard<'_, KeptFloor>, LedgerError> {
        let mut guard = self.0.lock().await;
        // Whoever is cut off in the middle leaves nothing, and the next reads all.
        let kept = match guard.floor.take() {
            Some(mut kept) => kept.catch_up(&mut reader).await?.then_some(kept),
            None => None,
        };
        let kept = match kept {
            Some(kept) => kept,
            None => KeptFloor::load(&mut reader, guard.overcommit).await?,
        };
        guard.overcommit = kept.overcommit;
        Ok(MutexGuard::map(guard, |place| place.floor.insert(kept)))
    }
}

impl KeptFloor {
    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeRow> {
        self.nodes.values()
    }

    /// The node of that name.
    pub fn node(&self, name: &NodeName) -> Option<&NodeRow> {
        self.nodes.get(name)
    }

    /// What a machine holds.
    pub fn held_by(&self, machine: &MachineId) -> &[ReservationRow] {
        self.held.get(machine).map_or(&[], Vec::as_slice)
    }

    /// All that is held.
    pub fn reservations(&self) -> impl Iterator<Item = &ReservationRow> {
        self.held.values().flatten()
    }

    /// All of it, for choices. Whoever changes it changes it back.
    pub fn fleet(&mut self) -> &mut Fleet {
        &mut self.fleet
    }

    /// How far nodes are overcommitted.
    pub fn overcommit(&self) -> Overcommit {
        self.overcommit
    }

    async fn load(reader: &mut Reader<'_>, last: Overcommit) -> Result<Self, LedgerError> {
        let mut kept = Self {
            // First, so that whatever changes meanwhile is looked at again.
            trail: Trail::begin(reader).await?,
            ..Self::default()
        };
        kept.overcommit = read_overcommit(reader, last).await?;
        let rows = reader.fetch_all(sqlx::query(node::LIST)).await?;
        let objects = reader.fetch_all(object::list(NODES)).await?;
        kept.set_nodes(&rows, &objects)?;
        for row in reader.fetch_all(sqlx::query(HOLDERS)).await? {
            kept.hold(&row)?;
        }
        Ok(kept)
    }

    /// Takes in what changed. Answers false when that isn't known, and all has to be read again.
    async fn catch_up(&mut self, reader: &mut Reader<'_>) -> Result<bool, LedgerError> {
        loop {
            let Some(changed) = self.trail.next(reader).await? else {
                return Ok(false);
            };
            if changed.settings
                && read_overcommit(reader, self.overcommit).await? != self.overcommit
            {
                return Ok(false);
            }
            if !changed.nodes.is_empty() && !self.look_at_nodes(reader, &changed.nodes).await? {
                return Ok(false);
            }
            if !changed.machines.is_empty() {
                self.look_at_machines(reader, &changed.machines).await?;
            }
            if !changed.more {
                return Ok(true);
            }
        }
    }

    /// Answers false when a node is of another kind, which its machines are placed by.
    async fn look_at_nodes(
        &mut self,
        reader: &mut Reader<'_>,
        names: &[String],
    ) -> Result<bool, LedgerError> {
        let rows = reader.fetch_all(sqlx::query(NODE_ROWS).bind(names)).await?;
        let statement = sqlx::query(NODE_OBJECTS).bind(names);
        let objects = reader.fetch_all(statement).await?;
        let accelerator =
            |kept: &Self, name: &NodeName| kept.node(name).map(|node| facts(node).accelerator);
        let names = names.iter().filter_map(|name| NodeName::parse(name).ok());
        let before: Vec<(NodeName, Option<String>)> = names
            .map(|name| (name.clone(), accelerator(self, &name)))
            .collect();
        for (name, _) in &before {
            self.nodes.remove(name);
        }
        self.set_nodes(&rows, &objects)?;
        let mut same = true;
        for (name, old) in &before {
            match accelerator(self, name) {
                None => self.fleet.node_remove(name),
                new => same &= old.is_none() || *old == new,
            }
        }
        Ok(same)
    }

    fn set_nodes(&mut self, rows: &[PgRow], objects: &[PgRow]) -> Result<(), LedgerError> {
        let mut known = HashMap::new();
        for row in objects {
            let object = Object::read(row)?;
            known.insert(object.key.name.clone(), object);
        }
        for row in rows {
            let node = node::read(row)?;
            self.fleet
                .node_set(candidate(&node, known.get(node.name.as_str())));
            self.nodes.insert(node.name.clone(), node);
        }
        Ok(())
    }

    async fn look_at_machines(
        &mut self,
        reader: &mut Reader<'_>,
        machines: &[Uuid],
    ) -> Result<(), LedgerError> {
        let rows = reader
            .fetch_all(sqlx::query(HOLDERS_OF).bind(machines))
            .await?;
        for machine in machines {
            let machine = MachineId::parse(machine.to_string());
            let machine = machine.map_err(|error| convert::broken("machine", error))?;
            for held in self.held.remove(&machine).unwrap_or_default() {
                self.fleet.release(&machine, &held.node);
            }
        }
        rows.iter().try_for_each(|row| self.hold(row))
    }

    fn hold(&mut self, row: &PgRow) -> Result<(), LedgerError> {
        let held = reservation::read(row)?;
        let spec: Option<Json<MachineSpec>> = row.try_get("spec")?;
        let vmi: Option<Value> = row.try_get("vmi")?;
        let labels: Option<Value> = row.try_get("labels")?;
        let vmi = vmi.and_then(|vmi| VmiSpec::deserialize(&vmi).ok());
        let vmi = vmi.map(|vmi| (vmi, labels_of(&labels.unwrap_or_default())));
        let mut demand = placed_by(&held, spec.as_deref(), vmi, self.overcommit);
        let node = self.nodes.get(&held.node);
        demand.needs.accelerator = node.map(|node| facts(node).accelerator);
        self.fleet
            .hold_as(&held.machine, &demand, &held.node, booked(&held));
        self.held
            .entry(held.machine.clone())
            .or_default()
            .push(held);
        Ok(())
    }
}

async fn read_overcommit(
    reader: &mut Reader<'_>,
    last: Overcommit,
) -> Result<Overcommit, LedgerError> {
    let rows = reader.fetch_all(sqlx::query(settings::PLACES)).await?;
    let objects: Result<Vec<Object>, LedgerError> = rows.iter().map(Object::read).collect();
    Ok(overcommit(&objects?, last))
}

impl Ledger {
    /// Forgets all but the newest `kept` changes of the floor. Who has not read them reads all anew.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn floor_changes_prune(&self, kept: u64) -> Result<(), LedgerError> {
        let statement = sqlx::query("SELECT floor_changes_prune($1)").bind(bigint(kept));
        self.fetch_one(statement).await.map(drop)
    }
}
