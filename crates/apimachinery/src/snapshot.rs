//! Lists that clients are still paging through.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::status::Status;
use crate::store::Listed;

/// How long a page may take to read; etcd keeps revisions as long.
const KEPT: Duration = Duration::from_secs(300);
/// Lists share their objects, so a snapshot costs a pointer for each.
const SNAPSHOTS_MAX: usize = 128;

/// Remembers the lists behind continue tokens for a while.
#[derive(Default)]
pub(crate) struct Snapshots {
    kept: Mutex<VecDeque<Snapshot>>,
}

struct Snapshot {
    resource: String,
    namespace: Option<String>,
    listed: Listed,
    since: Instant,
}

impl Snapshots {
    pub(crate) fn keep(&self, resource: &str, namespace: Option<&str>, listed: &Listed) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|known| known.since.elapsed() < KEPT);
        if kept
            .iter()
            .any(|known| known.is(resource, namespace, listed.revision))
        {
            return;
        }
        if kept.len() >= SNAPSHOTS_MAX {
            kept.pop_front();
        }
        kept.push_back(Snapshot {
            resource: resource.to_owned(),
            namespace: namespace.map(str::to_owned),
            listed: listed.clone(),
            since: Instant::now(),
        });
    }

    pub(crate) fn find(
        &self,
        resource: &str,
        namespace: Option<&str>,
        revision: u64,
    ) -> Option<Listed> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept
            .iter()
            .find(|known| known.is(resource, namespace, revision));
        found
            .filter(|known| known.since.elapsed() < KEPT)
            .map(|known| known.listed.clone())
    }
}

impl Snapshot {
    fn is(&self, resource: &str, namespace: Option<&str>, revision: u64) -> bool {
        self.listed.revision == revision
            && self.resource == resource
            && self.namespace.as_deref() == namespace
    }
}

/// Where the next page begins: after this object, at this revision.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    #[serde(rename = "rv")]
    pub(crate) revision: u64,
    #[serde(rename = "ns")]
    pub(crate) namespace: String,
    #[serde(rename = "after")]
    pub(crate) name: String,
}

impl Token {
    pub(crate) fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::json!(self).to_string())
    }

    pub(crate) fn decode(text: &str) -> Result<Self, Status> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok();
        let token = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        token.ok_or_else(|| Status::bad_request("continue key is not valid"))
    }
}
