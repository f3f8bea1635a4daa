//! The certificate that a service shows, and the authorities it believes.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::metrics::Metrics;
use crate::reload::{Files, Reloaded};

/// Files of a service's identity, all PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Certificate: organization = role, common name = instance or node.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// The authorities that sign peers: one, or the old and the new while they change.
    pub ca: PathBuf,
}

/// The contents of an [`Identity`].
#[derive(Clone)]
pub struct Pem {
    /// Certificate chain.
    pub cert: Vec<u8>,
    /// Private key.
    pub key: Vec<u8>,
    /// Authorities.
    pub ca: Vec<u8>,
}

/// Which time an [`Identity`] is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// At the start: there is nothing better than what is found.
    First,
    /// After a change: what is in force is better than something doubtful.
    Again,
}

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// When one can't be read; the text names it.
    pub fn read(&self) -> std::io::Result<Pem> {
        Ok(Pem {
            cert: read(&self.cert)?,
            key: read(&self.key)?,
            ca: read(&self.ca)?,
        })
    }

    /// What `make` makes of the files, which is made anew when they change, until `shutdown`. Files
    /// that can't be used, or whose certificate is over, leave what was made before in force; the
    /// log and the metrics say so.
    ///
    /// # Errors
    /// When a file can't be read or used at first.
    pub fn follow<T: Send + Sync + 'static>(
        &self,
        (metrics, shutdown): (&Metrics, &CancellationToken),
        make: impl Fn(&Pem, Reading) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<Reloaded<T>> {
        let told = metrics.certificates();
        let (cert, ca) = (self.cert.clone(), self.ca.clone());
        let refused = (told.clone(), cert.clone());
        let mut reading = Reading::First;
        let parse = move |texts: &[String]| {
            let [cert_text, key, ca_text] = texts else {
                anyhow::bail!("three files are needed, not {}", texts.len());
            };
            let pem = Pem {
                cert: cert_text.clone().into_bytes(),
                key: key.clone().into_bytes(),
                ca: ca_text.clone().into_bytes(),
            };
            let ends = ends(&pem.cert)?.first().copied();
            let ends = ends.context("there is no certificate in its file")?;
            let authority_ends = self::ends(&pem.ca)?.into_iter().min();
            let authority_ends = authority_ends.context("there is no authority in its file")?;
            ensure!(
                reading == Reading::First || ends > now(),
                "the certificate is over"
            );
            let made = make(&pem, reading)?;
            reading = Reading::Again;
            told.ends(&cert, ends);
            told.ends(&ca, authority_ends);
            told.read(&cert, now());
            Ok(made)
        };
        let files = Files {
            paths: vec![self.cert.clone(), self.key.clone(), self.ca.clone()],
            parse: Box::new(parse),
            judged: Box::new(move |good| refused.0.refused(&refused.1, !good)),
        };
        Reloaded::of(files, shutdown.clone())
    }
}

/// When each certificate of a file is over, seconds since 1970.
fn ends(pem: &[u8]) -> anyhow::Result<Vec<i64>> {
    let certificates = CertificateDer::pem_slice_iter(pem);
    let ends = certificates.map(|der| {
        let der = der.context("decode a certificate")?;
        let parsed = X509Certificate::from_der(&der);
        let (_, certificate) = parsed.context("understand a certificate")?;
        Ok(certificate.validity().not_after.timestamp())
    });
    ends.collect()
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    std::fs::read(path)
        .map_err(|error| std::io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}
