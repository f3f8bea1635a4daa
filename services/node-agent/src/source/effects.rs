//! What the model orders of a source, carried out.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::warn;

use godwit_model::migration::grant::{ProcessIdentity, Proof};
use godwit_model::migration::source::{CopyStatus, SourceEffect, SourceEvent, SourceState};
use godwit_qemu::Qmp;
use godwit_qemu::migrate::{self, MigrateError};
use godwit_rpc::convert::proof_to_wire;
use godwit_runtime::failpoint;

use super::{Note, Owner};
use crate::half::{self, HalfError};
use crate::proof;
use crate::text::chain;

/// Longest wait for the numbers of a copy that is done.
const LAST_NUMBERS: Duration = Duration::from_millis(200);

impl Owner {
    /// Carries one effect out; its outcome may be an event in turn.
    pub(super) async fn perform(
        &mut self,
        effect: SourceEffect,
    ) -> Result<Option<SourceEvent>, HalfError> {
        let state = self.line.half.state().as_str();
        failpoint!("source.{state}.{effect:?}.before");
        let outcome = self.carry_out(effect).await;
        failpoint!("source.{state}.{effect:?}.after");
        outcome
    }

    async fn carry_out(&mut self, effect: SourceEffect) -> Result<Option<SourceEvent>, HalfError> {
        if !matches!(effect, SourceEffect::Journal | SourceEffect::SendProof) {
            // What was tried before is overtaken.
            self.retry = None;
        }
        let outcome = match effect {
            SourceEffect::Journal => {
                let took = self.log.append(&self.line).await?;
                self.host.metrics.fsync(took);
                return Ok(None);
            }
            SourceEffect::SendProof => {
                self.send_proof();
                return Ok(None);
            }
            SourceEffect::BeginCopy => return Ok(self.begin().await),
            SourceEffect::SwitchToPostcopy => match self.qmp().await {
                Ok(qmp) => migrate::switch_to_postcopy(&qmp)
                    .await
                    .map_err(|e| chain(&e)),
                Err(error) => Err(error),
            },
            SourceEffect::ContinueSwitchover => match self.qmp().await {
                // Refused when the copy has ended meanwhile, of which there is an event.
                Ok(qmp) => migrate::continue_switchover(&qmp)
                    .await
                    .map_err(|e| chain(&e)),
                Err(error) => Err(error),
            },
            SourceEffect::CancelCopy => match self.qmp().await {
                Ok(qmp) => migrate::cancel(&qmp).await.map_err(|e| chain(&e)),
                Err(error) => Err(error),
            },
            SourceEffect::ResumeGuest => self.resume().await,
            SourceEffect::EndGuest => self.end_guest(),
            SourceEffect::EndQemu => {
                self.last_numbers().await;
                // With the machine, in the next effect: its own task ends it.
                self.vm = None;
                self.events = None;
                Ok(())
            }
            SourceEffect::DropMachine => self.drop_machine().await,
        };
        if let Err(why) = outcome {
            warn!(job = %self.job, ?effect, why, "not done");
            self.retry = Some((effect, Instant::now() + half::RETRY_AFTER));
        }
        Ok(None)
    }

    pub(super) async fn again(&mut self) -> Result<(), HalfError> {
        let Some((effect, _)) = self.retry.take() else {
            return Ok(());
        };
        let wanted = matches!(
            (effect, self.line.half.state()),
            (
                SourceEffect::CancelCopy
                    | SourceEffect::ContinueSwitchover
                    | SourceEffect::SwitchToPostcopy,
                SourceState::Copying | SourceState::Switching,
            ) | (SourceEffect::EndGuest, SourceState::Lost)
                | (SourceEffect::ResumeGuest, SourceState::Resumed)
                | (SourceEffect::DropMachine, SourceState::Retired)
        );
        if wanted {
            self.perform(effect).await?;
            self.settle().await;
        }
        Ok(())
    }

    pub(super) async fn qmp(&self) -> Result<Qmp, String> {
        let vm = self.vm.as_ref().ok_or_else(|| "no qemu".to_owned())?;
        vm.monitor().await.map_err(|error| chain(&error))
    }

    /// Asks once more how the copy went, before nobody can be asked.
    async fn last_numbers(&mut self) {
        let Ok(qmp) = self.qmp().await else { return };
        if let Ok(Ok(info)) = timeout(LAST_NUMBERS, qmp.query_migrate()).await {
            let progress = info.progress();
            if progress.total.0 > 0 {
                self.line.progress = progress;
                self.tell_passes();
            }
        }
    }

    pub(super) async fn begin(&mut self) -> Option<SourceEvent> {
        let failed = |why: String| Some(SourceEvent::Copy(CopyStatus::Failed(why)));
        let (Some(copy), Some(vm)) = (self.line.copy.clone(), self.vm.clone()) else {
            return failed(std::mem::take(&mut self.obstacle));
        };
        // Listening first: an event that comes before the answer is not lost.
        let qmp = match vm.events().await {
            Ok((qmp, events)) => {
                self.events = Some(events);
                qmp
            }
            Err(error) => return failed(chain(&error)),
        };
        let encrypted = match self.fetch_key(&copy, &vm).await {
            Ok(encrypted) => encrypted,
            Err(why) => return failed(why),
        };
        if let Err(error) = migrate::allow_postcopy(&qmp, self.line.post_copy).await {
            return failed(chain(&error));
        }
        let (limits, directory) = (copy.limits(Duration::ZERO), vm.copy_key());
        let key = encrypted.then_some(directory.as_path());
        let begun = migrate::begin(&qmp, &copy.uri, limits, key).await;
        vm.forget_copy_key();
        self.poll_at = Some(Instant::now() + half::POLL_EVERY);
        match begun {
            Ok(()) => {}
            // The next poll is answered after it, and says whether it began.
            Err(MigrateError::Qmp(error)) if error.is_unknown() => {
                warn!(job = %self.job, %error, "unknown whether the copy began");
            }
            Err(error) => return failed(chain(&error)),
        }
        self.begun = true;
        None
    }

    pub(super) async fn resume(&mut self) -> Result<(), String> {
        let qmp = self.qmp().await?;
        migrate::resume_source(&qmp)
            .await
            .map_err(|error| chain(&error))?;
        if let Err(error) = migrate::announce(&qmp).await {
            warn!(job = %self.job, %error, "resumed guest not announced");
        }
        Ok(())
    }

    pub(super) async fn drop_machine(&mut self) -> Result<(), String> {
        let Some(process) = self.line.process.clone() else {
            return Ok(());
        };
        let machine = self
            .machine
            .clone()
            .or_else(|| self.host.machine(&self.machine_id));
        match machine {
            Some(machine) => machine.remove(process).await.map_err(|error| chain(&error)),
            None => Ok(()),
        }
    }

    /// Brings the connection to the target's agent up, so that the proof finds it warm.
    pub(super) fn dial(&mut self) {
        let Some(copy) = &self.line.copy else { return };
        match self.host.dial(&copy.agent) {
            Ok(channel) => {
                self.peer = Some(channel.clone());
                let (job, node) = (self.job.clone(), copy.node.clone());
                tokio::spawn(async move {
                    if let Err(error) = godwit_rpc::client::warm(channel).await {
                        warn!(%job, %node, %error, "target's agent does not answer yet");
                    }
                });
            }
            Err(error) => warn!(job = %self.job, error = chain(&error), "no way to the target"),
        }
    }

    pub(super) fn send_proof(&mut self) {
        if self
            .sender
            .as_ref()
            .is_some_and(|sender| !sender.is_finished())
        {
            return;
        }
        if self.peer.is_none() {
            self.dial();
        }
        let (Some(process), Some(peer)) = (&self.line.process, self.peer.clone()) else {
            warn!(job = %self.job, "no way to send the proof; the coordinator has to undo");
            return;
        };
        let proof = Proof {
            machine: self.machine_id.clone(),
            job: self.job.clone(),
            source: self.host.config.node.clone(),
            process: ProcessIdentity {
                pid: process.pid,
                start_ticks: process.start_ticks,
                boot_id: process.boot_id.clone(),
            },
        };
        let mut wire = proof_to_wire(&proof, self.line.half.epoch());
        wire.machine_epoch = self.line.machine_epoch.next().0;
        let trace = self.line.copy.as_ref().map(|copy| copy.trace.clone());
        let trace = trace.unwrap_or_default();
        let (notes, metrics) = (self.notes.clone(), self.host.metrics.clone());
        self.sender = Some(tokio::spawn(async move {
            let outcome = proof::deliver(peer, (wire, &trace), &metrics).await;
            // This half may have ended.
            let _ = notes.send(Note::Proof(outcome)).await;
        }));
    }
}
