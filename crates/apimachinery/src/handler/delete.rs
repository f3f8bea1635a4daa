//! Deletion, of one object or of all that match.

use std::sync::Arc;

use axum::response::Response;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::call::Call;
use super::list;
use crate::admission::DeleteOptions;
use crate::body;
use crate::collect::{FOREGROUND, ORPHAN};
use crate::context::RequestContext;
use crate::negotiate::{Format, Shape};
use crate::object::{self, Stored};
use crate::path::NAMESPACES;
use crate::query::Query;
use crate::registry::Resource;
use crate::server::ApiServer;
use crate::status::{Cause, Status};
use crate::store::{ListAt, StoreError, Update, UpdateOf};

/// How often a deletion is tried on an object that keeps changing.
const TRIES: usize = 5;

/// What became of an object.
enum Outcome {
    /// It is gone.
    Gone(Arc<Stored>),
    /// Finalizers hold it.
    Marked(Arc<Stored>),
}

/// Answers a DELETE of one object.
pub(super) async fn one(
    call: &mut Call,
    headers: &HeaderMap,
    bytes: &[u8],
) -> Result<Response, Status> {
    let options = options(call, headers, bytes)?;
    match delete(call, &options).await? {
        Outcome::Marked(stored) => call.answer_object(StatusCode::OK, stored.object()),
        Outcome::Gone(stored) => {
            let mut details = json!({
                "name": call.context.name,
                "kind": call.resource.kind.plural,
                "uid": object::uid(stored.object()),
            });
            if !call.context.group.is_empty() {
                details["group"] = json!(call.context.group);
            }
            let status = json!({
                "kind": "Status",
                "apiVersion": "v1",
                "metadata": {},
                "status": "Success",
                "details": details,
            });
            call.answer(StatusCode::OK, &status)
        }
    }
}

/// Deletes one object in the name of the server itself.
pub(crate) async fn delete_one(
    server: &Arc<ApiServer>,
    resource: &Arc<Resource>,
    context: RequestContext,
    options: &DeleteOptions,
) -> Result<(), Status> {
    let namespace = Some(context.namespace.clone()).filter(|space| !space.is_empty());
    let mut call = Call {
        server: Arc::clone(server),
        resource: Arc::clone(resource),
        context,
        namespace,
        query: Query::default(),
        format: Format {
            yaml: false,
            shape: Shape::Whole,
        },
        warnings: Vec::new(),
    };
    delete(&mut call, options).await.map(drop)
}

/// Answers a DELETE of a collection: what matched, as it was.
pub(super) async fn many(
    call: &mut Call,
    headers: &HeaderMap,
    bytes: &[u8],
) -> Result<Response, Status> {
    let options = options(call, headers, bytes)?;
    let fields = call
        .query
        .fields
        .clone()
        .resolve(&call.resource.kind.selectable_fields)?;
    let listed = list::fetch(call, ListAt::Latest).await;
    let listed = listed.map_err(|error| call.store_error(error, ""))?;
    let mut items = Vec::new();
    for stored in listed.items.iter() {
        if !call.query.labels.matches(stored) || !fields.matches(stored) {
            continue;
        }
        stored.name().name.clone_into(&mut call.context.name);
        match delete(call, &options).await {
            Ok(Outcome::Gone(last) | Outcome::Marked(last)) => {
                items.push(call.resource.show(last.object()));
            }
            Err(status) if status.code() == StatusCode::NOT_FOUND => {}
            Err(status) => return Err(status),
        }
    }
    let list = json!({
        "kind": call.resource.kind.list_kind,
        "apiVersion": call.resource.api_version,
        "metadata": { "resourceVersion": listed.revision.to_string() },
        "items": items,
    });
    call.answer(StatusCode::OK, &list)
}

async fn delete(call: &mut Call, options: &DeleteOptions) -> Result<Outcome, Status> {
    for _ in 0..TRIES {
        let warned = call.warnings.len();
        let stored = call.current().await?;
        check_preconditions(call, &stored, options)?;
        let admitted = [&call.server.admission, &call.resource.kind.admission];
        for admission in admitted.map(Arc::clone) {
            let said = admission
                .on_delete(&call.context, stored.object(), options)
                .await?;
            call.warnings.extend(said);
        }
        match attempt(call, &stored, &options.propagation_policy).await {
            Ok(outcome) => return Ok(outcome),
            Err(StoreError::Conflict) => call.warnings.truncate(warned),
            Err(error) => return Err(call.store_error(error, &call.context.name)),
        }
    }
    Err(call.conflict(&call.context.name, super::call::MODIFIED))
}

/// Removes the object, or marks it if finalizers hold it.
async fn attempt(call: &Call, stored: &Arc<Stored>, policy: &str) -> Result<Outcome, StoreError> {
    let (store, resource) = (&call.server.store, &call.resource.kind.resource);
    let object = stored.object();
    let (held_by, deleting) = (object::finalizers(object), object::is_deleting(object));
    let keeps = held_after(&held_by, policy);
    // A namespace goes when the collector has emptied it.
    let stays = !keeps.is_empty() || resource == NAMESPACES;
    if !stays && !deleting {
        store.remove(&call.context, resource, stored).await?;
        return Ok(Outcome::Gone(Arc::clone(stored)));
    }
    if deleting && keeps == held_by {
        return Ok(Outcome::Marked(Arc::clone(stored)));
    }
    let mut marked = object.clone();
    let metadata = object::metadata_mut(&mut marked);
    if keeps != held_by {
        metadata.insert("finalizers".to_owned(), json!(keeps));
    }
    if !deleting {
        let now = json!(object::time(call.context.now));
        metadata.insert("deletionTimestamp".to_owned(), now);
        metadata.insert("deletionGracePeriodSeconds".to_owned(), json!(0));
    }
    if resource == NAMESPACES {
        marked["status"]["phase"] = json!("Terminating");
    }
    let update = Update {
        object: marked,
        expected: stored.revision(),
        of: UpdateOf::DeletionMark,
    };
    let last = store.update(&call.context, resource, update).await?;
    Ok(match stays {
        true => Outcome::Marked(last),
        false => Outcome::Gone(last),
    })
}

/// What holds an object once it is to be deleted in this way.
fn held_after<'a>(held_by: &[&'a str], policy: &str) -> Vec<&'a str> {
    let ours = match policy {
        "Foreground" => Some(FOREGROUND),
        "Orphan" => Some(ORPHAN),
        "Background" => None,
        _ => return held_by.to_vec(),
    };
    let others = |name: &&&str| ![FOREGROUND, ORPHAN].contains(*name) || Some(**name) == ours;
    let mut keeps: Vec<&str> = held_by.iter().filter(others).copied().collect();
    keeps.extend(ours.filter(|ours| !held_by.contains(ours)));
    keeps
}

fn check_preconditions(
    call: &Call,
    stored: &Stored,
    options: &DeleteOptions,
) -> Result<(), Status> {
    let name = &call.context.name;
    let found = object::uid(stored.object());
    if let Some(wanted) = options
        .precondition_uid
        .as_deref()
        .filter(|uid| *uid != found)
    {
        let why = format!(
            "Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}"
        );
        return Err(call.conflict(name, &why));
    }
    let found = stored.revision().to_string();
    if let Some(wanted) = options
        .precondition_revision
        .as_deref()
        .filter(|at| *at != found)
    {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {wanted}, ResourceVersion in \
             object meta: {found}"
        );
        return Err(call.conflict(name, &why));
    }
    Ok(())
}

/// From the body, or where that is empty from the query.
fn options(call: &mut Call, headers: &HeaderMap, bytes: &[u8]) -> Result<DeleteOptions, Status> {
    let mut body = body::decode(body::media(headers)?, bytes, call.server.limits.depth)?.value;
    if !body.is_object() {
        body = json!({});
        for (key, value) in &call.query.pairs {
            match key.as_str() {
                "propagationPolicy" => body[key] = json!(value),
                "gracePeriodSeconds" => body[key] = json!(value.parse::<i64>().ok()),
                "orphanDependents" => body[key] = json!(value == "true"),
                _ => {}
            }
        }
    }
    let text = |value: &Value| {
        value
            .as_str()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    let dry = body["dryRun"]
        .as_array()
        .is_some_and(|list| list.iter().any(|word| word == "All"));
    call.context.dry_run |= dry;
    let mut policy = text(&body["propagationPolicy"]).unwrap_or_default();
    check_policy(&policy, &body)?;
    // The way it was said before there were policies.
    if let Some(orphan) = body["orphanDependents"].as_bool() {
        policy = if orphan { "Orphan" } else { "Background" }.to_owned();
    }
    Ok(DeleteOptions {
        propagation_policy: policy,
        grace_period_seconds: body["gracePeriodSeconds"].as_i64(),
        precondition_uid: text(&body["preconditions"]["uid"]),
        precondition_revision: text(&body["preconditions"]["resourceVersion"]),
        dry_run: call.context.dry_run,
    })
}

fn check_policy(policy: &str, body: &Value) -> Result<(), Status> {
    if !matches!(policy, "" | "Background" | "Foreground" | "Orphan") {
        let cause = Cause::not_supported(
            "propagationPolicy",
            &json!(policy),
            &["Foreground", "Background", "Orphan"],
        );
        return Err(Status::invalid(
            "meta.k8s.io",
            "DeleteOptions",
            "",
            vec![cause],
        ));
    }
    if !policy.is_empty() && body["orphanDependents"].is_boolean() {
        let why = "orphanDependents and deletionPropagation cannot be both set";
        let cause = Cause::invalid("propagationPolicy", &json!(policy), why);
        return Err(Status::invalid(
            "meta.k8s.io",
            "DeleteOptions",
            "",
            vec![cause],
        ));
    }
    Ok(())
}
