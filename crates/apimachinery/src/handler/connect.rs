//! Requests for resources that a handler answers.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Query as AxumQuery;
use axum::response::Response;
use http::Method;
use http::request::Parts;
use serde_json::Value;

use super::{access, authorize, context};
use crate::body;
use crate::connect::{ConnectRequest, ExtraResource};
use crate::kind::Verb;
use crate::path::ResourcePath;
use crate::server::ApiServer;
use crate::status::Status;

/// Checks, reads the body, and hands over.
pub(super) async fn serve(
    server: &ApiServer,
    extra: &Arc<ExtraResource>,
    path: ResourcePath,
    request: (Parts, Body),
) -> Result<Response, Status> {
    let (parts, body) = request;
    if path.namespace.is_some() != extra.namespaced {
        return Err(Status::no_such_path());
    }
    let AxumQuery(query) = AxumQuery::<Vec<(String, String)>>::try_from_uri(&parts.uri)
        .map_err(|error| Status::bad_request(format!("query parameters: {error}")))?;
    let verb = verb(&parts.method, &path, &extra.verbs)?;
    let dry_run = query
        .iter()
        .any(|(key, value)| key == "dryRun" && value == "All");
    let context = context(&path, verb, &parts, dry_run);
    authorize(server, &context.user, &access(&context, &parts)).await?;
    let allowed = extra.verbs.contains(&verb);
    let Some(handler) = extra.handler.as_ref().filter(|_| allowed) else {
        return Err(Status::method_not_allowed());
    };
    let bytes = body::read(body, server.limits.body_bytes).await?;
    let body = match bytes.is_empty() {
        true => Value::Null,
        false => body::decode(body::media(&parts.headers)?, &bytes)?.value,
    };
    handler
        .call(
            &context,
            ConnectRequest {
                parts,
                subpath: path.subpath,
                query,
                body,
            },
        )
        .await
}

/// A path without a name is a list, unless it is a document of its own that can only be got.
fn verb(method: &Method, path: &ResourcePath, known: &[Verb]) -> Result<Verb, Status> {
    let lists = path.name.is_none() && !known.contains(&Verb::Get);
    match method.as_str() {
        "GET" | "HEAD" if lists => Ok(Verb::List),
        "GET" | "HEAD" => Ok(Verb::Get),
        "POST" => Ok(Verb::Create),
        "PUT" => Ok(Verb::Update),
        "PATCH" => Ok(Verb::Patch),
        "DELETE" => Ok(Verb::Delete),
        _ => Err(Status::method_not_allowed()),
    }
}
