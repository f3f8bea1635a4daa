//! `godwit pki rotate`: new certificates in place of old ones, and new authorities.
//!
//! Nobody may be shown a certificate of an authority that they don't know yet: so a new authority is
//! believed everywhere first, then it issues, and then the old one is forgotten.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use serde_json::Value;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::authority::{Ca, Subject};
use super::issue::{ADMIN, write_kubeconfig};

const DAY_SECONDS: i64 = 24 * 60 * 60;
/// Files of authorities.
const AUTHORITIES: [&str; 2] = ["ca", "ca-next"];

/// What to renew.
#[derive(Debug, Args)]
pub struct Rotate {
    /// Directory that `godwit pki init` wrote to.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Renew certificates that are over within so many days.
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    pub within: u32,
    /// Renew all, however long they are good.
    #[arg(long)]
    pub all: bool,
    /// Change the authority, a step at a time.
    #[arg(long, value_name = "STEP", conflicts_with = "all")]
    pub authority: Option<Step>,
}

/// A step of a change of the authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// Make another authority, which ca.crt names as well; the old one still issues.
    TrustBoth,
    /// Let the new one issue, and renew every certificate.
    Switch,
    /// Forget the old one.
    DropOld,
}

/// Renews; answers what was written.
///
/// # Errors
/// When there is no authority, a step is out of turn, or a file can't be read or written.
pub fn rotate(wanted: &Rotate) -> anyhow::Result<Vec<String>> {
    let dir = wanted.dir.as_path();
    match wanted.authority {
        None => {
            let soon = Timestamp::now().as_second() + i64::from(wanted.within) * DAY_SECONDS;
            renew(dir, |leaf| wanted.all || leaf.ends <= soon)
        }
        Some(Step::TrustBoth) => {
            let ca = Ca::load(dir)?;
            let trusted = ca.trusted().len();
            ensure!(
                trusted == 1,
                "ca.crt has {trusted} authorities: end the last change"
            );
            ca.trust_both()?;
            with_kubeconfig(dir, vec!["ca".to_owned()])
        }
        Some(Step::Switch) => {
            let ca = Ca::load(dir)?;
            ensure!(
                ca.trusted().len() > 1,
                "ca.crt has one authority: begin with trust-both"
            );
            ca.switch()?;
            // Each that the new authority didn't issue is renewed in any case.
            renew(dir, |_| false)
        }
        Some(Step::DropOld) => {
            let ca = Ca::load(dir)?;
            ensure!(ca.trusted().len() > 1, "ca.crt has one authority already");
            let next = dir.join("ca-next.key").exists();
            ensure!(!next, "the new authority does not issue yet: switch first");
            ca.ensure_switched()?;
            let left: Vec<_> = leaves(dir, &ca)?
                .into_iter()
                .filter(|(_, leaf)| !leaf.of_issuer)
                .collect();
            ensure!(
                left.is_empty(),
                "the old authority issued {}: switch again",
                left.into_iter()
                    .map(|(file, _)| file)
                    .collect::<Vec<_>>()
                    .join(", ")
            );
            ca.drop_old()?;
            with_kubeconfig(dir, vec!["ca".to_owned()])
        }
    }
}

/// A certificate that can be renewed.
struct Leaf {
    name: String,
    organizations: Vec<String>,
    served_as: Vec<String>,
    /// Seconds since 1970.
    ends: i64,
    /// Whether it is of the authority that issues.
    of_issuer: bool,
}

/// Renews what is `due`, and what another authority that is believed issued.
fn renew(dir: &Path, due: impl Fn(&Leaf) -> bool) -> anyhow::Result<Vec<String>> {
    let ca = Ca::load(dir)?;
    let mut files = vec![];
    for (file, leaf) in leaves(dir, &ca)? {
        if leaf.of_issuer && !due(&leaf) {
            continue;
        }
        let organizations: Vec<&str> = leaf.organizations.iter().map(String::as_str).collect();
        let subject = Subject {
            name: &leaf.name,
            organizations: &organizations,
            served_as: &leaf.served_as,
        };
        let issued = ca.issue_files(&file, subject);
        issued.with_context(|| format!("renew {file}"))?;
        let admin = file == ADMIN;
        files.push(file);
        // At once: should another one fail, nothing would renew it later.
        if admin {
            files = with_kubeconfig(dir, files)?;
        }
    }
    Ok(files)
}

/// Writes the administrator's kubeconfig anew, if there is one.
fn with_kubeconfig(dir: &Path, mut files: Vec<String>) -> anyhow::Result<Vec<String>> {
    let path = dir.join("kubeconfig");
    if path.exists() {
        let text = std::fs::read_to_string(&path).context("read the kubeconfig")?;
        let config: Value = serde_yaml_ng::from_str(&text).context("understand the kubeconfig")?;
        let server = config["clusters"][0]["cluster"]["server"].as_str();
        let server = server.context("the kubeconfig names no server")?;
        write_kubeconfig(&Ca::load(dir)?, dir, server)?;
        files.push("kubeconfig".to_owned());
    }
    Ok(files)
}

/// Every `NAME.crt` of `dir` that has a `NAME.key` and is of an authority in `ca.crt`, by NAME.
fn leaves(dir: &Path, ca: &Ca) -> anyhow::Result<BTreeMap<String, Leaf>> {
    let own = verifier([ca.own()])?;
    let all = verifier(ca.trusted().iter().map(String::as_str))?;
    let mut leaves = BTreeMap::new();
    let entries = std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("list {}", dir.display()))?
            .path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let (Some(name), Some("crt")) = (name, path.extension().and_then(|end| end.to_str()))
        else {
            continue;
        };
        if AUTHORITIES.contains(&name) || !path.with_extension("key").exists() {
            continue;
        }
        let leaf = read(&path, (own.as_ref(), all.as_ref()));
        if let Some(leaf) = leaf.with_context(|| format!("read {}", path.display()))? {
            leaves.insert(name.to_owned(), leaf);
        }
    }
    Ok(leaves)
}

fn verifier<'a>(
    authorities: impl IntoIterator<Item = &'a str>,
) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(CertificateDer::from_pem_slice(authority.as_bytes())?)?;
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    verifier.build().context("use the authority")
}

/// A certificate by what the authority that issues says of it, and what all do; `None` for one of
/// somebody else.
fn read(
    path: &Path,
    (own, all): (&dyn ClientCertVerifier, &dyn ClientCertVerifier),
) -> anyhow::Result<Option<Leaf>> {
    let der = CertificateDer::from_pem_slice(&std::fs::read(path)?)?;
    let (_, certificate) = X509Certificate::from_der(&der)?;
    let ends = certificate.validity().not_after.timestamp();
    // One that is over is still of who issued it.
    let at = u64::try_from(ends.min(Timestamp::now().as_second()) - 1)?;
    let at = UnixTime::since_unix_epoch(Duration::from_secs(at));
    let is_of =
        |verifier: &dyn ClientCertVerifier| verifier.verify_client_cert(&der, &[], at).is_ok();
    if !is_of(all) {
        return Ok(None);
    }
    let subject = certificate.subject();
    let name = subject.iter_common_name().next();
    let name = name.context("there is no common name")?.as_str()?;
    let organizations = subject.iter_organization();
    let organizations = organizations.map(|group| group.as_str().map(str::to_owned));
    let names = certificate.subject_alternative_name()?;
    let names = names.map(|names| names.value.general_names.as_slice());
    let served_as = names.unwrap_or_default().iter().map(served_as);
    Ok(Some(Leaf {
        name: name.to_owned(),
        organizations: organizations.collect::<Result<_, _>>()?,
        served_as: served_as.collect::<Result<_, _>>()?,
        ends,
        of_issuer: is_of(own),
    }))
}

/// A name as [`Ca::issue`] takes it.
fn served_as(name: &GeneralName<'_>) -> anyhow::Result<String> {
    if let GeneralName::DNSName(name) = name {
        return Ok((*name).to_owned());
    }
    let GeneralName::IPAddress(bytes) = name else {
        anyhow::bail!("{name} can't be issued again");
    };
    let address = match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
        (Ok(four), _) => IpAddr::from(four),
        (_, Ok(sixteen)) => IpAddr::from(sixteen),
        _ => anyhow::bail!("an address has {} bytes", bytes.len()),
    };
    Ok(address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubeconfig::Kubeconfig;
    use crate::pki::{Init, Named, init};

    fn started(dir: &Path) {
        let named = |name: &str, address: &str| Named {
            name: name.to_owned(),
            addresses: vec![address.to_owned()],
        };
        let wanted = Init {
            dir: dir.to_owned(),
            nodes: vec![named("worker1", "10.0.0.11")],
            services: vec![named("api-gateway", "fd00::1")],
            server: "https://godwit.example.com:6443".into(),
            secrets: None,
        };
        init(&wanted).unwrap();
    }

    fn rotated(dir: &Path, authority: Option<Step>) -> anyhow::Result<Vec<String>> {
        rotate(&Rotate {
            dir: dir.to_owned(),
            within: 30,
            all: false,
            authority,
        })
    }

    fn of(dir: &Path, name: &str) -> Leaf {
        let ca = Ca::load(dir).unwrap();
        leaves(dir, &ca).unwrap().remove(name).unwrap()
    }

    fn text(dir: &Path, name: &str) -> String {
        std::fs::read_to_string(dir.join(name)).unwrap()
    }

    #[test]
    fn what_ends_soon_is_renewed_under_the_same_names_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        started(dir);
        assert!(rotated(dir, None).unwrap().is_empty());
        let worker = Subject {
            name: "worker1",
            organizations: &["node-agent"],
            served_as: &[
                "10.0.0.11".to_owned(),
                "fd00::11".to_owned(),
                "w1.lab".to_owned(),
            ],
        };
        let ca = Ca::load(dir).unwrap();
        for days in [29, -1] {
            ca.issue_files_for("worker1", worker, days).unwrap();
            let (old_key, others) = (text(dir, "worker1.key"), text(dir, "scheduler.crt"));
            assert_eq!(rotated(dir, None).unwrap(), ["worker1"]);
            let new = of(dir, "worker1");
            assert_eq!(new.name, "worker1");
            assert_eq!(new.organizations, ["node-agent"]);
            assert_eq!(new.served_as, worker.served_as);
            assert!(new.ends > Timestamp::now().as_second() + 800 * DAY_SECONDS);
            assert_ne!(text(dir, "worker1.key"), old_key);
            assert_eq!(text(dir, "scheduler.crt"), others);
        }
    }

    #[test]
    fn a_pair_of_somebody_else_is_let_be() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        started(dir.path());
        let theirs = Subject {
            name: "godwit.example.com",
            organizations: &[],
            served_as: &["godwit.example.com".to_owned()],
        };
        let public = Ca::load_or_create(other.path()).unwrap();
        for days in [90, -1] {
            public.issue_files_for("public", theirs, days).unwrap();
            for name in ["public.crt", "public.key"] {
                std::fs::copy(other.path().join(name), dir.path().join(name)).unwrap();
            }
            let before = text(dir.path(), "public.crt");
            let all = Rotate {
                dir: dir.path().to_owned(),
                within: 30,
                all: true,
                authority: None,
            };
            assert!(!rotate(&all).unwrap().contains(&"public".to_owned()));
            assert_eq!(text(dir.path(), "public.crt"), before);
        }
    }

    #[test]
    fn a_change_without_its_key_goes_no_further() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        started(dir);
        rotated(dir, Some(Step::TrustBoth)).unwrap();
        let (next, away) = (dir.join("ca-next.key"), dir.join("away"));
        std::fs::rename(&next, &away).unwrap();
        for step in [Step::Switch, Step::DropOld] {
            let refused = rotated(dir, Some(step)).unwrap_err().to_string();
            assert!(refused.contains("bring it back"), "{refused}");
        }
        std::fs::copy(dir.join("scheduler.key"), &next).unwrap();
        assert!(rotated(dir, Some(Step::Switch)).is_err());
        std::fs::rename(&away, &next).unwrap();
        assert_eq!(rotated(dir, Some(Step::Switch)).unwrap().len(), 7);
        rotated(dir, Some(Step::DropOld)).unwrap();
    }

    #[test]
    fn an_authority_changes_in_three_steps_and_in_no_other_order() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        started(dir);
        let before = text(dir, "ca.crt");
        assert!(rotated(dir, Some(Step::Switch)).is_err());
        assert!(rotated(dir, Some(Step::DropOld)).is_err());

        assert_eq!(
            rotated(dir, Some(Step::TrustBoth)).unwrap(),
            ["ca", "kubeconfig"]
        );
        assert!(text(dir, "ca.crt").starts_with(&before));
        assert!(of(dir, "scheduler").of_issuer, "the old one still issues");
        assert!(rotated(dir, Some(Step::TrustBoth)).is_err());
        assert!(rotated(dir, Some(Step::DropOld)).is_err());

        let renewed = rotated(dir, Some(Step::Switch)).unwrap();
        assert_eq!(renewed.len(), 7, "{renewed:?}");
        assert!(rotated(dir, Some(Step::Switch)).unwrap().is_empty());
        assert!(of(dir, "scheduler").of_issuer);

        rotated(dir, Some(Step::DropOld)).unwrap();
        let after = text(dir, "ca.crt");
        assert!(after != before && after.matches("BEGIN").count() == 1);
        let config = Kubeconfig::parse(&text(dir, "kubeconfig")).unwrap();
        let access = config.access(None).unwrap();
        assert_eq!(access.server, "https://godwit.example.com:6443");
        assert!(!dir.join("ca-next.key").exists());
    }
}
