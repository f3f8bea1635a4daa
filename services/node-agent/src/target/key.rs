//! The key of a copy: made for each target, kept beside its QEMU, and given to its source alone.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;
use tracing::warn;

use godwit_model::migration::grant::Refusal;
use godwit_model::migration::target::TargetState;
use godwit_model::{Epoch, NodeName};
use godwit_qemu::QmpError;
use godwit_qemu::secret::Key;

use super::{Owner, not_now};
use crate::half::HalfError;
use crate::vm::Vm;

/// How often a QEMU that expects a copy is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Longest silence of one: it has nothing else to do.
const HANG_MAX: Duration = Duration::from_secs(3);

/// Who asks for a key.
#[derive(Debug)]
pub(crate) struct KeyAsked {
    /// Under which owner of the job.
    pub(crate) epoch: Epoch,
    /// For the source on this node.
    pub(crate) source: NodeName,
    /// Where it goes.
    pub(crate) give: oneshot::Sender<Given>,
}

/// What the source of a copy is given.
#[derive(Debug)]
pub(crate) struct Given {
    /// `None` stands for a copy that is taken in the clear.
    pub(crate) key: Option<Key>,
    /// Whether QEMU is ready for a post-copy.
    pub(crate) post_copy: bool,
}

impl Owner {
    /// Gives the key, as often as it is asked for before the copy begins.
    pub(super) fn give_key(&self, asked: KeyAsked) -> Result<(), HalfError> {
        self.only_from(&asked.source)?;
        let (mine, seen) = (asked.epoch, self.line.half.epoch());
        if mine < seen {
            return Err(Refusal::Fenced { mine, seen }.into());
        }
        let waiting = self.line.half.state() == TargetState::Prepared;
        let Some(vm) = self.vm.as_ref().filter(|_| waiting) else {
            return Err(not_now("no copy of this job is waited for here"));
        };
        let key = match self.line.encrypted {
            true => Some(read(&vm.copy_key())?),
            false => None,
        };
        // Whoever asked may be gone.
        let post_copy = self.line.post_copy && self.line.no_post_copy.is_empty();
        let _ = asked.give.send(Given { key, post_copy });
        Ok(())
    }

    /// Watches a QEMU that listens with a key.
    pub(super) fn guard(&self) {
        if let Some(vm) = self.vm.clone().filter(|_| self.line.encrypted) {
            tokio::spawn(guard(vm));
        }
    }

    /// Refuses the word of any node but the job's source.
    pub(super) fn only_from(&self, node: &NodeName) -> Result<(), HalfError> {
        match &self.line.source {
            Some(source) if source != node => Err(HalfError::Denied(format!(
                "the source of this job is {source}, not {node}"
            ))),
            Some(_) | None => Ok(()),
        }
    }
}

/// Ends a QEMU that hangs while a copy is expected. It waits for the first words of whoever connects
/// with its whole main loop (measured with 7.2), so that one who connects first and says nothing
/// would hold it up for ever, and with it the source's QEMU, whose guest goes on once this one ends.
async fn guard(vm: Arc<Vm>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let asked = match vm.monitor().await {
            Ok(qmp) => {
                let asked = qmp.execute_within::<Value>(HANG_MAX, "query-status", Value::Null);
                asked.await
            }
            Err(error) => Err(error),
        };
        match asked {
            // The key goes when the copy has begun.
            Ok(_) if !vm.copy_key().exists() => return,
            Ok(_) => {}
            Err(QmpError::Timeout { .. }) if vm.copy_key().exists() => {
                warn!("qemu hangs with a stranger's connection, and is ended");
                if let Err(error) = vm.kill() {
                    warn!(%error, "qemu could not be ended");
                }
                return;
            }
            Err(_) => return,
        }
    }
}

fn read(directory: &Path) -> Result<Key, HalfError> {
    match Key::read(directory) {
        Ok(Some(key)) => Ok(key),
        Ok(None) => Err(not_now("the key of this copy is gone")),
        Err(error) => Err(not_now(&format!("read the key of this copy: {error}"))),
    }
}
