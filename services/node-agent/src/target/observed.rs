//! What QEMU says of an incoming copy: events as they come, answers when asked, all of it after a
//! restart.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use godwit_model::migration::target::{LoadStatus, TargetEvent, TargetState};
use godwit_qemu::qmp::{MigrationInfo, MigrationStatus, RunState};
use godwit_qemu::{Event, QmpError, Stamped};

use super::effects::Launched;
use super::{Note, Owner, not_now};
use crate::half::{self, HalfError};
use crate::machines::Machine;
use crate::text::chain;
use crate::vm::{self, Vm};

/// Pause before a QEMU is asked again that is about to pause: its guest stands still meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

impl Owner {
    pub(super) async fn event(&mut self, event: Option<Stamped>) -> Result<(), HalfError> {
        let Some(stamped) = event else {
            self.events = None;
            self.look_at = Some(Instant::now() + half::RETRY_AFTER);
            return Ok(());
        };
        match &stamped.event {
            Event::Migration(MigrationStatus::Completed) => {
                self.heard_loaded = true;
                self.follows = false;
                self.feed(TargetEvent::Load(LoadStatus::Completed)).await
            }
            Event::Migration(MigrationStatus::Failed) => {
                let why = "the copy could not be loaded".to_owned();
                self.feed(TargetEvent::Load(LoadStatus::Failed(why))).await
            }
            Event::Migration(MigrationStatus::Active) => {
                self.loading = true;
                // It came in by the key, and nobody else may.
                if let Some(vm) = &self.vm {
                    vm.forget_copy_key();
                }
                Ok(())
            }
            // Paused only a moment later, when all of it is loaded.
            Event::Migration(MigrationStatus::PostcopyActive) => {
                self.follows = true;
                if let Some(vm) = &self.vm {
                    vm.forget_copy_key();
                }
                self.look().await
            }
            Event::Resume => {
                if self.line.running_at_us.is_none() {
                    self.line.running_at_us = Some(half::micros(&stamped));
                }
                let status = match self.follows {
                    true => LoadStatus::Fetching,
                    false => LoadStatus::Running,
                };
                self.feed(TargetEvent::Load(status)).await
            }
            Event::Missed => self.look().await,
            Event::Migration(_)
            | Event::MigrationPass(_)
            | Event::Stop
            | Event::Shutdown { .. }
            | Event::Powerdown
            | Event::Reset
            | Event::GuestPanicked
            | Event::BlockIoError { .. }
            | Event::Other(_) => Ok(()),
        }
    }

    pub(super) async fn note(&mut self, note: Note) -> Result<(), HalfError> {
        let Note::Launched(launched) = note;
        self.launching = false;
        match launched {
            Ok(Launched {
                vm,
                address,
                no_post_copy,
            }) => {
                self.line.no_post_copy = no_post_copy;
                self.line.place = vm.place().clone();
                self.vm = Some(Arc::new(vm));
                self.guard();
                self.feed(TargetEvent::Listening(address)).await?;
                self.look().await
            }
            Err(why) => self.feed(TargetEvent::PrepareFailed(why)).await,
        }
    }

    /// Connects to QEMU and asks for what no event may have told.
    pub(super) async fn look(&mut self) -> Result<(), HalfError> {
        self.look_at = None;
        let Some(vm) = self.vm.clone() else {
            return Ok(());
        };
        match self.link(&vm).await {
            Ok(status) => {
                let waits = self.line.half.state() == TargetState::Prepared;
                if self.follows && waits && status == LoadStatus::Active {
                    self.look_at = Some(Instant::now() + LOOK_AGAIN);
                }
                self.feed(TargetEvent::Load(status)).await
            }
            Err(error) => {
                warn!(job = %self.job, %error, "qemu does not answer");
                self.look_at = Some(Instant::now() + half::RETRY_AFTER);
                Ok(())
            }
        }
    }

    pub(super) async fn link(&mut self, vm: &Vm) -> Result<LoadStatus, QmpError> {
        let (qmp, events) = vm.events().await?;
        self.events = Some(events);
        let (info, machine) = tokio::join!(qmp.query_migrate(), qmp.query_status());
        let info = info?;
        self.follows = info.status.is_postcopy();
        let status = load_status(&info, machine?.status);
        self.heard_loaded |= matches!(status, LoadStatus::Postcopy | LoadStatus::Completed);
        Ok(status)
    }

    pub(super) async fn exited(&mut self) -> Result<(), HalfError> {
        self.events = None;
        if self.line.half.state() == TargetState::Fetching {
            // The machine's own task cleans up.
            self.vm = None;
            return self.feed(TargetEvent::Gone).await;
        }
        if let Some(vm) = self.vm.take() {
            info!(job = %self.job, said = vm.last_words(), "incoming qemu ended");
            vm::clean(&self.host, vm.place()).await;
        }
        self.feed(TargetEvent::Gone).await
    }

    /// After a restart: finds out what became of the QEMU of this job, and feeds the model that.
    pub(super) async fn adopt(&mut self) -> Result<(), HalfError> {
        let state = self.line.half.state();
        if state == TargetState::Running {
            return Ok(());
        }
        // What the machine's own task has adopted is shared, since QEMU serves one connection.
        let kept = self
            .host
            .machine(&self.machine_id)
            .map(|machine: Machine| machine.view());
        let kept = kept.and_then(|view| view.vm);
        let mine = self.line.place.process.as_ref();
        let kept = kept.filter(|vm| Some(vm.identity()) == mine);
        let unknown = |error| not_now(&chain(&error));
        self.vm = match kept {
            Some(vm) => Some(vm),
            None => Vm::adopt(&self.host, self.line.place.clone())
                .map_err(unknown)?
                .map(Arc::new),
        };
        if let Some(vm) = self.vm.clone() {
            if matches!(
                state,
                TargetState::Discarded | TargetState::Lost { .. } | TargetState::MemoryLost
            ) {
                // It has to go, whatever it says.
                return self.feed(TargetEvent::Adopted(LoadStatus::Active)).await;
            }
            let status = self
                .link(&vm)
                .await
                .map_err(|error| not_now(&chain(&error)))?;
            self.loading = status == LoadStatus::Active;
            self.guard();
            return self.feed(TargetEvent::Adopted(status)).await;
        }
        if matches!(state, TargetState::Fetching | TargetState::MemoryLost) {
            // What is left is the machine's, which was kept.
        } else if self.line.place.process.is_none() {
            let owner = self.job.to_string();
            vm::end_unfinished(&self.host, &self.machine_id, &owner)
                .await
                .map_err(unknown)?;
        } else if self.line.place.directory.exists() {
            vm::clean(&self.host, &self.line.place).await;
        }
        match state {
            TargetState::Preparing => self.feed(TargetEvent::Adopted(LoadStatus::Active)).await,
            TargetState::Prepared
            | TargetState::Loaded
            | TargetState::Continuing
            | TargetState::Fetching => self.feed(TargetEvent::Gone).await,
            TargetState::Absent
            | TargetState::Running
            | TargetState::Discarded
            | TargetState::Lost { .. }
            | TargetState::MemoryLost => Ok(()),
        }
    }
}

fn load_status(info: &MigrationInfo, runstate: RunState) -> LoadStatus {
    match (info.status, runstate) {
        (status, RunState::Running) if status.is_postcopy() => LoadStatus::Fetching,
        (_, RunState::Running) => LoadStatus::Running,
        (status, RunState::Paused) if status.is_postcopy() => LoadStatus::Postcopy,
        (MigrationStatus::Completed, _) => LoadStatus::Completed,
        (MigrationStatus::Failed, _) => {
            let why = info.error_desc.clone();
            LoadStatus::Failed(why.unwrap_or_else(|| "the copy could not be loaded".to_owned()))
        }
        _ => LoadStatus::Active,
    }
}
