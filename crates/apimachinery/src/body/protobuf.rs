//! Protobuf bodies of built-in kinds.
//!
//! From 1.32 on, kubectl's typed clients write these, and take a 415 as final. Messages are those
//! of k8s.io/api; field numbers are from its `generated.proto` files. Custom kinds never come so.

mod rbac;

use prost::Message;
use serde_json::{Map, Value, json};

use crate::status::Status;

/// Every encoded object starts with this.
const MAGIC: &[u8] = b"k8s\0";

pub(crate) fn decode(bytes: &[u8]) -> Result<Value, Status> {
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        return Err(Status::bad_request(
            "provided data does not appear to be a protobuf message",
        ));
    };
    let unknown = read::<Unknown>(rest)?;
    let meta = unknown.type_meta.unwrap_or_default();
    let raw = unknown.raw.as_slice();
    let mut value = match meta.kind.as_str() {
        "DeleteOptions" => read::<DeleteOptions>(raw)?.to_json(),
        "Namespace" => read::<MetadataOnly>(raw)?.to_json(),
        "SelfSubjectReview" => read::<MetadataOnly>(raw)?.to_json(),
        "SelfSubjectAccessReview" | "LocalSubjectAccessReview" | "SubjectAccessReview" => {
            read::<AccessReview>(raw)?.to_json()
        }
        "SelfSubjectRulesReview" => read::<RulesReview>(raw)?.to_json(),
        "ConfigMap" => read::<ConfigMap>(raw)?.to_json(),
        "Secret" => read::<Secret>(raw)?.to_json(),
        "Eviction" => read::<Eviction>(raw)?.to_json(),
        "Role" | "ClusterRole" => read::<rbac::Role>(raw)?.to_json(),
        "RoleBinding" | "ClusterRoleBinding" => read::<rbac::Binding>(raw)?.to_json(),
        other => {
            return Err(Status::unsupported_media_type(format!(
                "protobuf bodies of kind \"{other}\" are not read here - accepted media types \
                 include: application/json, application/yaml"
            )));
        }
    };
    value["apiVersion"] = json!(meta.api_version);
    value["kind"] = json!(meta.kind);
    Ok(value)
}

fn read<M: Message + Default>(bytes: &[u8]) -> Result<M, Status> {
    M::decode(bytes).map_err(|error| Status::bad_request(format!("decode protobuf: {error}")))
}

#[derive(Clone, PartialEq, Message)]
struct Unknown {
    #[prost(message, optional, tag = "1")]
    type_meta: Option<TypeMeta>,
    #[prost(bytes = "vec", tag = "2")]
    raw: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeMeta {
    #[prost(string, tag = "1")]
    api_version: String,
    #[prost(string, tag = "2")]
    kind: String,
}

#[derive(Clone, PartialEq, Message)]
struct ObjectMeta {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    generate_name: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(string, tag = "5")]
    uid: String,
    #[prost(string, tag = "6")]
    resource_version: String,
    #[prost(btree_map = "string, string", tag = "11")]
    labels: std::collections::BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "12")]
    annotations: std::collections::BTreeMap<String, String>,
    #[prost(string, repeated, tag = "14")]
    finalizers: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct MetadataOnly {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
}

#[derive(Clone, PartialEq, Message)]
struct DeleteOptions {
    #[prost(int64, optional, tag = "1")]
    grace_period_seconds: Option<i64>,
    #[prost(message, optional, tag = "2")]
    preconditions: Option<Preconditions>,
    #[prost(bool, optional, tag = "3")]
    orphan_dependents: Option<bool>,
    #[prost(string, optional, tag = "4")]
    propagation_policy: Option<String>,
    #[prost(string, repeated, tag = "5")]
    dry_run: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Preconditions {
    #[prost(string, optional, tag = "1")]
    uid: Option<String>,
    #[prost(string, optional, tag = "2")]
    resource_version: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Eviction {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    delete_options: Option<DeleteOptions>,
}

#[derive(Clone, PartialEq, Message)]
struct AccessReview {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    spec: Option<AccessReviewSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct AccessReviewSpec {
    #[prost(message, optional, tag = "1")]
    resource: Option<ResourceAttributes>,
    #[prost(message, optional, tag = "2")]
    non_resource: Option<NonResourceAttributes>,
    // SubjectAccessReview alone has these two.
    #[prost(string, tag = "3")]
    user: String,
    #[prost(string, repeated, tag = "4")]
    groups: Vec<String>,
    #[prost(string, tag = "6")]
    uid: String,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceAttributes {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    verb: String,
    #[prost(string, tag = "3")]
    group: String,
    #[prost(string, tag = "4")]
    version: String,
    #[prost(string, tag = "5")]
    resource: String,
    #[prost(string, tag = "6")]
    subresource: String,
    #[prost(string, tag = "7")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct NonResourceAttributes {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(string, tag = "2")]
    verb: String,
}

#[derive(Clone, PartialEq, Message)]
struct RulesReview {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    spec: Option<RulesReviewSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct RulesReviewSpec {
    #[prost(string, tag = "1")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct ConfigMap {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(btree_map = "string, string", tag = "2")]
    data: std::collections::BTreeMap<String, String>,
    #[prost(btree_map = "string, bytes", tag = "3")]
    binary_data: std::collections::BTreeMap<String, Vec<u8>>,
    #[prost(bool, optional, tag = "4")]
    immutable: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct Secret {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(btree_map = "string, bytes", tag = "2")]
    data: std::collections::BTreeMap<String, Vec<u8>>,
    #[prost(string, tag = "3")]
    kind: String,
    #[prost(btree_map = "string, string", tag = "4")]
    string_data: std::collections::BTreeMap<String, String>,
    #[prost(bool, optional, tag = "5")]
    immutable: Option<bool>,
}

/// Builds an object and leaves out what is empty: proto2 writers spell out empty texts.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn with(mut self, key: &str, value: Value) -> Self {
        let empty = match &value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::Bool(_) | Value::Number(_) => false,
        };
        if !empty {
            self.0.insert(key.to_owned(), value);
        }
        self
    }

    fn build(self) -> Value {
        Value::Object(self.0)
    }
}

fn base64(map: &std::collections::BTreeMap<String, Vec<u8>>) -> Value {
    use base64::Engine as _;
    let encode = |bytes: &Vec<u8>| base64::engine::general_purpose::STANDARD.encode(bytes);
    let entries = map
        .iter()
        .map(|(key, bytes)| (key.clone(), Value::String(encode(bytes))));
    Value::Object(entries.collect())
}

fn metadata(meta: Option<&ObjectMeta>) -> Value {
    let Some(meta) = meta else {
        return json!({});
    };
    Fields::default()
        .with("name", json!(meta.name))
        .with("generateName", json!(meta.generate_name))
        .with("namespace", json!(meta.namespace))
        .with("uid", json!(meta.uid))
        .with("resourceVersion", json!(meta.resource_version))
        .with("labels", json!(meta.labels))
        .with("annotations", json!(meta.annotations))
        .with("finalizers", json!(meta.finalizers))
        .build()
}

impl MetadataOnly {
    fn to_json(&self) -> Value {
        json!({ "metadata": metadata(self.metadata.as_ref()) })
    }
}

impl DeleteOptions {
    fn to_json(&self) -> Value {
        let preconditions = self.preconditions.clone().unwrap_or_default();
        let preconditions = Fields::default()
            .with("uid", json!(preconditions.uid))
            .with("resourceVersion", json!(preconditions.resource_version))
            .build();
        Fields::default()
            .with("gracePeriodSeconds", json!(self.grace_period_seconds))
            .with("preconditions", preconditions)
            .with("orphanDependents", json!(self.orphan_dependents))
            .with("propagationPolicy", json!(self.propagation_policy))
            .with("dryRun", json!(self.dry_run))
            .build()
    }
}

impl Eviction {
    fn to_json(&self) -> Value {
        let options = self.delete_options.as_ref().map(DeleteOptions::to_json);
        Fields::default()
            .with("metadata", metadata(self.metadata.as_ref()))
            .with("deleteOptions", options.unwrap_or_default())
            .build()
    }
}

impl AccessReview {
    fn to_json(&self) -> Value {
        let spec = self.spec.clone().unwrap_or_default();
        let resource = spec.resource.map_or(Value::Null, |attributes| {
            Fields::default()
                .with("namespace", json!(attributes.namespace))
                .with("verb", json!(attributes.verb))
                .with("group", json!(attributes.group))
                .with("version", json!(attributes.version))
                .with("resource", json!(attributes.resource))
                .with("subresource", json!(attributes.subresource))
                .with("name", json!(attributes.name))
                .build()
        });
        let non_resource = spec.non_resource.map_or(
            Value::Null,
            |attributes| json!({ "path": attributes.path, "verb": attributes.verb }),
        );
        let spec = Fields::default()
            .with("resourceAttributes", resource)
            .with("nonResourceAttributes", non_resource)
            .with("user", json!(spec.user))
            .with("groups", json!(spec.groups))
            .with("uid", json!(spec.uid))
            .build();
        json!({ "metadata": metadata(self.metadata.as_ref()), "spec": spec })
    }
}

impl RulesReview {
    fn to_json(&self) -> Value {
        let namespace = self.spec.clone().unwrap_or_default().namespace;
        json!({ "metadata": metadata(self.metadata.as_ref()), "spec": {"namespace": namespace} })
    }
}

impl ConfigMap {
    fn to_json(&self) -> Value {
        Fields::default()
            .with("metadata", metadata(self.metadata.as_ref()))
            .with("data", json!(self.data))
            .with("binaryData", base64(&self.binary_data))
            .with("immutable", json!(self.immutable))
            .build()
    }
}

impl Secret {
    fn to_json(&self) -> Value {
        Fields::default()
            .with("metadata", metadata(self.metadata.as_ref()))
            .with("data", base64(&self.data))
            .with("type", json!(self.kind))
            .with("stringData", json!(self.string_data))
            .with("immutable", json!(self.immutable))
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delete_options_of_a_recent_kubectl_are_read() {
        let golden = b"k8s\0\x0a\x13\x0a\x02v1\x12\x0dDeleteOptions\x12\x00\x1a\x00\x22\x00";
        let value = decode(golden).expect("decode");
        assert_eq!(value, json!({"apiVersion": "v1", "kind": "DeleteOptions"}));
    }

    #[test]
    fn an_access_review_leaves_out_what_is_empty() {
        let attributes = ResourceAttributes {
            namespace: "default".to_owned(),
            verb: "create".to_owned(),
            resource: "vms".to_owned(),
            ..ResourceAttributes::default()
        };
        let spec = AccessReviewSpec {
            resource: Some(attributes),
            ..AccessReviewSpec::default()
        };
        let review = AccessReview {
            metadata: None,
            spec: Some(spec),
        };
        let type_meta = TypeMeta {
            api_version: "authorization.k8s.io/v1".to_owned(),
            kind: "SelfSubjectAccessReview".to_owned(),
        };
        let envelope = Unknown {
            type_meta: Some(type_meta),
            raw: review.encode_to_vec(),
        };
        let value = decode(&[MAGIC, &envelope.encode_to_vec()].concat()).expect("decode");
        let expected = json!({"namespace": "default", "verb": "create", "resource": "vms"});
        assert_eq!(value["spec"], json!({ "resourceAttributes": expected }));
    }

    #[test]
    fn a_kind_that_is_not_known_is_415() {
        let type_meta = TypeMeta {
            api_version: "v1".to_owned(),
            kind: "Service".to_owned(),
        };
        let envelope = Unknown {
            type_meta: Some(type_meta),
            raw: Vec::new(),
        };
        let refused = decode(&[MAGIC, &envelope.encode_to_vec()].concat()).expect_err("refused");
        assert_eq!(refused.reason(), "UnsupportedMediaType");
    }
}
