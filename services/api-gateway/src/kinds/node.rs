//! Node: a host, as its agent reported it. Users may close and taint it, and label it.

use std::sync::Arc;

use async_trait::async_trait;
use godwit_apimachinery::object::name;
use godwit_apimachinery::{
    Admission, Cause, Column, ColumnType, DeleteOptions, Kind, RequestContext, Status, Verb, View,
};
use godwit_model::limits::LINK_BUDGET;
use godwit_model::quantity;
use serde_json::{Value, json};

use super::{condition, resource, schema};

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const ROLE_LABEL: &str = "kubernetes.io/role";
const NONE: &str = "<none>";

pub(crate) fn kind() -> Kind {
    Kind {
        short_names: vec!["no"],
        namespaced: false,
        strategic_merge: true,
        // Agents register their nodes; nobody else makes one.
        verbs: Verb::ALL
            .into_iter()
            .filter(|verb| *verb != Verb::Create)
            .collect(),
        schema: schema::parse(include_str!("schema/node.yaml")),
        columns: columns(),
        selectable_fields: vec!["spec.unschedulable"],
        admission: Arc::new(Rules),
        ..Kind::custom("Node", "nodes", vec![View::new("", "v1")])
    }
}

fn columns() -> Vec<Column> {
    let info = |name, path| {
        Column::path(name, ColumnType::String, path, "As the node reported it.").wide()
    };
    vec![
        Column::computed(
            "Status",
            |node, _| json!(status(node)),
            "The status of the node",
        ),
        Column::computed(
            "Roles",
            |node, _| json!(roles(node)),
            "The roles of the node",
        ),
        Column::age(),
        Column::path(
            "Version",
            ColumnType::String,
            ".status.nodeInfo.kubeletVersion",
            "Version of the agent on the node.",
        ),
        Column::computed(
            "Internal-IP",
            |node, _| json!(address(node, "InternalIP")),
            "Address inside the cluster.",
        )
        .wide(),
        Column::computed(
            "External-IP",
            |node, _| json!(address(node, "ExternalIP")),
            "Address outside the cluster.",
        )
        .wide(),
        info("OS-Image", ".status.nodeInfo.osImage"),
        info("Kernel-Version", ".status.nodeInfo.kernelVersion"),
        info(
            "Container-Runtime",
            ".status.nodeInfo.containerRuntimeVersion",
        ),
    ]
}

fn status(node: &Value) -> String {
    let ready = match condition(node, "Ready").and_then(|ready| ready["status"].as_str()) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    match node["spec"]["unschedulable"].as_bool() {
        Some(true) => format!("{ready},SchedulingDisabled"),
        Some(false) | None => ready.to_owned(),
    }
}

fn roles(node: &Value) -> String {
    let labels = node["metadata"]["labels"].as_object();
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
            Some(role) => Some(role).filter(|role| !role.is_empty()),
            None if key == ROLE_LABEL => value.as_str().filter(|role| !role.is_empty()),
            None => None,
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    match roles.is_empty() {
        true => NONE.to_owned(),
        false => roles.join(","),
    }
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    let list = node["status"]["addresses"].as_array();
    list.into_iter()
        .flatten()
        .find(|address| address["type"] == kind)
        .and_then(|address| address["address"].as_str())
        .unwrap_or(NONE)
}

struct Rules;

#[async_trait]
impl Admission for Rules {
    async fn on_update(
        &self,
        ctx: &RequestContext,
        old: &Value,
        new: &mut Value,
    ) -> Result<Vec<String>, Status> {
        check_update(&ctx.subresource, old, new)?;
        Ok(Vec::new())
    }

    async fn on_delete(
        &self,
        _ctx: &RequestContext,
        old: &Value,
        _options: &DeleteOptions,
    ) -> Result<Vec<String>, Status> {
        check_delete(old)?;
        Ok(Vec::new())
    }
}

/// What users may change in `spec`.
const FREE_FIELDS: [&str; 2] = ["unschedulable", "taints"];
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

fn check_update(subresource: &str, old: &Value, new: &mut Value) -> Result<(), Status> {
    if subresource == "status" {
        let why = "the status of a node is what its agent reports";
        return Err(super::forbidden(resource::NODES, name(old), why));
    }
    let mut causes = Vec::new();
    let empty = serde_json::Map::new();
    let (before, after) = (
        old["spec"].as_object().unwrap_or(&empty),
        new["spec"].as_object().unwrap_or(&empty),
    );
    for field in before.keys().chain(after.keys()) {
        let changed = before.get(field) != after.get(field);
        let path = format!("spec.{field}");
        if changed && !FREE_FIELDS.contains(&field.as_str()) {
            let why = "node updates may only change labels, taints, or unschedulable";
            causes.push(Cause::forbidden(&path, why));
        }
    }
    for (at, taint) in after
        .get("taints")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .enumerate()
    {
        if !EFFECTS.contains(&taint["effect"].as_str().unwrap_or_default()) {
            let field = format!("spec.taints[{at}].effect");
            causes.push(Cause::not_supported(&field, &taint["effect"], &EFFECTS));
        }
    }
    causes.extend(budget_cause(&new["metadata"]["annotations"][LINK_BUDGET]));
    match causes.is_empty() {
        true => Ok(()),
        false => Err(Status::invalid("", "Node", name(old), causes)),
    }
}

/// What is wrong with the budget of the node's link; an unlimited link has none.
fn budget_cause(budget: &Value) -> Option<Cause> {
    let text = budget.as_str()?;
    let good = quantity::parse(text).is_ok_and(|bytes| bytes > 0);
    let field = format!("metadata.annotations[{LINK_BUDGET}]");
    let why = "must be a quantity of bytes a second, greater than 0";
    (!good).then(|| Cause::invalid(&field, budget, why))
}

fn check_delete(node: &Value) -> Result<(), Status> {
    if status(node).starts_with("Ready") {
        let why = "its agent is alive and would register it again; stop the agent first";
        return Err(super::forbidden(resource::NODES, name(node), why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str) -> Value {
        json!({
            "metadata": {"name": "worker2", "labels": {
                "node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/edge": "",
            }},
            "spec": {},
            "status": {
                "conditions": [{"type": "Ready", "status": ready}],
                "addresses": [{"type": "InternalIP", "address": "10.77.0.12"}],
                "nodeInfo": {"kubeletVersion": "v0.1.0"},
            },
        })
    }

    #[test]
    fn the_columns_say_what_kubectl_users_know() {
        let mut worker = node("True");
        assert_eq!(status(&worker), "Ready");
        assert_eq!(roles(&worker), "edge,worker");
        assert_eq!(address(&worker, "InternalIP"), "10.77.0.12");
        assert_eq!(address(&worker, "ExternalIP"), "<none>");
        worker["spec"]["unschedulable"] = json!(true);
        assert_eq!(status(&worker), "Ready,SchedulingDisabled");
        assert_eq!(status(&node("Unknown")), "NotReady");
        assert_eq!(status(&json!({"metadata": {}})), "Unknown");
        assert_eq!(roles(&json!({"metadata": {}})), "<none>");
    }

    #[test]
    fn users_may_cordon_and_taint_but_not_rewrite_a_node() {
        let old = node("True");
        let mut new = old.clone();
        new["spec"] =
            json!({"unschedulable": true, "taints": [{"key": "a", "effect": "NoSchedule"}]});
        assert!(check_update("", &old, &mut new).is_ok());
        new["spec"]["podCIDR"] = json!("10.0.0.0/8");
        new["spec"]["taints"][0]["effect"] = json!("Never");
        let status = check_update("", &old, &mut new).unwrap_err();
        let fields: Vec<&str> = status
            .causes()
            .iter()
            .map(|cause| cause.field.as_str())
            .collect();
        assert_eq!(fields, ["spec.podCIDR", "spec.taints[0].effect"]);
        new = old.clone();
        new["metadata"]["annotations"] = json!({LINK_BUDGET: "1G"});
        assert!(check_update("", &old, &mut new).is_ok());
        new["metadata"]["annotations"] = json!({LINK_BUDGET: "fast"});
        let status = check_update("", &old, &mut new).unwrap_err();
        let field = "metadata.annotations[godwit.io/migration-bandwidth]";
        assert_eq!(status.causes()[0].field, field);
        assert_eq!(
            check_update("status", &old, &mut new).unwrap_err().code(),
            403
        );
    }

    #[test]
    fn only_a_node_that_is_gone_is_deleted() {
        assert_eq!(check_delete(&node("True")).unwrap_err().code(), 403);
        assert!(check_delete(&node("Unknown")).is_ok());
    }
}
