//! `/docs`: the API for people, made from the same OpenAPI documents that kubectl reads.
//!
//! Whoever may read `/openapi/v3` may read it. Nothing is loaded from elsewhere, and no script runs.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use godwit_apimachinery::{Status, UserInfo};
use http::header;
use maud::Markup;
use serde_json::Value;

use super::{Doors, page};

/// What is shown here is what is served there.
const SOURCE: &str = "/openapi/v3";
const POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// Groups, versions and kinds.
pub(super) async fn index(
    State(doors): State<Arc<Doors>>,
    Extension(user): Extension<UserInfo>,
) -> Result<Response, Status> {
    doors.check(&user, SOURCE).await?;
    let documents: Vec<(&str, Value)> = doors
        .documents
        .iter()
        .map(|(path, bytes)| (path.as_str(), parse(bytes)))
        .collect();
    Ok(answer(&page::index(&documents)))
}

/// Kinds, operations and fields of one version.
pub(super) async fn group_version(
    State(doors): State<Arc<Doors>>,
    Extension(user): Extension<UserInfo>,
    Path(wanted): Path<String>,
) -> Result<Response, Status> {
    doors.check(&user, SOURCE).await?;
    let mut documents = doors.documents.iter();
    let found = documents.find(|(path, _)| *path == wanted);
    let (path, bytes) = found.ok_or_else(Status::no_such_path)?;
    Ok(answer(&page::group_version(path, &parse(bytes))))
}

/// The style of all pages.
pub(super) async fn style() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/css; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, page::STYLE).into_response()
}

/// Parsed each time: people look seldom, and it would be in memory always.
fn parse(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_default()
}

fn answer(page: &Markup) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache, private"),
    ];
    (headers, page.0.clone()).into_response()
}
