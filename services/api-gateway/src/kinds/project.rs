//! Project of project.openshift.io: Namespace under the name that `oc` knows, read only.

use godwit_apimachinery::object::annotation;
use godwit_apimachinery::{Column, ColumnType, Kind, Verb, View};
use serde_json::json;

use super::{resource, schema};

pub(crate) fn kind() -> Kind {
    let display = Column::computed(
        "Display Name",
        |object, _| json!(annotation(object, "openshift.io/display-name").unwrap_or_default()),
        "Name for people.",
    );
    let phase = Column::path(
        "Status",
        ColumnType::String,
        ".status.phase",
        "Active, or leaving.",
    );
    Kind {
        resource: resource::NAMESPACES.to_owned(),
        namespaced: false,
        verbs: Verb::READ.to_vec(),
        // Of a namespace, it is written there.
        has_status: false,
        schema: schema::parse(include_str!("schema/namespace.yaml")),
        columns: vec![display, phase],
        ..Kind::custom(
            "Project",
            "projects",
            vec![View::new("project.openshift.io", "v1")],
        )
    }
}
