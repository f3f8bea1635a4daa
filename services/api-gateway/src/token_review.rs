//! Whose token is this? `TokenReview`, for those who may create one.

use std::sync::Arc;

use async_trait::async_trait;
use axum::response::Response;
use godwit_apimachinery::{
    Connect, ConnectRequest, ExtraResource, RequestContext, Status, json_response,
};
use http::StatusCode;
use serde_json::{Value, json};
use tracing::info;

use crate::auth::{Bearers, authenticated};

/// What a caller is told of a token that isn't believed; why is for the log.
const INVALID: &str = "invalid bearer token";

/// Declares `tokenreviews`.
pub(crate) fn extra(bearers: &Arc<Bearers>) -> ExtraResource {
    ExtraResource {
        kind: "TokenReview",
        namespaced: false,
        handler: Some(Arc::new(Handler(Arc::clone(bearers)))),
        ..ExtraResource::new("authentication.k8s.io", "v1", "tokenreviews")
    }
}

struct Handler(Arc<Bearers>);

#[async_trait]
impl Connect for Handler {
    async fn call(
        &self,
        _ctx: &RequestContext,
        request: ConnectRequest,
    ) -> Result<Response, Status> {
        let mut review = request.body;
        let spec = &review["spec"];
        let token = spec["token"].as_str().filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| {
            Status::bad_request("token is required for TokenReview in authentication")
        })?;
        let status = self.status(token, &spec["audiences"]).await;
        review["apiVersion"] = json!("authentication.k8s.io/v1");
        review["kind"] = json!("TokenReview");
        if !review["metadata"].is_object() {
            review["metadata"] = json!({});
        }
        review["metadata"]["creationTimestamp"] = Value::Null;
        review["status"] = status;
        Ok(json_response(StatusCode::CREATED, &review))
    }
}

impl Handler {
    async fn status(&self, token: &str, audiences: &Value) -> Value {
        let user = match self.0.user(token).await {
            Ok(user) => authenticated(user),
            Err(why) => {
                info!(%why, "a token under review is not believed");
                return json!({"user": {}, "error": INVALID});
            }
        };
        // Every token that we believe is meant for all of our audiences.
        let ours = self.0.audiences();
        let asked: Vec<&str> = audiences
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let common: Vec<&str> = asked
            .iter()
            .copied()
            .filter(|name| ours.iter().any(|ours| ours == name))
            .collect();
        if !asked.is_empty() && common.is_empty() {
            return json!({"user": {}, "error": INVALID});
        }
        let mut status = json!({"authenticated": true, "user": {
            "username": user.name, "groups": user.groups,
        }});
        if !user.uid.is_empty() {
            status["user"]["uid"] = json!(user.uid);
        }
        if !user.extra.is_empty() {
            status["user"]["extra"] = json!(user.extra);
        }
        if !common.is_empty() {
            status["audiences"] = json!(common);
        }
        status
    }
}
