//! DrainPlans: made from the inventory, told in the status, and carried out when they say so.
//!
//! A plan is made once, and again when its spec changes; otherwise it stays as it was made, and
//! says whether it would come out the same. It is made without the ledger's lock, since it is only
//! as good as the moment anyway; what is written is guarded by the plan's own revision.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_ledger::{EventKind, EventRecord, Experience, Ledger, LedgerError, Object, Tx};
use godwit_model::Revision;
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::json::{put_condition, reference, set, status_of, told};

mod carrying_out;
mod making;
mod telling;

use making::{Made, Spec, make};
use telling::differences;

/// Resource of plans.
pub(crate) const PLANS: &str = "drainplans.godwit.io";
/// How often plans are looked at without a wake-up.
const POLL: Duration = Duration::from_secs(1);
/// Shortest time between two rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// Shortest time between two looks whether a plan would come out the same.
const CHECK_PAUSE: Duration = Duration::from_secs(3);
/// Making plans that nobody asked for anew takes at most this part of the time.
const CHECK_SHARE: u32 = 20;

/// Condition: the inventory doesn't give the same plan any more.
const STALE: &str = "Stale";
/// Condition: what was left was planned anew while the plan was carried out.
const REPLANNED: &str = "Replanned";

/// What the rounds over the plans share.
pub(crate) struct Plans {
    ledger: Ledger,
    experience: Experience,
    /// Wakes the drains: there is a new maintenance.
    drains: Arc<Notify>,
    shutdown: CancellationToken,
    /// By plan, when it was last made without being asked for.
    checks: HashMap<String, Check>,
}

/// The last time that a plan was made to see whether it would come out the same.
#[derive(Debug, Clone, Copy)]
struct Check {
    /// The inventory was at this revision.
    revision: Revision,
    /// Not before then.
    next: Instant,
}

/// Runs rounds until shutdown.
pub(crate) async fn run(mut plans: Plans) {
    let mut wakeups = plans.ledger.wakeups();
    while !plans.shutdown.is_cancelled() {
        if let Err(error) = plans.round().await {
            warn!(%error, "a round over the plans was cut short");
        }
        tokio::time::sleep(ROUND_PAUSE).await; // debounce
        tokio::select! {
            () = plans.shutdown.cancelled() => return,
            _ = wakeups.next(POLL) => {}
        }
    }
}

impl Plans {
    /// Nothing was looked at yet. `drains` is woken when there is a new maintenance.
    pub(crate) fn new(ledger: Ledger, drains: Arc<Notify>, shutdown: CancellationToken) -> Self {
        Self {
            ledger,
            experience: Experience::default(),
            drains,
            shutdown,
            checks: HashMap::new(),
        }
    }

    /// Takes the step that follows for each plan.
    ///
    /// # Errors
    /// The ledger's, when the plans can't be listed; one that fails doesn't stop others.
    pub(crate) async fn round(&mut self) -> Result<(), LedgerError> {
        let plans = self.ledger.list(PLANS).await?;
        self.checks
            .retain(|uid, _| plans.iter().any(|plan| plan.uid == *uid));
        for plan in plans.iter().filter(|plan| !plan.deleting()) {
            match self.step(plan).await {
                // Somebody wrote it meanwhile; the next round sees that.
                Ok(()) | Err(LedgerError::Conflict | LedgerError::NotFound) => {}
                Err(error) => warn!(drain_plan = %plan.key.name, %error, "a plan's step failed"),
            }
        }
        Ok(())
    }

    async fn step(&mut self, plan: &Object) -> Result<(), LedgerError> {
        let spec = Spec::of(plan);
        let made_of = told(plan, "observedGeneration");
        // A plan that somebody read is not made anew in silence, but before its first wave.
        if !made_of.is_null() && (spec.execute || carrying_out::has_begun(plan)) {
            return self.carry_out(plan, &spec).await;
        }
        if *made_of != plan.metadata["generation"] {
            return self.plan_anew(plan, &spec).await;
        }
        self.check(plan, &spec).await
    }

    /// Makes the plan, and tells it.
    async fn plan_anew(&self, plan: &Object, spec: &Spec) -> Result<(), LedgerError> {
        let names = self.node_names(spec).await?;
        let made = self.make(spec, &names, limit(spec.max_unavailable)).await?;
        let (moves, blockers) = (made.movers.len(), made.blockers.len());
        let now = self.ledger.now().await?;
        let mut status = telling::told(&made, (&plan.metadata["generation"], now));
        status.insert("phase".to_owned(), json!("Planned"));
        keep_conditions(&mut status, plan);
        put_condition(&mut status, (STALE, false), ("AsPlanned", ""), now);
        let note = format!(
            "Planned {} moves in {} waves from {} nodes, {blockers} blockers",
            made.plan.departures().count(),
            made.plan.waves.len(),
            made.nodes.len(),
        );
        let mut tx = self.ledger.begin().await?;
        write_status(&mut tx, plan, status).await?;
        tx.event(event(plan, (EventKind::Normal, "Planned", &note)))
            .await?;
        tx.commit().await?;
        info!(plan = %plan.key.name, moves, blockers, "planned");
        Ok(())
    }

    /// Sees whether the plan would come out the same, if that may be asked again.
    async fn check(&mut self, plan: &Object, spec: &Spec) -> Result<(), LedgerError> {
        if !self.may_check(plan).await? {
            return Ok(());
        }
        let began = Instant::now();
        let names = self.node_names(spec).await?;
        let made = self.make(spec, &names, limit(spec.max_unavailable)).await?;
        self.checked(plan, made.revision, began);
        let now = self.ledger.now().await?;
        let fresh = Value::Object(telling::told(&made, (&Value::Null, now)));
        let mut status = status_of(plan);
        match differences(&Value::Object(status.clone()), &fresh) {
            0 => put_condition(&mut status, (STALE, false), ("AsPlanned", ""), now),
            count => {
                let text = format!(
                    "the inventory gives another plan: {count} moves, blockers or nodes differ; \
                     change spec.refresh to plan anew"
                );
                put_condition(&mut status, (STALE, true), ("InventoryChanged", &text), now);
            }
        }
        if status == status_of(plan) {
            return Ok(());
        }
        let mut tx = self.ledger.begin().await?;
        write_status(&mut tx, plan, status).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Whether the inventory changed since the last look, and that is long enough ago.
    async fn may_check(&self, plan: &Object) -> Result<bool, LedgerError> {
        let Some(last) = self.checks.get(&plan.uid) else {
            return Ok(true);
        };
        if Instant::now() < last.next {
            return Ok(false);
        }
        Ok(self.ledger.revision().await? != last.revision)
    }

    fn checked(&mut self, plan: &Object, revision: Revision, began: Instant) {
        let pause = CHECK_PAUSE.max(began.elapsed().saturating_mul(CHECK_SHARE));
        let check = Check {
            revision,
            next: Instant::now() + pause,
        };
        self.checks.insert(plan.uid.clone(), check);
    }

    async fn node_names(&self, spec: &Spec) -> Result<Vec<String>, LedgerError> {
        Ok(spec.names(&self.ledger.list("nodes").await?))
    }

    async fn make(
        &self,
        spec: &Spec,
        names: &[String],
        nodes_max: Option<usize>,
    ) -> Result<Made, LedgerError> {
        self.experience.follow(&self.ledger).await?;
        make((&self.ledger, &self.experience), spec, names, nodes_max).await
    }
}

/// 0 is no limit.
fn limit(most: usize) -> Option<usize> {
    (most > 0).then_some(most)
}

/// Conditions outlive the plan that they were told of: they say what was before.
fn keep_conditions(status: &mut Map<String, Value>, plan: &Object) {
    set(status, "conditions", told(plan, "conditions").clone());
}

/// Writes the status of `plan`, if it is still as it was read.
async fn write_status(
    tx: &mut Tx,
    plan: &Object,
    status: Map<String, Value>,
) -> Result<(), LedgerError> {
    let object = Object {
        status: Some(Value::Object(status)),
        ..plan.clone()
    };
    tx.put(&object).await.map(drop)
}

fn event(plan: &Object, (kind, reason, note): (EventKind, &str, &str)) -> EventRecord {
    EventRecord {
        regarding: reference(plan, "godwit.io/v1alpha1", "DrainPlan"),
        reason: reason.to_owned(),
        note: note.to_owned(),
        kind,
        component: "drain-plan".to_owned(),
        host: String::new(),
    }
}
