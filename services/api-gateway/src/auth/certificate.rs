//! The user in a client certificate: CN is the name, each O a group.
//!
//! The certificate was verified against the configured CA in the TLS handshake.

use std::collections::BTreeMap;

use godwit_apimachinery::UserInfo;
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
pub(crate) struct PeerCertificate(Option<UserInfo>);

impl PeerCertificate {
    /// Reads a verified certificate in DER form. Without a CN, or for a service, it stands for
    /// nobody.
    pub(crate) fn read(der: &[u8]) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else {
            return Self::default();
        };
        let subject = certificate.subject();
        let name = subject
            .iter_common_name()
            .find_map(|name| name.as_str().ok());
        let groups: Vec<&str> = subject
            .iter_organization()
            .filter_map(|name| name.as_str().ok())
            .collect();
        let is_service = groups.iter().any(|group| SERVICES.contains(group));
        let user = name
            .filter(|name| !name.is_empty() && !is_service)
            .map(|name| UserInfo {
                name: name.to_owned(),
                groups: groups.iter().map(|&group| group.to_owned()).collect(),
                uid: String::new(),
                extra: BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![fingerprint(der)])]),
            });
        Self(user)
    }

    /// Who the certificate stands for.
    pub(crate) fn user(&self) -> Option<UserInfo> {
        self.0.clone()
    }
}

/// Which certificate it was, as kube-apiserver writes it.
fn fingerprint(der: &[u8]) -> String {
    let digest = Sha256::digest(der);
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("X509SHA256={digits}")
}
