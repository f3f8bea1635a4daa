//! From a request to its answer: who, what, may they, and then one handler.

mod absent;
mod call;
mod connect;
mod create;
mod delete;
mod list;
mod patch;
mod present;
mod update;
mod watch;
mod write;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, header};
use jiff::Timestamp;

use crate::context::{AccessRequest, Decision, RequestContext, UserInfo};
use crate::kind::Verb;
use crate::negotiate;
use crate::path::{self, ResourcePath, Target};
use crate::query::Query;
use crate::registry::Resource;
use crate::server::ApiServer;
use crate::status::Status;
use call::Call;
pub use create::generated;

/// Answers one request; failures become `Status` objects.
pub(crate) async fn serve(server: Arc<ApiServer>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let target = path::parse(parts.uri.path());
    let answer = if let Target::Resource(path) = target {
        resource(&server, path, parts, body).await
    } else {
        fixed(&server, &target, &parts).await
    };
    let mut response = answer.unwrap_or_else(IntoResponse::into_response);
    let headers = response.headers_mut();
    if !headers.contains_key(header::CACHE_CONTROL) {
        let value = HeaderValue::from_static("no-cache, private");
        headers.insert(header::CACHE_CONTROL, value);
    }
    response
}

/// Discovery, OpenAPI and the version.
async fn fixed(server: &ApiServer, target: &Target, parts: &Parts) -> Result<Response, Status> {
    let access = AccessRequest {
        verb: parts.method.as_str().to_lowercase(),
        group: String::new(),
        version: String::new(),
        resource: String::new(),
        subresource: String::new(),
        namespace: String::new(),
        name: String::new(),
        path: parts.uri.path().to_owned(),
    };
    authorize(server, &user(parts), &access).await?;
    if parts.method != Method::GET && parts.method != Method::HEAD {
        return Err(match *target == Target::Nothing {
            true => Status::no_such_path(),
            false => Status::method_not_allowed(),
        });
    }
    let (documents, headers) = (&server.documents, &parts.headers);
    let found = match target {
        Target::Version => Some(documents.version(headers)),
        Target::CoreRoot => Some(documents.root(true, headers)),
        Target::GroupsRoot => Some(documents.root(false, headers)),
        Target::Group(group) => documents.group(group, headers),
        Target::GroupVersion(group, version) => {
            documents.resources(&(group.clone(), version.clone()), headers)
        }
        Target::OpenApiV2 => Some(documents.openapi_v2(headers)),
        Target::OpenApiV3Root => Some(documents.openapi_v3_root(headers)),
        Target::OpenApiV3(group, version) => documents.openapi_v3(
            &(group.clone(), version.clone()),
            headers,
            parts.uri.query(),
        ),
        Target::Resource(_) | Target::Nothing => None,
    };
    found.ok_or_else(Status::no_such_path)
}

async fn resource(
    server: &Arc<ApiServer>,
    path: ResourcePath,
    parts: Parts,
    body: Body,
) -> Result<Response, Status> {
    let extra_name = match path.subresource.as_str() {
        "" => path.resource.clone(),
        subresource => format!("{}/{subresource}", path.resource),
    };
    let registry = &server.registry;
    let longer = format!("{extra_name}/{}", path.subpath);
    let extra = |name: &str| registry.extra(&path.group, &path.version, name);
    if let Some(extra) = extra(&longer).or_else(|| extra(&extra_name)) {
        return connect::serve(server, &Arc::clone(extra), path, (parts, body)).await;
    }
    let found = registry.resource(&path.group, &path.version, &path.resource);
    let Some(resource) = found.map(Arc::clone) else {
        return absent::serve(server, &path, &parts).await;
    };
    check_place(&resource, &path)?;
    let query = Query::parse(&parts.uri)?;
    let verb = verb(&resource, &path, &parts.method, &query)?;
    let context = context(&path, verb, &parts, query.dry_run);
    authorize(server, &context.user, &access(&context, &parts)).await?;
    let mut call = Call {
        server: Arc::clone(server),
        format: negotiate::format(&parts.headers)?,
        warnings: resource.view.deprecated.iter().cloned().collect(),
        resource,
        namespace: path.namespace,
        context,
        query,
    };
    let answer = dispatch(&mut call, &parts.headers, body).await;
    let mut response = answer.unwrap_or_else(IntoResponse::into_response);
    add_warnings(&mut response, &call.warnings);
    Ok(response)
}

async fn dispatch(call: &mut Call, headers: &HeaderMap, body: Body) -> Result<Response, Status> {
    let reads = Verb::READ.contains(&call.context.verb);
    let bytes = match reads {
        true => Bytes::new(),
        false => crate::body::read(body, call.server.limits.body_bytes).await?,
    };
    match call.context.verb {
        Verb::Get => call.get().await,
        Verb::List => list::serve(call).await,
        Verb::Watch => watch::serve(call).await,
        Verb::Create => create::serve(call, headers, &bytes).await,
        Verb::Update => update::serve(call, headers, &bytes).await,
        Verb::Patch => patch::serve(call, headers, &bytes).await,
        Verb::Delete => delete::one(call, headers, &bytes).await,
        Verb::DeleteCollection => delete::many(call, headers, &bytes).await,
    }
}

/// 404 where the path has a namespace and the kind has none, or a subresource it doesn't have.
fn check_place(resource: &Resource, path: &ResourcePath) -> Result<(), Status> {
    let is_namespace_itself = path.namespace == path.name && path.resource == "namespaces";
    let misplaced = path.namespace.is_some() && !resource.kind.namespaced && !is_namespace_itself;
    let nameless = path.name.is_some() && path.namespace.is_none() && resource.kind.namespaced;
    let known = match path.subresource.as_str() {
        "" => true,
        "status" => resource.kind.has_status && path.subpath.is_empty(),
        _ => false,
    };
    if misplaced || nameless || !known {
        return Err(Status::no_such_path());
    }
    Ok(())
}

fn verb(
    resource: &Resource,
    path: &ResourcePath,
    method: &Method,
    query: &Query,
) -> Result<Verb, Status> {
    let single = path.name.is_some();
    let status = !path.subresource.is_empty();
    let verb = match (method.as_str(), single) {
        ("GET" | "HEAD", true) => Verb::Get,
        ("GET" | "HEAD", false) if query.watch => Verb::Watch,
        ("GET" | "HEAD", false) => Verb::List,
        ("POST", false) => Verb::Create,
        ("PUT", true) => Verb::Update,
        ("PATCH", true) => Verb::Patch,
        ("DELETE", true) if !status => Verb::Delete,
        ("DELETE", false) => Verb::DeleteCollection,
        _ => return Err(Status::method_not_allowed()),
    };
    let everywhere = resource.kind.namespaced && path.namespace.is_none();
    if everywhere && !matches!(verb, Verb::List | Verb::Watch) {
        return Err(Status::method_not_allowed());
    }
    if !status && !resource.kind.verbs.contains(&verb) {
        return Err(Status::method_not_allowed());
    }
    Ok(verb)
}

fn context(path: &ResourcePath, verb: Verb, parts: &Parts, dry_run: bool) -> RequestContext {
    let agent = parts
        .headers
        .get(header::USER_AGENT)
        .and_then(|value| value.to_str().ok());
    RequestContext {
        user: user(parts),
        verb,
        group: path.group.clone(),
        version: path.version.clone(),
        resource: path.resource.clone(),
        subresource: path.subresource.clone(),
        namespace: path.namespace.clone().unwrap_or_default(),
        name: path.name.clone().unwrap_or_default(),
        dry_run,
        now: Timestamp::now(),
        user_agent: agent.unwrap_or_default().to_owned(),
    }
}

fn user(parts: &Parts) -> UserInfo {
    let user = parts
        .extensions
        .get::<UserInfo>()
        .cloned()
        .unwrap_or_default();
    match user.name.as_str() {
        "" => UserInfo {
            name: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            ..user
        },
        _ => user,
    }
}

fn access(context: &RequestContext, parts: &Parts) -> AccessRequest {
    AccessRequest {
        verb: context.verb.as_str().to_owned(),
        group: context.group.clone(),
        version: context.version.clone(),
        resource: context.resource.clone(),
        subresource: context.subresource.clone(),
        namespace: context.namespace.clone(),
        name: context.name.clone(),
        path: parts.uri.path().to_owned(),
    }
}

/// Asks the authorizer; a refusal is spelled as kube-apiserver spells it.
async fn authorize(
    server: &ApiServer,
    user: &UserInfo,
    access: &AccessRequest,
) -> Result<(), Status> {
    let why = match server.authorizer.authorize(user, access).await {
        Decision::Allow => return Ok(()),
        Decision::Deny(why) => why,
    };
    let mut message = if access.resource.is_empty() {
        let path = &access.path;
        format!(
            "forbidden: User \"{}\" cannot {} path \"{path}\"",
            user.name, access.verb
        )
    } else {
        denied(user, access)
    };
    if !why.is_empty() {
        message = format!("{message}: {why}");
    }
    Err(Status::forbidden(message).about(&access.group, &access.resource, &access.name))
}

fn denied(user: &UserInfo, access: &AccessRequest) -> String {
    let resource = match access.subresource.as_str() {
        "" => access.resource.clone(),
        subresource => format!("{}/{subresource}", access.resource),
    };
    let subject = match (access.group.as_str(), access.name.as_str()) {
        ("", "") => access.resource.clone(),
        ("", name) => format!("{} \"{name}\"", access.resource),
        (group, "") => format!("{}.{group}", access.resource),
        (group, name) => format!("{}.{group} \"{name}\"", access.resource),
    };
    let place = match access.namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace \"{namespace}\""),
    };
    format!(
        "{subject} is forbidden: User \"{}\" cannot {} resource \"{resource}\" in API group \
         \"{}\" {place}",
        user.name, access.verb, access.group,
    )
}

/// Most warnings in one answer; kube-apiserver also cuts them off, at 4 KiB.
const WARNINGS_MAX: usize = 32;

fn add_warnings(response: &mut Response, warnings: &[String]) {
    for warning in warnings.iter().take(WARNINGS_MAX) {
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        let text: String = warning.chars().map(printable).collect();
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        let header = HeaderValue::from_bytes(format!("299 - \"{text}\"").as_bytes());
        if let Ok(value) = header {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
