//! What the ledger says when the database is away, and when it can't know what happened.

use crate::ledger_setup::{Setup, config_map};
use godwit_ledger::{Ledger, LedgerConfig, LedgerError, retry};
use std::sync::atomic::{AtomicU32, Ordering};

/// Ends every session but the one that asks.
const END_SESSIONS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";

#[tokio::test]
async fn a_connection_lost_in_a_transaction_is_unavailable_and_lost_at_its_commit_is_unknown() {
    let setup = Setup::new().await;
    let mut tx = setup.ledger.begin().await.unwrap();
    tx.create(config_map("one")).await.unwrap();
    setup.postgres.psql("postgres", END_SESSIONS).unwrap();
    let committed = tx.commit().await;
    assert!(
        matches!(committed, Err(LedgerError::Unknown(_))),
        "{committed:?}"
    );

    let mut tx = retry(|| setup.ledger.begin()).await.unwrap();
    setup.postgres.psql("postgres", END_SESSIONS).unwrap();
    let created = tx.create(config_map("one")).await;
    assert!(
        matches!(created, Err(LedgerError::Unavailable(_))),
        "{created:?}"
    );
    drop(tx);

    let tries = AtomicU32::new(0);
    let created = retry(|| async {
        tries.fetch_add(1, Ordering::Relaxed);
        let mut tx = setup.ledger.begin().await?;
        let object = tx.create(config_map("one")).await?;
        tx.commit().await?;
        Ok(object)
    });
    created.await.unwrap();
    assert!(tries.load(Ordering::Relaxed) <= 10);
    assert_eq!(setup.ledger.list("configmaps").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_database_that_is_not_there_is_unavailable_and_a_bad_url_is_not() {
    let config = |url: &str| LedgerConfig {
        url: url.to_owned(),
        connections_max: 1,
    };
    let absent = Ledger::connect(config("postgres://me@localhost/none?host=/nonexistent")).await;
    assert!(
        matches!(absent, Err(LedgerError::Unavailable(_))),
        "{absent:?}"
    );
    let bad = Ledger::connect(config("not a url")).await;
    assert!(matches!(bad, Err(LedgerError::Database(_))), "{bad:?}");
}

#[tokio::test]
async fn a_claim_reads_the_narrow_index_however_long_the_history_is() {
    let setup = Setup::new().await;
    let mut sql = setup.sql().await;
    sqlx::raw_sql(
        "INSERT INTO migration (id, namespace, name, machine, vmi_namespace, vmi_name, priority, \
         trace, state, finished_at) SELECT gen_random_uuid(), 'default', 'job', \
         gen_random_uuid(), 'default', 'vm', 0, '', 'Succeeded', now() \
         FROM generate_series(1, 20000); ANALYZE migration",
    )
    .execute(&mut sql)
    .await
    .unwrap();
    let claim = include_str!("../crates/ledger/queries/job_claim.sql")
        .replace("$1", "'me'")
        .replace("$2", "interval '1 minute'");
    let plan: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("EXPLAIN {claim}")))
        .fetch_all(&mut sql)
        .await
        .unwrap();
    let plan = plan.join("\n");
    assert!(plan.contains("Index Scan using migration_open"), "{plan}");
    assert!(!plan.contains("Seq Scan"), "{plan}");
}
