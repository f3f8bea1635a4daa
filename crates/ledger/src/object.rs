//! API objects: what the user asked for and what is told about it.

use crate::convert::{self, At, bigint};
use crate::tx::Statement;
use crate::{Ledger, LedgerError, Mark, Tx};
use godwit_model::Revision;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

/// Where an object is in the API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// Plural, and the group after a dot unless it is core: `nodes`,
    /// `virtualmachineinstances.kubevirt.io`.
    pub resource: String,
    /// Namespace; empty for a cluster-scoped object.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectKey {
    /// The key of `name` in `namespace` (empty for a cluster-scoped object).
    pub fn new(
        resource: impl Into<String>,
        namespace: impl Into<String>,
        name: impl Into<String>,
    ) -> Self {
        Self {
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// An object as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Where it is.
    pub key: ObjectKey,
    /// Its UID, a UUID in lower-case hyphenated form.
    pub uid: String,
    /// The Kubernetes metadata without `resourceVersion`, `uid`, `name` and `namespace`.
    pub metadata: Value,
    /// All top-level fields but `apiVersion`, `kind`, `metadata` and `status`.
    pub body: Value,
    /// The status; `None` when nothing was told yet.
    pub status: Option<Value>,
    /// The change that made it what it is.
    pub revision: Revision,
}

impl Object {
    /// Whether the user asked for its deletion.
    pub fn deleting(&self) -> bool {
        !self.metadata["deletionTimestamp"].is_null()
    }

    /// `spec`, or null.
    pub fn spec(&self) -> &Value {
        &self.body["spec"]
    }

    /// Value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.metadata["labels"][key].as_str()
    }

    /// Value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata["annotations"][key].as_str()
    }

    /// The finalizers that keep a deleted object. A namespace has more of them in its spec.
    pub fn finalizers(&self) -> impl Iterator<Item = &str> {
        let more = match self.key.resource.as_str() {
            "namespaces" => self.spec()["finalizers"].as_array(),
            _ => None,
        };
        let lists = [self.metadata["finalizers"].as_array(), more];
        lists
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(Value::as_str)
    }
}

/// An object to be created.
#[derive(Debug, Clone, PartialEq)]
pub struct NewObject {
    /// Where it shall be.
    pub key: ObjectKey,
    /// Its UID; `None` lets the ledger choose one.
    pub uid: Option<String>,
    /// As in [`Object`]; `creationTimestamp` and `generation` are set by the ledger.
    pub metadata: Value,
    /// As in [`Object`].
    pub body: Value,
    /// As in [`Object`].
    pub status: Option<Value>,
}

/// Resource of events: those that clients made are objects, the others have a table of their own.
const EVENTS: &str = "events";

// The view of both is planned anew at each use, so only events are read through it.
const LIST: &str = "SELECT uid, resource, namespace, name, metadata, body, status, revision \
    FROM object WHERE resource = $1 ORDER BY namespace, name";
const LIST_EVENTS: &str = "SELECT uid, resource, namespace, name, metadata, body, status, revision \
    FROM api_object WHERE resource = $1 ORDER BY namespace, name";
const LIST_TOLD: &str = "SELECT uid, resource, namespace, name, metadata, body, status, revision \
    FROM object WHERE resource = $1 AND jsonb_exists(status, $2) ORDER BY namespace, name";
const GET: &str = "SELECT uid, resource, namespace, name, metadata, body, status, revision \
    FROM object WHERE resource = $1 AND namespace = $2 AND name = $3";
const GET_TWO: &str = "SELECT uid, resource, namespace, name, metadata, body, status, revision \
    FROM object WHERE resource = $1 AND namespace = $2 AND name = $3 \
    UNION ALL \
    SELECT uid, resource, namespace, name, metadata, body, status, revision \
    FROM object WHERE resource = $4 AND namespace = $5 AND name = $6";
const GET_EVENT: &str = "SELECT uid, resource, namespace, name, metadata, body, status, revision \
    FROM api_object WHERE resource = $1 AND namespace = $2 AND name = $3";

fn get(key: &ObjectKey) -> Statement<'_> {
    let statement = if key.resource == EVENTS {
        GET_EVENT
    } else {
        GET
    };
    sqlx::query(statement)
        .bind(&key.resource)
        .bind(&key.namespace)
        .bind(&key.name)
}

pub(crate) fn list(resource: &str) -> Statement<'_> {
    let statement = if resource == EVENTS {
        LIST_EVENTS
    } else {
        LIST
    };
    sqlx::query(statement).bind(resource)
}

/// One row of the snapshot: how far the change log is, and an object if there is any.
fn snapshot_row(
    row: &PgRow,
    mark: &mut Option<Mark>,
    each: &mut impl FnMut(Object),
) -> Result<(), LedgerError> {
    if mark.is_none() {
        *mark = Some(Mark {
            revision: Revision(convert::count(row, "newest")?),
            at: row.try_get::<Option<At>, _>("newest_at")?.map(|at| at.0),
        });
    }
    if row.try_get::<Option<Uuid>, _>("uid")?.is_some() {
        each(Object::read(row)?);
    }
    Ok(())
}

impl Ledger {
    /// Shows `each` API object, events included, of one moment; answers how far the change log is
    /// then. They come one by one, since a caller may keep them in less memory than they take here.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn snapshot(&self, mut each: impl FnMut(Object)) -> Result<Mark, LedgerError> {
        let statement = sqlx::query(include_str!("../queries/snapshot.sql"));
        let mut seen: Result<Option<Mark>, LedgerError> = Ok(None);
        let mut session = self.sessions.get().await?;
        let look = session.for_each(statement, |row| {
            if let Ok(mark) = &mut seen
                && let Err(error) = snapshot_row(&row, mark, &mut each)
            {
                seen = Err(error);
            }
        });
        look.await?;
        Ok(seen?.ok_or(sqlx::Error::RowNotFound)?)
    }

    /// All objects of a resource, by namespace and name.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn list(&self, resource: &str) -> Result<Vec<Object>, LedgerError> {
        let rows = self.fetch_all(list(resource)).await?;
        rows.iter().map(Object::read).collect()
    }

    /// Objects of a resource that are no events and whose status has `field`, by namespace and name.
    /// All of the resource's are looked through: not for each change.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn list_told(&self, resource: &str, field: &str) -> Result<Vec<Object>, LedgerError> {
        let statement = sqlx::query(LIST_TOLD).bind(resource).bind(field);
        let rows = self.fetch_all(statement).await?;
        rows.iter().map(Object::read).collect()
    }

    /// One object.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn get(&self, key: &ObjectKey) -> Result<Option<Object>, LedgerError> {
        let row = self.fetch_optional(get(key)).await?;
        row.as_ref().map(Object::read).transpose()
    }

    /// Two objects that are no events.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn get_two(&self, keys: [&ObjectKey; 2]) -> Result<[Option<Object>; 2], LedgerError> {
        two(keys, &self.fetch_all(get_two(keys)).await?)
    }
}

fn get_two<'q>(keys: [&'q ObjectKey; 2]) -> Statement<'q> {
    keys.iter().fold(sqlx::query(GET_TWO), |statement, key| {
        statement
            .bind(&key.resource)
            .bind(&key.namespace)
            .bind(&key.name)
    })
}

fn two(keys: [&ObjectKey; 2], rows: &[PgRow]) -> Result<[Option<Object>; 2], LedgerError> {
    let found: Vec<Object> = rows.iter().map(Object::read).collect::<Result<_, _>>()?;
    Ok(keys.map(|key| found.iter().find(|object| object.key == *key).cloned()))
}

impl Tx {
    /// One object, as this transaction sees it.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn get(&mut self, key: &ObjectKey) -> Result<Option<Object>, LedgerError> {
        let row = self.fetch_optional(get(key)).await?;
        row.as_ref().map(Object::read).transpose()
    }

    /// Two objects that are no events, as this transaction sees them.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn get_two(
        &mut self,
        keys: [&ObjectKey; 2],
    ) -> Result<[Option<Object>; 2], LedgerError> {
        two(keys, &self.fetch_all(get_two(keys)).await?)
    }

    /// All objects of a resource, by namespace and name, as this transaction sees them.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn list(&mut self, resource: &str) -> Result<Vec<Object>, LedgerError> {
        let rows = self.fetch_all(list(resource)).await?;
        rows.iter().map(Object::read).collect()
    }

    /// Creates an object with `creationTimestamp` and generation 1.
    ///
    /// # Errors
    /// `AlreadyExists` when the key or the UID is taken; the transaction goes on.
    pub async fn create(&mut self, new: NewObject) -> Result<Object, LedgerError> {
        let object = new.into_object(self.now())?;
        let row = self
            .fetch_optional(object.bind_to(sqlx::query(
                "INSERT INTO object (uid, resource, namespace, name, metadata, body, status) \
                     VALUES ($1::uuid, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING \
                     RETURNING revision",
            )))
            .await?
            .ok_or(LedgerError::AlreadyExists)?;
        let revision = Revision(convert::count(&row, "revision")?);
        self.wrote(Some(revision));
        Ok(Object { revision, ..object })
    }

    /// Writes metadata, body and status of an object read in this transaction.
    ///
    /// Nothing is written, and the revision stays, when nothing differs. The generation grows when
    /// the body differs; `creationTimestamp` and `generation` in `object` are ignored. An object
    /// marked for deletion and without finalizers is removed. Events recorded by
    /// [`Tx::event`] can't be put.
    ///
    /// # Errors
    /// `NotFound`, or `Conflict` when `object` was not the newest; the transaction goes on.
    pub async fn put(&mut self, object: &Object) -> Result<Object, LedgerError> {
        let uid = parse_uid(&object.uid)?;
        let statement = sqlx::query(include_str!("../queries/object_put.sql"))
            .bind(uid)
            .bind(bigint(object.revision.0))
            .bind(&object.metadata)
            .bind(&object.body)
            .bind(object.status.as_ref().filter(|status| !status.is_null()));
        let stored = match self.fetch_optional(statement).await? {
            Some(row) => {
                let stored = Object::read(&row)?;
                self.wrote(Some(stored.revision));
                stored
            }
            None => self.unchanged(uid, object.revision).await?,
        };
        if stored.deleting() && stored.finalizers().next().is_none() {
            self.execute(sqlx::query("DELETE FROM object WHERE uid = $1").bind(uid))
                .await?;
            self.wrote_deletion().await?;
        }
        Ok(stored)
    }

    /// Why a put wrote nothing: there was nothing to write, or it was refused.
    async fn unchanged(&mut self, uid: Uuid, revision: Revision) -> Result<Object, LedgerError> {
        let statement = sqlx::query(
            "SELECT uid, resource, namespace, name, metadata, body, status, revision \
             FROM object WHERE uid = $1",
        );
        let row = self.fetch_optional(statement.bind(uid)).await?;
        let stored = Object::read(&row.ok_or(LedgerError::NotFound)?)?;
        if stored.revision == revision {
            Ok(stored)
        } else {
            Err(LedgerError::Conflict)
        }
    }

    /// Merges the top-level keys of `patch` into the status; null removes a key.
    ///
    /// # Errors
    /// `NotFound`; the transaction goes on. `Refused` when `patch` is no object.
    pub async fn status_merge(
        &mut self,
        key: &ObjectKey,
        patch: Value,
    ) -> Result<Object, LedgerError> {
        let Value::Object(patch) = patch else {
            return Err(LedgerError::Refused("object_status_object".into()));
        };
        let (removed, set): (Map<_, _>, Map<_, _>) =
            patch.into_iter().partition(|(_, value)| value.is_null());
        let removed: Vec<String> = removed.into_iter().map(|(key, _)| key).collect();
        let statement = sqlx::query(include_str!("../queries/object_status_merge.sql"))
            .bind(&key.resource)
            .bind(&key.namespace)
            .bind(&key.name)
            .bind(Value::Object(set))
            .bind(removed);
        let Some(row) = self.fetch_optional(statement).await? else {
            return self.get(key).await?.ok_or(LedgerError::NotFound);
        };
        let stored = Object::read(&row)?;
        self.wrote(Some(stored.revision));
        Ok(stored)
    }

    /// Removes an object, whatever its finalizers.
    ///
    /// # Errors
    /// `NotFound`; the transaction goes on.
    pub async fn remove(&mut self, key: &ObjectKey) -> Result<(), LedgerError> {
        let statement =
            sqlx::query("DELETE FROM object WHERE resource = $1 AND namespace = $2 AND name = $3")
                .bind(&key.resource)
                .bind(&key.namespace)
                .bind(&key.name);
        let mut removed = self.execute(statement).await?;
        if removed == 0 && key.resource == EVENTS {
            let statement = sqlx::query("DELETE FROM event WHERE namespace = $1 AND name = $2")
                .bind(&key.namespace)
                .bind(&key.name);
            removed = self.execute(statement).await?;
        }
        if removed == 0 {
            return Err(LedgerError::NotFound);
        }
        self.wrote_deletion().await
    }
}

impl NewObject {
    /// The object as it is written; its revision is not known yet.
    pub(crate) fn into_object(self, now: Timestamp) -> Result<Object, LedgerError> {
        let uid = match self.uid {
            Some(uid) => parse_uid(&uid)?,
            None => Uuid::new_v4(),
        };
        let mut metadata = match self.metadata {
            Value::Object(metadata) => metadata,
            Value::Null => Map::new(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(LedgerError::Refused("object_metadata_object".into()));
            }
        };
        metadata.insert("creationTimestamp".into(), whole_seconds(now).into());
        metadata.insert("generation".into(), 1.into());
        Ok(Object {
            key: self.key,
            uid: uid.to_string(),
            metadata: metadata.into(),
            body: self.body,
            status: self.status.filter(|status| !status.is_null()),
            revision: Revision::default(),
        })
    }
}

impl Object {
    /// Binds seven arguments: uid (as text), resource, namespace, name, metadata, body, status.
    pub(crate) fn bind_to<'q>(&'q self, statement: Statement<'q>) -> Statement<'q> {
        statement
            .bind(&self.uid)
            .bind(&self.key.resource)
            .bind(&self.key.namespace)
            .bind(&self.key.name)
            .bind(&self.metadata)
            .bind(&self.body)
            .bind(&self.status)
    }

    pub(crate) fn read(row: &PgRow) -> Result<Self, LedgerError> {
        let uid: Uuid = row.try_get("uid")?;
        Ok(Self {
            key: ObjectKey {
                resource: row.try_get("resource")?,
                namespace: row.try_get("namespace")?,
                name: row.try_get("name")?,
            },
            uid: uid.to_string(),
            metadata: row.try_get("metadata")?,
            body: row.try_get("body")?,
            status: row.try_get("status")?,
            revision: Revision(convert::count(row, "revision")?),
        })
    }
}

pub(crate) fn parse_uid(uid: &str) -> Result<Uuid, LedgerError> {
    Uuid::parse_str(uid).map_err(|_| LedgerError::Refused("object_uid_uuid".into()))
}

/// A time as Kubernetes writes it, such as `2026-01-31T12:00:00Z`.
fn whole_seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
