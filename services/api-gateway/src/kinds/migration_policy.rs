//! MigrationPolicy of migrations.kubevirt.io: settings for the machines it selects.

use std::sync::Arc;

use async_trait::async_trait;
use godwit_apimachinery::{Admission, Cause, Kind, RequestContext, Status, View};
use serde_json::Value;

use super::{denied_fields, plain_cause, schema};

const WEBHOOK: &str = "migration-policy-validator.kubevirt.io";

pub(crate) fn kind() -> Kind {
    let views = vec![View::new("migrations.kubevirt.io", "v1alpha1")];
    Kind {
        namespaced: false,
        schema: schema::parse(include_str!("schema/migration_policy.yaml")),
        admission: Arc::new(Rules),
        ..Kind::custom("MigrationPolicy", "migrationpolicies", views)
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

fn check(policy: &Value) -> Result<Vec<String>, Status> {
    let spec = &policy["spec"];
    let mut causes: Vec<Cause> = Vec::new();
    if spec["completionTimeoutPerGiB"]
        .as_i64()
        .is_some_and(|seconds| seconds < 0)
    {
        causes.push(plain_cause(
            "spec.completionTimeoutPerGiB",
            "must not be negative",
        ));
    }
    let bandwidth = &spec["bandwidthPerMigration"];
    let negative = bandwidth.as_i64().is_some_and(|bytes| bytes < 0)
        || bandwidth.as_str().is_some_and(|text| text.starts_with('-'));
    if negative {
        causes.push(plain_cause(
            "spec.bandwidthPerMigration",
            "must not be negative",
        ));
    }
    match causes.is_empty() {
        true => Ok(Vec::new()),
        false => Err(denied_fields(WEBHOOK, causes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn negative_limits_are_refused_with_their_fields() {
        let policy =
            json!({"spec": {"completionTimeoutPerGiB": -1, "bandwidthPerMigration": "-1Mi"}});
        let status = check(&policy).unwrap_err();
        let fields: Vec<&str> = status
            .causes()
            .iter()
            .map(|cause| cause.field.as_str())
            .collect();
        assert_eq!(
            fields,
            ["spec.completionTimeoutPerGiB", "spec.bandwidthPerMigration"]
        );
        assert!(check(&json!({"spec": {"selectors": {}}})).is_ok());
    }
}
