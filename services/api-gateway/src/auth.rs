//! Who is asking: a client certificate, or a bearer token of the token file or of an issuer; or one
//! of a cluster's users, if there is a cluster that this server extends (`aggregation/`).
//!
//! Nobody else gets further than `/healthz`, unless the configuration lets `system:anonymous` in.
//! Whom a caller may act as is for authorization to say (`impersonate.rs`).

mod bearer;
mod certificate;
mod fetch;
mod impersonate;
mod keys;
mod oidc;
mod service_account;
mod signatures;
mod tokens;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use godwit_apimachinery::{Authorizer, Status, UserInfo};
use http::request::Parts;
use http::{HeaderMap, header};
use tracing::info;

use crate::aggregation::{self, Cluster, Vouched};
use crate::audit;

pub(crate) use bearer::Bearers;
pub(crate) use certificate::{PeerCertificate, certified, common_name};
pub(crate) use fetch::Fetcher;
pub(crate) use impersonate::unescape;

/// Every user who proved who they are is in it.
pub(crate) const AUTHENTICATED: &str = "system:authenticated";
/// Everyone else is in it.
const UNAUTHENTICATED: &str = "system:unauthenticated";
/// Who asks when nobody says who asks.
const ANONYMOUS: &str = "system:anonymous";
/// Key of a user's extra field that says by which certificate or token they are known.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
/// Paths that may be read without saying who asks, if the configuration says so.
const OPEN_PATHS: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];

/// What is needed to tell who is asking.
pub(crate) struct Authenticator {
    pub(crate) bearers: Arc<Bearers>,
    /// Whose users are believed besides; `None` if nobody's.
    pub(crate) cluster: Option<Arc<Cluster>>,
    /// Says who may act as whom.
    pub(crate) authorizer: Arc<dyn Authorizer>,
    /// Whether [`OPEN_PATHS`] are open to anyone.
    pub(crate) anonymous_health: bool,
    /// Whether authorization is asked about those who don't say who they are.
    pub(crate) anonymous: bool,
}

/// Why it can't be told who is asking. For the log: the client isn't told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// Neither a certificate nor a token.
    #[error("there are no credentials")]
    NoCredentials,
    /// Not in the token file, and no JSON Web Token, or no issuer is configured.
    #[error("the token is not known")]
    UnknownToken,
    /// A JSON Web Token that isn't believed.
    #[error(transparent)]
    Token(#[from] oidc::Refused),
    /// None of ours, and the cluster doesn't believe it either.
    #[error(transparent)]
    Cluster(#[from] aggregation::Refused),
}

/// Puts [`UserInfo`] into the request, or answers 401 or 403.
pub(crate) async fn authenticate(
    State(authenticator): State<Arc<Authenticator>>,
    request: Request,
    next: Next,
) -> Response {
    let (mut parts, body) = request.into_parts();
    match authenticator.admit(&parts).await {
        Ok(user) => {
            parts.headers.remove(header::AUTHORIZATION);
            impersonate::forget(&mut parts.headers);
            if let Some(cluster) = &authenticator.cluster {
                cluster.forget(&mut parts.headers);
            }
            parts.extensions.insert(user.clone());
            let mut response = next.run(Request::from_parts(parts, body)).await;
            // For whoever tells what became of the request.
            response.extensions_mut().insert(user);
            response
        }
        Err(refusal) => *refusal,
    }
}

impl Authenticator {
    /// As whom the request is to be carried out.
    async fn admit(&self, request: &Parts) -> Result<UserInfo, Box<Response>> {
        let caller = match self.user(request).await {
            Ok(user) => user,
            Err(why) => {
                let path = request.uri.path();
                info!(path, why = %why, "a request is not authenticated");
                audit::note_unauthenticated(attempted(&request.headers));
                return Err(Box::new(unauthorized().into_response()));
            }
        };
        audit::note_user(&caller);
        // HTTP/2 says the host, too; kube-apiserver's texts don't.
        let uri = request.uri.path_and_query().map_or("", |uri| uri.as_str());
        let Some(wish) = impersonate::wish(&request.headers, uri)? else {
            return Ok(caller);
        };
        let granted = wish.granted(&caller, self.authorizer.as_ref()).await;
        let user = granted.map_err(|status| {
            audit::note_refusal(status.message());
            Box::new(status.into_response())
        })?;
        audit::note_impersonated(&user);
        Ok(user)
    }

    /// Who sent it. A certificate counts before a token, as with kube-apiserver.
    async fn user(&self, request: &Parts) -> Result<UserInfo, Refused> {
        if let Some(user) = self.certified(request) {
            return Ok(user);
        }
        if let Some(token) = bearer(&request.headers) {
            return self.bearer(token).await;
        }
        let path = request.uri.path();
        let open = OPEN_PATHS.iter().any(|open| {
            path == *open
                || path
                    .strip_prefix(open)
                    .is_some_and(|rest| rest.starts_with('/'))
        });
        match self.anonymous || (self.anonymous_health && open) {
            true => Ok(anonymous()),
            false => Err(Refused::NoCredentials),
        }
    }

    /// Who shows the connection's certificate, or whom its owner vouches for.
    fn certified(&self, request: &Parts) -> Option<UserInfo> {
        let certificate = request.extensions.get::<PeerCertificate>()?;
        let own = || certificate.user().map(authenticated);
        let Some(cluster) = &self.cluster else {
            return own();
        };
        match cluster.vouched(certificate.chain(), &request.headers) {
            Vouched::For(user) => Some(user),
            Vouched::Nobody => None,
            Vouched::NoProxy => own().or_else(|| cluster.certified(certificate.chain())),
        }
    }

    /// Whose token it is. The cluster sees none that one of ours may be.
    async fn bearer(&self, token: &str) -> Result<UserInfo, Refused> {
        let ours = match self.bearers.user(token).await {
            Ok(user) => return Ok(authenticated(user)),
            Err(why) => why,
        };
        match (&self.cluster, &ours) {
            (Some(cluster), Refused::UnknownToken)
            | (Some(cluster), Refused::Token(oidc::Refused::Issuer(_) | oidc::Refused::Form)) => {
                Ok(cluster.user(token).await?)
            }
            (Some(_) | None, _) => Err(ours),
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// What the audit log says of a request that is not authenticated; kube-apiserver's words.
fn attempted(headers: &HeaderMap) -> &'static str {
    match bearer(headers) {
        Some(_) => "Authentication failed, attempted: bearer",
        None => "Authentication failed, no credentials provided",
    }
}

/// The user with the group of those who proved who they are. Somebody else may have found out that
/// they didn't.
pub(crate) fn authenticated(mut user: UserInfo) -> UserInfo {
    let told = |group: &String| group == AUTHENTICATED || group == UNAUTHENTICATED;
    if user.name != ANONYMOUS && !user.groups.iter().any(told) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    user
}

fn anonymous() -> UserInfo {
    UserInfo {
        name: ANONYMOUS.to_owned(),
        groups: vec![UNAUTHENTICATED.to_owned()],
        ..UserInfo::default()
    }
}

fn unauthorized() -> Status {
    Status::unauthorized("Unauthorized")
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_apimachinery::AllowAll;
    use tokio_util::sync::CancellationToken;

    fn authenticator(anonymous: bool) -> Authenticator {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens.csv");
        let robot = "oil,system:serviceaccount:ci:robot,2";
        let tokens = format!("sesame,alice,1,\"godwit:admins,dev\"\n{robot}\n");
        std::fs::write(&file, tokens).unwrap();
        let config = crate::Config {
            token_file: Some(file),
            ..crate::Config::default()
        };
        let stopped = CancellationToken::new();
        stopped.cancel();
        Authenticator {
            bearers: Arc::new(Bearers::start(&config, &stopped).unwrap()),
            cluster: None,
            authorizer: Arc::new(AllowAll),
            anonymous_health: true,
            anonymous,
        }
    }

    async fn ask(authenticator: &Authenticator, path: &str, token: &str) -> Option<UserInfo> {
        let mut builder = http::Request::builder().uri(path);
        if !token.is_empty() {
            builder = builder.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let (request, _) = builder.body(()).unwrap().into_parts();
        authenticator.user(&request).await.ok()
    }

    #[tokio::test]
    async fn a_token_says_who_asks() {
        let authenticator = authenticator(true);
        let user = ask(&authenticator, "/api", "sesame").await.unwrap();
        assert_eq!(user.name, "alice");
        assert_eq!(user.groups, ["godwit:admins", "dev", AUTHENTICATED]);
        let robot = ask(&authenticator, "/api", "oil").await.unwrap();
        let own = [
            "system:serviceaccounts",
            "system:serviceaccounts:ci",
            AUTHENTICATED,
        ];
        assert_eq!(robot.groups, own);
        // A wrong token is wrong even where none is needed.
        for path in ["/api", "/healthz"] {
            assert!(ask(&authenticator, path, "other").await.is_none());
        }
    }

    #[tokio::test]
    async fn nobody_reads_more_than_health_and_version() {
        let authenticator = authenticator(false);
        for open in ["/healthz", "/livez/ping", "/readyz", "/version"] {
            let user = ask(&authenticator, open, "").await.unwrap();
            assert_eq!(user.name, ANONYMOUS);
        }
        for closed in ["/api", "/versions", "/apis/kubevirt.io/v1"] {
            assert!(ask(&authenticator, closed, "").await.is_none());
        }
    }

    #[tokio::test]
    async fn nobody_is_somebody_where_it_is_configured() {
        let user = ask(&authenticator(true), "/api", "").await.unwrap();
        assert_eq!(user, anonymous());
    }
}
