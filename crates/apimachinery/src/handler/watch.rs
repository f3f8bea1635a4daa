//! Watches: changes as they come, one JSON line each.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use http::header;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::call::Call;
use super::list;
use crate::negotiate::{Format, Shape};
use crate::object::Stored;
use crate::query::{Include, Revision};
use crate::registry::Resource;
use crate::selector::{FieldSelector, LabelSelector};
use crate::status::Status;
use crate::store::{ListAt, StoreError, WatchEvent, WatchSpan, WatchStream};
use crate::table;

/// Stands in the extensions of answers that go on until their client leaves.
#[derive(Debug, Clone, Copy)]
pub struct LongRunning;

/// Longest watch, whatever the client asks for; a clock can't count to every number of seconds.
const WATCH_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// Answers a watch.
pub(super) async fn serve(call: &Call) -> Result<Response, Status> {
    let encoder = Encoder::new(call)?;
    let (first, from) = begin(call, &encoder).await?;
    let (resource, namespace) = (&call.resource.kind.resource, call.stored_namespace());
    let ends = Instant::now() + time_limit(call);
    let span = WatchSpan { from, ends };
    let live = match call.server.store.watch(resource, namespace, span).await {
        Ok(live) => live,
        // As kube-apiserver tells it: the watch begins, and its first event is its last.
        Err(error @ (StoreError::Expired { .. } | StoreError::TooNew { .. })) => {
            stream::iter([Err(error)]).boxed()
        }
        Err(error) => return Err(call.store_error(error, "")),
    };
    let state = Lines {
        first: first.into_iter(),
        initial_end: (call.query.send_initial == Some(true)).then_some(from),
        live,
        encoder,
        from,
    };
    let events = lines(state).take_until(tokio::time::sleep_until(ends));
    let body = Body::from_stream(events.map(Ok::<Bytes, std::convert::Infallible>));
    let headers = [(header::CONTENT_TYPE, "application/json")];
    Ok((Extension(LongRunning), headers, body).into_response())
}

fn time_limit(call: &Call) -> Duration {
    let longest = call.server.limits.watch_seconds.max(2);
    let seconds = call
        .query
        .timeout_seconds
        .unwrap_or_else(|| rand::Rng::random_range(&mut rand::rng(), longest / 2..=longest));
    Duration::from_secs(seconds).min(WATCH_MAX)
}

/// What comes before live events, and the revision they start after. Encoded only when the client
/// takes it: a thousand watches that begin cost a pointer for each object, and not its text.
async fn begin(call: &Call, encoder: &Encoder) -> Result<(Vec<Arc<Stored>>, u64), Status> {
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
        let items = listed.items.iter();
        let matching = items.filter(|stored| encoder.matches(stored));
        first.extend(matching.cloned());
    }
    Ok((first, listed.revision))
}

/// What a watch is made of.
struct Lines {
    /// Objects that were there at the start.
    first: std::vec::IntoIter<Arc<Stored>>,
    /// Revision of the bookmark after them, if one was asked for.
    initial_end: Option<u64>,
    live: WatchStream,
    encoder: Encoder,
    /// Revision that live events start after.
    from: u64,
}

/// First objects and live events as lines; a failure is told in an `ERROR` event, which is the
/// last.
fn lines(state: Lines) -> impl Stream<Item = Bytes> {
    stream::unfold(Some(state), |state| async move {
        let mut state = state?;
        if let Some(stored) = state.first.next() {
            let line = state.encoder.object("ADDED", &stored);
            return Some((line, Some(state)));
        }
        let end = state.initial_end.take();
        if let Some(line) = end.and_then(|at| state.encoder.bookmark(at, true)) {
            return Some((line, Some(state)));
        }
        loop {
            match state.live.next().await? {
                Ok(event) => {
                    if let Some(line) = state.encoder.event(event) {
                        return Some((line, Some(state)));
                    }
                }
                Err(error) => return Some((failure(&error, state.from), None)),
            }
        }
    })
}

fn failure(error: &StoreError, from: u64) -> Bytes {
    let status = match error {
        StoreError::Expired { oldest } => {
            Status::expired(format!("too old resource version: {from} ({oldest})"))
        }
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

    fn matches(&self, object: &Stored) -> bool {
        self.labels.matches(object) && self.fields.matches(object)
    }

    /// The line for an event, unless it is none of this watch's business.
    fn event(&mut self, event: WatchEvent) -> Option<Bytes> {
        match event {
            WatchEvent::Added(object) => {
                self.matches(&object).then(|| self.object("ADDED", &object))
            }
            WatchEvent::Deleted(object) => self
                .matches(&object)
                .then(|| self.object("DELETED", &object)),
            WatchEvent::Bookmark(revision) => self.bookmark(revision, false),
            WatchEvent::Modified { object, previous } => self.modified(&object, previous),
        }
    }

    /// Objects that come to match are new to this client, and those that cease to are gone.
    fn modified(&mut self, object: &Arc<Stored>, previous: Option<Arc<Stored>>) -> Option<Bytes> {
        let now = self.matches(object);
        let before = previous
            .as_ref()
            .is_none_or(|previous| self.matches(previous));
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
                stored
                    .with(|object| table::partial(object, version))
                    .to_string()
                    .as_bytes(),
            ),
            Shape::Table(version) => {
                let how = (self.include, Timestamp::now());
                let row = stored.with(|object| self.resource.row(object, version, how));
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
