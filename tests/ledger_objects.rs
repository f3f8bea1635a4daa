//! API objects in the ledger: no-op writes, generations, finalizers, events.

use crate::ledger_setup::{Setup, config_map};
use godwit_ledger::{
    Change, ChangeKind, Changes, EventKind, EventRecord, LedgerError, Object, ObjectKey, ObjectRef,
};
use godwit_model::Revision;
use serde_json::json;
use std::time::Duration;

async fn changes_after(setup: &Setup, after: Revision) -> Vec<Change> {
    match setup.ledger.changes_after(after, 1000).await.unwrap() {
        Changes::Rows(rows) => rows,
        Changes::Compacted { oldest } => panic!("compacted up to {oldest}"),
        Changes::Lost { newest } => panic!("lost all after {newest}"),
    }
}

fn kinds(changes: &[Change]) -> Vec<ChangeKind> {
    changes.iter().map(|change| change.kind).collect()
}

#[tokio::test]
async fn a_put_that_changes_nothing_writes_nothing_and_a_changed_body_raises_the_generation() {
    let setup = Setup::new().await;
    let created = setup.create("one").await;
    assert_eq!(created.metadata["generation"], 1);
    let stamp = created.metadata["creationTimestamp"].as_str().unwrap();
    assert_eq!(stamp.len(), "2026-01-31T12:00:00Z".len(), "{stamp}");

    let same = setup.change(async |tx| tx.put(&created).await).await;
    assert_eq!(same, created);

    let mut told = created.clone();
    told.status = Some(json!({"ready": true}));
    told.metadata["generation"] = json!(7);
    let told = setup.change(async |tx| tx.put(&told).await).await;
    assert_eq!(told.metadata["generation"], 1);
    assert!(told.revision > created.revision);

    let mut wished = told.clone();
    wished.body["data"]["colour"] = json!("blue");
    let wished = setup.change(async |tx| tx.put(&wished).await).await;
    assert_eq!(wished.metadata["generation"], 2);

    let changes = changes_after(&setup, Revision(0)).await;
    let modified = ChangeKind::Modified;
    assert_eq!(kinds(&changes), [ChangeKind::Added, modified, modified]);
    let objects: Vec<Object> = changes.into_iter().map(|change| change.object).collect();
    assert_eq!(objects, [created, told, wished.clone()]);
    assert_eq!(setup.ledger.get(&wished.key).await.unwrap(), Some(wished));
}

#[tokio::test]
async fn a_refused_write_says_why_and_leaves_the_transaction_usable() {
    let setup = Setup::new().await;
    let old = setup.create("one").await;
    let patch = json!({"phase": "Running"});
    let new = setup
        .change(async |tx| tx.status_merge(&old.key, patch).await)
        .await;

    let mut tx = setup.ledger.begin().await.unwrap();
    let absent = ObjectKey::new("configmaps", "default", "absent");
    let clash = tx.create(config_map("one")).await;
    assert!(
        matches!(clash, Err(LedgerError::AlreadyExists)),
        "{clash:?}"
    );
    let stale = tx.put(&old).await;
    assert!(matches!(stale, Err(LedgerError::Conflict)), "{stale:?}");
    let gone = tx.status_merge(&absent, json!({"a": 1})).await;
    assert!(matches!(gone, Err(LedgerError::NotFound)), "{gone:?}");
    let gone = tx.remove(&absent).await;
    assert!(matches!(gone, Err(LedgerError::NotFound)), "{gone:?}");
    tx.create(config_map("two")).await.unwrap();
    tx.commit().await.unwrap();

    let listed = setup.ledger.list("configmaps").await.unwrap();
    let names: Vec<&str> = listed
        .iter()
        .map(|object| object.key.name.as_str())
        .collect();
    assert_eq!(names, ["one", "two"]);
    assert_eq!(listed[0], new);
}

#[tokio::test]
async fn a_transaction_with_a_failed_statement_does_not_pretend_to_commit() {
    let setup = Setup::new().await;
    let mut tx = setup.ledger.begin().await.unwrap();
    tx.create(config_map("one")).await.unwrap();
    let mut bad = config_map("two");
    bad.body = json!("no object");
    let refused = tx.create(bad).await;
    assert!(
        matches!(&refused, Err(LedgerError::Refused(constraint)) if constraint == "object_body_object"),
        "{refused:?}"
    );
    let committed = tx.commit().await;
    assert!(
        matches!(committed, Err(LedgerError::Conflict)),
        "{committed:?}"
    );
    assert_eq!(setup.ledger.list("configmaps").await.unwrap(), []);
}

#[tokio::test]
async fn a_status_is_merged_by_key_and_null_removes() {
    let setup = Setup::new().await;
    let key = setup.create("one").await.key;
    let merge = async |patch| {
        setup
            .change(async |tx| tx.status_merge(&key, patch).await)
            .await
    };
    merge(json!({"phase": "Running", "nodeName": "worker1"})).await;
    let merged = merge(json!({"phase": null, "ready": true, "absent": null})).await;
    assert_eq!(
        merged.status,
        Some(json!({"nodeName": "worker1", "ready": true}))
    );
    let again = merge(json!({"ready": true})).await;
    assert_eq!(again.revision, merged.revision);
}

#[tokio::test]
async fn a_deleted_object_stays_until_its_last_finalizer_is_gone() {
    let setup = Setup::new().await;
    let mut object = setup.create("one").await;
    object.metadata["finalizers"] = json!(["godwit.io/a", "godwit.io/b"]);
    object.metadata["deletionTimestamp"] = json!("2026-01-31T12:00:00Z");
    let mut object = setup.change(async |tx| tx.put(&object).await).await;
    assert!(object.deleting());
    object.metadata["finalizers"] = json!(["godwit.io/b"]);
    let mut object = setup.change(async |tx| tx.put(&object).await).await;
    assert_eq!(
        setup.ledger.get(&object.key).await.unwrap(),
        Some(object.clone())
    );

    object.metadata["finalizers"] = json!([]);
    let before = setup.ledger.revision().await.unwrap();
    let mut tx = setup.ledger.begin().await.unwrap();
    tx.put(&object).await.unwrap();
    let committed = tx.commit().await.unwrap();

    assert_eq!(setup.ledger.get(&object.key).await.unwrap(), None);
    let changes = changes_after(&setup, before).await;
    let last = changes.last().unwrap();
    assert_eq!(last.kind, ChangeKind::Deleted);
    assert_eq!(last.revision, committed);
    assert_eq!(last.object.metadata["finalizers"], json!([]));
}

fn seen(note: &str) -> EventRecord {
    EventRecord {
        regarding: ObjectRef {
            api_version: "v1".into(),
            kind: "Node".into(),
            resource: "nodes".into(),
            namespace: String::new(),
            name: "worker1".into(),
            uid: "3e0c5a7e-9f1d-4b6c-8b43-0f6b2f0a9c11".into(),
        },
        reason: "NodeNotReady".into(),
        note: note.into(),
        kind: EventKind::Warning,
        component: "scheduler".into(),
        host: "worker1".into(),
    }
}

#[tokio::test]
async fn the_same_event_again_is_counted_and_rendered_as_a_core_event() {
    let setup = Setup::new().await;
    for _ in 0..3 {
        setup
            .change(async |tx| tx.event(seen("silent")).await)
            .await;
    }
    setup
        .change(async |tx| tx.event(seen(&"é".repeat(2000))).await)
        .await;

    let mut snapshot = vec![];
    let look = setup.ledger.snapshot(|object| snapshot.push(object));
    let mark = look.await.unwrap();
    assert_eq!(snapshot.len(), 2);
    assert!(snapshot.iter().all(|event| event.revision <= mark.revision));
    let event = snapshot
        .iter()
        .find(|event| event.body["message"] == "silent")
        .unwrap();
    assert_eq!(event.key.namespace, "default");
    let (name, digits) = event.key.name.split_once('.').unwrap();
    assert_eq!((name, digits.len()), ("worker1", 16));
    assert_eq!(event.body["count"], 3);
    assert_eq!(event.body["type"], "Warning");
    assert_eq!(
        event.body["involvedObject"],
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "name": "worker1",
            "uid": "3e0c5a7e-9f1d-4b6c-8b43-0f6b2f0a9c11",
        })
    );
    assert_eq!(
        event.body["source"],
        json!({"component": "scheduler", "host": "worker1"})
    );
    let changes = changes_after(&setup, Revision(0)).await;
    assert_eq!(changes[2].kind, ChangeKind::Modified);
    assert_eq!(&changes[2].object, event);

    assert_eq!(
        setup
            .ledger
            .events_prune(Duration::from_secs(60))
            .await
            .unwrap(),
        0
    );
    assert_eq!(setup.ledger.events_prune(Duration::ZERO).await.unwrap(), 2);
    let last = changes_after(&setup, changes[3].revision).await;
    assert_eq!(kinds(&last), [ChangeKind::Deleted, ChangeKind::Deleted]);
}
