//! Replacement: PUT of an object or its status.

use axum::response::Response;
use http::{HeaderMap, StatusCode};

use super::call::{Call, MODIFIED};
use super::write::Failure;
use crate::object;
use crate::status::{Cause, Status};

/// Answers a PUT.
pub(super) async fn serve(
    call: &mut Call,
    headers: &HeaderMap,
    bytes: &[u8],
) -> Result<Response, Status> {
    let wish = call.read_object(headers, bytes)?;
    let old = call.current().await?;
    let unconditional = object::meta_str(&wish.object, "resourceVersion").is_empty();
    if unconditional && !call.resource.kind.strategic_merge {
        // Only built-in kinds may be overwritten blindly.
        let cause = Cause {
            reason: "FieldValueInvalid",
            message: "Invalid value: 0: must be specified for an update".to_owned(),
            field: "metadata.resourceVersion".to_owned(),
        };
        return Err(call.invalid(&call.context.name, vec![cause]));
    }
    match call.replace(&old, wish).await {
        Ok(stored) => call.answer_object(StatusCode::OK, stored.object()),
        Err(Failure::Raced) => Err(call.conflict(&call.context.name, MODIFIED)),
        Err(Failure::Refused(status)) => Err(status),
    }
}
