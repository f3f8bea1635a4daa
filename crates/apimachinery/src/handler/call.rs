//! One request to a stored kind, and what every handler needs of it.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;

use crate::context::RequestContext;
use crate::negotiate::Format;
use crate::object::Stored;
use crate::query::Query;
use crate::registry::Resource;
use crate::server::ApiServer;
use crate::status::Status;
use crate::store::StoreError;

/// A request that was understood and authorized.
pub(super) struct Call {
    pub(super) server: Arc<ApiServer>,
    pub(super) resource: Arc<Resource>,
    pub(super) context: RequestContext,
    /// `None` for cluster-scoped kinds and for all namespaces.
    pub(super) namespace: Option<String>,
    pub(super) query: Query,
    pub(super) format: Format,
    /// Sent to the client whatever comes of the request.
    pub(super) warnings: Vec<String>,
}

impl Call {
    /// Answers one object.
    pub(super) async fn get(&self) -> Result<Response, Status> {
        let stored = self.current().await?;
        self.answer_object(StatusCode::OK, stored.object())
    }

    /// The object that the path names.
    pub(super) async fn current(&self) -> Result<Arc<Stored>, Status> {
        let found = self.find(&self.context.name).await?;
        found.ok_or_else(|| self.not_found(&self.context.name))
    }

    /// The object of this name in the namespace of the path.
    pub(super) async fn find(&self, name: &str) -> Result<Option<Arc<Stored>>, Status> {
        let (store, resource) = (&self.server.store, &self.resource.kind.resource);
        let namespace = self.stored_namespace().unwrap_or_default();
        let found = store.get(resource, namespace, name).await;
        found.map_err(|error| self.store_error(error, name))
    }

    /// The namespace for the store: `namespaces` themselves have none, whatever their path says.
    pub(super) fn stored_namespace(&self) -> Option<&str> {
        self.namespace
            .as_deref()
            .filter(|_| self.resource.kind.namespaced)
    }

    pub(super) fn not_found(&self, name: &str) -> Status {
        Status::not_found(self.resource.view.group, self.resource.kind.plural, name)
    }

    pub(super) fn conflict(&self, name: &str, why: &str) -> Status {
        Status::conflict(
            self.resource.view.group,
            self.resource.kind.plural,
            name,
            why,
        )
    }

    pub(super) fn invalid(&self, name: &str, causes: Vec<crate::status::Cause>) -> Status {
        Status::invalid(
            self.resource.view.group,
            self.resource.kind.kind,
            name,
            causes,
        )
    }

    /// What a failure of the store means to the client.
    pub(super) fn store_error(&self, error: StoreError, name: &str) -> Status {
        let (group, plural) = (self.resource.view.group, self.resource.kind.plural);
        match error {
            StoreError::AlreadyExists => Status::already_exists(group, plural, name),
            StoreError::NotFound => self.not_found(name),
            StoreError::Conflict => self.conflict(name, MODIFIED),
            StoreError::Expired { .. } => {
                Status::expired("The resourceVersion for the provided list is too old.")
            }
            StoreError::TooNew { asked, current } => Status::revision_too_new(asked, current),
            StoreError::Unavailable(why) | StoreError::Unknown(why) => {
                tracing::warn!(resource = plural, name, why, "store unavailable");
                Status::unavailable(why)
            }
            StoreError::Refused(status) => status,
        }
    }

    /// Who the client is to server-side apply: what it says, or the program it is.
    pub(super) fn manager(&self) -> &str {
        match self.query.field_manager.as_str() {
            "" => {
                let agent = self
                    .context
                    .user_agent
                    .split('/')
                    .next()
                    .unwrap_or_default();
                let end = agent
                    .char_indices()
                    .nth(MANAGER_MAX)
                    .map_or(agent.len(), |(at, _)| at);
                if agent.is_empty() {
                    "unknown"
                } else {
                    &agent[..end]
                }
            }
            manager => manager,
        }
    }
}

/// Longest name of a manager taken from the user agent.
const MANAGER_MAX: usize = 128;

/// What clients that lost a race are told; some match on it.
pub(super) const MODIFIED: &str = "the object has been modified; please apply your changes to the \
    latest version and try again";
