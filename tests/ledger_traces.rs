//! The traces of maintenances: kept once, with their steps, until both are of no use.

use std::collections::BTreeSet;
use std::time::Duration;

use godwit_ledger::{
    LedgerError, MaintenanceStep, MaintenanceStory, MaintenanceTrace, TraceContext,
};
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use crate::ledger_setup::{Setup, connect};

/// Longer than a test, shorter than the age of [`trace`].
const HOUR: Duration = Duration::from_secs(3600);

fn trace(uid: &str) -> MaintenanceTrace {
    MaintenanceTrace {
        uid: uid.to_owned(),
        name: "empty-worker1".into(),
        node: "worker1".into(),
        trace: TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        began_at: days_ago(1),
    }
}

fn days_ago(days: i64) -> Timestamp {
    let now = Timestamp::now().as_microsecond();
    let now = Timestamp::from_microsecond(now).unwrap();
    now - SignedDuration::from_hours(24 * days)
}

fn step(seq: u64) -> MaintenanceStep {
    MaintenanceStep {
        seq,
        step: "evacuate".into(),
        began_at: days_ago(1),
        ended_at: days_ago(0),
        links: vec!["00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01".into()],
        failure: (seq == 2).then(|| "it was late".into()),
    }
}

#[tokio::test]
async fn ledger_keeps_the_first_trace_of_a_maintenance_and_its_steps_in_their_order() {
    let setup = Setup::new().await;
    let uid = Uuid::new_v4().to_string();
    let first = trace(&uid);
    let other = MaintenanceTrace {
        node: "worker2".into(),
        ..first.clone()
    };
    let story = setup
        .change(async |tx| {
            assert_eq!(tx.maintenance_story(&uid).await?, None);
            tx.maintenance_trace(&first).await?;
            tx.maintenance_trace(&other).await?;
            tx.maintenance_step(&uid, &step(2)).await?;
            tx.maintenance_step(&uid, &step(1)).await?;
            tx.maintenance_story(&uid).await
        })
        .await;
    let expected = MaintenanceStory {
        trace: first,
        steps: vec![step(1), step(2)],
    };
    let read = story.unwrap();
    assert_eq!(read.trace, expected.trace);
    let places: Vec<u64> = read.steps.iter().map(|step| step.seq).collect();
    assert_eq!(places, [1, 2]);
    assert_eq!(read.steps[1].failure.as_deref(), Some("it was late"));
    assert_eq!(read.steps[0].links, expected.steps[0].links);
    assert_eq!(
        setup.ledger.maintenance_stories(HOUR, 9).await.unwrap(),
        [read]
    );
}

#[tokio::test]
async fn ledger_forgets_the_trace_of_a_maintenance_that_is_gone_and_of_which_nothing_happens() {
    let setup = Setup::new().await;
    let there = setup.create("there").await.uid;
    let [gone, young, busy] = [(); 3].map(|()| Uuid::new_v4().to_string());
    let now = MaintenanceTrace {
        began_at: days_ago(0),
        ..trace(&young)
    };
    let old = MaintenanceStep {
        ended_at: days_ago(1),
        ..step(1)
    };
    let stories = [
        (trace(&there), old.clone()),
        (trace(&gone), old.clone()),
        (now, old),
        (trace(&busy), step(1)),
    ];
    setup
        .change(async |tx| {
            for (trace, step) in &stories {
                tx.maintenance_trace(trace).await?;
                tx.maintenance_step(&trace.uid, step).await?;
            }
            tx.maintenance_traces_prune(HOUR).await
        })
        .await;
    let days = 48 * HOUR;
    let left = setup.ledger.maintenance_stories(days, 9).await.unwrap();
    let uids = |stories: &[MaintenanceStory]| {
        let uids = stories.iter().map(|story| story.trace.uid.clone());
        uids.collect::<BTreeSet<String>>()
    };
    assert_eq!(uids(&left), BTreeSet::from([there, young, busy.clone()]));
    let newest = setup.ledger.maintenance_stories(days, 1).await.unwrap();
    assert_eq!(uids(&newest), BTreeSet::from([busy.clone()]));
    let recent = setup.ledger.maintenance_stories(HOUR, 9).await.unwrap();
    assert_eq!(uids(&recent), BTreeSet::from([busy]));
}

#[tokio::test]
async fn ledger_lets_maintenance_keep_and_forget_traces() {
    let setup = Setup::new().await;
    setup.ledger.migrate().await.unwrap();
    setup.postgres.open_service_logins().unwrap();
    let database = setup.url.split(['/', '?']).nth(3).unwrap();
    let service = connect(&setup.postgres.url_as(database, "godwit_maintenance")).await;
    let uid = Uuid::new_v4().to_string();
    let mut tx = service.begin().await.unwrap();
    tx.maintenance_trace(&trace(&uid)).await.unwrap();
    tx.maintenance_step(&uid, &step(1)).await.unwrap();
    assert!(tx.maintenance_story(&uid).await.unwrap().is_some());
    tx.maintenance_traces_prune(Duration::ZERO).await.unwrap();
    assert_eq!(tx.maintenance_story(&uid).await.unwrap(), None);
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn ledger_lets_the_gateway_begin_a_trace_and_nothing_else() {
    let setup = Setup::new().await;
    setup.ledger.migrate().await.unwrap();
    setup.postgres.open_service_logins().unwrap();
    let database = setup.url.split(['/', '?']).nth(3).unwrap();
    let gateway = connect(&setup.postgres.url_as(database, "godwit_gateway")).await;
    let uid = Uuid::new_v4().to_string();
    let mut tx = gateway.begin().await.unwrap();
    tx.maintenance_trace(&trace(&uid)).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = gateway.begin().await.unwrap();
    let refused = tx.maintenance_step(&uid, &step(1)).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Database(_)), "{refused}");
}
