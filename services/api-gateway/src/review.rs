//! Reviews: what may I or somebody else do, and who am I. `kubectl auth can-i` and
//! `kubectl auth whoami` ask.

use std::sync::Arc;

use async_trait::async_trait;
use axum::response::Response;
use godwit_apimachinery::{
    AccessRequest, Authorizer, Cause, Connect, ConnectRequest, Decision, ExtraResource, Realm,
    RequestContext, Status, UserInfo, json_response,
};
use http::StatusCode;
use serde_json::{Value, json};

use crate::rbac::{Policies, Rule, Verdict};

const AUTHORIZATION: &str = "authorization.k8s.io";
const AUTHENTICATION: &str = "authentication.k8s.io";
const SELF_ACCESS: &str = "SelfSubjectAccessReview";

/// All reviews.
pub(crate) fn extras(policies: &Policies, authorizer: &Arc<dyn Authorizer>) -> Vec<ExtraResource> {
    let declare = |group, name, kind, review| ExtraResource {
        kind,
        namespaced: false,
        handler: Some(Arc::new(Handler {
            kind,
            review,
            policies: policies.clone(),
            authorizer: Arc::clone(authorizer),
        })),
        ..ExtraResource::new(group, "v1", name)
    };
    let authorization = |name, kind, review: Review| declare(AUTHORIZATION, name, kind, review);
    let local = authorization(
        "localsubjectaccessreviews",
        "LocalSubjectAccessReview",
        of_subject_here,
    );
    vec![
        ExtraResource {
            namespaced: true,
            ..local
        },
        authorization("selfsubjectaccessreviews", SELF_ACCESS, of_self),
        authorization("selfsubjectrulesreviews", "SelfSubjectRulesReview", rules),
        authorization("subjectaccessreviews", "SubjectAccessReview", of_subject),
        declare(
            AUTHENTICATION,
            "selfsubjectreviews",
            "SelfSubjectReview",
            whoami,
        ),
    ]
}

/// What a review is answered from.
struct Asked<'a> {
    ctx: &'a RequestContext,
    policies: &'a Policies,
    kind: &'static str,
    spec: &'a Value,
}

/// From what is asked to the answer's `status`.
type Review = fn(&Asked<'_>) -> Result<Value, Status>;

struct Handler {
    kind: &'static str,
    review: Review,
    policies: Policies,
    /// Knows what the users of a cluster may do, which our own rules don't.
    authorizer: Arc<dyn Authorizer>,
}

#[async_trait]
impl Connect for Handler {
    async fn call(
        &self,
        ctx: &RequestContext,
        request: ConnectRequest,
    ) -> Result<Response, Status> {
        let spec = &request.body["spec"];
        let asked = Asked {
            ctx,
            policies: &self.policies,
            kind: self.kind,
            spec,
        };
        let status = match (self.kind, ctx.user.realm) {
            (SELF_ACCESS, Realm::Cluster) => self.of_clusters_user(&asked).await?,
            (_, Realm::Own | Realm::Cluster) => (self.review)(&asked)?,
        };
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

impl Handler {
    async fn of_clusters_user(&self, asked: &Asked<'_>) -> Result<Value, Status> {
        let access = access(asked)?;
        match self.authorizer.authorize(&asked.ctx.user, &access).await {
            Decision::Allow => Ok(json!({"allowed": true})),
            Decision::Deny(why) => Ok(json!({"allowed": false, "reason": why})),
            Decision::Unknown(why) => Err(Status::unavailable(why)),
        }
    }
}

fn of_self(asked: &Asked<'_>) -> Result<Value, Status> {
    let access = access(asked)?;
    Ok(decision(asked, &asked.ctx.user, &access))
}

fn of_subject(asked: &Asked<'_>) -> Result<Value, Status> {
    let access = access(asked)?;
    Ok(decision(asked, &subject(asked)?, &access))
}

fn of_subject_here(asked: &Asked<'_>) -> Result<Value, Status> {
    let access = access(asked)?;
    if access.resource.is_empty() {
        let why = "disallowed on this kind of request";
        return Err(invalid(asked, "nonResourceAttributes", why));
    }
    if access.namespace != asked.ctx.namespace {
        let field = "resourceAttributes.namespace";
        return Err(invalid(asked, field, "must match metadata.namespace"));
    }
    Ok(decision(asked, &subject(asked)?, &access))
}

fn decision(asked: &Asked<'_>, user: &UserInfo, access: &AccessRequest) -> Value {
    match asked.policies.now().decide(user, access) {
        Verdict::Allowed(why) if why.is_empty() => json!({"allowed": true}),
        Verdict::Allowed(why) => json!({"allowed": true, "reason": why}),
        Verdict::Denied(why) if why.is_empty() => json!({"allowed": false}),
        Verdict::Denied(why) => json!({"allowed": false, "reason": why}),
    }
}

fn access(asked: &Asked<'_>) -> Result<AccessRequest, Status> {
    let spec = asked.spec;
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    match (resource.is_object(), path.is_object()) {
        (true, true) => {
            let why = "cannot be specified in combination with resourceAttributes";
            return Err(invalid(asked, "nonResourceAttributes", why));
        }
        (false, false) => {
            let why = "exactly one of nonResourceAttributes or resourceAttributes must be \
                       specified";
            return Err(invalid(asked, "resourceAttributes", why));
        }
        (true, false) | (false, true) => {}
    }
    let text = |key: &str| text(resource, key);
    Ok(match resource.is_object() {
        true => AccessRequest {
            verb: text("verb"),
            group: text("group"),
            version: text("version"),
            resource: text("resource"),
            subresource: text("subresource"),
            namespace: text("namespace"),
            name: text("name"),
            path: String::new(),
        },
        false => AccessRequest {
            verb: path["verb"].as_str().unwrap_or_default().to_owned(),
            path: path["path"].as_str().unwrap_or_default().to_owned(),
            ..AccessRequest::default()
        },
    })
}

/// Whom the review is about.
fn subject(asked: &Asked<'_>) -> Result<UserInfo, Status> {
    let spec = asked.spec;
    let groups = spec["groups"].as_array().into_iter().flatten();
    let user = UserInfo {
        name: text(spec, "user"),
        groups: groups
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        uid: text(spec, "uid"),
        extra: serde_json::from_value(spec["extra"].clone()).unwrap_or_default(),
        // What may be asked here is what our own rules say.
        realm: Realm::Own,
    };
    if user.name.is_empty() && user.groups.is_empty() {
        let why = "at least one of user or group must be specified";
        return Err(invalid(asked, "user", why));
    }
    Ok(user)
}

fn text(object: &Value, key: &str) -> String {
    object[key].as_str().unwrap_or_default().to_owned()
}

/// What is wrong with a field of `spec`, a dotted path.
fn invalid(asked: &Asked<'_>, field: &str, why: &str) -> Status {
    let value = asked.spec.pointer(&format!("/{}", field.replace('.', "/")));
    let value = value.unwrap_or(&Value::Null);
    let cause = Cause::invalid(&format!("spec.{field}"), value, why);
    Status::invalid(AUTHORIZATION, asked.kind, "", vec![cause])
}

fn rules(asked: &Asked<'_>) -> Result<Value, Status> {
    let namespace = asked.spec["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let snapshot = asked.policies.now();
    let held = snapshot.held(&asked.ctx.user, namespace);
    let all = Rule::full_authority();
    let mine = match held.all {
        true => all.iter().collect(),
        false => held.rules,
    };
    let (paths, resources): (Vec<&Rule>, Vec<&Rule>) =
        mine.into_iter().partition(|rule| rule.resources.is_empty());
    let mut status = json!({
        "resourceRules": resources, "nonResourceRules": paths, "incomplete": false,
    });
    if asked.ctx.user.realm == Realm::Cluster {
        status["incomplete"] = json!(true);
        status["evaluationError"] = json!("the cluster knows what its users may do");
    } else if !held.errors.is_empty() {
        status["incomplete"] = json!(true);
        status["evaluationError"] = json!(held.errors.join(", "));
    }
    Ok(status)
}

fn whoami(asked: &Asked<'_>) -> Result<Value, Status> {
    let who = &asked.ctx.user;
    let mut user = json!({"username": who.name, "groups": who.groups});
    if !who.uid.is_empty() {
        user["uid"] = json!(who.uid);
    }
    if !who.extra.is_empty() {
        user["extra"] = json!(who.extra);
    }
    Ok(json!({"userInfo": user}))
}
