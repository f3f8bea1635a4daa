//! Lists that clients are still paging through.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

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
    /// `None` for the latest: the client takes an inconsistent list rather than none.
    #[serde(rename = "rv")]
    pub(crate) revision: Option<u64>,
    #[serde(rename = "ns")]
    pub(crate) namespace: String,
    #[serde(rename = "after")]
    pub(crate) name: String,
}

/// Bytes of the digest before a token. It keeps no secret: it tells a token that was cut or changed
/// on its way from ours.
const DIGEST_BYTES: usize = 8;

impl Token {
    pub(crate) fn encode(&self) -> String {
        let text = serde_json::json!(self).to_string();
        let mut bytes = digest(text.as_bytes()).to_vec();
        bytes.extend_from_slice(text.as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// As this one, but over the objects as they are when it is used.
    pub(crate) fn at_latest(&self) -> Self {
        Self {
            revision: None,
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    /// # Errors
    /// 400 unless it is just as [`Self::encode`] made it.
    pub(crate) fn decode(text: &str) -> Result<Self, Status> {
        Self::read(text).ok_or_else(|| Status::bad_request("continue key is not valid"))
    }

    fn read(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (head, token) = bytes.split_at_checked(DIGEST_BYTES)?;
        if head != digest(token) {
            return None;
        }
        serde_json::from_slice(token).ok()
    }
}

fn digest(bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    let whole = Sha256::digest(bytes);
    std::array::from_fn(|at| whole[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_and_a_changed_one_is_refused() {
        let token = Token {
            revision: Some(7),
            namespace: "default".to_owned(),
            name: "a".to_owned(),
        };
        let text = token.encode();
        assert_eq!(Token::decode(&text).expect("token"), token);
        for at in 0..text.len() {
            let other = if text[at..].starts_with('A') {
                "B"
            } else {
                "A"
            };
            let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            let refused = Token::decode(&changed).expect_err("refused");
            assert_eq!(refused.code(), 400, "{changed}");
            assert!(Token::decode(&text[..at]).is_err(), "cut at {at}");
        }
    }
}
