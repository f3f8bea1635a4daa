//! Discovery documents. They never change while the server runs, and never ask the store.

use serde_json::{Value, json};

use crate::connect::ExtraResource;
use crate::kind::{Verb, api_version};
use crate::registry::{Group, Registry, Resource, Version};

/// Verbs of `/status`.
const STATUS_VERBS: [&str; 3] = ["get", "patch", "update"];

/// `/api`
pub(crate) fn core_versions(registry: &Registry) -> Value {
    let versions = registry
        .group("")
        .map(|group| group.versions.as_slice())
        .unwrap_or_default();
    let versions: Vec<&str> = versions.iter().map(|version| version.name).collect();
    json!({
        "kind": "APIVersions",
        "versions": versions,
        "serverAddressByClientCIDRs": [],
    })
}

/// `/apis`
pub(crate) fn group_list(registry: &Registry) -> Value {
    let groups = registry
        .groups
        .iter()
        .filter(|group| !group.name.is_empty());
    let groups: Vec<Value> = groups.map(group_versions).collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// `/apis/G`
pub(crate) fn group(group: &Group) -> Value {
    let mut out = group_versions(group);
    out["kind"] = json!("APIGroup");
    out["apiVersion"] = json!("v1");
    out
}

fn group_versions(group: &Group) -> Value {
    let entry = |version: &Version| {
        let full = api_version(group.name, version.name);
        json!({ "groupVersion": full, "version": version.name })
    };
    let versions: Vec<Value> = group.versions.iter().map(entry).collect();
    json!({ "name": group.name, "preferredVersion": versions[0], "versions": versions })
}

/// `/apis/G/V`
pub(crate) fn resource_list(group: &Group, version: &Version) -> Value {
    let mut resources = Vec::new();
    for resource in &version.resources {
        resources.push(entry(resource));
        if resource.kind.has_status {
            resources.push(json!({
                "name": format!("{}/status", resource.kind.plural),
                "singularName": "",
                "namespaced": resource.kind.namespaced,
                "kind": resource.kind.kind,
                "verbs": STATUS_VERBS,
            }));
        }
    }
    resources.extend(version.extras.iter().map(|extra| extra_entry(extra)));
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": api_version(group.name, version.name),
        "resources": resources,
    })
}

fn entry(resource: &Resource) -> Value {
    let kind = &resource.kind;
    let mut out = json!({
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": words(&kind.verbs),
    });
    add_nicknames(&mut out, resource);
    out
}

/// Short names and categories stand in one group alone: in several, clients warn that they are
/// ambiguous, and `get all` shows objects more than once.
fn add_nicknames(entry: &mut Value, resource: &Resource) {
    let kind = &resource.kind;
    if kind.views[0].group != resource.view.group {
        return;
    }
    if !kind.short_names.is_empty() {
        entry["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        entry["categories"] = json!(kind.categories);
    }
}

fn extra_entry(extra: &ExtraResource) -> Value {
    let mut out = json!({
        "name": extra.name,
        "singularName": singular(extra),
        "namespaced": extra.namespaced,
        "kind": extra.kind,
        "verbs": words(&extra.verbs),
    });
    // kubectl drain looks for the group and version of Eviction here.
    if (extra.kind_group, extra.kind_version) != (extra.group, extra.version) {
        out["group"] = json!(extra.kind_group);
        out["version"] = json!(extra.kind_version);
    }
    out
}

fn singular(extra: &ExtraResource) -> String {
    if extra.name.contains('/') {
        String::new()
    } else {
        extra.kind.to_lowercase()
    }
}

/// `/api` and `/apis` in aggregated form, `version` being that of the form.
pub(crate) fn aggregated(registry: &Registry, core: bool, version: &str) -> Value {
    let groups = registry
        .groups
        .iter()
        .filter(|group| group.name.is_empty() == core);
    let items: Vec<Value> = groups.map(aggregated_group).collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_group(group: &Group) -> Value {
    let version = |version: &Version| {
        json!({
            "version": version.name,
            "resources": aggregated_resources(version),
            "freshness": "Current",
        })
    };
    let mut metadata = json!({ "creationTimestamp": null });
    if !group.name.is_empty() {
        metadata["name"] = json!(group.name);
    }
    let versions: Vec<Value> = group.versions.iter().map(version).collect();
    json!({ "metadata": metadata, "versions": versions })
}

fn aggregated_resources(version: &Version) -> Vec<Value> {
    let mut out: Vec<Value> = version
        .resources
        .iter()
        .map(|r| aggregated_resource(r))
        .collect();
    for extra in &version.extras {
        let kind = response_kind(extra.kind_group, extra.kind_version, extra.kind);
        let Some((parent, subresource)) = extra.name.split_once('/') else {
            out.push(json!({
                "resource": extra.name,
                "responseKind": kind,
                "scope": scope(extra.namespaced),
                "singularResource": singular(extra),
                "verbs": words(&extra.verbs),
            }));
            continue;
        };
        let at = out
            .iter()
            .position(|entry| entry["resource"] == parent)
            .unwrap_or_else(|| {
                // The resource itself is not served here: its parent is there in name only.
                out.push(json!({
                    "resource": parent,
                    "responseKind": response_kind("", "", ""),
                    "scope": scope(extra.namespaced),
                    "singularResource": "",
                    "verbs": [],
                }));
                out.len() - 1
            });
        let child = json!({
            "subresource": subresource,
            "responseKind": kind,
            "verbs": words(&extra.verbs),
        });
        let subresources = &mut out[at]["subresources"];
        match subresources.as_array_mut() {
            Some(list) => list.push(child),
            None => *subresources = json!([child]),
        }
    }
    out
}

fn aggregated_resource(resource: &Resource) -> Value {
    let (kind, view) = (&resource.kind, &resource.view);
    let response = response_kind(view.group, view.version, kind.kind);
    let mut out = json!({
        "resource": kind.plural,
        "responseKind": response,
        "scope": scope(kind.namespaced),
        "singularResource": kind.singular,
        "verbs": words(&kind.verbs),
    });
    add_nicknames(&mut out, resource);
    if kind.has_status {
        out["subresources"] = json!([
            { "subresource": "status", "responseKind": response, "verbs": STATUS_VERBS }
        ]);
    }
    out
}

fn response_kind(group: &str, version: &str, kind: &str) -> Value {
    json!({ "group": group, "version": version, "kind": kind })
}

fn scope(namespaced: bool) -> &'static str {
    if namespaced { "Namespaced" } else { "Cluster" }
}

fn words(verbs: &[Verb]) -> Vec<&'static str> {
    verbs.iter().map(|verb| verb.as_str()).collect()
}
