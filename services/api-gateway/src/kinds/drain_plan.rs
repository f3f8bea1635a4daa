//! DrainPlan of godwit.io: how nodes are emptied, told before it is done, and done when it says so.

use std::sync::Arc;

use async_trait::async_trait;
use godwit_apimachinery::{
    Admission, Cause, Column, ColumnType, Kind, RequestContext, Status, View,
};
use godwit_model::affinity::LabelSelector;
use godwit_model::instance::label_selector_problems;
use serde::Deserialize;
use serde_json::{Value, json};

use super::schema;
use crate::facts::Facts;

const GROUP: &str = "godwit.io";
const KIND: &str = "DrainPlan";
const RESOURCE: &str = "drainplans";
/// Nodes that one plan may name: its status has a line for each.
const NODES_MAX: usize = 2000;
/// What may change of a plan that is carried out.
const CHANGEABLE: [&str; 2] = ["execute", "refresh"];

pub(crate) fn kind(facts: &Facts) -> Kind {
    let column = |name, kind, path, description| Column::path(name, kind, path, description);
    let count = |name, path, description| column(name, ColumnType::Integer, path, description);
    let text = |name, path, description| column(name, ColumnType::String, path, description);
    let mut schema = schema::parse(include_str!("schema/drain_plan.yaml"));
    schema["properties"]["status"]["properties"]["conditions"] =
        schema::parse(include_str!("schema/conditions.yaml"));
    Kind {
        namespaced: false,
        short_names: vec!["dp"],
        schema,
        selectable_fields: vec!["status.phase"],
        columns: vec![
            count("Nodes", ".status.nodesTotal", "Nodes that it empties."),
            count("Moves", ".status.movesTotal", "Machines that move."),
            count("Blockers", ".status.blockersTotal", "What is in the way."),
            count(
                "Waves",
                ".status.wavesTotal",
                "Nodes are emptied in so many waves.",
            ),
            Column::computed("Time", |object, _| time(object), "How long all moves take."),
            text("Phase", ".status.phase", "How far it is."),
            Column::age(),
        ],
        admission: Arc::new(Rules {
            facts: facts.clone(),
        }),
        ..Kind::custom(KIND, RESOURCE, vec![View::new(GROUP, "v1alpha1")])
    }
}

/// Minutes and seconds, as `kubectl` writes an age.
fn time(object: &Value) -> Value {
    let Some(seconds) = object["status"]["forecast"]["seconds"].as_f64() else {
        return json!("");
    };
    let seconds = seconds.ceil();
    json!(match seconds {
        short if short < 120.0 => format!("{short}s"),
        long => format!("{}m{}s", (long / 60.0).floor(), long % 60.0),
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
        check(object, &|node| self.facts.node(node).is_some())?;
        Ok(Vec::new())
    }

    async fn on_update(
        &self,
        _ctx: &RequestContext,
        old: &Value,
        new: &mut Value,
    ) -> Result<Vec<String>, Status> {
        check_update(old, new)?;
        if old["spec"] != new["spec"] && old["spec"]["execute"] != true {
            check(new, &|node| self.facts.node(node).is_some())?;
        }
        Ok(Vec::new())
    }
}

fn check(object: &Value, is_there: &dyn Fn(&str) -> bool) -> Result<(), Status> {
    let spec = &object["spec"];
    let (nodes, selector) = (&spec["nodes"], &spec["nodeSelector"]);
    let mut causes = vec![];
    match (nodes.is_null(), selector.is_null()) {
        (true, true) => {
            let why = "name nodes, or give a nodeSelector";
            causes.push(Cause::required("spec.nodes", why));
        }
        (false, false) => {
            let why = "may not be given together with nodes";
            causes.push(Cause::forbidden("spec.nodeSelector", why));
        }
        (false, true) => causes.extend(nodes_causes(nodes, is_there)),
        (true, false) => causes.extend(selector_causes(selector)),
    }
    let max = &spec["maxUnavailable"];
    if max.as_i64().is_some_and(|max| max < 0) {
        causes.push(Cause::invalid(
            "spec.maxUnavailable",
            max,
            "must not be negative",
        ));
    }
    for (field, given) in [
        ("maxUnavailable", max.as_i64().is_some_and(|max| max > 0)),
        ("failureDomain", !spec["failureDomain"].is_null()),
    ] {
        if given && spec["together"] == true {
            let why = "may not be given with together: true";
            causes.push(Cause::forbidden(&format!("spec.{field}"), why));
        }
    }
    if spec["failureDomain"] == "" {
        let why = "must be the key of a label";
        causes.push(Cause::invalid("spec.failureDomain", &json!(""), why));
    }
    refused(object, causes)
}

fn nodes_causes(nodes: &Value, is_there: &dyn Fn(&str) -> bool) -> Vec<Cause> {
    let nodes: Vec<&str> = nodes
        .as_array()
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    if nodes.is_empty() {
        return vec![Cause::required("spec.nodes", "at least one node")];
    }
    if nodes.len() > NODES_MAX {
        let why = format!("must have at most {NODES_MAX} items");
        return vec![Cause::invalid("spec.nodes", &json!(nodes.len()), &why)];
    }
    let mut causes = vec![];
    for (at, node) in nodes.iter().enumerate() {
        let why = match () {
            () if !is_there(node) => "no such node",
            () if nodes[..at].contains(node) => "is named twice",
            () => continue,
        };
        causes.push(Cause::invalid(
            &format!("spec.nodes[{at}]"),
            &json!(node),
            why,
        ));
    }
    causes
}

fn selector_causes(selector: &Value) -> Vec<Cause> {
    match LabelSelector::deserialize(selector) {
        Ok(selector) => label_selector_problems("spec.nodeSelector", &selector)
            .into_iter()
            .map(|problem| super::plain_cause(&problem.path, problem.message))
            .collect(),
        Err(error) => vec![Cause::invalid(
            "spec.nodeSelector",
            selector,
            &error.to_string(),
        )],
    }
}

fn check_update(old: &Value, new: &Value) -> Result<(), Status> {
    if old["spec"]["execute"] != true {
        return Ok(());
    }
    let fields = |spec: &Value| {
        let mut spec = spec.as_object().cloned().unwrap_or_default();
        spec.retain(|key, value| !CHANGEABLE.contains(&key.as_str()) && !value.is_null());
        spec
    };
    let (before, after) = (fields(&old["spec"]), fields(&new["spec"]));
    let keys = before
        .keys()
        .chain(after.keys().filter(|key| !before.contains_key(*key)));
    let why = "the plan is being carried out; set execute to false first";
    let causes = keys
        .filter(|key| before.get(*key) != after.get(*key))
        .map(|key| Cause::forbidden(&format!("spec.{key}"), why))
        .collect();
    refused(old, causes)
}

fn refused(object: &Value, causes: Vec<Cause>) -> Result<(), Status> {
    if causes.is_empty() {
        return Ok(());
    }
    let name = godwit_apimachinery::object::name(object);
    Err(Status::invalid(GROUP, KIND, name, causes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(answer: Result<(), Status>) -> Vec<String> {
        let status = answer.unwrap_err();
        assert_eq!(status.code(), 422);
        let causes = status.causes().iter();
        causes.map(|cause| cause.field.clone()).collect()
    }

    fn plan(spec: &Value) -> Value {
        json!({ "metadata": { "name": "plan" }, "spec": spec })
    }

    fn checked(spec: &Value) -> Result<(), Status> {
        check(&plan(spec), &|node| node.starts_with("worker"))
    }

    #[test]
    fn a_plan_is_of_known_nodes_or_of_a_selector() {
        for (spec, expected) in [
            (json!({}), vec!["spec.nodes"]),
            (json!({"nodes": []}), vec!["spec.nodes"]),
            (
                json!({"nodes": ["worker1"], "nodeSelector": {}}),
                vec!["spec.nodeSelector"],
            ),
            (
                json!({"nodes": ["worker1", "gone", "worker1"], "maxUnavailable": -1}),
                vec!["spec.nodes[1]", "spec.nodes[2]", "spec.maxUnavailable"],
            ),
            (
                json!({"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]},
                    "failureDomain": ""}),
                vec![
                    "spec.nodeSelector.matchExpressions[0].values",
                    "spec.failureDomain",
                ],
            ),
        ] {
            assert_eq!(fields(checked(&spec)), expected, "{spec}");
        }
        let together = json!({"nodes": ["worker1"], "together": true, "maxUnavailable": 1});
        assert_eq!(fields(checked(&together)), ["spec.maxUnavailable"]);
        assert!(checked(&json!({"nodes": ["worker1", "worker2"]})).is_ok());
        assert!(checked(&json!({"nodeSelector": {}})).is_ok());
    }

    #[test]
    fn what_is_carried_out_stays_what_it_is() {
        let old = plan(&json!({"nodes": ["worker1"], "execute": true}));
        let wider = plan(&json!({"nodes": ["worker1"], "together": true, "execute": false}));
        assert_eq!(fields(check_update(&old, &wider)), ["spec.together"]);
        let stopped = plan(&json!({"nodes": ["worker1"], "execute": false, "refresh": "again"}));
        assert!(check_update(&old, &stopped).is_ok());
        assert!(check_update(&stopped, &wider).is_ok());
    }

    #[test]
    fn times_are_told_in_seconds_and_minutes() {
        let shown = |seconds: f64| time(&json!({"status": {"forecast": {"seconds": seconds}}}));
        assert_eq!(shown(11.2), "12s");
        assert_eq!(shown(3_600.5), "60m1s");
        assert_eq!(time(&json!({})), "");
    }
}
