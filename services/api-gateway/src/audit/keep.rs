//! Keeps the records: one task writes the file, another the ledger, so that neither a slow disk nor
//! a database that is away holds up a request or the other.
//!
//! Queues are bounded, and so is each event. What finds no place in one is counted as lost, never silently.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use godwit_ledger::{AuditRecord, Ledger, LedgerError};
use godwit_runtime::metrics::Metrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use serde_json::Value;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::file::RotatedFile;
use crate::config::AuditConfig;

/// Most records that wait for the file. At a thousand changes a second it is four seconds; a
/// record is about 1 KiB.
const FILE_QUEUE: usize = 4096;
/// Most records that wait for the ledger, and so how much of a time without it is made up for.
const LEDGER_QUEUE: usize = 8192;
/// Most records of one write.
const BATCH: usize = 256;
/// First and longest pause until the ledger is asked again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long the ledger is waited for when the service ends.
const CLOSING_MAX: Duration = Duration::from_secs(3);

/// Takes records. Cheap to clone; when the last is dropped, what waits is written.
#[derive(Clone)]
pub(crate) struct Trail {
    queue: Sender<Value>,
    counts: Counts,
}

#[derive(Clone, Default)]
struct Counts {
    events: Family<Labels, Counter>,
    /// Whether losing was told of already.
    losing: Arc<AtomicBool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    sink: &'static str,
    outcome: &'static str,
}

impl Trail {
    /// Opens the file and starts the tasks; they end after the last clone of the trail is dropped.
    ///
    /// # Errors
    /// When the file can't be opened.
    pub(crate) fn start(
        config: &AuditConfig,
        ledger: Ledger,
        (metrics, shutdown): (&Metrics, CancellationToken),
    ) -> anyhow::Result<(Self, JoinHandle<()>)> {
        let counts = Counts::default();
        metrics.registry(|registry| {
            let help = "Audit events by where they go and what became of them";
            registry.register("godwit_audit_events", help, counts.events.clone());
        });
        for sink in ["file", "ledger"] {
            counts.lost(sink, 0);
        }
        let file = config.file.as_deref().map(|path| {
            let opened = RotatedFile::open(path, config);
            opened.with_context(|| format!("open the audit log {}", path.display()))
        });
        let file = file.transpose()?.map(Mutex::new).map(Arc::new);
        let (queue, events) = mpsc::channel(FILE_QUEUE);
        let (records, waiting) = mpsc::channel(LEDGER_QUEUE);
        let records = config.ledger.then_some(records);
        let writer = Writer {
            file,
            records,
            counts: counts.clone(),
        };
        let keeper = Keeper {
            ledger,
            counts: counts.clone(),
            shutdown,
            end: None,
        };
        let ended = tokio::spawn(async move {
            tokio::join!(writer.run(events), keeper.run(waiting));
        });
        Ok((Self { queue, counts }, ended))
    }

    /// Takes an event, or counts it as lost.
    pub(super) fn keep(&self, event: Value) {
        if self.queue.try_send(event).is_err() {
            self.counts.lost("file", 1);
            self.counts.lost("ledger", 1);
        }
    }
}

impl Counts {
    fn add(&self, sink: &'static str, outcome: &'static str, events: usize) {
        let counter = self.events.get_or_create_owned(&Labels { sink, outcome });
        counter.inc_by(events as u64);
    }

    fn lost(&self, sink: &'static str, events: usize) {
        self.add(sink, "lost", events);
        if events > 0 && !self.losing.swap(true, Ordering::Relaxed) {
            error!(sink, "audit events are being lost");
        }
    }

    fn stored(&self, sink: &'static str, events: usize) {
        self.add(sink, "stored", events);
    }
}

/// Writes the file, and hands on to the keeper.
struct Writer {
    file: Option<Arc<Mutex<RotatedFile>>>,
    records: Option<Sender<AuditRecord>>,
    counts: Counts,
}

impl Writer {
    async fn run(self, mut events: Receiver<Value>) {
        let mut batch = Vec::with_capacity(BATCH);
        while events.recv_many(&mut batch, BATCH).await > 0 {
            let records: Vec<AuditRecord> = batch
                .drain(..)
                .map(|event| AuditRecord {
                    uid: Uuid::now_v7(),
                    event,
                })
                .collect();
            self.write(&records).await;
            for record in records {
                let Some(queue) = &self.records else { continue };
                if queue.try_send(record).is_err() {
                    self.counts.lost("ledger", 1);
                }
            }
        }
    }

    async fn write(&self, records: &[AuditRecord]) {
        let Some(file) = self.file.clone() else {
            return;
        };
        let lines: String = records
            .iter()
            .map(|record| format!("{}\n", record.event))
            .collect();
        let writing = tokio::task::spawn_blocking(move || {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            file.write(&lines)
        });
        let written = match writing.await {
            Ok(written) => written.context("write the audit log"),
            Err(error) => Err(error.into()),
        };
        match written {
            Ok(()) => self.counts.stored("file", records.len()),
            Err(error) => {
                error!(
                    error = format!("{error:#}"),
                    "failed to write the audit log"
                );
                self.counts.lost("file", records.len());
            }
        }
    }
}

/// Writes the ledger.
struct Keeper {
    ledger: Ledger,
    counts: Counts,
    shutdown: CancellationToken,
    /// When the ledger is waited for no longer; known since the shutdown.
    end: Option<Instant>,
}

impl Keeper {
    async fn run(mut self, mut waiting: Receiver<AuditRecord>) {
        let mut batch = Vec::with_capacity(BATCH);
        while waiting.recv_many(&mut batch, BATCH).await > 0 {
            self.keep(&batch).await;
            batch.clear();
        }
    }

    /// Keeps what can be kept: one that is refused must not take the others with it.
    async fn keep(&mut self, batch: &[AuditRecord]) {
        let Err(error) = self.append(batch).await else {
            return;
        };
        error!(%error, "the ledger refused audit events");
        for record in batch {
            if self.append(std::slice::from_ref(record)).await.is_err() {
                self.counts.lost("ledger", 1);
            }
        }
    }

    /// Tries until they are kept, or counts them as lost when the service ends. Records have ids,
    /// so one that was kept already is not kept twice.
    ///
    /// # Errors
    /// That the ledger refuses them.
    async fn append(&mut self, records: &[AuditRecord]) -> Result<(), LedgerError> {
        let mut pause = PAUSES.0;
        loop {
            match self.ledger.audit_append(records).await {
                Ok(()) => {
                    if pause > PAUSES.0 {
                        info!("the ledger keeps the audit log again");
                    }
                    self.counts.stored("ledger", records.len());
                    return Ok(());
                }
                Err(LedgerError::Unavailable(why) | LedgerError::Unknown(why)) => {
                    if pause == PAUSES.0 {
                        warn!(error = %why, "the audit log waits for the ledger");
                    }
                }
                Err(error) => return Err(error),
            }
            if self.is_over() {
                self.counts.lost("ledger", records.len());
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled(), if self.end.is_none() => {}
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    fn is_over(&mut self) -> bool {
        if !self.shutdown.is_cancelled() {
            return false;
        }
        let now = Instant::now();
        now >= *self.end.get_or_insert(now + CLOSING_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_without_a_place_is_counted_and_the_caller_goes_on() {
        let (queue, waiting) = mpsc::channel(1);
        let trail = Trail {
            queue,
            counts: Counts::default(),
        };
        let lost = |sink| {
            let labels = Labels {
                sink,
                outcome: "lost",
            };
            trail.counts.events.get_or_create_owned(&labels).get()
        };
        trail.keep(json!({}));
        assert_eq!((lost("file"), lost("ledger")), (0, 0));
        trail.keep(json!({}));
        assert_eq!((lost("file"), lost("ledger")), (1, 1));
        drop(waiting);
    }

    #[tokio::test]
    async fn what_the_ledger_has_no_place_for_is_in_the_file_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let (records, _waiting) = mpsc::channel(2);
        let counts = Counts::default();
        let file = RotatedFile::open(&path, &AuditConfig::default()).unwrap();
        let writer = Writer {
            file: Some(Arc::new(Mutex::new(file))),
            records: Some(records),
            counts: counts.clone(),
        };
        let (queue, events) = mpsc::channel(8);
        for at in 0..5 {
            queue.try_send(json!({"at": at})).unwrap();
        }
        drop(queue);
        writer.run(events).await;
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 5);
        let of = |sink, outcome| {
            let labels = Labels { sink, outcome };
            counts.events.get_or_create_owned(&labels).get()
        };
        assert_eq!((of("file", "stored"), of("ledger", "lost")), (5, 3));
    }
}
