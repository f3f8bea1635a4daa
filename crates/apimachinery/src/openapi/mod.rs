//! OpenAPI documents, v2 (JSON and gnostic protobuf) and v3.
//!
//! Old kubectl validates and explains from v2, new kubectl from v3, and 1.27 and 1.28 need both.

mod definitions;
mod gnostic;
mod meta;
mod operations;
mod v2;
mod v3;

pub(crate) use gnostic::encode as to_protobuf;
pub(crate) use meta::object_meta;
pub(crate) use v2::document as v2;
pub(crate) use v3::document as v3;
