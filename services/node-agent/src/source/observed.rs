//! What QEMU says of a copy: events as they come, answers when asked, all of it after a restart.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use godwit_model::Epoch;
use godwit_model::migration::fact::Progress;
use godwit_model::migration::grant::Refusal;
use godwit_model::migration::source::{CopyStatus, SourceEvent, SourceState};
use godwit_qemu::qmp::{MigrationInfo, MigrationStatus, RunState};
use godwit_qemu::{Event, Qmp, QmpError, Stamped, migrate};

use super::{Note, Owner, not_now};
use crate::half::{self, HalfError};
use crate::machines::Machine;
use crate::proof;
use crate::text::chain;

/// Longest wait for what a QEMU that has ended wrote before.
const LAST_WORDS: Duration = Duration::from_millis(200);

impl Owner {
    pub(super) async fn event(&mut self, event: Option<Stamped>) -> Result<(), HalfError> {
        let Some(stamped) = event else {
            self.events = None;
            self.poll_at = Some(Instant::now());
            return Ok(());
        };
        match &stamped.event {
            Event::Migration(status) => {
                let completed = *status == MigrationStatus::Completed;
                let serves = *status == MigrationStatus::PostcopyActive;
                if (completed || serves) && self.line.completed_at_us.is_none() {
                    self.line.completed_at_us = Some(half::micros(&stamped));
                }
                if completed {
                    self.end_pass(half::moment(&stamped));
                }
                if *status == MigrationStatus::PreSwitchover {
                    self.bear_last_pages();
                }
                let status = self.status(*status).await;
                self.feed(SourceEvent::Copy(status)).await?;
                if completed || serves {
                    // For the last numbers, out of the way of the proof.
                    self.poll();
                }
            }
            Event::MigrationPass(pass) => {
                self.line.progress.passes = u32::try_from(*pass).unwrap_or(u32::MAX);
                self.begin_pass(half::moment(&stamped));
                if *pass > 1 && self.resending.is_none() {
                    let limits = self
                        .line
                        .copy
                        .as_ref()
                        .map(|copy| copy.limits(Duration::ZERO));
                    self.resending = limits.map(|limits| (Instant::now(), limits));
                }
                self.try_postcopy();
                self.poll();
            }
            Event::Stop if self.is_copying() => {
                self.line.stopped_at_us = Some(half::micros(&stamped));
                self.publish();
            }
            Event::Missed => self.poll_at = Some(Instant::now()),
            Event::Stop
            | Event::Resume
            | Event::Shutdown { .. }
            | Event::Powerdown
            | Event::Reset
            | Event::GuestPanicked
            | Event::BlockIoError { .. }
            | Event::Other(_) => {}
        }
        Ok(())
    }

    /// An event's status with what only a question tells: why a copy failed, and whether one that was
    /// said to serve was cancelled before that was read.
    pub(super) async fn status(&self, status: MigrationStatus) -> CopyStatus {
        let info = MigrationInfo {
            status,
            ..MigrationInfo::default()
        };
        if status != MigrationStatus::Failed && !status.is_postcopy() {
            return info.copy_status();
        }
        match self.qmp().await {
            Ok(qmp) => qmp.query_migrate().await.unwrap_or(info).copy_status(),
            Err(_) => info.copy_status(),
        }
    }

    pub(super) async fn exited(&mut self) -> Result<(), HalfError> {
        // Its last words first: it may have completed before it died.
        while let Ok(Some(stamped)) = timeout(LAST_WORDS, half::next_event(&mut self.events)).await
        {
            self.event(Some(stamped)).await?;
        }
        self.vm = None;
        self.events = None;
        self.feed(SourceEvent::Gone).await
    }

    /// Allows a longer blackout when it shows that the copy takes it.
    fn plan_blackout(&mut self) {
        let (Some((since, had)), Some(copy)) = (&mut self.resending, &self.line.copy) else {
            return;
        };
        let limits = copy.limits(since.elapsed());
        let Some(vm) = self.vm.clone().filter(|_| limits != *had) else {
            return;
        };
        *had = limits;
        let job = self.job.clone();
        tokio::spawn(async move {
            let planned = match vm.monitor().await {
                Ok(qmp) => migrate::set_limits(&qmp, limits).await,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = planned {
                warn!(%job, %error, "the copy goes on with a shorter blackout than allowed");
            }
        });
    }

    /// Lets QEMU plan for a blackout of `limit` at once. Under the epoch of an owner that was
    /// replaced, or where nothing is copied, nothing changes.
    pub(super) async fn raise_downtime(
        &mut self,
        epoch: Epoch,
        limit: Duration,
    ) -> Result<(), HalfError> {
        let seen = self.line.half.epoch();
        if epoch < seen {
            return Err(Refusal::Fenced { mine: epoch, seen }.into());
        }
        let copying = self.line.half.state() == SourceState::Copying;
        let Some(copy) = self.line.copy.as_mut().filter(|_| copying) else {
            return Ok(());
        };
        let had = copy.limits(Duration::ZERO);
        copy.downtime = limit.max(copy.downtime);
        copy.at_once = true;
        // A restarted agent goes on with it.
        self.log.append(&self.line).await?;
        self.resending = Some((Instant::now(), had));
        self.plan_blackout();
        Ok(())
    }

    /// Gives the last pages the time that they need by what was sent and is left, with a wide
    /// margin, but no more than the guest may stand still.
    fn bear_last_pages(&mut self) {
        const MARGIN: u64 = 3;
        let Some(copy) = &self.line.copy else { return };
        let Progress {
            remaining,
            throughput,
            ..
        } = self.line.progress;
        let needed = remaining.0.saturating_mul(MARGIN).checked_div(throughput);
        let needed = needed.map_or(copy.downtime, Duration::from_secs);
        self.line.half.bear(needed.min(copy.downtime));
    }

    /// Asks QEMU in a task of its own: it may be slow exactly when an event matters.
    pub(super) fn poll(&mut self) {
        self.poll_at = None;
        self.plan_blackout();
        let Some(vm) = self.vm.clone().filter(|_| !self.polling) else {
            return;
        };
        self.polling = true;
        let notes = self.notes.clone();
        tokio::spawn(async move {
            let answer = match vm.monitor().await {
                Ok(qmp) => ask(&qmp).await,
                Err(error) => Err(error),
            };
            let _ = notes.send(Note::Polled(Box::new(answer))).await;
        });
    }

    pub(super) async fn note(&mut self, note: Note) -> Result<(), HalfError> {
        match note {
            Note::Polled(answer) => self.polled(*answer).await,
            Note::Confirmed(outcome) => self.confirmed(outcome).await,
            Note::Recovered(outcome) => {
                self.recovered(outcome);
                Ok(())
            }
            Note::Proof(proof::Outcome::Taken) => self.feed(SourceEvent::ProofTaken).await,
            Note::Proof(proof::Outcome::Refused(why)) => {
                info!(job = %self.job, why, "the target has no use for the proof");
                Ok(())
            }
        }
    }

    pub(super) async fn polled(
        &mut self,
        answer: Result<(MigrationInfo, RunState), QmpError>,
    ) -> Result<(), HalfError> {
        self.polling = false;
        let ended = self.line.half.state() == SourceState::Completed;
        let serves = self.line.half.state() == SourceState::Serving;
        if !self.begun || !(ended || serves || self.is_copying()) {
            return Ok(());
        }
        if !ended {
            self.poll_at = Some(Instant::now() + half::POLL_EVERY);
        }
        let (info, runstate) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                warn!(job = %self.job, %error, "qemu does not answer");
                return Ok(());
            }
        };
        self.listen().await;
        let progress = info.progress();
        if progress.total.0 > 0 {
            self.line.progress = progress;
            self.tell_passes();
            if let Some(labels) = &self.labels {
                self.host.metrics.copying(labels, &progress);
            }
        }
        if serves {
            self.mind_link(&info);
        }
        let mut status = of_this_copy(&info, runstate);
        if status == CopyStatus::None {
            status = CopyStatus::Failed("the copy did not begin".to_owned());
        }
        self.feed(SourceEvent::Copy(status)).await?;
        self.try_postcopy();
        Ok(())
    }

    /// Listens again when the connection to QEMU was made anew.
    pub(super) async fn listen(&mut self) {
        if self.events.is_some() {
            return;
        }
        if let Some(vm) = &self.vm {
            self.events = vm.events().await.ok().map(|(_, events)| events);
        }
    }

    /// After a restart: finds out what became of the QEMU of this job, and feeds the model that.
    pub(super) async fn adopt(&mut self) -> Result<(), HalfError> {
        let state = self.line.half.state();
        let machine = self.host.machine(&self.machine_id);
        let view = machine.as_ref().map(Machine::view);
        // Only the last job that held the machine may act on its QEMU: an older one's status is
        // not this QEMU's, and a machine that came back must not be touched by the job it left by.
        let last = view
            .as_ref()
            .is_some_and(|view| view.job.as_ref() == Some(&self.job));
        let vm = view.and_then(|view| view.vm);
        let vm = vm.filter(|vm| last && Some(vm.identity()) == self.line.process.as_ref());
        if let Some(machine) = machine.filter(|_| last) {
            self.take(machine);
        }
        let Some(vm) = vm else {
            return match state {
                SourceState::Copying | SourceState::Switching | SourceState::Serving => {
                    self.feed(SourceEvent::Gone).await
                }
                SourceState::Completed | SourceState::Retired if last => {
                    self.feed(SourceEvent::Adopted(CopyStatus::Completed)).await
                }
                SourceState::ServerLost => {
                    self.settle().await;
                    Ok(())
                }
                SourceState::Absent
                | SourceState::Completed
                | SourceState::Resumed
                | SourceState::Retired
                | SourceState::Lost => Ok(()),
            };
        };
        if let Some(machine) = &self.machine
            && matches!(
                state,
                SourceState::Copying
                    | SourceState::Switching
                    | SourceState::Serving
                    | SourceState::ServerLost
                    | SourceState::Completed
            )
        {
            machine
                .hold(&self.job)
                .await
                .map_err(|error| not_now(&chain(&error)))?;
        }
        self.vm = Some(vm.clone());
        self.dial();
        let (qmp, events) = vm.events().await.map_err(|error| not_now(&chain(&error)))?;
        self.events = Some(events);
        let (info, runstate) = ask(&qmp).await.map_err(|error| not_now(&chain(&error)))?;
        let status = of_this_copy(&info, runstate);
        self.begun = status != CopyStatus::None;
        self.poll_at = Some(Instant::now());
        self.feed(SourceEvent::Adopted(status)).await
    }
}

async fn ask(qmp: &Qmp) -> Result<(MigrationInfo, RunState), QmpError> {
    let (info, status) = tokio::join!(qmp.query_migrate(), qmp.query_status());
    Ok((info?, status?.status))
}

/// The status, unless it is what an earlier copy left: a QEMU that was reverted says `completed`
/// until its next copy, while its guest runs.
fn of_this_copy(info: &MigrationInfo, runstate: RunState) -> CopyStatus {
    match (info.copy_status(), runstate) {
        (CopyStatus::Completed, RunState::PostMigrate | RunState::FinishMigrate) => {
            CopyStatus::Completed
        }
        (CopyStatus::Completed, _) => CopyStatus::None,
        (status, _) => status,
    }
}
