//! Watches: changes as they come, one JSON line each.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use http::header;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::call::Call;
use super::list;
use crate::negotiate::{Format, Shape};
use crate::object::Stored;
use crate::query::{Include, Revision};
use crate::registry::Resource;
use crate::selector::{FieldSelector, LabelSelector};
use crate::status::Status;
use crate::store::{ListAt, StoreError, WatchEvent, WatchStream};
use crate::table;

/// Answers a watch.
pub(super) async fn serve(call: &Call) -> Result<Response, Status> {
    let mut encoder = Encoder::new(call)?;
    let (first, from) = begin(call, &mut encoder).await?;
    let (resource, namespace) = (&call.resource.kind.resource, call.stored_namespace());
    let live = call.server.store.watch(resource, namespace, from).await;
    let live = live.map_err(|error| call.store_error(error, ""))?;
    let limit = time_limit(call);
    let events = stream::iter(first)
        .chain(lines(live, encoder))
        .take_until(tokio::time::sleep(limit));
    let body = Body::from_stream(events.map(Ok::<Bytes, std::convert::Infallible>));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

fn time_limit(call: &Call) -> Duration {
    let longest = call.server.limits.watch_seconds.max(2);
    let seconds = call
        .query
        .timeout_seconds
        .unwrap_or_else(|| rand::Rng::random_range(&mut rand::rng(), longest / 2..=longest));
    Duration::from_secs(seconds)
}

/// What comes before live events, and the revision they start after.
async fn begin(call: &Call, encoder: &mut Encoder) -> Result<(Vec<Bytes>, u64), Status> {
    let at = match (call.query.send_initial, call.query.revision) {
        (None | Some(false), Revision::At(revision)) => return Ok((Vec::new(), revision)),
        (Some(true), Revision::At(revision)) => ListAt::NotOlderThan(revision),
        (_, Revision::Any) => ListAt::NotOlderThan(0),
        (_, Revision::Unset) => ListAt::Latest,
    };
    let listed = list::fetch(call, at)
        .await
        .map_err(|error| call.store_error(error, ""))?;
    let mut first = Vec::new();
    if call.query.send_initial != Some(false) {
        let matching = listed
            .items
            .iter()
            .filter(|stored| encoder.matches(stored.object()));
        let matching: Vec<&Arc<Stored>> = matching.collect();
        first.extend(
            matching
                .into_iter()
                .map(|stored| encoder.object("ADDED", stored)),
        );
    }
    if call.query.send_initial == Some(true) {
        first.extend(encoder.bookmark(listed.revision, true));
    }
    Ok((first, listed.revision))
}

/// Live events as lines; a failure is told in an `ERROR` event, which is the last.
fn lines(live: WatchStream, encoder: Encoder) -> impl Stream<Item = Bytes> {
    stream::unfold(Some((live, encoder)), |state| async move {
        let (mut live, mut encoder) = state?;
        loop {
            match live.next().await? {
                Ok(event) => {
                    if let Some(line) = encoder.event(event) {
                        return Some((line, Some((live, encoder))));
                    }
                }
                Err(error) => return Some((failure(&error), None)),
            }
        }
    })
}

fn failure(error: &StoreError) -> Bytes {
    let status = match error {
        StoreError::Expired { oldest } => Status::expired(format!(
            "too old resource version; the oldest kept is {oldest}"
        )),
        StoreError::Refused(status) => status.clone(),
        StoreError::TooNew { asked, current } => Status::revision_too_new(*asked, *current),
        StoreError::AlreadyExists
        | StoreError::NotFound
        | StoreError::Conflict
        | StoreError::Unknown(_)
        | StoreError::Unavailable(_) => {
            tracing::warn!(%error, "watch interrupted");
            Status::unavailable("the watch was interrupted")
        }
    };
    line("ERROR", status.to_json().to_string().as_bytes())
}

/// Turns events into lines of one watch.
struct Encoder {
    resource: Arc<Resource>,
    labels: LabelSelector,
    fields: FieldSelector,
    format: Format,
    include: Include,
    bookmarks: bool,
    /// Only the first table of a watch carries the definitions of its columns.
    headers_sent: bool,
}

impl Encoder {
    fn new(call: &Call) -> Result<Self, Status> {
        let selectable = &call.resource.kind.selectable_fields;
        Ok(Self {
            resource: Arc::clone(&call.resource),
            labels: call.query.labels.clone(),
            fields: call.query.fields.clone().resolve(selectable)?,
            format: call.format,
            include: call.query.include,
            bookmarks: call.query.bookmarks,
            headers_sent: false,
        })
    }

    fn matches(&self, object: &Value) -> bool {
        self.labels.matches(object) && self.fields.matches(object)
    }

    /// The line for an event, unless it is none of this watch's business.
    fn event(&mut self, event: WatchEvent) -> Option<Bytes> {
        match event {
            WatchEvent::Added(object) => self
                .matches(object.object())
                .then(|| self.object("ADDED", &object)),
            WatchEvent::Deleted(object) => self
                .matches(object.object())
                .then(|| self.object("DELETED", &object)),
            WatchEvent::Bookmark(revision) => self.bookmark(revision, false),
            WatchEvent::Modified { object, previous } => self.modified(&object, previous),
        }
    }

    /// Objects that come to match are new to this client, and those that cease to are gone.
    fn modified(&mut self, object: &Arc<Stored>, previous: Option<Arc<Stored>>) -> Option<Bytes> {
        let now = self.matches(object.object());
        let before = previous
            .as_ref()
            .is_none_or(|previous| self.matches(previous.object()));
        match (before, now) {
            (true, true) => Some(self.object("MODIFIED", object)),
            (false, true) => Some(self.object("ADDED", object)),
            (true, false) => {
                // Its last matching state, at the revision of the change.
                let last = previous.map_or_else(
                    || Arc::clone(object),
                    |last| Stored::new(last.object().clone(), object.revision()),
                );
                Some(self.object("DELETED", &last))
            }
            (false, false) => None,
        }
    }

    fn object(&mut self, kind: &str, stored: &Stored) -> Bytes {
        match self.format.shape {
            Shape::Whole => {
                let mut object = BytesMut::new();
                self.resource.encode(stored, &mut object);
                line(kind, &object)
            }
            Shape::Partial(version) => line(
                kind,
                table::partial(stored.object(), version)
                    .to_string()
                    .as_bytes(),
            ),
            Shape::Table(version) => {
                let how = (self.include, Timestamp::now());
                let row = self.resource.row(stored.object(), version, how);
                let revision = stored.revision();
                line(
                    kind,
                    self.table(version, revision, &[row]).to_string().as_bytes(),
                )
            }
        }
    }

    fn table(&mut self, version: &str, revision: u64, rows: &[Value]) -> Value {
        let metadata = json!({ "resourceVersion": revision.to_string() });
        let definitions = match self.headers_sent {
            true => &Value::Null,
            false => self.resource.columns.definitions(),
        };
        let table = table::table(version, &metadata, definitions, rows);
        self.headers_sent = true;
        table
    }

    /// `ends_initial` marks the end of the objects that were there at the start.
    fn bookmark(&mut self, revision: u64, ends_initial: bool) -> Option<Bytes> {
        if !self.bookmarks {
            return None;
        }
        let mut object = json!({
            "kind": self.resource.kind.kind,
            "apiVersion": self.resource.api_version,
            "metadata": { "resourceVersion": revision.to_string() },
        });
        if ends_initial {
            object["metadata"]["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let shown = match self.format.shape {
            Shape::Whole => object,
            Shape::Partial(version) => table::partial(&object, version),
            Shape::Table(version) => {
                let row = json!({ "cells": [], "object": table::partial(&object, version) });
                self.table(version, revision, &[row])
            }
        };
        Some(line("BOOKMARK", shown.to_string().as_bytes()))
    }
}

fn line(kind: &str, object: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + 40);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
    out.freeze()
}
