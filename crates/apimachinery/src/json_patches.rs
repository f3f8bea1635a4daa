//! JSON patches (RFC 6902) with limits: a few copies of copies could otherwise fill all memory.

use http::StatusCode;
use json_patch::{Patch, PatchOperation};
use serde_json::Value;

use crate::status::Status;

/// Most operations in one patch; as in kube-apiserver.
const OPERATIONS_MAX: usize = 10_000;
/// Bytes that all copied and moved values may have together; as much as a body.
const COPIED_BYTES_MAX: usize = 3 << 20;
/// Deepest place that is written to, and deepest value that is put there.
const DEPTH_MAX: usize = 64;

/// Reads a patch.
///
/// # Errors
/// 400 if it is none, 413 if it has too many operations.
pub(crate) fn parse(bytes: &[u8]) -> Result<Patch, Status> {
    let patch: Patch = serde_json::from_slice(bytes)
        .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    let count = patch.0.len();
    if count > OPERATIONS_MAX {
        return Err(Status::too_large(format!(
            "the allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {count}"
        )));
    }
    Ok(patch)
}

/// Applies a patch.
///
/// # Errors
/// 422 if a path leads nowhere or a test fails, 413 beyond the limits.
pub(crate) fn apply(object: &mut Value, patch: &Patch) -> Result<(), Status> {
    let mut copied = 0;
    for operation in &patch.0 {
        copied += check(object, operation)?;
        if copied > COPIED_BYTES_MAX {
            return Err(Status::too_large("the patch copies too much"));
        }
        json_patch::patch(object, std::slice::from_ref(operation)).map_err(|error| {
            let message =
                format!("the server rejected our request due to an error in our request: {error}");
            Status::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
        })?;
    }
    Ok(())
}

/// Bytes that the operation copies.
fn check(object: &Value, operation: &PatchOperation) -> Result<usize, Status> {
    let (value, at, copies) = match operation {
        PatchOperation::Add(add) => (Some(&add.value), &add.path, false),
        PatchOperation::Replace(replace) => (Some(&replace.value), &replace.path, false),
        PatchOperation::Copy(copy) => (object.pointer(copy.from.as_str()), &copy.path, true),
        PatchOperation::Move(moved) => (object.pointer(moved.from.as_str()), &moved.path, true),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => return Ok(0),
    };
    let Some(value) = value else {
        return Ok(0);
    };
    if at.as_str().matches('/').count() > DEPTH_MAX || depth(value) > DEPTH_MAX {
        return Err(Status::too_large("the patch nests too deeply"));
    }
    Ok(if copies { value.to_string().len() } else { 0 })
}

fn depth(value: &Value) -> usize {
    let deepest = match value {
        Value::Array(list) => list.iter().map(depth).max(),
        Value::Object(map) => map.values().map(depth).max(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return 0,
    };
    deepest.unwrap_or(0) + 1
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(mut object: Value, patch: &Value) -> Result<Value, Status> {
        apply(&mut object, &parse(patch.to_string().as_bytes())?)?;
        Ok(object)
    }

    #[test]
    fn operations_follow_one_another() {
        let patch = json!([
            {"op": "test", "path": "/a", "value": 1},
            {"op": "move", "from": "/a", "path": "/b"},
            {"op": "copy", "from": "/b", "path": "/c"},
        ]);
        assert_eq!(
            patched(json!({"a": 1}), &patch).expect("patched"),
            json!({"b": 1, "c": 1})
        );
        let failing = json!([{"op": "test", "path": "/a", "value": 2}]);
        assert_eq!(
            patched(json!({"a": 1}), &failing)
                .expect_err("refused")
                .code(),
            422
        );
    }

    #[test]
    fn copies_of_copies_are_stopped() {
        let copy = json!({"op": "copy", "from": "/a", "path": "/a/-"});
        let patch = Value::Array(vec![copy; 60]);
        let object = json!({"a": ["x".repeat(100)]});
        assert_eq!(patched(object, &patch).expect_err("refused").code(), 413);
    }
}
