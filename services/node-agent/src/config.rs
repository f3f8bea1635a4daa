//! What an agent is configured with.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use godwit_model::{Bytes, NodeName};
use godwit_qemu::probe::{TestKernel, Wish};
use godwit_qemu::process::User;
use godwit_runtime::ServiceConfig;
use godwit_runtime::config::Common;

use crate::cgroup;
use crate::confine;

/// Port of an agent when none is configured.
const PORT: u16 = 7110;

/// Port of its health and metrics when none is configured.
const ADMIN_PORT: u16 = 8110;

/// Longest run directory: sockets in it must stay below the 107 bytes of a unix socket's path.
const RUN_DIR_MAX: usize = 70;

/// The configuration as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What every service has.
    pub common: Common,
    /// Name of this host's node.
    pub node: String,
    /// What must survive a reboot: machines and jobs.
    pub state_dir: PathBuf,
    /// Sockets and logs of the running QEMUs; short, and gone after a reboot.
    pub run_dir: PathBuf,
    /// Where the agent listens.
    pub bind: SocketAddr,
    /// Where others find it, `https://HOST:PORT`; when empty, from `bind`, with `migration_address`
    /// for a `bind` that is every address.
    pub advertise_address: String,
    /// Address of this host on which incoming copies listen.
    pub migration_address: IpAddr,
    /// Whether memory travels encrypted. `false` takes copies in the clear, and sends them so to
    /// hosts that want it no other way.
    pub encrypt_copies: bool,
    /// The schedulers, each told all reports; `https://HOST:PORT`.
    pub schedulers: Vec<String>,
    /// Networks of the cluster that this host has: name to bridge device.
    pub networks: BTreeMap<String, String>,
    /// Directories for disks: name to place.
    pub pools: BTreeMap<String, Pool>,
    /// Directories with kernels: name to path.
    pub images: BTreeMap<String, PathBuf>,
    /// Commands that a rolling maintenance may run here: name to what is run. None unless listed.
    pub hooks: BTreeMap<String, HookCommand>,
    /// Labels of the node.
    pub labels: BTreeMap<String, String>,
    /// How guests run: `auto`, `kvm` or `tcg`.
    pub accel: Wish,
    /// The kernel that decides whether KVM works, for `auto`; this host's own when not set.
    pub kvm_test: Option<TestKernel>,
    /// Memory that no guest gets, in bytes.
    pub memory_reserved: Bytes,
    /// The QEMU binary; looked for on the path when empty.
    pub qemu: PathBuf,
    /// The user that QEMU runs as, the same on all hosts that share disks; as the agent when empty.
    /// Needs an agent that is root, which hands over the disks that are in `pools`.
    pub qemu_user: String,
    /// Whether each QEMU has a control group of its own, with limits: `auto`, where this host can;
    /// `require`; or `off`.
    pub cgroups: cgroup::Wish,
    /// The group, a directory of a cgroup2, that those of the QEMUs are made in; `godwit-agent` at
    /// the top when empty.
    pub cgroup_root: PathBuf,
}

/// A directory for disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Where it is.
    pub path: PathBuf,
    /// Whether all hosts see the same files there.
    #[serde(default)]
    pub shared: bool,
}

/// A command that may be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookCommand {
    /// The program, by its whole path, and its arguments.
    pub command: Vec<String>,
    /// Longest time it may take, seconds.
    #[serde(default = "hook_seconds")]
    pub timeout_seconds: u32,
    /// Whether who asks may add arguments.
    #[serde(default)]
    pub arguments: bool,
    /// Whether it ends with a reboot of this host: it has ended well when the host is up again.
    #[serde(default)]
    pub reboots: bool,
}

const fn hook_seconds() -> u32 {
    600
}

impl HookCommand {
    fn check(&self, name: &str) -> anyhow::Result<()> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        anyhow::ensure!(
            !name.is_empty() && name.bytes().all(plain),
            "hooks.{name}: a name has letters, digits, - and _"
        );
        let program = self.command.first();
        anyhow::ensure!(
            program.is_some_and(|program| program.starts_with('/')),
            "hooks.{name}.command must begin with the whole path of a program"
        );
        anyhow::ensure!(
            self.timeout_seconds > 0,
            "hooks.{name}.timeout_seconds is 0"
        );
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            common: Common::at(ADMIN_PORT),
            node: String::new(),
            state_dir: "/var/lib/godwit".into(),
            run_dir: "/run/godwit".into(),
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)),
            advertise_address: String::new(),
            migration_address: Ipv4Addr::LOCALHOST.into(),
            encrypt_copies: true,
            schedulers: Vec::new(),
            networks: BTreeMap::new(),
            pools: BTreeMap::new(),
            images: BTreeMap::new(),
            hooks: BTreeMap::new(),
            labels: BTreeMap::new(),
            accel: Wish::Auto,
            kvm_test: None,
            memory_reserved: Bytes::mib(512),
            qemu: PathBuf::new(),
            qemu_user: String::new(),
            cgroups: cgroup::Wish::default(),
            cgroup_root: PathBuf::new(),
        }
    }
}

impl ServiceConfig for Config {
    fn common(&self) -> &Common {
        &self.common
    }

    fn validate(&self) -> Result<(), String> {
        self.clone()
            .settings()
            .map(drop)
            .map_err(|error| error.to_string())
    }
}

/// The configuration in force: checked, with nothing left open.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This host's node.
    pub node: NodeName,
    /// See [`Config::state_dir`].
    pub state_dir: PathBuf,
    /// See [`Config::run_dir`].
    pub run_dir: PathBuf,
    /// See [`Config::bind`].
    pub bind: SocketAddr,
    /// See [`Config::advertise_address`].
    pub advertise_address: String,
    /// See [`Config::migration_address`].
    pub migration_address: IpAddr,
    /// See [`Config::encrypt_copies`].
    pub encrypt_copies: bool,
    /// See [`Config::schedulers`].
    pub schedulers: Vec<String>,
    /// See [`Config::networks`].
    pub networks: BTreeMap<String, String>,
    /// See [`Config::pools`].
    pub pools: BTreeMap<String, Pool>,
    /// See [`Config::images`].
    pub images: BTreeMap<String, PathBuf>,
    /// See [`Config::hooks`].
    pub hooks: BTreeMap<String, HookCommand>,
    /// See [`Config::labels`].
    pub labels: BTreeMap<String, String>,
    /// See [`Config::memory_reserved`].
    pub memory_reserved: Bytes,
    /// See [`Config::qemu_user`]; `None` runs QEMU as the agent.
    pub qemu_user: Option<User>,
    /// See [`Config::cgroups`].
    pub cgroups: cgroup::Wish,
    /// See [`Config::cgroup_root`].
    pub cgroup_root: PathBuf,
}

impl Config {
    /// Checks the configuration.
    ///
    /// # Errors
    /// A text that names the key.
    pub fn settings(self) -> anyhow::Result<Settings> {
        let node = NodeName::parse(self.node).map_err(|error| anyhow::anyhow!("node: {error}"))?;
        anyhow::ensure!(
            self.run_dir.as_os_str().len() <= RUN_DIR_MAX,
            "run_dir is longer than {RUN_DIR_MAX} bytes, too long for the sockets in it"
        );
        anyhow::ensure!(
            !self.migration_address.is_unspecified(),
            "migration_address must be an address that other hosts can reach"
        );
        for (name, hook) in &self.hooks {
            hook.check(name)?;
        }
        let identity = self.common.identity()?;
        let scheme = if identity.is_some() { "https" } else { "http" };
        let reached = match self.bind.ip() {
            every if every.is_unspecified() => self.migration_address,
            one => one,
        };
        let advertise_address = match self.advertise_address.as_str() {
            "" => format!("{scheme}://{}", SocketAddr::new(reached, self.bind.port())),
            given => given.to_owned(),
        };
        Ok(Settings {
            node,
            state_dir: self.state_dir,
            run_dir: self.run_dir,
            bind: self.bind,
            advertise_address,
            migration_address: self.migration_address,
            encrypt_copies: self.encrypt_copies,
            schedulers: self.schedulers,
            networks: self.networks,
            pools: self.pools,
            images: self.images,
            hooks: self.hooks,
            labels: self.labels,
            memory_reserved: self.memory_reserved,
            qemu_user: confine::user(&self.qemu_user)?,
            cgroups: self.cgroups,
            cgroup_root: self.cgroup_root,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insecure() -> Config {
        Config {
            node: "worker1".into(),
            common: Common {
                insecure: true,
                ..Common::at(0)
            },
            ..Config::default()
        }
    }

    #[test]
    fn the_address_follows_from_where_it_listens() {
        let settings = insecure().settings().expect("complete");
        assert_eq!(settings.advertise_address, "http://127.0.0.1:7110");
        let everywhere = Config {
            bind: "[::]:7110".parse().expect("an address"),
            migration_address: "2001:db8::11".parse().expect("an address"),
            ..insecure()
        };
        let settings = everywhere.settings().expect("complete");
        assert_eq!(settings.advertise_address, "http://[2001:db8::11]:7110");
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let named = |config: Config| config.settings().expect_err("refused").to_string();
        assert!(
            named(Config {
                node: String::new(),
                ..insecure()
            })
            .contains("node")
        );
        let run_dir = PathBuf::from(format!("/{}", "x".repeat(RUN_DIR_MAX)));
        assert!(
            named(Config {
                run_dir,
                ..insecure()
            })
            .contains("run_dir")
        );
        let migration_address = Ipv4Addr::UNSPECIFIED.into();
        let open = Config {
            migration_address,
            ..insecure()
        };
        assert!(named(open).contains("migration_address"));
        let hook = HookCommand {
            command: vec!["reboot".into()],
            timeout_seconds: 1,
            arguments: false,
            reboots: true,
        };
        let relative = Config {
            hooks: BTreeMap::from([("reboot".to_owned(), hook)]),
            ..insecure()
        };
        assert!(named(relative).contains("hooks.reboot.command"));
        let silent = Config {
            common: Common::at(0),
            ..insecure()
        };
        assert!(named(silent).contains("identity"));
    }
}
