//! How a copy leaves: encrypted with the target's key, or in the clear where both ends want it so.

use std::time::Duration;

use tracing::{info, warn};

use godwit_qemu::secret::Key;
use godwit_rpc::agent::v1::agent_client::AgentClient;
use godwit_rpc::agent::v1::{CopyKey, CopyKeyRequest, JobRef};
use godwit_rpc::client::{repeat, within};
use godwit_rpc::{Code, Status};

use super::{CopyOrder, Owner};
use crate::vm::Vm;

/// Longest wait for the target's agent.
const KEY_LIMIT: Duration = Duration::from_secs(5);

impl Owner {
    /// Puts the key where QEMU reads it; `false` when the copy is to leave in the clear.
    ///
    /// # Errors
    /// A text for people: this copy may not begin.
    pub(super) async fn fetch_key(&mut self, copy: &CopyOrder, vm: &Vm) -> Result<bool, String> {
        let allowed = !self.host.config.encrypt_copies;
        let given = self.ask_for_key().await.map(|given| {
            self.line.post_copy = copy.post_copy && given.post_copy;
            given.key
        });
        let given = given.and_then(|key| parsed(&key));
        match given {
            Ok(Some(key)) => {
                vm.put_copy_key(&self.host, &key)?;
                info!(job = %self.job, target = %copy.node, "copy is encrypted");
                Ok(true)
            }
            Ok(None) if allowed => {
                warn!(job = %self.job, target = %copy.node, "memory travels in the clear");
                Ok(false)
            }
            Ok(None) => Err(format!(
                "{} takes copies in the clear only (encrypt_copies = false), which this host \
                 does not allow",
                copy.node
            )),
            Err(status) if status.code() == Code::Unimplemented && allowed => {
                warn!(job = %self.job, target = %copy.node, "memory travels in the clear");
                Ok(false)
            }
            Err(status) if status.code() == Code::Unimplemented => Err(format!(
                "the agent of {} is older than this one and can't encrypt copies",
                copy.node
            )),
            Err(status) => Err(format!(
                "ask {} for the key of the copy: {}",
                copy.node,
                status.message()
            )),
        }
    }

    /// This job, as the target's agent is asked about it.
    pub(super) fn job_ref(&self) -> JobRef {
        JobRef {
            machine: self.machine_id.to_string(),
            job: self.job.to_string(),
            epoch: self.line.half.epoch().0,
        }
    }

    async fn ask_for_key(&mut self) -> Result<CopyKey, Status> {
        if self.peer.is_none() {
            self.dial();
        }
        let no_way = || Status::failed_precondition("its address can't be used");
        let client = AgentClient::new(self.peer.clone().ok_or_else(no_way)?);
        let wanted = CopyKeyRequest {
            job: Some(self.job_ref()),
            source_node: self.host.config.node.to_string(),
        };
        let answer = repeat(KEY_LIMIT, |left| {
            let (mut client, request) = (client.clone(), within(left, wanted.clone()));
            async move { client.give_copy_key(request).await }
        });
        Ok(answer.await?.into_inner())
    }
}

/// The key that a target gave; `None` for a copy in the clear.
pub(super) fn parsed(key: &[u8]) -> Result<Option<Key>, Status> {
    if key.is_empty() {
        return Ok(None);
    }
    let strange = || Status::internal("what it gave is no key");
    Key::from_bytes(key).map(Some).ok_or_else(strange)
}
