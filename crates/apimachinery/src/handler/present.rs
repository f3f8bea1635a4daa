//! Objects and lists on their way out: in the view and the form that were asked for.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use http::{StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::call::Call;
use crate::negotiate::Shape;
use crate::object::{Stored, meta_str};
use crate::query::Include;
use crate::registry::Resource;
use crate::status::Status;
use crate::table;

impl Resource {
    /// The object as this view shows it.
    pub(crate) fn show(&self, object: &Value) -> Value {
        let mut shown = object.clone();
        if let Some(present) = self.view.present {
            shown = present(shown);
        }
        shown["apiVersion"] = json!(self.api_version);
        shown["kind"] = json!(self.kind.kind);
        shown
    }

    /// The object as this view shows it, encoded; shares the work where views differ little.
    pub(crate) fn encode(&self, stored: &Stored, out: &mut BytesMut) {
        if self.view.present.is_some() {
            let shown = stored.with(|object| self.show(object));
            out.put_slice(shown.to_string().as_bytes());
            return;
        }
        let head = format!(
            "{{\"apiVersion\":\"{}\",\"kind\":\"{}\",",
            self.api_version, self.kind.kind
        );
        out.put_slice(head.as_bytes());
        out.put_slice(stored.tail());
    }

    /// One row of a table of this version, with ages as of `how.1`.
    pub(crate) fn row(&self, object: &Value, version: &str, how: (Include, Timestamp)) -> Value {
        let (include, now) = how;
        let shown = match include {
            Include::Object => self.show(object),
            Include::Metadata => table::partial(object, version),
            Include::None => Value::Null,
        };
        self.columns.row(object, shown, now)
    }
}

impl Call {
    /// Answers one object in storage form.
    pub(super) fn answer_object(
        &self,
        code: StatusCode,
        object: &Value,
    ) -> Result<Response, Status> {
        let body = match self.format.shape {
            Shape::Whole => self.resource.show(object),
            Shape::Partial(version) => table::partial(object, version),
            Shape::Table(version) => {
                let metadata = json!({ "resourceVersion": meta_str(object, "resourceVersion") });
                let columns = &self.resource.columns;
                let how = (self.query.include, self.context.now);
                let row = self.resource.row(object, version, how);
                table::table(version, &metadata, columns.definitions(), &[row])
            }
        };
        self.answer(code, &body)
    }

    /// Answers any value as JSON or YAML.
    pub(super) fn answer(&self, code: StatusCode, body: &Value) -> Result<Response, Status> {
        if self.format.yaml {
            let text = serde_yaml_ng::to_string(body)
                .map_err(|error| Status::internal(format!("write YAML: {error}")))?;
            let headers = [(header::CONTENT_TYPE, "application/yaml")];
            return Ok((code, headers, text).into_response());
        }
        let mut text = match self.query.pretty {
            true => serde_json::to_string_pretty(body)
                .map_err(|error| Status::internal(format!("write JSON: {error}")))?,
            false => body.to_string(),
        };
        text.push('\n');
        Ok(json_bytes(code, text.into()))
    }
}

/// An answer of encoded JSON.
pub(super) fn json_bytes(code: StatusCode, bytes: Bytes) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (code, headers, Body::from(bytes)).into_response()
}
