//! The part of a kubeconfig that says where the API is and who we are.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// A kubeconfig file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Kubeconfig {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
    /// Directory that relative paths in it start from.
    #[serde(skip)]
    dir: PathBuf,
}

#[derive(Debug, Deserialize)]
struct NamedContext {
    name: String,
    context: ContextEntry,
}

#[derive(Debug, Deserialize)]
struct ContextEntry {
    cluster: String,
    #[serde(default)]
    user: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Debug, Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
}

#[derive(Debug, Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default)]
    user: User,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
}

/// How to reach the API, with every file read.
#[derive(Clone)]
pub struct Access {
    /// URL of the API.
    pub server: String,
    /// Authority that signed the server's certificate, PEM.
    pub authority: Vec<u8>,
    /// Our certificate and key, PEM; `None` when the user has none.
    pub certificate: Option<(Vec<u8>, Vec<u8>)>,
    /// Bearer token; `None` when the user has none.
    pub token: Option<String>,
}

/// Where a pod finds its ServiceAccount's token, the cluster's authority and its namespace.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

impl Access {
    /// As the ServiceAccount of the pod that this runs in, with the pod's namespace.
    ///
    /// # Errors
    /// When this runs in no pod, or in one without a token.
    pub fn of_pod() -> anyhow::Result<(Self, String)> {
        let address = |name: &str| std::env::var(name).with_context(|| format!("read {name}"));
        let host = address("KUBERNETES_SERVICE_HOST").context("this is no pod of Kubernetes")?;
        let port = address("KUBERNETES_SERVICE_PORT")?;
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        let file = |name: &str| {
            let path = Path::new(SERVICE_ACCOUNT).join(name);
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let access = Self {
            server: format!("https://{host}:{port}"),
            authority: file("ca.crt")?.into_bytes(),
            certificate: None,
            token: Some(file("token")?.trim().to_owned()),
        };
        Ok((access, file("namespace")?.trim().to_owned()))
    }
}

impl Kubeconfig {
    /// Reads `given`, or the first existing file of `KUBECONFIG`, or `~/.kube/config`.
    ///
    /// # Errors
    /// When there is no such file, or it makes no sense.
    pub fn load(given: Option<&Path>) -> anyhow::Result<Self> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => usual_place()?,
        };
        let text = std::fs::read_to_string(&path);
        let text = text.with_context(|| format!("read {}", path.display()))?;
        let mut config =
            Self::parse(&text).with_context(|| format!("understand {}", path.display()))?;
        config.dir = path.parent().map(Path::to_owned).unwrap_or_default();
        Ok(config)
    }

    /// Understands the text of a kubeconfig.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        Ok(serde_yaml_ng::from_str(text)?)
    }

    /// What `context` says, or the current context.
    ///
    /// # Errors
    /// When something that it names is missing or can't be read.
    pub fn access(&self, context: Option<&str>) -> anyhow::Result<Access> {
        let context = self.context(context)?;
        let cluster = self
            .clusters
            .iter()
            .find(|entry| entry.name == context.cluster);
        let cluster = &cluster
            .ok_or_else(|| anyhow!("there is no cluster {:?}", context.cluster))?
            .cluster;
        let user = self.users.iter().find(|entry| entry.name == context.user);
        let user = user.map(|entry| &entry.user);
        let authority = self.read(
            cluster.certificate_authority_data.as_deref(),
            cluster.certificate_authority.as_deref(),
        )?;
        let Some(authority) = authority else {
            bail!(
                "cluster {:?} names no certificate authority",
                context.cluster
            );
        };
        Ok(Access {
            server: cluster.server.clone(),
            authority,
            certificate: user
                .map(|user| self.certificate(user))
                .transpose()?
                .flatten(),
            token: user.and_then(|user| user.token.clone()),
        })
    }

    /// The namespace to work in, of `context` or of the current one.
    ///
    /// # Errors
    /// When there is no such context.
    pub fn namespace(&self, context: Option<&str>) -> anyhow::Result<&str> {
        let context = self.context(context)?;
        Ok(match context.namespace.as_str() {
            "" => "default",
            given => given,
        })
    }

    fn context(&self, name: Option<&str>) -> anyhow::Result<&ContextEntry> {
        let name = name.unwrap_or(&self.current_context);
        let found = self.contexts.iter().find(|entry| entry.name == name);
        let found = found.ok_or_else(|| anyhow!("there is no context {name:?}"))?;
        Ok(&found.context)
    }

    fn certificate(&self, user: &User) -> anyhow::Result<Option<(Vec<u8>, Vec<u8>)>> {
        let certificate = self.read(
            user.client_certificate_data.as_deref(),
            user.client_certificate.as_deref(),
        )?;
        let key = self.read(user.client_key_data.as_deref(), user.client_key.as_deref())?;
        Ok(certificate.zip(key))
    }

    /// Data wins over a file, as in kubectl.
    fn read(&self, data: Option<&str>, path: Option<&Path>) -> anyhow::Result<Option<Vec<u8>>> {
        if let Some(data) = data.filter(|data| !data.is_empty()) {
            return Ok(Some(STANDARD.decode(data).context("decode base64")?));
        }
        let Some(path) = path else {
            return Ok(None);
        };
        let path = self.dir.join(path);
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Some(bytes))
    }
}

fn usual_place() -> anyhow::Result<PathBuf> {
    if let Some(paths) = std::env::var_os("KUBECONFIG").filter(|paths| !paths.is_empty()) {
        let found = std::env::split_paths(&paths).find(|path| path.exists());
        return found.ok_or_else(|| anyhow!("no file of KUBECONFIG exists"));
    }
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    Ok(PathBuf::from(home).join(".kube/config"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
current-context: lab
contexts:
- {name: lab, context: {cluster: lab, user: jane}}
- {name: lost, context: {cluster: nowhere, user: jane, namespace: far}}
clusters:
- {name: lab, cluster: {server: 'https://127.0.0.1:6443', certificate-authority: ca.crt}}
users:
- {name: jane, user: {token: secret}}
";

    #[test]
    fn files_are_looked_for_beside_the_kubeconfig() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), "pem").unwrap();
        std::fs::write(dir.path().join("config"), TEXT).unwrap();
        let config = Kubeconfig::load(Some(&dir.path().join("config"))).unwrap();
        let access = config.access(None).unwrap();
        assert_eq!(access.authority, b"pem");
        assert_eq!(access.token.as_deref(), Some("secret"));
        assert!(access.certificate.is_none());
        assert_eq!(config.namespace(None).unwrap(), "default");
        assert_eq!(config.namespace(Some("lost")).unwrap(), "far");
    }

    #[test]
    fn what_is_missing_is_named() {
        let config = Kubeconfig::parse(TEXT).unwrap();
        for (context, named) in [("lost", "nowhere"), ("other", "other"), ("lab", "ca.crt")] {
            let Err(error) = config.access(Some(context)) else {
                panic!("{context} was accepted");
            };
            assert!(format!("{error:#}").contains(named), "{error:#}");
        }
    }
}
