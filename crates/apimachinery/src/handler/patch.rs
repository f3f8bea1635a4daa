//! Patches: JSON, merge, strategic merge, and server-side apply.

use std::sync::Arc;

use axum::response::Response;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::call::{Call, MODIFIED};
use super::create;
use super::write::{Failure, Ownership, Wish};
use crate::apply;
use crate::body::{self, Decoded, Media};
use crate::context::AccessRequest;
use crate::json_patches;
use crate::kind::Verb;
use crate::object::{self, Stored};
use crate::status::Status;
use crate::strategic;

/// How often a patch is made again for an object that changed in between.
const TRIES: usize = 5;

/// A patch, read but not applied.
enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
    Apply(Value),
}

/// Answers a PATCH.
pub(super) async fn serve(
    call: &mut Call,
    headers: &HeaderMap,
    bytes: &[u8],
) -> Result<Response, Status> {
    let (patch, duplicates) = read(call, headers, bytes)?;
    for _ in 0..TRIES {
        let Some(old) = call.find(&call.context.name).await? else {
            return create_by_apply(call, patch, duplicates).await;
        };
        let warned = call.warnings.len();
        let wish = patched(call, &old, &patch)?;
        let wish = Wish {
            duplicates: duplicates.clone(),
            ..wish
        };
        match call.replace(&old, wish).await {
            Ok(stored) => return call.answer_object(StatusCode::OK, stored.object()),
            Err(Failure::Refused(status)) => return Err(status),
            Err(Failure::Raced) => call.warnings.truncate(warned),
        }
    }
    Err(call.conflict(&call.context.name, MODIFIED))
}

fn read(call: &Call, headers: &HeaderMap, bytes: &[u8]) -> Result<(Patch, Vec<String>), Status> {
    let content_type = body::content_type(headers);
    let object = |media| -> Result<Decoded, Status> {
        let decoded = body::decode(media, bytes, call.server.limits.depth)?;
        match decoded.value.is_object() {
            true => Ok(decoded),
            false => Err(Status::bad_request("a patch of this type is an object")),
        }
    };
    match content_type.as_str() {
        "application/json-patch+json" => {
            let patch = json_patches::parse(bytes, call.server.limits.patch_operations)?;
            Ok((Patch::Json(patch), Vec::new()))
        }
        "application/merge-patch+json" => {
            let decoded = object(Media::Json)?;
            Ok((Patch::Merge(decoded.value), decoded.duplicates))
        }
        "application/strategic-merge-patch+json" if call.resource.kind.strategic_merge => {
            let decoded = object(Media::Json)?;
            Ok((Patch::Strategic(decoded.value), decoded.duplicates))
        }
        "application/apply-patch+yaml" if call.resource.view.absorb.is_none() => {
            let decoded = object(Media::Yaml)?;
            check_apply(call, &decoded.value)?;
            Ok((Patch::Apply(decoded.value), decoded.duplicates))
        }
        _ => {
            let strategic = match call.resource.kind.strategic_merge {
                true => "application/strategic-merge-patch+json, ",
                false => "",
            };
            Err(Status::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types \
                 include: application/json-patch+json, application/merge-patch+json, {strategic}\
                 application/apply-patch+yaml"
            )))
        }
    }
}

fn check_apply(call: &Call, config: &Value) -> Result<(), Status> {
    if call.query.field_manager.is_empty() {
        return Err(Status::bad_request(
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required \
             for apply patch",
        ));
    }
    let managed = config["metadata"].get("managedFields");
    if managed.is_some_and(|value| !value.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    if config["apiVersion"].is_null() || config["kind"].is_null() {
        return Err(Status::bad_request(
            "apply patches must have apiVersion and kind",
        ));
    }
    call.check_type(&mut config.clone())?;
    Ok(())
}

fn patched(call: &Call, old: &Arc<Stored>, patch: &Patch) -> Result<Wish, Status> {
    let mut object = call.resource.show(old.object());
    let mut ownership = Ownership::Track;
    match patch {
        Patch::Json(patch) => json_patches::apply(&mut object, patch)?,
        Patch::Merge(patch) => json_patch::merge(&mut object, patch),
        Patch::Strategic(patch) => strategic::apply(&mut object, patch, &call.resource.schema)?,
        Patch::Apply(config) => {
            ownership = Ownership::Applied;
            object = applied(call, &object, config)?;
        }
    }
    if !object.is_object() {
        return Err(Status::bad_request("the patch leaves no object"));
    }
    body::check_kept(&object)?;
    call.check_type(&mut object)?;
    Ok(Wish {
        object,
        duplicates: Vec::new(),
        ownership,
    })
}

fn applied(call: &Call, live: &Value, config: &Value) -> Result<Value, Status> {
    let (schema, editor) = (&call.resource.schema, call.editor());
    let status = apply::apply(schema, live, config, editor, call.query.force);
    let (group, plural) = (call.resource.view.group, call.resource.kind.plural);
    status.map_err(|status| status.about(group, plural, &call.context.name))
}

/// An apply of what isn't there makes it.
async fn create_by_apply(
    call: &mut Call,
    patch: Patch,
    duplicates: Vec<String>,
) -> Result<Response, Status> {
    let (Patch::Apply(config), "") = (patch, call.context.subresource.as_str()) else {
        return Err(call.not_found(&call.context.name));
    };
    if !object::uid(&config).is_empty() {
        let why = "uid mismatch: the provided object specified a uid, and no existing object was \
            found";
        return Err(call.conflict(&call.context.name, why));
    }
    let name = object::name(&config);
    if !name.is_empty() && name != call.context.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.context.name
        )));
    }
    let mut object = applied(call, &Value::Null, &config)?;
    object::metadata_mut(&mut object).insert("name".to_owned(), json!(call.context.name));
    let wish = Wish {
        object,
        duplicates,
        ownership: Ownership::Applied,
    };
    let access = AccessRequest {
        verb: Verb::Create.as_str().to_owned(),
        ..super::access(&call.context, "")
    };
    super::authorize(&call.server, &call.context.user, &access).await?;
    let stored = create::create(call, wish).await?;
    call.answer_object(StatusCode::CREATED, stored.object())
}
