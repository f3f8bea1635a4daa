//! Structural schemas: compiled once from OpenAPI, then used to check, prune, default and merge.

mod check;
mod compile;

use std::collections::BTreeMap;

use serde_json::Value;

pub(crate) use compile::compile;

/// One node of a schema.
#[derive(Debug, Clone, Default)]
pub(crate) struct Schema {
    pub(crate) of: Type,
    pub(crate) properties: BTreeMap<String, Schema>,
    /// Schema of values under keys that are not declared.
    pub(crate) additional: Option<Box<Schema>>,
    pub(crate) items: Option<Box<Schema>>,
    /// Undeclared fields are kept as they are.
    pub(crate) preserve: bool,
    pub(crate) nullable: bool,
    pub(crate) required: Vec<String>,
    pub(crate) one_of_values: Vec<Value>,
    pub(crate) minimum: Option<f64>,
    pub(crate) maximum: Option<f64>,
    pub(crate) min_length: Option<u64>,
    pub(crate) max_length: Option<u64>,
    pub(crate) min_items: Option<u64>,
    pub(crate) max_items: Option<u64>,
    /// Texts are times of RFC 3339.
    pub(crate) date_time: bool,
    pub(crate) default: Option<Value>,
    pub(crate) list: ListType,
    /// Maps that are owned as a whole.
    pub(crate) atomic_map: bool,
    /// Strategic merge: how lists of this field merge.
    pub(crate) patch: PatchList,
}

/// The type of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Type {
    #[default]
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
}

/// How server-side apply sees a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum ListType {
    #[default]
    Atomic,
    Set,
    /// Items are told apart by these fields.
    Map(Vec<String>),
}

/// How a strategic merge patch sees a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum PatchList {
    #[default]
    Replace,
    /// A set of scalars.
    Union,
    /// Items are told apart by this field.
    MergeBy(String),
}

impl Schema {
    /// Accepts anything; stands for what is below fields that are kept as they are.
    pub(crate) const fn any() -> &'static Self {
        static ANY: Schema = Schema {
            of: Type::Any,
            properties: BTreeMap::new(),
            additional: None,
            items: None,
            preserve: true,
            nullable: true,
            required: Vec::new(),
            one_of_values: Vec::new(),
            minimum: None,
            maximum: None,
            min_length: None,
            max_length: None,
            min_items: None,
            max_items: None,
            date_time: false,
            default: None,
            list: ListType::Atomic,
            atomic_map: false,
            patch: PatchList::Replace,
        };
        &ANY
    }

    /// The schema of a field; anything if nothing is said about it.
    pub(crate) fn field(&self, key: &str) -> &Self {
        let declared = self.properties.get(key).or(self.additional.as_deref());
        declared.unwrap_or_else(|| Self::any())
    }

    /// The schema of list items.
    pub(crate) fn item(&self) -> &Self {
        self.items.as_deref().unwrap_or_else(|| Self::any())
    }
}
