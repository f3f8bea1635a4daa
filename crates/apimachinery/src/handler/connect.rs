//! Requests for resources that a handler answers.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Query as AxumQuery;
use axum::response::Response;
use http::Method;
use http::request::Parts;
use serde_json::Value;

use super::{access, authorize, context, not_allowed};
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
    let by = |method: &Method| verb(method, &path, &extra.verbs);
    let allowed = |method: &Method| {
        let known = by(method).is_some_and(|verb| extra.verbs.contains(&verb));
        known && extra.handler.is_some()
    };
    let Some(verb) = by(&parts.method) else {
        return Ok(not_allowed(allowed));
    };
    let dry_run = query
        .iter()
        .any(|(key, value)| key == "dryRun" && value == "All");
    let context = context(&path, verb, &parts, dry_run);
    let mut access = access(&context, parts.uri.path());
    // As it is declared, which may be longer than one word: `evacuate/cancel`.
    if let Some((_, subresource)) = extra.name.split_once('/') {
        subresource.clone_into(&mut access.subresource);
    }
    authorize(server, &context.user, &access).await?;
    let listed = extra.verbs.contains(&verb);
    let Some(handler) = extra.handler.as_ref().filter(|_| listed) else {
        return Ok(not_allowed(allowed));
    };
    let bytes = body::read(body, server.limits.body_bytes).await?;
    let body = match bytes.is_empty() {
        true => Value::Null,
        false => body::decode(body::media(&parts.headers)?, &bytes, server.limits.depth)?.value,
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

/// What the method means here. A path without a name is a list, unless it is a document of its own
/// that can only be got.
fn verb(method: &Method, path: &ResourcePath, known: &[Verb]) -> Option<Verb> {
    let lists = path.name.is_none() && !known.contains(&Verb::Get);
    match method.as_str() {
        "GET" | "HEAD" if lists => Some(Verb::List),
        "GET" | "HEAD" => Some(Verb::Get),
        "POST" => Some(Verb::Create),
        "PUT" => Some(Verb::Update),
        "PATCH" => Some(Verb::Patch),
        "DELETE" => Some(Verb::Delete),
        _ => None,
    }
}
