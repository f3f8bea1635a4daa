//! Pod: an empty list, so that clients which look for pods on a node find none.

use godwit_apimachinery::{Column, ColumnType, Kind, Verb, View};

use super::schema;

pub(crate) fn kind() -> Kind {
    let phase = Column::path(
        "Status",
        ColumnType::String,
        ".status.phase",
        "How far it is.",
    );
    Kind {
        short_names: vec!["po"],
        categories: vec!["all"],
        verbs: Verb::READ.to_vec(),
        strategic_merge: true,
        schema: schema::parse(include_str!("schema/pod.yaml")),
        columns: vec![phase, Column::age()],
        selectable_fields: vec!["spec.nodeName", "status.phase"],
        ..Kind::custom("Pod", "pods", vec![View::new("", "v1")])
    }
}
