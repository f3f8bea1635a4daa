//! The certificate that a service shows, and the authority it believes.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Files of a service's identity, all PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Certificate: organization = role, common name = instance or node.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// The authority that signs every peer.
    pub ca: PathBuf,
}

/// The contents of an [`Identity`].
#[derive(Clone)]
pub struct Pem {
    /// Certificate chain.
    pub cert: Vec<u8>,
    /// Private key.
    pub key: Vec<u8>,
    /// Authority.
    pub ca: Vec<u8>,
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
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    std::fs::read(path)
        .map_err(|error| std::io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}
