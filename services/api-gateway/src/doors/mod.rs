//! What the API's port serves besides the API: health, metrics, and pages for people.

mod docs;
mod health;
mod page;

use std::sync::Arc;

use axum::Extension;
use axum::Router;
use axum::body::{Bytes, HttpBody};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use godwit_apimachinery::{AccessRequest, Authorizer, Decision, LongRunning, Status, UserInfo};
use godwit_runtime::admin::Readiness;
use godwit_runtime::metrics::{CONTENT_TYPE, Metrics};
use http::header;
use tower_http::compression::Predicate;

/// Smallest answer that is compressed; as in kube-apiserver.
const LARGE: u64 = 128 << 10;

/// What the doors show.
pub(crate) struct Doors {
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Metrics,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    /// OpenAPI v3 documents by path, for example `apis/kubevirt.io/v1`.
    pub(crate) documents: Vec<(String, Bytes)>,
}

/// Routes of all doors.
pub(crate) fn router(doors: Doors) -> Router {
    let health = health::router(doors.readiness.clone());
    let rest = Router::new()
        .route("/metrics", get(scrape))
        .route("/docs", get(docs::index))
        .route("/docs/style.css", get(docs::style))
        .route("/docs/{*path}", get(docs::group_version))
        .with_state(Arc::new(doors));
    health.merge(rest)
}

/// Says which answers are compressed: large ones, and lists that are made in pieces. No watches: a
/// compressor would hold their events back.
#[derive(Clone, Copy)]
pub(crate) struct Large;

impl Predicate for Large {
    fn should_compress<B: HttpBody>(&self, response: &http::Response<B>) -> bool {
        let watch = response.extensions().get::<LongRunning>().is_some();
        let size = response.body().size_hint().exact();
        !watch && size.is_none_or(|size| size >= LARGE)
    }
}

impl Doors {
    /// Whether `user` may get `path`; refused in kube-apiserver's words.
    async fn check(&self, user: &UserInfo, path: &str) -> Result<(), Status> {
        let access = AccessRequest {
            verb: "get".to_owned(),
            group: String::new(),
            version: String::new(),
            resource: String::new(),
            subresource: String::new(),
            namespace: String::new(),
            name: String::new(),
            path: path.to_owned(),
        };
        match self.authorizer.authorize(user, &access).await {
            Decision::Allow => Ok(()),
            Decision::Deny(_) => Err(Status::forbidden(format!(
                "forbidden: User \"{}\" cannot get path \"{path}\"",
                user.name
            ))),
            Decision::Unknown(why) => Err(Status::unavailable(why)),
        }
    }
}

async fn scrape(
    State(doors): State<Arc<Doors>>,
    Extension(user): Extension<UserInfo>,
) -> Result<Response, Status> {
    doors.check(&user, "/metrics").await?;
    let text = doors.metrics.text();
    let text = text.map_err(|error| Status::internal(format!("write the metrics: {error}")))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}
