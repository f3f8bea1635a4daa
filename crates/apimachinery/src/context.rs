//! Who asks for what: the context every hook is given, and the question put to authorization.

use std::collections::BTreeMap;

use async_trait::async_trait;
use jiff::Timestamp;

use crate::kind::Verb;

/// Who is asking. Set as a request extension by whoever authenticated them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// For example `system:admin`. Empty means `system:anonymous`.
    pub name: String,
    /// For example `system:masters`.
    pub groups: Vec<String>,
    /// Empty if unknown.
    pub uid: String,
    /// What else the authenticator knows, for example a certificate's fingerprint; keys in lower
    /// case.
    pub extra: BTreeMap<String, Vec<String>>,
    /// Who knows this user, and so says what they may do.
    pub realm: Realm,
}

/// Whose user somebody is. The same name in another realm is somebody else.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Realm {
    /// This server's own.
    #[default]
    Own,
    /// The cluster's that this server extends: no rule of this server's own is about them.
    Cluster,
}

/// One request, as hooks see it.
#[derive(Debug, Clone)]
pub struct RequestContext {
    /// Who is asking.
    pub user: UserInfo,
    /// What is done. Connect handlers get the verb their HTTP method stands for.
    pub verb: Verb,
    /// API group of the path; empty for core.
    pub group: String,
    /// API version of the path.
    pub version: String,
    /// Plural of the path.
    pub resource: String,
    /// Empty for the resource itself.
    pub subresource: String,
    /// Empty for cluster-scoped resources and for lists over all namespaces.
    pub namespace: String,
    /// Empty for collections, and for creation until the name is known.
    pub name: String,
    /// Nothing may be kept.
    pub dry_run: bool,
    /// When the request arrived.
    pub now: Timestamp,
    /// The client's `User-Agent`, possibly empty.
    pub user_agent: String,
}

/// The question put to authorization.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessRequest {
    /// `get`, `list`, ...; for paths outside the API the HTTP method in lower case.
    pub verb: String,
    /// Empty for core.
    pub group: String,
    /// As in the path.
    pub version: String,
    /// Plural; empty for paths outside the API (discovery, OpenAPI, version).
    pub resource: String,
    /// Empty for the resource itself.
    pub subresource: String,
    /// Empty for cluster scope and for all namespaces.
    pub namespace: String,
    /// Empty for collections.
    pub name: String,
    /// The whole path.
    pub path: String,
}

/// The answer of authorization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// Refuse; the text is added to the message, and may be empty.
    Deny(String),
    /// Refuse for now, with 503: who decides can't be asked. The text says why.
    Unknown(String),
}

/// Decides who may do what.
#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    /// Called once for each request, before anything is read.
    async fn authorize(&self, user: &UserInfo, access: &AccessRequest) -> Decision;
}

/// Allows everything; for tests and for sockets that only the owner can reach.
pub struct AllowAll;

#[async_trait]
impl Authorizer for AllowAll {
    async fn authorize(&self, _user: &UserInfo, _access: &AccessRequest) -> Decision {
        Decision::Allow
    }
}
