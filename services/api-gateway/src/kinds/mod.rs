//! The kinds that the API serves: names, versions, schemas, columns and rules of each.
//!
//! One file a kind. Rules are pure functions of the object and of [`Facts`](crate::facts::Facts);
//! the hooks around them only gather the facts.

mod config_map;
mod drain_plan;
mod empty;
mod event;
mod instance;
mod kubevirt;
mod ladder;
mod lease;
mod machine;
mod migration;
mod migration_history;
mod migration_policy;
mod namespace;
mod node;
mod node_fence;
mod node_maintenance;
mod pod;
mod project;
mod rbac;
mod rolling_maintenance;
mod schema;
mod secret;

use godwit_apimachinery::{Cause, Kind, Status, View};
use serde_json::Value;

use crate::facts::Facts;

pub(crate) use migration::{
    FINALIZER as MIGRATION_FINALIZER, in_flight, machine_name as migration_machine, no_instance,
    rules as migration_rules,
};
pub(crate) use migration_history::show as show_history;
pub(crate) use namespace::{
    Lifecycle, PREDEFINED as PREDEFINED_NAMESPACES, check_delete as check_namespace_delete,
    complete as complete_namespace,
};
pub(crate) use node_maintenance::duplicate as duplicate_maintenance;
pub(crate) use pod::{instance_name as launched, launcher};

/// Resource keys, as the ledger knows them.
pub(crate) mod resource {
    pub(crate) const NODES: &str = "nodes";
    pub(crate) const NAMESPACES: &str = "namespaces";
    pub(crate) const PODS: &str = "pods";
    pub(crate) const CONFIG_MAPS: &str = "configmaps";
    pub(crate) const MACHINES: &str = "virtualmachines.kubevirt.io";
    pub(crate) const INSTANCES: &str = "virtualmachineinstances.kubevirt.io";
    pub(crate) const MIGRATIONS: &str = "virtualmachineinstancemigrations.kubevirt.io";
    pub(crate) const MIGRATION_HISTORIES: &str = "migrationhistories.godwit.io";
    pub(crate) const KUBEVIRTS: &str = "kubevirts.kubevirt.io";
    pub(crate) const NODE_MAINTENANCES: &str = "nodemaintenances";
    pub(crate) const EVENTS: &str = "events";
}

/// The group of nearly all our kinds.
pub(crate) const KUBEVIRT: &str = "kubevirt.io";

/// Every kind, in the order in which groups and resources are shown.
pub(crate) fn all(facts: &Facts) -> Vec<Kind> {
    let mut all = vec![
        namespace::kind(),
        node::kind(),
        event::core(),
        config_map::kind(),
        secret::kind(),
        pod::kind(),
        empty::disruption_budget(),
        empty::service(),
        machine::kind(facts),
        instance::kind(facts),
        migration::kind(facts),
        kubevirt::kind(),
        migration_policy::kind(),
        node_maintenance::kubevirt(facts),
        node_maintenance::medik8s(facts),
        event::events_group(),
        lease::kind(),
        project::kind(),
        migration_history::kind(),
        node_fence::kind(facts),
        drain_plan::kind(facts),
        rolling_maintenance::kind(),
    ];
    all.extend(rbac::kinds(facts));
    all
}

/// `kubevirt.io` in the version of today and in the one that the clients of 2020 know.
fn kubevirt_views() -> Vec<View> {
    // KubeVirt's own text; clients of v1alpha3 print it.
    let warning = "kubevirt.io/v1alpha3 is now deprecated and will be removed in a future release.";
    vec![
        View::new(KUBEVIRT, "v1"),
        View::new(KUBEVIRT, "v1alpha3").deprecated(warning),
    ]
}

/// A refusal in the words of KubeVirt's admission webhooks.
fn denied(webhook: &str, message: &str) -> Status {
    Status::bad_request(webhook_text(webhook, message))
}

/// A refusal by a webhook that names fields: 422, as KubeVirt's do.
///
/// KubeVirt's own texts stand alone; where a cause says what isn't supported, its field is named.
fn denied_fields(webhook: &str, causes: Vec<Cause>) -> Status {
    let messages: Vec<String> = causes
        .iter()
        .map(|cause| match (cause.reason, cause.field.as_str()) {
            ("FieldValueNotSupported", field) if !field.is_empty() => {
                format!("{field}: {}", cause.message)
            }
            _ => cause.message.clone(),
        })
        .collect();
    let text = webhook_text(webhook, &messages.join(", "));
    Status::new(http::StatusCode::UNPROCESSABLE_ENTITY, "Invalid", text).with_causes(causes)
}

pub(crate) fn webhook_text(webhook: &str, message: &str) -> String {
    format!("admission webhook \"{webhook}\" denied the request: {message}")
}

/// A cause whose text stands alone, without the usual prefix.
fn plain_cause(field: &str, message: impl Into<String>) -> Cause {
    Cause {
        reason: "FieldValueInvalid",
        message: message.into(),
        field: field.to_owned(),
    }
}

/// 403 in Kubernetes' words for an object that may not be changed so.
fn forbidden(resource: &str, name: &str, why: &str) -> Status {
    Status::forbidden(format!("{resource} \"{name}\" is forbidden: {why}"))
        .about("", resource, name)
}

/// A condition of `object` by its type.
pub(crate) fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let list = object["status"]["conditions"].as_array()?;
    list.iter().find(|condition| condition["type"] == kind)
}

/// Keeps what holds an object until the control plane is done with it: a manifest that doesn't name
/// the finalizer may replace the object, as where a controller puts it back at once; taking it from
/// an object that is being deleted is refused. `what` is the kind and its finalizer.
fn keep_finalizer(old: &Value, new: &mut Value, what: (&str, &str)) -> Result<(), Status> {
    use godwit_apimachinery::object::{finalizers, is_deleting, name};
    let (kind, finalizer) = what;
    if !finalizers(old).contains(&finalizer) || finalizers(new).contains(&finalizer) {
        return Ok(());
    }
    if is_deleting(old) {
        let why = format!("finalizer {finalizer} is removed by the control plane alone");
        let cause = Cause::forbidden("metadata.finalizers", &why);
        return Err(Status::invalid(KUBEVIRT, kind, name(old), vec![cause]));
    }
    add_finalizer(new, finalizer);
    Ok(())
}

/// Adds a finalizer unless it is there.
fn add_finalizer(object: &mut Value, finalizer: &str) {
    use godwit_apimachinery::object::{finalizers, metadata_mut};
    if finalizers(object).contains(&finalizer) {
        return;
    }
    let list = metadata_mut(object)
        .entry("finalizers")
        .or_insert_with(|| Value::Array(Vec::new()));
    if let Some(list) = list.as_array_mut() {
        list.push(Value::from(finalizer));
    }
}

/// Sets a label, and the map of labels if there is none.
fn set_label(object: &mut Value, key: &str, value: &str) {
    use godwit_apimachinery::object::{child_mut, metadata_mut};
    child_mut(metadata_mut(object), "labels").insert(key.to_owned(), Value::from(value));
}

/// Takes `status` from the stored object: its writer is the control plane, not the client.
fn restore_status(old: &Value, new: &mut Value) {
    match old.get("status") {
        Some(status) => new["status"] = status.clone(),
        None => {
            if let Some(map) = new.as_object_mut() {
                map.remove("status");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch_cache::WatchCache;

    #[test]
    fn every_kind_is_declared_completely() {
        let kinds = all(&Facts::new(WatchCache::new()));
        for kind in &kinds {
            assert_eq!(kind.schema["type"], "object", "{}", kind.kind);
            assert!(!kind.views.is_empty(), "{}", kind.kind);
        }
        let groups: Vec<&str> = kinds
            .iter()
            .flat_map(|kind| &kind.views)
            .map(|view| view.group)
            .collect();
        // `kubectl get nodemaintenance` takes the first group that knows the word, and the lab
        // expects `nodemaintenance.kubevirt.io`.
        let place = |group| groups.iter().position(|other| *other == group);
        assert!(place(KUBEVIRT) < place("nodemaintenance.kubevirt.io"));
        assert!(place("nodemaintenance.kubevirt.io") < place("nodemaintenance.medik8s.io"));
    }

    #[test]
    fn a_refusal_reads_as_kubevirts_webhooks_do() {
        let status = denied("w.kubevirt.io", "no");
        assert_eq!(status.code(), 400);
        assert_eq!(
            status.message(),
            "admission webhook \"w.kubevirt.io\" denied the request: no"
        );
    }
}
