//! Named schemas. References in them are bare names until a document rewrites them.

use serde_json::{Map, Value, json};

use super::meta;
use crate::registry::{Resource, Version};

const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an \
    object. Servers should convert recognized schemas to the latest internal value, and may \
    reject unrecognized values.";
const KIND: &str = "Kind is a string value representing the REST resource this object \
    represents. Servers may infer this from the endpoint the client submits requests to. Cannot \
    be updated. In CamelCase.";

/// The definitions of a version's kinds and lists, with the shared ones.
pub(super) fn of<'a>(versions: impl Iterator<Item = &'a Version>) -> Map<String, Value> {
    let mut all = meta::definitions().clone();
    for resource in versions.flat_map(|version| &version.resources) {
        all.insert(name(resource, resource.kind.kind), object(resource));
        all.insert(name(resource, &resource.kind.list_kind), list(resource));
    }
    all
}

/// The name of a definition, spelled as in a cluster, so that two servers' documents can merge.
pub(super) fn name(resource: &Resource, kind: &str) -> String {
    let (group, version) = (resource.view.group, resource.view.version);
    let package = match group {
        "" => "io.k8s.api.core".to_owned(),
        group if !group.contains('.') => format!("io.k8s.api.{group}"),
        group => match group.strip_suffix(".k8s.io") {
            Some(short) => format!("io.k8s.api.{}", short.split('.').next().unwrap_or(short)),
            None => group.rsplit('.').collect::<Vec<_>>().join("."),
        },
    };
    format!("{package}.{version}.{kind}")
}

/// Group, version and kind as extensions carry them.
pub(super) fn group_version_kind(resource: &Resource, kind: &str) -> Value {
    json!({ "group": resource.view.group, "kind": kind, "version": resource.view.version })
}

fn object(resource: &Resource) -> Value {
    let mut schema = resource.declared_schema().clone();
    schema["type"] = json!("object");
    let properties = &mut schema["properties"];
    properties["apiVersion"] = json!({ "type": "string", "description": API_VERSION });
    properties["kind"] = json!({ "type": "string", "description": KIND });
    properties["metadata"] = json!({
        "$ref": meta::name("ObjectMeta"),
        "description": "Standard object's metadata.",
    });
    schema["x-kubernetes-group-version-kind"] =
        json!([group_version_kind(resource, resource.kind.kind)]);
    schema
}

fn list(resource: &Resource) -> Value {
    let kind = resource.kind.kind;
    json!({
        "description": format!("{} is a list of {kind}", resource.kind.list_kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": { "type": "string", "description": API_VERSION },
            "kind": { "type": "string", "description": KIND },
            "metadata": {
                "$ref": meta::name("ListMeta"),
                "description": "Standard list metadata.",
            },
            "items": {
                "type": "array",
                "description": format!("List of {}.", resource.kind.plural),
                "items": { "$ref": name(resource, kind) },
            },
        },
        "x-kubernetes-group-version-kind": [
            group_version_kind(resource, &resource.kind.list_kind)
        ],
    })
}
