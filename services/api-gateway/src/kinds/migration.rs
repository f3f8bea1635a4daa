//! VirtualMachineInstanceMigration: the order to move one machine, once.
//!
//! The rules and their texts are those of KubeVirt's admission webhooks, in their order.

use std::sync::Arc;

use async_trait::async_trait;
use godwit_apimachinery::object::{label, namespace, uid};
use godwit_apimachinery::{
    Admission, Cause, Column, ColumnType, Kind, RequestContext, Status, Stored,
};
use godwit_model::NodeName;
use godwit_model::migration::wish::{self, Method};
use serde_json::Value;

use super::{
    add_finalizer, condition, denied, denied_fields, keep_finalizer, kubevirt_views, plain_cause,
    schema, set_label,
};
use crate::facts::Facts;

const KIND: &str = "VirtualMachineInstanceMigration";
/// Holds the object until the migration has ended.
pub(crate) const FINALIZER: &str = "kubevirt.io/migrationJobFinalize";
/// Names the machine, for selectors.
const LABEL: &str = "kubevirt.io/vmi-name";

const CREATE_WEBHOOK: &str = "migration-create-validator.kubevirt.io";
const UPDATE_WEBHOOK: &str = "migration-update-validator.kubevirt.io";

pub(crate) fn kind(facts: &Facts) -> Kind {
    let phase = Column::path(
        "Phase",
        ColumnType::String,
        ".status.phase",
        "The current phase of VM instance migration",
    );
    let instance = Column::path(
        "VMI",
        ColumnType::String,
        ".spec.vmiName",
        "The name of the VMI to perform the migration on",
    );
    let mut schema = schema::parse(include_str!("schema/migration.yaml"));
    let status = &mut schema["properties"]["status"]["properties"];
    status["migrationState"] = schema::parse(include_str!("schema/migration_state.yaml"));
    status["conditions"] = schema::parse(include_str!("schema/conditions.yaml"));
    Kind {
        short_names: vec!["vmim", "vmims"],
        categories: vec!["all"],
        schema,
        columns: vec![phase, instance],
        selectable_fields: vec!["spec.vmiName", "status.phase"],
        admission: rules(facts),
        ..Kind::custom(KIND, "virtualmachineinstancemigrations", kubevirt_views())
    }
}

/// The rules for migrations, whoever makes one.
pub(crate) fn rules(facts: &Facts) -> Arc<dyn Admission> {
    Arc::new(Rules {
        facts: facts.clone(),
    })
}

struct Rules {
    facts: Facts,
}

#[async_trait]
impl Admission for Rules {
    async fn on_create(
        &self,
        _ctx: &RequestContext,
        object: &mut Value,
    ) -> Result<Vec<String>, Status> {
        check_spec(object)?;
        check_wishes(CREATE_WEBHOOK, object)?;
        let vmi = object["spec"]["vmiName"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let space = namespace(object).to_owned();
        let instance = self.facts.instance(&space, &vmi);
        check_instance(&space, &vmi, instance.as_deref().map(Stored::object))?;
        check_alone(&vmi, &self.facts.migrations(&space))?;
        check_decentralized(object)?;
        set_label(object, LABEL, &vmi);
        add_finalizer(object, FINALIZER);
        Ok(Vec::new())
    }

    async fn on_update(
        &self,
        _ctx: &RequestContext,
        old: &Value,
        new: &mut Value,
    ) -> Result<Vec<String>, Status> {
        check_update(old, new)?;
        if old["metadata"]["annotations"] != new["metadata"]["annotations"] {
            check_wishes(UPDATE_WEBHOOK, new)?;
        }
        Ok(Vec::new())
    }
}

fn check_spec(object: &Value) -> Result<(), Status> {
    let spec = &object["spec"];
    if spec["vmiName"].as_str().unwrap_or_default().is_empty() {
        let cause = plain_cause("spec.vmiName", "vmiName is missing");
        return Err(denied_fields(CREATE_WEBHOOK, vec![cause]));
    }
    if spec.get("priority").is_some() {
        let message =
            "Migration priority queue, only virt-controller is allowed to set priority field";
        // The field's name is KubeVirt's, though the field itself is `spec.priority`.
        let cause = Cause {
            reason: "FieldValueForbidden",
            message: message.to_owned(),
            field: "spec.migrationPriority".to_owned(),
        };
        return Err(denied_fields(CREATE_WEBHOOK, vec![cause]));
    }
    Ok(())
}

/// Refuses annotations that ask for what there is not.
fn check_wishes(webhook: &str, object: &Value) -> Result<(), Status> {
    let annotations = &object["metadata"]["annotations"];
    let field = |key: &str| format!("metadata.annotations[{key}]");
    let mut causes = Vec::new();
    let method = &annotations[wish::METHOD];
    if !method.is_null() && method.as_str().and_then(Method::from_name).is_none() {
        let field = field(wish::METHOD);
        causes.push(Cause::not_supported(&field, method, &Method::NAMES));
    }
    let target = &annotations[wish::TARGET_NODE];
    if let Some(Err(error)) = target.as_str().map(NodeName::parse) {
        causes.push(plain_cause(&field(wish::TARGET_NODE), error.to_string()));
    }
    match causes.is_empty() {
        true => Ok(()),
        false => Err(denied_fields(webhook, causes)),
    }
}

fn check_instance(space: &str, vmi: &str, instance: Option<&Value>) -> Result<(), Status> {
    let Some(instance) = instance else {
        return Err(no_instance(space, vmi));
    };
    if matches!(
        instance["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    ) {
        return Err(denied(
            CREATE_WEBHOOK,
            "Cannot migrate VMI in finalized state.",
        ));
    }
    // No condition yet means that nobody has looked: KubeVirt lets it pass, and so do we.
    if let Some(verdict) = condition(instance, "LiveMigratable")
        && verdict["status"] == "False"
    {
        let reason = verdict["reason"].as_str().unwrap_or_default();
        let message = verdict["message"].as_str().unwrap_or_default();
        let text = format!("Cannot migrate VMI, Reason: {reason}, Message: {message}");
        return Err(denied(CREATE_WEBHOOK, &text));
    }
    Ok(())
}

fn check_alone(vmi: &str, others: &[Arc<Stored>]) -> Result<(), Status> {
    let active = others
        .iter()
        .map(|other| other.object())
        .find(|other| label(other, LABEL) == Some(vmi) && !is_final(other));
    match active {
        Some(other) => Err(in_flight(uid(other), vmi)),
        None => Ok(()),
    }
}

fn check_decentralized(object: &Value) -> Result<(), Status> {
    let fields: Vec<&str> = ["sendTo", "receive"]
        .into_iter()
        .filter(|key| object["spec"].get(key).is_some())
        .collect();
    if fields.is_empty() {
        return Ok(());
    }
    let message = "DecentralizedLiveMigration feature gate is not enabled in kubevirt resource";
    let causes = fields
        .iter()
        .map(|key| plain_cause(&format!("spec.{key}"), message))
        .collect();
    Err(denied_fields(CREATE_WEBHOOK, causes))
}

fn check_update(old: &Value, new: &mut Value) -> Result<(), Status> {
    let refused = |message: &str| {
        let cause = Cause {
            reason: "FieldValueNotSupported",
            message: message.to_owned(),
            field: String::new(),
        };
        Err(denied_fields(UPDATE_WEBHOOK, vec![cause]))
    };
    if old["spec"] != new["spec"] {
        return refused("update of Migration object's spec is restricted");
    }
    if is_final(old) {
        return Ok(());
    }
    match (label(old, LABEL), label(new, LABEL)) {
        (Some(_), None) => refused("selector label can't be removed from an in-flight migration"),
        (Some(before), Some(after)) if before != after => {
            refused("selector label can't be modified on an in-flight migration")
        }
        _ => keep_finalizer(old, new, (KIND, FINALIZER)),
    }
}

/// Whether nothing more happens with this migration.
pub(crate) fn is_final(migration: &Value) -> bool {
    matches!(
        migration["status"]["phase"].as_str(),
        Some("Succeeded" | "Failed")
    )
}

/// The refusal of a second migration while `job` runs; the ledger has the last word on it.
pub(crate) fn in_flight(job: &str, vmi: &str) -> Status {
    let message = format!(
        "in-flight migration detected. Active migration job ({job}) is currently already in \
         progress for VMI {vmi}."
    );
    denied(CREATE_WEBHOOK, &message)
}

/// The refusal of a migration of a machine that isn't there.
pub(crate) fn no_instance(space: &str, vmi: &str) -> Status {
    denied(
        CREATE_WEBHOOK,
        &format!("the VMI \"{space}/{vmi}\" does not exist"),
    )
}

/// The machine that a migration is about, by the name in its `spec`.
pub(crate) fn machine_name(migration: &Value) -> &str {
    migration["spec"]["vmiName"].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PREFIX: &str =
        "admission webhook \"migration-create-validator.kubevirt.io\" denied the request: ";

    fn migration(phase: &str) -> Arc<Stored> {
        let object = json!({
            "metadata": {
                "name": "migration-job", "namespace": "default",
                "uid": "43f5b34d-94b4-4cda-9a69-cca8d4b4c587",
                "labels": {LABEL: "rhel8-server-nfs"}, "finalizers": [FINALIZER],
            },
            "spec": {"vmiName": "rhel8-server-nfs"},
            "status": {"phase": phase},
        });
        Stored::new(object, 1)
    }

    #[test]
    fn a_migration_must_name_a_machine_and_no_priority() {
        let status = check_spec(&json!({"spec": {}})).unwrap_err();
        assert_eq!(status.code(), 422);
        assert_eq!(status.message(), format!("{PREFIX}vmiName is missing"));
        assert_eq!(status.causes()[0].field, "spec.vmiName");

        let status = check_spec(&json!({"spec": {"vmiName": "a", "priority": "user-triggered"}}))
            .unwrap_err();
        assert_eq!(status.causes()[0].field, "spec.migrationPriority");
        assert_eq!(status.causes()[0].reason, "FieldValueForbidden");
    }

    #[test]
    fn a_machine_that_is_not_there_or_has_ended_is_not_migrated() {
        let status = check_instance("default", "rhel8", None).unwrap_err();
        assert_eq!(status.code(), 400);
        assert_eq!(
            status.message(),
            format!("{PREFIX}the VMI \"default/rhel8\" does not exist")
        );
        for phase in ["Succeeded", "Failed"] {
            let instance = json!({"status": {"phase": phase}});
            let status = check_instance("default", "rhel8", Some(&instance)).unwrap_err();
            assert_eq!(
                status.message(),
                format!("{PREFIX}Cannot migrate VMI in finalized state.")
            );
        }
    }

    #[test]
    fn a_machine_that_cannot_move_is_refused_with_its_reason() {
        let instance = json!({"status": {"phase": "Running", "conditions": [{
            "type": "LiveMigratable", "status": "False", "reason": "DisksNotLiveMigratable",
            "message": "cannot migrate VMI with non-shared HostDisk",
        }]}});
        let status = check_instance("default", "rhel8", Some(&instance)).unwrap_err();
        assert_eq!(
            status.message(),
            format!(
                "{PREFIX}Cannot migrate VMI, Reason: DisksNotLiveMigratable, Message: cannot \
                 migrate VMI with non-shared HostDisk"
            )
        );
        let unknown = json!({"status": {"phase": "Running"}});
        assert!(check_instance("default", "rhel8", Some(&unknown)).is_ok());
    }

    #[test]
    fn a_second_migration_waits_for_the_end_of_the_first() {
        let status = check_alone("rhel8-server-nfs", &[migration("Running")]).unwrap_err();
        assert_eq!(
            status.message(),
            format!(
                "{PREFIX}in-flight migration detected. Active migration job \
                 (43f5b34d-94b4-4cda-9a69-cca8d4b4c587) is currently already in progress for VMI \
                 rhel8-server-nfs."
            )
        );
        assert!(check_alone("another", &[migration("Running")]).is_ok());
        assert!(check_alone("rhel8-server-nfs", &[migration("Succeeded")]).is_ok());
    }

    #[test]
    fn a_running_migration_keeps_its_spec_label_and_finalizer() {
        let old = migration("Running");
        let refused = |change: fn(&mut Value)| {
            let mut new = old.object().clone();
            change(&mut new);
            check_update(old.object(), &mut new)
                .unwrap_err()
                .message()
                .to_owned()
        };
        assert!(
            refused(|new| new["spec"]["vmiName"] = json!("b"))
                .ends_with("update of Migration object's spec is restricted")
        );
        assert!(
            refused(|new| new["metadata"]["labels"] = json!({}))
                .ends_with("selector label can't be removed from an in-flight migration")
        );
        assert!(
            refused(|new| new["metadata"]["labels"][LABEL] = json!("b"))
                .ends_with("selector label can't be modified on an in-flight migration")
        );
        let mut new = old.object().clone();
        new["metadata"]["labels"]["team"] = json!("a");
        new["metadata"]["finalizers"] = json!([]);
        assert!(check_update(old.object(), &mut new).is_ok());
        assert_eq!(new["metadata"]["finalizers"], json!([FINALIZER]));
        let mut deleted = old.object().clone();
        deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        new["metadata"]["finalizers"] = json!([]);
        let refused = check_update(&deleted, &mut new).unwrap_err();
        assert!(
            refused
                .message()
                .contains("removed by the control plane alone")
        );
    }

    #[test]
    fn the_decentralized_halves_are_refused_by_field() {
        let object = json!({"spec": {"vmiName": "a", "receive": {"migrationID": "x"}}});
        let status = check_decentralized(&object).unwrap_err();
        assert_eq!(status.causes()[0].field, "spec.receive");
    }

    #[test]
    fn a_method_or_target_that_there_is_not_is_refused_by_field() {
        let wish = |annotations: Value| {
            check_wishes(
                CREATE_WEBHOOK,
                &json!({"metadata": {"annotations": annotations}}),
            )
        };
        let good = json!({"godwit.io/method": "Pause", "godwit.io/target-node": "worker2"});
        assert!(wish(good).is_ok());
        assert!(wish(Value::Null).is_ok());
        let bad = json!({"godwit.io/method": "Stop", "godwit.io/target-node": "Not A Node"});
        let status = wish(bad).unwrap_err();
        let fields: Vec<&str> = status
            .causes()
            .iter()
            .map(|cause| cause.field.as_str())
            .collect();
        assert_eq!(
            fields,
            [
                "metadata.annotations[godwit.io/method]",
                "metadata.annotations[godwit.io/target-node]",
            ]
        );
        assert!(
            status
                .message()
                .contains("\"Live\", \"PostCopy\", \"Pause\"")
        );
    }
}
