//! Declaration of a kind: everything a served resource is, said once.
//!
//! Called by whoever embeds the server; nothing in here does anything.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use crate::admission::{Admission, AdmitAll};

/// A stored kind and all the ways it is shown.
///
/// Two kinds may name the same `resource`; they then show the same stored objects.
pub struct Kind {
    /// The key under which the [`Store`](crate::Store) knows these objects.
    pub resource: String,
    /// API groups and versions that show it, at least one. The first is the storage form.
    pub views: Vec<View>,
    /// Plural in paths, lower case.
    pub plural: &'static str,
    /// Singular, lower case.
    pub singular: String,
    /// The word in `kind:`.
    pub kind: &'static str,
    /// Usually `kind` + `List`.
    pub list_kind: String,
    /// For people in a hurry. Discovery shows them in the group of the first view only.
    pub short_names: Vec<&'static str>,
    /// Such as `all`. Discovery shows them in the group of the first view only.
    pub categories: Vec<&'static str>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Whether `status` is written through `/status` only.
    pub has_status: bool,
    /// What may be done with it; [`Verb::ALL`] unless restricted.
    pub verbs: Vec<Verb>,
    /// Columns after `Name`. Empty means `Age`. A column named `Name` replaces the automatic one.
    pub columns: Vec<Column>,
    /// OpenAPI v3 schema of the whole object. `apiVersion`, `kind` and `metadata` are filled in.
    /// Understood: structural schemas with `default`, `x-kubernetes-preserve-unknown-fields`,
    /// `-int-or-string`, `-list-type`, `-list-map-keys`, `-map-type`, `-patch-merge-key`,
    /// `-patch-strategy`. No `$ref`.
    pub schema: Value,
    /// Dotted paths that field selectors may name, besides `metadata.name` and `.namespace`. What
    /// a missing field counts as may follow an equal sign: `spec.unschedulable=false`.
    pub selectable_fields: Vec<&'static str>,
    /// Whether names only need to fit into a path (`system:admin`), and not into DNS.
    pub loose_names: bool,
    /// Whether strategic merge patches are accepted (built-in kinds), else 415 (custom kinds).
    pub strategic_merge: bool,
    /// Run on each write, after decoding and schema validation.
    pub admission: Arc<dyn Admission>,
}

impl Kind {
    /// A namespaced custom kind with every verb, a `status` subresource and the default column.
    ///
    /// `resource` is set to `plural.group` (or `plural` in the core group) of the first view.
    pub fn custom(kind: &'static str, plural: &'static str, views: Vec<View>) -> Self {
        let resource = match views.first() {
            Some(View { group: "", .. }) | None => plural.to_owned(),
            Some(View { group, .. }) => format!("{plural}.{group}"),
        };
        Self {
            resource,
            views,
            plural,
            singular: kind.to_lowercase(),
            kind,
            list_kind: format!("{kind}List"),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: true,
            has_status: true,
            verbs: Verb::ALL.to_vec(),
            columns: Vec::new(),
            schema: serde_json::json!({
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": true,
            }),
            selectable_fields: Vec::new(),
            loose_names: false,
            strategic_merge: false,
            admission: Arc::new(AdmitAll),
        }
    }
}

/// A group and version under which a kind is shown.
#[derive(Clone)]
pub struct View {
    /// Empty for the core group.
    pub group: &'static str,
    /// For example `v1alpha3`.
    pub version: &'static str,
    /// Text of the `Warning` header that every use of this view gets.
    pub deprecated: Option<String>,
    /// Columns of this view, where they differ from the kind's. Cells see the storage form.
    pub columns: Option<Vec<Column>>,
    /// Schema of this view, where it differs from the kind's.
    pub schema: Option<Value>,
    /// From storage form to this view, where more differs than `apiVersion`.
    pub present: Option<fn(Value) -> Value>,
    /// From this view to storage form, where more differs than `apiVersion`.
    pub absorb: Option<fn(Value) -> Value>,
}

impl View {
    /// A view that differs from the storage form in `apiVersion` alone.
    pub fn new(group: &'static str, version: &'static str) -> Self {
        Self {
            group,
            version,
            deprecated: None,
            columns: None,
            schema: None,
            present: None,
            absorb: None,
        }
    }

    /// Says so in a `Warning` header on every use.
    #[must_use]
    pub fn deprecated(mut self, warning: impl Into<String>) -> Self {
        self.deprecated = Some(warning.into());
        self
    }

    /// `group/version`, or the version alone in the core group.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }
}

/// `group/version`, or the version alone in the core group.
pub(crate) fn api_version(group: &str, version: &str) -> String {
    match group {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    }
}

/// What can be done with a resource, as authorization and discovery spell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// Make one.
    Create,
    /// Remove one.
    Delete,
    /// Remove all that match.
    DeleteCollection,
    /// Read one.
    Get,
    /// Read many.
    List,
    /// Change parts of one.
    Patch,
    /// Replace one.
    Update,
    /// Follow changes.
    Watch,
}

impl Verb {
    /// Everything, in the order discovery shows.
    pub const ALL: [Self; 8] = [
        Self::Delete,
        Self::DeleteCollection,
        Self::Get,
        Self::List,
        Self::Patch,
        Self::Create,
        Self::Update,
        Self::Watch,
    ];

    /// Reading without writing.
    pub const READ: [Self; 3] = [Self::Get, Self::List, Self::Watch];

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Get => "get",
            Self::List => "list",
            Self::Patch => "patch",
            Self::Update => "update",
            Self::Watch => "watch",
        }
    }
}

/// A column of `kubectl get`.
#[derive(Clone)]
pub struct Column {
    /// Header; clients show it in upper case.
    pub name: &'static str,
    /// How the cell is printed.
    pub kind: ColumnType,
    /// OpenAPI format, often empty.
    pub format: &'static str,
    /// One sentence for people.
    pub description: &'static str,
    /// 0 always shows, 1 only with `-o wide`.
    pub priority: i32,
    /// Where the cell comes from.
    pub source: Source,
}

/// OpenAPI types of cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// As it is.
    String,
    /// A whole number.
    Integer,
    /// Any number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A time, shown as an age.
    Date,
}

/// Where a cell comes from.
#[derive(Clone)]
pub enum Source {
    /// A path as in a CRD's `jsonPath`: `.a.b`, `[0]`, `[*]`, `['k']`, `[?(@.type=='Ready')].x`.
    Path(&'static str),
    /// Computed from the object in storage form and the present time.
    Compute(fn(&Value, Timestamp) -> Value),
}

impl Column {
    /// A column that reads a path.
    pub fn path(
        name: &'static str,
        kind: ColumnType,
        path: &'static str,
        description: &'static str,
    ) -> Self {
        let source = Source::Path(path);
        Self {
            name,
            kind,
            format: "",
            description,
            priority: 0,
            source,
        }
    }

    /// A text column that is computed.
    pub fn computed(
        name: &'static str,
        compute: fn(&Value, Timestamp) -> Value,
        description: &'static str,
    ) -> Self {
        let source = Source::Compute(compute);
        Self {
            name,
            kind: ColumnType::String,
            format: "",
            description,
            priority: 0,
            source,
        }
    }

    /// `Age`, from the time of creation.
    pub fn age() -> Self {
        Self::path(
            "Age",
            ColumnType::Date,
            ".metadata.creationTimestamp",
            "Time since the object was created.",
        )
    }

    /// Shows only with `-o wide`.
    #[must_use]
    pub fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }
}

impl ColumnType {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::Date => "date",
        }
    }
}
