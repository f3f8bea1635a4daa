//! Carries out a step: everything but calls, in one transaction, if the record is as it was.

use godwit_ledger::{
    EventKind, EventRecord, Ledger, LedgerError, MigrationRequest, NewObject, Object, ObjectKey,
    TraceContext, Tx,
};
use godwit_model::rolling::{Action, NodeRecord, NodeState, Phase, Record, Step};
use godwit_model::{MachineId, NodeName};
use godwit_runtime::telemetry::{StepSpans, begin_trace};
use serde_json::{Value, json};
use uuid::Uuid;

use super::look::Situation;
use super::{Budgets, FINALIZER, LEAVING, status};
use crate::json::{reference, seconds, status_of};
use crate::look::{INSTANCE_LABEL, MAINTENANCES, MIGRATIONS};
use crate::trace::{self, Alone};

const API_VERSION: &str = "godwit.io/v1alpha1";
const KIND: &str = "RollingMaintenance";
/// Where a migration is to go, if nothing speaks against it.
const TARGET: &str = "godwit.io/target-node";
/// Finalizer that keeps a migration until it is over.
const MIGRATION_FINALIZER: &str = "kubevirt.io/migrationJobFinalize";
/// Nodes that are marked, and events that are written, in one transaction: others wait for it.
const MARKS_MAX: usize = 64;
const EVENTS_MAX: usize = 64;

/// Writes a step; answers whether that was done: there was something to write, and nobody was first.
///
/// # Errors
/// The ledger's.
pub(super) async fn write(
    (ledger, spans): (&Ledger, &StepSpans),
    situation: &Situation,
    step: &Step,
) -> Result<bool, LedgerError> {
    let object = &situation.object;
    let new = told(situation, &step.record);
    let marks = marks(situation, &step.record);
    if new.is_none() && marks.is_empty() && step.actions.is_empty() {
        return Ok(false);
    }
    let mut tx = ledger.begin().await?;
    let found = tx.get(&object.key).await?;
    if found.is_none_or(|found| found.revision != object.revision) {
        return Ok(false);
    }
    let mut asked = vec![];
    for action in &step.actions {
        let done = match action {
            Action::Close(node) => close(&mut tx, situation, node).await?,
            Action::Reopen(node) => reopen(&mut tx, situation, node).await?,
            Action::FailBack { machine, node } => {
                fail_back(&mut tx, situation, (machine, node), &mut asked).await?
            }
            Action::Call(_) => true,
        };
        if !done {
            // Something is not as it was: the next look sees it.
            return Ok(false);
        }
    }
    for node in &marks {
        mark(&mut tx, node, &object.key.name).await?;
    }
    for event in events(situation, &step.record) {
        tx.event(event).await?;
    }
    if let Some(new) = new {
        tx.put(&new).await?;
    }
    tx.commit().await?;
    for migration in &asked {
        trace::first(spans, migration);
    }
    Ok(true)
}

/// The object with the new status, without its finalizer when nothing holds it any more; `None` when
/// it is as it was.
fn told(situation: &Situation, record: &Record) -> Option<Object> {
    let object = &situation.object;
    let mut new = object.clone();
    if *record != situation.record || object.status.is_none() {
        let mut status = status_of(object);
        status.remove("waves");
        status.remove("nodes");
        status.extend(status::status(record));
        new.status = Some(Value::Object(status));
    }
    let lets_go = object.deleting()
        && record.phase.is_over()
        && situation.record.phase.is_over()
        && marks(situation, record).is_empty();
    if lets_go && let Some(Value::Array(list)) = new.metadata.get_mut("finalizers") {
        list.retain(|name| name != FINALIZER);
    }
    (new != *object).then_some(new)
}

/// A node that is to be marked as leaving, or whose mark is to be taken away.
struct Mark {
    node: ObjectKey,
    leaving: bool,
}

fn marks(situation: &Situation, record: &Record) -> Vec<Mark> {
    let ours = &situation.object.key.name;
    let leaving = |node: &&NodeRecord| node.state.is_leaving() && !record.phase.is_over();
    let leaving: std::collections::BTreeSet<&NodeName> = record
        .nodes
        .iter()
        .filter(leaving)
        .map(|node| &node.name)
        .collect();
    let differs = |(name, node): (&NodeName, &Object)| {
        let (wanted, marked) = (leaving.contains(name), node.annotation(LEAVING));
        let differs = match marked {
            Some(by) => by == ours && !wanted,
            None => wanted,
        };
        differs.then(|| Mark {
            node: node.key.clone(),
            leaving: wanted,
        })
    };
    let all = situation.nodes.iter().filter_map(differs);
    all.take(MARKS_MAX).collect()
}

async fn mark(tx: &mut Tx, mark: &Mark, by: &str) -> Result<(), LedgerError> {
    let Some(mut node) = tx.get(&mark.node).await? else {
        return Ok(());
    };
    if mark.leaving {
        if !node.metadata["annotations"].is_object() {
            node.metadata["annotations"] = json!({});
        }
        node.metadata["annotations"][LEAVING] = json!(by);
    } else if let Some(Value::Object(annotations)) = node.metadata.get_mut("annotations") {
        annotations.remove(LEAVING);
    }
    tx.put(&node).await.map(drop)
}

/// Makes the node's maintenance, unless there is one. Answers whether it did.
async fn close(tx: &mut Tx, situation: &Situation, node: &NodeName) -> Result<bool, LedgerError> {
    let others = tx.list(MAINTENANCES).await?;
    if others
        .iter()
        .any(|other| other.spec()["nodeName"] == node.as_str())
    {
        return Ok(false);
    }
    let object = &situation.object;
    let mut name = format!("{}-{node}", object.key.name);
    if others.iter().any(|other| other.key.name == name) {
        name = format!("{name}-{}", suffix());
    }
    let mut spec = json!({
        "nodeName": node,
        "reason": format!("rolling maintenance {}", object.key.name),
    });
    if !object.spec()["ladder"].is_null() {
        spec["ladder"] = object.spec()["ladder"].clone();
    }
    tx.create(NewObject {
        key: ObjectKey::new(MAINTENANCES, "", &name),
        uid: None,
        metadata: json!({ "ownerReferences": [{
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": object.key.name,
            "uid": object.uid,
            "controller": true,
        }] }),
        body: json!({ "spec": spec }),
        status: None,
    })
    .await?;
    Ok(true)
}

/// Asks that the node's maintenance be taken away, which opens the node. Answers whether it did.
async fn reopen(tx: &mut Tx, situation: &Situation, node: &NodeName) -> Result<bool, LedgerError> {
    let Some(ours) = situation.maintenances.get(node) else {
        return Ok(false);
    };
    let Some(mut maintenance) = tx.get(&ours.key).await?.filter(|one| one.uid == ours.uid) else {
        return Ok(false);
    };
    if !maintenance.deleting() {
        maintenance.metadata["deletionTimestamp"] = json!(seconds(tx.now()));
        maintenance.metadata["deletionGracePeriodSeconds"] = json!(0);
        tx.put(&maintenance).await?;
    }
    Ok(true)
}

/// Asks for a machine's migration to its home. One that moves already is left alone. Answers false
/// when budgets don't let it go now.
async fn fail_back<'a>(
    tx: &mut Tx,
    situation: &Situation,
    (machine, node): (&'a MachineId, &'a NodeName),
    asked: &mut Vec<Alone<'a>>,
) -> Result<bool, LedgerError> {
    let Some(instance) = situation.instances.get(machine) else {
        return Ok(true);
    };
    if !Budgets::read(tx).await?.admit(instance) {
        return Ok(false);
    }
    let (space, vmi) = (&instance.key.namespace, &instance.key.name);
    let trace = begin_trace();
    let made = tx
        .migration_request(MigrationRequest {
            object: NewObject {
                key: ObjectKey::new(MIGRATIONS, space, format!("fail-back-{}", suffix())),
                uid: None,
                metadata: json!({
                    "labels": { INSTANCE_LABEL: vmi },
                    "annotations": { TARGET: node },
                    "finalizers": [MIGRATION_FINALIZER],
                }),
                body: json!({ "spec": { "vmiName": vmi } }),
                status: None,
            },
            machine: machine.clone(),
            vmi: instance.key.clone(),
            // After evacuations, and as a person's own.
            priority: 0,
            trace: TraceContext(trace.clone()),
        })
        .await;
    match made {
        Ok(_) => {
            asked.push(Alone {
                step: trace::FAIL_BACK,
                trace,
                machine,
                node,
                at: tx.now(),
            });
            Ok(true)
        }
        Err(LedgerError::MigrationInProgress { .. } | LedgerError::AlreadyExists) => Ok(true),
        Err(error) => Err(error),
    }
}

fn suffix() -> String {
    let mut random = Uuid::new_v4().simple().to_string();
    random.truncate(8);
    random
}

/// What changed, for people.
fn events(situation: &Situation, new: &Record) -> Vec<EventRecord> {
    let old = &situation.record;
    let object = &situation.object;
    let event = |kind, reason: String, note: &str| EventRecord {
        regarding: reference(object, API_VERSION, KIND),
        reason,
        note: note.to_owned(),
        kind,
        component: KIND.to_owned(),
        host: String::new(),
    };
    let mut events = vec![];
    if old.phase != new.phase {
        let kind = match new.phase {
            Phase::Failed => EventKind::Warning,
            Phase::Planning
            | Phase::Running
            | Phase::Waiting
            | Phase::Paused
            | Phase::Aborting
            | Phase::Aborted
            | Phase::Succeeded => EventKind::Normal,
        };
        events.push(event(kind, format!("{:?}", new.phase), &new.message));
    }
    let before = |node: &NodeRecord| {
        let mut known = old.nodes.iter();
        let known = known.find(|known| known.name == node.name);
        known.map_or(NodeState::Waiting, |known| known.state)
    };
    let changed = new.nodes.iter().filter(|node| node.state != before(node));
    for node in changed.take(EVENTS_MAX) {
        let kind = match node.state == NodeState::Failed {
            true => EventKind::Warning,
            false => EventKind::Normal,
        };
        let note = match node.message.as_str() {
            "" => format!("node {}", node.name),
            message => format!("node {}: {message}", node.name),
        };
        events.push(event(kind, format!("Node{:?}", node.state), &note));
    }
    events
}
