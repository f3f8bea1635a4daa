//! MigrationPolicy: limits of migration for the instances that carry certain labels.

use std::sync::Arc;

use async_trait::async_trait;
use godwit_apimachinery::{Admission, Cause, Kind, RequestContext, Status, View};
use godwit_model::quantity;
use serde_json::Value;

use super::{denied_fields, plain_cause, schema};

const GROUP: &str = "migrations.kubevirt.io";
const WEBHOOK: &str = "migration-policy-validator.kubevirt.io";

pub(crate) fn kind() -> Kind {
    Kind {
        namespaced: false,
        categories: vec!["all"],
        schema: schema::parse(include_str!("schema/migration_policy.yaml")),
        admission: Arc::new(Rules),
        ..Kind::custom(
            "MigrationPolicy",
            "migrationpolicies",
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
        check(object)
    }

    async fn on_update(
        &self,
        _ctx: &RequestContext,
        _old: &Value,
        new: &mut Value,
    ) -> Result<Vec<String>, Status> {
        check(new)
    }
}

fn check(object: &Value) -> Result<Vec<String>, Status> {
    let spec = &object["spec"];
    let mut causes = Vec::new();
    let timeout = spec["completionTimeoutPerGiB"].as_i64();
    if timeout.is_some_and(|seconds| seconds < 0) {
        causes.push(negative("completionTimeoutPerGiB"));
    }
    causes.extend(bandwidth_cause(&spec["bandwidthPerMigration"]));
    if spec["maxDowntimeMs"].as_i64().is_some_and(|ms| ms < 1) {
        let why = "must be greater than or equal to 1";
        causes.push(plain_cause("spec.maxDowntimeMs", why));
    }
    if !causes.is_empty() {
        return Err(denied_fields(WEBHOOK, causes));
    }
    Ok(vec![])
}

fn bandwidth_cause(bandwidth: &Value) -> Option<Cause> {
    if bandwidth.as_i64().is_some_and(|bytes| bytes < 0) {
        return Some(negative("bandwidthPerMigration"));
    }
    let text = bandwidth.as_str()?;
    if text.trim_start().starts_with('-') {
        return Some(negative("bandwidthPerMigration"));
    }
    let why = format!("{text:?} is not a quantity of bytes per second");
    let is_good = quantity::parse(text).is_ok();
    (!is_good).then(|| plain_cause("spec.bandwidthPerMigration", why))
}

fn negative(field: &str) -> Cause {
    plain_cause(&format!("spec.{field}"), "must not be negative")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_makes_no_sense_is_refused_by_field() {
        let spec = json!({"completionTimeoutPerGiB": -1, "bandwidthPerMigration": "-5Mi",
            "maxDowntimeMs": 0, "selectors": {}});
        let status = check(&json!({"metadata": {"name": "p"}, "spec": spec})).unwrap_err();
        let fields: Vec<&str> = status
            .causes()
            .iter()
            .map(|cause| cause.field.as_str())
            .collect();
        assert_eq!(
            fields,
            [
                "spec.completionTimeoutPerGiB",
                "spec.bandwidthPerMigration",
                "spec.maxDowntimeMs",
            ]
        );
        assert!(status.message().contains("must not be negative"));
    }
}
