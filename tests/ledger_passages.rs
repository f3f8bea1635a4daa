//! What migrations were: good ends are read once, in the order of their commits, and teach forecasts.

use crate::ledger_setup::{Setup, step};
use godwit_ledger::{Experience, JobChange, Lease, Tx};
use godwit_model::forecast::Voyage;
use godwit_model::migration::job::JobState;
use godwit_model::{Bytes, JobId, MachineId, NodeName};
use serde_json::{Value, json};
use std::time::Duration;

const PATH: [JobState; 9] = [
    JobState::Pending,
    JobState::Placing,
    JobState::Reserved,
    JobState::Preparing,
    JobState::Prepared,
    JobState::Copying,
    JobState::SwitchAllowed,
    JobState::HandedOver,
    JobState::Succeeded,
];
const DAY: Duration = Duration::from_secs(24 * 3600);

struct World {
    setup: Setup,
    worker1: NodeName,
    worker2: NodeName,
}

impl World {
    async fn new() -> Self {
        let setup = Setup::new().await;
        Self {
            worker1: setup.node("worker1", 8).await,
            worker2: setup.node("worker2", 8).await,
            setup,
        }
    }

    /// A migration of a new machine that only has to end.
    async fn nearly_over(&self, name: &str) -> Lease {
        let machine = self.setup.machine(name, &self.worker1).await;
        self.setup.request(name, &machine).await;
        let lease = self.setup.claim("me").await;
        for pair in PATH[..PATH.len() - 1].windows(2) {
            let mut step = step(pair[0], pair[1]);
            if pair[1] == JobState::Reserved {
                step.set = JobChange {
                    target: Some(self.worker2.clone()),
                    history: Some(json!({"bandwidth": 0, "downtimeLimitMs": 100})),
                    ..JobChange::default()
                };
            }
            let recorded = self
                .setup
                .change(async |tx| tx.job_record(&lease, step).await);
            assert!(recorded.await.is_now());
        }
        lease
    }

    async fn end(&self, name: &str, history: Value) -> (JobId, MachineId) {
        let lease = self.nearly_over(name).await;
        let mut tx = self.setup.ledger.begin().await.unwrap();
        ends(&mut tx, &lease, history).await;
        tx.commit().await.unwrap();
        (lease.job.id, lease.job.machine)
    }

    fn voyage<'a>(&'a self, machine: &'a MachineId) -> Voyage<'a> {
        Voyage {
            machine,
            memory: Bytes(1_000_000_000),
            source: &self.worker1,
            target: &self.worker2,
            bandwidth: 0,
            downtime: Duration::from_millis(100),
        }
    }
}

async fn ends(tx: &mut Tx, lease: &Lease, history: Value) {
    let mut step = step(JobState::HandedOver, JobState::Succeeded);
    step.set.history = Some(history);
    assert!(tx.job_record(lease, step).await.unwrap().is_now());
}

/// A link of 10 MB/s, and a guest that wrote nothing.
fn slow_copy() -> Value {
    json!({
        "memory": 1_000_000_000_u64, "bytes": 1_000_000_000_u64, "brownoutMs": 100_000,
        "dirtyRate": 0, "forecastMs": 9000,
    })
}

#[tokio::test]
async fn a_good_end_is_read_once_with_its_numbers() {
    let world = World::new().await;
    let ledger = &world.setup.ledger;
    let (first, machine) = world.end("first", slow_copy()).await;
    let failed = world.setup.machine("failed", &world.worker1).await;
    world.setup.request("failed", &failed).await;
    let lease = world.setup.claim("me").await;
    world
        .setup
        .advance(&lease, JobState::Pending, JobState::Failed)
        .await;

    let read = ledger.passages_newest(DAY, 10).await.unwrap();
    let [row] = &read[..] else { panic!("{read:?}") };
    assert_eq!((&row.mark.job, &row.machine), (&first, &machine));
    assert_eq!((&row.source, &row.target), (&world.worker1, &world.worker2));
    assert_eq!(row.copy, Duration::from_secs(100));
    assert_eq!(row.downtime, Duration::from_millis(100));
    assert_eq!(row.forecast, Some(Duration::from_secs(9)));
    assert!(row.took > Duration::ZERO && row.took < Duration::from_secs(10));
    assert_eq!(ledger.passages_after(&row.mark, 10).await.unwrap(), []);

    // One whose numbers never arrived is a passage of which nothing is known.
    world.end("silent", json!({})).await;
    let later = ledger.passages_after(&row.mark, 10).await.unwrap();
    assert_eq!(later.len(), 1);
    assert_eq!(later[0].copy, Duration::ZERO);
}

#[tokio::test]
async fn an_end_that_commits_late_is_not_skipped() {
    let world = World::new().await;
    let ledger = &world.setup.ledger;
    let experience = Experience::default();
    assert_eq!(experience.follow(ledger).await.unwrap(), 0);
    let (early, late) = (
        world.nearly_over("early").await,
        world.nearly_over("late").await,
    );

    let mut slow = ledger.begin().await.unwrap();
    ends(&mut slow, &early, slow_copy()).await;
    let other = ledger.clone();
    let quick = tokio::spawn(async move {
        let mut tx = other.begin().await.unwrap();
        ends(&mut tx, &late, slow_copy()).await;
        tx.commit().await.unwrap();
    });
    assert_eq!(experience.follow(ledger).await.unwrap(), 0);
    slow.commit().await.unwrap();
    let mut read = experience.follow(ledger).await.unwrap();
    quick.await.unwrap();
    read += experience.follow(ledger).await.unwrap();
    assert_eq!(read, 2);
    assert_eq!(experience.follow(ledger).await.unwrap(), 0);
}

#[tokio::test]
async fn forecasts_follow_what_other_processes_recorded() {
    let world = World::new().await;
    let ledger = &world.setup.ledger;
    let experience = Experience::default();
    let mut history = slow_copy();
    history["forecastMs"] = Value::Null;
    let (_, machine) = world.end("vm1", history).await;
    let seconds = |experience: &Experience| {
        let forecast = experience.forecaster().forecast(world.voyage(&machine));
        forecast.takes.as_secs_f64()
    };
    assert!(seconds(&experience) < 20.0);
    experience.follow(ledger).await.unwrap();
    let taught = seconds(&experience);
    assert!((99.0..102.0).contains(&taught), "{taught}");
}
