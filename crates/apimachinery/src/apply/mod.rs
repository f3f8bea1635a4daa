//! Server-side apply: who owns which field, and what happens when two want the same.
//!
//! Follows structured-merge-diff in what clients can see. Every kind's views show the same fields,
//! so sets of different versions need no conversion.

mod check;
mod diff;
mod fields;
mod managers;
mod merge;

use jiff::Timestamp;
use serde_json::Value;

use crate::schema::Schema;
use crate::status::{Cause, Status};
use diff::diff;
use fields::FieldSet;
use managers::{Managers, Operation};

/// Who writes, and through what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Editor<'a> {
    pub(crate) manager: &'a str,
    pub(crate) api_version: &'a str,
    /// Empty for the resource itself.
    pub(crate) subresource: &'a str,
    /// Whether `status` is written through `/status` only.
    pub(crate) has_status: bool,
    pub(crate) now: Timestamp,
    /// Most managers by update, at least 1.
    pub(crate) updaters_max: usize,
}

/// Notes in `new` that the editor changed what differs from `old` (`Null` at creation).
pub(crate) fn track_update(schema: &Schema, old: &Value, new: &mut Value, editor: Editor<'_>) {
    let mut managers = Managers::read(new).unwrap_or_else(|| Managers::read_or_empty(old));
    let mut difference = diff(old, new, schema);
    managers.disown(&difference.removed, None);
    editor.reset(&mut difference.changed);
    managers.disown(&difference.changed, Some((Operation::Update, editor)));
    managers.add(Operation::Update, editor, &difference.changed);
    managers.write(new, editor.updaters_max);
}

/// `live` (`Null` if there is none) with `config` applied to it.
///
/// # Errors
/// 400 if items of a list can't be told apart, and 409 with one cause for each field that somebody
/// else owns and sees differently, unless `force`.
pub(crate) fn apply(
    schema: &Schema,
    live: &Value,
    config: &Value,
    editor: Editor<'_>,
    force: bool,
) -> Result<Value, Status> {
    check::check(config, schema)?;
    let mut managers = Managers::read_or_empty(live);
    let mut wanted = fields::of(config, schema);
    editor.reset(&mut wanted);
    let mut merged = live.clone();
    merge::merge(&mut merged, config, schema);
    let last = managers
        .set_of(Operation::Apply, editor)
        .cloned()
        .unwrap_or_default();
    let mut kept = managers.union_of_others(Operation::Apply, editor);
    kept.union(&wanted);
    merge::prune(&mut merged, &last.minus(&wanted), &kept, schema);
    let difference = diff(live, &merged, schema);
    let conflicts = managers.conflicts(&difference.changed, editor);
    if !conflicts.is_empty() && !force {
        return Err(refuse(&conflicts));
    }
    managers.disown(&difference.removed, Some((Operation::Apply, editor)));
    managers.disown(&difference.changed, Some((Operation::Apply, editor)));
    managers.replace(Operation::Apply, editor, wanted);
    managers.write(&mut merged, editor.updaters_max);
    Ok(merged)
}

/// A field that somebody else owns.
struct Conflict {
    /// Who, spelled out.
    with: String,
    fields: Vec<String>,
}

fn refuse(conflicts: &[Conflict]) -> Status {
    let mut causes = Vec::new();
    let mut texts = Vec::new();
    for conflict in conflicts {
        for field in &conflict.fields {
            let message = format!("conflict with {}", conflict.with);
            causes.push(Cause {
                reason: "FieldManagerConflict",
                message,
                field: field.clone(),
            });
        }
        texts.push(match conflict.fields.as_slice() {
            [one] => format!("conflict with {}: {one}", conflict.with),
            many => format!("conflicts with {}:\n- {}", conflict.with, many.join("\n- ")),
        });
    }
    let plural = if causes.len() == 1 { "" } else { "s" };
    let message = format!(
        "Apply failed with {} conflict{plural}: {}",
        causes.len(),
        texts.join("\n")
    );
    Status::new(http::StatusCode::CONFLICT, "Conflict", message).with_causes(causes)
}

/// Fields of `metadata` that nobody owns.
const SYSTEM_METADATA: [&str; 11] = [
    "f:name",
    "f:namespace",
    "f:creationTimestamp",
    "f:deletionTimestamp",
    "f:deletionGracePeriodSeconds",
    "f:selfLink",
    "f:uid",
    "f:generation",
    "f:generateName",
    "f:managedFields",
    "f:resourceVersion",
];

impl Editor<'_> {
    /// Takes out of `set` what nobody owns, and what can't be written through this path.
    fn reset(&self, set: &mut FieldSet) {
        set.remove("f:apiVersion");
        set.remove("f:kind");
        match (self.subresource, self.has_status) {
            ("status", _) => set.retain_only("f:status"),
            (_, true) => set.remove("f:status"),
            (_, false) => {}
        }
        if let Some(metadata) = set.child_mut("f:metadata") {
            metadata.disown_self();
            for field in SYSTEM_METADATA {
                metadata.remove(field);
            }
        }
        set.tidy();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::compile;

    fn schema() -> Schema {
        let schema = json!({"type": "object", "properties": {
            "metadata": crate::openapi::object_meta(),
            "spec": {"type": "object", "properties": {
                "a": {"type": "string"}, "b": {"type": "string"},
                "ports": {"type": "array", "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                    "items": {"type": "object", "properties": {
                        "name": {"type": "string"}, "port": {"type": "integer"}}}},
            }},
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }});
        compile(&schema).expect("schema")
    }

    fn editor(manager: &str) -> Editor<'_> {
        let now = "2026-01-01T00:00:00Z".parse().expect("time");
        Editor {
            manager,
            api_version: "x.io/v1",
            subresource: "",
            has_status: true,
            now,
            updaters_max: 10,
        }
    }

    fn applied(live: &Value, spec: &Value, by: &str, force: bool) -> Result<Value, Status> {
        let config = json!({"apiVersion": "x.io/v1", "kind": "T", "metadata": {"name": "t"},
            "spec": spec});
        apply(&schema(), live, &config, editor(by), force)
    }

    #[test]
    fn the_fields_of_an_apply_are_owned_by_its_manager() {
        let object = applied(&Value::Null, &json!({"a": "1"}), "me", false).expect("applied");
        assert_eq!(
            object["metadata"]["managedFields"],
            json!([{
                "manager": "me", "operation": "Apply", "apiVersion": "x.io/v1",
                "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
                "fieldsV1": {"f:spec": {"f:a": {}}},
            }])
        );
    }

    #[test]
    fn a_field_that_is_no_longer_applied_goes_away() {
        let first = applied(&Value::Null, &json!({"a": "1", "b": "2"}), "me", false).expect("one");
        let second = applied(&first, &json!({"a": "1"}), "me", false).expect("two");
        assert_eq!(second["spec"], json!({"a": "1"}));
    }

    #[test]
    fn two_who_want_different_values_conflict_until_one_forces() {
        let first = applied(&Value::Null, &json!({"a": "1"}), "me", false).expect("one");
        let refused = applied(&first, &json!({"a": "2"}), "you", false).expect_err("conflict");
        assert_eq!(
            refused.message(),
            "Apply failed with 1 conflict: conflict with \"me\": .spec.a"
        );
        assert_eq!(refused.causes()[0].field, ".spec.a");
        let forced = applied(&first, &json!({"a": "2"}), "you", true).expect("forced");
        let managers = forced["metadata"]["managedFields"]
            .as_array()
            .expect("managers");
        assert_eq!(
            (managers.len(), &managers[0]["manager"]),
            (1, &json!("you"))
        );
    }

    #[test]
    fn the_same_value_is_shared_and_survives_until_both_let_go() {
        let first = applied(&Value::Null, &json!({"a": "1"}), "me", false).expect("one");
        let shared = applied(&first, &json!({"a": "1"}), "you", false).expect("two");
        let one_left = applied(&shared, &json!({}), "me", false).expect("three");
        assert_eq!(one_left["spec"], json!({"a": "1"}));
        let none_left = applied(&one_left, &json!({}), "you", false).expect("four");
        assert_eq!(none_left["spec"], json!({}));
    }

    #[test]
    fn items_of_a_map_list_are_owned_one_by_one() {
        let one = json!({"ports": [{"name": "x", "port": 1}]});
        let two = json!({"ports": [{"name": "y", "port": 2}]});
        let first = applied(&Value::Null, &one, "me", false).expect("one");
        let both = applied(&first, &two, "you", false).expect("two");
        assert_eq!(
            both["spec"]["ports"],
            json!([{"name": "x", "port": 1}, {"name": "y", "port": 2}])
        );
        let mine_gone = applied(&both, &json!({}), "me", false).expect("three");
        assert_eq!(
            mine_gone["spec"]["ports"],
            json!([{"name": "y", "port": 2}])
        );
    }

    #[test]
    fn a_list_that_is_applied_empty_stays() {
        let full = json!({"a": "1", "ports": [{"name": "x", "port": 1}]});
        let first = applied(&Value::Null, &full, "me", false).expect("one");
        let empty = json!({"a": "1", "ports": []});
        let second = applied(&first, &empty, "me", false).expect("two");
        assert_eq!(second["spec"], empty);
        assert_eq!(
            applied(&second, &empty, "me", false).expect("three"),
            second
        );
    }

    #[test]
    fn items_that_cannot_be_told_apart_are_refused() {
        for (ports, why) in [
            (json!([{"port": 1}]), "omits key field \"name\""),
            (json!([1]), "omits key field \"name\""),
            (
                json!([{"name": "x"}, {"name": "x"}]),
                "duplicate entries for key",
            ),
        ] {
            let spec = json!({"ports": ports});
            let refused = applied(&Value::Null, &spec, "me", true).expect_err("refused");
            assert_eq!(refused.code(), 400);
            assert!(refused.message().contains(why), "{refused}");
        }
    }

    #[test]
    fn long_lists_are_applied_in_time() {
        let ports = |from: usize| -> Value {
            let port = |at: usize| json!({"name": at.to_string(), "port": 1});
            json!({"ports": (from..from + 20_000).map(port).collect::<Vec<_>>()})
        };
        let began = std::time::Instant::now();
        let first = applied(&Value::Null, &ports(0), "me", false).expect("one");
        let second = applied(&first, &ports(10_000), "me", false).expect("two");
        assert_eq!(
            second["spec"]["ports"].as_array().map(Vec::len),
            Some(20_000)
        );
        assert!(began.elapsed() < std::time::Duration::from_secs(30));
    }

    #[test]
    fn a_conflict_names_no_more_than_people_read() {
        let long = json!({"a": "1", "k".repeat(10_000): {"a": "2"}});
        let mut set = fields::of(&long, Schema::any());
        assert!(set.paths().iter().all(|path| path.len() <= 2_100));
        let many: serde_json::Map<_, _> = (0..1_000).map(|at| (at.to_string(), json!(1))).collect();
        set.union(&fields::of(&Value::Object(many), Schema::any()));
        assert_eq!(set.paths().len(), 200);
    }

    #[test]
    fn an_update_takes_ownership_of_what_it_changed() {
        let first = applied(&Value::Null, &json!({"a": "1", "b": "1"}), "me", false).expect("one");
        let mut edited = first.clone();
        edited["spec"]["a"] = json!("2");
        edited["status"] = json!({"ignored": true});
        track_update(&schema(), &first, &mut edited, editor("edit"));
        let managers = edited["metadata"]["managedFields"]
            .as_array()
            .expect("managers");
        assert_eq!(managers[0]["fieldsV1"], json!({"f:spec": {"f:b": {}}}));
        assert_eq!(managers[1]["operation"], "Update");
        assert_eq!(managers[1]["fieldsV1"], json!({"f:spec": {"f:a": {}}}));
        let refused = applied(&edited, &json!({"a": "1", "b": "1"}), "me", false);
        let message = refused.expect_err("conflict").message().to_owned();
        assert!(
            message.contains("\"edit\" using x.io/v1 at 2026-01-01T00:00:00Z"),
            "{message}"
        );
    }

    #[test]
    fn applying_the_same_again_changes_nothing() {
        let spec = json!({"a": "1", "ports": [{"name": "x", "port": 1}]});
        let first = applied(&Value::Null, &spec, "me", false).expect("one");
        let later = Editor {
            now: "2026-01-02T00:00:00Z".parse().expect("time"),
            ..editor("me")
        };
        let config = json!({"metadata": {"name": "t"}, "spec": spec});
        assert_eq!(
            apply(&schema(), &first, &config, later, false).expect("two"),
            first
        );
    }
}
