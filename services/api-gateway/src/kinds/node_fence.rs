//! NodeFence of godwit.io: a person's word that a node is dead and will never act again.

use std::sync::Arc;

use async_trait::async_trait;
use godwit_apimachinery::object::metadata_mut;
use godwit_apimachinery::{
    Admission, Cause, Column, ColumnType, Kind, RequestContext, Status, View,
};
use serde_json::{Value, json};

use super::{condition, schema};
use crate::facts::Facts;

const GROUP: &str = "godwit.io";
const KIND: &str = "NodeFence";
const RESOURCE: &str = "nodefences";
/// Who declared it: whom the gateway authenticated, never what the body says.
const BY: &str = "godwit.io/fenced-by";

pub(crate) fn kind(facts: &Facts) -> Kind {
    let text = |name, path, description| Column::path(name, ColumnType::String, path, description);
    let by = Column::computed(
        "By",
        |object, _| object["metadata"]["annotations"][BY].clone(),
        "Who declared the node dead.",
    );
    Kind {
        namespaced: false,
        schema: schema::parse(include_str!("schema/node_fence.yaml")),
        selectable_fields: vec!["spec.nodeName", "status.phase"],
        columns: vec![
            text("Node", ".spec.nodeName", "The node that is dead."),
            text(
                "Phase",
                ".status.phase",
                "Whether its machines are taken from it.",
            ),
            by,
            Column::age(),
        ],
        admission: Arc::new(Rules {
            facts: facts.clone(),
        }),
        ..Kind::custom(KIND, RESOURCE, vec![View::new(GROUP, "v1alpha1")])
    }
}

struct Rules {
    facts: Facts,
}

#[async_trait]
impl Admission for Rules {
    async fn on_create(
        &self,
        ctx: &RequestContext,
        object: &mut Value,
    ) -> Result<Vec<String>, Status> {
        let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
        let node = self.facts.node(node);
        check_create(object, node.as_ref().map(|node| node.object()))?;
        sign(object, &ctx.user.name);
        Ok(Vec::new())
    }

    async fn on_update(
        &self,
        _ctx: &RequestContext,
        old: &Value,
        new: &mut Value,
    ) -> Result<Vec<String>, Status> {
        check_update(old, new)?;
        let by = old["metadata"]["annotations"][BY].as_str();
        sign(new, by.unwrap_or_default());
        Ok(Vec::new())
    }
}

fn sign(object: &mut Value, by: &str) {
    let annotations = metadata_mut(object)
        .entry("annotations")
        .or_insert_with(|| json!({}));
    if !annotations.is_object() {
        *annotations = json!({});
    }
    annotations[BY] = json!(by);
}

fn check_create(object: &Value, node: Option<&Value>) -> Result<(), Status> {
    let name = godwit_apimachinery::object::name(object);
    let spec = &object["spec"];
    let node_name = &spec["nodeName"];
    let mut causes = vec![];
    if spec["statement"]
        .as_str()
        .is_none_or(|text| text.trim().is_empty())
    {
        let why = "say what was done to be sure that the node is dead";
        causes.push(Cause::required("spec.statement", why));
    }
    if node.is_none() {
        causes.push(Cause::invalid("spec.nodeName", node_name, "no such node"));
    }
    if !causes.is_empty() {
        return Err(Status::invalid(GROUP, KIND, name, causes));
    }
    let ready = node.and_then(|node| condition(node, "Ready"));
    if ready.is_some_and(|ready| ready["status"] == "True") {
        let node = node_name.as_str().unwrap_or_default();
        let why = format!("node {node} is ready; stop it, or cut its power, before you fence it");
        return Err(Status::conflict(GROUP, RESOURCE, name, &why));
    }
    Ok(())
}

fn check_update(old: &Value, new: &Value) -> Result<(), Status> {
    if old["spec"] == new["spec"] {
        return Ok(());
    }
    let cause = Cause::invalid("spec", &new["spec"], "field is immutable");
    let name = godwit_apimachinery::object::name(old);
    Err(Status::invalid(GROUP, KIND, name, vec![cause]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(statement: &str) -> Value {
        json!({
            "metadata": { "name": "dead", "annotations": { (BY): "mallory" } },
            "spec": { "nodeName": "worker1", "statement": statement },
        })
    }

    fn node(ready: &str) -> Value {
        json!({ "status": { "conditions": [{ "type": "Ready", "status": ready }] } })
    }

    #[test]
    fn a_node_that_is_ready_is_not_fenced() {
        let status = check_create(&fence("off"), Some(&node("True"))).unwrap_err();
        assert_eq!(status.code(), 409);
        let text = "node worker1 is ready; stop it, or cut its power, before you fence it";
        assert!(status.message().contains(text), "{}", status.message());
        assert!(check_create(&fence("off"), Some(&node("Unknown"))).is_ok());
    }

    #[test]
    fn a_fence_needs_a_node_and_a_statement() {
        assert_eq!(check_create(&fence("off"), None).unwrap_err().code(), 422);
        let status = check_create(&fence("  "), Some(&node("Unknown"))).unwrap_err();
        assert_eq!(status.code(), 422);
    }

    #[test]
    fn what_was_declared_stays() {
        assert!(check_update(&fence("off"), &fence("off")).is_ok());
        let status = check_update(&fence("off"), &fence("on")).unwrap_err();
        assert_eq!(status.code(), 422);
    }

    #[test]
    fn the_signature_is_the_callers_whatever_the_body_says() {
        let mut object = fence("off");
        sign(&mut object, "ada");
        assert_eq!(object["metadata"]["annotations"][BY], "ada");
    }
}
