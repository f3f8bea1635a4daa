//! Who is asking: a client certificate or a bearer token. Nobody else gets further than `/healthz`.

mod certificate;
mod tokens;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use godwit_apimachinery::{Status, UserInfo};
use http::{HeaderMap, header};

pub(crate) use certificate::PeerCertificate;
pub(crate) use tokens::Tokens;

/// Every user who proved who they are is in it.
const AUTHENTICATED: &str = "system:authenticated";
/// Paths that may be read without saying who asks, if the configuration says so.
const OPEN_PATHS: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

/// What is needed to tell who is asking.
pub(crate) struct Authenticator {
    pub(crate) tokens: Tokens,
    /// Whether [`OPEN_PATHS`] are open to anyone.
    pub(crate) anonymous_health: bool,
}

/// Puts [`UserInfo`] into the request, or answers 401 or 403.
pub(crate) async fn authenticate(
    State(authenticator): State<Arc<Authenticator>>,
    mut request: Request,
    next: Next,
) -> Response {
    if let Some(refusal) = impersonation(request.headers()) {
        return refusal.into_response();
    }
    match authenticator.user(&request) {
        Ok(user) => {
            request.extensions_mut().insert(user.clone());
            let mut response = next.run(request).await;
            // For whoever tells what became of the request.
            response.extensions_mut().insert(user);
            response
        }
        Err(status) => status.into_response(),
    }
}

impl Authenticator {
    fn user(&self, request: &Request) -> Result<UserInfo, Status> {
        if let Some(token) = bearer(request.headers()) {
            let user = self.tokens.user(token).ok_or_else(unauthorized)?;
            return Ok(authenticated(user));
        }
        let certificate = request.extensions().get::<PeerCertificate>();
        if let Some(user) = certificate.and_then(PeerCertificate::user) {
            return Ok(authenticated(user));
        }
        let path = request.uri().path();
        let open = OPEN_PATHS.iter().any(|open| {
            path == *open
                || path
                    .strip_prefix(open)
                    .is_some_and(|rest| rest.starts_with('/'))
        });
        match self.anonymous_health && open {
            true => Ok(anonymous()),
            false => Err(unauthorized()),
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn authenticated(mut user: UserInfo) -> UserInfo {
    if !user.groups.iter().any(|group| group == AUTHENTICATED) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    user
}

fn anonymous() -> UserInfo {
    UserInfo {
        name: "system:anonymous".to_owned(),
        groups: vec!["system:unauthenticated".to_owned()],
        uid: String::new(),
    }
}

fn unauthorized() -> Status {
    Status::unauthorized("Unauthorized")
}

/// A server that ignored these headers would run the request as the caller, not as whom they meant.
fn impersonation(headers: &HeaderMap) -> Option<Status> {
    let found = headers
        .keys()
        .any(|name| name.as_str().starts_with("impersonate-"));
    found.then(|| Status::forbidden("impersonation is not supported by this server"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    fn authenticator() -> Authenticator {
        let tokens = Tokens::parse("sesame,alice,1,\"godwit:admins,dev\"\n").unwrap();
        Authenticator {
            tokens,
            anonymous_health: true,
        }
    }

    fn request(path: &str, authorization: Option<&str>) -> Request {
        let mut builder = http::Request::builder().uri(path);
        if let Some(value) = authorization {
            builder = builder.header(header::AUTHORIZATION, value);
        }
        builder.body(Body::empty()).unwrap()
    }

    #[test]
    fn a_token_says_who_asks() {
        let user = authenticator()
            .user(&request("/api", Some("Bearer sesame")))
            .unwrap();
        assert_eq!(user.name, "alice");
        assert_eq!(user.groups, ["godwit:admins", "dev", AUTHENTICATED]);
        assert!(
            authenticator()
                .user(&request("/api", Some("Bearer other")))
                .is_err()
        );
        // A wrong token is wrong even where none is needed.
        assert!(
            authenticator()
                .user(&request("/healthz", Some("Bearer other")))
                .is_err()
        );
    }

    #[test]
    fn nobody_reads_more_than_health_and_version() {
        for open in ["/healthz", "/livez/ping", "/readyz", "/version"] {
            assert_eq!(
                authenticator().user(&request(open, None)).unwrap().name,
                "system:anonymous"
            );
        }
        for closed in ["/api", "/versions", "/apis/kubevirt.io/v1"] {
            assert_eq!(
                authenticator()
                    .user(&request(closed, None))
                    .unwrap_err()
                    .code(),
                401
            );
        }
    }

    #[test]
    fn impersonation_is_refused_rather_than_ignored() {
        let mut headers = HeaderMap::new();
        assert!(impersonation(&headers).is_none());
        headers.insert("impersonate-user", "root".parse().unwrap());
        assert_eq!(impersonation(&headers).unwrap().code(), 403);
    }
}
