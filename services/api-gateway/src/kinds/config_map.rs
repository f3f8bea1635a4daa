//! ConfigMap: plain storage. `kubevirt-config` among them holds the limits of migration.
//!
//! A map that can't be read is accepted, as KubeVirt does, and a warning says what is wrong.

use std::sync::Arc;

use async_trait::async_trait;
use godwit_apimachinery::object::name;
use godwit_apimachinery::{
    Admission, Column, ColumnType, Kind, RequestContext, Source, Status, View,
};
use godwit_model::limits::{MigrationLimits, MigrationSettings};
use godwit_model::placement::{Overcommit, OvercommitSettings};
use serde::Deserialize;
use serde_json::{Value, json};

use super::schema;

/// Name of the map that KubeVirt of 2020 was configured with.
const KUBEVIRT_CONFIG: &str = "kubevirt-config";
/// The entry with the limits: YAML or JSON in a text.
const MIGRATIONS_KEY: &str = "migrations";

pub(crate) fn kind() -> Kind {
    let entries = Column {
        name: "Data",
        kind: ColumnType::Integer,
        format: "",
        description: "Number of entries.",
        priority: 0,
        source: Source::Compute(|object, _| json!(entries(object))),
    };
    Kind {
        short_names: vec!["cm"],
        has_status: false,
        strategic_merge: true,
        schema: schema::parse(include_str!("schema/config_map.yaml")),
        columns: vec![entries, Column::age()],
        admission: Arc::new(Rules),
        ..Kind::custom("ConfigMap", "configmaps", vec![View::new("", "v1")])
    }
}

fn entries(object: &Value) -> usize {
    ["data", "binaryData"]
        .iter()
        .filter_map(|field| object[field].as_object())
        .map(serde_json::Map::len)
        .sum()
}

struct Rules;

#[async_trait]
impl Admission for Rules {
    async fn on_create(
        &self,
        _ctx: &RequestContext,
        object: &mut Value,
    ) -> Result<Vec<String>, Status> {
        Ok(warnings(object))
    }

    async fn on_update(
        &self,
        _ctx: &RequestContext,
        old: &Value,
        new: &mut Value,
    ) -> Result<Vec<String>, Status> {
        unchanged_if_immutable(old, new, "configmaps")?;
        Ok(warnings(new))
    }
}

/// Refuses to change what its owner has sealed.
pub(super) fn unchanged_if_immutable(
    old: &Value,
    new: &Value,
    resource: &str,
) -> Result<(), Status> {
    let same = ["data", "binaryData", "immutable"]
        .iter()
        .all(|field| old[field] == new[field]);
    if old["immutable"] == json!(true) && !same {
        return Err(super::forbidden(
            resource,
            name(old),
            "field is immutable when `immutable` is set",
        ));
    }
    Ok(())
}

/// What in `kubevirt-config` will not be understood. It is kept all the same, as in KubeVirt.
fn warnings(object: &Value) -> Vec<String> {
    if name(object) != KUBEVIRT_CONFIG {
        return Vec::new();
    }
    let data = &object["data"];
    [migration_warnings(data), overcommit_warnings(data)].concat()
}

fn overcommit_warnings(data: &Value) -> Vec<String> {
    let Ok(settings) = OvercommitSettings::deserialize(data) else {
        return Vec::new(); // no data
    };
    let none = OvercommitSettings::default();
    let (_, problems) = Overcommit::resolve(Overcommit::default(), &none, &settings);
    let lines = problems
        .iter()
        .map(|problem| format!("data: {problem}, the last good value stays in force"));
    lines.collect()
}

fn migration_warnings(data: &Value) -> Vec<String> {
    let Some(text) = data[MIGRATIONS_KEY].as_str() else {
        return Vec::new();
    };
    let settings = match serde_yaml_ng::from_str::<MigrationSettings>(text) {
        Ok(settings) => settings,
        Err(error) => {
            let stay = "the last good values stay in force";
            return vec![format!("data.{MIGRATIONS_KEY}: {error}, {stay}")];
        }
    };
    let none = MigrationSettings::default();
    let (_, problems) = MigrationLimits::resolve(&MigrationLimits::default(), &none, &settings);
    let lines = problems.iter().map(|problem| {
        format!("data.{MIGRATIONS_KEY}: {problem}, the last good value stays in force")
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(migrations: &str) -> Value {
        json!({"metadata": {"name": KUBEVIRT_CONFIG}, "data": {MIGRATIONS_KEY: migrations}})
    }

    #[test]
    fn a_bad_limit_is_kept_with_a_warning() {
        assert!(warnings(&config("parallelMigrationsPerCluster: \"3\"")).is_empty());
        let warned = warnings(&config("parallelMigrationsPerCluster: many"));
        assert_eq!(warned.len(), 1);
        assert!(
            warned[0].contains("parallelMigrationsPerCluster"),
            "{warned:?}"
        );
        assert!(warnings(&config("[")).len() == 1);
    }

    #[test]
    fn a_bad_overcommitment_is_kept_with_a_warning() {
        let config = |percent: &str| {
            let data = json!({"memory-overcommit": percent, "feature-gates": "LiveMigration"});
            json!({"metadata": {"name": KUBEVIRT_CONFIG}, "data": data})
        };
        assert_eq!(warnings(&config("150")), Vec::<String>::new());
        assert_eq!(
            warnings(&config("much")),
            [
                "data: memoryOvercommit \"much\" is not a number of at least 1, the last good value \
              stays in force"
            ]
        );
    }

    #[test]
    fn a_sealed_map_stays() {
        let old = json!({"metadata": {"name": "a"}, "immutable": true, "data": {"k": "v"}});
        let mut new = old.clone();
        assert!(unchanged_if_immutable(&old, &new, "configmaps").is_ok());
        new["data"]["k"] = json!("w");
        assert!(unchanged_if_immutable(&old, &new, "configmaps").is_err());
    }
}
