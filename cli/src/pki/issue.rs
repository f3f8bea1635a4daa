//! `godwit pki init` and `issue`: a directory with everything that TLS needs.

use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::json;

use super::authority::{Ca, Subject};
use super::file::write_private;

/// Every service but the agents, by role.
pub(super) const SERVICES: [&str; 4] = [
    "api-gateway",
    "scheduler",
    "migration-coordinator",
    "maintenance-service",
];
/// The group that may do everything.
const ADMINS: &str = "system:masters";
/// The user that the kubeconfig is for.
pub(super) const ADMIN: &str = "admin";

/// Longest `--secrets`: the names that are made of it must be names of Kubernetes.
const SECRET_NAME_MAX: usize = 200;

/// What the API says that agents are.
const AGENT: &str = "node-agent";

/// What to begin with.
#[derive(Debug, Args)]
pub struct Init {
    /// Directory to write to; an authority that is there already is used again.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// A host: the name of its node and what its agent is reached by. May be repeated.
    #[arg(long = "node", value_name = "NAME=ADDRESS[,ADDRESS...]", value_parser = named)]
    pub nodes: Vec<Named>,
    /// What else a service is reached by, beside its role's name and loopback. May be repeated.
    #[arg(long = "service", value_name = "ROLE=ADDRESS[,ADDRESS...]", value_parser = named)]
    pub services: Vec<Named>,
    /// URL of the API in the administrator's kubeconfig.
    #[arg(long, value_name = "URL", default_value = "https://localhost:6443")]
    pub server: String,
    /// In a pod: keep all in the Secrets NAME-authority, NAME-tls and NAME-node-tls as well.
    ///
    /// They are made in the pod's namespace, as its ServiceAccount. An authority that is there
    /// already is used again.
    #[arg(long, value_name = "NAME", value_parser = secret)]
    pub secrets: Option<String>,
}

/// What to issue.
#[derive(Debug, Args)]
pub struct Issue {
    /// Directory with the authority, to write to.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// A host: the name of its node and what its agent is reached by. May be repeated.
    #[arg(long = "node", value_name = "NAME=ADDRESS[,ADDRESS...]", value_parser = named)]
    pub nodes: Vec<Named>,
    /// A service: what it is reached by, beside its role's name and loopback. May be repeated.
    #[arg(long = "service", value_name = "ROLE=ADDRESS[,ADDRESS...]", value_parser = named)]
    pub services: Vec<Named>,
    /// A user of the API, with a group. May be repeated.
    #[arg(long = "user", value_name = "NAME=GROUP", value_parser = user)]
    pub users: Vec<(String, String)>,
}

/// A name and the addresses that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// A role or a node.
    pub name: String,
    /// DNS names and IP addresses.
    pub addresses: Vec<String>,
}

fn named(text: &str) -> Result<Named, String> {
    let (name, addresses) = text
        .split_once('=')
        .ok_or("not NAME=ADDRESS[,ADDRESS...]")?;
    is_a_file(name)?;
    let addresses: Vec<String> = addresses.split(',').map(str::to_owned).collect();
    if addresses.iter().any(String::is_empty) {
        return Err(format!("{name} has an empty address"));
    }
    Ok(Named {
        name: name.to_owned(),
        addresses,
    })
}

fn user(text: &str) -> Result<(String, String), String> {
    let (name, group) = text.split_once('=').ok_or("not NAME=GROUP")?;
    is_a_file(name)?;
    if group.is_empty() {
        return Err(format!("{name} has no group"));
    }
    Ok((name.to_owned(), group.to_owned()))
}

/// The name becomes the name of a file.
fn is_a_file(name: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(format!("{name:?} can't be the name of a file"));
    }
    Ok(())
}

fn secret(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let ends = text.starts_with('-') || text.ends_with('-');
    if text.is_empty() || text.len() > SECRET_NAME_MAX || ends || !text.bytes().all(plain) {
        return Err(format!("{text:?} can't begin the name of a Secret"));
    }
    Ok(text.to_owned())
}

/// Issues a certificate for each service, each node and the administrator.
///
/// Returns what was issued for, in the order of writing.
///
/// # Errors
/// When a service is unknown, a name can't stand in a certificate, or a file can't be written.
pub fn init(wanted: &Init) -> anyhow::Result<Vec<String>> {
    check(&wanted.services, wanted.nodes.iter().map(|node| &node.name))?;
    let ca = Ca::load_or_create(&wanted.dir)?;
    let mut files = vec!["ca".to_owned()];
    for role in SERVICES {
        let more = wanted
            .services
            .iter()
            .filter(|service| service.name == role);
        let more: Vec<String> = more.flat_map(|service| service.addresses.clone()).collect();
        issue_service(&ca, role, more)?;
        files.push(role.to_owned());
    }
    files.extend(issue_nodes(&ca, &wanted.nodes)?);
    ca.issue_files(ADMIN, subject(ADMIN, &[ADMINS], &[]))?;
    files.push(ADMIN.to_owned());
    write_kubeconfig(&ca, &wanted.dir, &wanted.server)?;
    files.push("kubeconfig".to_owned());
    Ok(files)
}

/// Issues a certificate for each service, node and user that is named.
///
/// Returns what was issued for, in the order of writing.
///
/// # Errors
/// When there is no authority, nothing is named, a service is unknown, a name can't stand in a
/// certificate or is taken, or a file can't be written.
pub fn issue(wanted: &Issue) -> anyhow::Result<Vec<String>> {
    let names = wanted.nodes.iter().map(|node| &node.name);
    let users = wanted.users.iter().map(|(name, _)| name);
    check(&wanted.services, names.chain(users))?;
    let ca = Ca::load(&wanted.dir)?;
    let mut files = vec![];
    for service in &wanted.services {
        issue_service(&ca, &service.name, service.addresses.clone())?;
        files.push(service.name.clone());
    }
    files.extend(issue_nodes(&ca, &wanted.nodes)?);
    for (name, group) in &wanted.users {
        ca.issue_files(name, subject(name, &[group], &[]))?;
        files.push(name.clone());
    }
    anyhow::ensure!(!files.is_empty(), "name a --node, a --service or a --user");
    Ok(files)
}

/// Whether services are known, and the other names free to be names of files.
fn check<'a>(
    services: &[Named],
    mut others: impl Iterator<Item = &'a String>,
) -> anyhow::Result<()> {
    if let Some(unknown) = services
        .iter()
        .find(|s| !SERVICES.contains(&s.name.as_str()))
    {
        anyhow::bail!(
            "{:?} is no service, but {} are",
            unknown.name,
            SERVICES.join(", ")
        );
    }
    if let Some(taken) = others.find(|name| is_taken(name)) {
        anyhow::bail!("nobody can be called {taken:?} here: its file is taken");
    }
    Ok(())
}

fn issue_service(ca: &Ca, role: &str, more: Vec<String>) -> anyhow::Result<()> {
    let mut served_as = vec![role.to_owned(), "localhost".into(), "127.0.0.1".into()];
    served_as.extend(more);
    ca.issue_files(role, subject(role, &[role], &served_as))?;
    Ok(())
}

fn issue_nodes(ca: &Ca, nodes: &[Named]) -> anyhow::Result<Vec<String>> {
    for node in nodes {
        ca.issue_files(&node.name, subject(&node.name, &[AGENT], &node.addresses))?;
    }
    Ok(nodes.iter().map(|node| node.name.clone()).collect())
}

fn is_taken(name: &str) -> bool {
    SERVICES.contains(&name) || ["ca", "ca-next", ADMIN].contains(&name)
}

fn subject<'a>(
    name: &'a str,
    organizations: &'a [&'a str],
    served_as: &'a [String],
) -> Subject<'a> {
    Subject {
        name,
        organizations,
        served_as,
    }
}

/// Writes a kubeconfig for the administrator whose certificate is in `dir`.
pub(super) fn write_kubeconfig(ca: &Ca, dir: &Path, server: &str) -> anyhow::Result<()> {
    let read = |extension: &str| -> anyhow::Result<String> {
        let path = dir.join(format!("{ADMIN}.{extension}"));
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(STANDARD.encode(bytes))
    };
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "godwit",
        "clusters": [{"name": "godwit", "cluster": {
            "server": server,
            "certificate-authority-data": STANDARD.encode(ca.cert()),
        }}],
        "users": [{"name": ADMIN, "user": {
            "client-certificate-data": read("crt")?,
            "client-key-data": read("key")?,
        }}],
        "contexts": [{"name": "godwit", "context": {
            "cluster": "godwit", "user": ADMIN, "namespace": "default",
        }}],
    });
    // A kubeconfig is YAML, and people look into it.
    write_private(&dir.join("kubeconfig"), &serde_yaml_ng::to_string(&config)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubeconfig::Kubeconfig;

    fn wanted(dir: &Path) -> Init {
        Init {
            dir: dir.to_owned(),
            nodes: vec![named("worker1=10.0.0.11,agent1").unwrap()],
            services: vec![named("api-gateway=godwit.example.com").unwrap()],
            server: "https://godwit.example.com:6443".into(),
            secrets: None,
        }
    }

    #[test]
    fn every_part_gets_its_files_and_the_kubeconfig_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let files = init(&wanted(dir.path())).unwrap();
        for name in files.iter().filter(|name| *name != "kubeconfig") {
            for extension in ["crt", "key"] {
                assert!(
                    dir.path().join(format!("{name}.{extension}")).exists(),
                    "{name}"
                );
            }
        }
        let text = std::fs::read_to_string(dir.path().join("kubeconfig")).unwrap();
        let access = Kubeconfig::parse(&text).unwrap().access(None).unwrap();
        assert_eq!(access.server, "https://godwit.example.com:6443");
    }

    #[test]
    fn names_that_would_hurt_are_refused() {
        for bad in [
            "worker1",
            "=10.0.0.1",
            "../ca=10.0.0.1",
            "a/b=x",
            ".=x",
            "worker1=a,,b",
        ] {
            assert!(named(bad).is_err(), "{bad}");
        }
        let dir = tempfile::tempdir().unwrap();
        let mut clash = wanted(dir.path());
        clash.nodes.push(named("ca=10.0.0.1").unwrap());
        assert!(init(&clash).is_err());
        let mut unknown = wanted(dir.path());
        unknown.services.push(named("gateway=10.0.0.1").unwrap());
        assert!(init(&unknown).is_err());
    }
    #[test]
    fn more_is_issued_by_the_authority_that_is_there_and_nothing_else_changes() {
        let dir = tempfile::tempdir().unwrap();
        let mut more = Issue {
            dir: dir.path().to_owned(),
            nodes: vec![named("worker2=10.0.0.12").unwrap()],
            services: vec![],
            users: vec![user("jane=godwit:operators").unwrap()],
        };
        assert!(issue(&more).is_err(), "there is no authority");
        init(&wanted(dir.path())).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let before = (read("ca.crt"), read("worker1.crt"));
        assert_eq!(issue(&more).unwrap(), ["worker2", "jane"]);
        assert_eq!((read("ca.crt"), read("worker1.crt")), before);
        assert!(read("jane.key").contains("PRIVATE KEY"));
        more.users = vec![("admin".to_owned(), "system:masters".to_owned())];
        assert!(issue(&more).is_err(), "the name is taken");
    }
}
