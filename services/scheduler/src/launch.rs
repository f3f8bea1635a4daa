//! Orders to agents about machines: start, stop, forget. Nothing is decided here.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use godwit_ledger::InstanceRow;
use godwit_model::MachineId;
use godwit_model::machine::MachineSpec;
use godwit_rpc::agent::v1::agent_client::AgentClient;
use godwit_rpc::agent::v1::{MachineRef, MachineReport, StartMachineRequest, StopMachineRequest};
use godwit_rpc::{Channel, Credentials, Request, Status, client};

/// Longest wait for a start, which makes devices and a QEMU.
const START_MAX: Duration = Duration::from_secs(30);
/// Longest wait beyond the grace period for a stop.
const STOP_MAX: Duration = Duration::from_secs(15);
/// Longest wait for everything else.
const CALL_MAX: Duration = Duration::from_secs(10);

/// Warm channels to the agents, by address.
#[derive(Debug)]
pub(crate) struct Agents {
    credentials: Option<Credentials>,
    channels: Mutex<HashMap<String, Channel>>,
}

impl Agents {
    /// No channels yet.
    pub(crate) fn new(credentials: Option<Credentials>) -> Self {
        Self {
            credentials,
            channels: Mutex::default(),
        }
    }

    fn client(&self, address: &str) -> Result<AgentClient<Channel>, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Ok(AgentClient::new(channel.clone()));
        }
        let channel = client::connect(address, self.credentials.as_ref())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        channels.insert(address.to_owned(), channel.clone());
        Ok(AgentClient::new(channel))
    }

    /// Starts a machine, or finds it started.
    pub(crate) async fn start(
        &self,
        address: &str,
        (row, spec): (&InstanceRow, &MachineSpec),
        paused: bool,
    ) -> Result<MachineReport, Status> {
        let mut request = Request::new(StartMachineRequest {
            spec: Some(spec.clone().into()),
            epoch: row.epoch.0,
            paused,
        });
        request.set_timeout(START_MAX);
        Ok(self
            .client(address)?
            .start_machine(request)
            .await?
            .into_inner())
    }

    /// Stops a machine, at the latest after `grace`.
    pub(crate) async fn stop(
        &self,
        address: &str,
        row: &InstanceRow,
        grace_seconds: u32,
    ) -> Result<MachineReport, Status> {
        let mut request = Request::new(StopMachineRequest {
            machine: row.uid.to_string(),
            grace_seconds,
            epoch: row.epoch.0,
        });
        request.set_timeout(Duration::from_secs(grace_seconds.into()) + STOP_MAX);
        Ok(self
            .client(address)?
            .stop_machine(request)
            .await?
            .into_inner())
    }

    /// Stops a machine's CPUs, or lets them go on.
    pub(crate) async fn pause(
        &self,
        address: &str,
        machine: &MachineId,
        paused: bool,
    ) -> Result<(), Status> {
        let mut request = Request::new(MachineRef {
            machine: machine.to_string(),
        });
        request.set_timeout(CALL_MAX);
        let mut client = self.client(address)?;
        match paused {
            true => client.pause_machine(request).await,
            false => client.unpause_machine(request).await,
        }
        .map(drop)
    }

    /// Removes what a host keeps of a machine that ended.
    pub(crate) async fn forget(&self, address: &str, machine: &MachineId) -> Result<(), Status> {
        let mut request = Request::new(MachineRef {
            machine: machine.to_string(),
        });
        request.set_timeout(CALL_MAX);
        self.client(address)?
            .forget_machine(request)
            .await
            .map(drop)
    }
}
