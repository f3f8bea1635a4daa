//! Which fields differ between two states of an object.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fields::{FieldSet, element_of, of, of_field};
use crate::schema::{ListType, Schema};

/// The outcome of a comparison.
#[derive(Debug, Default)]
pub(super) struct Difference {
    /// Fields that came or have another value.
    pub(super) changed: FieldSet,
    /// Fields that went.
    pub(super) removed: FieldSet,
}

pub(super) fn diff(old: &Value, new: &Value, schema: &Schema) -> Difference {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) if !schema.atomic_map => maps(old, new, schema),
        (Value::Array(old), Value::Array(new)) if schema.list != ListType::Atomic => {
            lists(old, new, schema)
        }
        (Value::Null, new) => Difference {
            changed: of(new, schema),
            removed: FieldSet::default(),
        },
        _ if old == new => Difference::default(),
        _ => Difference {
            changed: of(new, schema),
            removed: of(old, schema).minus(&of(new, schema)),
        },
    }
}

fn maps(old: &Map<String, Value>, new: &Map<String, Value>, schema: &Schema) -> Difference {
    let mut out = Difference::default();
    for (key, value) in new {
        match old.get(key) {
            None => out
                .changed
                .put(format!("f:{key}"), of_field(key, value, schema)),
            Some(before) => {
                let inner = diff(before, value, schema.field(key));
                out.changed.put(format!("f:{key}"), inner.changed);
                out.removed.put(format!("f:{key}"), inner.removed);
            }
        }
    }
    for (key, value) in old {
        if !new.contains_key(key) {
            let mut gone = of_field(key, value, schema);
            gone.union(&FieldSet::leaf());
            out.removed.put(format!("f:{key}"), gone);
        }
    }
    out
}

fn lists(old: &[Value], new: &[Value], schema: &Schema) -> Difference {
    let index = |list| -> BTreeMap<String, &Value> { by_element(list, schema) };
    let (old, new) = (index(old), index(new));
    let mut out = Difference::default();
    let whole = |item: &Value| {
        let mut set = of(item, schema.item());
        set.union(&FieldSet::leaf());
        set
    };
    for (element, item) in &new {
        match old.get(element) {
            None => out.changed.put(element.clone(), whole(item)),
            Some(before) => {
                let inner = diff(before, item, schema.item());
                out.changed.put(element.clone(), inner.changed);
                out.removed.put(element.clone(), inner.removed);
            }
        }
    }
    for (element, item) in &old {
        if !new.contains_key(element) {
            out.removed.put(element.clone(), whole(item));
        }
    }
    out
}

fn by_element<'a>(list: &'a [Value], schema: &Schema) -> BTreeMap<String, &'a Value> {
    list.iter()
        .map(|item| (element_of(item, schema), item))
        .collect()
}
