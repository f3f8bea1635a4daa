//! Lease of coordination.k8s.io: `describe node` asks for one.

use godwit_apimachinery::{Column, ColumnType, Kind, View};

use super::schema;

pub(crate) fn kind() -> Kind {
    let holder = Column::path(
        "Holder",
        ColumnType::String,
        ".spec.holderIdentity",
        "Who holds it.",
    );
    Kind {
        has_status: false,
        strategic_merge: true,
        schema: schema::parse(include_str!("schema/lease.yaml")),
        columns: vec![holder, Column::age()],
        ..Kind::custom(
            "Lease",
            "leases",
            vec![View::new("coordination.k8s.io", "v1")],
        )
    }
}
