//! VirtualMachine: what its owner wants to run. The scheduler makes the instance from it.

use std::sync::Arc;

use async_trait::async_trait;
use godwit_apimachinery::{Admission, Cause, Column, ColumnType, Kind, RequestContext, Status};
use serde_json::{Value, json};

use super::{denied_fields, instance, kubevirt_views, plain_cause, schema};
use crate::facts::Facts;

const WEBHOOK: &str = "virtualmachine-validator.kubevirt.io";
/// The strategies that the scheduler carries out.
const RUN_STRATEGIES: [&str; 5] = ["Always", "Halted", "Manual", "RerunOnFailure", "Once"];

pub(crate) fn kind(_facts: &Facts) -> Kind {
    let mut schema = schema::parse(include_str!("schema/machine.yaml"));
    let template = &mut schema["properties"]["spec"]["properties"]["template"];
    template["properties"]["spec"] = instance::spec_schema();
    schema["properties"]["status"]["properties"]["conditions"] =
        schema::parse(include_str!("schema/conditions.yaml"));
    Kind {
        short_names: vec!["vm", "vms"],
        categories: vec!["all"],
        schema,
        columns: columns(),
        selectable_fields: vec!["status.printableStatus", "spec.runStrategy"],
        admission: Arc::new(Rules),
        ..Kind::custom("VirtualMachine", "virtualmachines", kubevirt_views())
    }
}

fn columns() -> Vec<Column> {
    vec![
        Column::age(),
        Column::path(
            "Status",
            ColumnType::String,
            ".status.printableStatus",
            "Human Readable Status",
        ),
        Column::path(
            "Ready",
            ColumnType::String,
            ".status.conditions[?(@.type=='Ready')].status",
            "",
        ),
    ]
}

struct Rules;

#[async_trait]
impl Admission for Rules {
    async fn on_create(
        &self,
        _ctx: &RequestContext,
        object: &mut Value,
    ) -> Result<Vec<String>, Status> {
        check(object)
    }

    async fn on_update(
        &self,
        ctx: &RequestContext,
        old: &Value,
        new: &mut Value,
    ) -> Result<Vec<String>, Status> {
        match ctx.subresource.as_str() {
            // Whoever only marks or releases an object that was valid once is not judged again.
            "" if old["spec"] == new["spec"] => Ok(Vec::new()),
            "" => check(new),
            _ => Ok(Vec::new()),
        }
    }
}

fn check(object: &Value) -> Result<Vec<String>, Status> {
    let spec = &object["spec"];
    let mut causes = strategy_causes(spec);
    let template = &spec["template"];
    causes.extend(unsupported_causes(spec));
    let metadata = template_metadata(object, template);
    causes.extend(instance::spec_causes(
        "spec.template.spec",
        &metadata,
        &template["spec"],
    ));
    if !causes.is_empty() {
        return Err(denied_fields(WEBHOOK, causes));
    }
    match spec["running"].is_boolean() {
        true => Ok(vec![
            "spec.running is deprecated, please use spec.runStrategy instead.".into(),
        ]),
        false => Ok(Vec::new()),
    }
}

fn strategy_causes(spec: &Value) -> Vec<Cause> {
    let running = !spec["running"].is_null();
    match spec["runStrategy"].as_str() {
        Some(_) if running => vec![plain_cause(
            "spec.running",
            "Running and RunStrategy are mutually exclusive. Note that Running is deprecated, \
             please use RunStrategy instead",
        )],
        None if !running => vec![plain_cause(
            "spec.runStrategy",
            "One of Running or RunStrategy must be specified",
        )],
        Some(strategy) if !RUN_STRATEGIES.contains(&strategy) => {
            vec![plain_cause(
                "spec.runStrategy",
                format!("Invalid RunStrategy ({strategy})"),
            )]
        }
        Some(_) | None => Vec::new(),
    }
}

/// Parts of a VirtualMachine that would have to be carried out and can't be.
const UNSUPPORTED: [&str; 4] = [
    "instancetype",
    "preference",
    "dataVolumeTemplates",
    "updateVolumesStrategy",
];

fn unsupported_causes(spec: &Value) -> Vec<Cause> {
    UNSUPPORTED
        .iter()
        .filter(|field| match &spec[**field] {
            Value::Null => false,
            Value::Array(list) => !list.is_empty(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => true,
        })
        .map(|field| {
            plain_cause(
                &format!("spec.{field}"),
                format!("{field} is not supported on plain hosts"),
            )
        })
        .collect()
}

/// Metadata of the instance that would be made: the template's, under the machine's name.
fn template_metadata(object: &Value, template: &Value) -> Value {
    let mut metadata = json!({});
    if let Some(map) = template["metadata"].as_object() {
        metadata = Value::Object(map.clone());
    }
    for key in ["name", "namespace", "uid"] {
        metadata[key] = object["metadata"][key].clone();
    }
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_and_run_strategy_exclude_each_other() {
        let both = strategy_causes(&json!({"running": true, "runStrategy": "Always"}));
        assert_eq!(
            both[0].message,
            "Running and RunStrategy are mutually exclusive. Note that Running is deprecated, \
             please use RunStrategy instead"
        );
        assert_eq!(strategy_causes(&json!({})).len(), 1);
        assert_eq!(strategy_causes(&json!({"runStrategy": "Never"})).len(), 1);
        assert!(strategy_causes(&json!({"running": false})).is_empty());
        assert!(strategy_causes(&json!({"runStrategy": "Halted"})).is_empty());
    }

    #[test]
    fn what_cannot_be_carried_out_is_refused_by_field() {
        let causes =
            unsupported_causes(&json!({"instancetype": {"name": "u1"}, "dataVolumeTemplates": []}));
        assert_eq!(causes.len(), 1);
        assert_eq!(causes[0].field, "spec.instancetype");
    }

    #[test]
    fn a_template_is_judged_under_the_machines_name() {
        let object = json!({"metadata": {"name": "rhel8", "namespace": "default"}});
        let metadata = template_metadata(&object, &json!({"metadata": null}));
        assert_eq!(metadata["name"], "rhel8");
    }
}
