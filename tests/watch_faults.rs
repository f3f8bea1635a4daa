//! Faults under the watchers: late commits, roll-backs, killed connections, dead gateways.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use godwit_ledger::ObjectKey;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::{Connection, PgConnection};
use tokio::time::sleep;

use crate::ledger_setup::VMI;
use crate::watch_env::World;
use crate::watch_writers::change;

/// Everything that breaks something, and how often it did.
pub(crate) struct Faults {
    pub(crate) world: Arc<World>,
    pub(crate) seed: u64,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) late: AtomicUsize,
    pub(crate) rolled_back: AtomicUsize,
    pub(crate) killed: AtomicUsize,
    pub(crate) restarts: AtomicUsize,
}

/// Whose connections are killed in turn: services, gateways, listeners of either.
const VICTIMS: [&str; 3] = [
    "usename = 'postgres' AND pid <> pg_backend_pid()",
    "usename = 'godwit_gateway'",
    "query LIKE 'LISTEN%'",
];

impl Faults {
    pub(crate) fn new(world: Arc<World>, seed: u64, stop: Arc<AtomicBool>) -> Self {
        Self {
            world,
            seed,
            stop,
            late: AtomicUsize::new(0),
            rolled_back: AtomicUsize::new(0),
            killed: AtomicUsize::new(0),
            restarts: AtomicUsize::new(0),
        }
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn rng(&self, offset: u64) -> StdRng {
        StdRng::seed_from_u64(self.seed.wrapping_add(2_000_000 + offset))
    }

    /// Transactions that take revisions and end late, one way or the other.
    pub(crate) async fn delay(&self) -> Result<()> {
        let mut rng = self.rng(0);
        while self.goes_on() {
            let pause = rng.random_range(50..300);
            sleep(Duration::from_millis(pause)).await; // others write
            // Killed as any other writer is.
            let _ = self.delayed(&mut rng).await;
        }
        Ok(())
    }

    async fn delayed(&self, rng: &mut StdRng) -> Result<()> {
        let mut tx = self.world.ledger.begin().await?;
        for turn in 0..3 {
            let key = ObjectKey::new(VMI, "default", format!("late-{turn}"));
            // What there isn't can't be changed; the next may be there.
            let _ = change(&mut tx, rng, &key).await;
        }
        let late = rng.random_range(10..150);
        sleep(Duration::from_millis(late)).await; // a slow network
        if rng.random_bool(0.5) {
            drop(tx);
            self.rolled_back.fetch_add(1, Ordering::Relaxed);
        } else {
            tx.commit().await?;
            self.late.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A writer that knows nothing of the ledger's lock, and is as slow.
    pub(crate) async fn intrude(&self) -> Result<()> {
        let mut rng = self.rng(1);
        while self.goes_on() {
            let pause = rng.random_range(100..500);
            sleep(Duration::from_millis(pause)).await; // others write
            // Killed as any other writer is.
            let _ = self.intrusion(&mut rng).await;
        }
        Ok(())
    }

    async fn intrusion(&self, rng: &mut StdRng) -> Result<()> {
        let mut connection = PgConnection::connect(&self.world.url).await?;
        let mut open = connection.begin().await?;
        let name = format!("intruder-{}", rng.random_range(0..1_000_000));
        for resource in ["configmaps", "secrets"] {
            sqlx::query(
                "INSERT INTO object (uid, resource, namespace, name, metadata, body) \
                 VALUES (gen_random_uuid(), $1, 'default', $2, '{}', '{}')",
            )
            .bind(resource)
            .bind(&name)
            .execute(&mut *open)
            .await?;
        }
        let late = rng.random_range(5..60);
        sleep(Duration::from_millis(late)).await; // a slow network
        if rng.random_bool(0.5) {
            open.rollback().await?;
            self.rolled_back.fetch_add(1, Ordering::Relaxed);
        } else {
            open.commit().await?;
            self.late.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Kills connections of the database, of each sort in turn.
    pub(crate) async fn kill(&self) -> Result<()> {
        let mut rng = self.rng(2);
        for turn in 0.. {
            if !self.goes_on() {
                break;
            }
            let pause = rng.random_range(200..900);
            sleep(Duration::from_millis(pause)).await; // load
            let whose = VICTIMS[turn % VICTIMS.len()];
            let database = self.world.database();
            let killed = self.world.psql(format!(
                "SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity \
                 WHERE datname = '{database}' AND {whose} ORDER BY random() LIMIT 2) AS victim"
            ));
            let killed: usize = killed.await?.trim().parse()?;
            self.killed.fetch_add(killed, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Kills one gateway after the other, and starts each again.
    pub(crate) async fn restart(&self) -> Result<()> {
        let mut rng = self.rng(3);
        for turn in 0.. {
            // The first in every run; then seldom, so that watchers get on meanwhile.
            let pause = match turn {
                0 => rng.random_range(1000..3000),
                _ => rng.random_range(4000..10_000),
            };
            sleep(Duration::from_millis(pause)).await; // load
            if !self.goes_on() {
                break;
            }
            let gateway = turn % self.world.gateways.len();
            let down = rng.random_range(0..800);
            let restarted = self.world.restart(gateway, Duration::from_millis(down));
            restarted.await?;
            self.restarts.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}
