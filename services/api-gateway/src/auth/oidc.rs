//! JSON Web Tokens of one issuer, as kube-apiserver's `--oidc-*` flags mean them.
//!
//! Distributed claims are not followed.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use godwit_apimachinery::UserInfo;
use godwit_runtime::Reloaded;
use jiff::Timestamp;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation, dangerous, decode, decode_header};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::CREDENTIAL_ID;
use super::fetch::Fetcher;
use super::keys::{Issuer, KeySet, Keys};
use super::signatures;
use crate::config::OidcConfig;

/// Clocks of issuers may be this many seconds before ours; kube-apiserver has the same.
const NOT_BEFORE_LEEWAY: f64 = 300.0;
/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 64 << 10;
/// Most groups of one token.
const GROUPS_MAX: usize = 1024;
/// The claim that is only believed when the issuer says that it checked it.
const EMAIL: &str = "email";

/// Believes the tokens of one issuer.
pub(crate) struct Oidc {
    config: OidcConfig,
    username_prefix: String,
    algorithms: Vec<Algorithm>,
    keys: Keys,
}

/// Why a token isn't believed. For the log: the client isn't told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("it is no JSON Web Token")]
    Form,
    #[error("its issuer {0:?} is not ours")]
    Issuer(String),
    #[error("its algorithm is not accepted")]
    Algorithm,
    #[error("it needs extensions that are not understood")]
    Critical,
    #[error("no key of the issuer fits its key id {0:?}")]
    Key(Option<String>),
    #[error("its signature is wrong")]
    Signature,
    #[error("it is meant for {0}, not for us")]
    Audience(Value),
    #[error("it expired at {0}")]
    Expired(Value),
    #[error("it is not good before {0}")]
    NotYet(Value),
    #[error("its claim {0:?} is missing, or not of the form that it must have")]
    Claim(String),
    #[error("its claim {0:?} has not the required value")]
    Required(String),
    #[error("its email is not verified")]
    Unverified,
}

impl Oidc {
    /// Prepares, and follows the keys until `shutdown`.
    ///
    /// # Errors
    /// When the configuration makes no sense, or a file can't be used.
    pub(crate) fn start(config: &OidcConfig, shutdown: CancellationToken) -> anyhow::Result<Self> {
        signatures::install();
        ensure!(
            config.issuer_url.starts_with("https://"),
            "oidc.issuer_url {:?} is not https",
            config.issuer_url
        );
        ensure!(!config.client_ids.is_empty(), "oidc.client_ids is empty");
        ensure!(
            !config.signing_algs.is_empty(),
            "oidc.signing_algs is empty"
        );
        let algorithm = |name: &String| {
            signatures::algorithm(name).with_context(|| format!("oidc.signing_algs: {name:?}"))
        };
        let algorithms = config.signing_algs.iter().map(algorithm);
        let algorithms = algorithms.collect::<anyhow::Result<_>>()?;
        let keys = match &config.jwks_file {
            Some(path) => Keys::File(
                Reloaded::start(path, KeySet::parse, shutdown).context("oidc.jwks_file")?,
            ),
            None => {
                let fetcher = Fetcher::new(config.ca_file.as_deref()).context("oidc.ca_file")?;
                Keys::Issuer(Issuer::start(config.issuer_url.clone(), fetcher, shutdown))
            }
        };
        Ok(Self::with(config, algorithms, keys))
    }

    fn with(config: &OidcConfig, algorithms: Vec<Algorithm>, keys: Keys) -> Self {
        let username_prefix = match config.username_prefix.as_deref() {
            Some("-") => String::new(),
            Some(prefix) => prefix.to_owned(),
            None if config.username_claim == EMAIL => String::new(),
            None => format!("{}#", config.issuer_url),
        };
        Self {
            config: config.clone(),
            username_prefix,
            algorithms,
            keys,
        }
    }

    /// Whom its tokens are meant for.
    pub(crate) fn audiences(&self) -> &[String] {
        &self.config.client_ids
    }

    /// Who shows this token, at `now`.
    pub(crate) async fn user(&self, token: &str, now: Timestamp) -> Result<UserInfo, Refused> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refused::Form);
        }
        // Before anything is fetched or calculated for somebody else's token.
        let claimed: Map<String, Value> =
            dangerous::insecure_decode_claims(token).map_err(|_| Refused::Form)?;
        self.check_issuer(&claimed)?;
        let header = decode_header(token).map_err(|_| Refused::Algorithm)?;
        if !self.algorithms.contains(&header.alg) {
            return Err(Refused::Algorithm);
        }
        if header.crit.is_some() {
            return Err(Refused::Critical);
        }
        let id = header.kid.as_deref();
        let known = self.keys.known();
        let mut verified = verified(&known, id, (token, header.alg));
        if verified.is_err()
            && let Some(newer) = self.keys.newer(&known).await
        {
            verified = self::verified(&newer, id, (token, header.alg));
        }
        let claims = verified?;
        self.check(&claims, now)?;
        self.read(&claims)
    }

    fn check_issuer(&self, claims: &Map<String, Value>) -> Result<(), Refused> {
        match text(claims, "iss") {
            Some(issuer) if issuer == self.config.issuer_url => Ok(()),
            Some(issuer) => Err(Refused::Issuer(issuer.chars().take(256).collect())),
            None => Err(Refused::Claim("iss".to_owned())),
        }
    }

    fn check(&self, claims: &Map<String, Value>, now: Timestamp) -> Result<(), Refused> {
        self.check_issuer(claims)?;
        let audience = claims.get("aud").unwrap_or(&Value::Null);
        let meant = texts(audience).unwrap_or_default();
        if !meant
            .iter()
            .any(|name| self.config.client_ids.contains(name))
        {
            return Err(Refused::Audience(audience.clone()));
        }
        let seconds = now.as_duration().as_secs_f64();
        let expires = claims.get("exp").and_then(Value::as_f64);
        match expires {
            None => return Err(Refused::Claim("exp".to_owned())),
            Some(expires) if expires <= seconds => {
                return Err(Refused::Expired(claims["exp"].clone()));
            }
            Some(_) => {}
        }
        if let Some(begins) = claims.get("nbf") {
            let at = begins
                .as_f64()
                .ok_or_else(|| Refused::Claim("nbf".to_owned()))?;
            if seconds + NOT_BEFORE_LEEWAY < at {
                return Err(Refused::NotYet(begins.clone()));
            }
        }
        for (name, wanted) in &self.config.required_claims {
            if text(claims, name) != Some(wanted.as_str()) {
                return Err(Refused::Required(name.clone()));
            }
        }
        Ok(())
    }

    fn read(&self, claims: &Map<String, Value>) -> Result<UserInfo, Refused> {
        let config = &self.config;
        let malformed = |name: &str| Refused::Claim(name.to_owned());
        let name = text(claims, &config.username_claim).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| malformed(&config.username_claim))?;
        let verified = claims.get("email_verified").unwrap_or(&Value::Bool(true));
        if config.username_claim == EMAIL && *verified != Value::Bool(true) {
            return Err(Refused::Unverified);
        }
        let mut groups = Vec::new();
        if let Some(claim) = &config.groups_claim
            && let Some(found) = claims.get(claim)
        {
            groups = texts(found).ok_or_else(|| malformed(claim))?;
            if groups.len() > GROUPS_MAX {
                return Err(malformed(claim));
            }
        }
        let mut extra = BTreeMap::new();
        if let Some(id) = text(claims, "jti").filter(|id| !id.is_empty()) {
            extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("JTI={id}")]);
        }
        Ok(UserInfo {
            name: format!("{}{name}", self.username_prefix),
            groups: groups
                .into_iter()
                .map(|group| format!("{}{group}", config.groups_prefix))
                .collect(),
            extra,
            ..UserInfo::default()
        })
    }
}

/// The claims of a token that one of `keys` signed.
fn verified(
    keys: &KeySet,
    id: Option<&str>,
    (token, algorithm): (&str, Algorithm),
) -> Result<Map<String, Value>, Refused> {
    let mut validation = Validation::new(algorithm);
    // Signature and form only: what the claims must say is ours to check, to the letter of
    // kube-apiserver.
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    let mut why = Refused::Key(id.map(|id| id.chars().take(256).collect()));
    for key in keys.fitting(id, algorithm) {
        match decode(token, key, &validation) {
            Ok(token) => return Ok(token.claims),
            Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => {
                why = Refused::Signature;
            }
            Err(_) => why = Refused::Form,
        }
    }
    Err(why)
}

fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    claims.get(name).and_then(Value::as_str)
}

/// A claim that may be one text or several.
fn texts(claim: &Value) -> Option<Vec<String>> {
    match claim {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(several) => several
            .iter()
            .map(|one| one.as_str().map(str::to_owned))
            .collect(),
        Value::Null => Some(vec![]),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

/// Whether something can be a JSON Web Token at all.
pub(crate) fn is_token(text: &str) -> bool {
    text.split('.').count() == 3
}

#[cfg(test)]
mod tests;
