//! Sets of fields, in the tree form of `FieldsV1`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::schema::{ListType, Schema};
use crate::trail::shortened;

/// A set of paths. Keys are elements as `FieldsV1` spells them: `f:name`, `k:{...}`, `v:...`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FieldSet {
    /// Whether the path that leads here is in the set.
    own: bool,
    children: BTreeMap<String, FieldSet>,
}

/// Most paths that are spelled out; more would help nobody.
const PATHS_MAX: usize = 200;

impl FieldSet {
    /// The set that holds just the path that leads here.
    pub(super) fn leaf() -> Self {
        Self {
            own: true,
            children: BTreeMap::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.own && self.children.values().all(Self::is_empty)
    }

    pub(super) fn owns_itself(&self) -> bool {
        self.own
    }

    pub(super) fn disown_self(&mut self) {
        self.own = false;
    }

    pub(super) fn children(&self) -> impl Iterator<Item = (&String, &Self)> {
        self.children.iter()
    }

    pub(super) fn child(&self, element: &str) -> Option<&Self> {
        self.children.get(element)
    }

    pub(super) fn child_mut(&mut self, element: &str) -> Option<&mut Self> {
        self.children.get_mut(element)
    }

    pub(super) fn put(&mut self, element: String, mut child: Self) {
        if child.is_empty() {
            return;
        }
        if let Some(known) = self.children.remove(&element) {
            child.union(&known);
        }
        self.children.insert(element, child);
    }

    pub(super) fn remove(&mut self, element: &str) {
        self.children.remove(element);
    }

    pub(super) fn retain_only(&mut self, element: &str) {
        self.children.retain(|key, _| key == element);
    }

    /// Drops branches that hold nothing.
    pub(super) fn tidy(&mut self) {
        for child in self.children.values_mut() {
            child.tidy();
        }
        self.children.retain(|_, child| !child.is_empty());
    }

    pub(super) fn union(&mut self, other: &Self) {
        self.own |= other.own;
        for (element, child) in &other.children {
            self.children
                .entry(element.clone())
                .or_default()
                .union(child);
        }
    }

    pub(super) fn minus(&self, other: &Self) -> Self {
        let mut out = Self {
            own: self.own && !other.own,
            children: BTreeMap::new(),
        };
        for (element, child) in &self.children {
            let rest = match other.children.get(element) {
                Some(gone) => child.minus(gone),
                None => child.clone(),
            };
            out.put(element.clone(), rest);
        }
        out
    }

    pub(super) fn common(&self, other: &Self) -> Self {
        let mut out = Self {
            own: self.own && other.own,
            children: BTreeMap::new(),
        };
        for (element, child) in &self.children {
            if let Some(theirs) = other.children.get(element) {
                out.put(element.clone(), child.common(theirs));
            }
        }
        out
    }

    /// `FieldsV1`.
    pub(super) fn to_json(&self) -> Value {
        let mut out = Map::new();
        if self.own && !self.children.is_empty() {
            out.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (element, child) in &self.children {
            out.insert(element.clone(), child.to_json());
        }
        Value::Object(out)
    }

    /// From `FieldsV1`; what makes no sense is left out.
    pub(super) fn from_json(value: &Value) -> Self {
        let mut out = Self::default();
        for (element, child) in value.as_object().into_iter().flatten() {
            if element == "." {
                out.own = true;
                continue;
            }
            let empty = child.as_object().is_none_or(Map::is_empty);
            let child = if empty {
                Self::leaf()
            } else {
                Self::from_json(child)
            };
            out.children.insert(element.clone(), child);
        }
        out
    }

    /// The paths in words, for example `.spec.ports[name="x"].port`; the first [`PATHS_MAX`].
    pub(super) fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect("", &mut out);
        out
    }

    fn collect(&self, prefix: &str, out: &mut Vec<String>) {
        if self.own {
            out.push(prefix.to_owned());
        }
        for (element, child) in &self.children {
            if out.len() >= PATHS_MAX {
                return;
            }
            child.collect(&format!("{prefix}{}", shortened(&spelled(element))), out);
        }
    }
}

fn spelled(element: &str) -> String {
    if let Some(name) = element.strip_prefix("f:") {
        return format!(".{name}");
    }
    let Some(keys) = element.strip_prefix("k:") else {
        let value = element
            .strip_prefix("v:")
            .map(|value| format!("[={value}]"));
        return value.unwrap_or_else(|| format!("[{}]", element.trim_start_matches("i:")));
    };
    let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
    let keys: Vec<String> = keys
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    format!("[{}]", keys.join(","))
}

/// All fields that `value` sets.
pub(super) fn of(value: &Value, schema: &Schema) -> FieldSet {
    let mut set = FieldSet::default();
    match value {
        Value::Object(map) if !schema.atomic_map => {
            for (key, child) in map {
                set.put(format!("f:{key}"), of_field(key, child, schema));
            }
        }
        Value::Array(list) if schema.list != ListType::Atomic => {
            for item in list {
                let mut child = of(item, schema.item());
                child.own = true;
                set.put(element_of(item, schema), child);
            }
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => set.own = true,
    }
    set
}

/// The fields of an entry of a map. Entries of open maps are fields themselves.
pub(super) fn of_field(key: &str, value: &Value, schema: &Schema) -> FieldSet {
    let mut child = of(value, schema.field(key));
    let empty =
        value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty);
    child.own |= empty || value.is_null() || !schema.properties.contains_key(key);
    child
}

/// How an item of a granular list is told apart from the others.
pub(super) fn element_of(item: &Value, schema: &Schema) -> String {
    let ListType::Map(keys) = &schema.list else {
        return format!("v:{item}");
    };
    let mut out = Map::new();
    for key in keys {
        let default = schema.item().field(key).default.as_ref();
        if let Some(value) = item.get(key).or(default) {
            out.insert(key.clone(), value.clone());
        }
    }
    format!("k:{}", Value::Object(out))
}
