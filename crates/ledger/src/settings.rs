//! What users set about migrations, in the two places where they may: the KubeVirt object and the
//! ConfigMap `kubevirt-config`. What follows from both is decided by `model::limits`.

use godwit_model::limits::MigrationSettings;
use serde_json::Value;

use crate::{Ledger, LedgerError, Object};

const KUBEVIRTS: &str = "kubevirts.kubevirt.io";
const CONFIG_MAPS: &str = "configmaps";
const CONFIG: &str = "kubevirt-config";

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
}
