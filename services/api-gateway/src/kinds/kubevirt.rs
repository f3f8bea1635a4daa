//! KubeVirt: the cluster's configuration, with the limits of migration and the eviction strategy.

use std::sync::Arc;

use async_trait::async_trait;
use godwit_apimachinery::object::name;
use godwit_apimachinery::{Admission, Cause, Column, ColumnType, Kind, RequestContext, Status};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{KUBEVIRT, instance, kubevirt_views, schema};

pub(crate) fn kind() -> Kind {
    let phase = Column::path(
        "Phase",
        ColumnType::String,
        ".status.phase",
        "How far it is.",
    );
    Kind {
        short_names: vec!["kv", "kvs"],
        categories: vec!["all"],
        schema: schema::parse(include_str!("schema/kubevirt.yaml")),
        columns: vec![Column::age(), phase],
        admission: Arc::new(Rules),
        ..Kind::custom("KubeVirt", "kubevirts", kubevirt_views())
    }
}

struct Rules;

#[async_trait]
impl Admission for Rules {
    async fn on_create(
        &self,
        ctx: &RequestContext,
        object: &mut Value,
    ) -> Result<Vec<String>, Status> {
        let warnings = check(object)?;
        object["status"] = deployed(ctx.now);
        Ok(warnings)
    }

    async fn on_update(
        &self,
        ctx: &RequestContext,
        _old: &Value,
        new: &mut Value,
    ) -> Result<Vec<String>, Status> {
        match ctx.subresource.as_str() {
            "" => check(new),
            _ => Ok(Vec::new()),
        }
    }
}

/// What installers wait for. There is nothing to deploy: who can write this object is served.
fn deployed(now: Timestamp) -> Value {
    let since = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |kind: &str| {
        json!({
            "type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": since,
            "reason": "AllComponentsReady", "message": "All components are ready.",
        })
    };
    json!({"phase": "Deployed", "conditions": [condition("Available"), condition("Created")]})
}

/// Numbers of `spec.configuration` that can't be less than this.
const AT_LEAST: [(&str, &str, i64); 8] = [
    (MIGRATIONS, "parallelMigrationsPerCluster", 1),
    (MIGRATIONS, "parallelOutboundMigrationsPerNode", 1),
    (MIGRATIONS, "parallelInboundMigrationsPerNode", 1),
    (MIGRATIONS, "completionTimeoutPerGiB", 0),
    (MIGRATIONS, "progressTimeout", 0),
    (MIGRATIONS, "maxDowntimeMs", 1),
    (DEVELOPER, "cpuAllocationRatio", 1),
    (DEVELOPER, "memoryOvercommit", 1),
];
const MIGRATIONS: &str = "migrations";
const DEVELOPER: &str = "developerConfiguration";

fn check(object: &Value) -> Result<Vec<String>, Status> {
    let configuration = &object["spec"]["configuration"];
    let mut causes: Vec<Cause> = Vec::new();
    for (part, key, least) in AT_LEAST {
        let value = &configuration[part][key];
        if value.as_i64().is_some_and(|number| number < least) {
            let field = format!("spec.configuration.{part}.{key}");
            let why = format!("must be greater than or equal to {least}");
            causes.push(Cause::invalid(&field, value, &why));
        }
    }
    let strategy = &configuration["evictionStrategy"];
    if let Some(cause) = instance::eviction_cause("spec.configuration", strategy) {
        causes.push(cause);
    }
    match causes.is_empty() {
        true => Ok(warnings(&configuration[MIGRATIONS])),
        false => Err(Status::invalid(KUBEVIRT, "KubeVirt", name(object), causes)),
    }
}

/// Settings of KubeVirt that are kept, so that its objects can be carried over, and do nothing.
const WITHOUT_EFFECT: [&str; 4] = [
    "allowPostCopy",
    "network",
    "unsafeMigrationOverride",
    "utilityVolumesTimeout",
];

fn warnings(migrations: &Value) -> Vec<String> {
    let set = WITHOUT_EFFECT.iter().filter(|key| {
        let value = &migrations[**key];
        !value.is_null() && value.as_bool() != Some(false)
    });
    set.map(|key| format!("spec.configuration.migrations.{key} has no effect"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_without_effect_is_kept_with_a_warning() {
        let object = json!({"spec": {"configuration": {"migrations": {
            "allowPostCopy": true, "unsafeMigrationOverride": false,
        }}}});
        let warned = check(&object).unwrap();
        assert_eq!(
            warned,
            ["spec.configuration.migrations.allowPostCopy has no effect"]
        );
    }

    #[test]
    fn nodes_may_be_overcommitted_but_not_without_end() {
        let object = |percent: i64| {
            json!({"metadata": {"name": "kubevirt"}, "spec": {"configuration": {
                "developerConfiguration": {"cpuAllocationRatio": 4, "memoryOvercommit": percent},
            }}})
        };
        assert_eq!(check(&object(150)).unwrap(), Vec::<String>::new());
        let status = check(&object(0)).unwrap_err();
        assert_eq!(
            status.causes()[0].field,
            "spec.configuration.developerConfiguration.memoryOvercommit"
        );
    }

    #[test]
    fn limits_that_would_stop_everything_are_refused() {
        let object = json!({"metadata": {"name": "kubevirt"}, "spec": {"configuration": {
            "evictionStrategy": "Always",
            "migrations": {"parallelMigrationsPerCluster": 0, "progressTimeout": 150},
        }}});
        let status = check(&object).unwrap_err();
        assert_eq!(status.code(), 422);
        assert_eq!(
            status.causes()[0].field,
            "spec.configuration.migrations.parallelMigrationsPerCluster"
        );
        assert_eq!(
            status.causes()[1].message,
            "spec.configuration.evictionStrategy is set with an unrecognized option: Always"
        );
    }
}
