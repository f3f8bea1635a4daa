//! Reviews: what may I do, and who am I. `kubectl auth can-i` and `kubectl auth whoami` ask.

use std::sync::Arc;

use async_trait::async_trait;
use axum::response::Response;
use godwit_apimachinery::{
    AccessRequest, Connect, ConnectRequest, ExtraResource, RequestContext, Status, json_response,
};
use http::StatusCode;
use serde_json::{Value, json};

use crate::authorize;

const AUTHORIZATION: &str = "authorization.k8s.io";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// The three reviews of oneself.
pub(crate) fn extras() -> Vec<ExtraResource> {
    vec![
        declare(
            AUTHORIZATION,
            "selfsubjectaccessreviews",
            "SelfSubjectAccessReview",
            access,
        ),
        declare(
            AUTHORIZATION,
            "selfsubjectrulesreviews",
            "SelfSubjectRulesReview",
            rules,
        ),
        declare(
            AUTHENTICATION,
            "selfsubjectreviews",
            "SelfSubjectReview",
            whoami,
        ),
    ]
}

/// From the request and its body's `spec` to the answer's `status`.
type Review = fn(&RequestContext, &Value) -> Result<Value, Status>;

fn declare(
    group: &'static str,
    name: &'static str,
    kind: &'static str,
    review: Review,
) -> ExtraResource {
    ExtraResource {
        kind,
        namespaced: false,
        handler: Some(Arc::new(Handler { kind, review })),
        ..ExtraResource::new(group, "v1", name)
    }
}

struct Handler {
    kind: &'static str,
    review: Review,
}

#[async_trait]
impl Connect for Handler {
    async fn call(
        &self,
        ctx: &RequestContext,
        request: ConnectRequest,
    ) -> Result<Response, Status> {
        let spec = &request.body["spec"];
        let status = (self.review)(ctx, spec)?;
        let mut answer = json!({
            "kind": self.kind,
            "apiVersion": format!("{}/{}", ctx.group, ctx.version),
            "metadata": {"creationTimestamp": null},
            "status": status,
        });
        if spec.is_object() {
            answer["spec"] = spec.clone();
        }
        Ok(json_response(StatusCode::CREATED, &answer))
    }
}

fn access(ctx: &RequestContext, spec: &Value) -> Result<Value, Status> {
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if resource.is_object() == path.is_object() {
        return Err(Status::bad_request(
            "exactly one of spec.resourceAttributes and spec.nonResourceAttributes is needed",
        ));
    }
    let request = match resource.is_object() {
        true => AccessRequest {
            verb: text(resource, "verb"),
            group: text(resource, "group"),
            version: text(resource, "version"),
            resource: text(resource, "resource"),
            subresource: text(resource, "subresource"),
            namespace: text(resource, "namespace"),
            name: text(resource, "name"),
            path: String::new(),
        },
        false => AccessRequest {
            verb: text(path, "verb"),
            group: String::new(),
            version: String::new(),
            resource: String::new(),
            subresource: String::new(),
            namespace: String::new(),
            name: String::new(),
            path: text(path, "path"),
        },
    };
    Ok(json!({"allowed": authorize::allowed(&ctx.user, &request)}))
}

fn rules(ctx: &RequestContext, _spec: &Value) -> Result<Value, Status> {
    let rules: Vec<Value> = authorize::rules(&ctx.user)
        .into_iter()
        .map(|rule| {
            json!({
                "verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources,
            })
        })
        .collect();
    let paths = json!([{"verbs": ["get"], "nonResourceURLs": ["*"]}]);
    Ok(json!({"resourceRules": rules, "nonResourceRules": paths, "incomplete": false}))
}

fn whoami(ctx: &RequestContext, _spec: &Value) -> Result<Value, Status> {
    let mut user = json!({"username": ctx.user.name, "groups": ctx.user.groups});
    if !ctx.user.uid.is_empty() {
        user["uid"] = json!(ctx.user.uid);
    }
    Ok(json!({"userInfo": user}))
}
