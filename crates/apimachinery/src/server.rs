//! The server put together: declarations, store and hooks in, an axum router out.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::admission::Admission;
use crate::connect::ExtraResource;
use crate::context::Authorizer;
use crate::documents::Documents;
use crate::handler;
use crate::kind::{Kind, api_version};
use crate::registry::Registry;
use crate::snapshot::Snapshots;
use crate::store::Store;

/// What a server is made of.
pub struct Parts {
    /// Stored kinds. Groups are shown in the order of first mention.
    pub kinds: Vec<Kind>,
    /// Resources answered by handlers.
    pub extras: Vec<ExtraResource>,
    /// Keeper of the objects.
    pub store: Arc<dyn Store>,
    /// Says who may do what.
    pub authorizer: Arc<dyn Authorizer>,
    /// Runs before each kind's own admission.
    pub admission: Arc<dyn Admission>,
    /// Answer of `/version`.
    pub version: VersionInfo,
    /// Named maxima.
    pub limits: Limits,
}

/// Answer of `/version`. Clients compare `minor` with their own, and parse `git_version`.
#[derive(Debug, Clone)]
pub struct VersionInfo {
    /// For example `1`.
    pub major: String,
    /// For example `34`.
    pub minor: String,
    /// A semantic version with `v`, for example `v1.34.0+godwit.0.1.0`.
    pub git_version: String,
    /// Commit of the build.
    pub git_commit: String,
    /// RFC 3339 time of the build.
    pub build_date: String,
}

impl VersionInfo {
    /// As clients read it.
    pub fn to_json(&self) -> Value {
        json!({
            "major": self.major,
            "minor": self.minor,
            "gitVersion": self.git_version,
            "gitCommit": self.git_commit,
            "gitTreeState": "clean",
            "buildDate": self.build_date,
            // Clients want the field; the truth is that there is no Go here.
            "goVersion": "none",
            "compiler": "rustc",
            "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
        })
    }
}

/// Named maxima.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a request body.
    pub body_bytes: usize,
    /// Bytes of one encoded object.
    pub object_bytes: usize,
    /// Bytes of a label or field selector.
    pub selector_bytes: usize,
    /// Objects of one page: a client that asks for larger ones gets these. A list without a
    /// `limit` is answered whole.
    pub page_objects: usize,
    /// Operations of a JSON patch.
    pub patch_operations: usize,
    /// Nesting of a body; more than 127 is never read.
    pub depth: usize,
    /// Managers by update in `managedFields`; the oldest become one.
    pub field_managers: usize,
    /// Seconds after which a watch ends if the client set no limit; the last half is random, so
    /// that clients don't all come back at once.
    pub watch_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        // 1 MiB is a bit less than etcd takes, so objects can be carried over. Page and selectors
        // have no limit in kube-apiserver; the others are its own.
        Self {
            body_bytes: 3 << 20,
            object_bytes: 1 << 20,
            selector_bytes: 8 << 10,
            page_objects: 10_000,
            patch_operations: 10_000,
            depth: 127,
            field_managers: 10,
            watch_seconds: 3600,
        }
    }
}

/// The API server.
pub struct ApiServer {
    pub(crate) registry: Registry,
    pub(crate) documents: Documents,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) admission: Arc<dyn Admission>,
    pub(crate) limits: Limits,
    pub(crate) snapshots: Snapshots,
}

impl ApiServer {
    /// Checks the declarations and builds everything that can be built once.
    ///
    /// # Errors
    /// Says which declaration is wrong.
    pub fn new(parts: Parts) -> Result<Arc<Self>, String> {
        let registry = Registry::new(parts.kinds, parts.extras)?;
        Ok(Arc::new(Self {
            documents: Documents::new(&registry, &parts.version),
            registry,
            store: parts.store,
            authorizer: parts.authorizer,
            admission: parts.admission,
            limits: parts.limits,
            snapshots: Snapshots::default(),
        }))
    }

    /// The plurals of all stored kinds.
    pub fn plurals(&self) -> HashSet<&'static str> {
        let stored = self.registry.stored().iter();
        stored.map(|resource| resource.kind.plural).collect()
    }

    /// Says who may do what, for routes beside these.
    pub fn authorizer(&self) -> Arc<dyn Authorizer> {
        Arc::clone(&self.authorizer)
    }

    /// The OpenAPI v3 document of each group and version, by its path below `/openapi/v3/`, for
    /// example `apis/kubevirt.io/v1`; groups in the order of their declaration.
    pub fn openapi_v3(&self) -> Vec<(String, Bytes)> {
        let groups = self.registry.groups.iter();
        let versions = groups.flat_map(|group| group.versions.iter().map(move |v| (group, v)));
        let documents = versions.filter_map(|(group, version)| {
            let root = if group.name.is_empty() { "api" } else { "apis" };
            let path = format!("{root}/{}", api_version(group.name, version.name));
            let key = (group.name.to_owned(), version.name.to_owned());
            Some((path, self.documents.openapi_v3_bytes(&key)?))
        });
        documents.collect()
    }

    /// Serves `/api`, `/apis`, `/openapi`, `/version`, and a `Status` 404 for anything else.
    ///
    /// [`UserInfo`](crate::UserInfo) is read from the request's extensions. Add routes of your own
    /// to the result; they win over these. Don't compress the answers of watches: a compressor
    /// holds events back.
    pub fn router(self: &Arc<Self>) -> Router {
        let server = Arc::clone(self);
        Router::new().fallback(move |request: Request| handler::serve(server, request))
    }
}
