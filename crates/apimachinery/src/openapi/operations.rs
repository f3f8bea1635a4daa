//! What can be done with a resource, as data that both versions of OpenAPI are written from.

use crate::kind::Verb;
use crate::registry::Resource;

use super::{definitions, meta};

/// A path and what can be done at it.
pub(super) struct PathItem {
    pub(super) path: String,
    /// Names of the path's parameters.
    pub(super) parameters: Vec<&'static str>,
    pub(super) operations: Vec<Operation>,
}

/// One method at one path.
pub(super) struct Operation {
    pub(super) method: &'static str,
    /// `x-kubernetes-action`.
    pub(super) action: &'static str,
    pub(super) description: String,
    pub(super) id: String,
    pub(super) query: &'static [Parameter],
    pub(super) consumes: &'static [&'static str],
    /// Definition of the body.
    pub(super) body: Option<String>,
    /// Definitions of the answer: one of them.
    pub(super) answers: Vec<String>,
    /// Whether 201 is among the answers.
    pub(super) creates: bool,
}

/// A query parameter: name, OpenAPI type, description.
pub(super) type Parameter = (&'static str, &'static str, &'static str);

const DRY_RUN: Parameter = (
    "dryRun",
    "string",
    "When present, indicates that modifications \
    should not be persisted. Valid values are: All",
);
const FIELD_MANAGER: Parameter = (
    "fieldManager",
    "string",
    "The name associated with the actor \
    that is making these changes.",
);
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "How unknown and duplicate \
    fields are handled. Valid values are: Ignore, Warn (default), Strict",
);
const FORCE: Parameter = (
    "force",
    "boolean",
    "Take over fields that another manager owns. Only \
    for apply patches.",
);
const LABELS: Parameter = (
    "labelSelector",
    "string",
    "Restricts objects by their labels.",
);
const FIELDS: Parameter = (
    "fieldSelector",
    "string",
    "Restricts objects by their fields.",
);
const GRACE: Parameter = (
    "gracePeriodSeconds",
    "integer",
    "Seconds before the object should be \
    deleted.",
);
const PROPAGATION: Parameter = (
    "propagationPolicy",
    "string",
    "Whether and how garbage \
    collection will be performed: Orphan, Background or Foreground.",
);

const LIST: &[Parameter] = &[
    LABELS,
    FIELDS,
    ("limit", "integer", "Most objects in one answer."),
    ("continue", "string", "Where the last answer ended."),
    (
        "resourceVersion",
        "string",
        "Which revision to show, or to watch from.",
    ),
    (
        "resourceVersionMatch",
        "string",
        "How resourceVersion is meant: NotOlderThan or Exact.",
    ),
    ("watch", "boolean", "Follow changes."),
    (
        "allowWatchBookmarks",
        "boolean",
        "Send BOOKMARK events in a watch.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "Begin a watch with all objects and a bookmark.",
    ),
    (
        "timeoutSeconds",
        "integer",
        "Seconds after which a watch ends.",
    ),
];
const WRITE: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const PATCH: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];
const DELETE: &[Parameter] = &[DRY_RUN, GRACE, PROPAGATION];
const DELETE_MANY: &[Parameter] = &[DRY_RUN, GRACE, PROPAGATION, LABELS, FIELDS];

const OBJECT_TYPES: &[&str] = &["application/json", "application/yaml"];
const PATCH_CUSTOM: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
];
// Listing strategic makes kubectl compute one from the schema.
const PATCH_BUILT_IN: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// All paths of a resource.
pub(super) fn paths(resource: &Resource) -> Vec<PathItem> {
    let kind = &resource.kind;
    let group = resource.view.group;
    let root = if group.is_empty() { "/api" } else { "/apis" };
    let base = format!("{root}/{}", resource.api_version);
    let (place, scope) = match kind.namespaced {
        true => (
            format!("{base}/namespaces/{{namespace}}"),
            vec!["namespace"],
        ),
        false => (base.clone(), Vec::new()),
    };
    let plural = kind.plural;
    let named: Vec<&'static str> = ["name"].into_iter().chain(scope.iter().copied()).collect();
    let mut paths = vec![PathItem {
        path: format!("{place}/{plural}"),
        parameters: scope,
        operations: collection(resource),
    }];
    if kind.namespaced && kind.verbs.contains(&Verb::List) {
        paths.push(PathItem {
            path: format!("{base}/{plural}"),
            parameters: Vec::new(),
            operations: vec![list(resource, "ForAllNamespaces")],
        });
    }
    let object = format!("{place}/{plural}/{{name}}");
    if kind.has_status {
        paths.push(PathItem {
            path: format!("{object}/status"),
            parameters: named.clone(),
            operations: single(resource, "Status", &[Verb::Get, Verb::Update, Verb::Patch]),
        });
    }
    paths.push(PathItem {
        path: object,
        parameters: named,
        operations: single(resource, "", &kind.verbs),
    });
    paths.retain(|item| !item.operations.is_empty());
    paths
}

fn collection(resource: &Resource) -> Vec<Operation> {
    let kind = &resource.kind;
    let mut out = Vec::new();
    if kind.verbs.contains(&Verb::List) {
        out.push(list(resource, ""));
    }
    if kind.verbs.contains(&Verb::Create) {
        out.push(Operation {
            query: WRITE,
            consumes: OBJECT_TYPES,
            body: Some(definitions::name(resource, kind.kind)),
            creates: true,
            ..operation(resource, ("post", "post", "create"), "")
        });
    }
    if kind.verbs.contains(&Verb::DeleteCollection) {
        out.push(Operation {
            query: DELETE_MANY,
            body: Some(meta::name("DeleteOptions")),
            consumes: OBJECT_TYPES,
            answers: vec![
                meta::name("Status"),
                definitions::name(resource, &kind.list_kind),
            ],
            ..operation(
                resource,
                ("delete", "deletecollection", "deleteCollection"),
                "",
            )
        });
    }
    out
}

fn list(resource: &Resource, suffix: &str) -> Operation {
    Operation {
        query: LIST,
        answers: vec![definitions::name(resource, &resource.kind.list_kind)],
        ..operation(resource, ("get", "list", "list"), suffix)
    }
}

fn single(resource: &Resource, suffix: &str, verbs: &[Verb]) -> Vec<Operation> {
    let kind = &resource.kind;
    let mut out = Vec::new();
    if verbs.contains(&Verb::Get) {
        out.push(operation(resource, ("get", "get", "read"), suffix));
    }
    if verbs.contains(&Verb::Update) {
        out.push(Operation {
            query: WRITE,
            consumes: OBJECT_TYPES,
            body: Some(definitions::name(resource, kind.kind)),
            ..operation(resource, ("put", "put", "replace"), suffix)
        });
    }
    if verbs.contains(&Verb::Patch) {
        out.push(Operation {
            query: PATCH,
            consumes: if kind.strategic_merge {
                PATCH_BUILT_IN
            } else {
                PATCH_CUSTOM
            },
            body: Some(meta::name("Patch")),
            ..operation(resource, ("patch", "patch", "patch"), suffix)
        });
    }
    if verbs.contains(&Verb::Delete) {
        out.push(Operation {
            query: DELETE,
            consumes: OBJECT_TYPES,
            body: Some(meta::name("DeleteOptions")),
            // The object, while finalizers hold it.
            answers: vec![meta::name("Status"), definitions::name(resource, kind.kind)],
            ..operation(resource, ("delete", "delete", "delete"), suffix)
        });
    }
    out
}

/// An operation without a body that answers the object; `words` are method, action and verb.
fn operation(
    resource: &Resource,
    words: (&'static str, &'static str, &str),
    suffix: &str,
) -> Operation {
    let (method, action, verb) = words;
    let kind = &resource.kind;
    let scope = if kind.namespaced && suffix != "ForAllNamespaces" {
        "Namespaced"
    } else {
        ""
    };
    let pascal: String = resource
        .api_version
        .split(['/', '.'])
        .map(capitalized)
        .collect();
    Operation {
        method,
        action,
        description: match suffix {
            "Status" => format!("{verb} status of the specified {}", kind.kind),
            _ => format!("{verb} objects of kind {}", kind.kind),
        },
        id: format!("{verb}{pascal}{scope}{}{suffix}", kind.kind),
        query: &[],
        consumes: &[],
        body: None,
        answers: vec![definitions::name(resource, kind.kind)],
        creates: false,
    }
}

fn capitalized(word: &str) -> String {
    let mut chars = word.chars();
    let first = chars.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}
