//! A small certificate authority: a certificate for each service, host and user.
//!
//! `ca.crt` has every authority that is believed, and the one whose key is `ca.key` issues. While
//! authorities change there are two.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use godwit_runtime::Identity;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::file::{write_private, write_public};

/// File of the authorities' certificates.
const CA_CERT: &str = "ca.crt";
/// File of the key that issues.
const CA_KEY: &str = "ca.key";
/// File of the key that will issue when the authority has changed.
const NEXT_KEY: &str = "ca-next.key";
/// How a certificate ends in PEM.
const END: &str = "-----END CERTIFICATE-----";

/// How long a certificate is good for: what browsers accept at most.
const CERTIFICATE_DAYS: i64 = 825;
/// How long an authority is good for.
const AUTHORITY_DAYS: i64 = 3650;

/// A certificate with its key, both PEM.
#[derive(Debug, Clone)]
pub struct Pem {
    /// The certificate.
    pub cert: String,
    /// The private key.
    pub key: String,
}

/// A certificate authority in a directory.
#[derive(Debug)]
pub struct Ca {
    dir: PathBuf,
    /// All that are believed.
    trusted: Vec<String>,
    /// The one of them that issues.
    own: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Whom a certificate is for.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Common name: instance, node or user.
    pub name: &'a str,
    /// Organization: a role among services, the group of a user. One at most.
    pub organizations: &'a [&'a str],
    /// DNS names and IP addresses that it is served under.
    pub served_as: &'a [String],
}

impl Ca {
    /// The authority in `dir`, made when there is none.
    ///
    /// # Errors
    /// When the files can't be read, written, or make no sense.
    pub fn load_or_create(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        if !dir.join(CA_CERT).exists() {
            let pem = make_ca()?;
            write_private(&dir.join(CA_KEY), &pem.key)?;
            write_public(&dir.join(CA_CERT), &pem.cert)?;
        }
        Self::load(dir)
    }

    /// The authority in `dir`.
    ///
    /// # Errors
    /// When there is none, or the files make no sense.
    pub fn load(dir: &Path) -> anyhow::Result<Self> {
        let cert = std::fs::read_to_string(dir.join(CA_CERT)).context("read the authority")?;
        let key = std::fs::read_to_string(dir.join(CA_KEY)).context("read the authority's key")?;
        let key = KeyPair::from_pem(&key).context("understand the authority's key")?;
        let trusted = blocks(&cert);
        let mut own = None;
        for one in &trusted {
            if has_key(one, &key)? {
                own = Some(one.clone());
            }
        }
        let own = own.with_context(|| format!("{CA_KEY} is of none that is in {CA_CERT}"))?;
        let issuer = Issuer::from_ca_cert_pem(&own, key)?;
        Ok(Self {
            dir: dir.to_owned(),
            trusted,
            own,
            issuer,
        })
    }

    /// The certificates of all authorities that are believed, PEM.
    pub fn cert(&self) -> String {
        self.trusted.concat()
    }

    /// The certificate of the one that issues, PEM.
    pub(super) fn own(&self) -> &str {
        &self.own
    }

    /// Those of all authorities that are believed, each PEM, the newest last.
    pub(super) fn trusted(&self) -> &[String] {
        &self.trusted
    }

    /// First step of a change: another authority is believed, too.
    pub(super) fn trust_both(&self) -> anyhow::Result<()> {
        let pem = make_ca()?;
        write_private(&self.dir.join(NEXT_KEY), &pem.key)?;
        let both = format!("{}{}", self.cert(), pem.cert);
        write_public(&self.dir.join(CA_CERT), &both)
    }

    /// Second step: the other one issues. Its key takes the place of the old one, which is gone.
    ///
    /// Done again it changes nothing.
    pub(super) fn switch(&self) -> anyhow::Result<()> {
        let next = self.dir.join(NEXT_KEY);
        let pem = match std::fs::read_to_string(&next) {
            Ok(pem) => pem,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return self.ensure_switched();
            }
            Err(error) => return Err(error).context("read the next key"),
        };
        let key = KeyPair::from_pem(&pem).context("understand the next key")?;
        let newest = self.trusted.last().context("there is no authority")?;
        ensure!(
            has_key(newest, &key)?,
            "{NEXT_KEY} is not of the last authority in {CA_CERT}"
        );
        write_private(&self.dir.join(CA_KEY), &pem)?;
        std::fs::remove_file(&next).context("remove the next key from its old place")
    }

    /// That the last authority that was added is the one that issues.
    ///
    /// # Errors
    /// When its key isn't here.
    pub(super) fn ensure_switched(&self) -> anyhow::Result<()> {
        let newest = self.trusted.last().is_some_and(|last| *last == self.own);
        ensure!(
            newest,
            "{CA_KEY} is of the old authority, and {NEXT_KEY} is not here: bring it back"
        );
        Ok(())
    }

    /// Third step: who issues is the only one that is believed.
    pub(super) fn drop_old(&self) -> anyhow::Result<()> {
        write_public(&self.dir.join(CA_CERT), &self.own)
    }

    /// A new certificate for `subject`, good for a client and for a server.
    ///
    /// # Errors
    /// When a name can't stand in a certificate, or there is more than one organization.
    pub fn issue(&self, subject: Subject<'_>) -> anyhow::Result<Pem> {
        self.issue_for(subject, CERTIFICATE_DAYS)
    }

    /// As [`Ca::issue`], good for so many days; for none and less it is over already.
    ///
    /// # Errors
    /// As [`Ca::issue`].
    pub fn issue_for(&self, subject: Subject<'_>, days: i64) -> anyhow::Result<Pem> {
        // rcgen would keep the last one without a word.
        ensure!(
            subject.organizations.len() <= 1,
            "a certificate can hold one organization, not {}",
            subject.organizations.len()
        );
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, subject.name);
        for organization in subject.organizations {
            params
                .distinguished_name
                .push(DnType::OrganizationName, *organization);
        }
        for name in subject.served_as {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        valid_for(&mut params, days)?;
        // Strict verifiers, for example Python's, want to know whose key signed.
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Pem {
            cert: cert.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Issues a certificate and writes `NAME.crt` and `NAME.key` beside the authority.
    ///
    /// # Errors
    /// As [`Ca::issue`], or when the files can't be written.
    pub fn issue_files(&self, file: &str, subject: Subject<'_>) -> anyhow::Result<Identity> {
        self.issue_files_for(file, subject, CERTIFICATE_DAYS)
    }

    /// As [`Ca::issue_files`], good for so many days.
    ///
    /// # Errors
    /// As [`Ca::issue_files`].
    pub fn issue_files_for(
        &self,
        file: &str,
        subject: Subject<'_>,
        days: i64,
    ) -> anyhow::Result<Identity> {
        let pem = self.issue_for(subject, days)?;
        let identity = Identity {
            cert: self.dir.join(format!("{file}.crt")),
            key: self.dir.join(format!("{file}.key")),
            ca: self.dir.join(CA_CERT),
        };
        write_private(&identity.key, &pem.key)?;
        write_public(&identity.cert, &pem.cert)?;
        Ok(identity)
    }
}

/// The certificates of a file, each as PEM of its own.
fn blocks(pem: &str) -> Vec<String> {
    let blocks = pem.split_inclusive(END);
    let blocks = blocks.filter(|block| block.contains(END));
    blocks.map(|block| format!("{}\n", block.trim())).collect()
}

fn has_key(cert: &str, key: &KeyPair) -> anyhow::Result<bool> {
    let der = CertificateDer::from_pem_slice(cert.as_bytes()).context("decode an authority")?;
    let (_, cert) = X509Certificate::from_der(&der).context("understand an authority")?;
    let public = cert.public_key().subject_public_key.as_ref();
    Ok(public == key.public_key_raw())
}

fn make_ca() -> anyhow::Result<Pem> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "Godwit authority");
    valid_for(&mut params, AUTHORITY_DAYS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    Ok(Pem {
        cert: cert.pem(),
        key: key.serialize_pem(),
    })
}

/// From yesterday, since clocks differ, for `days`; if that is over already, from long ago.
fn valid_for(params: &mut CertificateParams, days: i64) -> anyhow::Result<()> {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let on = |days: i64| -> anyhow::Result<_> {
        let date = today
            .checked_add(days.days())
            .context("reckon the validity")?;
        let (month, day) = (u8::try_from(date.month())?, u8::try_from(date.day())?);
        Ok(rcgen::date_time_ymd(i32::from(date.year()), month, day))
    };
    (params.not_before, params.not_after) = (on(days.min(0) - 1)?, on(days)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_made_once_and_its_keys_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let first = Ca::load_or_create(dir.path()).expect("made");
        let again = Ca::load_or_create(dir.path()).expect("read");
        assert_eq!(first.cert(), again.cert());
        let subject = Subject {
            name: "worker1",
            organizations: &["node-agent"],
            served_as: &["10.77.0.11".to_owned()],
        };
        let identity = again.issue_files("worker1", subject).expect("issued");
        let mode = std::fs::metadata(&identity.key)
            .expect("written")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_second_organization_is_refused_instead_of_lost() {
        let dir = tempfile::tempdir().expect("a directory");
        let ca = Ca::load_or_create(dir.path()).expect("made");
        let subject = Subject {
            name: "jane",
            organizations: &["dev", "ops"],
            served_as: &[],
        };
        assert!(ca.issue(subject).is_err());
    }

    #[test]
    fn a_key_that_is_of_none_that_is_believed_is_refused() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Ca::load_or_create(dir.path()).unwrap();
        Ca::load_or_create(other.path()).unwrap();
        std::fs::copy(other.path().join(CA_KEY), dir.path().join(CA_KEY)).unwrap();
        let refused = Ca::load(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("of none"), "{refused}");
    }
}
