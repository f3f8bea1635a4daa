//! Patches: what they promise, for any object and any patch.

use arbitrary::{Result, Unstructured};
use serde_json::Value;

use super::sample;
use crate::apply;
use crate::json_patches;
use crate::server::Limits;
use crate::status::Status;
use crate::strategic;

/// As long as the server reads unless it's told otherwise.
fn parse(patch: &[u8]) -> std::result::Result<::json_patch::Patch, Status> {
    json_patches::parse(patch, Limits::default().patch_operations)
}

/// An object and a patch, on two lines. One operation after the other is the same as all at once.
pub(super) fn json_patch(input: &[u8]) {
    let Some(end) = input.iter().position(|byte| *byte == b'\n') else {
        return;
    };
    let (object, patch) = (&input[..end], &input[end + 1..]);
    let Ok(object) = serde_json::from_slice::<Value>(object) else {
        return;
    };
    let Ok(patch) = parse(patch) else {
        return;
    };
    let mut ours = object.clone();
    let done = json_patches::apply(&mut ours, &patch);
    if refused_for_size(&done) {
        return;
    }
    let mut theirs = object;
    // Its other form takes back what it did before a failure, and breaks down over some moves.
    let expected = ::json_patch::patch_unsafe(&mut theirs, &patch);
    assert_eq!(done.is_ok(), expected.is_ok());
    if done.is_ok() {
        assert_eq!(ours, theirs);
    }
}

/// The difference of two values, applied to one of them, gives the other.
pub(super) fn json_diff(input: &[u8]) {
    let mut from = Unstructured::new(input);
    let (Ok(old), Ok(new)) = (sample::value(&mut from), sample::value(&mut from)) else {
        return;
    };
    let patch = serde_json::json!(::json_patch::diff(&old, &new)).to_string();
    let patch = parse(patch.as_bytes()).expect("a difference is a patch");
    let mut patched = old;
    let done = json_patches::apply(&mut patched, &patch);
    if !refused_for_size(&done) {
        done.expect("a difference fits");
        assert_eq!(patched, new);
    }
}

fn refused_for_size(done: &std::result::Result<(), Status>) -> bool {
    done.as_ref().is_err_and(|status| status.code() == 413)
}

/// An object and a patch, on two lines. A second time, a merge patch changes nothing.
pub(super) fn merge_patch(input: &[u8]) {
    let Some([mut object, patch]) = sample::lines(input) else {
        return;
    };
    ::json_patch::merge(&mut object, &patch);
    let once = object.clone();
    ::json_patch::merge(&mut object, &patch);
    assert_eq!(once, object);
}

/// An object and a patch, on two lines. A second time, a patch without directives changes nothing.
pub(super) fn strategic_patch(input: &[u8]) {
    if let Some([object, patch]) = sample::lines(input) {
        strategic_twice(object, &patch);
    }
    let mut from = Unstructured::new(input);
    if let (Ok(object), Ok(patch)) = (sample::object(&mut from), sample::object(&mut from)) {
        strategic_twice(object, &patch);
    }
}

fn strategic_twice(mut object: Value, patch: &Value) {
    let schema = sample::schema();
    if strategic::apply(&mut object, patch, schema).is_err() || has_directives(patch) {
        return;
    }
    let once = object.clone();
    strategic::apply(&mut object, patch, schema).expect("it was fine before");
    assert_eq!(once, object, "{patch}");
}

fn has_directives(patch: &Value) -> bool {
    match patch {
        Value::Object(map) => map
            .iter()
            .any(|(key, value)| key.starts_with('$') || has_directives(value)),
        Value::Array(list) => list.iter().any(has_directives),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Configurations on lines, or made up: managers apply them in turn, by force.
pub(super) fn server_side_apply(input: &[u8]) {
    if let Some([live, first, second]) = sample::lines(input) {
        applied(live, &[first, second]);
    }
    let mut from = Unstructured::new(input);
    if let Ok((live, configs)) = made_up(&mut from) {
        applied(live, &configs);
    }
}

fn made_up(from: &mut Unstructured<'_>) -> Result<(Value, Vec<Value>)> {
    let live = sample::object(from)?;
    let count = from.int_in_range(1..=4)?;
    let configs: Result<Vec<_>> = (0..count).map(|_| sample::object(from)).collect();
    Ok((live, configs?))
}

/// Each configuration is applied twice, the second time later: that changes nothing, and no other
/// manager is in the way.
fn applied(mut live: Value, configs: &[Value]) {
    let schema = sample::schema();
    // As in a request: what comes from the store and from a client is an object and has been checked.
    if !live.is_object() {
        live = Value::Null;
    }
    schema.settle(&mut live);
    let mut second = 1;
    for (at, config) in configs.iter().enumerate() {
        if !config.is_object() {
            return;
        }
        let editor = sample::editor(["me", "you"][at % 2], second);
        // Without force it must say who is in the way, or do the same as with it.
        let gentle = apply::apply(schema, &live, config, editor, false);
        let once = apply::apply(schema, &live, config, editor, true);
        let once = match once {
            Ok(once) => once,
            // Only for what nobody could apply.
            Err(status) => {
                assert_eq!(status.code(), 400, "{status}");
                assert_eq!(gentle.expect_err("refused as well").code(), 400);
                return;
            }
        };
        match gentle {
            Ok(gentle) => assert_eq!(gentle, once),
            Err(status) => assert!(!status.causes().is_empty(), "{status}"),
        }
        let later = sample::editor(editor.manager, second + 1);
        let twice = apply::apply(schema, &once, config, later, false);
        let twice = twice.unwrap_or_else(|status| panic!("in its own way: {status}"));
        assert_eq!(once, twice, "applied again: {config}");
        live = twice;
        second += 2;
    }
}
