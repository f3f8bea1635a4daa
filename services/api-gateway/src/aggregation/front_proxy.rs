//! The cluster's front proxy: who it is, and whom it names in headers.

use std::sync::Arc;

use godwit_apimachinery::{Realm, UserInfo};
use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;

use super::settings::vouches;
use crate::auth::{authenticated, common_name, unescape};

/// How a front proxy is known, and how it writes.
pub(super) struct FrontProxy {
    /// Makes the front proxy's certificates, and maybe others.
    pub(super) authority: Arc<dyn ClientCertVerifier>,
    /// Common names that a front proxy may have; any if empty.
    pub(super) names: Vec<String>,
    pub(super) users: Vec<HeaderName>,
    pub(super) groups: Vec<HeaderName>,
    pub(super) uids: Vec<HeaderName>,
    /// What the headers of extra fields begin with, in lower case.
    pub(super) extras: Vec<String>,
}

/// What a front proxy says of who asks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Vouched {
    /// The client is no front proxy: its headers mean nothing.
    NoProxy,
    /// It names nobody, or not in UTF-8. Its certificate doesn't stand for a user by itself.
    Nobody,
    /// Carry it out as this user.
    For(UserInfo),
}

impl FrontProxy {
    /// Whether its authority vouches for this client, whoever that is.
    pub(super) fn knows(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> bool {
        vouches(self.authority.as_ref(), chain, now)
    }

    /// Whether this client is a front proxy.
    pub(super) fn is_at_the_end_of(&self, chain: &[CertificateDer<'_>]) -> bool {
        let named = || chain.first().and_then(|client| common_name(client));
        self.knows(chain, UnixTime::now())
            && (self.names.is_empty() || named().is_some_and(|name| self.names.contains(&name)))
    }

    /// Whom its headers name.
    pub(super) fn named_by(&self, headers: &HeaderMap) -> Vouched {
        match self.user(headers) {
            Some(user) if !user.name.is_empty() => Vouched::For(authenticated(user)),
            Some(_) | None => Vouched::Nobody,
        }
    }

    /// `None` if something is no UTF-8: a user with a part missing could be somebody else.
    fn user(&self, headers: &HeaderMap) -> Option<UserInfo> {
        let mut user = UserInfo {
            name: first(headers, &self.users)?,
            uid: first(headers, &self.uids)?,
            realm: Realm::Cluster,
            ..UserInfo::default()
        };
        for value in self.groups.iter().flat_map(|name| headers.get_all(name)) {
            user.groups.push(text(value)?);
        }
        for (name, value) in headers {
            let mut prefixes = self.extras.iter();
            if let Some(key) = prefixes.find_map(|prefix| name.as_str().strip_prefix(prefix)) {
                let key = unescape(key).to_lowercase();
                user.extra.entry(key).or_default().push(text(value)?);
            }
        }
        Some(user)
    }

    /// Whether it is a header that names a user.
    pub(super) fn writes(&self, name: &HeaderName) -> bool {
        let known = [&self.users, &self.groups, &self.uids];
        let begins = |prefix: &String| name.as_str().starts_with(prefix);
        known.iter().any(|names| names.contains(name)) || self.extras.iter().any(begins)
    }
}

/// The first that says something, as kube-apiserver takes it; empty if there is none.
fn first(headers: &HeaderMap, names: &[HeaderName]) -> Option<String> {
    let mut values = names.iter().filter_map(|name| headers.get(name));
    match values.find(|value| !value.is_empty()) {
        Some(value) => text(value),
        None => Some(String::new()),
    }
}

fn text(value: &HeaderValue) -> Option<String> {
    let text = std::str::from_utf8(value.as_bytes());
    text.ok().map(str::to_owned)
}
