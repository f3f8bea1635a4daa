//! One copy of a guest's memory, in virtual time.
//!
//! Fluid: what is left shrinks by what the links carry and grows by what the guest writes, until the
//! rest fits into the blackout that is allowed.

use std::sync::Arc;
use std::time::Duration;

use godwit_model::migration::fact::Progress;
use godwit_model::migration::source::CopyStatus;
use godwit_model::{Bytes, JobId, MachineId};
use godwit_rpc::agent::v1::MachineState;
use tokio::sync::Notify;

use super::host::Host;
use super::links::Leg;
use super::source::CopyOrder;

/// What devices need besides memory while the guest stands still.
const DEVICES: Duration = Duration::from_millis(15);
/// Bytes a second that a guest writes, for each byte of its memory: 1 GiB writes 2 MiB.
const DIRTY_SHARE: f64 = 1.0 / 512.0;
/// Longest step of virtual time without a look at the half.
const STEP_MAX: Duration = Duration::from_secs(60);

/// A copy under way.
pub(crate) struct Copy {
    pub(crate) host: Arc<Host>,
    pub(crate) job: JobId,
    pub(crate) machine: MachineId,
    pub(crate) memory: Bytes,
    pub(crate) order: CopyOrder,
    pub(crate) moved: Arc<Notify>,
}

/// How far a copy is.
struct Numbers {
    began: Duration,
    total: f64,
    left: f64,
    sent: f64,
    dirty: f64,
    rate: f64,
}

/// What the half allows at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Wait,
    Allowed,
    Cancelled,
}

impl Copy {
    /// Copies, and says to the half what QEMU would say.
    pub(crate) async fn run(self) {
        let target = self.host.world.host(&self.order.target);
        let leg = self
            .host
            .world
            .links
            .open(&self.host.name, &self.order.target);
        let Some(mut numbers) = self.while_it_runs(&leg).await else {
            return self.end(CopyStatus::Cancelled);
        };
        self.stop();
        self.host.copy_says(&self.job, CopyStatus::PreSwitchover);
        if !self.may_go().await {
            return self.end(CopyStatus::Cancelled);
        }
        self.host.copy_says(&self.job, CopyStatus::Device);
        let rest = Duration::from_secs_f64(numbers.left / numbers.rate.max(1.0));
        self.host.world.time.sleep(rest + DEVICES).await;
        if self.word() == Word::Cancelled {
            return self.end(CopyStatus::Cancelled);
        }
        if !target.is_some_and(|target| target.loaded(&self.job)) {
            return self.end(CopyStatus::Failed("nobody takes the copy".to_owned()));
        }
        numbers.sent += numbers.left;
        numbers.left = 0.0;
        self.keep(&numbers, true);
        self.host.copy_says(&self.job, CopyStatus::Completed);
    }

    /// Copies until the guest may be stopped; `None` when the copy is undone.
    async fn while_it_runs(&self, leg: &Leg<'_>) -> Option<Numbers> {
        #[expect(clippy::cast_precision_loss, reason = "a model needs no more")]
        let total = self.memory.0 as f64;
        let time = &self.host.world.time;
        let mut at = time.now();
        let mut numbers = Numbers {
            began: at,
            total,
            left: total,
            sent: 0.0,
            dirty: total * DIRTY_SHARE,
            rate: leg.rate(self.order.bandwidth),
        };
        loop {
            let fits = numbers.rate * self.downtime().as_secs_f64();
            let word = self.word();
            if word == Word::Cancelled {
                return None;
            }
            if numbers.left <= fits && word == Word::Allowed {
                return Some(numbers);
            }
            let wait = numbers.time_until(fits);
            tokio::select! {
                () = time.sleep(wait) => {}
                () = leg.changed() => {}
                () = self.moved.notified() => {}
            }
            let now = time.now();
            numbers.pass(now.saturating_sub(at), fits);
            at = now;
            numbers.rate = leg.rate(self.order.bandwidth);
            self.keep(&numbers, false);
        }
    }

    /// As it is by now: it may have been raised.
    fn downtime(&self) -> Duration {
        let state = self.host.state();
        let half = state.sources.get(&self.job);
        let order = half.and_then(|half| half.order.as_ref());
        order.map_or(self.order.downtime, |order| order.downtime)
    }

    async fn may_go(&self) -> bool {
        loop {
            let go = {
                let state = self.host.state();
                let half = state.sources.get(&self.job);
                half.map(|half| (half.go, half.cancelled))
            };
            match go {
                None | Some((_, true)) => return false,
                Some((true, false)) => return true,
                Some((false, false)) => self.moved.notified().await,
            }
        }
    }

    fn word(&self) -> Word {
        let state = self.host.state();
        match state.sources.get(&self.job) {
            Some(half) if half.cancelled => Word::Cancelled,
            Some(half) if half.half.allowed() => Word::Allowed,
            Some(_) => Word::Wait,
            None => Word::Cancelled,
        }
    }

    /// The guest stands still.
    fn stop(&self) {
        let mut state = self.host.state();
        if let Some(machine) = state.machines.get_mut(&self.machine) {
            machine.state = MachineState::Migrated;
        }
        if let Some(half) = state.sources.get_mut(&self.job) {
            half.stopped_at_us = Some(self.host.world.time.micros());
        }
        self.host.world.oracle.stops(&self.machine, &self.host.name);
    }

    /// The copy is over without its end: QEMU resumes the guest by itself.
    fn end(&self, status: CopyStatus) {
        {
            let mut state = self.host.state();
            self.host.resume(&mut state, &self.machine);
        }
        self.host.copy_says(&self.job, status);
    }

    fn keep(&self, numbers: &Numbers, completed: bool) {
        let time = &self.host.world.time;
        let elapsed = time.now().saturating_sub(numbers.began);
        let mut state = self.host.state();
        let Some(half) = state.sources.get_mut(&self.job) else {
            return;
        };
        half.progress = numbers.progress(elapsed);
        if completed {
            half.completed_at_us = Some(time.micros());
        }
    }
}

impl Numbers {
    /// Virtual time until no more than `fits` is left; also a limit where that never comes.
    fn time_until(&self, fits: f64) -> Duration {
        let net = self.rate - self.dirty;
        if net <= 0.0 || self.left <= fits {
            return STEP_MAX;
        }
        Duration::from_secs_f64((self.left - fits) / net).min(STEP_MAX)
    }

    /// Time went by. A guest that waits for permission writes no more than is sent meanwhile.
    fn pass(&mut self, time: Duration, fits: f64) {
        let seconds = time.as_secs_f64();
        self.sent += self.rate * seconds;
        let left = self.left + (self.dirty - self.rate) * seconds;
        self.left = left.clamp(self.left.min(fits * 0.9), self.total);
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "all of it is positive and small"
    )]
    fn progress(&self, elapsed: Duration) -> Progress {
        let passes = 1.0 + (self.sent / self.total).floor();
        Progress {
            transferred: Bytes(self.sent as u64),
            remaining: Bytes(self.left as u64),
            total: Bytes(self.total as u64),
            throughput: self.rate as u64,
            dirty_rate: self.dirty as u64,
            passes: passes as u32,
            elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            ..Progress::default()
        }
    }
}
