//! VirtualMachines: keeps one instance for each that shall run, and tells what becomes of it.

use godwit_ledger::{EventKind, EventRecord, LedgerError, NewObject, Object, ObjectKey, Tx};
use serde_json::{Value, json};

use crate::json::{Condition, now, reference, set_condition};
use crate::machines::INSTANCES;

/// Finalizer that keeps an instance until its machine is gone.
pub(crate) const FINALIZER: &str = "kubevirt.io/foregroundDeleteVirtualMachine";

/// What a VirtualMachine wants of its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// There shall be one.
    Run,
    /// There shall be none.
    Halt,
    /// Leave it as it is.
    Keep,
}

fn wish(vm: &Object, instance: Option<&Object>) -> Wish {
    if vm.deleting() {
        return Wish::Halt;
    }
    let spec = vm.spec();
    let strategy = match (spec["runStrategy"].as_str(), spec["running"].as_bool()) {
        (Some(strategy), _) => strategy,
        (None, Some(true)) => "Always",
        (None, Some(false) | None) => "Halted",
    };
    let phase = instance.and_then(phase);
    match strategy {
        "Always" => Wish::Run,
        "RerunOnFailure" if phase == Some("Succeeded") => Wish::Keep,
        "RerunOnFailure" => Wish::Run,
        "Once" if instance.is_some() || vm.status.as_ref().is_some_and(ran_before) => Wish::Keep,
        "Once" => Wish::Run,
        "Manual" => Wish::Keep,
        _ => Wish::Halt,
    }
}

/// Whether a machine of strategy Once had its run.
fn ran_before(status: &Value) -> bool {
    status["created"] == true || status["printableStatus"] == "Stopped"
}

fn phase(instance: &Object) -> Option<&str> {
    instance.status.as_ref()?.get("phase")?.as_str()
}

/// Brings the instance of `vm` in line with its wish, then tells of it in the status.
///
/// # Errors
/// The ledger's.
pub(crate) async fn reconcile(tx: &mut Tx, key: &ObjectKey) -> Result<(), LedgerError> {
    let Some(vm) = tx.get(key).await? else {
        return Ok(());
    };
    let instance_key = ObjectKey::new(INSTANCES, &key.namespace, &key.name);
    let mut instance = tx
        .get(&instance_key)
        .await?
        .filter(|instance| owned(instance, &vm));
    let ended = instance
        .as_ref()
        .is_some_and(|i| matches!(phase(i), Some("Succeeded" | "Failed")));
    match (wish(&vm, instance.as_ref()), &instance) {
        (Wish::Run, None) if tx.get(&instance_key).await?.is_none() => {
            instance = Some(create(tx, &vm, instance_key).await?);
        }
        // An ended instance makes room for the next run.
        (Wish::Run, Some(old)) if ended => delete(tx, old).await?,
        (Wish::Halt, Some(old)) => delete(tx, old).await?,
        (Wish::Run | Wish::Halt | Wish::Keep, _) => {}
    }
    tell(tx, vm, instance.as_ref()).await
}

/// Whether `instance` belongs to `vm`.
fn owned(instance: &Object, vm: &Object) -> bool {
    let owners = instance.metadata["ownerReferences"].as_array();
    owners
        .into_iter()
        .flatten()
        .any(|owner| owner["uid"] == vm.uid)
}

async fn create(tx: &mut Tx, vm: &Object, key: ObjectKey) -> Result<Object, LedgerError> {
    let template = &vm.spec()["template"];
    let mut labels = template["metadata"]["labels"].clone();
    if !labels.is_object() {
        labels = json!({});
    }
    labels["kubevirt.io/vm"] = json!(key.name);
    let mut annotations = template["metadata"]["annotations"].clone();
    if !annotations.is_object() {
        annotations = json!({});
    }
    annotations["kubevirt.io/vm-generation"] = json!(vm.metadata["generation"].to_string());
    let metadata = json!({
        "labels": labels,
        "annotations": annotations,
        "finalizers": [FINALIZER],
        "ownerReferences": [{
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachine",
            "name": vm.key.name,
            "uid": vm.uid,
            "controller": true,
            "blockOwnerDeletion": true,
        }],
    });
    let name = key.name.clone();
    let instance = tx
        .create(NewObject {
            key,
            uid: None,
            metadata,
            body: json!({ "spec": template["spec"] }),
            status: Some(json!({ "phase": "Pending", "guestOSInfo": {}, "runtimeUser": 107 })),
        })
        .await?;
    event(
        tx,
        vm,
        "SuccessfulCreate",
        format!("Started the virtual machine by creating the new virtual machine instance {name}"),
    )
    .await?;
    Ok(instance)
}

async fn delete(tx: &mut Tx, instance: &Object) -> Result<(), LedgerError> {
    if instance.deleting() {
        return Ok(());
    }
    let mut instance = instance.clone();
    instance.metadata["deletionTimestamp"] = json!(now());
    instance.metadata["deletionGracePeriodSeconds"] = json!(0);
    tx.put(&instance).await.map(drop)
}

async fn event(tx: &mut Tx, vm: &Object, reason: &str, note: String) -> Result<(), LedgerError> {
    tx.event(EventRecord {
        regarding: reference(vm, "VirtualMachine"),
        reason: reason.to_owned(),
        note,
        kind: EventKind::Normal,
        component: "virtualmachine-controller".to_owned(),
        host: String::new(),
    })
    .await
}

/// Writes the status of the machine from its instance.
async fn tell(tx: &mut Tx, mut vm: Object, instance: Option<&Object>) -> Result<(), LedgerError> {
    let mut status = vm.status.take().unwrap_or_else(|| json!({}));
    let told = instance.and_then(|instance| instance.status.as_ref());
    let ready = told.is_some_and(|told| condition(told, "Ready") == Some("True"));
    status["created"] = json!(instance.is_some());
    status["ready"] = json!(ready);
    status["printableStatus"] = json!(printable(&vm, instance));
    status["observedGeneration"] = vm.metadata["generation"].clone();
    status["desiredGeneration"] = vm.metadata["generation"].clone();
    let mut condition = Condition::new("Ready", ready);
    if instance.is_none() {
        condition = condition.because("VMINotExists", "VMI does not exist");
    } else if !ready {
        condition = condition.because("GuestNotRunning", "Guest VM is not reported as running");
    }
    set_condition(&mut status, &condition);
    vm.status = Some(status);
    tx.put(&vm).await.map(drop)
}

fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = status["conditions"].as_array()?;
    conditions
        .iter()
        .find(|condition| condition["type"] == kind)?["status"]
        .as_str()
}

/// KubeVirt's order: the first that fits.
fn printable(vm: &Object, instance: Option<&Object>) -> &'static str {
    if vm.deleting() {
        return "Terminating";
    }
    let Some(instance) = instance else {
        return "Stopped";
    };
    let status = instance.status.clone().unwrap_or_default();
    let migration = &status["migrationState"];
    let migrating = migration["startTimestamp"].is_string() && migration["completed"] != true;
    if instance.deleting() {
        "Stopping"
    } else if migrating {
        "Migrating"
    } else if condition(&status, "Paused") == Some("True") {
        "Paused"
    } else if condition(&status, "PodScheduled") == Some("False") {
        "ErrorUnschedulable"
    } else {
        match phase(instance) {
            Some("Running") => "Running",
            Some("Succeeded" | "Failed") => "Stopped",
            Some(_) | None => "Starting",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(body: Value, status: Option<Value>) -> Object {
        Object {
            key: ObjectKey::new("virtualmachines.kubevirt.io", "default", "vm"),
            uid: String::new(),
            metadata: json!({}),
            body,
            status,
            revision: godwit_model::Revision(1),
        }
    }

    fn vm(strategy: &str) -> Object {
        object(json!({ "spec": { "runStrategy": strategy } }), None)
    }

    fn instance(phase: &str) -> Object {
        object(json!({ "spec": {} }), Some(json!({ "phase": phase })))
    }

    #[test]
    fn each_run_strategy_wants_what_kubevirt_says() {
        for (strategy, phase, wanted) in [
            ("Always", None, Wish::Run),
            ("Always", Some("Succeeded"), Wish::Run),
            ("RerunOnFailure", Some("Failed"), Wish::Run),
            ("RerunOnFailure", Some("Succeeded"), Wish::Keep),
            ("Manual", None, Wish::Keep),
            ("Halted", Some("Running"), Wish::Halt),
            ("Once", None, Wish::Run),
            ("Once", Some("Succeeded"), Wish::Keep),
        ] {
            let instance = phase.map(instance);
            assert_eq!(
                wish(&vm(strategy), instance.as_ref()),
                wanted,
                "{strategy} {phase:?}"
            );
        }
    }

    #[test]
    fn a_migrating_machine_says_so_before_it_says_paused() {
        let mut instance = instance("Running");
        let status = instance.status.as_mut().expect("a status");
        status["migrationState"] = json!({ "startTimestamp": "2026-01-01T00:00:00Z" });
        status["conditions"] = json!([{ "type": "Paused", "status": "True" }]);
        assert_eq!(printable(&vm("Always"), Some(&instance)), "Migrating");
    }
}
