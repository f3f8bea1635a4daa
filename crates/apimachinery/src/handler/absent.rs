//! Custom resource definitions: there are none, and clients want to hear just that.
//!
//! kubectl asks for them before it sends a kind that OpenAPI doesn't know (`kubectl create -f` of
//! a review), and gives up on a 404. Discovery doesn't show them.

use axum::response::Response;
use http::{Method, StatusCode};
use serde_json::json;

use crate::connect::json_response;
use crate::path::ResourcePath;
use crate::status::Status;

const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";

/// Answers an empty list, or 404 for everything else. Whoever asks was authorized.
pub(super) fn serve(path: &ResourcePath, method: &Method) -> Result<Response, Status> {
    let names_them = path.group == GROUP && path.resource == PLURAL && path.version == "v1";
    if !names_them || *method != Method::GET {
        return Err(Status::no_such_path());
    }
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
