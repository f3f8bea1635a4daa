//! Being reached through another cluster's API: its kube-apiserver passes requests on, as its front
//! proxy, for the API groups that `APIService` objects send here.
//!
//! Users who come in that way, or with the cluster's own certificates and tokens, are the cluster's
//! ([`Realm::Cluster`](godwit_apimachinery::Realm)). It says who they are and what they may do; no
//! rule of ours is about them. What can't be asked is refused.

mod asking;
mod authorize;
mod brief;
mod front_proxy;
mod settings;
mod verifier;

use std::sync::Arc;
use std::time::Duration;

use godwit_apimachinery::{AccessRequest, Decision, Realm, UserInfo};
use http::{HeaderMap, HeaderName};
use rustls::pki_types::{CertificateDer, UnixTime};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::auth::{authenticated, certified};
use crate::config::AggregationConfig;
use asking::Asking;
use brief::Brief;
use settings::Settings;

pub(crate) use authorize::Delegating;
pub(crate) use front_proxy::Vouched;
pub(crate) use verifier::Clients;

/// How often the cluster's settings are read: its front proxy's authority may be replaced.
const EVERY: Duration = Duration::from_secs(1);
/// How long an answer counts, as in kube-apiserver's own delegation.
const COUNTS: Duration = Duration::from_secs(10);
/// How long a token that isn't believed is not asked about again.
const BAD_TOKEN_COUNTS: Duration = Duration::from_secs(1);
/// What the headers of a front proxy begin with unless they are named otherwise.
const USUAL: &str = "x-remote-";
/// Longest token that is asked about, in bytes.
const TOKEN_BYTES_MAX: usize = 64 << 10;

/// The cluster, and what it said last.
pub(crate) struct Cluster {
    asking: Asking,
    /// `None` until they were read for the first time.
    settings: watch::Sender<Option<Arc<Settings>>>,
    /// Whose a token is; `None` for a bad one.
    tokens: Brief<Option<UserInfo>>,
    accesses: Brief<Decision>,
}

/// Why a token isn't believed. For the log: the client isn't told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// The cluster doesn't know it either.
    #[error("the cluster does not know the token")]
    Unknown,
    /// It can't be asked.
    #[error("the cluster can't be asked about the token: {0:#}")]
    Unasked(anyhow::Error),
}

impl Cluster {
    /// Reads the cluster's settings, and follows them until `shutdown`. A cluster that can't be
    /// asked yet has no users yet.
    ///
    /// # Errors
    /// When a file of the configuration can't be used.
    pub(crate) async fn start(
        config: &AggregationConfig,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let cluster = Arc::new(Self {
            asking: Asking::start(config, shutdown)?,
            settings: watch::Sender::new(None),
            tokens: Brief::default(),
            accesses: Brief::default(),
        });
        let mut follower = Follower::new(Arc::clone(&cluster));
        follower.look().await;
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(async move {
            loop {
                tokio::time::sleep(EVERY).await;
                follower.look().await;
            }
        }));
        Ok(cluster)
    }

    fn settings(&self) -> Option<Arc<Settings>> {
        self.settings.borrow().clone()
    }

    /// Whether any authority of the cluster vouches for this client.
    fn knows(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> bool {
        self.settings().is_some_and(|settings| {
            let proxy = settings.front_proxy.as_ref();
            settings.knows_client(chain, now) || proxy.is_some_and(|proxy| proxy.knows(chain, now))
        })
    }

    /// Whom the headers name, if the client is the cluster's front proxy.
    pub(crate) fn vouched(&self, chain: &[CertificateDer<'_>], headers: &HeaderMap) -> Vouched {
        let Some(settings) = self.settings() else {
            return Vouched::NoProxy;
        };
        match &settings.front_proxy {
            Some(proxy) if proxy.is_at_the_end_of(chain) => proxy.named_by(headers),
            Some(_) | None => Vouched::NoProxy,
        }
    }

    /// The user that the certificate is of, if the cluster's authority of clients made it.
    pub(crate) fn certified(&self, chain: &[CertificateDer<'_>]) -> Option<UserInfo> {
        let settings = self.settings()?;
        if !settings.knows_client(chain, UnixTime::now()) {
            return None;
        }
        let user = certified(chain.first()?)?;
        Some(authenticated(UserInfo {
            realm: Realm::Cluster,
            ..user
        }))
    }

    /// Removes every header that names a user, whoever wrote it, so that nothing behind can take it
    /// for its own.
    pub(crate) fn forget(&self, headers: &mut HeaderMap) {
        let settings = self.settings();
        let proxy = settings
            .as_ref()
            .and_then(|known| known.front_proxy.as_ref());
        let names_a_user = |name: &&HeaderName| {
            name.as_str().starts_with(USUAL) || proxy.is_some_and(|proxy| proxy.writes(name))
        };
        let found: Vec<HeaderName> = headers.keys().filter(names_a_user).cloned().collect();
        for name in found {
            headers.remove(name);
        }
    }

    /// Whose token it is.
    pub(crate) async fn user(&self, token: &str) -> Result<UserInfo, Refused> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refused::Unknown);
        }
        let key = Sha256::digest(token.as_bytes()).into();
        let known = match self.tokens.get(&key) {
            Some(known) => known,
            None => {
                let asked = self.asking.token_review(token).await;
                let user = asked.map_err(Refused::Unasked)?;
                let time = user.as_ref().map_or(BAD_TOKEN_COUNTS, |_| COUNTS);
                self.tokens.keep(key, user.clone(), time);
                user
            }
        };
        known.map(authenticated).ok_or(Refused::Unknown)
    }

    /// Whether the cluster lets its `user` do it.
    pub(crate) async fn decide(&self, user: &UserInfo, access: &AccessRequest) -> Decision {
        let spec = review(user, access);
        let key = Sha256::digest(spec.to_string().as_bytes()).into();
        if let Some(decision) = self.accesses.get(&key) {
            return decision;
        }
        match self.asking.access_review(spec).await {
            Ok(decision) => {
                self.accesses.keep(key, decision.clone(), COUNTS);
                decision
            }
            Err(error) => {
                // Told at WARN once, where the settings are read.
                info!(
                    error = format!("{error:#}"),
                    "the cluster can't be asked who may do what"
                );
                Decision::Unknown("the cluster can't be asked whether this is allowed".to_owned())
            }
        }
    }
}

/// What is asked of the cluster: `spec` of a `SubjectAccessReview`.
fn review(user: &UserInfo, access: &AccessRequest) -> Value {
    let mut spec = json!({
        "user": user.name, "groups": user.groups, "uid": user.uid, "extra": user.extra,
    });
    match access.resource.is_empty() {
        true => {
            spec["nonResourceAttributes"] = json!({"path": access.path, "verb": access.verb});
        }
        false => {
            spec["resourceAttributes"] = json!({
                "verb": access.verb, "group": access.group, "version": access.version,
                "resource": access.resource, "subresource": access.subresource,
                "namespace": access.namespace, "name": access.name,
            });
        }
    }
    spec
}

/// Keeps [`Cluster::settings`] up to date.
struct Follower {
    cluster: Arc<Cluster>,
    /// What is in force.
    used: Option<Value>,
    /// Whether the last try failed, which is told once.
    failing: bool,
}

impl Follower {
    fn new(cluster: Arc<Cluster>) -> Self {
        Self {
            cluster,
            used: None,
            failing: false,
        }
    }

    async fn look(&mut self) {
        let read = self.cluster.asking.settings().await;
        match read.and_then(|data| self.take(data)) {
            Ok(()) => self.failing = false,
            Err(error) if self.failing => {
                debug!(
                    error = format!("{error:#}"),
                    "the cluster's settings are no better"
                );
            }
            Err(error) => {
                self.failing = true;
                warn!(
                    error = format!("{error:#}"),
                    "the cluster's settings can't be used, what they said before stays in force"
                );
            }
        }
    }

    fn take(&mut self, data: Value) -> anyhow::Result<()> {
        if self.used.as_ref() == Some(&data) {
            return Ok(());
        }
        let settings = Settings::parse(&data)?;
        let settings = Some(Arc::new(settings));
        self.cluster.settings.send_replace(settings);
        self.used = Some(data);
        info!("read the cluster's settings");
        Ok(())
    }
}
