//! Namespace, and the rule that a namespaced object needs one that exists and isn't leaving.

use std::sync::Arc;

use async_trait::async_trait;
use godwit_apimachinery::object::{is_deleting, name};
use godwit_apimachinery::{
    Admission, Column, ColumnType, DeleteOptions, Kind, RequestContext, Status, Stored, View,
};
use serde_json::{Value, json};

use super::{resource, schema, set_label};
use crate::facts::Facts;

/// Namespaces that exist from the first start and can't be deleted.
pub(crate) const PREDEFINED: [&str; 5] = [
    "default",
    "kube-system",
    "kube-node-lease",
    "kubevirt",
    // Where the leases of nodes under maintenance are.
    "medik8s-leases",
];

pub(crate) fn kind() -> Kind {
    let phase = Column::path(
        "Status",
        ColumnType::String,
        ".status.phase",
        "Active, or leaving.",
    );
    Kind {
        short_names: vec!["ns"],
        namespaced: false,
        strategic_merge: true,
        schema: schema::parse(include_str!("schema/namespace.yaml")),
        columns: vec![phase, Column::age()],
        selectable_fields: vec!["status.phase"],
        admission: Arc::new(Rules),
        ..Kind::custom("Namespace", "namespaces", vec![View::new("", "v1")])
    }
}

/// What a namespace is completed with, by whoever makes it.
pub(crate) fn complete(object: &mut Value) {
    let name = name(object).to_owned();
    set_label(object, "kubernetes.io/metadata.name", &name);
    object["spec"] = json!({"finalizers": ["kubernetes"]});
    object["status"] = json!({"phase": "Active"});
}

struct Rules;

#[async_trait]
impl Admission for Rules {
    async fn on_create(
        &self,
        _ctx: &RequestContext,
        object: &mut Value,
    ) -> Result<Vec<String>, Status> {
        complete(object);
        Ok(Vec::new())
    }

    async fn on_update(
        &self,
        _ctx: &RequestContext,
        old: &Value,
        new: &mut Value,
    ) -> Result<Vec<String>, Status> {
        new["spec"] = old["spec"].clone();
        Ok(Vec::new())
    }

    async fn on_delete(
        &self,
        _ctx: &RequestContext,
        old: &Value,
        _options: &DeleteOptions,
    ) -> Result<Vec<String>, Status> {
        check_delete(name(old), None)?;
        Ok(Vec::new())
    }
}

/// Refuses to remove a namespace that the API needs, or that holds `content`.
pub(crate) fn check_delete(name: &str, content: Option<&str>) -> Result<(), Status> {
    if PREDEFINED.contains(&name) {
        let why = "this namespace may not be deleted";
        return Err(super::forbidden(resource::NAMESPACES, name, why));
    }
    match content {
        Some(content) => {
            let why = format!("the namespace is not empty: {content}");
            Err(Status::conflict("", resource::NAMESPACES, name, &why))
        }
        None => Ok(()),
    }
}

/// Runs before the rules of each kind: no object without its namespace, no foreign status.
pub(crate) struct Lifecycle {
    pub(crate) facts: Facts,
}

#[async_trait]
impl Admission for Lifecycle {
    async fn on_create(
        &self,
        ctx: &RequestContext,
        _object: &mut Value,
    ) -> Result<Vec<String>, Status> {
        if ctx.namespace.is_empty() || ctx.resource == resource::NAMESPACES {
            return Ok(Vec::new());
        }
        let space = self.facts.namespace(&ctx.namespace);
        check_namespace(ctx, space.as_deref().map(Stored::object))?;
        Ok(Vec::new())
    }

    async fn on_update(
        &self,
        ctx: &RequestContext,
        _old: &Value,
        _new: &mut Value,
    ) -> Result<Vec<String>, Status> {
        check_status_writer(ctx)?;
        Ok(Vec::new())
    }
}

/// Resources whose status says what the control plane knows.
const TOLD_STATUS: [&str; 4] = [
    "nodes",
    "nodemaintenances",
    "virtualmachines",
    "virtualmachineinstancemigrations",
];

/// One writer for each fact: users ask in `spec`, the services tell in `status`.
fn check_status_writer(ctx: &RequestContext) -> Result<(), Status> {
    if ctx.subresource == "status" && TOLD_STATUS.contains(&ctx.resource.as_str()) {
        let why = "its status is written by the control plane alone";
        return Err(super::forbidden(&ctx.resource, &ctx.name, why));
    }
    Ok(())
}

fn check_namespace(ctx: &RequestContext, space: Option<&Value>) -> Result<(), Status> {
    match space {
        None => Err(Status::not_found("", resource::NAMESPACES, &ctx.namespace)),
        Some(space) if is_deleting(space) => {
            let why = format!(
                "unable to create new content in namespace {} because it is being terminated",
                ctx.namespace
            );
            Err(super::forbidden(&ctx.resource, &ctx.name, &why))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_goes_when_it_is_empty() {
        assert!(check_delete("team-a", None).is_ok());
        let status = check_delete("team-a", Some("2 secrets")).unwrap_err();
        assert_eq!(status.code(), 409);
        assert!(status.message().contains("2 secrets"));
        assert_eq!(check_delete("default", None).unwrap_err().code(), 403);
    }
}
