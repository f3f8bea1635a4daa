//! A small certificate authority: a certificate for each service, host and user.
//!
//! For whoever has no authority of their own: `godwit certificates`, the lab and the tests.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use godwit_runtime::Identity;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// File of the authority's certificate.
const CA_CERT: &str = "ca.crt";
/// File of the authority's key.
const CA_KEY: &str = "ca.key";

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
    cert: String,
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
        let (cert_path, key_path) = (dir.join(CA_CERT), dir.join(CA_KEY));
        if !cert_path.exists() {
            let pem = make_ca()?;
            write_private(&key_path, &pem.key)?;
            write_private(&cert_path, &pem.cert)?;
        }
        let cert = std::fs::read_to_string(&cert_path).context("read the authority")?;
        let key = std::fs::read_to_string(&key_path).context("read the authority's key")?;
        let issuer = Issuer::from_ca_cert_pem(&cert, KeyPair::from_pem(&key)?)?;
        Ok(Self {
            dir: dir.to_owned(),
            cert,
            issuer,
        })
    }

    /// The authority's certificate, PEM.
    pub fn cert(&self) -> &str {
        &self.cert
    }

    /// A new certificate for `subject`, good for a client and for a server.
    ///
    /// # Errors
    /// When a name can't stand in a certificate, or there is more than one organization.
    pub fn issue(&self, subject: Subject<'_>) -> anyhow::Result<Pem> {
        // rcgen would keep the last one without a word.
        anyhow::ensure!(
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
        valid_for(&mut params, CERTIFICATE_DAYS)?;
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
        let pem = self.issue(subject)?;
        let identity = Identity {
            cert: self.dir.join(format!("{file}.crt")),
            key: self.dir.join(format!("{file}.key")),
            ca: self.dir.join(CA_CERT),
        };
        write_private(&identity.key, &pem.key)?;
        write_private(&identity.cert, &pem.cert)?;
        Ok(identity)
    }
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

/// From yesterday, since clocks differ, for `days`.
fn valid_for(params: &mut CertificateParams, days: i64) -> anyhow::Result<()> {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let on = |days: i64| -> anyhow::Result<_> {
        let date = today
            .checked_add(days.days())
            .context("reckon the validity")?;
        let (month, day) = (u8::try_from(date.month())?, u8::try_from(date.day())?);
        Ok(rcgen::date_time_ymd(i32::from(date.year()), month, day))
    };
    (params.not_before, params.not_after) = (on(-1)?, on(days)?);
    Ok(())
}

/// Writes a file that only its owner may read.
///
/// # Errors
/// When it can't be written.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("create {}", path.display()))?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("write {}", path.display()))
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
}
