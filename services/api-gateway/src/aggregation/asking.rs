//! Asking the cluster: its settings, `TokenReview` and `SubjectAccessReview`.

use anyhow::Context as _;
use bytes::Bytes;
use godwit_apimachinery::{Decision, Realm, UserInfo};
use godwit_runtime::Reloaded;
use http::{HeaderValue, Method, Request, header};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::auth::Fetcher;
use crate::config::AggregationConfig;

const SETTINGS: &str =
    "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
const TOKEN_REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
const ACCESS_REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
/// Questions at once: whoever sends us made-up tokens must not make us flood the cluster.
const AT_ONCE: usize = 32;
/// Longest wait for one's turn to ask.
const TURN_MAX: Duration = Duration::from_secs(5);

/// How the cluster is asked, and as whom.
pub(super) struct Asking {
    server: String,
    fetcher: Reloaded<Fetcher>,
    /// Our own token there; the kubelet replaces it about every hour.
    token: Reloaded<HeaderValue>,
    turns: Semaphore,
}

impl Asking {
    /// Reads the files, and follows them until `shutdown`.
    ///
    /// # Errors
    /// When one can't be used.
    pub(super) fn start(
        config: &AggregationConfig,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let fetcher = |pem: &str| Fetcher::trusting(pem.as_bytes());
        let fetcher = Reloaded::start(&config.ca_file, fetcher, shutdown.clone());
        let token = Reloaded::start(&config.token_file, credentials, shutdown.clone());
        Ok(Self {
            server: config.server.trim_end_matches('/').to_owned(),
            fetcher: fetcher.context("read the cluster's authority")?,
            token: token.context("read the token for the cluster")?,
            turns: Semaphore::new(AT_ONCE),
        })
    }

    /// `data` of the ConfigMap with the cluster's settings.
    pub(super) async fn settings(&self) -> anyhow::Result<Value> {
        let mut map: Value = self.ask(Method::GET, SETTINGS, Bytes::new()).await?;
        anyhow::ensure!(map["kind"] == "ConfigMap", "the answer is no ConfigMap");
        Ok(map["data"].take())
    }

    /// Whose token it is; `None` when the cluster doesn't believe it.
    pub(super) async fn token_review(&self, token: &str) -> anyhow::Result<Option<UserInfo>> {
        let question = json!({
            "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1",
            "spec": {"token": token},
        });
        let answer: Answer<Token> = self.review(TOKEN_REVIEWS, &question).await?;
        let Token {
            authenticated,
            user,
        } = answer.status;
        Ok(
            (authenticated && !user.username.is_empty()).then_some(UserInfo {
                name: user.username,
                groups: user.groups,
                uid: user.uid,
                extra: user.extra,
                realm: Realm::Cluster,
            }),
        )
    }

    /// What the cluster says of `spec`.
    pub(super) async fn access_review(&self, spec: Value) -> anyhow::Result<Decision> {
        let question = json!({
            "kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "spec": spec,
        });
        let answer: Answer<Access> = self.review(ACCESS_REVIEWS, &question).await?;
        Ok(match answer.status {
            Access {
                allowed: true,
                denied: false,
                ..
            } => Decision::Allow,
            Access { reason, .. } => Decision::Deny(reason),
        })
    }

    async fn review<T>(&self, path: &str, question: &Value) -> anyhow::Result<T>
    where
        T: serde::de::DeserializeOwned,
    {
        let turn = tokio::time::timeout(TURN_MAX, self.turns.acquire()).await;
        let _turn = turn.context("too much is asked of the cluster")??;
        let body = Bytes::from(question.to_string());
        self.ask(Method::POST, path, body).await
    }

    async fn ask<T>(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<T>
    where
        T: serde::de::DeserializeOwned,
    {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.server))
            .header(header::AUTHORIZATION, self.token.get().as_ref())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .context("ask the cluster")?;
        self.fetcher.get().call(request).await
    }
}

/// The header's value for a token; never shown where values are printed.
fn credentials(token: &str) -> anyhow::Result<HeaderValue> {
    let token = token.trim();
    anyhow::ensure!(!token.is_empty(), "the token is empty");
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A review with its answer. One without a `status` is none.
#[derive(Deserialize)]
struct Answer<T> {
    status: T,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Token {
    authenticated: bool,
    user: User,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct User {
    username: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Access {
    allowed: bool,
    denied: bool,
    reason: String,
}
