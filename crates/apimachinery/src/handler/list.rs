//! Lists, page by page over one snapshot.

use std::sync::Arc;

use axum::response::Response;
use bytes::{BufMut, BytesMut};
use http::StatusCode;
use serde_json::{Value, json};

use super::call::Call;
use super::present::json_bytes;
use crate::negotiate::Shape;
use crate::object::{ObjectName, Stored};
use crate::query::{Revision, RevisionMatch};
use crate::snapshot::Token;
use crate::status::Status;
use crate::store::{ListAt, Listed, StoreError};
use crate::table;

/// What clients are told whose page came too late.
const TOO_OLD: &str = "The provided continue parameter is too old to display a consistent list \
    result. You can start a new list without the continue parameter.";

/// Answers a list.
pub(super) async fn serve(call: &Call) -> Result<Response, Status> {
    let token = match call.query.continue_token.as_str() {
        "" => None,
        text => Some(Token::decode(text)?),
    };
    let listed = match &token {
        Some(token) => snapshot(call, token.revision).await?,
        None => fetch(call, list_at(call))
            .await
            .map_err(|error| call.store_error(error, ""))?,
    };
    let page = Page::cut(call, &listed, token.as_ref())?;
    if page.next.is_some() {
        let (resource, namespace) = (&call.resource.kind.resource, call.stored_namespace());
        call.server.snapshots.keep(resource, namespace, &listed);
    }
    answer(call, &listed, &page)
}

/// All objects in the scope of the path.
pub(super) async fn fetch(call: &Call, at: ListAt) -> Result<Listed, StoreError> {
    call.server
        .store
        .list(&call.resource.kind.resource, call.stored_namespace(), at)
        .await
}

async fn snapshot(call: &Call, revision: u64) -> Result<Listed, Status> {
    let (resource, namespace) = (&call.resource.kind.resource, call.stored_namespace());
    if let Some(listed) = call.server.snapshots.find(resource, namespace, revision) {
        return Ok(listed);
    }
    let found = fetch(call, ListAt::Exact(revision)).await;
    if let Err(StoreError::Expired { .. }) = found {
        return Err(Status::expired(TOO_OLD));
    }
    found.map_err(|error| call.store_error(error, ""))
}

fn list_at(call: &Call) -> ListAt {
    match (call.query.revision, call.query.revision_match) {
        (Revision::Unset, _) => ListAt::Latest,
        (Revision::Any, _) => ListAt::NotOlderThan(0),
        (Revision::At(revision), RevisionMatch::Exact) => ListAt::Exact(revision),
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
        let limit = call.query.limit.unwrap_or(usize::MAX);
        let mut items = Vec::new();
        let mut next = None;
        let mut remaining = None;
        for (at, stored) in listed.items.iter().enumerate().skip(begin) {
            if !labels.matches(stored.object()) || !fields.matches(stored.object()) {
                continue;
            }
            if items.len() == limit {
                next = items.last().map(|last: &Arc<Stored>| Token {
                    revision: listed.revision,
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

fn answer(call: &Call, listed: &Listed, page: &Page) -> Result<Response, Status> {
    let mut metadata = json!({ "resourceVersion": listed.revision.to_string() });
    if let Some(token) = &page.next {
        metadata["continue"] = json!(token.encode());
    }
    if let Some(remaining) = page.remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    let body = match call.format.shape {
        Shape::Whole if !call.format.yaml && !call.query.pretty => {
            return Ok(encoded(call, &metadata, &page.items));
        }
        Shape::Whole => {
            let show = |stored: &Arc<Stored>| call.resource.show(stored.object());
            let items: Vec<Value> = page.items.iter().map(show).collect();
            list_of(
                &call.resource.kind.list_kind,
                &call.resource.api_version,
                &metadata,
                &items,
            )
        }
        Shape::Partial(version) => {
            let partial = |stored: &Arc<Stored>| table::partial(stored.object(), version);
            let items: Vec<Value> = page.items.iter().map(partial).collect();
            let api_version = format!("meta.k8s.io/{version}");
            list_of("PartialObjectMetadataList", &api_version, &metadata, &items)
        }
        Shape::Table(version) => {
            let row = |stored: &Arc<Stored>| {
                call.resource.row(
                    stored.object(),
                    version,
                    (call.query.include, call.context.now),
                )
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
fn encoded(call: &Call, metadata: &Value, items: &[Arc<Stored>]) -> Response {
    let mut out = BytesMut::with_capacity(1024 * (items.len() + 1));
    let head = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        call.resource.kind.list_kind, call.resource.api_version,
    );
    out.put_slice(head.as_bytes());
    for (at, stored) in items.iter().enumerate() {
        if at > 0 {
            out.put_u8(b',');
        }
        call.resource.encode(stored, &mut out);
    }
    out.put_slice(b"]}\n");
    json_bytes(StatusCode::OK, out.freeze())
}
