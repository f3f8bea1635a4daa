//! The `Status` object: how every failure is told to a client.
//!
//! Constructors are named by what the caller can do about it. Texts follow kube-apiserver, because
//! clients and people match on them.

use std::fmt;

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde_json::{Value, json};

/// A refusal, as clients of the Kubernetes API expect it.
#[derive(Debug, Clone)]
pub struct Status(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    code: StatusCode,
    reason: &'static str,
    message: String,
    details: Details,
    retry_after: Option<u32>,
    continue_token: String,
}

#[derive(Debug, Clone, Default)]
struct Details {
    name: String,
    group: String,
    kind: String,
    uid: String,
    causes: Vec<Cause>,
}

/// One reason among several why an object was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable, for example `FieldValueInvalid`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Path of the field, for example `spec.nodeName`; empty if there is none.
    pub field: String,
}

impl Cause {
    /// The field holds a value that can't be honoured; `value` is shown back.
    pub fn invalid(field: &str, value: &Value, why: &str) -> Self {
        let message = format!("Invalid value: {value}: {why}");
        Self {
            reason: "FieldValueInvalid",
            message,
            field: field.to_owned(),
        }
    }

    /// The field is missing.
    pub fn required(field: &str, why: &str) -> Self {
        let message = match why {
            "" => "Required value".to_owned(),
            why => format!("Required value: {why}"),
        };
        Self {
            reason: "FieldValueRequired",
            message,
            field: field.to_owned(),
        }
    }

    /// The value is none of those that are understood.
    pub fn not_supported(field: &str, value: &Value, supported: &[&str]) -> Self {
        let quoted: Vec<String> = supported.iter().map(|s| format!("\"{s}\"")).collect();
        let message = format!(
            "Unsupported value: {value}: supported values: {}",
            quoted.join(", ")
        );
        Self {
            reason: "FieldValueNotSupported",
            message,
            field: field.to_owned(),
        }
    }

    /// The field may not be set or changed here.
    pub fn forbidden(field: &str, why: &str) -> Self {
        Self {
            reason: "FieldValueForbidden",
            message: format!("Forbidden: {why}"),
            field: field.to_owned(),
        }
    }

    /// The field has a value of the wrong JSON type.
    pub fn type_invalid(field: &str, value: &Value, expected: &str) -> Self {
        let found = json_type(value);
        let message = format!(
            "Invalid value: \"{found}\": {field} in body must be of type {expected}: \"{found}\""
        );
        Self {
            reason: "FieldValueTypeInvalid",
            message,
            field: field.to_owned(),
        }
    }
}

impl Status {
    /// A status of any code and reason; prefer the named constructors.
    pub fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            reason,
            message: message.into(),
            details: Details::default(),
            retry_after: None,
            continue_token: String::new(),
        }))
    }

    /// 400: the request makes no sense as written.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 401: we don't know who is asking.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
    }

    /// 403: we know, and they may not.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// 404 for an object; `resource` is the qualified plural, for example `nodes`.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", qualified(group, resource));
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(group, resource, name)
    }

    /// 404 for a path that serves nothing.
    pub fn no_such_path() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource",
        )
    }

    /// 409: an object of this name exists.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", qualified(group, resource));
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(group, resource, name)
    }

    /// 409: read again and retry.
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            qualified(group, resource)
        );
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(group, resource, name)
    }

    /// 410: the revision asked for is no longer kept; list again.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// 504: the revision asked for is newer than any this replica has seen.
    pub fn revision_too_new(asked: u64, current: u64) -> Self {
        let cause = Cause {
            reason: "ResourceVersionTooLarge",
            message: "Too large resource version".to_owned(),
            field: String::new(),
        };
        let message = format!("Too large resource version: {asked}, current: {current}");
        let mut status = Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message);
        status.0.retry_after = Some(1);
        status.with_causes(vec![cause])
    }

    /// 422: the object was understood and refused; every cause names a field.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let mut lines: Vec<String> = Vec::with_capacity(causes.len());
        for cause in &causes {
            let line = match cause.field.as_str() {
                "" => cause.message.clone(),
                field => format!("{field}: {}", cause.message),
            };
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        let list = match lines.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{} \"{name}\" is invalid: {list}", qualified(group, kind));
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
            .about(group, kind, name)
            .with_causes(causes)
    }

    /// 405: the resource exists and doesn't do this.
    pub fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// 406: nothing the client accepts can be served.
    pub fn not_acceptable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    /// 415: the body is in a form we don't read.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            message,
        )
    }

    /// 413: larger than is read; the message says what the limit is.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            format!("Request entity too large: {}", message.into()),
        )
    }

    /// 429 without `Retry-After`: clients would sleep on it silently and hide the message.
    pub fn too_many_requests(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message)
    }

    /// 500: our fault. The message must hold nothing secret.
    pub fn internal(message: impl Into<String>) -> Self {
        let message = format!("Internal error occurred: {}", message.into());
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    /// 503: ask again soon.
    pub fn unavailable(message: impl Into<String>) -> Self {
        let mut status = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            message,
        );
        status.0.retry_after = Some(1);
        status
    }

    /// Says which object this is about; `kind` is the plural for most reasons.
    #[must_use]
    pub fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.0.details.group = group.to_owned();
        self.0.details.kind = kind.to_owned();
        self.0.details.name = name.to_owned();
        self
    }

    /// Replaces the causes.
    #[must_use]
    pub fn with_causes(mut self, causes: Vec<Cause>) -> Self {
        self.0.details.causes = causes;
        self
    }

    /// Asks the client to wait this many seconds before it tries again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.0.retry_after = Some(seconds);
        self
    }

    /// Tells the client from where it may go on with a list.
    #[must_use]
    pub fn continue_at(mut self, token: String) -> Self {
        self.0.continue_token = token;
        self
    }

    /// The HTTP code.
    pub fn code(&self) -> StatusCode {
        self.0.code
    }

    /// The machine-readable reason, for example `NotFound`.
    pub fn reason(&self) -> &'static str {
        self.0.reason
    }

    /// The text for people.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The causes, possibly none.
    pub fn causes(&self) -> &[Cause] {
        &self.0.details.causes
    }

    /// The object as it goes over the wire.
    pub fn to_json(&self) -> Value {
        let inner = &self.0;
        let mut details = serde_json::Map::new();
        let texts = [
            ("name", &inner.details.name),
            ("group", &inner.details.group),
            ("kind", &inner.details.kind),
            ("uid", &inner.details.uid),
        ];
        for (key, text) in texts {
            if !text.is_empty() {
                details.insert(key.to_owned(), json!(text));
            }
        }
        if !inner.details.causes.is_empty() {
            let causes: Vec<Value> = inner.details.causes.iter().map(Cause::to_json).collect();
            details.insert("causes".to_owned(), Value::Array(causes));
        }
        if let Some(seconds) = inner.retry_after {
            details.insert("retryAfterSeconds".to_owned(), json!(seconds));
        }
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": inner.message,
            "reason": inner.reason,
            "code": inner.code.as_u16(),
        });
        if !inner.continue_token.is_empty() {
            status["metadata"]["continue"] = json!(inner.continue_token);
        }
        if !details.is_empty() {
            status["details"] = Value::Object(details);
        }
        status
    }
}

impl Cause {
    fn to_json(&self) -> Value {
        let mut cause = json!({ "reason": self.reason, "message": self.message });
        if !self.field.is_empty() {
            cause["field"] = json!(self.field);
        }
        cause
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0.message, self.0.reason)
    }
}

impl std::error::Error for Status {}

impl IntoResponse for Status {
    fn into_response(self) -> Response {
        let body = self.to_json().to_string() + "\n";
        let headers = [
            (header::CONTENT_TYPE, "application/json"),
            (header::CACHE_CONTROL, "no-cache, private"),
        ];
        let mut response = (self.0.code, headers, body).into_response();
        if let Some(seconds) = self.0.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

fn qualified(group: &str, resource: &str) -> String {
    match group {
        "" => resource.to_owned(),
        group => format!("{resource}.{group}"),
    }
}

/// The name of a value's type as OpenAPI spells it.
pub(crate) fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
