//! What an auditor reads: everything, at one moment, and without the right to write.

use crate::ledger_setup::{Setup, VMIM, node};
use godwit_ledger::{Cordon, JobHistory, LedgerError, NewObject, ObjectKey};
use godwit_model::NodeName;
use godwit_model::migration::job::JobState::{Failed, Pending, Placing};
use serde_json::json;
use std::time::Duration;

/// The same ledger, as the auditor has it.
async fn auditor(setup: &Setup) -> Setup {
    setup.postgres.open_service_logins().unwrap();
    let database = setup.url.split(['/', '?']).nth(3).unwrap();
    let url = setup.postgres.url_as(database, "godwit_auditor");
    setup.under(&url).await
}

/// A job that was asked for as `name`, and failed.
async fn failed(setup: &Setup, name: &str, machine: &godwit_model::MachineId) -> JobHistory {
    let job = setup.request(name, machine).await;
    let lease = setup.claim("coordinator-1").await;
    setup.advance(&lease, Pending, Placing).await;
    setup.advance(&lease, Placing, Failed).await;
    setup.ledger.history_of(&job).await.unwrap().unwrap()
}

#[tokio::test]
async fn the_auditor_sees_all_at_one_moment_and_writes_nothing() {
    let setup = Setup::new().await;
    let worker1 = setup.node("worker1", 4).await;
    let machine = setup.machine("vm1", &worker1).await;
    let past = failed(&setup, "first", &machine).await;
    let open = setup.request("second", &machine).await;
    let auditor = auditor(&setup).await;

    let mut audit = auditor.ledger.audit().await.unwrap();
    assert_eq!(audit.jobs_open().await.unwrap()[0].id, open);
    // What is committed from here on is of a later moment.
    setup
        .change(async |tx| tx.node_put(node("worker2", 1)).await)
        .await;
    let lease = setup.claim("me").await;
    setup.advance(&lease, Pending, Failed).await;
    assert_eq!(audit.nodes().await.unwrap().len(), 1);
    assert_eq!(audit.instances().await.unwrap()[0].uid, machine);
    assert_eq!(audit.reservations().await.unwrap().len(), 1);
    assert_eq!(audit.objects(VMIM).await.unwrap().len(), 2);
    let ids = [past.job.id.clone(), open.clone()];
    assert_eq!(audit.jobs(&ids).await.unwrap().len(), 2);
    let mut histories = audit.histories(None).await.unwrap();
    histories.sort_by_key(|history| history.job.created_at);
    assert_eq!(histories[0], past);
    assert_eq!(
        (histories[1].job.state, histories[1].transitions.len()),
        (Pending, 1)
    );
    let last = histories.iter().map(|history| &history.job.id).max();
    assert_eq!(audit.histories(last).await.unwrap(), []);

    let mut sql = auditor.sql().await;
    let writable: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_class WHERE relnamespace = current_schema()::regnamespace \
         AND relkind IN ('r', 'p', 'v') \
         AND has_table_privilege(oid, 'INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER')",
    )
    .fetch_all(&mut sql)
    .await
    .unwrap();
    assert_eq!(writable, Vec::<String>::new());
    let mut tx = auditor.ledger.begin().await.unwrap();
    let refused = tx.job_cancel(&past.job.id, "no").await;
    assert!(
        matches!(refused, Err(LedgerError::Database(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn an_auditor_may_think_for_longer_than_a_writer() {
    let setup = Setup::new().await;
    setup.node("worker1", 1).await;
    let mut audit = setup.ledger.audit().await.unwrap();
    // Longer than Postgres lets a writer be idle.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(audit.nodes().await.unwrap().len(), 1);
}

#[tokio::test]
async fn tables_of_later_migrations_are_the_auditors_too() {
    let setup = Setup::new().await;
    let mut sql = setup.sql().await;
    for statement in ["CREATE TABLE later (n int)", "INSERT INTO later VALUES (7)"] {
        sqlx::query(statement).execute(&mut sql).await.unwrap();
    }
    let mut sql = auditor(&setup).await.sql().await;
    let read: i32 = sqlx::query_scalar("SELECT n FROM later")
        .fetch_one(&mut sql)
        .await
        .unwrap();
    assert_eq!(read, 7);
    let refused = sqlx::query("DELETE FROM later").execute(&mut sql).await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn cordons_are_told_from_their_commit_to_their_end() {
    let setup = Setup::new().await;
    let key = ObjectKey::new("nodes", "", "worker1");
    let new = NewObject {
        key: key.clone(),
        uid: None,
        metadata: json!({}),
        body: json!({"spec": {}}),
        status: None,
    };
    setup.change(async |tx| tx.create(new).await).await;
    let mut times = Vec::new();
    for (closed, note) in [(true, 1), (true, 2), (false, 3), (true, 4)] {
        let revision = setup
            .change(async |tx| {
                let mut object = tx.get(&key).await?.unwrap();
                object.body["spec"]["unschedulable"] = json!(closed);
                object.status = Some(json!({ "note": note }));
                tx.put(&object).await
            })
            .await
            .revision;
        let mut sql = setup.sql().await;
        let micros: i64 = sqlx::query_scalar(
            "SELECT (extract(epoch FROM changed_at) * 1000000)::bigint FROM change \
             WHERE revision = $1",
        )
        .bind(i64::try_from(revision.0).unwrap())
        .fetch_one(&mut sql)
        .await
        .unwrap();
        times.push(jiff::Timestamp::from_microsecond(micros).unwrap());
    }
    let mut audit = setup.ledger.audit().await.unwrap();
    let cordon = |from, until| Cordon {
        node: NodeName::parse("worker1").unwrap(),
        from,
        until,
    };
    assert_eq!(
        audit.cordons().await.unwrap(),
        [cordon(times[0], Some(times[2])), cordon(times[3], None)]
    );
}

#[tokio::test]
async fn a_history_outlives_its_object_and_the_newest_of_a_name_is_found() {
    let setup = Setup::new().await;
    let worker1 = setup.node("worker1", 4).await;
    let machine = setup.machine("vm1", &worker1).await;
    let first = failed(&setup, "again", &machine).await;
    let key = ObjectKey::new(VMIM, "default", "again");
    setup.change(async |tx| tx.remove(&key).await).await;
    assert_eq!(
        setup
            .ledger
            .history_named("default", "again")
            .await
            .unwrap(),
        Some(first.clone())
    );
    let second = failed(&setup, "again", &machine).await;
    let other = failed(&setup, "other", &machine).await;
    let ledger = &setup.ledger;
    let named = ledger.history_named("default", "again").await.unwrap();
    assert_eq!(named, Some(second.clone()));
    assert_eq!(
        ledger.history_named("elsewhere", "again").await.unwrap(),
        None
    );
    assert_eq!(ledger.history_of(&first.job.id).await.unwrap(), Some(first));
    for namespace in [None, Some("default")] {
        let all = ledger.histories(namespace, 9).await.unwrap();
        assert_eq!(all, [other.clone(), second.clone()]);
    }
    assert_eq!(ledger.histories(None, 1).await.unwrap(), [other]);
    assert_eq!(ledger.histories(Some("elsewhere"), 9).await.unwrap(), []);
}
