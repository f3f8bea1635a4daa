//! Machines' lives: from an instance that is wanted to a machine that runs, and back.
//!
//! Level-triggered: each round looks at every machine and every instance and takes one step. Woken
//! by pokes, by commits, by hosts' reports, and by a slow poll. It looks without the ledger's lock,
//! and takes it only when there is something to write; then it looks again. Only the owner's host
//! is believed, and nothing is started elsewhere because of silence.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_ledger::{
    FloorKeeper, InstanceRow, InstanceState, Ledger, LedgerError, MachineKeeper, Object, ObjectKey,
    ReservationRow, Tx,
};
use godwit_model::affinity::Labels;
use godwit_model::instance::{HostDefaults, Identity, machine_spec};
use godwit_model::machine::MachineSpec;
use godwit_model::placement::{Leaning, Placement};
use godwit_model::seed;
use godwit_model::vmi::VmiSpec;
use godwit_model::{Epoch, MachineId};
use godwit_runtime::failpoint;
use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config::Config;
use crate::fence;
use crate::inventory::Inventory;
use crate::launch::Agents;
use crate::observe::Seen;
use crate::orders::Orders;
use crate::place::{self, Wanted};
use crate::stale::Epochs;
use crate::telemetry::Telemetry;
use crate::told::{refuse, unschedulable};
use crate::vm::{self, Sight};
use crate::world::{MACHINES, World, instance_key, stale};
use crate::{status, told};

/// How often everything is looked at although nothing woke us.
const POLL: Duration = Duration::from_secs(1);
/// Shortest time between two rounds: our own commits wake us, too.
const ROUND_PAUSE: Duration = Duration::from_millis(50);
/// Longest time between two rounds while there are commits, and how many times as long as a round.
const ROUND_PAUSE_MAX: Duration = Duration::from_secs(1);
const ROUND_SHARE: u32 = 4;

/// What the rounds share.
pub(crate) struct Machines {
    pub(crate) config: Config,
    pub(crate) ledger: Ledger,
    pub(crate) floor: Arc<FloorKeeper>,
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) agents: Arc<Agents>,
    pub(crate) telemetry: Telemetry,
    pub(crate) shutdown: CancellationToken,
    pub(crate) orders: Orders,
    /// Machines as of the last round.
    pub(crate) keeper: Mutex<MachineKeeper>,
    /// What was taken in of what hosts say.
    pub(crate) seen: Seen,
    /// For whoever looks at reports.
    pub(crate) epochs: Arc<Epochs>,
}

/// What is to be built for an instance.
pub(crate) struct Hardware {
    pub(crate) vmi: VmiSpec,
    pub(crate) spec: MachineSpec,
}

/// Runs rounds until shutdown.
pub(crate) async fn run(machines: Arc<Machines>) {
    let mut wakeups = machines.ledger.wakeups();
    while !machines.shutdown.is_cancelled() {
        let began = Instant::now();
        if let Err(error) = machines.round().await {
            warn!(%error, "a round over the machines was cut short");
        }
        // Rounds over very many machines take a part of the time.
        let pause = (began.elapsed() * ROUND_SHARE).clamp(ROUND_PAUSE, ROUND_PAUSE_MAX);
        tokio::time::sleep(pause).await; // debounce
        tokio::select! {
            () = machines.shutdown.cancelled() => break,
            () = machines.inventory.machines_changed.notified() => {}
            _ = wakeups.next(POLL) => {}
        }
    }
    machines.orders.end().await;
}

impl Machines {
    /// Takes the step that follows for each machine and each instance.
    ///
    /// # Errors
    /// The ledger's, when it can't be read; one machine that fails doesn't stop others.
    pub(crate) async fn round(self: &Arc<Self>) -> Result<(), LedgerError> {
        let mut keeper = self.keeper.lock().await;
        let began = Instant::now();
        let kept = keeper.follow(&self.ledger).await?;
        self.epochs.set(began, kept.rows.values());
        let world = World::read((&self.ledger, &self.floor), kept).await?;
        self.telemetry.stands(&world);
        for machine in world.machines() {
            if let Err(error) = self.keep(machine, &world).await {
                self.failed(&machine.uid, &error);
            }
        }
        self.fence_all(&world).await;
        for object in world.instances() {
            let Ok(id) = MachineId::parse(object.uid.clone()) else {
                continue;
            };
            if let Err(error) = self.step(object, &id, &world).await {
                self.failed(id.as_str(), &error);
            }
        }
        self.seen.forget(&world);
        if !world.stale.is_empty() {
            self.give_back().await?;
        }
        Ok(())
    }

    pub(crate) fn failed(&self, machine: &str, error: &LedgerError) {
        match error {
            // Another copy of this service was faster; the next round sees what it did.
            LedgerError::AlreadyExists | LedgerError::Conflict | LedgerError::NotFound => {
                debug!(machine, %error, "a machine's step was overtaken");
            }
            LedgerError::MigrationInProgress { .. }
            | LedgerError::Refused(_)
            | LedgerError::Unavailable(_)
            | LedgerError::Unknown(_)
            | LedgerError::Database(_) => warn!(machine, %error, "a machine's step failed"),
        }
    }

    /// One write transaction; nothing is written when nothing changed.
    pub(crate) async fn write<F>(&self, work: F) -> Result<(), LedgerError>
    where
        F: AsyncFnOnce(&mut Tx) -> Result<(), LedgerError>,
    {
        let mut tx = self.ledger.begin().await?;
        work(&mut tx).await?;
        failpoint!("ledger.machine.before");
        tx.commit().await?;
        failpoint!("ledger.machine.after");
        Ok(())
    }

    /// Keeps the instance of a virtual machine.
    async fn keep(&self, machine: &Object, world: &World<'_>) -> Result<(), LedgerError> {
        let eviction_strategy = world.eviction_strategy.as_deref();
        let first = Sight {
            vm: machine,
            namesake: world.instance_of(&machine.key),
            eviction_strategy,
            now: Timestamp::now(),
        };
        if first.plan().is_empty() {
            return Ok(());
        }
        self.write(async |tx| {
            let Some(machine) = tx.get(&machine.key).await? else {
                return Ok(());
            };
            let namesake = tx.get(&instance_key(&machine.key)).await?;
            let sight = Sight {
                vm: &machine,
                namesake: namesake.as_ref(),
                eviction_strategy,
                now: tx.now(),
            };
            sight.plan().write(tx).await
        })
        .await
    }

    async fn step(
        self: &Arc<Self>,
        object: &Object,
        id: &MachineId,
        world: &World<'_>,
    ) -> Result<(), LedgerError> {
        if self.orders.is_busy(id) {
            return Ok(());
        }
        let Some(row) = world.row(id) else {
            return self.adopt(object, id).await;
        };
        if object.deleting() {
            return self.end(object, row, world).await;
        }
        if is_orphan(object, world) {
            return self.leave(object).await;
        }
        match row.state {
            InstanceState::Unplaced if fence::was_placed(object) => self.requeue(object).await,
            InstanceState::Unplaced => self.place(object, row, world).await,
            InstanceState::Starting => self.start(object, row, world).await,
            InstanceState::Running | InstanceState::Stopping => {
                self.observe(object, row, world).await
            }
            InstanceState::Stopped | InstanceState::Failed => Ok(()),
        }
    }

    /// Takes a new instance in; one that is deleted before goes at once.
    async fn adopt(&self, object: &Object, id: &MachineId) -> Result<(), LedgerError> {
        self.write(async |tx| {
            let Some(mut object) = same(tx, object).await? else {
                return Ok(());
            };
            if tx.instance(id).await?.is_some() {
                return Ok(());
            }
            if object.deleting() {
                return told::release(tx, object).await;
            }
            let row = InstanceRow {
                uid: id.clone(),
                key: object.key.clone(),
                node: None,
                epoch: Epoch(1),
                state: InstanceState::Unplaced,
                machine: None,
            };
            tx.instance_create(row).await?;
            let told = object.status.get_or_insert_default();
            status::set_phase(told, "Scheduling");
            tx.put(&object).await.map(drop)
        })
        .await
    }

    /// The virtual machine that made this instance is gone, and takes it along.
    async fn leave(&self, object: &Object) -> Result<(), LedgerError> {
        self.write(async |tx| {
            let Some(mut object) = same(tx, object).await? else {
                return Ok(());
            };
            let owner = tx.get(&owner_key(&object)).await?;
            if owner.is_some_and(|owner| vm::owner(&object) == Some(&owner.uid)) {
                return Ok(());
            }
            vm::mark_deleted(&mut object);
            tx.put(&object).await.map(drop)
        })
        .await
    }

    /// Finds a node and holds room there.
    async fn place(
        &self,
        object: &Object,
        row: &InstanceRow,
        world: &World<'_>,
    ) -> Result<(), LedgerError> {
        let hardware = self.hardware(object, &row.uid).await?;
        let known = match &hardware {
            Ok(hardware) => {
                let owner = world.machine(&owner_key(object));
                let home = home(hardware, object, owner);
                let wanted = wanted((object, row), hardware, home.as_ref());
                let placement = wanted.choose(&mut *self.floor.glance(&self.ledger).await?);
                placement.chosen.is_none() && told::knows(object, &placement)
            }
            Err(problem) => told::is_refused(object, problem),
        };
        if known {
            return Ok(());
        }
        self.write(async |tx| {
            let (Some(object), Some(row)) = (same(tx, object).await?, tx.instance(&row.uid).await?)
            else {
                return Ok(());
            };
            if row.state != InstanceState::Unplaced || object.deleting() {
                return Ok(());
            }
            match hardware {
                Ok(hardware) => self.bind(tx, (object, row), hardware).await,
                Err(problem) => refuse(tx, object, &problem).await,
            }
        })
        .await
    }

    async fn bind(
        &self,
        tx: &mut Tx,
        (mut object, mut row): (Object, InstanceRow),
        hardware: Hardware,
    ) -> Result<(), LedgerError> {
        let owner = tx.get(&owner_key(&object)).await?;
        let owner = owner.filter(|owner| vm::owner(&object) == Some(&owner.uid));
        let home = home(&hardware, &object, owner.as_ref());
        let wanted = wanted((&object, &row), &hardware, home.as_ref());
        let placement = place::place(tx, &self.floor, wanted).await?.placement;
        self.telemetry.placed(placement.chosen.is_some());
        let Placement {
            chosen: Some(node), ..
        } = &placement
        else {
            return unschedulable(tx, object, &placement).await;
        };
        info!(machine = %row.uid, %node, "machine placed");
        let Hardware { vmi, spec } = hardware;
        place::settle(tx, (&spec, node), owner).await?;
        status::bind(&mut object, node, &spec);
        let told = object.status.get_or_insert_default();
        status::set_migratable(told, &vmi);
        status::set_phase(told, "Scheduled");
        row.node = Some(node.clone());
        row.state = InstanceState::Starting;
        row.machine = Some(spec);
        tx.instance_put(&row).await?;
        tx.put(&object).await?;
        told::placed(tx, &object).await
    }

    /// What `object` is built as, or why it can't be.
    async fn hardware(
        &self,
        object: &Object,
        id: &MachineId,
    ) -> Result<Result<Hardware, String>, LedgerError> {
        let vmi = serde_json::from_value::<VmiSpec>(object.spec().clone());
        let mut vmi = match vmi {
            Ok(vmi) => vmi,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let mut secrets = BTreeMap::new();
        for name in seed::secrets(&vmi) {
            let key = ObjectKey::new("secrets", &object.key.namespace, name);
            if let Some(secret) = self.ledger.get(&key).await? {
                let data = secret.body.get("data").cloned().unwrap_or_default();
                secrets.insert(
                    name.to_owned(),
                    serde_json::from_value(data).unwrap_or_default(),
                );
            }
        }
        let filled = seed::fill(&mut vmi, &secrets);
        Ok(filled.and_then(|()| self.build(object, id, vmi)))
    }

    fn build(&self, object: &Object, id: &MachineId, vmi: VmiSpec) -> Result<Hardware, String> {
        let identity = Identity {
            id,
            namespace: &object.key.namespace,
            name: &object.key.name,
        };
        let defaults = HostDefaults {
            machine_type: &self.config.machine_type,
            cpu_model: &self.config.cpu_model,
        };
        let spec = machine_spec(&vmi, identity, defaults).map_err(|problems| {
            let texts: Vec<String> = problems
                .iter()
                .map(|p| format!("spec.{}: {}", p.path, p.message))
                .collect();
            texts.join("; ")
        })?;
        Ok(Hardware { vmi, spec })
    }

    /// Gives back the room of migrations that ended before they could do it themselves.
    async fn give_back(&self) -> Result<(), LedgerError> {
        self.write(async |tx| {
            let jobs = tx.jobs_open().await?;
            let held = tx.reservations().await?;
            let over: Vec<&ReservationRow> = stale(&held, &jobs).collect();
            for row in over {
                info!(machine = %row.machine, node = %row.node, "room of an ended migration");
                tx.reservation_release(&row.machine, &row.node).await?;
            }
            Ok(())
        })
        .await
    }
}

/// The instance as it is, if it still is the same.
pub(crate) async fn same(tx: &mut Tx, object: &Object) -> Result<Option<Object>, LedgerError> {
    let found = tx.get(&object.key).await?;
    Ok(found.filter(|found| found.uid == object.uid))
}

/// Whether the virtual machine that made this instance is gone.
fn is_orphan(object: &Object, world: &World<'_>) -> bool {
    let Some(owner) = vm::owner(object) else {
        return false;
    };
    let machine = world.machine(&owner_key(object));
    machine.is_none_or(|machine| machine.uid != owner)
}

/// Key of the virtual machine that an instance belongs to, if it belongs to one.
pub(crate) fn owner_key(instance: &Object) -> ObjectKey {
    ObjectKey::new(MACHINES, &instance.key.namespace, &instance.key.name)
}

fn home(
    hardware: &Hardware,
    object: &Object,
    owner: Option<&Object>,
) -> Option<godwit_model::NodeName> {
    let owner = owner.filter(|owner| vm::owner(object) == Some(&owner.uid));
    place::home(&hardware.spec, owner)
}

/// What is asked of a node at a start.
fn wanted<'a>(
    (object, row): (&'a Object, &'a InstanceRow),
    hardware: &'a Hardware,
    home: Option<&'a godwit_model::NodeName>,
) -> Wanted<'a> {
    static NO_MORE: Labels = Labels::new();
    Wanted {
        instance: row,
        object,
        spec: &hardware.spec,
        vmi: &hardware.vmi,
        home,
        job: None,
        added_selector: &NO_MORE,
        inbound_max: 0,
        leaning: Leaning::default(),
    }
}
