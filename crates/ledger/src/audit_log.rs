//! The audit log: who asked the API for what, and how it was decided. Append-only.

use crate::{Ledger, LedgerError};
use serde_json::Value;
use uuid::Uuid;

/// One event of the audit log.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditRecord {
    /// Identifies the record: appended again it is kept once.
    pub uid: Uuid,
    /// In the form of `audit.k8s.io/v1` Event.
    pub event: Value,
}

impl Ledger {
    /// Appends records, all or none. Takes no revision lock: nobody watches them.
    ///
    /// # Errors
    /// `Unavailable`: none may be there, or all; append them again. `Database` when an event is not
    /// of the form.
    pub async fn audit_append(&self, records: &[AuditRecord]) -> Result<(), LedgerError> {
        let uids: Vec<Uuid> = records.iter().map(|record| record.uid).collect();
        let events: Vec<&Value> = records.iter().map(|record| &record.event).collect();
        let statement = sqlx::query(include_str!("../queries/audit_append.sql"))
            .bind(uids)
            .bind(events);
        self.execute(statement).await?;
        Ok(())
    }

    /// Makes room in the audit log for this month and the next.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn audit_prepare(&self) -> Result<(), LedgerError> {
        self.execute(sqlx::query("SELECT audit_partitions_make()"))
            .await?;
        Ok(())
    }
}
