//! A plan that is carried out: a NodeMaintenance for each node of a wave, wave by wave.
//!
//! Before a wave, what is left is planned anew, so that no step rests on an inventory of yesterday;
//! what comes out differently is told. The drains do the rest.

use std::time::Instant;

use godwit_ledger::{EventKind, LedgerError, NewObject, Object, ObjectKey, Tx};
use godwit_model::NodeName;
use godwit_model::plan::{Maintained, Next, NodeState, next};
use godwit_runtime::failpoint;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tracing::info;

use super::making::{Made, Spec};
use super::telling::{self, differences, expected, merged};
use super::{Plans, REPLANNED, STALE, event, write_status};
use crate::json::{put_condition, set, status_of, told};
use crate::look::MAINTENANCES;
use crate::plan::FINALIZER;

/// Longest name of an object.
const NAME_MAX: usize = 253;

/// A node of the plan, as the status has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    pub(super) name: String,
    /// From 1; `None` when it is in none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) wave: Option<usize>,
    #[serde(default)]
    pub(super) state: NodeState,
    /// Name of its maintenance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) maintenance: Option<String>,
}

/// The lines of the nodes of `plan`.
fn lines(plan: &Object) -> Vec<Line> {
    let lines = told(plan, "nodes").as_array().into_iter().flatten();
    lines
        .filter_map(|line| Line::deserialize(line).ok())
        .collect()
}

/// Whether a wave of the plan has begun.
pub(super) fn has_begun(plan: &Object) -> bool {
    lines(plan)
        .iter()
        .any(|line| line.state != NodeState::Waiting)
}

impl Plans {
    /// Takes the step that follows for a plan that is carried out, or was begun.
    pub(super) async fn carry_out(
        &mut self,
        plan: &Object,
        spec: &Spec,
    ) -> Result<(), LedgerError> {
        let maintenances = self.ledger.list(MAINTENANCES).await?;
        let lines = stand(lines(plan), &self.node_names(spec).await?, &maintenances);
        let states: Vec<NodeState> = lines.iter().map(|line| line.state).collect();
        let (phase, message) = match next(&states, spec.max_unavailable) {
            Next::Drain => ("Draining", draining(&lines, &maintenances)),
            Next::Done => ("Succeeded", String::new()),
            Next::Full | Next::Begin { .. } if !spec.execute => (
                "Paused",
                "execute is false: no further wave begins".to_owned(),
            ),
            Next::Full => ("Waiting", full(&lines, spec.max_unavailable)),
            Next::Begin { nodes_max } => return self.begin(plan, spec, (lines, nodes_max)).await,
        };
        let mut status = status_of(plan);
        status.insert("nodes".to_owned(), json!(lines));
        self.tell(plan, status, (phase, &message)).await
    }

    /// Plans what is left, and begins its first wave.
    async fn begin(
        &mut self,
        plan: &Object,
        spec: &Spec,
        (lines, nodes_max): (Vec<Line>, Option<usize>),
    ) -> Result<(), LedgerError> {
        if !self.may_check(plan).await? {
            return Ok(());
        }
        let began = Instant::now();
        let rest = lines.iter().filter(|line| line.state == NodeState::Waiting);
        let rest: Vec<String> = rest.map(|line| line.name.clone()).collect();
        let made = self.make(spec, &rest, nodes_max).await?;
        let now = self.ledger.now().await?;
        let generation = (&plan.metadata["generation"], now);
        let before = lines
            .into_iter()
            .filter(|line| line.state != NodeState::Waiting);
        let before: Vec<Line> = before.collect();
        let mut status = merged(plan, &before, telling::told(&made, generation), now);
        let replanned = differences(&expected(plan, &rest), &Value::Object(status.clone()));
        let Some(wave) = made.plan.waves.first() else {
            self.checked(plan, made.revision, began);
            let why = "no node that is left can be emptied: see the blockers";
            return self.tell(plan, status, ("Waiting", why)).await;
        };
        let number = before
            .iter()
            .filter_map(|line| line.wave)
            .max()
            .unwrap_or(0)
            + 1;
        let mut tx = self.ledger.begin().await?;
        for node in &wave.nodes {
            let name = maintain(&mut tx, plan, (node, &made)).await?;
            closed(&mut status, node, &name);
        }
        let names: Vec<&str> = wave.nodes.iter().map(NodeName::as_str).collect();
        let names = names.join(", ");
        let total = status["wavesTotal"].clone();
        let message = format!("wave {number} of {total}: {names}");
        status.insert("phase".to_owned(), json!("Draining"));
        status.insert("message".to_owned(), json!(message));
        put_condition(&mut status, (STALE, false), ("AsPlanned", ""), now);
        if replanned > 0 {
            let text = format!(
                "before wave {number} the rest was planned anew: {replanned} moves, blockers or \
                 nodes differ"
            );
            put_condition(
                &mut status,
                (REPLANNED, true),
                ("InventoryChanged", &text),
                now,
            );
            tx.event(event(plan, (EventKind::Normal, REPLANNED, &text)))
                .await?;
        }
        let note = format!("Wave {number} begins: {names}");
        tx.event(event(plan, (EventKind::Normal, "WaveBegins", &note)))
            .await?;
        write_status(&mut tx, plan, status).await?;
        failpoint!("ledger.drain_plan.before");
        tx.commit().await?;
        failpoint!("ledger.drain_plan.after");
        self.drains.notify_one();
        info!(plan = %plan.key.name, wave = number, nodes = %names, replanned, "a wave begins");
        Ok(())
    }

    /// Writes the status with its phase and message, if that is news.
    async fn tell(
        &self,
        plan: &Object,
        mut status: Map<String, Value>,
        (phase, message): (&str, &str),
    ) -> Result<(), LedgerError> {
        let done = phase == "Succeeded" && told(plan, "phase") != phase;
        status.insert("phase".to_owned(), json!(phase));
        status.insert(
            "observedGeneration".to_owned(),
            plan.metadata["generation"].clone(),
        );
        set(&mut status, "message", json!(message));
        if status == status_of(plan) {
            return Ok(());
        }
        let mut tx = self.ledger.begin().await?;
        write_status(&mut tx, plan, status).await?;
        if done {
            let note = "Every node of the plan was emptied";
            tx.event(event(plan, (EventKind::Normal, "Succeeded", note)))
                .await?;
        }
        tx.commit().await?;
        Ok(())
    }
}

/// How the nodes of a plan stand. One that is not meant any more is forgotten unless it is closed.
fn stand(lines: Vec<Line>, names: &[String], maintenances: &[Object]) -> Vec<Line> {
    let mut all: Vec<Line> = lines
        .into_iter()
        .filter(|line| line.state.is_out() || names.contains(&line.name))
        .collect();
    for name in names {
        if !all.iter().any(|line| line.name == *name) {
            all.push(Line {
                name: name.clone(),
                wave: None,
                state: NodeState::Waiting,
                maintenance: None,
            });
        }
    }
    for line in &mut all {
        let maintenance = of(&line.name, maintenances);
        line.state = line
            .state
            .seen(maintenance.map_or(Maintained::No, maintained));
        if let Some(maintenance) = maintenance.filter(|_| line.state.is_out()) {
            line.maintenance = Some(maintenance.key.name.clone());
        }
    }
    all
}

fn of<'a>(node: &str, maintenances: &'a [Object]) -> Option<&'a Object> {
    let mut all = maintenances.iter().filter(|one| !one.deleting());
    all.find(|one| one.spec()["nodeName"] == *node)
}

fn maintained(maintenance: &Object) -> Maintained {
    match told(maintenance, "phase").as_str() {
        Some("Succeeded") => Maintained::Emptied,
        Some("Failed") => Maintained::Failed,
        Some(_) | None => Maintained::Draining,
    }
}

/// Which nodes are being emptied, and what stands in their way.
fn draining(lines: &[Line], maintenances: &[Object]) -> String {
    let open = lines
        .iter()
        .filter(|line| matches!(line.state, NodeState::Draining | NodeState::Failed));
    let words = open.map(|line| {
        let error = of(&line.name, maintenances).map(|one| told(one, "lastError"));
        match error.and_then(Value::as_str) {
            Some(error) => format!("{} is held up: {error}", line.name),
            None => format!("{} is being emptied", line.name),
        }
    });
    words.collect::<Vec<_>>().join("; ")
}

fn full(lines: &[Line], most: usize) -> String {
    let closed = lines.iter().filter(|line| line.state.is_out());
    let closed: Vec<&str> = closed.map(|line| line.name.as_str()).collect();
    format!(
        "maxUnavailable is {most}, and {} is empty and still closed; delete its NodeMaintenance to \
         open it",
        closed.join(", ")
    )
}

/// Puts a node under maintenance with the targets of its machines, and answers the name of the
/// maintenance; that of the one that is there already, if somebody made one.
async fn maintain(
    tx: &mut Tx,
    plan: &Object,
    (node, made): (&NodeName, &Made),
) -> Result<String, LedgerError> {
    let others = tx.list(MAINTENANCES).await?;
    if let Some(there) = of(node.as_str(), &others) {
        return Ok(there.key.name.clone());
    }
    let taken = |name: &str| others.iter().any(|one| one.key.name == name);
    let name = maintenance_name(&plan.key.name, node.as_str());
    let name = match taken(&name) {
        true => maintenance_name(&plan.key.name, &format!("{node}-{}", plan.uid)),
        false => name,
    };
    tx.create(NewObject {
        key: ObjectKey::new(MAINTENANCES, "", &name),
        uid: None,
        metadata: json!({
            "finalizers": [FINALIZER],
            "ownerReferences": [{
                "apiVersion": "godwit.io/v1alpha1",
                "kind": "DrainPlan",
                "name": plan.key.name,
                "uid": plan.uid,
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        }),
        body: json!({ "spec": {
            "nodeName": node,
            "reason": format!("DrainPlan {}", plan.key.name),
        } }),
        status: Some(json!({ "machines": targets(made, node) })),
    })
    .await?;
    Ok(name)
}

fn maintenance_name(plan: &str, node: &str) -> String {
    let room = NAME_MAX.saturating_sub(node.len() + 1);
    // Both are names of objects: ASCII.
    let plan = plan.get(..room.min(plan.len())).unwrap_or_default();
    format!("{plan}-{node}")
}

/// Where the machines of a node go, in the form of a maintenance's status: a drain keeps to a
/// target that it finds there.
fn targets(made: &Made, node: &NodeName) -> Vec<Value> {
    let ways = made.plan.departures().map(|(_, one)| &one.way);
    ways.filter(|way| way.source == *node)
        .filter_map(|way| {
            let key = &made.movers.get(&way.machine)?.key;
            Some(json!({
                "namespace": key.namespace,
                "name": key.name,
                "uid": way.machine,
                "targetNode": way.target,
            }))
        })
        .collect()
}

/// Notes that a node of the status is under maintenance.
fn closed(status: &mut Map<String, Value>, node: &NodeName, maintenance: &str) {
    let lines = status.get_mut("nodes").and_then(Value::as_array_mut);
    for line in lines.into_iter().flatten() {
        if line["name"] == node.as_str() {
            line["state"] = json!(NodeState::Draining);
            line["maintenance"] = json!(maintenance);
        }
    }
}
