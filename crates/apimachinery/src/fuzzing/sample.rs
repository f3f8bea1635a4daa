//! Objects and schemas to try things on.

use std::sync::OnceLock;

use arbitrary::{Result, Unstructured};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::apply::Editor;
use crate::schema::{Schema, compile};
use crate::server::Limits;

/// Deepest object that is made up.
const DEPTH_MAX: usize = 6;
/// Longest list and most fields of an object that is made up.
const ITEMS_MAX: usize = 5;

/// Names that the schema knows, words that patches know, and some that nobody knows.
const KEYS: [&str; 26] = [
    "$patch",
    "$retainKeys",
    "$setElementOrder/ports",
    "$deleteFromPrimitiveList/finalizers",
    "a",
    "annotations",
    "apiVersion",
    "b",
    "conditions",
    "count",
    "finalizers",
    "kind",
    "labels",
    "limits",
    "managedFields",
    "metadata",
    "name",
    "open",
    "ports",
    "spec",
    "status",
    "tags",
    "type",
    "when",
    "x/y",
    "~",
];

/// A schema with everything that a schema can say.
pub(super) fn schema() -> &'static Schema {
    static SCHEMA: OnceLock<Schema> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let named = json!({"type": "object", "required": ["name"], "properties": {
            "name": {"type": "string"},
            "count": {"type": "integer", "minimum": 1, "maximum": 9, "default": 2},
            "ports": {"type": "array", "items": {"type": "string"}},
            "limits": {"type": "object", "additionalProperties":
                {"x-kubernetes-int-or-string": true}},
        }});
        let spec = json!({"type": "object", "properties": {
            "a": {"type": "string", "maxLength": 8, "enum": ["", "x", "yes"]},
            "b": {"type": "boolean", "nullable": true},
            "count": {"type": "number"},
            "ports": {"type": "array", "items": named, "maxItems": 4,
                "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name", "count"],
                "x-kubernetes-patch-strategy": "merge", "x-kubernetes-patch-merge-key": "name"},
            "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
            "finalizers": {"type": "array", "items": {"type": "string"},
                "x-kubernetes-patch-strategy": "merge"},
            "limits": {"type": "object", "x-kubernetes-map-type": "atomic",
                "additionalProperties": {"type": "string"}},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }});
        let whole = json!({"type": "object", "required": ["spec"], "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"},
            "metadata": crate::openapi::object_meta(), "spec": spec,
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"conditions": {"type": "array", "items": {"type": "object",
                    "x-kubernetes-preserve-unknown-fields": true},
                    "x-kubernetes-patch-strategy": "merge",
                    "x-kubernetes-patch-merge-key": "type"}}},
        }});
        compile(&whole).expect("the sample schema compiles")
    })
}

/// Any JSON value.
pub(super) fn value(from: &mut Unstructured<'_>) -> Result<Value> {
    nested(from, DEPTH_MAX)
}

/// An object of the sample kind, more or less.
pub(super) fn object(from: &mut Unstructured<'_>) -> Result<Value> {
    let mut metadata = json!({"name": "a"});
    if from.ratio(1, 4)? {
        metadata["labels"] = json!({"a": *from.choose(&["x", "y"])?});
        metadata["finalizers"] = json!([*from.choose(&["x.io/a", "x.io/b"])?]);
    }
    let mut out = json!({"apiVersion": "x.io/v1", "kind": "T", "metadata": metadata});
    if from.ratio(7, 8)? {
        out["spec"] = Value::Object(map(from, DEPTH_MAX)?);
    }
    if from.ratio(1, 4)? {
        out["status"] = Value::Object(map(from, DEPTH_MAX)?);
    }
    Ok(out)
}

fn nested(from: &mut Unstructured<'_>, depth: usize) -> Result<Value> {
    let most = if depth == 0 { 4 } else { 7 };
    Ok(match from.int_in_range(0..=most)? {
        0 => Value::Null,
        1 => json!(from.arbitrary::<bool>()?),
        2 => json!(from.int_in_range(-3..=9)?),
        3 => json!(*from.choose(&["", "a", "x", "yes", "replace", "delete", "merge", "1"])?),
        4 => scalar(from)?,
        5 => Value::Array(list(from, depth)?),
        6 => Value::Array(named(from, depth)?),
        _ => Value::Object(map(from, depth)?),
    })
}

fn scalar(from: &mut Unstructured<'_>) -> Result<Value> {
    Ok(match from.int_in_range(0..=2)? {
        0 => json!(from.arbitrary::<i64>()?),
        // Quarters: of other fractions serde_json gets the last bit wrong.
        1 => json!(f64::from(from.arbitrary::<i16>()?) / 4.0),
        _ => json!(from.arbitrary::<&str>()?),
    })
}

fn list(from: &mut Unstructured<'_>, depth: usize) -> Result<Vec<Value>> {
    let length = from.int_in_range(0..=ITEMS_MAX)?;
    (0..length).map(|_| nested(from, depth - 1)).collect()
}

/// Items that a list by key can tell apart.
fn named(from: &mut Unstructured<'_>, depth: usize) -> Result<Vec<Value>> {
    let length = from.int_in_range(0..=ITEMS_MAX)?;
    let item = |_| {
        let mut item = map(from, depth - 1)?;
        for key in ["name", "type"] {
            item.insert(key.to_owned(), json!(*from.choose(&["a", "b", "c"])?));
        }
        Ok(Value::Object(item))
    };
    (0..length).map(item).collect()
}

fn map(from: &mut Unstructured<'_>, depth: usize) -> Result<Map<String, Value>> {
    let mut out = Map::new();
    for _ in 0..from.int_in_range(0..=ITEMS_MAX)? {
        let key = match from.ratio(15, 16)? {
            true => *from.choose(&KEYS)?,
            false => from.arbitrary()?,
        };
        let value = match depth {
            0 => Value::Null,
            depth => nested(from, depth - 1)?,
        };
        out.insert(key.to_owned(), value);
    }
    Ok(out)
}

/// Somebody who writes, `seconds` after the beginning of time.
pub(super) fn editor(manager: &str, seconds: i64) -> Editor<'_> {
    Editor {
        manager,
        api_version: "x.io/v1",
        subresource: "",
        has_status: true,
        updaters_max: Limits::default().field_managers,
        now: Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH),
    }
}

/// The JSON values that stand on the lines of `input`; `None` where one is none.
pub(super) fn lines<const COUNT: usize>(input: &[u8]) -> Option<[Value; COUNT]> {
    let mut lines = input.splitn(COUNT, |byte| *byte == b'\n');
    let mut out = [const { Value::Null }; COUNT];
    for value in &mut out {
        *value = serde_json::from_slice(lines.next()?).ok()?;
    }
    Some(out)
}
