//! Commands by name, one method each; no rules here.

use super::types::{
    BlockDevice, CpuDefinition, MachineInfo, MigrationInfo, MigrationParameters, StatusInfo,
    Version, VersionInfo,
};
use super::{COMMAND_LIMIT, Qmp, QmpError};
use serde::Deserialize;
use serde_json::{Value, json};
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio::time::timeout;

/// Self-announcement after a switch: frames at about 5, 25, 145, 365 and 685 ms.
const ANNOUNCE_INITIAL_MS: u64 = 20;
const ANNOUNCE_MAX_MS: u64 = 550;
const ANNOUNCE_ROUNDS: u64 = 5;
const ANNOUNCE_STEP_MS: u64 = 100;

/// Which end of a TLS connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// Who listens.
    Server,
    /// Who connects.
    Client,
}

/// A key for TLS that QEMU reads from a file.
#[derive(Debug, Clone, Copy)]
pub struct TlsKey<'a> {
    /// Directory of the file.
    pub directory: &'a Path,
    /// The key's name in that file.
    pub name: &'a str,
    /// Which end this QEMU is.
    pub endpoint: Endpoint,
}

/// GnuTLS' words for the ciphers. By itself QEMU takes ChaCha20, which is three times as slow where
/// CPUs know AES (measured with 7.2: 40 MB/s and 120 MB/s on the same machine).
const TLS_PRIORITY: &str = "NORMAL:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM";

/// One of `query-migrate-capabilities`.
#[derive(Deserialize)]
struct Capability {
    capability: String,
}

/// All fail as [`Qmp::execute`] does.
#[allow(clippy::missing_errors_doc)]
impl Qmp {
    /// `query-status`: what the machine is doing.
    pub async fn query_status(&self) -> Result<StatusInfo, QmpError> {
        self.execute("query-status", Value::Null).await
    }

    /// `cont`: lets the CPUs run. Never without the checks in [`crate::migrate`] on a target.
    pub async fn cont(&self) -> Result<(), QmpError> {
        self.no_result("cont", Value::Null).await
    }

    /// `stop`: stops the CPUs.
    pub async fn stop(&self) -> Result<(), QmpError> {
        self.no_result("stop", Value::Null).await
    }

    /// `quit`: ends the process, now, without telling the guest.
    pub async fn quit(&self) -> Result<(), QmpError> {
        self.no_result("quit", Value::Null).await
    }

    /// `system_powerdown`: presses the power button; the guest decides.
    pub async fn system_powerdown(&self) -> Result<(), QmpError> {
        self.no_result("system_powerdown", Value::Null).await
    }

    /// `system_reset`: resets the machine.
    pub async fn system_reset(&self) -> Result<(), QmpError> {
        self.no_result("system_reset", Value::Null).await
    }

    /// `query-version`.
    pub async fn query_version(&self) -> Result<Version, QmpError> {
        Ok(self
            .execute::<VersionInfo>("query-version", Value::Null)
            .await?
            .into())
    }

    /// `query-machines`: the machine types of this binary.
    pub async fn query_machines(&self) -> Result<Vec<MachineInfo>, QmpError> {
        self.execute("query-machines", Value::Null).await
    }

    /// `query-cpu-definitions`: the CPU models, and what this host lacks for each.
    pub async fn query_cpu_definitions(&self) -> Result<Vec<CpuDefinition>, QmpError> {
        self.execute("query-cpu-definitions", Value::Null).await
    }

    /// `query-block`: the disks and their images.
    pub async fn query_block(&self) -> Result<Vec<BlockDevice>, QmpError> {
        self.execute("query-block", Value::Null).await
    }

    /// `query-migrate`: the migration in either direction.
    pub async fn query_migrate(&self) -> Result<MigrationInfo, QmpError> {
        self.execute("query-migrate", Value::Null).await
    }

    /// Names of the capabilities that this QEMU knows.
    pub async fn migrate_capabilities(&self) -> Result<Vec<String>, QmpError> {
        let listed: Vec<Capability> = self
            .execute("query-migrate-capabilities", Value::Null)
            .await?;
        Ok(listed.into_iter().map(|entry| entry.capability).collect())
    }

    /// `migrate-set-capabilities`. Refused while a migration runs.
    pub async fn migrate_set_capabilities(&self, wanted: &[(&str, bool)]) -> Result<(), QmpError> {
        let list: Vec<Value> = wanted
            .iter()
            .map(|(name, state)| json!({ "capability": name, "state": state }))
            .collect();
        self.no_result("migrate-set-capabilities", json!({ "capabilities": list }))
            .await
    }

    /// `migrate-set-parameters`. Possible while a migration runs.
    pub async fn migrate_set_parameters(
        &self,
        parameters: MigrationParameters,
    ) -> Result<(), QmpError> {
        let arguments = serde_json::to_value(parameters).map_err(|source| QmpError::Answer {
            command: "migrate-set-parameters",
            source,
        })?;
        self.no_result("migrate-set-parameters", arguments).await
    }

    /// `migrate-incoming`: listens.
    pub async fn migrate_incoming(&self, uri: &str) -> Result<(), QmpError> {
        self.no_result("migrate-incoming", json!({ "uri": uri }))
            .await
    }

    /// `getfd`: from now on QEMU has `file`, too, under this name, and none that it had before.
    pub async fn give_file(&self, name: &str, file: OwnedFd) -> Result<(), QmpError> {
        let given = self.exchange("getfd", json!({ "fdname": name }), Some(file));
        let (command, limit) = ("getfd", COMMAND_LIMIT);
        let answer = timeout(limit, given).await;
        answer
            .map_err(|_| QmpError::Timeout { command, limit })?
            .map(drop)
    }

    /// `migrate`: begins a copy.
    pub async fn migrate(&self, uri: &str) -> Result<(), QmpError> {
        self.no_result("migrate", json!({ "uri": uri })).await
    }

    /// `migrate-continue` from pre-switchover.
    pub async fn migrate_continue(&self) -> Result<(), QmpError> {
        self.no_result("migrate-continue", json!({ "state": "pre-switchover" }))
            .await
    }

    /// `migrate_cancel`. Succeeds with nothing to cancel, too.
    pub async fn migrate_cancel(&self) -> Result<(), QmpError> {
        self.no_result("migrate_cancel", Value::Null).await
    }

    /// `announce-self`: teaches switches and the guest where it is.
    pub async fn announce_self(&self) -> Result<(), QmpError> {
        let arguments = json!({
            "initial": ANNOUNCE_INITIAL_MS,
            "max": ANNOUNCE_MAX_MS,
            "rounds": ANNOUNCE_ROUNDS,
            "step": ANNOUNCE_STEP_MS,
        });
        self.no_result("announce-self", arguments).await
    }

    /// `object-add` of a TLS key in `directory`, whose end of a connection this QEMU is. The key
    /// itself never passes this socket.
    pub async fn add_tls_key(&self, id: &str, key: TlsKey<'_>) -> Result<(), QmpError> {
        let mut arguments = json!({
            "qom-type": "tls-creds-psk",
            "id": id,
            "dir": key.directory,
            "priority": TLS_PRIORITY,
            "endpoint": match key.endpoint {
                Endpoint::Server => "server",
                Endpoint::Client => "client",
            },
        });
        match key.endpoint {
            Endpoint::Client => arguments["username"] = json!(key.name),
            // It takes whatever name is in its file.
            Endpoint::Server => {}
        }
        self.no_result("object-add", arguments).await
    }

    /// `object-del`.
    pub async fn remove_object(&self, id: &str) -> Result<(), QmpError> {
        self.no_result("object-del", json!({ "id": id })).await
    }

    async fn no_result(&self, command: &'static str, arguments: Value) -> Result<(), QmpError> {
        self.execute::<Value>(command, arguments).await.map(drop)
    }
}
