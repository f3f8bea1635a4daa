//! RollingMaintenance of godwit.io: many nodes, one wave after another.
//!
//! What an order may say is checked by the model, which also carries it out.

use std::sync::Arc;

use async_trait::async_trait;
use godwit_apimachinery::object::name;
use godwit_apimachinery::{
    Admission, Cause, Column, ColumnType, Kind, RequestContext, Status, View,
};
use godwit_model::rolling::Order;
use serde_json::Value;

use super::{add_finalizer, keep_finalizer, ladder, schema};

const GROUP: &str = "godwit.io";
const KIND: &str = "RollingMaintenance";
/// Holds the object until its nodes are open again.
const FINALIZER: &str = "godwit.io/rolling-maintenance";
/// What the waves were made by.
const FIXED: [&str; 3] = ["nodeSelector", "failureDomain", "hooks"];

pub(crate) fn kind() -> Kind {
    Kind {
        namespaced: false,
        short_names: vec!["rm"],
        schema: schema::parse(include_str!("schema/rolling_maintenance.yaml")),
        selectable_fields: vec!["status.phase"],
        columns: vec![
            Column::path(
                "Nodes",
                ColumnType::Integer,
                ".status.nodesTotal",
                "How many nodes it is about.",
            ),
            Column::path(
                "Done",
                ColumnType::Integer,
                ".status.nodesDone",
                "How many of them are done, skipped or failed.",
            ),
            Column::path(
                "Current",
                ColumnType::String,
                ".status.current",
                "Nodes that are under way.",
            ),
            Column::path(
                "Phase",
                ColumnType::String,
                ".status.phase",
                "How it stands; status.message says more.",
            ),
            Column::age(),
        ],
        admission: Arc::new(Rules),
        ..Kind::custom(
            KIND,
            "rollingmaintenances",
            vec![View::new(GROUP, "v1alpha1")],
        )
    }
}

struct Rules;

#[async_trait]
impl Admission for Rules {
    async fn on_create(
        &self,
        _ctx: &RequestContext,
        object: &mut Value,
    ) -> Result<Vec<String>, Status> {
        check(object)?;
        add_finalizer(object, FINALIZER);
        Ok(Vec::new())
    }

    async fn on_update(
        &self,
        _ctx: &RequestContext,
        old: &Value,
        new: &mut Value,
    ) -> Result<Vec<String>, Status> {
        check(new)?;
        check_fixed(old, new)?;
        keep_finalizer(old, new, (KIND, FINALIZER))?;
        Ok(Vec::new())
    }
}

fn check(object: &Value) -> Result<(), Status> {
    let spec = &object["spec"];
    let mut causes: Vec<Cause> = match serde_json::from_value::<Order>(spec.clone()) {
        Ok(order) => {
            let flaws = order.flaws().into_iter();
            flaws
                .map(|flaw| Cause::invalid(&flaw.field, at(object, &flaw.field), &flaw.message))
                .collect()
        }
        Err(error) => vec![Cause::invalid("spec", spec, &error.to_string())],
    };
    causes.extend(ladder::list_cause(&spec["ladder"]));
    refuse(object, causes)
}

fn check_fixed(old: &Value, new: &Value) -> Result<(), Status> {
    let changed = FIXED
        .iter()
        .filter(|key| old["spec"][key] != new["spec"][key]);
    let causes = changed.map(|key| {
        let why = "can't be changed: the waves were made by it; make another one";
        Cause::invalid(&format!("spec.{key}"), &new["spec"][key], why)
    });
    refuse(new, causes.collect())
}

fn refuse(object: &Value, causes: Vec<Cause>) -> Result<(), Status> {
    match causes.is_empty() {
        true => Ok(()),
        false => Err(Status::invalid(GROUP, KIND, name(object), causes)),
    }
}

/// The value at a path such as `spec.hooks.drained[0].name`.
fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    let pointer = path.replace('[', "/").replace(']', "").replace('.', "/");
    object
        .pointer(&format!("/{pointer}"))
        .unwrap_or(&Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rolling(spec: &Value) -> Value {
        json!({ "metadata": { "name": "kernel" }, "spec": spec })
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_field() {
        let spec = json!({
            "nodeSelector": {},
            "maxUnavailable": 0,
            "hooks": { "drained": [{ "name": "update", "command": "apt upgrade" }] },
            "ladder": [{ "method": "Jump" }],
        });
        let status = check(&rolling(&spec)).unwrap_err();
        assert_eq!(status.code(), 422);
        let fields: Vec<&str> = status
            .causes()
            .iter()
            .map(|cause| cause.field.as_str())
            .collect();
        assert_eq!(
            fields,
            [
                "spec.maxUnavailable",
                "spec.hooks.drained[0].command",
                "spec.ladder[0].method",
            ]
        );
        assert!(
            status.message().contains("\"apt upgrade\""),
            "{}",
            status.message()
        );
        assert!(check(&rolling(&json!({ "nodeSelector": {} }))).is_ok());
    }

    #[test]
    fn the_nodes_and_the_hooks_stay() {
        let old = rolling(&json!({ "nodeSelector": {}, "paused": true }));
        let open = rolling(&json!({ "nodeSelector": {}, "paused": false }));
        assert!(check_fixed(&old, &open).is_ok());
        let other = rolling(&json!({ "nodeSelector": { "matchLabels": { "rack": "a" } } }));
        assert_eq!(check_fixed(&old, &other).unwrap_err().code(), 422);
    }
}
