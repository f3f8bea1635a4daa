//! Kubernetes API conventions, knowing no kind of ours.
//!
//! A kind is declared once ([`Kind`]); discovery, OpenAPI, tables, lists, watches, patches and
//! deletion follow from the declaration. Objects live behind a [`Store`]. Who is asking, and
//! whether they may, is decided by whoever embeds this crate ([`UserInfo`], [`Authorizer`]).
//!
//! Never opens a socket, never speaks TLS, never writes SQL. Embedded by `api-gateway`.

mod admission;
mod apply;
mod body;
mod collect;
mod connect;
mod context;
mod discovery;
mod documents;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod handler;
mod json_patches;
mod kind;
mod negotiate;
pub mod object;
mod openapi;
mod path;
mod query;
mod registry;
mod request_info;
mod schema;
mod selector;
mod server;
mod snapshot;
mod status;
mod store;
mod strategic;
mod table;
mod trail;

pub use admission::{Admission, AdmitAll, DeleteOptions};
pub use connect::{Connect, ConnectRequest, ExtraResource, json_response};
pub use context::{AccessRequest, AllowAll, Authorizer, Decision, Realm, RequestContext, UserInfo};
pub use handler::{AnsweredName, refusal};
pub use handler::{LongRunning, generated as generated_name};
pub use kind::{Column, ColumnType, Kind, Source, Verb, View};
pub use object::{ObjectName, Stored};
pub use selector::{FieldSelector, LabelSelector};
pub use server::{ApiServer, Limits, Parts, VersionInfo};
pub use status::{Cause, Status};
pub use store::{
    ListAt, Listed, Store, StoreError, Update, UpdateOf, WatchEvent, WatchSpan, WatchStream,
};
pub use table::human_age;
