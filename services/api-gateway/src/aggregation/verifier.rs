//! Client certificates of more than one authority, which are kept apart.
//!
//! A handshake succeeds when any of them vouches for the client. Which one it was is found out
//! afterwards, by each for itself: for ours once for a connection, for the cluster's at each
//! request, since they may be replaced.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::Cluster;
use super::settings::vouches;
use crate::auth::PeerCertificate;

/// Whose certificates are taken.
#[derive(Clone)]
pub(crate) struct Clients {
    own: Arc<dyn ClientCertVerifier>,
    /// `None` if no cluster has users here.
    cluster: Option<Arc<Cluster>>,
}

impl Clients {
    pub(crate) fn new(own: Arc<dyn ClientCertVerifier>, cluster: Option<Arc<Cluster>>) -> Self {
        Self { own, cluster }
    }

    /// What decides in a handshake.
    pub(crate) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        match &self.cluster {
            None => Arc::clone(&self.own),
            Some(cluster) => Arc::new(Several {
                own: Arc::clone(&self.own),
                cluster: Arc::clone(cluster),
            }),
        }
    }

    /// Who is at the other end, after a handshake that succeeded.
    pub(crate) fn peer(&self, chain: &[CertificateDer<'_>]) -> PeerCertificate {
        let ours = match &self.cluster {
            // Nobody else vouched for it.
            None => true,
            Some(_) => vouches(self.own.as_ref(), chain, UnixTime::now()),
        };
        PeerCertificate::read(chain, ours)
    }
}

/// Our authority, or one of the cluster's.
struct Several {
    own: Arc<dyn ClientCertVerifier>,
    cluster: Arc<Cluster>,
}

impl std::fmt::Debug for Several {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Several").finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Several {
    fn client_auth_mandatory(&self) -> bool {
        self.own.client_auth_mandatory()
    }

    /// None. A client that is told of authorities shows no certificate of another, and these can't
    /// be told, since they change.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        client: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let own = self.own.verify_client_cert(client, between, now);
        let chain = || {
            let chain = std::iter::once(client).chain(between);
            chain.cloned().collect::<Vec<_>>()
        };
        match own {
            Err(_) if self.cluster.knows(&chain(), now) => Ok(ClientCertVerified::assertion()),
            own => own,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        client: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.own.verify_tls12_signature(message, client, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        client: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.own.verify_tls13_signature(message, client, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.own.supported_verify_schemes()
    }
}
