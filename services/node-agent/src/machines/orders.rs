//! What the owner of a machine does when it is asked.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::{info, warn};

use godwit_model::machine::MachineSpec;
use godwit_model::{Epoch, JobId};
use godwit_qemu::Role;
use godwit_qemu::qmp::RunState;
use godwit_runtime::failpoint;

use super::owner::{Hold, Owner};
use super::{End, MachineError, Outcome, Record};
use crate::text::chain;
use crate::vm::{self, Vm};

impl Owner {
    pub(super) async fn start(&mut self, spec: MachineSpec, epoch: Epoch, paused: bool) -> Outcome {
        if epoch < self.record.epoch {
            return Err(MachineError::Fenced {
                mine: epoch,
                seen: self.record.epoch,
            });
        }
        if self.hold.as_ref().is_some_and(|hold| hold.migrated) {
            return Err(not_now("the machine was migrated away"));
        }
        if let (None, Some(hold)) = (&self.vm, &self.hold) {
            return Err(not_now(&format!("migration {} is being undone", hold.job)));
        }
        if let Some(vm) = self.vm.clone() {
            if self.record.spec != spec {
                return Err(not_now("the machine runs with another spec"));
            }
            if self.record.epoch != epoch {
                self.record.epoch = epoch;
                self.save()?;
            }
            return if paused {
                Ok(())
            } else {
                self.let_run(&vm).await
            };
        }
        self.launch(spec, epoch).await?;
        match self.vm.clone() {
            Some(vm) if !paused => self.let_run(&vm).await,
            _ => Ok(()),
        }
    }

    async fn launch(&mut self, spec: MachineSpec, epoch: Epoch) -> Outcome {
        let started_at = self.record.started_at;
        self.record = Record {
            started_at,
            ..Record::new(spec, epoch)
        };
        self.message.clear();
        // On disk before there is a process: after a crash it is looked for.
        self.save()?;
        self.publish();
        match Vm::launch(&self.host, &self.record.spec, Role::Start, "").await {
            Ok(vm) => {
                self.record.place = vm.place().clone();
                self.record.started_at = Some(Timestamp::now());
                self.vm = Some(Arc::new(vm));
                self.paused = true;
                self.relink_at = Some(Instant::now());
                // The identity is on disk before the guest runs.
                self.save()?;
                info!(machine = %self.record.spec.id, "machine started");
                Ok(())
            }
            Err(error) => {
                let message = chain(&error);
                self.record.ended = Some(End {
                    crashed: true,
                    message,
                });
                match started_at {
                    Some(_) => self.save()?,
                    // A machine that never was here isn't kept for a start that failed.
                    None => {
                        self.host.store.record_remove(&self.record.spec.id)?;
                        self.gone = true;
                    }
                }
                Err(error.into())
            }
        }
    }

    /// Continues a guest that was started and never ran; any other stays as it is.
    async fn let_run(&mut self, vm: &Vm) -> Outcome {
        let qmp = vm.monitor().await?;
        if qmp.query_status().await?.status == RunState::PreLaunch {
            qmp.cont().await?;
            self.paused = false;
        }
        Ok(())
    }

    pub(super) async fn stop(&mut self, grace: Duration, epoch: Epoch) -> Outcome {
        if epoch < self.record.epoch {
            return Err(MachineError::Fenced {
                mine: epoch,
                seen: self.record.epoch,
            });
        }
        if self.hold.as_ref().is_some_and(|hold| hold.migrated) {
            return Err(not_now("the machine was migrated away"));
        }
        let Some(vm) = self.vm.clone() else {
            return Ok(());
        };
        self.record.epoch = epoch;
        self.record.stopping = Some(grace);
        self.save()?;
        let due = Instant::now() + grace;
        self.kill_at = Some(self.kill_at.map_or(due, |earlier| earlier.min(due)));
        if !grace.is_zero() {
            // Not a reason to fail: the guest may be unable to listen, and is killed then.
            let pressed = match vm.monitor().await {
                Ok(qmp) => qmp.system_powerdown().await,
                Err(error) => Err(error),
            };
            if let Err(error) = pressed {
                warn!(machine = %self.record.spec.id, %error, "power button not pressed");
            }
        }
        Ok(())
    }

    pub(super) async fn pause(&mut self) -> Outcome {
        let vm = self.free()?;
        vm.monitor().await?.stop().await?;
        self.paused = true;
        Ok(())
    }

    pub(super) async fn unpause(&mut self) -> Outcome {
        let vm = self.free()?;
        let qmp = vm.monitor().await?;
        match qmp.query_status().await?.status {
            RunState::Running => {}
            RunState::Paused | RunState::PreLaunch | RunState::IoError => qmp.cont().await?,
            // Above all a copy that was migrated away, or one that is being loaded.
            other @ (RunState::Debug
            | RunState::InMigrate
            | RunState::InternalError
            | RunState::PostMigrate
            | RunState::FinishMigrate
            | RunState::RestoreVm
            | RunState::SaveVm
            | RunState::Shutdown
            | RunState::Suspended
            | RunState::Watchdog
            | RunState::GuestPanicked
            | RunState::Unknown) => {
                return Err(not_now(&format!("the guest cannot go on from {other:?}")));
            }
        }
        self.paused = false;
        Ok(())
    }

    /// The QEMU, when its CPUs are this task's to command.
    pub(super) fn free(&self) -> Result<Arc<Vm>, MachineError> {
        if let Some(hold) = &self.hold {
            return Err(not_now(&format!("migration {} is under way", hold.job)));
        }
        self.vm
            .clone()
            .ok_or_else(|| not_now("the machine does not run"))
    }

    pub(super) fn forget(&mut self) -> Outcome {
        if self.vm.is_some() {
            return Err(not_now("the machine still runs"));
        }
        Ok(self.host.store.record_remove(&self.record.spec.id)?)
    }

    pub(super) async fn hold(&mut self, job: JobId) -> Result<Arc<Vm>, MachineError> {
        if self.hold.as_ref().is_some_and(|hold| hold.job == job) {
            return self
                .vm
                .clone()
                .ok_or_else(|| not_now("the machine does not run"));
        }
        let vm = self.free()?;
        // A half that is adopted finds its guest in any state; a new one needs a running guest.
        if self.record.job.as_ref() != Some(&job) {
            let status = vm.monitor().await?.query_status().await?.status;
            if status != RunState::Running || self.record.stopping.is_some() {
                return Err(not_now(&format!("the guest is {status:?}, not running")));
            }
            self.record.job = Some(job.clone());
            failpoint!("machine.hold.before");
            self.save()?;
            failpoint!("machine.hold.after");
        }
        self.hold = Some(Hold {
            job,
            migrated: false,
        });
        Ok(vm)
    }

    pub(super) fn migrated(&mut self, job: &JobId) {
        let mine = match &self.hold {
            Some(hold) => hold.job == *job,
            // After a restart its QEMU may be gone, so that there is nothing to hold.
            None => self.record.job.as_ref() == Some(job),
        };
        if mine {
            self.hold = Some(Hold {
                job: job.clone(),
                migrated: true,
            });
        }
    }

    pub(super) fn release(&mut self, job: &JobId) {
        if self.hold.as_ref().is_some_and(|hold| hold.job == *job) {
            self.hold = None;
            // QEMU continued the guest by itself, and its events may have been missed.
            self.relink_at = self.vm.is_some().then(Instant::now);
        }
    }

    /// Ends what is left of a machine that is another host's from epoch `next` on. What remains
    /// then is for [`Self::clear`].
    pub(super) async fn end_here(&mut self, next: Epoch) -> Outcome {
        if let Some(vm) = &self.vm {
            vm.kill()?;
        }
        // A late start is refused.
        let id = &self.record.spec.id;
        failpoint!("machine.fence.before");
        self.host.store.fence_put(id, next)?;
        failpoint!("machine.fence.after");
        if let Some(vm) = &self.vm {
            vm.exited().await;
        }
        Ok(())
    }

    /// Removes the devices and the record. Repeated after a restart when it was cut short.
    pub(super) async fn clear(&mut self) {
        let vm = self.vm.take();
        let place = vm.as_ref().map_or(&self.record.place, |vm| vm.place());
        vm::clean(&self.host, place).await;
        let id = &self.record.spec.id;
        failpoint!("machine.remove.before");
        let removed = self.host.store.record_remove(id);
        failpoint!("machine.remove.after");
        match removed {
            Ok(()) => info!(machine = %id, "machine removed from this host"),
            Err(error) => warn!(machine = %id, %error, "record of a machine that left remains"),
        }
    }

    pub(super) fn keep(&mut self, record: Record, vm: Option<Arc<Vm>>) -> Outcome {
        let mine = self.vm.as_ref().map(|vm| vm.identity());
        match &vm {
            None if mine.is_some() => return Ok(()),
            Some(vm) if mine == Some(vm.identity()) => return Ok(()),
            Some(_) if mine.is_some() => {
                return Err(not_now("another process of this machine runs here"));
            }
            Some(_) | None => {}
        }
        self.host.store.record_put(&record.spec.id, &record)?;
        self.record = record;
        self.vm = vm;
        self.hold = None;
        self.paused = false;
        self.message.clear();
        self.relink_at = Some(Instant::now());
        Ok(())
    }
}

fn not_now(why: &str) -> MachineError {
    MachineError::NotNow(why.to_owned())
}
