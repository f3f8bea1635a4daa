//! The user in a client certificate: CN is the name, each O a group.
//!
//! The certificate was verified in the TLS handshake.

use std::collections::BTreeMap;
use std::sync::Arc;

use godwit_apimachinery::UserInfo;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::CREDENTIAL_ID;

/// Organizations of our own services. They talk among themselves and are no users: what a host's
/// certificate opens must not be everything that a user may read.
const SERVICES: [&str; 5] = [
    "api-gateway",
    "scheduler",
    "migration-coordinator",
    "maintenance-service",
    "node-agent",
];

/// What the handshake learned about the client; put into each request of the connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct PeerCertificate {
    user: Option<UserInfo>,
    chain: Arc<[CertificateDer<'static>]>,
}

impl PeerCertificate {
    /// Reads a verified chain. Unless it is `ours`, made by our own authority, and has a CN, and is
    /// not for a service, it stands for nobody that we know.
    pub(crate) fn read(chain: &[CertificateDer<'_>], ours: bool) -> Self {
        let user = chain
            .first()
            .filter(|_| ours)
            .and_then(|der| certified(der));
        Self {
            user: user.filter(|user| !user.groups.iter().any(|group| is_service(group))),
            chain: chain.iter().map(|der| der.clone().into_owned()).collect(),
        }
    }

    /// Which of our users the certificate stands for.
    pub(crate) fn user(&self) -> Option<UserInfo> {
        self.user.clone()
    }

    /// All that the client showed, its own certificate first.
    pub(crate) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }
}

fn is_service(group: &str) -> bool {
    SERVICES.contains(&group)
}

/// Whom a certificate in DER form names; `None` without a CN.
pub(crate) fn certified(der: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let groups = certificate.subject().iter_organization();
    Some(UserInfo {
        name: common_name(der)?,
        groups: groups
            .filter_map(|name| name.as_str().ok())
            .map(str::to_owned)
            .collect(),
        extra: BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![fingerprint(der)])]),
        ..UserInfo::default()
    })
}

/// The CN of a certificate in DER form; `None` when there is none.
pub(crate) fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.find_map(|name| name.as_str().ok())?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// Which certificate it was, as kube-apiserver writes it.
fn fingerprint(der: &[u8]) -> String {
    let digest = Sha256::digest(der);
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("X509SHA256={digits}")
}
