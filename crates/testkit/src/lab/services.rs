//! The lab's services: their configuration files, ports and names.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use godwit_runtime::Identity;
use serde_json::{Value, json};

use super::network::BRIDGE;
use super::{DATABASE, Lab, Service};
use crate::certs::{Ca, Subject};
use crate::postgres::Postgres;

/// Name of the guests' network in manifests.
const GUEST_NETWORK: &str = "lab-net";
/// Name of the guest's image directory in manifests.
const GUEST_IMAGE: &str = "lab-guest";
/// Kills the service of the pid file `$1` and starts `$3` with the rest, which appends to the log
/// `$2`. The pid file is as [`Service::start`](super::Service::start) writes it.
const RESTART: &str = r#"file=$1; log=$2; shift 2
old=$(sed 's/.*"pid":\([0-9]*\).*/\1/' "$file")
kill -KILL "$old"
# Its ports are free when its first thread is a zombie and its last one is gone.
gone() {
    state=$(sed 's/.*) //' "/proc/$old/stat" 2>/dev/null | cut -c1)
    [ "${state:-Z}" = Z ] && [ "$(ls "/proc/$old/task" 2>/dev/null | wc -l)" -le 1 ]
}
until gone; do sleep 0.02; done
setsid "$@" >>"$log" 2>&1 </dev/null &
started=$(sed 's/.*) //' /proc/$!/stat | cut -d' ' -f20)
printf '{"pid":%s,"started":%s}' $! "$started" >"$file"
echo "restarted as process $!"
"#;
/// Distance of the ports of two labs.
const PORTS_APART: u16 = 20;

/// The port of lab number `index` for what is on `base` in lab 0.
pub(super) fn port(base: u16, index: u8) -> u16 {
    base + PORTS_APART * u16::from(index)
}

impl Lab {
    /// All services, in the order of their start.
    pub fn services(&self) -> Vec<Service> {
        let local = |base| format!("127.0.0.1:{}", self.port(base));
        let mut all = vec![
            self.one("scheduler", "godwit-scheduler", local(8101)),
            self.one(
                "maintenance-service",
                "godwit-maintenance-service",
                local(8103),
            ),
            self.one("api-gateway", "godwit-api-gateway", local(7143)),
        ];
        all.extend((1..=self.options.coordinators).map(|number| {
            let admin = local(8102 + coordinator_offset(number));
            self.one(&coordinator(number), "godwit-migration-coordinator", admin)
        }));
        for number in 1..=self.options.workers {
            let admin = format!("{}:8110", self.network.worker_address(number));
            let agent = self.one(&worker(number), "godwit-node-agent", admin);
            all.push(Service {
                namespace: Some(self.network.worker(number)),
                ..agent
            });
        }
        all
    }

    /// Where the scheduler listens.
    pub fn scheduler_port(&self) -> u16 {
        self.port(7101)
    }

    fn one(&self, name: &str, program: &str, admin: String) -> Service {
        let config = self.options.dir.join("config").join(format!("{name}.toml"));
        Service {
            name: name.to_owned(),
            program: self.options.bin_dir.join(program),
            arguments: vec!["--config".to_owned(), config.display().to_string()],
            namespace: None,
            dir: self.options.dir.clone(),
            admin,
        }
    }

    fn port(&self, base: u16) -> u16 {
        port(base, self.options.index)
    }

    /// Writes every service's certificate and configuration.
    pub(super) fn configure(&self, ca: &Ca, postgres: &Postgres, image: &Path) -> Result<()> {
        let management = self.network.management();
        let peer = |base| format!("https://127.0.0.1:{}", self.port(base));
        let (scheduler, maintenance) = (peer(7101), peer(7103));
        let coordinators: Vec<String> = (1..=self.options.coordinators)
            .map(|number| peer(7102 + coordinator_offset(number)))
            .collect();
        let url = |role: &str| postgres.url_as(DATABASE, &format!("godwit_{role}"));
        self.write(ca, "scheduler", |common| {
            json!({
                "common": common,
                "bind": format!("0.0.0.0:{}", self.port(7101)),
                "database_url": url("scheduler"),
            })
        })?;
        for number in 1..=self.options.coordinators {
            let port = self.port(7102 + coordinator_offset(number));
            self.write(ca, &coordinator(number), |common| {
                json!({
                    "common": common,
                    "bind": format!("127.0.0.1:{port}"),
                    "database_url": url("coordinator"),
                    "scheduler": scheduler,
                })
            })?;
        }
        self.write(ca, "maintenance-service", |common| {
            json!({
                "common": common,
                "bind": format!("127.0.0.1:{}", self.port(7103)),
                "database_url": url("maintenance"),
                "coordinator": coordinators.first(),
            })
        })?;
        self.write(ca, "api-gateway", |common| {
            json!({
                "common": common,
                "bind": format!("127.0.0.1:{}", self.port(6443)),
                "database_url": url("gateway"),
                "peers": {
                    "scheduler": [scheduler],
                    "coordinator": coordinators,
                    "maintenance": [maintenance],
                },
            })
        })?;
        let scheduler = format!("https://{management}:{}", self.port(7101));
        (1..=self.options.workers).try_for_each(|n| self.write_agent(ca, n, (&scheduler, image)))
    }

    fn write_agent(&self, ca: &Ca, number: usize, (scheduler, image): (&str, &Path)) -> Result<()> {
        let name = worker(number);
        let address = self.network.worker_address(number);
        let identity = issue(ca, &name, "node-agent", &[address.to_string()])?;
        let dir = &self.options.dir;
        let run_dir = dir.join("run").join(format!("w{number}"));
        let config = json!({
            "common": self.common(&identity, &format!("{address}:8110")),
            "node": name,
            "state_dir": dir.join("state").join(&name),
            "run_dir": run_dir,
            "bind": format!("{address}:7110"),
            "advertise_address": format!("https://{address}:7110"),
            "migration_address": address,
            "schedulers": [scheduler],
            "networks": { GUEST_NETWORK: BRIDGE, "default": BRIDGE },
            "images": { GUEST_IMAGE: image },
            "hooks": { "restart-agent": { "command": self.restart(&name)? } },
        });
        self.write_file(&name, &config)
    }

    /// The command that restarts a service from inside of its own namespace.
    fn restart(&self, name: &str) -> Result<Value> {
        let service = self.service(name)?;
        let mut command = vec!["/bin/sh", "-ec", RESTART, "restart"]
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        command.push(service.pid_file().display().to_string());
        command.push(service.log().display().to_string());
        command.push(service.program.display().to_string());
        command.extend(service.arguments);
        Ok(json!(command))
    }

    fn write(&self, ca: &Ca, name: &str, config: impl FnOnce(Value) -> Value) -> Result<()> {
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let served_as = [&names[..], &[self.network.management().to_string()]].concat();
        // Several of one role differ by a number.
        let role = name.trim_end_matches(|last: char| last == '-' || last.is_ascii_digit());
        let identity = issue(ca, name, role, &served_as)?;
        let service = self.service(name)?;
        let common = self.common(&identity, &service.admin);
        self.write_file(name, &config(common))
    }

    fn common(&self, identity: &Identity, admin: &str) -> Value {
        let mut common = json!({ "identity": identity, "admin_bind": admin });
        if let Some(endpoint) = &self.options.otlp_endpoint {
            common["otlp_endpoint"] = json!(endpoint);
        }
        common
    }

    fn write_file(&self, name: &str, config: &Value) -> Result<()> {
        let path = self.options.dir.join("config").join(format!("{name}.toml"));
        let text = toml::to_string(config).context("write TOML")?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }
}

/// Name of a coordinator, counted from 1.
fn coordinator(number: u16) -> String {
    match number {
        1 => "migration-coordinator".to_owned(),
        number => format!("migration-coordinator-{number}"),
    }
}

/// Distance of a coordinator's ports from the first one's, clear of the other services'.
const fn coordinator_offset(number: u16) -> u16 {
    match number {
        1 => 0,
        number => 4 + number,
    }
}

fn worker(number: usize) -> String {
    format!("worker{number}")
}

fn issue(ca: &Ca, name: &str, role: &str, served_as: &[String]) -> Result<Identity> {
    ca.issue_files(
        name,
        Subject {
            name,
            organizations: &[role],
            served_as,
        },
    )
}
