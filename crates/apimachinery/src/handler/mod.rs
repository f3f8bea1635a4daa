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
pub(crate) use delete::delete_one;
pub use watch::LongRunning;

/// Name of the object that a request was about, as an extension of its answer; empty for
/// collections, and for a creation that was refused before the name was known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnsweredName(pub String);

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
        return match *target == Target::Nothing {
            true => Err(Status::no_such_path()),
            false => Ok(not_allowed(|method| method == Method::GET)),
        };
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
    // First of all, so that who may not look learns nothing of what is there.
    let query = Query::parse(&parts.uri, server.limits.selector_bytes);
    let asked = asked(&path, &parts, query.as_ref().ok());
    authorize(server, &user(&parts), &asked).await?;
    let found = registry.resource(&path.group, &path.version, &path.resource);
    let Some(resource) = found.map(Arc::clone) else {
        return absent::serve(&path, &parts.method);
    };
    check_place(&resource, &path)?;
    let by = |method: &Method, watch| verb(&resource, &path, method, watch);
    let refused = || not_allowed(|method| by(method, false).is_some());
    // Before anything is wrong with what the method would have done.
    if by(&parts.method, false).is_none() {
        return Ok(refused());
    }
    let query = query?;
    let Some(verb) = by(&parts.method, query.watch) else {
        return Ok(refused());
    };
    let context = context(&path, verb, &parts, query.dry_run);
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
    // A creation's path doesn't say it.
    response
        .extensions_mut()
        .insert(AnsweredName(call.context.name));
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
    let is_namespace_itself = path.namespace == path.name && path.resource == path::NAMESPACES;
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

/// What the method means here; `None` where it isn't allowed.
fn verb(resource: &Resource, path: &ResourcePath, method: &Method, watch: bool) -> Option<Verb> {
    let single = path.name.is_some();
    let status = !path.subresource.is_empty();
    let verb = match (method.as_str(), single) {
        ("GET" | "HEAD", true) => Verb::Get,
        ("GET" | "HEAD", false) if watch => Verb::Watch,
        ("GET" | "HEAD", false) => Verb::List,
        ("POST", false) => Verb::Create,
        ("PUT", true) => Verb::Update,
        ("PATCH", true) => Verb::Patch,
        ("DELETE", true) if !status => Verb::Delete,
        ("DELETE", false) => Verb::DeleteCollection,
        _ => return None,
    };
    let everywhere = resource.kind.namespaced && path.namespace.is_none();
    if everywhere && !matches!(verb, Verb::List | Verb::Watch) {
        return None;
    }
    if !status && !resource.kind.verbs.contains(&verb) {
        return None;
    }
    Some(verb)
}

/// 405, with the methods that are allowed; who may get a thing may also ask for its headers.
fn not_allowed(allowed: impl Fn(&Method) -> bool) -> Response {
    const METHODS: [Method; 6] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
    ];
    let as_get = |method: &&Method| match **method == Method::HEAD {
        true => allowed(&Method::GET),
        false => allowed(method),
    };
    let names: Vec<&str> = METHODS.iter().filter(as_get).map(Method::as_str).collect();
    let mut response = Status::method_not_allowed().into_response();
    if let Ok(names) = HeaderValue::from_str(&names.join(", ")) {
        response.headers_mut().insert(header::ALLOW, names);
    }
    response
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

/// What a path and a method ask for, whether there is such a thing or not.
fn asked(path: &ResourcePath, parts: &Parts, query: Option<&Query>) -> AccessRequest {
    let watches = query.is_some_and(|query| query.watch);
    let verb = match (parts.method.as_str(), path.name.is_some()) {
        ("GET" | "HEAD", true) => "get",
        ("GET" | "HEAD", false) if watches => "watch",
        ("GET" | "HEAD", false) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "delete",
        ("DELETE", false) => "deletecollection",
        // Nobody is granted a verb without a name, but by a star.
        _ => "",
    };
    // Who may look at one object may follow it, too.
    let selected = query.and_then(|query| query.fields.required("metadata.name"));
    let selected = selected.filter(|_| matches!(verb, "list" | "watch"));
    AccessRequest {
        verb: verb.to_owned(),
        group: path.group.clone(),
        version: path.version.clone(),
        resource: path.resource.clone(),
        subresource: path.subresource.clone(),
        namespace: path.namespace.clone().unwrap_or_default(),
        name: path
            .name
            .as_deref()
            .or(selected)
            .unwrap_or_default()
            .to_owned(),
        path: parts.uri.path().to_owned(),
    }
}

fn access(context: &RequestContext, path: &str) -> AccessRequest {
    AccessRequest {
        verb: context.verb.as_str().to_owned(),
        group: context.group.clone(),
        version: context.version.clone(),
        resource: context.resource.clone(),
        subresource: context.subresource.clone(),
        namespace: context.namespace.clone(),
        name: context.name.clone(),
        path: path.to_owned(),
    }
}

/// Asks the authorizer; a refusal is spelled as kube-apiserver spells it.
async fn authorize(
    server: &ApiServer,
    user: &UserInfo,
    access: &AccessRequest,
) -> Result<(), Status> {
    match server.authorizer.authorize(user, access).await {
        Decision::Allow => Ok(()),
        Decision::Deny(why) => Err(refusal(user, access, &why)),
        Decision::Unknown(why) => Err(Status::unavailable(why)),
    }
}

/// The refusal of an authorizer in kube-apiserver's words; `why` is added unless it is empty.
pub fn refusal(user: &UserInfo, access: &AccessRequest, why: &str) -> Status {
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
    Status::forbidden(message).about(&access.group, &access.resource, &access.name)
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

/// Most warnings in one answer.
const WARNINGS_MAX: usize = 32;
/// Most characters of all warnings, and of each once that is too much; as in kube-apiserver.
const WARNINGS_CHARS_MAX: usize = 4096;
const WARNING_CHARS_MAX: usize = 256;

fn add_warnings(response: &mut Response, warnings: &[String]) {
    let total: usize = warnings.iter().map(|warning| warning.chars().count()).sum();
    let each = match total > WARNINGS_CHARS_MAX {
        true => WARNING_CHARS_MAX,
        false => WARNINGS_CHARS_MAX,
    };
    let mut left = WARNINGS_CHARS_MAX;
    for warning in warnings.iter().take(WARNINGS_MAX) {
        let printable = |c: char| if c.is_control() { ' ' } else { c };
        let text: String = warning
            .chars()
            .take(each.min(left))
            .map(printable)
            .collect();
        left -= text.chars().count();
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        let header = HeaderValue::from_bytes(format!("299 - \"{text}\"").as_bytes());
        if let Ok(value) = header {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
