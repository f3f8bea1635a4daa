//! Fences: what they say of a job's hosts, and how a machine is taken from its host.

use crate::ledger_setup::{Setup, node, step};
use godwit_ledger::{FenceRow, InstanceState, JobChange, JobFences, JobStep, LedgerError, NodeRow};
use godwit_model::migration::job::JobState;
use godwit_model::{Epoch, NodeName};
use jiff::Timestamp;

fn fence(node: &NodeName) -> FenceRow {
    FenceRow {
        uid: uuid::Uuid::new_v4().to_string(),
        node: node.clone(),
        boot_id: String::new(),
        statement: "its power is cut".to_owned(),
        by: "ada".to_owned(),
        at: Timestamp::UNIX_EPOCH,
    }
}

impl Setup {
    async fn fence(&self, node: &NodeName) {
        assert!(
            self.change(async |tx| tx.node_fence(&fence(node)).await)
                .await
        );
    }

    /// The scheduler's word about a node.
    async fn hear(&self, name: &str, ready: bool) {
        self.change(async |tx| {
            let known = tx
                .nodes()
                .await?
                .into_iter()
                .find(|row| row.name.as_str() == name);
            let heartbeat_at = match known {
                Some(known) if !ready => known.heartbeat_at,
                Some(_) | None => tx.now(),
            };
            let row = node(name, 4);
            tx.node_put(NodeRow {
                ready,
                heartbeat_at,
                ..row
            })
            .await
        })
        .await;
    }
}

#[tokio::test]
async fn fences_are_kept_for_ever() {
    let setup = Setup::new().await;
    let worker1 = setup.node("worker1", 4).await;
    let row = fence(&worker1);
    assert!(setup.change(async |tx| tx.node_fence(&row).await).await);
    // The scheduler may be cut short and come again.
    assert!(!setup.change(async |tx| tx.node_fence(&row).await).await);
    let kept = setup.ledger.node_fences(&worker1).await.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!((kept[0].by.as_str(), &kept[0].uid), ("ada", &row.uid));
    assert!(kept[0].at > Timestamp::UNIX_EPOCH);
    for change in [
        "DELETE FROM node_fence",
        "UPDATE node_fence SET \"by\" = 'eve'",
    ] {
        let refused = sqlx::query(change).execute(&mut setup.sql().await).await;
        let error = refused.unwrap_err();
        let constraint = error.as_database_error().unwrap().constraint();
        assert_eq!(constraint, Some("fence_history_append_only"), "{change}");
    }
}

#[tokio::test]
async fn a_fence_needs_a_statement() {
    let setup = Setup::new().await;
    let worker1 = setup.node("worker1", 4).await;
    let mut row = fence(&worker1);
    row.statement.clear();
    let mut tx = setup.ledger.begin().await.unwrap();
    let refused = tx.node_fence(&row).await;
    assert!(
        matches!(refused, Err(LedgerError::Refused(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_released_machine_has_a_new_epoch_and_holds_nothing() {
    let setup = Setup::new().await;
    let worker1 = setup.node("worker1", 4).await;
    let machine = setup.machine("vm1", &worker1).await;
    let epoch = setup
        .change(async |tx| tx.instance_release(&machine).await)
        .await;
    assert_eq!(epoch, Epoch(3));
    let row = setup.ledger.instance(&machine).await.unwrap().unwrap();
    assert_eq!(
        (row.node, row.epoch, row.state),
        (None, Epoch(3), InstanceState::Unplaced)
    );
    assert_eq!(setup.ledger.reservations().await.unwrap(), vec![]);

    // Known even when the instance is gone, so that its old process can be told to end.
    setup
        .change(async |tx| tx.instance_remove(&machine).await)
        .await;
    let known = setup
        .ledger
        .machine_epochs(std::slice::from_ref(&machine))
        .await
        .unwrap();
    assert_eq!(known.len(), 1);
    assert_eq!((&known[0].machine, known[0].epoch), (&machine, Epoch(3)));
    let mut tx = setup.ledger.begin().await.unwrap();
    let gone = tx.instance_release(&machine).await;
    assert!(matches!(gone, Err(LedgerError::NotFound)), "{gone:?}");
}

#[tokio::test]
async fn a_fence_counts_from_when_the_host_had_its_part_until_it_is_heard_again() {
    let setup = Setup::new().await;
    setup.hear("worker1", true).await;
    setup.hear("worker2", true).await;
    let name = |text: &str| NodeName::parse(text.to_owned()).unwrap();
    let (worker1, worker2) = (name("worker1"), name("worker2"));
    let machine = setup.machine("vm1", &worker1).await;
    setup.fence(&worker1).await;
    let job = setup.request("first", &machine).await;
    let lease = setup.claim("me").await;
    setup
        .advance(&lease, JobState::Pending, JobState::Placing)
        .await;
    setup.hear("worker2", false).await;
    setup.fence(&worker2).await;
    let reserved = JobStep {
        set: JobChange {
            target: Some(worker2.clone()),
            ..JobChange::default()
        },
        ..step(JobState::Placing, JobState::Reserved)
    };
    let _ = setup
        .change(async |tx| tx.job_record(&lease, reserved).await)
        .await;
    let fences = async || setup.ledger.job_fences(&job).await.unwrap();
    assert_eq!(fences().await, JobFences::default(), "fences from before");

    setup.fence(&worker2).await;
    let target = JobFences {
        source: false,
        target: true,
    };
    assert_eq!(fences().await, target);
    setup.hear("worker2", true).await;
    assert_eq!(fences().await, JobFences::default(), "it answers");
    setup.hear("worker2", false).await;
    assert_eq!(
        fences().await,
        JobFences::default(),
        "it did after the fence"
    );
    setup.fence(&worker2).await;
    assert_eq!(fences().await, target);

    setup.hear("worker1", false).await;
    setup.fence(&worker1).await;
    let both = JobFences {
        source: true,
        target: true,
    };
    assert_eq!(fences().await, both);
}
