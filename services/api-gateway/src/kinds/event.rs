//! Event: what happened, in the core group and in events.k8s.io, over the same store.
//!
//! The core form is the one that is kept: `kubectl describe` reads it alone.

use godwit_apimachinery::{Column, ColumnType, Kind, Source, View};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{resource, schema};
use crate::age;

const SELECTABLE: [&str; 11] = [
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source.component",
    "type",
];

/// The core group's view.
pub(crate) fn core() -> Kind {
    declare(
        View::new("", "v1"),
        schema::parse(include_str!("schema/event.yaml")),
    )
}

/// The view of events.k8s.io, with other names for the same fields.
pub(crate) fn events_group() -> Kind {
    let mut view = View::new("events.k8s.io", "v1");
    view.present = Some(present);
    view.absorb = Some(absorb);
    declare(view, schema::open())
}

fn declare(view: View, schema: Value) -> Kind {
    Kind {
        resource: resource::EVENTS.to_owned(),
        short_names: vec!["ev"],
        has_status: false,
        strategic_merge: true,
        schema,
        columns: columns(),
        selectable_fields: SELECTABLE.to_vec(),
        ..Kind::custom("Event", "events", vec![view])
    }
}

fn columns() -> Vec<Column> {
    let text = |name, path| Column::path(name, ColumnType::String, path, "");
    let mut count = text("Count", ".count").wide();
    count.kind = ColumnType::Integer;
    count.source = Source::Compute(|event, _| json!(event["count"].as_i64().unwrap_or(1)));
    let mut name = text("Name", ".metadata.name").wide();
    name.format = "name";
    vec![
        Column::computed("Last Seen", last_seen, "Time since it happened last."),
        text("Type", ".type"),
        text("Reason", ".reason"),
        Column::computed(
            "Object",
            |event, _| json!(object(event)),
            "What it happened to.",
        ),
        text("Subobject", ".involvedObject.fieldPath").wide(),
        Column::computed("Source", |event, _| json!(source(event)), "Who saw it.").wide(),
        Column::computed(
            "Message",
            |event, _| json!(event["message"].as_str().unwrap_or_default().trim()),
            "What happened.",
        ),
        Column::computed("First Seen", first_seen, "Time since it happened first.").wide(),
        count,
        name,
    ]
}

fn last_seen(event: &Value, now: Timestamp) -> Value {
    let times = ["lastTimestamp", "firstTimestamp", "eventTime"];
    json!(age::since_first_of(event, &times, now))
}

fn first_seen(event: &Value, now: Timestamp) -> Value {
    json!(age::since_first_of(
        event,
        &["firstTimestamp", "eventTime"],
        now
    ))
}

fn object(event: &Value) -> String {
    let object = &event["involvedObject"];
    let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
    match object["name"].as_str().unwrap_or_default() {
        "" => kind,
        name => format!("{kind}/{name}"),
    }
}

fn source(event: &Value) -> String {
    let component = event["source"]["component"]
        .as_str()
        .or_else(|| event["reportingComponent"].as_str())
        .unwrap_or_default();
    match event["source"]["host"].as_str().unwrap_or_default() {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    }
}

/// Fields of the core form and their names in events.k8s.io.
const RENAMED: [(&str, &str); 8] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
    ("related", "related"),
];

fn present(core: Value) -> Value {
    rename(core, |(from, to)| (from, to))
}

fn absorb(event: Value) -> Value {
    let mut core = rename(event, |(core, other)| (other, core));
    // The core form always has it, be it empty.
    if let Some(fields) = core.as_object_mut() {
        fields.entry("involvedObject").or_insert_with(|| json!({}));
    }
    core
}

fn rename(
    value: Value,
    direction: fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> Value {
    let Value::Object(mut fields) = value else {
        return value;
    };
    let mut renamed = Map::new();
    for pair in RENAMED {
        let (from, to) = direction(pair);
        if let Some(field) = fields.remove(from) {
            renamed.insert(to.to_owned(), field);
        }
    }
    fields.append(&mut renamed);
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Value {
        json!({
            "metadata": {"name": "rhel8.1", "namespace": "default"},
            "involvedObject": {"kind": "VirtualMachineInstance", "name": "rhel8-server-nfs"},
            "reason": "Migrated", "message": " moved ", "type": "Normal", "count": 2,
            "source": {"component": "virt-handler", "host": "worker1"},
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:05:00Z",
        })
    }

    #[test]
    fn the_two_groups_show_the_same_event() {
        let shown = present(event());
        assert_eq!(shown["regarding"]["name"], "rhel8-server-nfs");
        assert_eq!(shown["note"], " moved ");
        assert_eq!(shown["deprecatedCount"], 2);
        assert!(shown.get("involvedObject").is_none());
        assert_eq!(absorb(shown), event());
        assert_eq!(absorb(json!({})), json!({"involvedObject": {}}));
    }

    #[test]
    fn the_columns_name_who_saw_what_and_when() {
        let now: Timestamp = "2026-01-01T00:21:00Z".parse().unwrap();
        assert_eq!(last_seen(&event(), now), json!("16m"));
        assert_eq!(first_seen(&event(), now), json!("21m"));
        assert_eq!(object(&event()), "virtualmachineinstance/rhel8-server-nfs");
        assert_eq!(source(&event()), "virt-handler, worker1");
        assert_eq!(last_seen(&json!({}), now), json!("<unknown>"));
    }
}
