//! NodeMaintenance: the wish to close a node and empty it, shown in three API groups.
//!
//! The rules and texts are those of the node-maintenance-operator's webhook.

use std::sync::Arc;

use async_trait::async_trait;
use godwit_apimachinery::object::name;
use godwit_apimachinery::{Admission, Cause, Kind, RequestContext, Status, Stored, View};
use serde_json::Value;

use super::{KUBEVIRT, add_finalizer, keep_finalizer, ladder, resource, schema};
use crate::facts::Facts;

const KIND: &str = "NodeMaintenance";
/// Holds the object until its node is open again.
const FINALIZER: &str = "foregroundDeleteNodeMaintenance";
const WEBHOOK: &str = "vnodemaintenance.kb.io";

/// The groups of KubeVirt, old and middle. The first is the storage form.
pub(crate) fn kubevirt(facts: &Facts) -> Kind {
    declare(
        facts,
        vec![
            View::new(KUBEVIRT, "v1alpha1"),
            View::new("nodemaintenance.kubevirt.io", "v1beta1"),
        ],
    )
}

/// The group of medik8s, the only one with a short name.
pub(crate) fn medik8s(facts: &Facts) -> Kind {
    let views = vec![View::new("nodemaintenance.medik8s.io", "v1beta1")];
    Kind {
        short_names: vec!["nm"],
        ..declare(facts, views)
    }
}

fn declare(facts: &Facts, views: Vec<View>) -> Kind {
    let mut schema = schema::parse(include_str!("schema/node_maintenance.yaml"));
    schema["properties"]["status"]["properties"]["conditions"] =
        schema::parse(include_str!("schema/conditions.yaml"));
    Kind {
        resource: resource::NODE_MAINTENANCES.to_owned(),
        namespaced: false,
        schema,
        selectable_fields: vec!["spec.nodeName", "status.phase"],
        admission: Arc::new(Rules {
            facts: facts.clone(),
        }),
        ..Kind::custom(KIND, "nodemaintenances", views)
    }
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
        let node = node_name(object).to_owned();
        check_create(
            &node,
            self.facts.node(&node).is_some(),
            &self.facts.maintenances(),
        )?;
        check_spec(object)?;
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
        Ok(Vec::new())
    }
}

fn check_create(node: &str, exists: bool, others: &[Arc<Stored>]) -> Result<(), Status> {
    if !exists {
        return Err(denied(&format!(
            "invalid nodeName, no node with name {node} found"
        )));
    }
    if others.iter().any(|other| node_name(other.object()) == node) {
        return Err(duplicate(node));
    }
    Ok(())
}

/// The refusal of a second maintenance of a node; the ledger's order has the last word on it.
pub(crate) fn duplicate(node: &str) -> Status {
    denied(&format!(
        "invalid nodeName, a NodeMaintenance for node {node} already exists"
    ))
}

fn check_update(old: &Value, new: &mut Value) -> Result<(), Status> {
    if node_name(old) != node_name(new) {
        return Err(denied("updating spec.NodeName isn't allowed"));
    }
    if old["spec"] != new["spec"] {
        check_spec(new)?;
    }
    keep_finalizer(old, new, (KIND, FINALIZER))
}

/// Refuses a ladder or a deadline that makes no sense, by field.
fn check_spec(object: &Value) -> Result<(), Status> {
    let spec = &object["spec"];
    let mut causes: Vec<Cause> = ladder::list_cause(&spec["ladder"]).into_iter().collect();
    let deadline = &spec["deadlineSeconds"];
    if deadline.as_i64().is_some_and(|seconds| seconds < 1) {
        let why = "must be greater than or equal to 1";
        causes.push(Cause::invalid("spec.deadlineSeconds", deadline, why));
    }
    if !spec["onDeadline"].is_null() && deadline.is_null() {
        let why = "there is no deadline: set spec.deadlineSeconds, too";
        causes.push(Cause::invalid("spec.onDeadline", &spec["onDeadline"], why));
    }
    match causes.is_empty() {
        true => Ok(()),
        false => Err(Status::invalid(KUBEVIRT, KIND, name(object), causes)),
    }
}

fn node_name(object: &Value) -> &str {
    object["spec"]["nodeName"].as_str().unwrap_or_default()
}

/// The operator's webhook answers 403 for each of its refusals.
fn denied(message: &str) -> Status {
    Status::forbidden(super::webhook_text(WEBHOOK, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PREFIX: &str = "admission webhook \"vnodemaintenance.kb.io\" denied the request: ";

    fn maintenance(node: &str) -> Arc<Stored> {
        let object = json!({
            "metadata": {"name": "worker2-maintenance", "finalizers": [FINALIZER]},
            "spec": {"nodeName": node, "reason": "Worker2 Maintenance"},
        });
        Stored::new(object, 1)
    }

    #[test]
    fn an_unknown_node_is_refused() {
        let status = check_create("worker9", false, &[]).unwrap_err();
        assert_eq!(status.code(), 403);
        assert_eq!(
            status.message(),
            format!("{PREFIX}invalid nodeName, no node with name worker9 found")
        );
    }

    #[test]
    fn a_second_maintenance_of_a_node_is_refused() {
        let status = check_create("worker2", true, &[maintenance("worker2")]).unwrap_err();
        assert_eq!(
            status.message(),
            format!("{PREFIX}invalid nodeName, a NodeMaintenance for node worker2 already exists")
        );
        assert!(check_create("worker1", true, &[maintenance("worker2")]).is_ok());
    }

    #[test]
    fn a_deadline_or_a_ladder_that_makes_no_sense_is_refused_by_field() {
        let fields = |spec: Value| -> Vec<String> {
            let object = json!({"metadata": {"name": "m"}, "spec": spec});
            let refused = check_spec(&object).err();
            let causes = refused.iter().flat_map(|status| status.causes());
            causes.map(|cause| cause.field.clone()).collect()
        };
        let good = json!({"deadlineSeconds": 600, "onDeadline": "Escalate"});
        assert!(fields(good).is_empty() && fields(json!({})).is_empty());
        let bad = json!({"deadlineSeconds": 0, "ladder": [{"method": "Jump"}]});
        assert_eq!(
            fields(bad),
            ["spec.ladder[0].method", "spec.deadlineSeconds"]
        );
        assert_eq!(fields(json!({"onDeadline": "Abort"})), ["spec.onDeadline"]);
    }

    #[test]
    fn the_node_of_a_maintenance_stays() {
        let (old, new) = (maintenance("worker2"), maintenance("worker1"));
        let status = check_update(old.object(), &mut new.object().clone()).unwrap_err();
        assert_eq!(status.code(), 403);
        assert_eq!(
            status.message(),
            format!("{PREFIX}updating spec.NodeName isn't allowed")
        );
    }
}
