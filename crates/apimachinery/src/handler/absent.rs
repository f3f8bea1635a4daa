//! Custom resource definitions: there are none, and clients want to hear just that.
//!
//! kubectl asks for them before it sends a kind that OpenAPI doesn't know (`kubectl create -f` of
//! a review), and gives up on a 404. Discovery doesn't show them.

use axum::response::Response;
use http::StatusCode;
use http::request::Parts;
use serde_json::json;

use super::{access, authorize, context};
use crate::connect::json_response;
use crate::kind::Verb;
use crate::path::ResourcePath;
use crate::server::ApiServer;
use crate::status::Status;

const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";

/// Answers an empty list, or 404 for everything else.
pub(super) async fn serve(
    server: &ApiServer,
    path: &ResourcePath,
    parts: &Parts,
) -> Result<Response, Status> {
    let names_them = path.group == GROUP && path.resource == PLURAL && path.version == "v1";
    if !names_them || parts.method != http::Method::GET {
        return Err(Status::no_such_path());
    }
    let context = context(path, Verb::List, parts, false);
    authorize(server, &context.user, &access(&context, parts)).await?;
    if let Some(name) = &path.name {
        return Err(Status::not_found(GROUP, PLURAL, name));
    }
    let list = json!({
        "kind": "CustomResourceDefinitionList",
        "apiVersion": "apiextensions.k8s.io/v1",
        "metadata": { "resourceVersion": "1" },
        "items": [],
    });
    Ok(json_response(StatusCode::OK, &list))
}
