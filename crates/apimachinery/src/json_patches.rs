//! JSON patches (RFC 6902) with limits: a few copies of copies could otherwise fill all memory.

use http::StatusCode;
use json_patch::{Patch, PatchOperation};
use serde_json::Value;

use crate::status::Status;

/// Bytes that all copied and moved values may have together; as much as a body.
const COPIED_BYTES_MAX: usize = 3 << 20;
/// Items that may be moved up or down in lists, all operations together: each one that puts
/// something in the middle of a list or takes it out moves all behind it. Takes some 10 ms.
const SHIFTED_MAX: usize = 10_000_000;
/// Deepest place that is written to, and deepest value that is put there.
const DEPTH_MAX: usize = 64;

/// Reads a patch of at most `most` operations.
///
/// # Errors
/// 400 if it is none, 413 if it has too many operations.
pub(crate) fn parse(bytes: &[u8], most: usize) -> Result<Patch, Status> {
    let patch: Patch = serde_json::from_slice(bytes)
        .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    let count = patch.0.len();
    if count > most {
        return Err(Status::too_large(format!(
            "The allowed maximum operations in a JSON patch is {most}, got {count}"
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
    let mut shifted = 0;
    for operation in &patch.0 {
        copied += check(object, operation)?;
        shifted += shifts(object, operation);
        if copied > COPIED_BYTES_MAX || shifted > SHIFTED_MAX {
            return Err(Status::too_large("the patch copies or moves too much"));
        }
        // What it leaves after a failure is thrown away, so nothing has to be undone.
        json_patch::patch_unsafe(object, std::slice::from_ref(operation)).map_err(|error| {
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

/// Items of lists that the operation moves, at most.
fn shifts(object: &Value, operation: &PatchOperation) -> usize {
    let length = |path: &str| {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        let list = object.pointer(parent).and_then(Value::as_array);
        list.map_or(0, Vec::len)
    };
    match operation {
        PatchOperation::Add(add) => length(add.path.as_str()),
        PatchOperation::Remove(remove) => length(remove.path.as_str()),
        PatchOperation::Copy(copy) => length(copy.path.as_str()),
        PatchOperation::Move(moved) => length(moved.from.as_str()) + length(moved.path.as_str()),
        PatchOperation::Replace(_) | PatchOperation::Test(_) => 0,
    }
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
        apply(&mut object, &parse(patch.to_string().as_bytes(), 100)?)?;
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
    fn a_long_list_is_not_moved_thousands_of_times() {
        let object = json!({"a": vec![0; 100_000]});
        let patch = Value::Array(vec![json!({"op": "remove", "path": "/a/0"}); 9_000]);
        assert_eq!(patched(object, &patch).expect_err("refused").code(), 413);
    }

    #[test]
    fn copies_of_copies_are_stopped() {
        let copy = json!({"op": "copy", "from": "/a", "path": "/a/-"});
        let patch = Value::Array(vec![copy; 60]);
        let object = json!({"a": ["x".repeat(100)]});
        assert_eq!(patched(object, &patch).expect_err("refused").code(), 413);
    }
}
