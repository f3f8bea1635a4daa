//! What the server needs from whoever keeps the objects.
//!
//! Implemented by `api-gateway` over the ledger and its watch cache.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde_json::Value;
use tokio::time::Instant;

use crate::context::RequestContext;
use crate::object::Stored;
use crate::status::Status;

/// Keeper of objects. `resource` is always a [`Kind::resource`](crate::Kind).
///
/// Revisions are cluster-wide, start at 1 and grow with every commit, over all resources.
/// With `ctx.dry_run` a write checks everything and keeps nothing.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The object, or `None`. Never older than the last write that was acknowledged.
    async fn get(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Stored>>, StoreError>;

    /// All objects of one namespace, or of all for `None`, sorted by namespace and name.
    async fn list(
        &self,
        resource: &str,
        namespace: Option<&str>,
        at: ListAt,
    ) -> Result<Listed, StoreError>;

    /// Keeps a new object. It comes with name, namespace, uid, creationTimestamp, generation 1.
    async fn create(
        &self,
        ctx: &RequestContext,
        resource: &str,
        object: Value,
    ) -> Result<Arc<Stored>, StoreError>;

    /// Replaces an object if its revision still is `update.expected`.
    ///
    /// Adds 1 to `metadata.generation` if anything but `metadata` and `status` changed.
    /// Removes the object if it is being deleted and its last finalizer is gone; the answer is
    /// then its last state; a namespace goes by [`Store::remove`] alone, which refuses (409) while it
    /// holds anything. Changing nothing keeps the revision.
    async fn update(
        &self,
        ctx: &RequestContext,
        resource: &str,
        update: Update,
    ) -> Result<Arc<Stored>, StoreError>;

    /// Removes an object at once, if its revision still is `object.revision()`.
    async fn remove(
        &self,
        ctx: &RequestContext,
        resource: &str,
        object: &Stored,
    ) -> Result<(), StoreError>;

    /// Every change after revision `span.from`, in order of revision.
    ///
    /// The stream ends with an error when the reader fell behind. Bookmarks may be sent at will
    /// (about one a minute, and one shortly before the end); those the client did not ask for are
    /// dropped by the server.
    async fn watch(
        &self,
        resource: &str,
        namespace: Option<&str>,
        span: WatchSpan,
    ) -> Result<WatchStream, StoreError>;
}

/// Which state a list shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListAt {
    /// Never older than the last write that was acknowledged.
    Latest,
    /// Any state, as long as it isn't older than this revision; waits a moment for it.
    NotOlderThan(u64),
    /// Exactly this revision, or [`StoreError::Expired`] if it can't be rebuilt.
    Exact(u64),
}

/// A consistent list.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Sorted by namespace and name.
    pub items: Arc<Vec<Arc<Stored>>>,
    /// The cluster-wide revision that the list shows.
    pub revision: u64,
}

/// A replacement.
#[derive(Debug, Clone)]
pub struct Update {
    /// The whole new object, with parts the caller may not change already put back.
    pub object: Value,
    /// The revision it was made from.
    pub expected: u64,
    /// Which part it means to change.
    pub of: UpdateOf,
}

/// Which part of an object an update means to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateOf {
    /// Everything but `status`, where the kind has a `/status`.
    Main,
    /// `status` alone.
    Status,
    /// Only the marks of deletion: `deletionTimestamp`, `deletionGracePeriodSeconds`, finalizers.
    DeletionMark,
}

/// From where a watch goes on, and until when.
#[derive(Debug, Clone, Copy)]
pub struct WatchSpan {
    /// The changes after this revision are wanted.
    pub from: u64,
    /// When the server cuts the watch off.
    pub ends: Instant,
}

/// A change seen by a watch.
#[derive(Debug, Clone)]
pub enum WatchEvent {
    /// The object is new.
    Added(Arc<Stored>),
    /// The object changed.
    Modified {
        /// As it is after the change.
        object: Arc<Stored>,
        /// As it was before, so that selectors can tell who came and who left.
        previous: Option<Arc<Stored>>,
    },
    /// The object is gone. `revision()` is that of the removal.
    Deleted(Arc<Stored>),
    /// Nothing up to this revision is missing.
    Bookmark(u64),
}

/// Changes in order of revision.
pub type WatchStream = BoxStream<'static, Result<WatchEvent, StoreError>>;

/// Why the store said no.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// An object of this name exists.
    #[error("object already exists")]
    AlreadyExists,
    /// There is no such object.
    #[error("object not found")]
    NotFound,
    /// The object changed since it was read.
    #[error("object was modified since it was read")]
    Conflict,
    /// The revision is older than what is kept.
    #[error("revision is too old; oldest kept is {oldest}")]
    Expired {
        /// The oldest revision that can still be watched from.
        oldest: u64,
    },
    /// The revision is newer than any seen here.
    #[error("revision {asked} is newer than {current}")]
    TooNew {
        /// What was asked for.
        asked: u64,
        /// What is known.
        current: u64,
    },
    /// Nothing was changed; the same may be tried again. The text is for the client.
    #[error("store is unavailable: {0}")]
    Unavailable(String),
    /// Nothing is known about the outcome of a write. The text is for the client.
    #[error("outcome is unknown: {0}")]
    Unknown(String),
    /// Refused for a reason the client should read as it stands.
    #[error(transparent)]
    Refused(#[from] Status),
}
