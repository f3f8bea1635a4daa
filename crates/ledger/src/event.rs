//! Events: what happened to an object, in words for people. Same words again are counted.

use crate::convert::{self, interval};
use crate::{Ledger, LedgerError, Tx};
use godwit_model::{NAME_LENGTH_MAX, Revision};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// Which object an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectRef {
    /// API version, such as `kubevirt.io/v1`.
    pub api_version: String,
    /// Kind, such as `VirtualMachineInstance`.
    pub kind: String,
    /// Resource key, such as `virtualmachineinstances.kubevirt.io`.
    pub resource: String,
    /// Namespace; empty for a cluster-scoped object.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID; may be empty when it isn't known.
    pub uid: String,
}

/// Whether somebody should look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// As it should be.
    Normal,
    /// Somebody may want to look.
    Warning,
}

/// An event to be recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRecord {
    /// What it is about.
    pub regarding: ObjectRef,
    /// One CamelCase word for machines.
    pub reason: String,
    /// A sentence for people; cut after 1024 bytes.
    pub note: String,
    /// Normal or warning.
    pub kind: EventKind,
    /// Who saw it, such as `migration-coordinator`.
    pub component: String,
    /// On which node; empty when it is about none.
    pub host: String,
}

/// Longest note, in bytes, as in Kubernetes.
const NOTE_LENGTH_MAX: usize = 1024;
/// Bytes of a name that are left for the object's when a dot and 16 digits follow.
const REGARDING_NAME_LENGTH_MAX: usize = NAME_LENGTH_MAX - 17;
/// Most events that one transaction of a pruning removes: others wait for it.
const PRUNE_BATCH: i64 = 500;

impl EventKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

impl Tx {
    /// Records an event in the object's namespace (`default` for a cluster-scoped object).
    ///
    /// The same event again raises the count and the last time of the first.
    ///
    /// # Errors
    /// `Refused` when the reason or the component is empty or longer than 128 characters.
    pub async fn event(&mut self, mut record: EventRecord) -> Result<(), LedgerError> {
        let cut = record.note.floor_char_boundary(NOTE_LENGTH_MAX);
        record.note.truncate(cut);
        let name = record.name();
        let about = &record.regarding;
        let statement = sqlx::query(include_str!("../queries/event_record.sql"))
            .bind(record.namespace())
            .bind(&about.api_version)
            .bind(&about.kind)
            .bind(&about.resource)
            .bind(&about.namespace)
            .bind(&about.name)
            .bind(&about.uid)
            .bind(record.kind.as_str())
            .bind(&record.reason)
            .bind(&record.note)
            .bind(&record.component)
            .bind(&record.host)
            .bind(name);
        let row = self.fetch_one(statement).await?;
        self.wrote(Some(Revision(convert::count(&row, "revision")?)));
        Ok(())
    }
}

impl EventRecord {
    fn namespace(&self) -> &str {
        if self.regarding.namespace.is_empty() {
            "default"
        } else {
            &self.regarding.namespace
        }
    }

    /// The same for the same event, so that it needs no look-up.
    fn name(&self) -> String {
        let about = &self.regarding;
        let mut hash = Sha256::new();
        for part in [
            &about.uid,
            &about.resource,
            &about.name,
            &self.reason,
            &self.note,
            &self.component,
            &self.host,
        ] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        let digits: String = hash.finalize()[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let cut = about.name.floor_char_boundary(REGARDING_NAME_LENGTH_MAX);
        format!("{}.{digits}", &about.name[..cut])
    }
}

impl Ledger {
    /// Removes events last seen longer ago than `keep`. Answers how many.
    ///
    /// # Errors
    /// `Unavailable`; what was removed until then stays so.
    pub async fn events_prune(&self, keep: Duration) -> Result<u64, LedgerError> {
        let mut total = 0;
        loop {
            let mut tx = self.begin().await?;
            let statement = sqlx::query(
                "DELETE FROM event WHERE uid IN (SELECT uid FROM event \
                 WHERE last_at < clock_timestamp() - $1 ORDER BY last_at LIMIT $2)",
            )
            .bind(interval(keep))
            .bind(PRUNE_BATCH);
            let deleted = tx.execute(statement).await?;
            if deleted == 0 {
                return Ok(total);
            }
            tx.wrote_deletion().await?;
            tx.commit().await?;
            total += deleted;
        }
    }
}
