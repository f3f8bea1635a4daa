//! Configuration of the api-gateway.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use godwit_runtime::config::Common;
use godwit_runtime::{Identity, ServiceConfig};
use serde::{Deserialize, Serialize};

use crate::limits::Limits;

const PORT: u16 = 6443;
const ADMIN_PORT: u16 = 7143;
/// Writes are serialised by the ledger, so more connections would only wait.
const CONNECTIONS_MAX: u32 = 8;
const AUDIT_FILE_BYTES: u64 = 100 << 20;
const AUDIT_FILES_KEPT: u32 = 10;

/// Everything that can be configured.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What every service has.
    pub common: Common,
    /// Where the API is served, HTTPS.
    pub bind: SocketAddr,
    /// Certificate shown to clients, and the authority of client certificates. Without it
    /// `common.identity` serves for both.
    pub tls: Option<Identity>,
    /// Bearer tokens, a line each: `token,user,uid,"group1,group2"`.
    /// Read again when it changes.
    pub token_file: Option<PathBuf>,
    /// An issuer whose JSON Web Tokens are believed.
    pub oidc: Option<OidcConfig>,
    /// A cluster whose kube-apiserver passes requests on to this server, and whose users are
    /// believed.
    pub aggregation: Option<AggregationConfig>,
    /// Whether health and version may be read by anyone.
    pub anonymous_health: bool,
    /// Whether requests without credentials are asked of authorization, as `system:anonymous` in
    /// the group `system:unauthenticated`.
    pub anonymous: bool,
    /// Where the record of what was asked goes.
    pub audit: AuditConfig,
    /// The Kubernetes version that clients are told, for example `1.32.0`.
    pub kubernetes_version: String,
    /// Postgres URL of the ledger.
    pub database_url: String,
    /// Most connections to Postgres, the listener's not counted.
    pub connections_max: u32,
    /// The services that are woken up after a change.
    pub peers: PeerAddresses,
    /// What clients may ask for, and how much at once.
    pub limits: Limits,
}

/// Whose JSON Web Tokens are believed; kube-apiserver's `--oidc-*` flags, under their names.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcConfig {
    /// URL of the issuer, `https://...`, just as it stands in the tokens.
    pub issuer_url: String,
    /// A token is good when it is meant for one of these.
    pub client_ids: Vec<String>,
    /// The claim that names the user.
    #[serde(default = "sub")]
    pub username_claim: String,
    /// Stands before the name. If absent, the issuer's URL and `#`, and nothing for the claim
    /// `email`; `-` is nothing in any case.
    #[serde(default)]
    pub username_prefix: Option<String>,
    /// The claim that lists the user's groups.
    #[serde(default)]
    pub groups_claim: Option<String>,
    /// Stands before each group.
    #[serde(default)]
    pub groups_prefix: String,
    /// Claims that a token must have, with their values.
    #[serde(default)]
    pub required_claims: BTreeMap<String, String>,
    /// Authorities of the issuer's certificate, PEM. If absent, those of the host.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Signatures that are accepted.
    #[serde(default = "rs256")]
    pub signing_algs: Vec<String>,
    /// The issuer's keys, where the issuer isn't asked for them. Read again when it changes.
    #[serde(default)]
    pub jwks_file: Option<PathBuf>,
}

fn sub() -> String {
    "sub".to_owned()
}

fn rs256() -> Vec<String> {
    vec!["RS256".to_owned()]
}

/// How the cluster is asked who its users are and what they may do. The defaults are those of a pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AggregationConfig {
    /// URL of its API, `https://...`.
    pub server: String,
    /// Authorities of its API's certificate, PEM. Read again when it changes.
    pub ca_file: PathBuf,
    /// Bearer token of who asks. Read again when it changes.
    pub token_file: PathBuf,
}

impl Default for AggregationConfig {
    fn default() -> Self {
        let account = PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount");
        Self {
            server: "https://kubernetes.default.svc".to_owned(),
            ca_file: account.join("ca.crt"),
            token_file: account.join("token"),
        }
    }
}

/// Where the record of each change and each refusal goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// A file, one event a line; none when absent. Older ones are named `FILE.1`, `FILE.2`, ...
    pub file: Option<PathBuf>,
    /// Bytes after which a new file begins.
    pub file_bytes_max: u64,
    /// How many older files are kept.
    pub files_kept: u32,
    /// Whether the ledger keeps it too.
    pub ledger: bool,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            file: None,
            file_bytes_max: AUDIT_FILE_BYTES,
            files_kept: AUDIT_FILES_KEPT,
            ledger: true,
        }
    }
}

/// Where the other services listen, one URL for each replica.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeerAddresses {
    /// Schedulers.
    pub scheduler: Vec<String>,
    /// Migration-coordinators.
    pub coordinator: Vec<String>,
    /// Maintenance-services.
    pub maintenance: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            common: Common::at(ADMIN_PORT),
            bind: SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)),
            tls: None,
            token_file: None,
            oidc: None,
            aggregation: None,
            anonymous_health: true,
            anonymous: false,
            audit: AuditConfig::default(),
            kubernetes_version: "1.32.0".to_owned(),
            database_url: "postgres:///godwit".to_owned(),
            connections_max: CONNECTIONS_MAX,
            peers: PeerAddresses::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for PeerAddresses {
    fn default() -> Self {
        Self {
            scheduler: vec!["https://localhost:7101".to_owned()],
            coordinator: vec!["https://localhost:7102".to_owned()],
            maintenance: vec!["https://localhost:7103".to_owned()],
        }
    }
}

impl ServiceConfig for Config {
    fn common(&self) -> &Common {
        &self.common
    }

    fn validate(&self) -> Result<(), String> {
        self.limits.validate()
    }
}
