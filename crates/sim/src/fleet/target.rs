//! A target half at work, as in `node-agent/src/target.rs`.

use godwit_model::Epoch;
use godwit_model::migration::fact::TargetAddress;
use godwit_model::migration::target::{LoadStatus, TargetEffect, TargetEvent, TargetState};

use super::agent::{AgentTimer, Answer, Next, Record, Seen, TargetHalf};
use super::net::Reply;
use super::qemu::Load;
use super::source::RETRY;
use super::time::{MS, Time};
use super::{Fleet, JobNo, NodeNo};
use crate::config::Guard;
use crate::owner::Side;

impl Fleet {
    fn target(&mut self, node: NodeNo, job: JobNo) -> Option<&mut TargetHalf> {
        self.agent(node)?.targets.get_mut(&job)
    }

    /// Whether a started agent has something to do for this job, as in `node-agent/src/adopt.rs`.
    pub(crate) fn target_is_open(&self, node: NodeNo, job: JobNo) -> bool {
        let Some(line) = self.hosts[node].disk.targets.get(&job) else {
            return false;
        };
        match line.half.state() {
            TargetState::Preparing
            | TargetState::Prepared
            | TargetState::Loaded
            | TargetState::Continuing
            | TargetState::Fetching => true,
            TargetState::Discarded | TargetState::Lost { .. } | TargetState::MemoryLost => {
                line.process.is_some_and(|pid| self.alive(pid, |_| true))
            }
            TargetState::Absent | TargetState::Running => false,
        }
    }

    /// Opens a half, and adopts what its log says.
    pub(crate) fn target_open(&mut self, node: NodeNo, job: JobNo) {
        if self.target(node, job).is_some() {
            return;
        }
        let line = self.hosts[node].disk.targets.get(&job).cloned();
        let Some(agent) = self.agent(node) else {
            return;
        };
        let half = TargetHalf {
            obeyed: line.as_ref().map_or(0, |line| line.half.epoch().0),
            told: line.as_ref().map(|l| l.half.clone()).unwrap_or_default(),
            line: line.clone().unwrap_or_default(),
            ..TargetHalf::default()
        };
        agent.targets.insert(job, half);
        let Some(line) = line else { return };
        let state = line.half.state();
        if state == TargetState::Running {
            return;
        }
        let pid = line.process.filter(|pid| self.alive(*pid, |_| true));
        if let Some(seen) = pid.and_then(|pid| self.seen(pid)) {
            if let Some(half) = self.target(node, job) {
                half.attached = pid;
                half.loading = load_status(seen) == LoadStatus::Active;
            }
            let over = matches!(state, TargetState::Discarded | TargetState::Lost { .. });
            let status = if over {
                LoadStatus::Active
            } else {
                load_status(seen)
            };
            self.target_post(node, job, TargetEvent::Adopted(status), None);
            return;
        }
        self.target_ends_unknown(node, job);
        let event = match state {
            TargetState::Preparing => TargetEvent::Adopted(LoadStatus::Active),
            TargetState::Prepared
            | TargetState::Loaded
            | TargetState::Continuing
            | TargetState::Fetching => TargetEvent::Gone,
            TargetState::Absent
            | TargetState::Running
            | TargetState::Discarded
            | TargetState::Lost { .. }
            | TargetState::MemoryLost => return,
        };
        self.target_post(node, job, event, None);
    }

    /// A process that was started and never known is found by its job, and ended.
    fn target_ends_unknown(&mut self, node: NodeNo, job: JobNo) {
        let known = self.hosts[node].disk.targets.get(&job);
        if known.is_some_and(|line| line.process.is_some()) {
            return;
        }
        let living = self.qemus.living();
        let unknown = living.filter(|(_, qemu)| qemu.job == Some(job) && qemu.node == node);
        for pid in unknown.map(|(pid, _)| pid).collect::<Vec<_>>() {
            self.qemu_end(pid);
        }
    }

    /// One piece of work: an effect, or all events until there is one.
    pub(crate) fn target_works(&mut self, node: NodeNo, job: JobNo) {
        loop {
            let Some(half) = self.target(node, job) else {
                return;
            };
            if let Some(line) = half.writing.take() {
                self.hosts[node].disk.targets.insert(job, line);
                continue;
            }
            match half.work.next() {
                Next::Effect(effect) => {
                    if self.buggy_crash(node) {
                        return;
                    }
                    let takes = self.target_perform(node, job, effect);
                    self.agent_plan(node, AgentTimer::Works(job, Side::Target), takes);
                    return;
                }
                Next::Event(event, answer) => self.target_takes(node, job, event, answer),
                Next::Done(answer) => {
                    half.told = half.line.half.clone();
                    self.publish(node, job, Side::Target);
                    if let Some(to) = answer {
                        self.answer(node, (job, Side::Target), to, Reply::Done);
                    }
                }
                Next::Idle => return,
            }
        }
    }

    fn target_takes(
        &mut self,
        node: NodeNo,
        job: JobNo,
        event: TargetEvent,
        answer: Option<Answer>,
    ) {
        let now = self.clock(node);
        let fenced = self.options.removed != Some(Guard::HostFence);
        let Some(half) = self.target(node, job) else {
            return;
        };
        let before = half.line.half.clone();
        let newest = |epoch: Epoch| {
            if fenced {
                epoch
            } else {
                epoch.max(before.epoch())
            }
        };
        let (event, given) = if let TargetEvent::Prepare { epoch } = event {
            let newest = newest(epoch);
            (TargetEvent::Prepare { epoch: newest }, Some(epoch.0))
        } else if let TargetEvent::Discard { epoch } = event {
            let newest = newest(epoch);
            (TargetEvent::Discard { epoch: newest }, Some(epoch.0))
        } else {
            (event, None)
        };
        let stale = given.is_some_and(|given| given < half.obeyed);
        match half.line.half.handle(event, now) {
            Ok(effects) => {
                if let Some(given) = given {
                    half.obeyed = half.obeyed.max(given);
                }
                let due = half.line.half.next_deadline();
                let deadline = due.filter(|_| due != before.next_deadline());
                half.work.effects(effects);
                if let Some(due) = deadline {
                    let after = due.saturating_sub(now).as_micros();
                    let after = Time::try_from(after).unwrap_or(Time::MAX / 2);
                    self.agent_plan(node, AgentTimer::Ticks(job, Side::Target), after);
                }
                if stale {
                    self.wrong("a target took the order of a replaced owner");
                }
            }
            Err(refusal) => self.refused(node, (job, Side::Target), answer, &refusal),
        }
    }

    /// Carries one effect out; answers how long that takes.
    fn target_perform(&mut self, node: NodeNo, job: JobNo, effect: TargetEffect) -> Time {
        let fsync = self.fsync(node);
        let Some(half) = self.target(node, job) else {
            return 0;
        };
        let attached = half.attached;
        let qmp = MS / 2;
        let done = match effect {
            TargetEffect::Journal => {
                half.writing = Some(half.line.clone());
                return fsync;
            }
            TargetEffect::StartQemu => {
                self.target_starts(node, job);
                return 0;
            }
            TargetEffect::Continue => {
                let runs = attached.is_some_and(|pid| self.qemu_go_on(pid));
                if let Some(half) = self.target(node, job).filter(|_| runs) {
                    half.work.outcome(Some(TargetEvent::Continued));
                }
                runs
            }
            // Post-copy, which no fleet does.
            TargetEffect::Announce | TargetEffect::EndGuest => true,
            TargetEffect::KeepMachine => {
                self.target_keeps(node, job);
                return fsync;
            }
            TargetEffect::EndQemu => {
                half.attached = None;
                if let Some(pid) = attached {
                    if self.alive(pid, |qemu| qemu.runs) {
                        self.wrong("a target was ended after it ran");
                    }
                    self.qemu_end(pid);
                }
                true
            }
        };
        if !done && let Some(half) = self.target(node, job) {
            half.retry = Some(effect);
            self.agent_plan(node, AgentTimer::Retries(job, Side::Target), RETRY);
        }
        qmp
    }

    fn target_starts(&mut self, node: NodeNo, job: JobNo) {
        let machine = self.ledger.jobs[job].machine;
        if self.dice.chance(self.plan.launch_fails) {
            let failed = TargetEvent::PrepareFailed(String::new());
            self.target_post(node, job, failed, None);
            return;
        }
        let pid = self.qemu_incoming(machine, node, job);
        if let Some(half) = self.target(node, job) {
            half.launching = Some(pid);
        }
    }

    /// From here on it is a machine like any other.
    fn target_keeps(&mut self, node: NodeNo, job: JobNo) {
        let machine = self.ledger.jobs[job].machine;
        let Some(half) = self.target(node, job) else {
            return;
        };
        half.attached = None;
        if let Some(pid) = half.line.process {
            let record = Record { pid, job: None };
            self.hosts[node].disk.machines.insert(machine, record);
        }
    }

    /// The process changed.
    pub(crate) fn target_sees(&mut self, node: NodeNo, job: JobNo, seen: Seen) {
        let Some(half) = self.target(node, job) else {
            return;
        };
        let event = if let Some(pid) = half.launching {
            half.launching = None;
            if seen.alive && seen.load != Some(Load::Starting) {
                half.attached = Some(pid);
                half.line.process = Some(pid);
                TargetEvent::Listening(TargetAddress {
                    uri: String::new(),
                    address: String::new(),
                    ports: vec![],
                })
            } else if seen.alive {
                half.launching = Some(pid);
                return;
            } else {
                TargetEvent::PrepareFailed(String::new())
            }
        } else if !seen.alive {
            half.attached = None;
            TargetEvent::Gone
        } else {
            half.loading |= seen.linked;
            TargetEvent::Load(load_status(seen))
        };
        self.target_post(node, job, event, None);
    }

    /// What failed is tried again, if it is still wanted.
    pub(crate) fn target_retries(&mut self, node: NodeNo, job: JobNo) {
        let Some(half) = self.target(node, job) else {
            return;
        };
        let continuing = half.line.half.state() == TargetState::Continuing;
        let effect = half.retry.take();
        if effect == Some(TargetEffect::Continue) && continuing {
            let pid = half.attached;
            let runs = pid.is_some_and(|pid| self.qemu_go_on(pid));
            if runs {
                self.target_post(node, job, TargetEvent::Continued, None);
            } else if let Some(half) = self.target(node, job) {
                half.retry = effect;
                self.agent_plan(node, AgentTimer::Retries(job, Side::Target), RETRY);
            }
        }
    }
}

const fn load_status(seen: Seen) -> LoadStatus {
    match (seen.load, seen.runs) {
        (_, true) => LoadStatus::Running,
        (Some(Load::Loaded), false) => LoadStatus::Completed,
        (Some(Load::Starting | Load::Waiting) | None, false) => LoadStatus::Active,
    }
}
