//! Resources that no store backs: they stand in discovery and a handler answers them.
//!
//! Self reviews, `pods/eviction`, `subresources.kubevirt.io` and the like are declared so.

use std::sync::Arc;

use async_trait::async_trait;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde_json::Value;

use crate::context::RequestContext;
use crate::kind::Verb;
use crate::status::Status;

/// A resource or subresource answered by a handler.
pub struct ExtraResource {
    /// Group of the path; empty for core.
    pub group: &'static str,
    /// Version of the path.
    pub version: &'static str,
    /// `selfsubjectaccessreviews`, or with a subresource `pods/eviction`.
    pub name: &'static str,
    /// The word in `kind:` of what is sent and answered, for example `Eviction`.
    pub kind: &'static str,
    /// Group of that kind, where it differs from the path's (`policy` for `pods/eviction`).
    pub kind_group: &'static str,
    /// Version of that kind.
    pub kind_version: &'static str,
    /// Whether the path has a namespace.
    pub namespaced: bool,
    /// What discovery says and what is let through.
    pub verbs: Vec<Verb>,
    /// `None` only lists it in discovery; requests are answered 405.
    pub handler: Option<Arc<dyn Connect>>,
}

impl ExtraResource {
    /// A resource whose kind stands in the group and version of its path.
    pub fn new(group: &'static str, version: &'static str, name: &'static str) -> Self {
        Self {
            group,
            version,
            name,
            kind: "",
            kind_group: group,
            kind_version: version,
            namespaced: true,
            verbs: vec![Verb::Create],
            handler: None,
        }
    }
}

/// Answers requests for an [`ExtraResource`]; the caller is already authorized.
#[async_trait]
pub trait Connect: Send + Sync + 'static {
    /// Handles one request.
    async fn call(&self, ctx: &RequestContext, request: ConnectRequest)
    -> Result<Response, Status>;
}

/// A request for an [`ExtraResource`].
#[derive(Debug)]
pub struct ConnectRequest {
    /// Method, URI, headers and extensions as they came (an upgrade handle is among the latter).
    pub parts: http::request::Parts,
    /// What follows the subresource in the path, without a leading slash; mostly empty.
    pub subpath: String,
    /// Query parameters, decoded.
    pub query: Vec<(String, String)>,
    /// The body, from JSON, YAML or protobuf; `Null` if there is none.
    pub body: Value,
}

/// A JSON answer.
pub fn json_response(code: StatusCode, body: &Value) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-cache, private"),
    ];
    (code, headers, body.to_string() + "\n").into_response()
}
