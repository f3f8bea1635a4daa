//! The keys of an issuer: fetched from it, or read from a file.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use godwit_runtime::Reloaded;
use jsonwebtoken::jwk::{JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::fetch::Fetcher;

/// How often the issuer is asked for its keys, so that one that it withdrew isn't believed for ever.
const REFRESH: Duration = Duration::from_secs(300);
/// Shortest time between two such questions, whatever tokens are shown to us.
const REFETCH_MIN: Duration = Duration::from_secs(10);
/// Most keys of an issuer: each is tried for a token that doesn't name its key.
const KEYS_MAX: usize = 64;

/// Keys of one issuer.
pub(crate) enum Keys {
    File(Reloaded<KeySet>),
    Issuer(Arc<Issuer>),
}

/// Keys at one time.
#[derive(Default)]
pub(crate) struct KeySet(Vec<Key>);

struct Key {
    id: Option<String>,
    /// The only algorithm that it is for; `None` for any that fits.
    algorithm: Option<String>,
    key: DecodingKey,
}

impl KeySet {
    /// Reads a JSON Web Key Set. Keys that are no use to us are skipped.
    ///
    /// # Errors
    /// When it is none, or has no key to check a signature with.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        Self::of(&serde_json::from_str(text).context("it is no JSON Web Key Set")?)
    }

    fn of(set: &JwkSet) -> anyhow::Result<Self> {
        ensure!(set.keys.len() <= KEYS_MAX, "more than {KEYS_MAX} keys");
        let signs =
            |usage: &Option<PublicKeyUse>| matches!(usage, None | Some(PublicKeyUse::Signature));
        let usable = set
            .keys
            .iter()
            .filter(|jwk| signs(&jwk.common.public_key_use));
        let keys: Vec<Key> = usable
            .filter_map(|jwk| {
                Some(Key {
                    id: jwk.common.key_id.clone(),
                    algorithm: jwk.common.key_algorithm.map(|name| name.to_string()),
                    key: DecodingKey::from_jwk(jwk).ok()?,
                })
            })
            .collect();
        ensure!(
            !keys.is_empty(),
            "there is no key to check a signature with"
        );
        Ok(Self(keys))
    }

    /// The keys that a token of this key id and algorithm may be signed with.
    pub(crate) fn fitting(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> impl Iterator<Item = &DecodingKey> {
        let name = format!("{algorithm:?}");
        self.0
            .iter()
            .filter(move |key| id.is_none() || key.id.as_deref() == id)
            .filter(move |key| key.algorithm.as_ref().is_none_or(|only| *only == name))
            .filter(move |key| key.key.family() == algorithm.family())
            .map(|key| &key.key)
    }
}

impl Keys {
    /// The keys that are known.
    pub(crate) fn known(&self) -> Arc<KeySet> {
        match self {
            Self::File(file) => file.get(),
            Self::Issuer(issuer) => issuer.known(),
        }
    }

    /// Keys that are newer than `seen`, for a token that none of those fits.
    pub(crate) async fn newer(&self, seen: &Arc<KeySet>) -> Option<Arc<KeySet>> {
        if let Self::Issuer(issuer) = self {
            issuer.refresh(REFETCH_MIN).await;
        }
        let known = self.known();
        (!Arc::ptr_eq(&known, seen)).then_some(known)
    }
}

/// An issuer that is asked for its keys.
pub(crate) struct Issuer {
    url: String,
    fetcher: Fetcher,
    known: RwLock<Arc<KeySet>>,
    /// When it was last asked; held while it is asked.
    asked: Mutex<Option<Instant>>,
}

/// What we read of an issuer's configuration.
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Issuer {
    /// Begins to ask the issuer, until `shutdown`. It need not be there yet.
    pub(crate) fn start(url: String, fetcher: Fetcher, shutdown: CancellationToken) -> Arc<Self> {
        let issuer = Arc::new(Self {
            url,
            fetcher,
            known: RwLock::default(),
            asked: Mutex::default(),
        });
        let mine = Arc::clone(&issuer);
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = mine.keep_fresh() => {}
            }
        });
        issuer
    }

    async fn keep_fresh(&self) {
        loop {
            self.refresh(REFETCH_MIN).await;
            let pause = match self.known().0.is_empty() {
                true => REFETCH_MIN,
                false => REFRESH,
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn known(&self) -> Arc<KeySet> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks for the keys, unless that was done within `age`.
    async fn refresh(&self, age: Duration) {
        let mut asked = self.asked.lock().await;
        if asked.is_some_and(|at| at.elapsed() < age) {
            return;
        }
        let fetched = self.fetch().await;
        *asked = Some(Instant::now());
        match fetched {
            Ok(keys) => {
                info!(
                    issuer = self.url,
                    keys = keys.0.len(),
                    "have the keys of the issuer"
                );
                let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
                *known = Arc::new(keys);
            }
            Err(error) => {
                let error = format!("{error:#}");
                warn!(
                    issuer = self.url,
                    error, "failed to fetch the keys of the issuer"
                );
            }
        }
    }

    async fn fetch(&self) -> anyhow::Result<KeySet> {
        let url = self.url.trim_end_matches('/');
        let url = format!("{url}/.well-known/openid-configuration");
        let found: Discovery = self.fetcher.get(&url).await?;
        ensure!(
            found.issuer == self.url,
            "{url} is of the issuer {:?}",
            found.issuer
        );
        let set: JwkSet = self.fetcher.get(&found.jwks_uri).await?;
        KeySet::of(&set)
    }
}
