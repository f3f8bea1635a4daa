//! Kubernetes API conventions, knowing no kind of ours.
//!
//! A kind is declared once ([`Kind`]); discovery, OpenAPI, tables, lists, watches, patches and
//! deletion follow from the declaration. Objects live behind a [`Store`]. Who is asking, and
//! whether they may, is decided by whoever embeds this crate ([`UserInfo`], [`Authorizer`]).
//!
//! Never opens a socket, never speaks TLS, never writes SQL. Embedded by `api-gateway`.

pub mod admission;
pub mod connect;
pub mod context;
pub mod kind;
pub mod object;
pub mod server;
pub mod status;
pub mod store;

pub use admission::{Admission, AdmitAll, DeleteOptions};
pub use connect::{Connect, ConnectRequest, ExtraResource, json_response};
pub use context::{AccessRequest, AllowAll, Authorizer, Decision, RequestContext, UserInfo};
pub use kind::{Column, ColumnType, Kind, Source, Verb, View};
pub use object::{ObjectName, Stored};
pub use server::{ApiServer, Limits, Parts, VersionInfo};
pub use status::{Cause, Status};
pub use store::{ListAt, Listed, Store, StoreError, Update, UpdateOf, WatchEvent, WatchStream};
