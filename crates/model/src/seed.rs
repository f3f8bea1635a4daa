//! What cloud-init in a guest is told at its first boot, on a small read-only disk.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::vmi::{CloudInit, VmiSpec, Volume};

/// A disk for cloud-init. Every host makes the same bytes from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed {
    /// Where cloud-init looks.
    pub source: SeedSource,
    /// Stays the same as long as the guest is the same to its owner, so that it is set up once.
    pub instance_id: String,
    /// The guest's name.
    pub hostname: String,
    /// What the owner wants to have run.
    pub user_data: Content,
    /// Network configuration, in cloud-init's own form.
    pub network_data: Option<Content>,
}

/// Where cloud-init looks, and under which names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeedSource {
    /// A volume called `cidata`.
    NoCloud,
    /// A volume called `config-2`, in OpenStack's layout.
    ConfigDrive,
}

/// Text that may hold secrets: never shown by `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// As it is.
    Text(String),
    /// In base64, standard alphabet.
    Base64(String),
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Text(text) | Self::Base64(text)) = self;
        write!(f, "Content({} bytes)", text.len())
    }
}

/// Keys of a secret with user data, as KubeVirt reads them.
const USER_KEYS: [&str; 2] = ["userdata", "userData"];
/// Keys of a secret with network data.
const NETWORK_KEYS: [&str; 2] = ["networkdata", "networkData"];

impl Volume {
    /// What the volume says to cloud-init, if it is for that.
    pub fn cloud_init(&self) -> Option<(SeedSource, &CloudInit)> {
        let no_cloud = self.cloud_init_no_cloud.as_ref();
        let drive = self.cloud_init_config_drive.as_ref();
        no_cloud
            .map(|init| (SeedSource::NoCloud, init))
            .or_else(|| drive.map(|init| (SeedSource::ConfigDrive, init)))
    }
}

/// The secrets that a machine can't be built without.
pub fn secrets(spec: &VmiSpec) -> Vec<&str> {
    let inits = spec.volumes.iter().filter_map(Volume::cloud_init);
    let named = inits.flat_map(|(_, init)| [&init.secret_ref, &init.network_data_secret_ref]);
    named
        .flatten()
        .map(|reference| reference.name.as_str())
        .collect()
}

/// Puts what is in `secrets` (name to `data`, in base64) in the place of the references to them.
///
/// # Errors
/// Which secret, or which entry of it, is missing.
pub fn fill(
    spec: &mut VmiSpec,
    secrets: &BTreeMap<String, BTreeMap<String, String>>,
) -> Result<(), String> {
    for volume in &mut spec.volumes {
        let inits = [
            &mut volume.cloud_init_no_cloud,
            &mut volume.cloud_init_config_drive,
        ];
        for init in inits.into_iter().flatten() {
            if let Some(reference) = init.secret_ref.take() {
                init.user_data_base64 = Some(entry(secrets, &reference.name, &USER_KEYS)?);
            }
            if let Some(reference) = init.network_data_secret_ref.take() {
                init.network_data_base64 = Some(entry(secrets, &reference.name, &NETWORK_KEYS)?);
            }
        }
    }
    Ok(())
}

fn entry(
    secrets: &BTreeMap<String, BTreeMap<String, String>>,
    name: &str,
    keys: &[&str; 2],
) -> Result<String, String> {
    let Some(data) = secrets.get(name) else {
        return Err(format!("secret {name:?} is not there"));
    };
    let found = keys.iter().find_map(|key| data.get(*key));
    found.cloned().ok_or_else(|| {
        let [one, other] = keys;
        format!("secret {name:?} has neither {one} nor {other}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec() -> VmiSpec {
        let volume = json!({"name": "seed", "cloudInitNoCloud": {
            "secretRef": {"name": "s"}, "networkData": "version: 2",
        }});
        serde_json::from_value(json!({"volumes": [volume]})).unwrap()
    }

    #[test]
    fn a_secret_takes_the_place_of_its_reference() {
        let mut spec = spec();
        assert_eq!(secrets(&spec), ["s"]);
        let none = BTreeMap::new();
        let missing = fill(&mut spec.clone(), &none).unwrap_err();
        assert_eq!(missing, "secret \"s\" is not there");
        let data = |key: &str| BTreeMap::from([(key.to_owned(), "aGk=".to_owned())]);
        let other = BTreeMap::from([("s".to_owned(), data("password"))]);
        assert!(fill(&mut spec.clone(), &other).is_err());
        let all = BTreeMap::from([("s".to_owned(), data("userData"))]);
        fill(&mut spec, &all).unwrap();
        let (source, init) = spec.volumes[0].cloud_init().unwrap();
        assert_eq!(source, SeedSource::NoCloud);
        assert_eq!(init.user_data_base64.as_deref(), Some("aGk="));
        assert!(secrets(&spec).is_empty());
    }

    #[test]
    fn what_may_be_secret_is_not_shown() {
        let shown = format!("{:?}", Content::Text("hunter2".to_owned()));
        assert_eq!(shown, "Content(7 bytes)");
    }
}
