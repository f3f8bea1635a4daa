//! Jobs: leases and epochs, guarded transitions, one open migration a machine, the hand-over.

use crate::ledger_setup::{LONG, Setup, request, reservation, step};
use godwit_ledger::{
    JobChange, JobStep, LedgerError, NewReservation, Recorded, ReservationRow, Reserved,
};
use godwit_model::migration::job::JobState;
use godwit_model::{Epoch, JobId, NodeName};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::sleep;

/// A lease that runs out while the test looks.
const SHORT: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_machine_has_at_most_one_open_migration() {
    let setup = Setup::new().await;
    let worker1 = setup.node("worker1", 4).await;
    let machine = setup.machine("vm1", &worker1).await;
    let job = setup.request("first", &machine).await;

    let mut tx = setup.ledger.begin().await.unwrap();
    let busy = tx.migration_request(request("second", &machine)).await;
    assert!(
        matches!(&busy, Err(LedgerError::MigrationInProgress { job: open }) if *open == job),
        "{busy:?}"
    );
    tx.commit().await.unwrap();
    // And so says the index, to whoever doesn't ask first.
    let direct = sqlx::query(
        "INSERT INTO migration (id, namespace, name, machine, vmi_namespace, vmi_name, priority, \
         trace) SELECT gen_random_uuid(), namespace, 'direct', machine, vmi_namespace, vmi_name, \
         0, '' FROM migration",
    )
    .execute(&mut setup.sql().await)
    .await
    .unwrap_err();
    assert_eq!(
        direct.as_database_error().unwrap().constraint(),
        Some("migration_one_active_per_instance")
    );

    let lease = setup.claim("me").await;
    setup
        .advance(&lease, JobState::Pending, JobState::Failed)
        .await;
    let mut tx = setup.ledger.begin().await.unwrap();
    let taken = tx.migration_request(request("first", &machine)).await;
    assert!(
        matches!(taken, Err(LedgerError::AlreadyExists)),
        "{taken:?}"
    );
    tx.migration_request(request("second", &machine))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(setup.ledger.jobs_open().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_request_is_refused_whole() {
    let setup = Setup::new().await;
    let worker1 = setup.node("worker1", 4).await;
    let machine = setup.machine("vm1", &worker1).await;
    let job = setup.request("first", &machine).await;
    let found = setup.ledger.job(&job).await.unwrap().unwrap();
    assert_eq!(found.state, JobState::Pending);
    assert_eq!(found.source, Some(worker1));
    assert_eq!((found.epoch, found.owner), (Epoch(0), None));
    assert!(found.trace.starts_with("00-"));

    let before = setup.ledger.revision().await.unwrap();
    let mut tx = setup.ledger.begin().await.unwrap();
    tx.migration_request(request("second", &machine))
        .await
        .unwrap_err();
    tx.commit().await.unwrap();
    assert_eq!(setup.ledger.revision().await.unwrap(), before);
    assert_eq!(setup.ledger.history(&job).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_job_has_one_owner_and_a_stale_one_changes_nothing() {
    let setup = Setup::new().await;
    let worker1 = setup.node("worker1", 4).await;
    let machine = setup.machine("vm1", &worker1).await;
    let job = setup.request("first", &machine).await;

    let zombie = setup
        .ledger
        .job_claim("zombie", LONG)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((zombie.epoch, &zombie.job.id), (Epoch(1), &job));
    assert_eq!(setup.ledger.job_claim("heir", LONG).await.unwrap(), None);
    assert!(setup.renew(&zombie, SHORT).await);
    sleep(SHORT * 2).await;
    let heir = setup.claim("heir").await;
    assert_eq!(heir.epoch, Epoch(2));

    assert!(!setup.renew(&zombie, LONG).await);
    setup.ledger.job_lease_release(&zombie).await.unwrap();
    let (pending, placing) = (JobState::Pending, JobState::Placing);
    let stale = Recorded::Stale {
        found: pending,
        epoch: Epoch(2),
    };
    assert_eq!(setup.record(&zombie, pending, placing).await, stale);
    assert!(setup.record(&heir, pending, placing).await.is_now());
    let stale = Recorded::Stale {
        found: placing,
        epoch: Epoch(2),
    };
    assert_eq!(setup.record(&heir, pending, placing).await, stale);
    assert_eq!(setup.ledger.history(&job).await.unwrap().len(), 2);

    setup.ledger.job_lease_release(&heir).await.unwrap();
    let third = setup.claim("third").await;
    assert_eq!(third.epoch, Epoch(3));
    setup.advance(&third, placing, JobState::Failed).await;
    assert!(!setup.renew(&third, LONG).await);
    assert_eq!(setup.ledger.job_claim("fourth", LONG).await.unwrap(), None);
}

#[tokio::test]
async fn a_job_that_is_being_written_holds_up_no_other_lease() {
    let setup = Setup::new().await;
    let worker1 = setup.node("worker1", 4).await;
    let (first, second) = (
        setup.machine("vm1", &worker1).await,
        setup.machine("vm2", &worker1).await,
    );
    setup.request("first", &first).await;
    setup.request("second", &second).await;
    let (first, second) = (setup.claim("me").await, setup.claim("me").await);

    let mut tx = setup.ledger.begin().await.unwrap();
    let written = tx.job_record(&first, step(JobState::Pending, JobState::Placing));
    assert!(written.await.unwrap().is_now());
    let leases = [&first, &second].map(|lease| (lease.job.id.clone(), lease.epoch));
    let lost = setup
        .ledger
        .jobs_renew("me", &leases, Duration::from_secs(3600));
    assert_eq!(lost.await.unwrap(), []);
    tx.commit().await.unwrap();
    let left = setup.ledger.job_lease_next("other").await.unwrap().unwrap();
    assert!(
        left <= LONG,
        "{left:?}: the one that was written was not renewed"
    );
    let lost = setup
        .ledger
        .jobs_renew("me", &leases, Duration::from_secs(3600));
    assert_eq!(lost.await.unwrap(), []);
    let left = setup.ledger.job_lease_next("other").await.unwrap().unwrap();
    assert!(left > LONG, "{left:?}: the second was not renewed");
}

#[tokio::test]
async fn slots_are_counted_for_the_cluster_and_for_a_node() {
    let setup = Setup::new().await;
    let (worker1, worker2) = (
        setup.node("worker1", 8).await,
        setup.node("worker2", 8).await,
    );
    for (name, node) in [("vm1", &worker1), ("vm2", &worker2), ("vm3", &worker1)] {
        let machine = setup.machine(name, node).await;
        setup.request(name, &machine).await;
    }
    for _ in 0..2 {
        let lease = setup.claim("me").await;
        setup
            .advance(&lease, JobState::Pending, JobState::Placing)
            .await;
    }
    let queue = setup.ledger.queue().await.unwrap();
    let waiting = queue
        .iter()
        .filter(|row| row.entry.state == JobState::Pending);
    assert_eq!((queue.len(), waiting.count()), (3, 1));
    assert!(queue.iter().all(|row| !row.cancelled && !row.fenced));
    let slots = setup
        .change(async |tx| tx.queue_slots(Some(&worker1)).await)
        .await;
    assert_eq!((slots.cluster, slots.outbound), (2, 1));
}

#[tokio::test]
async fn many_claimants_share_the_jobs_without_one_twice_and_priority_goes_first() {
    const JOBS: usize = 12;
    let setup = Setup::new().await;
    let worker1 = setup.node("worker1", 64).await;
    for turn in 0..JOBS {
        let machine = setup.machine(&format!("vm{turn}"), &worker1).await;
        setup.request(&format!("job-{turn}"), &machine).await;
    }
    let urgent = setup.machine("urgent", &worker1).await;
    let mut wish = request("urgent", &urgent);
    wish.priority = 10;
    setup
        .change(async |tx| tx.migration_request(wish).await)
        .await;

    assert_eq!(setup.claim("first").await.job.machine, urgent);
    let claimants: Vec<_> = (0..JOBS + 3)
        .map(|turn| {
            let ledger = setup.ledger.clone();
            tokio::spawn(async move { ledger.job_claim(&format!("c{turn}"), LONG).await })
        })
        .collect();
    let mut claimed = BTreeSet::new();
    for claimant in claimants {
        if let Some(lease) = claimant.await.unwrap().unwrap() {
            assert!(claimed.insert(lease.job.id), "claimed twice");
        }
    }
    assert_eq!(claimed.len(), JOBS);
}

#[tokio::test]
async fn the_ledger_and_the_model_agree_on_every_edge() {
    let setup = Setup::new().await;
    let edges: Vec<(String, String)> =
        sqlx::query_as("SELECT from_state, to_state FROM migration_edge")
            .fetch_all(&mut setup.sql().await)
            .await
            .unwrap();
    let edges: BTreeSet<_> = edges.into_iter().collect();
    for from in JobState::ALL {
        for to in JobState::ALL {
            let known = edges.contains(&(from.to_string(), to.to_string()));
            assert_eq!(known, from.may_become(to), "{from} -> {to}");
        }
    }
    let legal = JobState::ALL.into_iter();
    let legal = legal.flat_map(|from| JobState::ALL.map(|to| from.may_become(to)));
    assert_eq!(edges.len(), legal.filter(|legal| *legal).count());

    let worker1 = setup.node("worker1", 4).await;
    let machine = setup.machine("vm1", &worker1).await;
    setup.request("first", &machine).await;
    let lease = setup.claim("me").await;
    let mut tx = setup.ledger.begin().await.unwrap();
    let illegal = step(JobState::Pending, JobState::Copying);
    let refused = tx.job_record(&lease, illegal).await;
    assert!(
        matches!(&refused, Err(LedgerError::Refused(name)) if name == "migration_edge_legal"),
        "{refused:?}"
    );
}

/// A good run but its last step, with everything that is learned on the way.
async fn run_to_hand_over(setup: &Setup, target: &NodeName) -> (JobId, godwit_ledger::Lease) {
    let lease = setup.claim("coordinator-1").await;
    let job = lease.job.id.clone();
    let machine = lease.job.machine.clone();
    setup
        .advance(&lease, JobState::Pending, JobState::Placing)
        .await;
    let room = NewReservation {
        job: Some(job.clone()),
        ..reservation(&machine, target)
    };
    let place = JobStep {
        set: JobChange {
            target: Some(target.clone()),
            ..JobChange::default()
        },
        ..step(JobState::Placing, JobState::Reserved)
    };
    setup
        .change(async |tx| {
            assert_eq!(tx.reserve(room).await?, Reserved::Held);
            assert!(tx.job_record(&lease, place).await?.is_now());
            Ok(())
        })
        .await;
    let mut state = JobState::Reserved;
    for next in [JobState::Preparing, JobState::Prepared, JobState::Copying] {
        setup.advance(&lease, state, next).await;
        state = next;
    }
    for passes in 1..=2 {
        let facts = JobStep {
            set: JobChange {
                target_address: Some("tcp:10.77.0.12:49152".into()),
                history: Some(json!({"passes": passes, "bytes": 4096})),
                ..JobChange::default()
            },
            ..step(JobState::Copying, JobState::Copying)
        };
        let told = setup
            .change(async |tx| tx.job_record(&lease, facts).await)
            .await;
        assert!(told.is_now());
    }
    setup
        .advance(&lease, JobState::Copying, JobState::SwitchAllowed)
        .await;
    (job, lease)
}

#[tokio::test]
async fn a_hand_over_moves_the_machine_its_epoch_and_its_room_at_once() {
    let setup = Setup::new().await;
    let worker1 = setup.node("worker1", 4).await;
    let worker2 = setup.node("worker2", 4).await;
    let machine = setup.machine("vm1", &worker1).await;
    setup.request("first", &machine).await;
    let (job, lease) = run_to_hand_over(&setup, &worker2).await;

    let epoch = setup
        .change(async |tx| {
            let epoch = tx.hand_over(&lease, &machine, &worker1, &worker2).await?;
            let step = step(JobState::SwitchAllowed, JobState::HandedOver);
            assert!(tx.job_record(&lease, step).await?.is_now());
            Ok(epoch)
        })
        .await;
    // Until it is over it counts as one that arrives.
    let held = setup.ledger.reservations().await.unwrap();
    assert_eq!(held.len(), 1);
    assert_eq!(held[0].job, Some(job.clone()));
    setup
        .advance(&lease, JobState::HandedOver, JobState::Succeeded)
        .await;

    assert_eq!(epoch, Epoch(2));
    let instance = setup.ledger.instance(&machine).await.unwrap().unwrap();
    assert_eq!(
        (instance.epoch, instance.node),
        (epoch, Some(worker2.clone()))
    );
    let room = ReservationRow {
        machine: machine.clone(),
        node: worker2,
        job: None,
        room: reservation(&machine, &worker1).room,
    };
    assert_eq!(setup.ledger.reservations().await.unwrap(), [room]);

    let done = setup.ledger.job(&job).await.unwrap().unwrap();
    assert_eq!(done.state, JobState::Succeeded);
    assert!(done.switch_allowed);
    assert_eq!(done.history, json!({"passes": 2, "bytes": 4096}));
    assert_eq!(done.finished_at, Some(done.state_since));
    let history = setup.ledger.history(&job).await.unwrap();
    assert_eq!(history.len(), 9);
    assert!(history.iter().zip(1..).all(|(row, seq)| row.seq == seq));
    assert!(
        history
            .windows(2)
            .all(|pair| pair[1].from == Some(pair[0].to))
    );
    assert!(history.windows(2).all(|pair| pair[0].at <= pair[1].at));
    assert_eq!(history[0].actor, "request");
    assert_eq!(history[8].actor, "coordinator-1");
}

#[tokio::test]
async fn a_hand_over_without_the_lease_or_from_elsewhere_is_a_conflict() {
    let setup = Setup::new().await;
    let worker1 = setup.node("worker1", 4).await;
    let worker2 = setup.node("worker2", 4).await;
    let machine = setup.machine("vm1", &worker1).await;
    setup.request("first", &machine).await;
    let old = setup.claim("old").await;
    setup.ledger.job_lease_release(&old).await.unwrap();
    let new = setup.claim("new").await;

    let mut tx = setup.ledger.begin().await.unwrap();
    let stale = tx.hand_over(&old, &machine, &worker1, &worker2).await;
    assert!(matches!(stale, Err(LedgerError::Conflict)), "{stale:?}");
    let elsewhere = tx.hand_over(&new, &machine, &worker2, &worker1).await;
    assert!(
        matches!(elsewhere, Err(LedgerError::Conflict)),
        "{elsewhere:?}"
    );
    tx.commit().await.unwrap();

    let mut instance = setup.ledger.instance(&machine).await.unwrap().unwrap();
    assert_eq!((instance.epoch, &instance.node), (Epoch(1), &Some(worker1)));
    instance.epoch = Epoch(3);
    setup
        .change(async |tx| tx.instance_put(&instance).await)
        .await;
    instance.epoch = Epoch(2);
    let mut tx = setup.ledger.begin().await.unwrap();
    let older = tx.instance_put(&instance).await;
    assert!(matches!(older, Err(LedgerError::Conflict)), "{older:?}");
}

#[tokio::test]
async fn the_wish_to_cancel_is_durable_and_the_first_reason_stays() {
    let setup = Setup::new().await;
    let worker1 = setup.node("worker1", 4).await;
    let machine = setup.machine("vm1", &worker1).await;
    let job = setup.request("first", &machine).await;
    let cancel = async |reason| {
        setup
            .change(async |tx| tx.job_cancel(&job, reason).await)
            .await
    };
    assert!(cancel("deleted by the user").await);
    assert!(cancel("machine stopped").await);
    let lease = setup.claim("me").await;
    assert_eq!(lease.job.cancel.as_deref(), Some("deleted by the user"));
    setup
        .advance(&lease, JobState::Pending, JobState::Failed)
        .await;
    assert!(!cancel("too late").await);
}

#[tokio::test]
async fn no_service_and_not_even_the_owner_can_change_history() {
    let setup = Setup::new().await;
    let worker1 = setup.node("worker1", 4).await;
    let machine = setup.machine("vm1", &worker1).await;
    setup.request("first", &machine).await;
    setup.postgres.open_service_logins().unwrap();
    let database = setup.url.split(['/', '?']).nth(3).unwrap().to_owned();
    for user in ["gateway", "scheduler", "coordinator", "maintenance", ""] {
        let user = if user.is_empty() {
            "postgres".to_owned()
        } else {
            format!("godwit_{user}")
        };
        let url = setup.postgres.url_as(&database, &user);
        let mut sql = setup.under(&url).await.sql().await;
        for statement in [
            "UPDATE migration_transition SET reason = 'nothing happened'",
            "DELETE FROM migration_transition",
            "TRUNCATE migration_transition",
        ] {
            let refused = sqlx::query(statement).execute(&mut sql).await.unwrap_err();
            let refused = refused
                .as_database_error()
                .unwrap()
                .code()
                .unwrap()
                .into_owned();
            let expected = if user == "postgres" { "23001" } else { "42501" };
            assert_eq!(refused, expected, "{user}: {statement}");
        }
        let read: i64 = sqlx::query_scalar("SELECT count(*) FROM migration_transition")
            .fetch_one(&mut sql)
            .await
            .unwrap();
        assert_eq!(read, 1);
    }
}

#[tokio::test]
async fn each_service_can_do_its_own_work_with_its_own_role() {
    let setup = Setup::new().await;
    setup.postgres.open_service_logins().unwrap();
    let database = setup.url.split(['/', '?']).nth(3).unwrap().to_owned();
    let as_role = async |role: &str| setup.under(&setup.postgres.url_as(&database, role)).await;
    let scheduler = as_role("godwit_scheduler").await;
    let worker1 = scheduler.node("worker1", 4).await;
    let worker2 = scheduler.node("worker2", 4).await;
    let machine = scheduler.machine("vm1", &worker1).await;
    let gateway = as_role("godwit_gateway").await;
    gateway.create("one").await;
    gateway
        .ledger
        .changes_prune(Duration::ZERO, 0)
        .await
        .unwrap();
    let job = gateway.request("first", &machine).await;
    let wish = async |setup: &Setup| {
        setup
            .change(async |tx| tx.job_cancel(&job, "not now").await)
            .await
    };
    assert!(wish(&scheduler).await && wish(&gateway).await);
    let coordinator = as_role("godwit_coordinator").await;
    let lease = coordinator.claim("me").await;
    coordinator
        .advance(&lease, JobState::Pending, JobState::Placing)
        .await;
    scheduler
        .change(async |tx| {
            tx.reserve(reservation(&machine, &worker2))
                .await
                .map(|_| ())
        })
        .await;
    coordinator
        .change(async |tx| tx.hand_over(&lease, &machine, &worker1, &worker2).await)
        .await;
    coordinator
        .advance(&lease, JobState::Placing, JobState::Failed)
        .await;
    let maintenance = as_role("godwit_maintenance").await;
    maintenance.request("evacuation", &machine).await;

    let mut tx = gateway.ledger.begin().await.unwrap();
    let refused = tx.instance_remove(&machine).await;
    assert!(
        matches!(refused, Err(LedgerError::Database(_))),
        "{refused:?}"
    );
}
