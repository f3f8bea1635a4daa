//! What a service shows its peers and whom it believes, renewed while it runs.
//!
//! A connection has what was in force at its handshake, and keeps it: renewing breaks none.

use std::fmt;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use godwit_runtime::config::Common;
use godwit_runtime::metrics::Metrics;
use godwit_runtime::{Identity, Pem, Reading, Reloaded};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

/// The protocol that is spoken over TLS.
const HTTP2: &[u8] = b"h2";

/// A service's certificate and the authorities of its peers. Cheap to clone.
#[derive(Clone)]
pub struct Credentials(Reloaded<Sides>);

/// Both sides of TLS.
struct Sides {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Credentials {
    /// What is configured, followed until `shutdown`; `None` only when running without TLS is asked
    /// for.
    ///
    /// # Errors
    /// When neither is configured, or the files can't be used.
    pub fn of(
        common: &Common,
        life: (&Metrics, &CancellationToken),
    ) -> anyhow::Result<Option<Self>> {
        let identity = common.identity()?;
        identity.map(|own| Self::follow(own, life)).transpose()
    }

    /// Reads the files of `identity`, and follows them until `shutdown`.
    ///
    /// # Errors
    /// When the files can't be used.
    pub fn follow(
        identity: &Identity,
        life: (&Metrics, &CancellationToken),
    ) -> anyhow::Result<Self> {
        let sides = identity.follow(life, sides);
        Ok(Self(sides.context("use the certificates")?))
    }

    /// Reads the files once: for who soon ends.
    ///
    /// # Errors
    /// When the files can't be used.
    pub fn read(identity: &Identity) -> anyhow::Result<Self> {
        let pem = identity.read().context("read the certificates")?;
        let sides = sides(&pem, Reading::First).context("use the certificates")?;
        Ok(Self(Reloaded::fixed(sides)))
    }

    /// Whether services would take these.
    ///
    /// # Errors
    /// Why not.
    pub fn check(pem: &Pem, reading: Reading) -> anyhow::Result<()> {
        sides(pem, reading).map(drop)
    }

    /// For the next client.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.0.get().server))
    }

    /// For the next server.
    pub(crate) fn connector(&self) -> TlsConnector {
        TlsConnector::from(Arc::clone(&self.0.get().client))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

fn sides(pem: &Pem, reading: Reading) -> anyhow::Result<Sides> {
    let chain = certificates(&pem.cert).context("decode the certificate")?;
    let key = PrivateKeyDer::from_pem_slice(&pem.key).context("decode the private key")?;
    let mut roots = RootCertStore::empty();
    for authority in certificates(&pem.ca).context("decode the authorities")? {
        roots.add(authority).context("use an authority")?;
    }
    let roots = Arc::new(roots);
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .context("use the authorities")?;
    if reading == Reading::Again {
        // Peers believe whom we believe: they would refuse what our own authorities don't know.
        let (own, between) = chain.split_first().context("there is no certificate")?;
        let known = verifier.verify_client_cert(own, between, UnixTime::now());
        known.context("the certificate is none of the authorities'")?;
    }
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key.clone_key());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key);
    let mut server = server.context("certificate and key don't go together")?;
    let mut client = client.context("certificate and key don't go together")?;
    server.alpn_protocols = vec![HTTP2.to_vec()];
    client.alpn_protocols = vec![HTTP2.to_vec()];
    Ok(Sides {
        server: Arc::new(server),
        client: Arc::new(client),
    })
}

fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_slice_iter(pem);
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>()?;
    ensure!(!certificates.is_empty(), "there is none");
    Ok(certificates)
}
