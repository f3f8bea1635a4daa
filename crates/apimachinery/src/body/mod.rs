//! Request bodies: from bytes and a content type to a JSON value.

mod protobuf;
mod strict;

use std::error::Error;

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

/// The bytes of a body, refused with 413 beyond `limit`. A [`Status`] that the body fails with is
/// the answer: whoever wrapped it has limits of their own.
pub(crate) async fn read(body: Body, limit: usize) -> Result<Bytes, Status> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Status::too_large(format!("limit is {limit}")))
        }
        Err(error) => Err(refused(error.as_ref())
            .unwrap_or_else(|| Status::bad_request(format!("read the body: {error}")))),
    }
}

fn refused(error: &(dyn Error + 'static)) -> Option<Status> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(status) = error.downcast_ref::<Status>() {
            return Some(status.clone());
        }
        cause = error.source();
    }
    None
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

/// Parses an object that nests no deeper than `depth`. An empty body is `Null`.
pub(crate) fn decode(media: Media, bytes: &[u8], depth: usize) -> Result<Decoded, Status> {
    if bytes.is_empty() {
        return Ok(Decoded {
            value: Value::Null,
            duplicates: Vec::new(),
        });
    }
    let decoded = match media {
        Media::Json => strict::from_json(bytes, depth)?,
        Media::Yaml => strict::from_yaml(bytes, depth)?,
        Media::Protobuf => {
            let value = protobuf::decode(bytes)?;
            Decoded {
                value,
                duplicates: Vec::new(),
            }
        }
    };
    check_kept(&decoded.value)?;
    Ok(decoded)
}

/// Largest number that is kept, of either sign. Postgres writes numbers without an exponent, and the
/// reader of JSON takes the digits of the largest ones for more than a number can be: who has to
/// read one back could read nothing after it.
const NUMBER_MAX: f64 = 1e300;

/// Refuses what can't be kept: no text and no JSON of Postgres can hold a NUL.
pub(crate) fn check_kept(value: &Value) -> Result<(), Status> {
    let refuse = |what: &str| {
        let why = format!("the object holds {what}, which can't be kept");
        Err(Status::bad_request(why))
    };
    let good = |text: &str| match text.contains('\0') {
        true => refuse("a NUL character"),
        false => Ok(()),
    };
    match value {
        Value::String(text) => good(text),
        Value::Number(number) => match number.as_f64().is_some_and(|n| n.abs() > NUMBER_MAX) {
            true => refuse("a number beyond 1e300"),
            false => Ok(()),
        },
        Value::Array(list) => list.iter().try_for_each(check_kept),
        Value::Object(map) => map.iter().try_for_each(|(key, value)| {
            good(key)?;
            check_kept(value)
        }),
        Value::Null | Value::Bool(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_could_not_be_read_back_is_refused() {
        for bad in ["[1.7976931348623157e308]", "{\"a\": -1e301}"] {
            let refused = decode(Media::Json, bad.as_bytes(), 64).expect_err("refused");
            assert_eq!(refused.code(), 400);
        }
        assert!(decode(Media::Json, b"[1e300, -1e300, 5e-324]", 64).is_ok());
    }

    #[test]
    fn a_nul_is_refused_wherever_it_stands() {
        for bad in [r#"{"a": "\u0000"}"#, r#"{"a": [{"\u0000": 1}]}"#] {
            let refused = decode(Media::Json, bad.as_bytes(), 64).expect_err("refused");
            assert_eq!(refused.code(), 400);
        }
        assert!(decode(Media::Yaml, br#"a: "\0""#, 64).is_err());
        assert!(decode(Media::Json, br#"{"a": "\u0001"}"#, 64).is_ok());
    }
}
