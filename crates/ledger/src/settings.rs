//! What users set about migrations, in the two places where they may: the KubeVirt object and the
//! ConfigMap `kubevirt-config`; and how far nodes are overcommitted, in the same two. What follows
//! from both is decided by `model::limits` and `model::placement`.

use godwit_model::limits::MigrationSettings;
use godwit_model::placement::{Overcommit, OvercommitSettings};
use serde::Deserialize;
use serde_json::Value;
use tracing::warn;

use crate::{Ledger, LedgerError, Object};

const KUBEVIRTS: &str = "kubevirts.kubevirt.io";
const CONFIG_MAPS: &str = "configmaps";
const CONFIG: &str = "kubevirt-config";
/// Both places, however many other ConfigMaps there are.
pub(crate) const PLACES: &str = "SELECT uid, resource, namespace, name, metadata, body, status, \
    revision FROM object WHERE resource = 'kubevirts.kubevirt.io' \
    OR (resource = 'configmaps' AND name = 'kubevirt-config') ORDER BY resource, namespace, name";

/// What each place says; nothing where there is no such object.
#[derive(Debug, Clone, PartialEq)]
pub struct SettingsFound {
    /// `spec.configuration.migrations` of the KubeVirt object, or why it makes no sense.
    pub kubevirt: Result<MigrationSettings, String>,
    /// `data.migrations` of the ConfigMap, or why it makes no sense.
    pub config_map: Result<MigrationSettings, String>,
}

impl SettingsFound {
    /// What these objects say.
    pub fn new(kubevirts: &[Object], config_maps: &[Object]) -> Self {
        let kubevirt = kubevirts.first();
        let kubevirt =
            kubevirt.and_then(|object| object.spec().pointer("/configuration/migrations"));
        let config_map = config_maps.iter().find(|object| object.key.name == CONFIG);
        let config_map = config_map.and_then(|object| object.body.pointer("/data/migrations"));
        let config_map = config_map.and_then(Value::as_str);
        let config_map = config_map.map(serde_yaml_ng::from_str::<Value>).transpose();
        Self {
            kubevirt: settings("KubeVirt", kubevirt.cloned()),
            config_map: match config_map {
                Ok(value) => settings(CONFIG, value),
                Err(error) => Err(format!("{CONFIG}: {error}")),
            },
        }
    }

    /// Reads both places.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn read(ledger: &Ledger) -> Result<Self, LedgerError> {
        let (kubevirts, config_maps) =
            futures::try_join!(ledger.list(KUBEVIRTS), ledger.list(CONFIG_MAPS))?;
        Ok(Self::new(&kubevirts, &config_maps))
    }
}

/// How far nodes are overcommitted by these objects, of whatever resources. What can't be used is
/// told in the log, and `last` stays.
pub fn overcommit(objects: &[Object], last: Overcommit) -> Overcommit {
    let mut of = objects.iter();
    let kubevirt = of.find(|object| object.key.resource == KUBEVIRTS);
    let resource = kubevirt.and_then(|object| {
        object
            .spec()
            .pointer("/configuration/developerConfiguration")
    });
    let mut of = objects.iter();
    let config_map =
        of.find(|object| object.key.resource == CONFIG_MAPS && object.key.name == CONFIG);
    let config_map = config_map.map(|object| &object.body["data"]);
    let read = |value: Option<&Value>| {
        let value = value.filter(|value| !value.is_null());
        value.map(OvercommitSettings::deserialize).transpose()
    };
    let (resource, config_map) = match (read(resource), read(config_map)) {
        (Ok(resource), Ok(config_map)) => (resource, config_map),
        (Err(problem), _) | (_, Err(problem)) => {
            warn!(%problem, "how far nodes are overcommitted makes no sense; it stays as it was");
            return last;
        }
    };
    let (found, problems) = Overcommit::resolve(
        last,
        &resource.unwrap_or_default(),
        &config_map.unwrap_or_default(),
    );
    for problem in problems {
        warn!(%problem, "how far nodes are overcommitted is not usable; the last good value stays");
    }
    found
}

impl Ledger {
    /// How far nodes are overcommitted. For whoever has no last good value: where one can't be used,
    /// it is KubeVirt's default.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn overcommit(&self) -> Result<Overcommit, LedgerError> {
        let rows = self.fetch_all(sqlx::query(PLACES)).await?;
        let objects: Result<Vec<Object>, LedgerError> = rows.iter().map(Object::read).collect();
        Ok(overcommit(&objects?, Overcommit::default()))
    }
}

fn settings(place: &str, value: Option<Value>) -> Result<MigrationSettings, String> {
    let Some(value) = value else {
        return Ok(MigrationSettings::default());
    };
    serde_json::from_value(value).map_err(|error| format!("{place}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ObjectKey;
    use godwit_model::Revision;
    use godwit_model::limits::Setting;
    use serde_json::json;

    fn object(resource: &str, name: &str, body: Value) -> Object {
        Object {
            key: ObjectKey::new(resource, "kubevirt", name),
            uid: String::new(),
            metadata: json!({}),
            body,
            status: None,
            revision: Revision(1),
        }
    }

    #[test]
    fn both_places_are_read_and_nonsense_in_one_spoils_not_the_other() {
        let kubevirt = json!({ "spec": { "configuration": { "migrations": "fast" } } });
        let map = json!({ "data": { "migrations": "bandwidthPerMigration: 64Mi" } });
        let found = SettingsFound::new(
            &[object(KUBEVIRTS, "kubevirt", kubevirt)],
            &[
                object(CONFIG_MAPS, "other", json!({})),
                object(CONFIG_MAPS, CONFIG, map),
            ],
        );
        assert!(
            found
                .kubevirt
                .is_err_and(|why| why.starts_with("KubeVirt: "))
        );
        let bandwidth = found.config_map.map(|set| set.bandwidth_per_migration);
        assert_eq!(bandwidth, Ok(Some(Setting::Text("64Mi".to_owned()))));
        let nothing = SettingsFound::new(&[], &[]);
        assert_eq!(nothing.kubevirt, Ok(MigrationSettings::default()));
    }

    #[test]
    fn nodes_are_overcommitted_as_both_places_say_and_nonsense_changes_nothing() {
        let kubevirt = |developer: Value| {
            let spec = json!({ "configuration": { "developerConfiguration": developer } });
            object(KUBEVIRTS, "kubevirt", json!({ "spec": spec }))
        };
        let map = json!({ "data": { "cpu-allocation-ratio": "4", "migrations": "" } });
        let map = object(CONFIG_MAPS, CONFIG, map);
        let last = Overcommit {
            cpu_ratio: 2,
            memory_percent: 300,
        };
        let found = overcommit(&[map, kubevirt(json!({ "memoryOvercommit": 150 }))], last);
        assert_eq!([found.cpu_ratio, found.memory_percent], [4, 150]);
        assert_eq!(overcommit(&[kubevirt(json!("much"))], last), last);
        assert_eq!(overcommit(&[], last), Overcommit::default());
    }
}
