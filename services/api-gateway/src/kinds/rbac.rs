//! Role, ClusterRole, RoleBinding, ClusterRoleBinding: who may do what, as objects.
//!
//! What they mean is in [`crate::rbac`]; here they are declared, checked and kept from granting more
//! than their writer holds.

mod admit;
mod check;

use std::sync::Arc;

use godwit_apimachinery::{Column, ColumnType, Kind, Source, View};
use serde_json::{Value, json};

use super::schema;
use crate::facts::Facts;
use crate::rbac::GROUP;
use admit::{Bindings, Roles};

/// All four.
pub(crate) fn kinds(facts: &Facts) -> [Kind; 4] {
    let roles = Arc::new(Roles::new(facts));
    let bindings = Arc::new(Bindings::new(facts));
    let role = Kind {
        schema: schema::parse(include_str!("schema/role.yaml")),
        columns: vec![created_at()],
        admission: roles.clone(),
        ..builtin("Role", "roles")
    };
    let cluster_role = Kind {
        namespaced: false,
        schema: schema::parse(include_str!("schema/cluster_role.yaml")),
        columns: vec![created_at()],
        admission: roles,
        ..builtin("ClusterRole", "clusterroles")
    };
    let role_binding = Kind {
        schema: schema::parse(include_str!("schema/role_binding.yaml")),
        columns: binding_columns(),
        admission: bindings.clone(),
        ..builtin("RoleBinding", "rolebindings")
    };
    let cluster_role_binding = Kind {
        namespaced: false,
        schema: schema::parse(include_str!("schema/cluster_role_binding.yaml")),
        columns: binding_columns(),
        admission: bindings,
        ..builtin("ClusterRoleBinding", "clusterrolebindings")
    };
    [role, cluster_role, role_binding, cluster_role_binding]
}

fn builtin(kind: &'static str, plural: &'static str) -> Kind {
    Kind {
        has_status: false,
        strategic_merge: true,
        loose_names: true,
        ..Kind::custom(kind, plural, vec![View::new(GROUP, "v1")])
    }
}

/// Kubernetes shows the time itself here, not the age.
fn created_at() -> Column {
    Column {
        name: "Created At",
        kind: ColumnType::Date,
        format: "",
        description: "When the object was created.",
        priority: 0,
        source: Source::Compute(|object, _| object["metadata"]["creationTimestamp"].clone()),
    }
}

fn binding_columns() -> Vec<Column> {
    let role = |object: &Value, _| {
        let text = |key: &str| {
            object["roleRef"][key]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        json!(format!("{}/{}", text("kind"), text("name")))
    };
    let users = |object: &Value, _| json!(subjects(object, "User"));
    let groups = |object: &Value, _| json!(subjects(object, "Group"));
    let accounts = |object: &Value, _| json!(subjects(object, "ServiceAccount"));
    vec![
        Column::computed("Role", role, "The role that is granted."),
        Column::age(),
        Column::computed("Users", users, "Users in the binding.").wide(),
        Column::computed("Groups", groups, "Groups in the binding.").wide(),
        Column::computed(
            "ServiceAccounts",
            accounts,
            "Service accounts in the binding.",
        )
        .wide(),
    ]
}

/// The subjects of one kind, as `a, b`; accounts with their namespace.
fn subjects(object: &Value, kind: &str) -> String {
    let all = object["subjects"].as_array().into_iter().flatten();
    let names: Vec<String> = all
        .filter(|subject| subject["kind"] == kind)
        .map(|subject| {
            let name = subject["name"].as_str().unwrap_or_default();
            match (kind, subject["namespace"].as_str().unwrap_or_default()) {
                ("ServiceAccount", space) => format!("{space}/{name}"),
                (_, _) => name.to_owned(),
            }
        })
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binding_shows_its_subjects_by_kind() {
        let object = json!({"subjects": [
            {"kind": "User", "name": "ann"}, {"kind": "Group", "name": "devs"},
            {"kind": "User", "name": "bob"},
            {"kind": "ServiceAccount", "name": "robot", "namespace": "a"},
        ]});
        assert_eq!(subjects(&object, "User"), "ann, bob");
        assert_eq!(subjects(&object, "Group"), "devs");
        assert_eq!(subjects(&object, "ServiceAccount"), "a/robot");
    }
}
