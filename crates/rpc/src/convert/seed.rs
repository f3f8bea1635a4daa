//! What a guest sets itself up with.

use godwit_model::seed::{Content, Seed, SeedSource};
use tonic::Status;

use crate::agent::v1 as wire;

impl From<Seed> for wire::Seed {
    fn from(seed: Seed) -> Self {
        let source = match seed.source {
            SeedSource::NoCloud => "NoCloud",
            SeedSource::ConfigDrive => "ConfigDrive",
        };
        Self {
            source: source.to_owned(),
            instance_id: seed.instance_id,
            hostname: seed.hostname,
            user_data: Some(seed.user_data.into()),
            network_data: seed.network_data.map(Into::into),
        }
    }
}

impl TryFrom<wire::Seed> for Seed {
    type Error = Status;

    fn try_from(wire: wire::Seed) -> Result<Self, Status> {
        let source = match wire.source.as_str() {
            "NoCloud" => SeedSource::NoCloud,
            "ConfigDrive" => SeedSource::ConfigDrive,
            other => {
                let text = format!("spec.disks.seed.source {other:?} is none of cloud-init's");
                return Err(Status::invalid_argument(text));
            }
        };
        Ok(Self {
            source,
            instance_id: wire.instance_id,
            hostname: wire.hostname,
            user_data: wire.user_data.unwrap_or_default().into(),
            network_data: wire.network_data.map(Into::into),
        })
    }
}

impl From<Content> for wire::SeedContent {
    fn from(content: Content) -> Self {
        let content = match content {
            Content::Text(text) => wire::seed_content::Content::Text(text),
            Content::Base64(text) => wire::seed_content::Content::Base64(text),
        };
        Self {
            content: Some(content),
        }
    }
}

impl From<wire::SeedContent> for Content {
    fn from(wire: wire::SeedContent) -> Self {
        match wire.content {
            Some(wire::seed_content::Content::Base64(text)) => Self::Base64(text),
            Some(wire::seed_content::Content::Text(text)) => Self::Text(text),
            None => Self::Text(String::new()),
        }
    }
}

impl std::fmt::Debug for wire::SeedContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Content::from(self.clone()).fmt(f)
    }
}
