//! A gateway over a real Postgres, and real kubectls to talk to it.
//!
//! No other service runs: a test plays them by writing to the ledger.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use godwit_api_gateway::{Config, Gateway, Limits, PeerAddresses};
use godwit_ledger::{Ledger, LedgerConfig};
use godwit_runtime::metrics::Metrics;
use godwit_runtime::{Context, Identity};
use godwit_testkit::certs::{Ca, Subject};
use godwit_testkit::kubectl::{self, Release};
use godwit_testkit::postgres::Postgres;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Longest run of one kubectl command.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// Users in no group; the token of each is its name and `-token`.
pub(crate) const USERS: [&str; 6] = [
    "to-view",
    "to-edit",
    "to-admin",
    "to-migrate",
    "to-cluster-admin",
    "ann",
];

/// A running gateway with a folder of its own.
pub(crate) struct Api {
    pub(crate) ledger: Ledger,
    pub(crate) address: String,
    dir: TempDir,
    ca: Ca,
    shutdown: CancellationToken,
    pub(crate) metrics: Metrics,
    /// The ledger's database, for its owner.
    pub(crate) database_url: String,
    pub(crate) postgres: Arc<Postgres>,
}

impl Api {
    pub(crate) async fn start() -> Result<Self> {
        Self::start_configured(|_, _| Ok(())).await
    }

    /// As [`Api::start`], with a configuration that `configure` changes; a folder for files is given.
    pub(crate) async fn start_configured(
        configure: impl FnOnce(&mut Config, &Path) -> Result<()>,
    ) -> Result<Self> {
        Self::start_how(|url| Ok(url.to_owned()), configure).await
    }

    /// As [`Api::start`], with these limits.
    pub(crate) async fn start_limited(limits: Limits) -> Result<Self> {
        Self::start_configured(|config, _| {
            config.limits = limits;
            Ok(())
        })
        .await
    }

    /// As [`Api::start`]; the gateway reaches its ledger under the URL that `way` answers.
    pub(crate) async fn start_by_way_of(way: impl FnOnce(&str) -> Result<String>) -> Result<Self> {
        Self::start_how(way, |_, _| Ok(())).await
    }

    async fn start_how(
        way: impl FnOnce(&str) -> Result<String>,
        configure: impl FnOnce(&mut Config, &Path) -> Result<()>,
    ) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("gwapi-").tempdir()?;
        let postgres = tokio::task::spawn_blocking(Postgres::ephemeral).await??;
        let postgres = Arc::new(postgres);
        let url = {
            let postgres = Arc::clone(&postgres);
            tokio::task::spawn_blocking(move || {
                let url = postgres.create_database()?;
                postgres.open_service_logins()?;
                anyhow::Ok(url)
            })
            .await??
        };
        let gateway_url = way(&url)?;
        let ca = Ca::load_or_create(&dir.path().join("ca"))?;
        let served_as = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let server = Subject {
            name: "gateway",
            organizations: &["api-gateway"],
            served_as: &served_as,
        };
        let identity = ca.issue_files("gateway", server)?;
        let mut config = Config {
            bind: "127.0.0.1:0".parse()?,
            tls: Some(identity),
            token_file: Some(write_tokens(dir.path())?),
            // With the rights that it has in production, and no more.
            database_url: gateway_url.replace("//postgres@", "//godwit_gateway@"),
            peers: PeerAddresses {
                scheduler: vec![],
                coordinator: vec![],
                maintenance: vec![],
            },
            common: godwit_runtime::config::Common {
                insecure: true,
                ..Default::default()
            },
            ..Config::default()
        };
        configure(&mut config, dir.path())?;
        let shutdown = CancellationToken::new();
        let metrics = Metrics::default();
        let context = Context {
            config,
            shutdown: shutdown.clone(),
            metrics: metrics.clone(),
            readiness: Default::default(),
            steps: Default::default(),
        };
        let gateway = Gateway::start(context).await?;
        let ledger = Ledger::connect(LedgerConfig {
            url: url.clone(),
            connections_max: 2,
        })
        .await?;
        let api = Self {
            ledger,
            address: format!("https://{}", gateway.address()),
            dir,
            ca,
            shutdown,
            metrics,
            database_url: url,
            postgres,
        };
        api.write_kubeconfigs()?;
        Ok(api)
    }

    /// A client without a kubectl, an administrator.
    pub(crate) fn client(&self) -> Result<godwit_testkit::api::Api> {
        self.member("admin", "system:masters")
    }

    /// A client without a kubectl, a member of `group`.
    pub(crate) fn member(&self, name: &str, group: &str) -> Result<godwit_testkit::api::Api> {
        let identity = self.identity_of(name, group)?;
        let ca = std::fs::read(&identity.ca)?;
        let (cert, key) = (std::fs::read(identity.cert)?, std::fs::read(identity.key)?);
        godwit_testkit::api::Api::at(&self.address, &ca, (&cert, &key))
    }

    /// Files with the certificate of a member of `group`.
    pub(crate) fn identity_of(&self, name: &str, group: &str) -> Result<Identity> {
        let subject = Subject {
            name,
            organizations: &[group],
            served_as: &[],
        };
        self.ca.issue_files(name, subject)
    }

    /// A client of one of [`USERS`], or of nobody.
    pub(crate) fn client_of(&self, user: Option<&str>) -> Result<godwit_testkit::api::Api> {
        let ca = std::fs::read(self.dir.path().join("ca/ca.crt"))?;
        let token = user.map(|user| format!("{user}-token"));
        godwit_testkit::api::Api::with_token(&self.address, &ca, token.as_deref())
    }

    /// A kubectl of one of [`USERS`].
    pub(crate) async fn user(&self, release: Release, user: &str) -> Result<Kubectl> {
        self.write_kubeconfig(user, &json!({"token": format!("{user}-token")}))?;
        self.kubectl(release, user).await
    }

    fn write_kubeconfigs(&self) -> Result<()> {
        let admin = self.identity_of("admin", "system:masters")?;
        let admin = json!({
            "client-certificate": admin.cert, "client-key": admin.key,
        });
        self.write_kubeconfig("admin", &admin)?;
        self.write_kubeconfig("nobody", &json!({}))?;
        self.write_kubeconfig("viewer", &json!({"token": "viewer-token"}))
    }

    fn write_kubeconfig(&self, user: &str, credentials: &Value) -> Result<()> {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {
                "server": self.address,
                "certificate-authority": self.dir.path().join("ca/ca.crt"),
            }}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
        });
        std::fs::write(self.kubeconfig(user), config.to_string()).context("write a kubeconfig")
    }

    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.dir.path().join(format!("{user}.kubeconfig"))
    }

    /// A kubectl of an administrator.
    pub(crate) async fn admin(&self, release: Release) -> Result<Kubectl> {
        self.kubectl(release, "admin").await
    }

    /// A kubectl of somebody who may look, and knows a token.
    pub(crate) async fn viewer(&self, release: Release) -> Result<Kubectl> {
        self.kubectl(release, "viewer").await
    }

    /// A kubectl of somebody who brings a token.
    pub(crate) async fn bearer(&self, release: Release) -> Result<Kubectl> {
        self.kubectl(release, "nobody").await
    }

    async fn kubectl(&self, release: Release, user: &str) -> Result<Kubectl> {
        let program = tokio::task::spawn_blocking(move || program(release)).await??;
        let home = self.dir.path().join(format!("home-{user}-{release:?}"));
        std::fs::create_dir_all(&home)?;
        Ok(Kubectl {
            program,
            kubeconfig: self.kubeconfig(user),
            home,
        })
    }

    /// A file of the test's folder.
    pub(crate) fn file(&self, name: &str, text: &str) -> Result<String> {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn write_tokens(dir: &Path) -> Result<PathBuf> {
    let users = USERS.map(|user| format!("{user}-token,{user},\n")).concat();
    let text = format!("viewer-token,vera,7,\"godwit:viewers\"\n{users}");
    let path = dir.join("tokens.csv");
    std::fs::write(&path, text)?;
    Ok(path)
}

/// One kubectl of one user.
#[derive(Clone)]
pub(crate) struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) ok: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Kubectl {
    fn command(&self, arguments: &[&str]) -> Command {
        let limit = COMMAND_MAX.as_secs().to_string();
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", &limit]).arg(&self.program);
        command
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.home);
        command.stdin(std::process::Stdio::null());
        command
    }

    /// Runs a command to its end, well or not.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Result<Ended> {
        Self::ended(self.command(arguments)).await
    }

    async fn ended(mut command: Command) -> Result<Ended> {
        let output: Output = tokio::task::spawn_blocking(move || command.output()).await??;
        Ok(Ended {
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a script of a shell in which `kubectl` is this one.
    pub(crate) async fn shell(&self, script: &str) -> Result<Ended> {
        let folder = self.program.parent().context("kubectl is in a folder")?;
        let path = std::env::var("PATH").unwrap_or_default();
        let limit = COMMAND_MAX.as_secs().to_string();
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=1", &limit, "sh", "-c", script])
            .env("PATH", format!("{}:{path}", folder.display()))
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.home)
            .stdin(std::process::Stdio::null());
        Self::ended(command).await
    }

    /// Its minor version.
    pub(crate) async fn minor(&self) -> Result<u32> {
        let said = self.ok(&["version", "--client", "-o", "json"]).await?;
        let said: Value = serde_json::from_str(&said)?;
        let minor = said["clientVersion"]["minor"].as_str().unwrap_or_default();
        let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().with_context(|| said.to_string())
    }

    /// Runs a command that must succeed; answers its standard output.
    pub(crate) async fn ok(&self, arguments: &[&str]) -> Result<String> {
        let ended = self.run(arguments).await?;
        ensure!(
            ended.ok,
            "kubectl {}: {}",
            arguments.join(" "),
            ended.stderr
        );
        Ok(ended.stdout)
    }

    /// Runs a command that must fail; answers its standard error.
    pub(crate) async fn fails(&self, arguments: &[&str]) -> Result<String> {
        let ended = self.run(arguments).await?;
        ensure!(
            !ended.ok,
            "kubectl {} succeeded: {}",
            arguments.join(" "),
            ended.stdout
        );
        Ok(ended.stderr)
    }
}

/// The columns of a table, blanks as one.
pub(crate) fn cells(table: &str) -> Vec<Vec<String>> {
    table
        .lines()
        .map(|line| line.split_whitespace().map(str::to_owned).collect())
        .collect()
}

/// An example of the repository.
pub(crate) fn example(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    root.join(name).display().to_string()
}

fn program(release: Release) -> Result<PathBuf> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../lab-cache");
    kubectl::program(&cache, release, &|_| {})
}
