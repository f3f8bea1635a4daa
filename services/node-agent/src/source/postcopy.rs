//! Post-copy at the source: when it begins, and how its link is mended.
//!
//! A link that breaks leaves both QEMUs waiting. The source's agent asks the target's where its QEMU
//! listens from now on, and connects its own QEMU again; again and again, since what is not fetched
//! yet is nowhere else.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use godwit_model::Epoch;
use godwit_model::migration::grant::Refusal;
use godwit_model::migration::source::{CopyStatus, SourceEvent, SourceState};
use godwit_qemu::migrate;
use godwit_qemu::qmp::{MigrationInfo, MigrationStatus};
use godwit_rpc::Channel;
use godwit_rpc::agent::v1::agent_client::AgentClient;
use godwit_rpc::agent::v1::{CopyKeyRequest, RecoverCopyRequest};
use godwit_rpc::client::within;
use godwit_runtime::failpoint;

use super::key::parsed;
use super::{Note, Owner};
use crate::half::HalfError;
use crate::host::Host;
use crate::text::chain;
use crate::vm::Vm;

/// First and longest pause between two attempts to mend a link.
const MEND_FIRST: Duration = Duration::from_millis(200);
const MEND_MAX: Duration = Duration::from_secs(10);

/// Longest wait for the target's agent.
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// Longest silence of a link on which pages are to travel, before it is taken for a broken one.
const STALL_MAX: Duration = Duration::from_secs(5);

/// The pass after the first over all memory.
const SECOND_PASS: u32 = 2;

/// The link of a post-copy.
#[derive(Debug, Default)]
pub(super) struct Link {
    /// Whether the target is being asked whether a post-copy may begin.
    confirming: bool,
    /// Whether it is being mended.
    mending: bool,
    /// When it is mended next, and the pause after that.
    next: Option<(Instant, Duration)>,
    /// Bytes that had been sent, and since when no more were.
    still: Option<(u64, Instant)>,
    /// What is wrong with it, for people; empty for a whole one.
    trouble: String,
}

impl Link {
    pub(super) const fn trouble(&self) -> &String {
        &self.trouble
    }
}

impl Owner {
    /// What the coordinator orders, when QEMU has been asked for what it may depend on: a post-copy
    /// that is complete can still be reverted.
    pub(super) async fn ordered(&mut self, event: SourceEvent) -> Result<(), HalfError> {
        let reverts = matches!(event, SourceEvent::Revert { .. });
        if reverts && self.line.half.state() == SourceState::Serving {
            let asked = match self.qmp().await {
                Ok(qmp) => migrate::status(&qmp).await.map_err(|error| chain(&error)),
                Err(error) => Err(error),
            };
            match asked.map(|info| info.copy_status()) {
                Ok(CopyStatus::Completed) => {
                    self.feed(SourceEvent::Copy(CopyStatus::Completed)).await?;
                }
                Ok(_) => {}
                Err(why) => warn!(job = %self.job, why, "qemu not asked before it is ended"),
            }
        }
        self.feed(event).await?;
        self.try_postcopy();
        Ok(())
    }

    /// Keeps the order, for an agent that is restarted, too.
    pub(super) async fn order_postcopy(&mut self, epoch: Epoch) -> Result<(), HalfError> {
        let seen = self.line.half.epoch();
        if epoch < seen {
            return Err(Refusal::Fenced { mine: epoch, seen }.into());
        }
        let copying = self.line.half.state() == SourceState::Copying;
        let Some(copy) = self.line.copy.as_mut().filter(|_| copying) else {
            return Ok(());
        };
        if !copy.post_copy_at_once {
            copy.post_copy_at_once = true;
            self.log.append(&self.line).await?;
        }
        self.try_postcopy();
        Ok(())
    }

    /// Asks the target, when post-copy is wanted, allowed, and all memory was sent once; again and again,
    /// while the copy goes on without.
    pub(super) fn try_postcopy(&mut self) {
        if self.link.confirming || !self.may_postcopy() {
            return;
        }
        if self.peer.is_none() {
            self.dial();
        }
        let Some(peer) = self.peer.clone() else {
            return;
        };
        self.link.confirming = true;
        let wanted = CopyKeyRequest {
            job: Some(self.job_ref()),
            source_node: self.host.config.node.to_string(),
        };
        let notes = self.notes.clone();
        tokio::spawn(async move {
            let mut target = AgentClient::new(peer);
            let answer = target.confirm_postcopy(within(ASK_LIMIT, wanted)).await;
            let outcome = answer.map_err(|status| status.message().to_owned());
            let _ = notes.send(Note::Confirmed(outcome.map(drop))).await;
        });
    }

    fn may_postcopy(&self) -> bool {
        let half = &self.line.half;
        let copying = half.state() == SourceState::Copying && half.allowed() && !half.cancelling();
        let wanted = self
            .line
            .copy
            .as_ref()
            .is_some_and(|copy| copy.post_copy_at_once);
        let ready = self.line.post_copy && self.line.progress.passes >= SECOND_PASS;
        copying && wanted && ready && self.begun
    }

    /// Ends the copy by post-copy when the target has its half, and nothing came between.
    pub(super) async fn confirmed(&mut self, outcome: Result<(), String>) -> Result<(), HalfError> {
        self.link.confirming = false;
        if let Err(why) = outcome {
            warn!(job = %self.job, why, "no post-copy yet: the target does not confirm");
            return Ok(());
        }
        if !self.may_postcopy() {
            return Ok(());
        }
        info!(job = %self.job, "the copy ends by post-copy");
        let epoch = self.line.half.epoch();
        self.feed(SourceEvent::Postcopy { epoch }).await
    }

    /// Ends the QEMU of a guest that can't go on: its machine crashed here.
    pub(super) fn end_guest(&self) -> Result<(), String> {
        match &self.vm {
            Some(vm) => vm.kill().map_err(|error| chain(&error)),
            None => Ok(()),
        }
    }

    /// Looks after the link of a post-copy.
    pub(super) fn mind_link(&mut self, info: &MigrationInfo) {
        if info.status == MigrationStatus::PostcopyPaused {
            self.link.still = None;
            self.mend();
            return;
        }
        let sent = info.progress().transferred.0;
        let now = Instant::now();
        match self.link.still {
            Some((before, since)) if before == sent => {
                if info.status == MigrationStatus::PostcopyActive && since + STALL_MAX <= now {
                    self.link.still = None;
                    self.part();
                }
            }
            Some(_) | None => self.link.still = Some((sent, now)),
        }
        let whole = info.status == MigrationStatus::PostcopyActive && !self.link.mending;
        if whole && !self.link.trouble.is_empty() {
            info!(job = %self.job, "the link of the post-copy is whole again");
            self.link.trouble.clear();
            self.link.next = None;
        }
    }

    /// Gives up a link that is silent: QEMU would wait for as long as TCP does.
    fn part(&self) {
        let Some(vm) = self.vm.clone() else { return };
        let job = self.job.clone();
        warn!(%job, "the link of the post-copy is silent, and given up");
        tokio::spawn(async move {
            let parted = match vm.monitor().await {
                Ok(qmp) => qmp.migrate_pause().await,
                Err(error) => Err(error),
            };
            if let Err(error) = parted {
                warn!(%job, %error, "silent link not given up");
            }
        });
    }

    fn mend(&mut self) {
        let (due, pause) = self
            .link
            .next
            .unwrap_or_else(|| (Instant::now(), MEND_FIRST));
        if self.link.mending || Instant::now() < due {
            return;
        }
        if self.peer.is_none() {
            self.dial();
        }
        let (Some(vm), Some(peer)) = (self.vm.clone(), self.peer.clone()) else {
            return;
        };
        if self.link.trouble.is_empty() {
            warn!(job = %self.job, "the link of the post-copy broke, and is mended");
            "the link of the post-copy broke, and is mended".clone_into(&mut self.link.trouble);
        }
        self.link.mending = true;
        self.link.next = Some((Instant::now() + pause, (pause * 2).min(MEND_MAX)));
        let wanted = RecoverCopyRequest {
            job: Some(self.job_ref()),
            source_node: self.host.config.node.to_string(),
        };
        let (host, notes) = (self.host.clone(), self.notes.clone());
        tokio::spawn(async move {
            failpoint!("source.mend.before");
            let outcome = mend(&host, &vm, (peer, wanted)).await;
            failpoint!("source.mend.after");
            let _ = notes.send(Note::Recovered(outcome)).await;
        });
    }

    /// What an attempt led to; whether the link is whole then, QEMU's status says.
    pub(super) fn recovered(&mut self, outcome: Result<(), String>) {
        self.link.mending = false;
        if let Err(why) = outcome {
            warn!(job = %self.job, why, "the link of the post-copy is not mended yet");
            self.link.trouble = format!("the link of the post-copy broke: {why}");
            self.publish();
        }
    }
}

/// One attempt.
async fn mend(
    host: &Host,
    vm: &Vm,
    (peer, wanted): (Channel, RecoverCopyRequest),
) -> Result<(), String> {
    let mut target = AgentClient::new(peer);
    let answer = target.recover_copy(within(ASK_LIMIT, wanted)).await;
    let point = answer.map_err(|status| status.message().to_owned())?;
    let point = point.into_inner();
    let key = parsed(&point.key).map_err(|status| status.message().to_owned())?;
    let directory = vm.copy_key();
    if let Some(key) = &key {
        vm.put_copy_key(host, key)?;
    }
    let qmp = vm.monitor().await.map_err(|error| chain(&error))?;
    let encryption = key.is_some().then_some(directory.as_path());
    let connected = migrate::connect_again(&qmp, &point.uri, encryption).await;
    vm.forget_copy_key();
    connected.map_err(|error| chain(&error))
}
