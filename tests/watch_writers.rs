//! Writers: clients of the API, and services that write to the ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use godwit_ledger::{EventKind, EventRecord, LedgerError, NewObject, ObjectKey, ObjectRef, Tx};
use godwit_testkit::api::{Answer, Connection, Method};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::ledger_setup::VMI;
use crate::watch_env::{SPACES, World};

const ANSWER_MAX: Duration = Duration::from_secs(15);
/// Names that a writer has for itself, and that all share.
const NAMES: usize = 4;
const PHASES: [&str; 4] = ["Pending", "Scheduling", "Running", "Succeeded"];
const NODES: [&str; 3] = ["worker1", "worker2", "worker3"];

/// What came of a change, when it is no change.
enum Failure {
    /// What faults explain: no connection, no answer, or that there is no database.
    Broken(anyhow::Error),
    /// What nobody should get, whatever breaks.
    Wrong(anyhow::Error),
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Unavailable(_) | LedgerError::Unknown(_) => Self::Broken(error.into()),
            LedgerError::AlreadyExists
            | LedgerError::NotFound
            | LedgerError::Conflict
            | LedgerError::MigrationInProgress { .. }
            | LedgerError::Refused(_)
            | LedgerError::Database(_) => Self::Wrong(error.into()),
        }
    }
}

/// One of the writers.
pub(crate) struct Writer {
    pub(crate) world: Arc<World>,
    pub(crate) number: usize,
    pub(crate) seed: u64,
    /// Whether faults are part of the game.
    pub(crate) faults: bool,
    /// Longest pause between two changes.
    pub(crate) pause: Duration,
    pub(crate) stop: Arc<AtomicBool>,
    /// Changes that were acknowledged.
    pub(crate) written: Arc<AtomicUsize>,
}

impl Writer {
    /// Writes until it is stopped.
    ///
    /// # Errors
    /// At an answer that nobody should get.
    pub(crate) async fn run(self) -> Result<()> {
        let seed = self.seed.wrapping_add(1_000_000 + self.number as u64);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut connection = None;
        while !self.stop.load(Ordering::Relaxed) {
            let pause = rng.random_range(Duration::ZERO..self.pause);
            sleep(pause).await; // a client that thinks
            let done = match self.number % 5 {
                0 | 1 => self.as_service(&mut rng).await,
                _ => self.as_client(&mut rng, &mut connection).await,
            };
            match done {
                Ok(true) => {
                    self.written.fetch_add(1, Ordering::Relaxed);
                }
                Ok(false) => {}
                Err(Failure::Broken(_)) if self.faults => connection = None,
                Err(Failure::Broken(error) | Failure::Wrong(error)) => {
                    return Err(error.context(format!("writer {}", self.number)));
                }
            }
        }
        Ok(())
    }

    fn name(&self, rng: &mut StdRng) -> String {
        let turn = rng.random_range(0..NAMES);
        match rng.random_bool(0.3) {
            true => format!("shared-{turn}"),
            false => format!("own-{}-{turn}", self.number),
        }
    }

    /// One request; answers whether it changed something.
    async fn as_client(
        &self,
        rng: &mut StdRng,
        connection: &mut Option<Connection>,
    ) -> Result<bool, Failure> {
        let gateway = rng.random_range(0..self.world.gateways.len());
        let mut open = match connection.take() {
            Some(open) => open,
            None => {
                let opened = self.world.gateways[gateway].client.connect().await;
                opened.map_err(Failure::Broken)?
            }
        };
        let space = SPACES[rng.random_range(0..SPACES.len())];
        let kind = ["configmaps", "secrets"][rng.random_range(0..2)];
        let folder = format!("/api/v1/namespaces/{space}/{kind}");
        let asked = self.request(rng, &mut open, &folder);
        let answer = timeout(ANSWER_MAX, asked).await.context("no answer");
        let answer = answer.and_then(|answer| answer).map_err(Failure::Broken)?;
        let told = || anyhow!("{folder}: {}: {}", answer.status, answer.body);
        match answer.status {
            200 | 201 | 404 | 409 => {}
            503 => return Err(Failure::Broken(told())),
            _ => return Err(Failure::Wrong(told())),
        }
        // Now and then the next request is another gateway's.
        if rng.random_bool(0.8) {
            *connection = Some(open);
        }
        Ok(answer.status < 300)
    }

    async fn request(
        &self,
        rng: &mut StdRng,
        open: &mut Connection,
        folder: &str,
    ) -> Result<Answer> {
        let name = self.name(rng);
        let path = format!("{folder}/{name}");
        let body = json!({
            "metadata": {"name": name, "labels": {"team": team(rng)}},
            "data": {"at": base64_of(rng.random_range(0..1000))},
        });
        match rng.random_range(0..10) {
            0..=2 => open.call(Method::POST, folder, Some(&body)).await,
            3..=4 => open.call(Method::PUT, &path, Some(&body)).await,
            5..=7 => {
                let patch = json!({"metadata": {"labels": {"team": team(rng)}}});
                open.call(Method::PATCH, &path, Some(&patch)).await
            }
            _ => open.call(Method::DELETE, &path, None).await,
        }
    }

    /// One transaction of a service; answers whether it changed something.
    async fn as_service(&self, rng: &mut StdRng) -> Result<bool, Failure> {
        let mut tx = self.world.ledger.begin().await?;
        let mut wrote = false;
        for _ in 0..rng.random_range(1..=3) {
            let space = SPACES[rng.random_range(0..SPACES.len())];
            let key = ObjectKey::new(VMI, space, self.name(rng));
            wrote |= match change(&mut tx, rng, &key).await {
                Ok(()) => true,
                Err(LedgerError::AlreadyExists | LedgerError::NotFound) => false,
                Err(error) => return Err(error.into()),
            };
        }
        tx.commit().await?;
        Ok(wrote)
    }
}

/// One change of a machine, or an event about it.
pub(crate) async fn change(
    tx: &mut Tx,
    rng: &mut StdRng,
    key: &ObjectKey,
) -> Result<(), LedgerError> {
    match rng.random_range(0..10) {
        0..=1 => tx.create(machine(rng, key.clone())).await.map(drop),
        2..=5 => {
            let node = NODES[rng.random_range(0..NODES.len())];
            let phase = PHASES[rng.random_range(0..PHASES.len())];
            let status = json!({"phase": phase, "nodeName": node});
            tx.status_merge(key, status).await.map(drop)
        }
        6 => {
            let object = tx.get(key).await?.ok_or(LedgerError::NotFound)?;
            let mut object = object;
            object.metadata["labels"] = json!({"team": team(rng)});
            tx.put(&object).await.map(drop)
        }
        7..=8 => tx.event(event(rng, key)).await,
        _ => tx.remove(key).await,
    }
}

fn machine(rng: &mut StdRng, key: ObjectKey) -> NewObject {
    NewObject {
        key,
        uid: None,
        metadata: json!({"labels": {"team": team(rng)}}),
        body: json!({"spec": {"domain": {"memory": {"guest": "64Mi"}}}}),
        status: Some(json!({"phase": "Pending"})),
    }
}

fn event(rng: &mut StdRng, key: &ObjectKey) -> EventRecord {
    EventRecord {
        regarding: ObjectRef {
            api_version: "kubevirt.io/v1".to_owned(),
            kind: "VirtualMachineInstance".to_owned(),
            resource: VMI.to_owned(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            uid: String::new(),
        },
        reason: ["Started", "Moved", "Stopped"][rng.random_range(0..3)].to_owned(),
        note: "told by a test".to_owned(),
        kind: EventKind::Normal,
        component: "watch-load".to_owned(),
        host: String::new(),
    }
}

fn team(rng: &mut StdRng) -> Value {
    [json!("red"), json!("blue"), json!("green")][rng.random_range(0..3)].clone()
}

/// Four characters that are base64, as secrets want it.
fn base64_of(number: usize) -> String {
    format!("a{number:03}")
}
