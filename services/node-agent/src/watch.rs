//! A stream of a job's facts on this host: at once, at each change, and numbers now and then.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use godwit_model::migration::fact::{SourceFact, TargetFact};
use godwit_rpc::Status;
use godwit_rpc::agent::v1::JobFacts;
use godwit_rpc::convert::JobRef;

use crate::half::{HalfError, at};
use crate::host::Host;
use crate::journal::Side;
use crate::server::refused_half;

/// Shortest time between two facts that differ in numbers alone.
const NUMBERS_EVERY: Duration = Duration::from_millis(100);

/// Facts that wait for a slow reader; it gets older ones, and no more are made meanwhile.
const FACTS_MAX: usize = 2;

/// What a host says of a job.
#[derive(Debug, Clone, Default, PartialEq)]
struct Facts {
    source: Option<SourceFact>,
    target: Option<TargetFact>,
}

impl Facts {
    /// Whether nothing but numbers differs.
    fn alike(&self, other: &Self) -> bool {
        let plain = |fact: &SourceFact| SourceFact {
            progress: godwit_model::migration::fact::Progress::default(),
            ..fact.clone()
        };
        self.target == other.target
            && self.source.as_ref().map(plain) == other.source.as_ref().map(plain)
    }

    fn to_wire(&self) -> JobFacts {
        JobFacts {
            source: self.source.as_ref().map(Into::into),
            target: self.target.as_ref().map(Into::into),
        }
    }
}

/// The halves of the job that this host has.
#[derive(Default)]
struct Halves {
    source: Option<watch::Receiver<SourceFact>>,
    target: Option<watch::Receiver<TargetFact>>,
}

impl Halves {
    /// Opens what there is on disk or in memory, and nothing else.
    async fn find(host: &Arc<Host>, job: &JobRef) -> Result<Self, HalfError> {
        let mut halves = Self::default();
        for side in host.sides(&job.machine, &job.job)? {
            match side {
                Side::Source => {
                    halves.source = Some(host.source(&job.machine, &job.job).await?.facts());
                }
                Side::Target => {
                    halves.target = Some(host.target(&job.machine, &job.job).await?.facts());
                }
            }
        }
        Ok(halves)
    }

    fn facts(&mut self) -> Facts {
        Facts {
            source: self
                .source
                .as_mut()
                .map(|facts| facts.borrow_and_update().clone()),
            target: self
                .target
                .as_mut()
                .map(|facts| facts.borrow_and_update().clone()),
        }
    }

    /// Waits for a change. `false` when a half has ended and has to be looked for again.
    async fn changed(&mut self) -> bool {
        tokio::select! {
            changed = next(self.source.as_mut()) => changed,
            changed = next(self.target.as_mut()) => changed,
        }
    }

    const fn complete(&self) -> bool {
        self.source.is_some() && self.target.is_some()
    }
}

async fn next<F>(facts: Option<&mut watch::Receiver<F>>) -> bool {
    match facts {
        Some(facts) => facts.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}

/// Follows `job` until the reader goes or the agent ends.
pub(crate) fn watch(host: Arc<Host>, job: JobRef) -> mpsc::Receiver<Result<JobFacts, Status>> {
    let (facts, reader) = mpsc::channel(FACTS_MAX);
    godwit_runtime::spawn("watch", async move {
        tokio::select! {
            () = host.shutdown.cancelled() => {}
            () = facts.closed() => {}
            ended = follow(&host, &job, &facts) => {
                if let Err(error) = ended {
                    // The reader may be gone, too.
                    let _ = facts.send(Err(refused_half(error))).await;
                }
            }
        }
    });
    reader
}

async fn follow(
    host: &Arc<Host>,
    job: &JobRef,
    reader: &mpsc::Sender<Result<JobFacts, Status>>,
) -> Result<(), HalfError> {
    let mut changes = host.changes();
    let mut halves = Halves::find(host, job).await?;
    let mut sent: Option<(Facts, Instant)> = None;
    loop {
        let facts = halves.facts();
        let now = Instant::now();
        let due = match &sent {
            None => Some(now),
            Some((last, _)) if *last == facts => None,
            Some((last, at)) if last.alike(&facts) => Some(*at + NUMBERS_EVERY),
            Some(_) => Some(now),
        };
        if due.is_some_and(|due| due <= now) {
            if reader.send(Ok(facts.to_wire())).await.is_err() {
                return Ok(());
            }
            sent = Some((facts, now));
            continue;
        }
        tokio::select! {
            same = halves.changed() => if !same {
                tokio::time::sleep(NUMBERS_EVERY).await;
                halves = Halves::find(host, job).await?;
            },
            // A half that isn't here yet may come.
            _ = changes.changed(), if !halves.complete() => {
                halves = Halves::find(host, job).await?;
            }
            () = at(due) => {}
        }
    }
}
