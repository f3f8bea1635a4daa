//! MigrationHistory of godwit.io: all that became of one migration, read only.
//!
//! A view of the ledger's own tables, so it stays when the VirtualMachineInstanceMigration is long
//! deleted.

use godwit_apimachinery::{Column, ColumnType, Kind, Verb, View};
use godwit_ledger::{JobHistory, Object, ObjectKey, TransitionRow};
use godwit_model::Revision;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{resource, schema};

pub(crate) fn kind() -> Kind {
    let text = |name, path, description| Column::path(name, ColumnType::String, path, description);
    let blackout = Column::computed(
        "Blackout",
        |object, _| match object["numbers"]["blackoutUs"].as_u64() {
            Some(micros) => json!(format!("{}ms", micros.div_ceil(1000))),
            None => json!(""),
        },
        "How long the guest's CPUs ran nowhere.",
    );
    Kind {
        has_status: false,
        verbs: vec![Verb::Get, Verb::List],
        schema: schema::parse(include_str!("schema/migration_history.yaml")),
        columns: vec![
            text("VMI", ".vmi", "The machine that was to move."),
            text("Source", ".source", "Where from."),
            text("Target", ".target", "Where to."),
            text("State", ".state", "How far it came."),
            blackout,
            Column::age(),
            text("Failure", ".failure", "Why it did not move.").wide(),
        ],
        ..Kind::custom(
            "MigrationHistory",
            "migrationhistories",
            vec![View::new("godwit.io", "v1alpha1")],
        )
    }
}

/// The object under `name`: the migration's own, or its UID. `revision` is not newer than it.
pub(crate) fn show(history: &JobHistory, name: &str, revision: Revision) -> Object {
    let job = &history.job;
    let transitions: Vec<Value> = history.transitions.iter().map(transition).collect();
    let requested = job.created_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    Object {
        key: ObjectKey::new(resource::MIGRATION_HISTORIES, &job.key.namespace, name),
        uid: job.id.to_string(),
        metadata: json!({ "creationTimestamp": requested }),
        body: without_nulls(json!({
            "migration": job.key.name,
            "vmi": job.vmi.name,
            "vmiUID": job.machine,
            "source": job.source,
            "target": job.target,
            "state": job.state.as_str(),
            "epoch": job.epoch.0,
            "failure": job.failure,
            "cancel": job.cancel,
            "requestedAt": time(job.created_at),
            "finishedAt": job.finished_at.map(time),
            "numbers": without_nulls(job.history.clone()),
            "transitions": transitions,
        })),
        status: None,
        revision,
    }
}

fn transition(row: &TransitionRow) -> Value {
    without_nulls(json!({
        "seq": row.seq,
        "from": row.from.map(|state| state.as_str()),
        "to": row.to.as_str(),
        "actor": row.actor,
        "epoch": row.epoch.0,
        "time": time(row.at),
        "reason": row.reason,
    }))
}

/// RFC 3339 with microseconds, as Kubernetes' MicroTime.
fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// What isn't known is absent, as everywhere in the API.
fn without_nulls(mut value: Value) -> Value {
    if let Value::Object(fields) = &mut value {
        fields.retain(|_, field| !field.is_null());
    }
    value
}
