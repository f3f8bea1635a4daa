//! The record of what was asked: every change, and every request that was refused with 401 or 403.
//!
//! Written off the path of requests (`keep.rs`), to a file and to the ledger. Holds names and
//! decisions, and never a body or a credential.

mod event;
mod file;
mod keep;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use godwit_apimachinery::{AccessRequest, AnsweredName, Authorizer, Decision, UserInfo};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use jiff::Timestamp;
use uuid::Uuid;

use event::{Asked, Entry};
pub(crate) use keep::Trail;

/// Carries the id of a request, in and out.
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
/// Longest id that a client may give, as with kube-apiserver.
const AUDIT_ID_MAX: usize = 64;

tokio::task_local! {
    /// What is found out about the request that this task carries out.
    static NOTES: Arc<Mutex<Notes>>;
}

/// What is found out on the way through a request.
#[derive(Debug, Clone, Default)]
struct Notes {
    user: Option<UserInfo>,
    impersonated: Option<UserInfo>,
    /// What authorization said of the request itself.
    decision: Option<Decision>,
    /// What became of the authentication, if it failed.
    unauthenticated: &'static str,
}

/// The id of a request, for spans and logs; an extension of the request.
#[derive(Debug, Clone)]
pub(crate) struct AuditId(pub(crate) String);

/// Records a request, if it is one that is recorded.
pub(crate) async fn audit(
    State(trail): State<Trail>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = id(request.headers());
    let mutates = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let notes = Arc::new(Mutex::new(Notes::default()));
    let mut open = Open {
        mutates: mutates.contains(request.method()),
        asked: Some(asked(&request, id.clone())),
        notes: Arc::clone(&notes),
        trail,
    };
    request.extensions_mut().insert(AuditId(id.clone()));
    let mut response = NOTES.scope(notes, next.run(request)).await;
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(AUDIT_ID, value);
    }
    open.answered(&response);
    response
}

/// A request that is being carried out. Dropped without an answer, it was given up by its client:
/// what it asked for may have been done, so it is recorded.
struct Open {
    mutates: bool,
    asked: Option<Asked>,
    notes: Arc<Mutex<Notes>>,
    trail: Trail,
}

impl Open {
    fn answered(&mut self, response: &Response) {
        let code = response.status().as_u16();
        let asked = self.asked.take();
        if !self.mutates && !matches!(code, 401 | 403) {
            return;
        }
        let name = response.extensions().get::<AnsweredName>();
        if let Some(mut asked) = asked {
            if let Some(AnsweredName(name)) = name {
                asked.access.name.clone_from(name);
            }
            self.keep(asked, Some(code));
        }
    }

    fn keep(&self, asked: Asked, code: Option<u16>) {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = Entry {
            asked,
            notes: notes.clone(),
            code,
            completed: Timestamp::now(),
        };
        self.trail.keep(entry.event());
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(asked) = self.asked.take()
            && self.mutates
        {
            self.keep(asked, None);
        }
    }
}

fn asked(request: &Request, id: String) -> Asked {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    Asked {
        id,
        access: AccessRequest::of(request.method(), request.uri()),
        uri: request.uri().clone(),
        sources: event::sources(request.headers(), peer.map(|peer| peer.0.ip())),
        user_agent: event::header(request.headers(), http::header::USER_AGENT.as_str()),
        received: Timestamp::now(),
    }
}

fn id(headers: &HeaderMap) -> String {
    let given = headers.get(AUDIT_ID).and_then(|value| value.to_str().ok());
    match given.filter(|given| !given.is_empty()) {
        // Visible ASCII: every byte is a character.
        Some(given) => given.chars().take(AUDIT_ID_MAX).collect(),
        None => Uuid::new_v4().to_string(),
    }
}

fn note(change: impl FnOnce(&mut Notes)) {
    // Outside of a request, as in tests of the parts, nothing is recorded.
    let _ = NOTES.try_with(|notes| {
        change(&mut notes.lock().unwrap_or_else(PoisonError::into_inner));
    });
}

/// Who sent the request.
pub(crate) fn note_user(user: &UserInfo) {
    note(|notes| notes.user = Some(user.clone()));
}

/// As whom it is carried out, if not as who sent it.
pub(crate) fn note_impersonated(user: &UserInfo) {
    note(|notes| notes.impersonated = Some(user.clone()));
}

/// It is not known who sent it.
pub(crate) fn note_unauthenticated(how: &'static str) {
    note(|notes| notes.unauthenticated = how);
}

/// It was refused before its own authorization.
pub(crate) fn note_refusal(why: &str) {
    let decision = Decision::Deny(why.to_owned());
    note(|notes| notes.decision = Some(decision));
}

/// Records what an authorizer says of requests. For the server's own questions, not for reviews.
pub(crate) struct Recorded(pub(crate) Arc<dyn Authorizer>);

#[async_trait]
impl Authorizer for Recorded {
    async fn authorize(&self, user: &UserInfo, access: &AccessRequest) -> Decision {
        let decision = self.0.authorize(user, access).await;
        // The first is about the request; what a handler asks later is about a part of it.
        note(|notes| {
            notes.decision.get_or_insert_with(|| decision.clone());
        });
        decision
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clients_id_is_kept_up_to_its_limit() {
        let mut headers = HeaderMap::new();
        assert_eq!(id(&headers).len(), 36);
        headers.insert(AUDIT_ID, "mine".parse().unwrap());
        assert_eq!(id(&headers), "mine");
        headers.insert(AUDIT_ID, "x".repeat(100).parse().unwrap());
        assert_eq!(id(&headers), "x".repeat(AUDIT_ID_MAX));
    }
}
