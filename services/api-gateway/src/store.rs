//! The API machinery's store: reads from the watch cache, writes through the ledger.
//!
//! A write answers when the cache has seen it, so that every client reads its own writes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use godwit_apimachinery::{
    ListAt, Listed, RequestContext, Status, Store, StoreError, Stored, Update, UpdateOf, WatchSpan,
    WatchStream,
};
use godwit_ledger::{
    Ledger, LedgerError, MaintenanceTrace, MigrationRequest, NewObject, Object, ObjectKey,
    TraceContext, Tx,
};
use godwit_model::{JobId, MachineId, Revision};
use godwit_runtime::backoff::Backoff;
use godwit_runtime::{failpoint, telemetry};
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use crate::convert;
use crate::facts::Facts;
use crate::feed::Poke;
use crate::histories;
use crate::kinds::{self, resource};
use crate::launchers;
use crate::newest::Newest;
use crate::peers::Peers;
use crate::watch_cache::WatchCache;
use crate::watches;

/// How long a read waits for the ledger to say how far it is; then it goes on without.
const ASK_MAX: Duration = Duration::from_secs(1);
/// The same while it is known not to answer, or to come back at this moment.
const ASK_AGAIN_MAX: Duration = Duration::from_millis(100);
/// Place in the queue of what a user asks for; drains go first.
const USER_PRIORITY: i32 = 0;
const CANCELLED_BY_USER: &str = "deleted by user";
/// How long a write that found the ledger out of reach is tried again.
const RERUN_MAX: Duration = Duration::from_secs(2);
/// First and longest pause before that; up to twice as long by jitter.
const RERUN_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(250));
/// What clients are told when nothing was changed.
const UNREACHED: &str = "the ledger can't be reached at the moment, and nothing was changed";
/// What clients are told when the commit was not answered, and nobody can be asked.
const UNKNOWN: &str = "the ledger can't be reached at the moment, and it is unknown whether the \
    change was made: look before you try again";

/// The store over the ledger.
pub(crate) struct LedgerStore {
    pub(crate) ledger: Ledger,
    pub(crate) cache: WatchCache,
    pub(crate) newest: Newest,
    pub(crate) poke: Poke,
    pub(crate) peers: Peers,
}

#[async_trait]
impl Store for LedgerStore {
    async fn get(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Stored>>, StoreError> {
        if resource == resource::MIGRATION_HISTORIES {
            return histories::get(&self.ledger, namespace, name).await;
        }
        self.latest().await?;
        Ok(match resource {
            resource::PODS => launchers::get(&self.cache, namespace, name),
            _ => self.cache.get(resource, namespace, name),
        })
    }

    async fn list(
        &self,
        resource: &str,
        namespace: Option<&str>,
        at: ListAt,
    ) -> Result<Listed, StoreError> {
        if resource == resource::MIGRATION_HISTORIES {
            return histories::list(&self.ledger, namespace, at).await;
        }
        if at == ListAt::Latest {
            self.latest().await?;
        }
        if resource == resource::PODS {
            return launchers::list(&self.cache, namespace, at).await;
        }
        self.cache.list(resource, namespace, at).await
    }

    async fn create(
        &self,
        ctx: &RequestContext,
        resource: &str,
        object: Value,
    ) -> Result<Arc<Stored>, StoreError> {
        self.rerun(|| self.create_once(ctx, resource, object.clone()))
            .await
    }

    async fn update(
        &self,
        ctx: &RequestContext,
        resource: &str,
        update: Update,
    ) -> Result<Arc<Stored>, StoreError> {
        self.rerun(|| self.update_once(ctx, resource, update.clone()))
            .await
    }

    async fn remove(
        &self,
        ctx: &RequestContext,
        resource: &str,
        object: &Stored,
    ) -> Result<(), StoreError> {
        self.rerun(|| self.remove_once(ctx, resource, object)).await
    }

    async fn watch(
        &self,
        resource: &str,
        namespace: Option<&str>,
        span: WatchSpan,
    ) -> Result<WatchStream, StoreError> {
        watches::begin(&self.cache, resource, namespace, span).await
    }
}

impl LedgerStore {
    /// Waits until everything is in the cache that any gateway acknowledged before. While the
    /// ledger can't be asked, reads go on with what is here.
    async fn latest(&self) -> Result<(), StoreError> {
        let max = match self.cache.is_followed() {
            true => ASK_MAX,
            false => ASK_AGAIN_MAX,
        };
        let newest = self.newest.ask(max).await.unwrap_or_default();
        if newest > self.cache.revision() {
            self.poke.now();
            self.cache.caught_up(newest).await?;
        }
        self.cache.fresh().await
    }

    /// Begins a transaction, unless it is known that nobody is there: then a client hears it at
    /// once, and who waits for writes is not in the way of those that come when it is back.
    async fn begin(&self) -> Result<Tx, StoreError> {
        if !self.cache.is_followed() {
            return Err(StoreError::Unavailable(UNREACHED.to_owned()));
        }
        self.ledger.begin().await.map_err(store_error)
    }

    /// Runs a write again that found the ledger out of reach and changed nothing, but not for long.
    async fn rerun<T, F>(&self, write: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let end = Instant::now() + RERUN_MAX;
        let mut backoff = Backoff::new(RERUN_PAUSES.0, RERUN_PAUSES.1);
        loop {
            let done = write().await;
            let Err(StoreError::Unavailable(_)) = &done else {
                return done;
            };
            let pause = backoff.pause();
            if !self.cache.is_followed() || Instant::now() + pause >= end {
                return done;
            }
            sleep(pause).await;
        }
    }

    /// Changes one object as it is now, whatever it was when it was read; `change` may refuse.
    pub(crate) async fn change(
        &self,
        ctx: &RequestContext,
        key: &ObjectKey,
        change: impl Fn(&mut Object) -> Result<(), Status>,
    ) -> Result<Arc<Stored>, StoreError> {
        self.rerun(|| async {
            let mut tx = self.begin().await?;
            let row = tx.get(key).await.map_err(store_error)?;
            let mut row = row.ok_or(StoreError::NotFound)?;
            change(&mut row)?;
            let object = tx.put(&row).await.map_err(store_error)?;
            self.finish(ctx, tx, object, &key.resource).await
        })
        .await
    }

    async fn create_once(
        &self,
        ctx: &RequestContext,
        resource: &str,
        object: Value,
    ) -> Result<Arc<Stored>, StoreError> {
        let vmi = kinds::migration_machine(&object).to_owned();
        let new = convert::new_object(resource, object);
        let mut tx = self.begin().await?;
        check_namespace(&mut tx, &new.key).await?;
        let object = match resource {
            resource::MIGRATIONS => request_migration(&mut tx, new, &vmi).await?,
            resource::NODE_MAINTENANCES => request_maintenance(&mut tx, new).await?,
            _ => tx.create(new).await.map_err(store_error)?,
        };
        self.finish(ctx, tx, object, resource).await
    }

    async fn update_once(
        &self,
        ctx: &RequestContext,
        resource: &str,
        update: Update,
    ) -> Result<Arc<Stored>, StoreError> {
        let key = convert::key(resource, &update.object);
        let (mut tx, mut row) = self.begin_at(&key, update.expected).await?;
        convert::replace(&mut row, update.object);
        if resource == resource::MIGRATIONS && update.of == UpdateOf::DeletionMark {
            end_migration(&mut tx, &mut row).await?;
        }
        let object = tx.put(&row).await.map_err(store_error)?;
        self.finish(ctx, tx, object, resource).await
    }

    async fn remove_once(
        &self,
        ctx: &RequestContext,
        resource: &str,
        object: &Stored,
    ) -> Result<(), StoreError> {
        let key = convert::key(resource, object.object());
        let (mut tx, row) = self.begin_at(&key, object.revision()).await?;
        if resource == resource::NAMESPACES {
            self.check_empty(&key.name).await?;
        }
        tx.remove(&key).await.map_err(store_error)?;
        self.finish(ctx, tx, row, resource).await?;
        Ok(())
    }

    /// Begins with the row, if it is still at the revision that the change was made from. Else waits
    /// until the cache has the newer one: who tries again must not see the old one again.
    async fn begin_at(&self, key: &ObjectKey, expected: u64) -> Result<(Tx, Object), StoreError> {
        let mut tx = self.begin().await?;
        let row = tx.get(key).await.map_err(store_error)?;
        let row = row.ok_or(StoreError::NotFound)?;
        if row.revision.0 == expected {
            return Ok((tx, row));
        }
        drop(tx);
        self.poke.now();
        self.cache.reached(row.revision.0).await?;
        Err(StoreError::Conflict)
    }

    /// Commits, wakes up who works on it, and waits for the cache. A dry run is rolled back.
    async fn finish(
        &self,
        ctx: &RequestContext,
        tx: Tx,
        object: Object,
        resource: &str,
    ) -> Result<Arc<Stored>, StoreError> {
        if ctx.dry_run {
            return Ok(convert::stored(object));
        }
        failpoint!("ledger.{resource}.before");
        let made = tx.made();
        let revision = match tx.commit().await {
            Ok(revision) => revision,
            Err(LedgerError::Unknown(why)) => {
                warn!(error = %why, resource, "a commit was not answered");
                self.settle(made, &object).await?
            }
            Err(error) => return Err(store_error(error)),
        };
        failpoint!("ledger.{resource}.after");
        self.peers.changed(resource);
        self.seen(revision).await;
        Ok(convert::stored(object))
    }

    /// Finds out what became of a commit that was not answered.
    async fn settle(
        &self,
        made: Option<Revision>,
        object: &Object,
    ) -> Result<Revision, StoreError> {
        let unknown = || StoreError::Unknown(UNKNOWN.to_owned());
        let made = made.ok_or_else(unknown)?;
        // Who has the lock knows that the other transaction is over, one way or the other.
        let mut tx = self.ledger.begin().await.map_err(|_| unknown())?;
        let found = tx.is_changed(made, object).await;
        let found = found.map_err(|_| unknown())?;
        info!(revision = made.0, found, "found out about a commit");
        match found {
            true => Ok(made),
            false => Err(StoreError::Unavailable(UNREACHED.to_owned())),
        }
    }

    /// Looks again, now that nobody else can write: something may have come since admission.
    async fn check_empty(&self, namespace: &str) -> Result<(), StoreError> {
        let newest = self.ledger.revision().await.map_err(store_error)?;
        self.poke.now();
        let reached = self.cache.reached(newest.0).await;
        reached.map_err(|_| StoreError::Unavailable(UNREACHED.to_owned()))?;
        let facts = Facts::new(self.cache.clone());
        kinds::check_namespace_delete(namespace, facts.namespace_content(namespace).as_deref())?;
        Ok(())
    }

    async fn seen(&self, revision: Revision) {
        self.cache.acknowledge(revision.0);
        self.poke.now();
        if self.cache.reached(revision.0).await.is_err() {
            // Reads wait for it too, so nobody is told an older state.
            warn!(
                revision = revision.0,
                "write is committed but not seen in the change log yet"
            );
        }
    }
}

/// Admission looked into the cache; here nobody can take the namespace away any more.
async fn check_namespace(tx: &mut Tx, key: &ObjectKey) -> Result<(), StoreError> {
    let space = key.namespace.as_str();
    if space.is_empty() || kinds::PREDEFINED_NAMESPACES.contains(&space) {
        return Ok(());
    }
    let namespace = ObjectKey::new(resource::NAMESPACES, "", space);
    match tx.get(&namespace).await.map_err(store_error)? {
        Some(_) => Ok(()),
        None => Err(StoreError::Refused(Status::not_found(
            "",
            resource::NAMESPACES,
            space,
        ))),
    }
}

/// One maintenance of a node, however many ask at the same time, under the trace of this request.
async fn request_maintenance(tx: &mut Tx, object: NewObject) -> Result<Object, StoreError> {
    let node = &object.body["spec"]["nodeName"];
    let others = tx
        .list(resource::NODE_MAINTENANCES)
        .await
        .map_err(store_error)?;
    let same = |other: &Object| other.spec()["nodeName"] == *node && other.key != object.key;
    if others.iter().any(same) {
        let node = node.as_str().unwrap_or_default();
        return Err(StoreError::Refused(kinds::duplicate_maintenance(node)));
    }
    let made = tx.create(object).await.map_err(store_error)?;
    let trace = MaintenanceTrace {
        uid: made.uid.clone(),
        name: made.key.name.clone(),
        node: made.spec()["nodeName"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        trace: TraceContext(telemetry::trace_context()),
        began_at: tx.now(),
    };
    tx.maintenance_trace(&trace).await.map_err(store_error)?;
    Ok(made)
}

/// The migration and its job in one transaction, under the trace of this request.
async fn request_migration(
    tx: &mut Tx,
    object: NewObject,
    vmi: &str,
) -> Result<Object, StoreError> {
    let space = object.key.namespace.clone();
    let key = ObjectKey::new(resource::INSTANCES, &space, vmi);
    let no_instance = || StoreError::Refused(kinds::no_instance(&space, vmi));
    let instance = tx
        .get(&key)
        .await
        .map_err(store_error)?
        .ok_or_else(no_instance)?;
    let machine = MachineId::parse(instance.uid)
        .map_err(|error| StoreError::Refused(Status::internal(error.to_string())))?;
    let trace = TraceContext(telemetry::trace_context());
    let request = MigrationRequest {
        object,
        machine,
        vmi: key,
        priority: USER_PRIORITY,
        trace,
    };
    let made = tx.migration_request(request).await;
    if let Err(LedgerError::MigrationInProgress { job }) = &made {
        return Err(StoreError::Refused(kinds::in_flight(job.as_str(), vmi)));
    }
    made.map_err(store_error)
}

/// A deleted migration goes at once if it has ended, else it is cancelled first.
async fn end_migration(tx: &mut Tx, row: &mut Object) -> Result<(), StoreError> {
    let open = match JobId::parse(row.uid.clone()) {
        Ok(job) => tx
            .job_cancel(&job, CANCELLED_BY_USER)
            .await
            .map_err(store_error)?,
        Err(_) => false,
    };
    let list = row.metadata.get_mut("finalizers");
    if !open && let Some(list) = list.and_then(Value::as_array_mut) {
        list.retain(|finalizer| finalizer != kinds::MIGRATION_FINALIZER);
    }
    Ok(())
}

pub(crate) fn store_error(error: LedgerError) -> StoreError {
    match error {
        LedgerError::AlreadyExists => StoreError::AlreadyExists,
        LedgerError::NotFound => StoreError::NotFound,
        LedgerError::Conflict => StoreError::Conflict,
        LedgerError::MigrationInProgress { job } => {
            StoreError::Refused(kinds::in_flight(job.as_str(), ""))
        }
        LedgerError::Refused(rule) => {
            StoreError::Refused(Status::forbidden(format!("refused by rule {rule}")))
        }
        LedgerError::Unavailable(source) => {
            warn!(error = %source, "ledger is unavailable");
            StoreError::Unavailable(UNREACHED.to_owned())
        }
        LedgerError::Unknown(source) => {
            warn!(error = %source, "outcome of a commit is unknown");
            StoreError::Unknown(UNKNOWN.to_owned())
        }
        LedgerError::Database(source) => {
            error!(error = %source, "database refused a statement");
            StoreError::Refused(Status::internal("the database refused the statement"))
        }
    }
}
