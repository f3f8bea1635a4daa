//! The loop over all maintenances, and the transaction that carries out a plan.
//!
//! Level-triggered: each round looks at what is true and takes the step that follows. It looks
//! without the ledger's lock first, and takes it only when there is something to write; then it
//! looks again, so two copies of this service never do a thing twice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_ledger::{
    EventKind, EventRecord, Experience, FloorKeeper, Ledger, LedgerError, MigrationRequest,
    NewObject, ObjectKey, TraceContext, Tx,
};
use godwit_model::maintenance::Method;
use godwit_runtime::failpoint;
use godwit_runtime::telemetry::{StepSpans, begin_trace};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::json::reference;
use crate::look::{
    Account, INSTANCE_LABEL, MAINTENANCE_ANNOTATION, MAINTENANCES, METHOD_ANNOTATION, MIGRATIONS,
    NODE_ANNOTATION, Situation, TARGET_ANNOTATION, look_again, look_around,
};
use crate::plan::{EVACUATION_CONTROLLER, Evacuation, Lease, Plan, plan};
use crate::rolling::Budgets;
use crate::routes::route;
use crate::telemetry::Telemetry;
use crate::trace::{self, Requested, Round, Traced, retell};

/// How often everything is looked at although nothing woke us: pauses after failures end so.
const POLL: Duration = Duration::from_secs(1);
/// How often marks of evictions are looked for without a poke: pauses after failures end so.
const EVICTIONS_POLL: Duration = Duration::from_secs(5);
/// Shortest time between two rounds: a drain's own commits wake us, too.
const ROUND_PAUSE: Duration = Duration::from_millis(50);
/// Place in the queue of an evacuation: KubeVirt's `system-critical`.
const PRIORITY: i32 = 100;
/// Finalizer that keeps a migration until it is over.
const MIGRATION_FINALIZER: &str = "kubevirt.io/migrationJobFinalize";

/// What the rounds share.
pub(crate) struct Drains {
    pub(crate) ledger: Ledger,
    /// Something about nodes or maintenances changed.
    pub(crate) changed: Arc<Notify>,
    /// Tells the coordinator that there are new jobs.
    pub(crate) requested: Arc<Notify>,
    pub(crate) telemetry: Telemetry,
    pub(crate) spans: StepSpans,
    pub(crate) shutdown: CancellationToken,
    /// What forecasts are made from.
    pub(crate) experience: Experience,
    /// The nodes and what is held on them: where machines may go.
    pub(crate) floor: FloorKeeper,
}

/// Runs rounds until shutdown.
pub(crate) async fn run(drains: Drains) {
    retell(&drains.ledger, &drains.spans).await;
    let mut wakeups = drains.ledger.wakeups();
    let mut evictions = tokio::time::interval(EVICTIONS_POLL);
    evictions.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut evict = true;
    while !drains.shutdown.is_cancelled() {
        let began = Instant::now();
        if let Err(error) = drains.round().await {
            warn!(%error, "a round over the maintenances was cut short");
        }
        if evict && let Err(error) = drains.evictions().await {
            warn!(%error, "a round over the evictions was cut short");
        }
        evict = tokio::select! {
            () = drains.shutdown.cancelled() => return,
            () = drains.changed.notified() => true,
            _ = evictions.tick() => true,
            _ = wakeups.next(POLL) => false,
        };
        // Rounds over very many machines take at most half of the time.
        tokio::time::sleep(began.elapsed().max(ROUND_PAUSE)).await; // debounce
    }
}

impl Drains {
    /// Takes the step that follows for each maintenance.
    ///
    /// # Errors
    /// The ledger's, when what is true can't be read; one that fails doesn't stop others.
    pub(crate) async fn round(&self) -> Result<(), LedgerError> {
        let maintenances = self.ledger.list(MAINTENANCES).await?;
        self.telemetry.keep(&maintenances);
        if maintenances.is_empty() {
            return Ok(());
        }
        self.experience.follow(&self.ledger).await?;
        let mut situations = look_around(&self.ledger, maintenances).await?;
        if situations.iter().any(Situation::wants_routes) {
            let mut floor = self.floor.glance(&self.ledger).await?;
            route(floor.fleet(), &mut situations);
        }
        for situation in &situations {
            if let Err(error) = self.reconcile(situation).await {
                let maintenance = &situation.maintenance.key.name;
                warn!(%maintenance, %error, "a maintenance's step failed");
            }
        }
        Ok(())
    }

    async fn reconcile(&self, seen: &Situation) -> Result<(), LedgerError> {
        let first = plan(seen, &self.experience.forecaster());
        self.telemetry.stands(&seen.node_name, first.standing);
        if first.is_empty() {
            return Ok(());
        }
        let mut tx = self.ledger.begin().await?;
        let Some(situation) = look_again(&mut tx, seen).await? else {
            return Ok(());
        };
        if !situation.is_routed() {
            // Somebody came meanwhile: the next round finds a place for them, too.
            self.changed.notify_one();
            return Ok(());
        }
        let plan = plan(&situation, &self.experience.forecaster());
        let mut traced = match self.spans.is_exported() && !plan.is_empty() {
            true => Some(Traced::of(&mut tx, &situation, seen.now).await?),
            false => None,
        };
        let requested = write(&mut tx, &situation, &plan).await?;
        if let Some(traced) = &mut traced {
            let round = Round {
                began: seen.now,
                situation: &situation,
                plan: &plan,
                requested: &requested,
            };
            traced.note(&mut tx, &round).await?;
        }
        if situation.maintenance.deleting() {
            tx.maintenance_traces_prune(trace::KEPT).await?;
        }
        failpoint!("ledger.drain.before");
        tx.commit().await?;
        failpoint!("ledger.drain.after");
        if let Some(traced) = traced {
            traced.tell(&self.spans);
        }
        self.telemetry.stands(&situation.node_name, plan.standing);
        self.telemetry.requested(requested.len());
        if !requested.is_empty() || !plan.cancels.is_empty() {
            self.requested.notify_one();
        }
        if plan.more {
            self.changed.notify_one();
        }
        log(&situation, &plan, &requested);
        Ok(())
    }
}

fn log(situation: &Situation, plan: &Plan, requested: &[Requested]) {
    let maintenance = &situation.maintenance.key.name;
    let node = &situation.node_name;
    for event in &plan.events {
        let about = &event.regarding.name;
        info!(%maintenance, %node, %about, reason = %event.reason, "{}", event.note);
    }
    for Requested {
        name: migration, ..
    } in requested
    {
        info!(%maintenance, %node, %migration, "evacuation requested");
    }
}

/// Writes everything that `plan` says; answers the evacuations that were asked for.
async fn write(
    tx: &mut Tx,
    situation: &Situation,
    plan: &Plan,
) -> Result<Vec<Requested>, LedgerError> {
    match &plan.lease {
        Some(Lease::Create(lease)) => drop(tx.create((**lease).clone()).await?),
        Some(Lease::Put(lease)) => drop(tx.put(lease).await?),
        Some(Lease::Remove(key)) => tx.remove(key).await?,
        None => {}
    }
    for object in plan
        .node
        .iter()
        .chain(&plan.instances)
        .chain(&plan.machines)
    {
        tx.put(object).await?;
    }
    for event in &plan.events {
        tx.event(event.clone()).await?;
    }
    let mut requested = vec![];
    if !plan.requests.is_empty() {
        let mut budgets = Budgets::read(tx).await?;
        for evacuation in &plan.requests {
            // One that is over its budget is looked at again in the next round.
            if budgets.admit(&evacuation.instance) {
                requested.extend(request(tx, situation.account(), evacuation).await?);
            }
        }
    }
    for (job, why) in &plan.cancels {
        tx.job_cancel(job, why).await?;
    }
    if let Some(maintenance) = &plan.maintenance {
        tx.put(maintenance).await?;
    }
    Ok(requested)
}

/// Asks for one evacuation; `None` when another round has to.
pub(crate) async fn request(
    tx: &mut Tx,
    account: Account<'_>,
    evacuation: &Evacuation,
) -> Result<Option<Requested>, LedgerError> {
    let instance = &evacuation.instance;
    let (space, vmi) = (&instance.key.namespace, &instance.key.name);
    let name = format!("kubevirt-evacuation-{}", suffix());
    // One trace a migration: it begins here, and who asks writes its first span after the commit.
    let trace = begin_trace();
    let mut annotations = json!({ NODE_ANNOTATION: account.node });
    if let Some(maintenance) = account.maintenance {
        annotations[MAINTENANCE_ANNOTATION] = json!(maintenance.uid);
    }
    if let Some(target) = &evacuation.target {
        annotations[TARGET_ANNOTATION] = json!(target);
    }
    if evacuation.method != Method::Live {
        annotations[METHOD_ANNOTATION] = json!(evacuation.method.as_str());
    }
    let made = tx
        .migration_request(MigrationRequest {
            object: NewObject {
                key: ObjectKey::new(MIGRATIONS, space, &name),
                uid: None,
                metadata: json!({
                    "labels": { INSTANCE_LABEL: vmi },
                    "annotations": annotations,
                    "finalizers": [MIGRATION_FINALIZER],
                }),
                body: json!({ "spec": { "vmiName": vmi, "priority": "system-critical" } }),
                status: None,
            },
            machine: evacuation.machine.clone(),
            vmi: instance.key.clone(),
            priority: PRIORITY,
            trace: TraceContext(trace.clone()),
        })
        .await;
    match made {
        Ok(_) => {}
        Err(LedgerError::MigrationInProgress { .. } | LedgerError::AlreadyExists) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    }
    tx.event(EventRecord {
        regarding: reference(instance, "kubevirt.io/v1", "VirtualMachineInstance"),
        reason: "SuccessfulCreate".to_owned(),
        note: format!("Created Migration {name}"),
        kind: EventKind::Normal,
        component: EVACUATION_CONTROLLER.to_owned(),
        host: String::new(),
    })
    .await?;
    Ok(Some(Requested { name, trace }))
}

/// Five letters of Kubernetes' alphabet for generated names.
fn suffix() -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let random = Uuid::new_v4().into_bytes();
    random[..5]
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect()
}
