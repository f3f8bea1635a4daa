//! Request bodies: from bytes and a content type to a JSON value.

mod protobuf;
mod strict;

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

use crate::status::Status;
pub(crate) use strict::Decoded;

/// Content types that are read as plain objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Media {
    Json,
    Yaml,
    Protobuf,
}

/// The bytes of a body, refused with 413 beyond `limit`.
pub(crate) async fn read(body: Body, limit: usize) -> Result<Bytes, Status> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Status::too_large(format!("limit is {limit} bytes")))
        }
        Err(error) => Err(Status::bad_request(format!("read the body: {error}"))),
    }
}

/// The content type without parameters, in lower case; empty if there is none.
pub(crate) fn content_type(headers: &HeaderMap) -> String {
    let header = headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let media = header
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default();
    media.trim().to_ascii_lowercase()
}

/// What an object's body is written in. A missing content type is JSON: kubectl 1.20 sends none.
pub(crate) fn media(headers: &HeaderMap) -> Result<Media, Status> {
    match content_type(headers).as_str() {
        "" | "application/json" | "text/json" => Ok(Media::Json),
        "application/yaml" | "text/yaml" | "application/x-yaml" => Ok(Media::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Media::Protobuf),
        other => Err(Status::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: \
             application/json, application/yaml, application/vnd.kubernetes.protobuf (got {other})"
        ))),
    }
}

/// Parses an object. An empty body is `Null`.
pub(crate) fn decode(media: Media, bytes: &[u8]) -> Result<Decoded, Status> {
    if bytes.is_empty() {
        return Ok(Decoded {
            value: Value::Null,
            duplicates: Vec::new(),
        });
    }
    match media {
        Media::Json => strict::from_json(bytes),
        Media::Yaml => strict::from_yaml(bytes),
        Media::Protobuf => {
            let value = protobuf::decode(bytes)?;
            Ok(Decoded {
                value,
                duplicates: Vec::new(),
            })
        }
    }
}
