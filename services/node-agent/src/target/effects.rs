//! What the model orders of a target, carried out.

use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use tokio::time::Instant;
use tracing::warn;

use godwit_model::machine::MachineSpec;
use godwit_model::migration::fact::TargetAddress;
use godwit_model::migration::target::{TargetEffect, TargetEvent, TargetState};
use godwit_qemu::qmp::RunState;
use godwit_qemu::secret::Key;
use godwit_qemu::{Incoming, Role, migrate};
use godwit_runtime::failpoint;

use super::{Note, Owner};
use crate::half::{self, HalfError};
use crate::host::Host;
use crate::machines::{End, Record};
use crate::metrics::Piece;
use crate::text::chain;
use crate::vm::Vm;

impl Owner {
    /// Carries one effect out; its outcome may be an event in turn.
    pub(super) async fn perform(
        &mut self,
        effect: TargetEffect,
    ) -> Result<Option<TargetEvent>, HalfError> {
        let state = self.line.half.state().as_str();
        failpoint!("target.{state}.{effect:?}.before");
        let outcome = self.carry_out(effect).await;
        failpoint!("target.{state}.{effect:?}.after");
        outcome
    }

    async fn carry_out(&mut self, effect: TargetEffect) -> Result<Option<TargetEvent>, HalfError> {
        let outcome = match effect {
            TargetEffect::Journal => {
                let took = self.log.append(&self.line).await?;
                self.host.metrics.fsync(took);
                if self.line.half.state() == TargetState::Continuing {
                    self.host.metrics.blackout(Piece::Journal, took);
                }
                return Ok(None);
            }
            TargetEffect::StartQemu => {
                self.launch();
                return Ok(None);
            }
            TargetEffect::Continue => match self.go_on().await {
                Ok(()) => return Ok(Some(TargetEvent::Continued)),
                Err(why) => Err(why),
            },
            TargetEffect::Announce => {
                self.announce();
                Ok(())
            }
            TargetEffect::KeepMachine => self.keep().await,
            TargetEffect::EndQemu => self.end().await,
            TargetEffect::EndGuest => self.end_guest(),
        };
        match outcome {
            Ok(()) => self.trouble.clear(),
            Err(why) => {
                warn!(job = %self.job, ?effect, why, "not done");
                self.trouble = why;
                self.retry = Some((effect, Instant::now() + half::RETRY_AFTER));
            }
        }
        Ok(None)
    }

    pub(super) async fn again(&mut self) -> Result<(), HalfError> {
        let Some((effect, _)) = self.retry.take() else {
            return Ok(());
        };
        let wanted = match effect {
            TargetEffect::Continue => self.line.half.state() == TargetState::Continuing,
            TargetEffect::KeepMachine | TargetEffect::EndQemu | TargetEffect::EndGuest => true,
            TargetEffect::Journal | TargetEffect::StartQemu | TargetEffect::Announce => false,
        };
        if !wanted {
            return Ok(());
        }
        match self.perform(effect).await? {
            Some(event) => self.feed(event).await,
            None => {
                self.publish();
                Ok(())
            }
        }
    }

    /// Starts QEMU in a task of its own, so that a discard needn't wait for it.
    pub(super) fn launch(&mut self) {
        let Some(spec) = self.line.spec.clone() else {
            return;
        };
        self.launching = true;
        let (host, notes) = (Arc::clone(&self.host), self.notes.clone());
        let owner = self.job.to_string();
        let how = (self.line.encrypted, self.line.post_copy);
        tokio::spawn(async move {
            let launched = launch(&host, &spec, &owner, how).await;
            // This half may have ended; then the next one finds the process by its place.
            let _ = notes.send(Note::Launched(launched)).await;
        });
    }

    pub(super) async fn go_on(&mut self) -> Result<(), String> {
        let began = Clock::now();
        let qmp = self.qmp().await?;
        // QEMU is paused before it says `completed`: who heard that needn't ask in a blackout.
        let continued = if self.heard_loaded {
            qmp.cont().await.map_err(|error| chain(&error))
        } else {
            let asked = migrate::continue_guest(&qmp).await;
            asked.map(drop).map_err(|error| chain(&error))
        };
        if let Err(why) = continued {
            let status = qmp.query_status().await.map_err(|error| chain(&error))?;
            // A guest that powered off with its last breath at home is here, and off.
            if status.status != RunState::Shutdown {
                return Err(why);
            }
        }
        self.host.metrics.blackout(Piece::Continue, began.elapsed());
        // QEMU tells of it before it answers, so the time of the event is there already.
        let now = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or_default();
        self.line.running_at_us = Some(self.resumed_at().await.unwrap_or(now));
        Ok(())
    }

    /// When the guest went on, by the events that have arrived.
    pub(super) async fn resumed_at(&mut self) -> Option<u64> {
        let mut found = None;
        loop {
            let next = half::next_event(&mut self.events);
            match tokio::time::timeout(Duration::ZERO, next).await {
                Ok(Some(stamped)) if half::is_resume(&stamped) => {
                    found = Some(half::micros(&stamped));
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return found,
            }
        }
    }

    pub(super) fn announce(&self) {
        let Some(vm) = self.vm.clone() else { return };
        let job = self.job.clone();
        tokio::spawn(async move {
            let announced = match vm.monitor().await {
                Ok(qmp) => migrate::announce(&qmp).await.map_err(|error| chain(&error)),
                Err(error) => Err(chain(&error)),
            };
            if let Err(why) = announced {
                warn!(%job, why, "guest not announced");
            }
        });
    }

    pub(super) async fn keep(&mut self) -> Result<(), String> {
        let Some(spec) = self.line.spec.clone() else {
            return Err("no machine".to_owned());
        };
        let mut record = Record::new(spec, self.line.machine_epoch);
        match &self.vm {
            Some(vm) => {
                let started = vm.identity().started_at();
                vm.forget_copy_key();
                record.place = vm.place().clone();
                record.started_at = started.and_then(|at| jiff::Timestamp::try_from(at).ok());
            }
            None => {
                record.ended = Some(End {
                    crashed: true,
                    message: "qemu ended before the guest was continued, or just after".to_owned(),
                });
            }
        }
        self.host
            .keep(record, self.vm.clone())
            .await
            .map_err(|error| chain(&error))?;
        // From here on it is a machine like any other, but for memory that follows.
        if self.line.half.state() != TargetState::Fetching {
            self.vm = None;
            self.events = None;
        }
        Ok(())
    }

    pub(super) async fn end(&mut self) -> Result<(), String> {
        self.events = None;
        if let Some(vm) = self.vm.clone() {
            vm.end(&self.host).await.map_err(|error| chain(&error))?;
            self.vm = None;
        }
        Ok(())
    }
}

/// A QEMU that listens.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) vm: Vm,
    pub(super) address: TargetAddress,
    /// Why it can't do a post-copy; empty where it can, or needn't.
    pub(super) no_post_copy: String,
}

/// Starts a paused QEMU and lets it listen.
async fn launch(
    host: &Host,
    spec: &MachineSpec,
    owner: &str,
    how: (bool, bool),
) -> Result<Launched, String> {
    let vm = Vm::launch(host, spec, Role::Incoming, owner)
        .await
        .map_err(|error| chain(&error))?;
    let address = host.config.migration_address;
    match listen(host, &vm, how).await {
        Ok((incoming, no_post_copy)) => {
            let address = TargetAddress {
                uri: incoming.uri,
                address: address.to_string(),
                ports: vec![incoming.port],
            };
            Ok(Launched {
                vm,
                address,
                no_post_copy,
            })
        }
        Err(why) => {
            vm.end(host).await.map_err(|error| chain(&error))?;
            Err(why)
        }
    }
}

/// Lets a paused QEMU listen, with a new key when the copy is to be encrypted. A QEMU that can't do a
/// post-copy listens all the same, and it is said why it can't.
async fn listen(
    host: &Host,
    vm: &Vm,
    (encrypted, post_copy): (bool, bool),
) -> Result<(Incoming, String), String> {
    if encrypted {
        let key = Key::random().map_err(|error| format!("make a key: {error}"))?;
        vm.put_copy_key(host, &key)?;
    }
    let qmp = vm.monitor().await.map_err(|error| chain(&error))?;
    let mut no_post_copy = String::new();
    if post_copy && let Err(error) = migrate::allow_postcopy(&qmp, true).await {
        no_post_copy = chain(&error);
        warn!(why = no_post_copy, "no post-copy to this host");
    }
    let directory = vm.copy_key();
    let key = encrypted.then_some(directory.as_path());
    let address = host.config.migration_address;
    let listening = migrate::prepare_incoming(&qmp, address, key).await;
    let incoming = listening.map_err(|error| chain(&error))?;
    Ok((incoming, no_post_copy))
}
