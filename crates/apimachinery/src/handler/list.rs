//! Lists, page by page over one snapshot.

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream;
use http::{StatusCode, header};
use serde_json::{Value, json};

use super::call::Call;
use super::present::json_bytes;
use crate::negotiate::Shape;
use crate::object::{ObjectName, Stored};
use crate::query::{Revision, RevisionMatch};
use crate::registry::Resource;
use crate::snapshot::Token;
use crate::status::Status;
use crate::store::{ListAt, Listed, StoreError};
use crate::table;

/// Lists up to this many objects are answered in one piece.
const WHOLE_MAX: usize = 1000;
/// Pieces of larger ones, bytes. Nobody holds the whole of them.
const PIECE_BYTES: usize = 64 << 10;
/// What clients are told whose page came too late.
const TOO_OLD: &str = "The provided continue parameter is too old to display a consistent list \
    result. You can start a new list without the continue parameter, or use the continue token in \
    this response to retrieve the remainder of the results. Continuing with the provided token \
    results in an inconsistent list - objects that were created, modified, or deleted between the \
    time the first chunk was returned and now may show up in the list.";

/// Answers a list.
pub(super) async fn serve(call: &Call) -> Result<Response, Status> {
    let token = match call.query.continue_token.as_str() {
        "" => None,
        text => Some(Token::decode(text)?),
    };
    let listed = match &token {
        Some(token) => rest(call, token).await?,
        None => fetch(call, list_at(call))
            .await
            .map_err(|error| call.store_error(error, ""))?,
    };
    let page = Page::cut(call, &listed, token.as_ref())?;
    if page.next.is_some() {
        let (resource, namespace) = (&call.resource.kind.resource, call.stored_namespace());
        call.server.snapshots.keep(resource, namespace, &listed);
    }
    answer(call, listed.revision, page)
}

/// All objects in the scope of the path.
pub(super) async fn fetch(call: &Call, at: ListAt) -> Result<Listed, StoreError> {
    call.server
        .store
        .list(&call.resource.kind.resource, call.stored_namespace(), at)
        .await
}

/// The list that a token goes on with: as it was, or as it is now where the client agreed to that.
async fn rest(call: &Call, token: &Token) -> Result<Listed, Status> {
    let Some(revision) = token.revision else {
        let latest = fetch(call, ListAt::Latest).await;
        return latest.map_err(|error| call.store_error(error, ""));
    };
    let (resource, namespace) = (&call.resource.kind.resource, call.stored_namespace());
    if let Some(listed) = call.server.snapshots.find(resource, namespace, revision) {
        return Ok(listed);
    }
    let found = fetch(call, ListAt::Exact(revision)).await;
    if let Err(StoreError::Expired { .. }) = found {
        return Err(Status::expired(TOO_OLD).continue_at(token.at_latest().encode()));
    }
    found.map_err(|error| call.store_error(error, ""))
}

fn list_at(call: &Call) -> ListAt {
    match (call.query.revision, call.query.revision_match) {
        (Revision::Unset, _) => ListAt::Latest,
        (Revision::Any, _) => ListAt::NotOlderThan(0),
        (Revision::At(revision), RevisionMatch::Exact) => ListAt::Exact(revision),
        // From before `resourceVersionMatch`: pages are of the revision that was asked for.
        (Revision::At(revision), RevisionMatch::Unset) if call.query.limit.is_some() => {
            ListAt::Exact(revision)
        }
        (Revision::At(revision), RevisionMatch::Unset | RevisionMatch::NotOlderThan) => {
            ListAt::NotOlderThan(revision)
        }
    }
}

struct Page {
    items: Vec<Arc<Stored>>,
    next: Option<Token>,
    /// Unknown where selectors would have to be run over the rest.
    remaining: Option<usize>,
}

impl Page {
    fn cut(call: &Call, listed: &Listed, token: Option<&Token>) -> Result<Self, Status> {
        let fields = call
            .query
            .fields
            .clone()
            .resolve(&call.resource.kind.selectable_fields)?;
        let labels = &call.query.labels;
        let after = token.map(|token| ObjectName {
            namespace: &token.namespace,
            name: &token.name,
        });
        let begin = after.map_or(0, |after| {
            listed.items.partition_point(|s| s.name() <= after)
        });
        let largest = call.server.limits.page_objects;
        let limit = call
            .query
            .limit
            .map_or(usize::MAX, |limit| limit.min(largest));
        let mut items = Vec::new();
        let mut next = None;
        let mut remaining = None;
        for (at, stored) in listed.items.iter().enumerate().skip(begin) {
            if !labels.matches(stored) || !fields.matches(stored) {
                continue;
            }
            if items.len() == limit {
                next = items.last().map(|last: &Arc<Stored>| Token {
                    revision: Some(listed.revision),
                    namespace: last.name().namespace.to_owned(),
                    name: last.name().name.to_owned(),
                });
                let selective = !labels.is_empty() || !fields.is_empty();
                remaining = (!selective).then(|| listed.items.len() - at);
                break;
            }
            items.push(Arc::clone(stored));
        }
        Ok(Self {
            items,
            next,
            remaining,
        })
    }
}

fn answer(call: &Call, revision: u64, page: Page) -> Result<Response, Status> {
    let mut metadata = json!({ "resourceVersion": revision.to_string() });
    if let Some(token) = &page.next {
        metadata["continue"] = json!(token.encode());
    }
    if let Some(remaining) = page.remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    let body = match call.format.shape {
        Shape::Whole if !call.format.yaml && !call.query.pretty => {
            return Ok(encoded(call, &metadata, page.items));
        }
        Shape::Whole => {
            let show = |stored: &Arc<Stored>| stored.with(|object| call.resource.show(object));
            let items: Vec<Value> = page.items.iter().map(show).collect();
            list_of(
                &call.resource.kind.list_kind,
                &call.resource.api_version,
                &metadata,
                &items,
            )
        }
        Shape::Partial(version) => {
            let partial =
                |stored: &Arc<Stored>| stored.with(|object| table::partial(object, version));
            let items: Vec<Value> = page.items.iter().map(partial).collect();
            let api_version = format!("meta.k8s.io/{version}");
            list_of("PartialObjectMetadataList", &api_version, &metadata, &items)
        }
        Shape::Table(version) => {
            let row = |stored: &Arc<Stored>| {
                let how = (call.query.include, call.context.now);
                stored.with(|object| call.resource.row(object, version, how))
            };
            let rows: Vec<Value> = page.items.iter().map(row).collect();
            table::table(
                version,
                &metadata,
                call.resource.columns.definitions(),
                &rows,
            )
        }
    };
    call.answer(StatusCode::OK, &body)
}

fn list_of(kind: &str, api_version: &str, metadata: &Value, items: &[Value]) -> Value {
    json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata, "items": items })
}

/// The list put together from objects that are encoded once and shared.
fn encoded(call: &Call, metadata: &Value, items: Vec<Arc<Stored>>) -> Response {
    let head = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        call.resource.kind.list_kind, call.resource.api_version,
    );
    let is_short = items.len() <= WHOLE_MAX;
    let mut pieces = Pieces {
        resource: Arc::clone(&call.resource),
        items: items.into_iter(),
        size: if is_short { usize::MAX } else { PIECE_BYTES },
        text: BytesMut::from(head.as_bytes()),
        separator: b"",
        is_done: false,
    };
    if is_short {
        return json_bytes(StatusCode::OK, pieces.next().unwrap_or_default());
    }
    let pieces = stream::iter(pieces.map(Ok::<Bytes, std::convert::Infallible>));
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (headers, Body::from_stream(pieces)).into_response()
}

/// A list in pieces, each made when the one before is on its way.
struct Pieces {
    resource: Arc<Resource>,
    items: std::vec::IntoIter<Arc<Stored>>,
    /// Bytes after which a piece ends.
    size: usize,
    text: BytesMut,
    separator: &'static [u8],
    is_done: bool,
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.is_done {
            return None;
        }
        while self.text.len() < self.size {
            let Some(stored) = self.items.next() else {
                self.text.put_slice(b"]}\n");
                self.is_done = true;
                break;
            };
            self.text.put_slice(self.separator);
            self.separator = b",";
            self.resource.encode(&stored, &mut self.text);
        }
        Some(self.text.split().freeze())
    }
}
