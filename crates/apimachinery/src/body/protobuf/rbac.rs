//! Messages of rbac.authorization.k8s.io.

use std::collections::BTreeMap;

use prost::Message;
use serde_json::{Value, json};

use super::{Fields, ObjectMeta, metadata};

/// Role and ClusterRole; only the latter has an aggregation.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Role {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(message, repeated, tag = "2")]
    rules: Vec<PolicyRule>,
    #[prost(message, optional, tag = "3")]
    aggregation_rule: Option<AggregationRule>,
}

#[derive(Clone, PartialEq, Message)]
struct PolicyRule {
    #[prost(string, repeated, tag = "1")]
    verbs: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    api_groups: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    resources: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    resource_names: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    non_resource_urls: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct AggregationRule {
    #[prost(message, repeated, tag = "1")]
    cluster_role_selectors: Vec<LabelSelector>,
}

#[derive(Clone, PartialEq, Message)]
struct LabelSelector {
    #[prost(btree_map = "string, string", tag = "1")]
    match_labels: BTreeMap<String, String>,
    #[prost(message, repeated, tag = "2")]
    match_expressions: Vec<Requirement>,
}

#[derive(Clone, PartialEq, Message)]
struct Requirement {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    operator: String,
    #[prost(string, repeated, tag = "3")]
    values: Vec<String>,
}

/// RoleBinding and ClusterRoleBinding.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Binding {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ObjectMeta>,
    #[prost(message, repeated, tag = "2")]
    subjects: Vec<Subject>,
    #[prost(message, optional, tag = "3")]
    role_ref: Option<RoleRef>,
}

#[derive(Clone, PartialEq, Message)]
struct Subject {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    api_group: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct RoleRef {
    #[prost(string, tag = "1")]
    api_group: String,
    #[prost(string, tag = "2")]
    kind: String,
    #[prost(string, tag = "3")]
    name: String,
}

impl Role {
    pub(super) fn to_json(&self) -> Value {
        let rules: Vec<Value> = self.rules.iter().map(PolicyRule::to_json).collect();
        let aggregation = self.aggregation_rule.as_ref().map(AggregationRule::to_json);
        Fields::default()
            .with("metadata", metadata(self.metadata.as_ref()))
            .with("aggregationRule", json!(aggregation))
            .with("rules", json!(rules))
            .build()
    }
}

impl PolicyRule {
    fn to_json(&self) -> Value {
        let mut rule = Fields::default()
            .with("apiGroups", json!(self.api_groups))
            .with("nonResourceURLs", json!(self.non_resource_urls))
            .with("resourceNames", json!(self.resource_names))
            .with("resources", json!(self.resources))
            .build();
        rule["verbs"] = json!(self.verbs);
        rule
    }
}

impl AggregationRule {
    fn to_json(&self) -> Value {
        let selectors: Vec<Value> = self
            .cluster_role_selectors
            .iter()
            .map(LabelSelector::to_json)
            .collect();
        json!({ "clusterRoleSelectors": selectors })
    }
}

impl LabelSelector {
    fn to_json(&self) -> Value {
        let expressions: Vec<Value> = self
            .match_expressions
            .iter()
            .map(|one| {
                Fields::default()
                    .with("key", json!(one.key))
                    .with("operator", json!(one.operator))
                    .with("values", json!(one.values))
                    .build()
            })
            .collect();
        Fields::default()
            .with("matchLabels", json!(self.match_labels))
            .with("matchExpressions", json!(expressions))
            .build()
    }
}

impl Binding {
    pub(super) fn to_json(&self) -> Value {
        let subjects: Vec<Value> = self.subjects.iter().map(Subject::to_json).collect();
        let role = self.role_ref.clone().unwrap_or_default();
        Fields::default()
            .with("metadata", metadata(self.metadata.as_ref()))
            .with("subjects", json!(subjects))
            .with(
                "roleRef",
                json!({"apiGroup": role.api_group, "kind": role.kind, "name": role.name}),
            )
            .build()
    }
}

impl Subject {
    fn to_json(&self) -> Value {
        Fields::default()
            .with("kind", json!(self.kind))
            .with("apiGroup", json!(self.api_group))
            .with("name", json!(self.name))
            .with("namespace", json!(self.namespace))
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Field numbers are from `generated.proto` of k8s.io/api/rbac/v1.
    #[test]
    fn a_role_and_a_binding_are_read() {
        let role = b"\x0a\x03\x0a\x01r\x12\x15\x0a\x03get\x12\x00\x1a\x04pods\x22\x01x\x2a\x03/ok";
        let role = Role::decode(role.as_slice()).expect("decode");
        let rule = json!({
            "apiGroups": [""], "nonResourceURLs": ["/ok"], "resourceNames": ["x"],
            "resources": ["pods"], "verbs": ["get"],
        });
        assert_eq!(
            role.to_json(),
            json!({"metadata": {"name": "r"}, "rules": [rule]})
        );
        let binding = b"\x12\x0a\x0a\x04User\x1a\x02me\x1a\x0c\x0a\x01g\x12\x04Role\x1a\x01r";
        let binding = Binding::decode(binding.as_slice()).expect("decode");
        let wanted = json!({
            "subjects": [{"kind": "User", "name": "me"}],
            "roleRef": {"apiGroup": "g", "kind": "Role", "name": "r"},
        });
        assert_eq!(binding.to_json(), wanted);
    }
}
