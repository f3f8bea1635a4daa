//! Secret: plain storage, for cloud-init and the like. Not in the role `view`.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use godwit_apimachinery::object::name;
use godwit_apimachinery::{
    Admission, Cause, Column, ColumnType, Kind, RequestContext, Source, Status, View,
};
use serde_json::{Value, json};

use super::{config_map, schema};

pub(crate) fn kind() -> Kind {
    let entries = Column {
        name: "Data",
        kind: ColumnType::Integer,
        format: "",
        description: "Number of entries.",
        priority: 0,
        source: Source::Compute(|object, _| {
            json!(object["data"].as_object().map_or(0, serde_json::Map::len))
        }),
    };
    let kind = Column::path("Type", ColumnType::String, ".type", "What it is for.");
    Kind {
        has_status: false,
        strategic_merge: true,
        schema: schema::parse(include_str!("schema/secret.yaml")),
        columns: vec![kind, entries, Column::age()],
        selectable_fields: vec!["type"],
        admission: Arc::new(Rules),
        ..Kind::custom("Secret", "secrets", vec![View::new("", "v1")])
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
        complete(object)?;
        Ok(Vec::new())
    }

    async fn on_update(
        &self,
        _ctx: &RequestContext,
        old: &Value,
        new: &mut Value,
    ) -> Result<Vec<String>, Status> {
        complete(new)?;
        config_map::unchanged_if_immutable(old, new, "secrets")?;
        if old["type"] != new["type"] {
            let cause = Cause::invalid("type", &new["type"], "field is immutable");
            return Err(Status::invalid("", "Secret", name(old), vec![cause]));
        }
        Ok(Vec::new())
    }
}

/// Moves plain texts into `data`, and checks that all of it is base64.
fn complete(secret: &mut Value) -> Result<(), Status> {
    let plain = secret
        .as_object_mut()
        .and_then(|map| map.remove("stringData"));
    if let Some(Value::Object(plain)) = plain {
        for (key, value) in plain {
            secret["data"][key] = json!(STANDARD.encode(value.as_str().unwrap_or_default()));
        }
    }
    if secret["type"].as_str().unwrap_or_default().is_empty() {
        secret["type"] = json!("Opaque");
    }
    let bad = secret["data"]
        .as_object()
        .into_iter()
        .flatten()
        .find(|(_, value)| STANDARD.decode(value.as_str().unwrap_or_default()).is_err());
    match bad {
        Some((key, _)) => Err(Status::invalid(
            "",
            "Secret",
            name(secret),
            vec![plain_base64_cause(key)],
        )),
        None => Ok(()),
    }
}

fn plain_base64_cause(key: &str) -> Cause {
    // The value stays out of the message: it is a secret.
    super::plain_cause(&format!("data[{key}]"), "Invalid value: must be base64")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_texts_become_data() {
        let mut secret = json!({"metadata": {"name": "s"}, "stringData": {"userdata": "hi"}});
        complete(&mut secret).unwrap();
        assert_eq!(secret["data"]["userdata"], "aGk=");
        assert_eq!(secret["type"], "Opaque");
        assert!(secret.get("stringData").is_none());
    }

    #[test]
    fn a_secret_that_is_not_base64_is_refused_without_telling_it() {
        let mut secret = json!({"metadata": {"name": "s"}, "data": {"k": "hunter2!"}});
        let status = complete(&mut secret).unwrap_err();
        assert_eq!(status.code(), 422);
        assert!(!status.message().contains("hunter2"));
    }
}
