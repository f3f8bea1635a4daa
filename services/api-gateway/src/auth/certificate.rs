//! The user in a client certificate: CN is the name, each O a group.
//!
//! The certificate was verified against the configured CA in the TLS handshake.

use godwit_apimachinery::UserInfo;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What the handshake learned about the client; put into each request of the connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct PeerCertificate(Option<UserInfo>);

impl PeerCertificate {
    /// Reads a verified certificate in DER form. Without a CN it stands for nobody.
    pub(crate) fn read(der: &[u8]) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else {
            return Self::default();
        };
        let subject = certificate.subject();
        let name = subject
            .iter_common_name()
            .find_map(|name| name.as_str().ok());
        let groups = subject
            .iter_organization()
            .filter_map(|name| name.as_str().ok());
        let user = name.filter(|name| !name.is_empty()).map(|name| UserInfo {
            name: name.to_owned(),
            groups: groups.map(str::to_owned).collect(),
            uid: String::new(),
        });
        Self(user)
    }

    /// Who the certificate stands for.
    pub(crate) fn user(&self) -> Option<UserInfo> {
        self.0.clone()
    }
}
