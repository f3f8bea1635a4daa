//! What users are told of an instance: changes of its status, and events.

use godwit_ledger::{EventKind, EventRecord, InstanceRow, LedgerError, Object, Tx};
use godwit_model::placement::Placement;
use serde_json::{Value, json};

use crate::json::{Condition, now, reference, set_condition};
use crate::{status, vm};

/// Who tells of instances that wait for a node: Kubernetes' name.
const SCHEDULER: &str = "default-scheduler";

/// Changes the status of `object` and writes it.
///
/// # Errors
/// The ledger's.
pub(crate) async fn change(
    tx: &mut Tx,
    mut object: Object,
    change: impl FnOnce(&mut Value),
) -> Result<Object, LedgerError> {
    change(object.status.get_or_insert_with(|| json!({})));
    tx.put(&object).await
}

/// Says why an instance can't be built at all.
///
/// # Errors
/// The ledger's.
pub(crate) async fn refuse(tx: &mut Tx, object: Object, problem: &str) -> Result<(), LedgerError> {
    if is_refused(&object, problem) {
        return Ok(());
    }
    let object = change(tx, object, |told| set_refused(told, problem)).await?;
    scheduler_event(tx, &object, (EventKind::Warning, "FailedCreate", problem)).await
}

/// Whether it was said already that the instance can't be built, and why.
pub(crate) fn is_refused(object: &Object, problem: &str) -> bool {
    let mut told = object.status.clone().unwrap_or_default();
    set_refused(&mut told, problem);
    object.status.as_ref() == Some(&told)
}

fn set_refused(told: &mut Value, problem: &str) {
    let condition = Condition::new("Synchronized", false).because("FailedCreate", problem);
    set_condition(told, &condition);
}

/// Whether it was said already that no node takes the instance, and why.
pub(crate) fn knows(object: &Object, placement: &Placement) -> bool {
    let mut told = object.status.clone().unwrap_or_default();
    status::set_unschedulable(&mut told, placement);
    object.status.as_ref() == Some(&told)
}

/// Says why no node was found.
///
/// # Errors
/// The ledger's.
pub(crate) async fn unschedulable(
    tx: &mut Tx,
    object: Object,
    placement: &Placement,
) -> Result<(), LedgerError> {
    if knows(&object, placement) {
        return Ok(());
    }
    let object = change(tx, object, |told| {
        status::set_unschedulable(told, placement);
    })
    .await?;
    let summary = placement.summary();
    let event = (EventKind::Warning, "FailedScheduling", summary.as_str());
    scheduler_event(tx, &object, event).await
}

/// Says where an instance was placed.
///
/// # Errors
/// The ledger's.
pub(crate) async fn placed(tx: &mut Tx, object: &Object) -> Result<(), LedgerError> {
    let told = object.status.as_ref();
    let node = told.and_then(|told| told["nodeName"].as_str());
    let note = format!(
        "Successfully assigned {}/{} to {}",
        object.key.namespace,
        object.key.name,
        node.unwrap_or_default()
    );
    scheduler_event(tx, object, (EventKind::Normal, "Scheduled", &note)).await
}

async fn scheduler_event(
    tx: &mut Tx,
    object: &Object,
    (kind, reason, note): (EventKind, &str, &str),
) -> Result<(), LedgerError> {
    tx.event(EventRecord {
        regarding: reference(object, "VirtualMachineInstance"),
        reason: reason.to_owned(),
        note: note.to_owned(),
        kind,
        component: SCHEDULER.to_owned(),
        host: String::new(),
    })
    .await
}

/// Says why a host did not do what it was asked to.
///
/// # Errors
/// The ledger's.
pub(crate) async fn sync_failed(
    tx: &mut Tx,
    (object, row): (Object, &InstanceRow),
    why: &str,
) -> Result<(), LedgerError> {
    let condition = Condition::new("Synchronized", false).because("FailedCreate", why);
    let object = change(tx, object, |told| set_condition(told, &condition)).await?;
    handler_event(tx, (&object, row), (EventKind::Warning, "SyncFailed", why)).await
}

/// Lets the object of an instance go whose machine is nowhere.
///
/// # Errors
/// The ledger's.
pub(crate) async fn release(tx: &mut Tx, mut object: Object) -> Result<(), LedgerError> {
    if let Value::Array(finalizers) = &mut object.metadata["finalizers"] {
        finalizers.retain(|finalizer| finalizer != vm::FINALIZER);
    }
    if !object.deleting() {
        object.metadata["deletionTimestamp"] = json!(now());
    }
    tx.put(&object).await.map(drop)
}

/// Records an event in the name of the instance's host.
///
/// # Errors
/// The ledger's.
pub(crate) async fn handler_event(
    tx: &mut Tx,
    (object, row): (&Object, &InstanceRow),
    (kind, reason, note): (EventKind, &str, &str),
) -> Result<(), LedgerError> {
    tx.event(EventRecord {
        regarding: reference(object, "VirtualMachineInstance"),
        reason: reason.to_owned(),
        note: note.to_owned(),
        kind,
        component: "virt-handler".to_owned(),
        host: row
            .node
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    })
    .await
}
