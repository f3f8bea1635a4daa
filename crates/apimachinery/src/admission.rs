//! The hook in which a kind checks and completes what clients write.

use async_trait::async_trait;
use serde_json::Value;

use crate::context::RequestContext;
use crate::status::Status;

/// Rules of one kind, or of all. Objects come in storage form, after schema validation.
///
/// Each call answers with warnings for the client (shown by kubectl), or refuses.
/// On an update, identity and system metadata are already those of the old object.
#[async_trait]
pub trait Admission: Send + Sync + 'static {
    /// May complete `object` (defaults, labels, finalizers).
    async fn on_create(
        &self,
        _ctx: &RequestContext,
        _object: &mut Value,
    ) -> Result<Vec<String>, Status> {
        Ok(Vec::new())
    }

    /// May complete `new`. Also called for `/status`, told by `ctx.subresource`.
    async fn on_update(
        &self,
        _ctx: &RequestContext,
        _old: &Value,
        _new: &mut Value,
    ) -> Result<Vec<String>, Status> {
        Ok(Vec::new())
    }

    /// May refuse the deletion.
    async fn on_delete(
        &self,
        _ctx: &RequestContext,
        _old: &Value,
        _options: &DeleteOptions,
    ) -> Result<Vec<String>, Status> {
        Ok(Vec::new())
    }
}

/// Admits everything unchanged.
pub struct AdmitAll;

impl Admission for AdmitAll {}

/// How a deletion is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// `Background`, `Foreground` or `Orphan`; empty goes by the finalizers that are there.
    pub propagation_policy: String,
    /// Seconds the object may take to end by itself.
    pub grace_period_seconds: Option<i64>,
    /// Delete only the object of this uid.
    pub precondition_uid: Option<String>,
    /// Delete only the object at this resourceVersion.
    pub precondition_revision: Option<String>,
    /// Keep nothing.
    pub dry_run: bool,
}
