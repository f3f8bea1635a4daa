//! Revisions: commit-ordered, never skipped; the change log, its pruning, wake-ups, migrations.

use crate::ledger_setup::{Setup, config_map, connect};
use godwit_ledger::{Changes, LedgerError};
use godwit_model::Revision;
use sqlx::Connection;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Long enough for the other connection to show that it waits.
const DELAY: Duration = Duration::from_millis(150);

#[tokio::test]
async fn a_later_writer_waits_for_a_delayed_commit_so_its_revision_is_not_skipped() {
    let setup = Setup::new().await;
    let mut early = setup.ledger.begin().await.unwrap();
    let first = early.create(config_map("early")).await.unwrap();

    let other = connect(&setup.url).await;
    let late = tokio::spawn(async move {
        let mut tx = other.begin().await.unwrap();
        tx.create(config_map("late")).await.unwrap();
        tx.commit().await.unwrap()
    });
    sleep(DELAY).await;
    assert!(!late.is_finished(), "two writers at once");
    assert_eq!(setup.ledger.revision().await.unwrap(), Revision(1));

    assert_eq!(early.commit().await.unwrap(), first.revision);
    let second = late.await.unwrap();
    assert!(second > first.revision);
}

#[tokio::test]
async fn even_a_writer_without_the_lock_cannot_commit_out_of_order() {
    let setup = Setup::new().await;
    let mut stranger = setup.sql().await;
    let mut open = stranger.begin().await.unwrap();
    sqlx::query(
        "INSERT INTO object (uid, resource, namespace, name, metadata, body) \
         VALUES (gen_random_uuid(), 'configmaps', 'default', 'stranger', '{}', '{}')",
    )
    .execute(&mut *open)
    .await
    .unwrap();

    let mut tx = setup.ledger.begin().await.unwrap();
    let waiting = timeout(DELAY, tx.create(config_map("ours"))).await;
    assert!(waiting.is_err(), "two revisions were open at once");
    drop(tx);
    open.commit().await.unwrap();
    setup.create("ours").await;

    let rows = setup.ledger.changes_after(Revision(0), 10).await.unwrap();
    let Changes::Rows(rows) = rows else {
        panic!("{rows:?}")
    };
    let names: Vec<&str> = rows
        .iter()
        .map(|row| row.object.key.name.as_str())
        .collect();
    assert_eq!(names, ["stranger", "ours"]);
}

#[tokio::test]
async fn writers_that_wait_leave_connections_to_readers() {
    let setup = Setup::new().await;
    let mut tx = setup.ledger.begin().await.unwrap();
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let ledger = setup.ledger.clone();
            tokio::spawn(async move { ledger.begin().await.unwrap().commit().await })
        })
        .collect();
    sleep(DELAY).await;
    let read = timeout(DELAY * 10, setup.ledger.list("configmaps")).await;
    assert_eq!(read.expect("no connection left").unwrap(), []);
    tx.create(config_map("one")).await.unwrap();
    tx.commit().await.unwrap();
    for writer in waiting {
        writer.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_reader_that_follows_the_log_sees_every_change_of_many_writers() {
    const WRITERS: usize = 6;
    const EACH: usize = 20;
    let setup = Setup::new().await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let ledger = setup.ledger.clone();
            tokio::spawn(async move {
                for turn in 0..EACH {
                    let mut tx = ledger.begin().await.unwrap();
                    for part in ["a", "b"] {
                        let name = format!("{writer}-{turn}-{part}");
                        tx.create(config_map(&name)).await.unwrap();
                    }
                    // Some commits are late, as on a slow network.
                    if turn % 5 == writer % 5 {
                        sleep(Duration::from_millis(3)).await;
                    }
                    tx.commit().await.unwrap();
                }
            })
        })
        .collect();

    let mut seen = BTreeSet::new();
    let mut after = Revision(0);
    let follow = async {
        while seen.len() < WRITERS * EACH * 2 {
            let changes = setup.ledger.changes_after(after, 7).await.unwrap();
            let Changes::Rows(rows) = changes else {
                panic!("{changes:?}")
            };
            for row in rows {
                assert!(row.revision > after, "{} after {after}", row.revision);
                after = row.revision;
                assert!(seen.insert(row.object.key.name), "seen twice");
            }
        }
    };
    timeout(Duration::from_secs(20), follow)
        .await
        .expect("a change was skipped");
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn a_pruned_log_says_from_where_it_can_be_read() {
    let setup = Setup::new().await;
    for turn in 0..10 {
        setup.create(&format!("object-{turn}")).await;
    }
    let newest = setup.ledger.revision().await.unwrap();
    let long = Duration::from_secs(3600);
    assert_eq!(setup.ledger.changes_prune(long, 0).await.unwrap(), 0);
    assert_eq!(
        setup.ledger.changes_prune(Duration::ZERO, 4).await.unwrap(),
        6
    );

    let changes = setup.ledger.changes_after(Revision(1), 100).await.unwrap();
    let Changes::Compacted { oldest } = changes else {
        panic!("{changes:?}")
    };
    let changes = setup.ledger.changes_after(oldest, 100).await.unwrap();
    assert!(
        matches!(&changes, Changes::Rows(rows) if rows.len() == 4),
        "{changes:?}"
    );
    let changes = setup.ledger.changes_after(newest, 100).await.unwrap();
    assert_eq!(changes, Changes::Rows(vec![]));
}

#[tokio::test]
async fn a_commit_of_another_process_wakes_up_and_silence_does_not() {
    let setup = Setup::new().await;
    let listener = connect(&setup.url).await;
    let mut wakeups = listener.wakeups();
    let second = Duration::from_secs(5);
    assert!(
        wakeups.next(second).await,
        "listening begins with a wake-up"
    );
    assert!(!wakeups.next(DELAY).await, "woken by nothing");

    setup.create("one").await;
    assert!(wakeups.next(second).await, "a commit was not heard");

    // The listener's connection dies, as when the database is restarted.
    setup
        .postgres
        .psql(
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'",
        )
        .unwrap();
    assert!(wakeups.next(second).await, "not listening again");
    while wakeups.next(DELAY).await {}
    setup.create("two").await;
    assert!(wakeups.next(second).await, "a commit was not heard again");
}

#[tokio::test]
async fn a_hundred_commits_at_once_are_few_notifications() {
    let setup = Setup::new().await;
    let mut listener = sqlx::postgres::PgListener::connect(&setup.url)
        .await
        .unwrap();
    listener.listen("godwit_ledger").await.unwrap();
    let begun = std::time::Instant::now();
    for turn in 0..100 {
        setup.create(&format!("object-{turn}")).await;
    }
    let pauses = begun.elapsed().as_millis() / 5;
    let newest = setup.ledger.revision().await.unwrap().to_string();
    let mut heard = 0;
    loop {
        let heard_one = timeout(Duration::from_secs(5), listener.recv()).await;
        heard += 1;
        if heard_one.expect("the newest revision").unwrap().payload() == newest {
            break;
        }
    }
    assert!(
        heard <= pauses + 2,
        "{heard} notifications in {pauses} pauses"
    );
}

#[tokio::test]
async fn many_processes_migrate_at_once_and_a_service_role_only_checks() {
    let setup = Setup::new().await;
    let url = setup.postgres.ensure_database("empty").unwrap();
    let migrations: Vec<_> = (0..4)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move { connect(&url).await.migrate().await })
        })
        .collect();
    for migration in migrations {
        migration.await.unwrap().unwrap();
    }

    setup.postgres.open_service_logins().unwrap();
    let role = setup.postgres.url_as("empty", "godwit_gateway");
    connect(&role).await.migrate().await.unwrap();
    let unmigrated = setup.postgres.ensure_database("unmigrated").unwrap();
    let unmigrated = unmigrated.replace("postgres@", "godwit_gateway@");
    let refused = connect(&unmigrated).await.migrate().await;
    assert!(
        matches!(refused, Err(LedgerError::Database(_))),
        "{refused:?}"
    );
}
