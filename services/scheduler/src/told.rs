//! What users are told of an instance that does not get on.

use godwit_ledger::{EventKind, EventRecord, InstanceRow, LedgerError, Object, ObjectKey, Tx};
use serde_json::json;

use crate::json::{Condition, reference, set_condition};
use crate::status;

/// Says why an instance can't be built at all.
///
/// # Errors
/// The ledger's.
pub(crate) async fn refuse(
    tx: &mut Tx,
    mut object: Object,
    problem: &str,
) -> Result<(), LedgerError> {
    let mut told = object.status.take().unwrap_or_else(|| json!({}));
    let condition = Condition::new("Synchronized", false).because("FailedCreate", problem);
    set_condition(&mut told, &condition);
    object.status = Some(told);
    tx.put(&object).await.map(drop)
}

/// Says why no node was found.
///
/// # Errors
/// The ledger's.
pub(crate) async fn unschedulable(
    tx: &mut Tx,
    mut object: Object,
    summary: &str,
) -> Result<(), LedgerError> {
    let mut told = object.status.take().unwrap_or_else(|| json!({}));
    let before = told.clone();
    status::set_unschedulable(&mut told, summary);
    if told == before {
        return Ok(());
    }
    object.status = Some(told);
    tx.put(&object).await?;
    tx.event(EventRecord {
        regarding: reference(&object, "VirtualMachineInstance"),
        reason: "FailedScheduling".to_owned(),
        note: summary.to_owned(),
        kind: EventKind::Warning,
        component: "default-scheduler".to_owned(),
        host: String::new(),
    })
    .await
}

/// Says why a host did not start the machine.
///
/// # Errors
/// The ledger's.
pub(crate) async fn sync_failed(
    tx: &mut Tx,
    (key, row): (&ObjectKey, &InstanceRow),
    why: &str,
) -> Result<(), LedgerError> {
    let Some(mut object) = tx.get(key).await? else {
        return Ok(());
    };
    let mut told = object.status.take().unwrap_or_else(|| json!({}));
    let condition = Condition::new("Synchronized", false).because("FailedCreate", why);
    set_condition(&mut told, &condition);
    object.status = Some(told);
    tx.put(&object).await?;
    handler_event(tx, (&object, row), (EventKind::Warning, "SyncFailed", why)).await
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
