//! Who may write which role or binding: nobody grants more than they hold.

use async_trait::async_trait;
use godwit_apimachinery::object::{name, namespace};
use godwit_apimachinery::{AccessRequest, Admission, Cause, RequestContext, Status};
use serde_json::Value;

use super::check;
use crate::facts::Facts;
use crate::rbac::{GROUP, Policies, RoleRef, Rule, Snapshot, Verdict, not_held};

/// Rules of Role and ClusterRole.
pub(super) struct Roles {
    policies: Policies,
}

/// Rules of RoleBinding and ClusterRoleBinding.
pub(super) struct Bindings {
    policies: Policies,
}

impl Roles {
    pub(super) fn new(facts: &Facts) -> Self {
        let policies = facts.policies();
        Self { policies }
    }

    fn check(&self, ctx: &RequestContext, aggregates: bool, role: &Value) -> Result<(), Status> {
        let refuse = |why: &str| Err(forbidden(ctx, role, why));
        let snapshot = self.policies.now();
        let escalates = ("escalate", ctx.resource.as_str(), name(role));
        if !is_granted(&snapshot, ctx, namespace(role), escalates) {
            let not_held = |rules: &[Rule]| not_held(&snapshot, &ctx.user, namespace(role), rules);
            if let Some(why) = not_held(&Rule::list(&role["rules"])) {
                return refuse(&why);
            }
            // It may gather anything later on.
            if aggregates && not_held(&Rule::full_authority()).is_some() {
                return refuse("must have cluster-admin privileges to use the aggregationRule");
            }
        }
        judged(ctx, role, check::role(role))
    }
}

#[async_trait]
impl Admission for Roles {
    async fn on_create(
        &self,
        ctx: &RequestContext,
        object: &mut Value,
    ) -> Result<Vec<String>, Status> {
        self.check(ctx, object["aggregationRule"].is_object(), object)?;
        Ok(Vec::new())
    }

    async fn on_update(
        &self,
        ctx: &RequestContext,
        old: &Value,
        new: &mut Value,
    ) -> Result<Vec<String>, Status> {
        if !says_the_same(old, new) {
            let aggregates = [old, new]
                .iter()
                .any(|role| role["aggregationRule"].is_object());
            self.check(ctx, aggregates, new)?;
        }
        Ok(Vec::new())
    }
}

impl Bindings {
    pub(super) fn new(facts: &Facts) -> Self {
        let policies = facts.policies();
        Self { policies }
    }

    fn check(&self, ctx: &RequestContext, binding: &Value) -> Result<(), Status> {
        let snapshot = self.policies.now();
        let (role, space) = (RoleRef::of(binding), namespace(binding));
        let plural = match role.kind.as_str() {
            "Role" => "roles",
            _ => "clusterroles",
        };
        if !is_granted(&snapshot, ctx, space, ("bind", plural, &role.name)) {
            let Some(rules) = snapshot.role(&role, space) else {
                return Err(Status::not_found(GROUP, plural, &role.name));
            };
            if let Some(why) = not_held(&snapshot, &ctx.user, space, &rules) {
                return Err(forbidden(ctx, binding, &why));
            }
        }
        judged(ctx, binding, check::binding(binding))
    }
}

#[async_trait]
impl Admission for Bindings {
    async fn on_create(
        &self,
        ctx: &RequestContext,
        object: &mut Value,
    ) -> Result<Vec<String>, Status> {
        check::complete_binding(object);
        self.check(ctx, object)?;
        Ok(Vec::new())
    }

    async fn on_update(
        &self,
        ctx: &RequestContext,
        old: &Value,
        new: &mut Value,
    ) -> Result<Vec<String>, Status> {
        check::complete_binding(new);
        if says_the_same(old, new) {
            return Ok(Vec::new());
        }
        self.check(ctx, new)?;
        if old["roleRef"] != new["roleRef"] {
            let cause = Cause::invalid("roleRef", &new["roleRef"], "cannot change roleRef");
            judged(ctx, new, vec![cause])?;
        }
        Ok(Vec::new())
    }
}

/// Whether the writer may do it whatever they hold: `what` is a verb, a resource and a name.
fn is_granted(
    snapshot: &Snapshot,
    ctx: &RequestContext,
    namespace: &str,
    (verb, resource, name): (&str, &str, &str),
) -> bool {
    let access = AccessRequest {
        verb: verb.to_owned(),
        group: GROUP.to_owned(),
        version: "*".to_owned(),
        resource: resource.to_owned(),
        subresource: String::new(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        path: String::new(),
    };
    matches!(snapshot.decide(&ctx.user, &access), Verdict::Allowed(_))
}

/// Whether nothing differs but what keeps the object, so that anyone who may write it can let it go.
fn says_the_same(old: &Value, new: &Value) -> bool {
    let strip = |object: &Value| {
        let mut object = object.clone();
        let metadata = godwit_apimachinery::object::metadata_mut(&mut object);
        for kept in [
            "finalizers",
            "ownerReferences",
            "managedFields",
            "resourceVersion",
        ] {
            metadata.remove(kept);
        }
        if let Some(object) = object.as_object_mut() {
            object.remove("apiVersion");
            object.remove("kind");
        }
        object
    };
    strip(old) == strip(new)
}

fn forbidden(ctx: &RequestContext, object: &Value, why: &str) -> Status {
    let (resource, name) = (&ctx.resource, name(object));
    Status::forbidden(format!("{resource}.{GROUP} \"{name}\" is forbidden: {why}"))
        .about(GROUP, resource, name)
}

fn judged(ctx: &RequestContext, object: &Value, causes: Vec<Cause>) -> Result<(), Status> {
    if causes.is_empty() {
        return Ok(());
    }
    let kind = match ctx.resource.as_str() {
        "roles" => "Role",
        "clusterroles" => "ClusterRole",
        "rolebindings" => "RoleBinding",
        _ => "ClusterRoleBinding",
    };
    Err(Status::invalid(GROUP, kind, name(object), causes))
}
