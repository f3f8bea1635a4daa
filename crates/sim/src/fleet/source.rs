//! A source half at work, as in `node-agent/src/source.rs`.

use godwit_model::migration::grant::Refusal;
use godwit_model::migration::source::{CopyStatus, SourceEffect, SourceEvent, SourceState};

use super::agent::{AgentTimer, Answer, Next, Record, Seen, SourceHalf};
use super::net::{Addr, Fact, Msg, Reply};
use super::qemu::copies;
use super::time::{MS, SEC, Time};
use super::{Fleet, JobNo, NodeNo};
use crate::config::Guard;
use crate::halves::{Outgoing, copy_status};
use crate::owner::Side;

/// How often QEMU is asked for what an event may have failed to tell.
const POLL: Time = 100 * MS;
/// Pause before what failed is tried again.
pub(crate) const RETRY: Time = 200 * MS;
/// Longest wait for one answer to a proof.
const PROOF_ANSWER: Time = 5 * SEC;

impl Fleet {
    fn source(&mut self, node: NodeNo, job: JobNo) -> Option<&mut SourceHalf> {
        self.agent(node)?.sources.get_mut(&job)
    }

    fn record(&self, node: NodeNo, job: JobNo) -> Option<Record> {
        let machine = self.ledger.jobs.get(job)?.machine;
        self.hosts.get(node)?.disk.machines.get(&machine).copied()
    }

    /// Whether this job was the last that held the machine.
    fn is_last(&self, node: NodeNo, job: JobNo) -> bool {
        let removed = self.options.removed == Some(Guard::LastJob);
        let record = self.record(node, job);
        record.is_some_and(|record| removed || record.job == Some(job))
    }

    /// Whether a started agent has something to do for this job, as in `node-agent/src/adopt.rs`.
    pub(crate) fn source_is_open(&self, node: NodeNo, job: JobNo) -> bool {
        let Some(line) = self.hosts[node].disk.sources.get(&job) else {
            return false;
        };
        let lives = line.process.is_some_and(|pid| self.alive(pid, |_| true));
        match line.half.state() {
            SourceState::Copying
            | SourceState::Switching
            | SourceState::Serving
            | SourceState::ServerLost
            | SourceState::Completed => true,
            SourceState::Retired => self.is_last(node, job),
            SourceState::Resumed => self.is_last(node, job) && lives,
            SourceState::Absent | SourceState::Lost => false,
        }
    }

    /// Opens a half, and adopts what its log says.
    pub(crate) fn source_open(&mut self, node: NodeNo, job: JobNo) {
        if self.source(node, job).is_some() {
            return;
        }
        let line = self.hosts[node].disk.sources.get(&job).cloned();
        let last = self.is_last(node, job);
        let record = self.record(node, job);
        let Some(agent) = self.agent(node) else {
            return;
        };
        let half = SourceHalf {
            obeyed: line.as_ref().map_or(0, |line| line.half.epoch().0),
            told: line.as_ref().map(|l| l.half.clone()).unwrap_or_default(),
            line: line.clone().unwrap_or_default(),
            ..SourceHalf::default()
        };
        agent.sources.insert(job, half);
        let Some(line) = line else { return };
        let pid = line.process.filter(|pid| {
            last && record.is_some_and(|record| record.pid == *pid) && self.alive(*pid, |_| true)
        });
        let event = match (pid.and_then(|pid| self.seen(pid)), line.half.state()) {
            (Some(seen), _) => SourceEvent::Adopted(of_this_copy(seen)),
            (None, SourceState::Copying | SourceState::Switching) => SourceEvent::Gone,
            (None, SourceState::Completed | SourceState::Retired) if last => {
                SourceEvent::Adopted(CopyStatus::Completed)
            }
            (None, _) => return,
        };
        if let Some(half) = self.source(node, job) {
            half.begun = pid.is_some() && event != SourceEvent::Adopted(CopyStatus::None);
        }
        self.source_post(node, job, event, None);
        self.agent_plan(node, AgentTimer::Polls(job), 0);
    }

    /// An order arrives: first what the host does before the half hears of it.
    pub(crate) fn source_ordered(&mut self, node: NodeNo, job: JobNo, to: Option<NodeNo>) {
        self.source_open(node, job);
        let Some(to) = to else { return };
        let machine = self.ledger.jobs[job].machine;
        let record = self.record(node, job);
        let held = record
            .and_then(|record| record.job)
            .filter(|holder| *holder != job);
        let busy = held.is_some_and(|holder| self.holds(node, holder));
        let Some(half) = self.source(node, job) else {
            return;
        };
        if half.line.half.state() != SourceState::Absent {
            return;
        }
        half.line.target = Some(to);
        let Some(record) = record.filter(|_| !busy) else {
            return;
        };
        if self.alive(record.pid, |qemu| qemu.runs) {
            if let Some(half) = self.source(node, job) {
                half.line.process = Some(record.pid);
            }
            let pid = record.pid;
            let held = Record {
                pid,
                job: Some(job),
            };
            self.hosts[node].disk.machines.insert(machine, held);
        }
    }

    /// Whether this job still has the guest in its hands.
    fn holds(&self, node: NodeNo, job: JobNo) -> bool {
        let agent = self.hosts[node].agent.as_ref();
        let half = agent.and_then(|agent| agent.sources.get(&job));
        half.is_some_and(|half| {
            let over = matches!(
                half.line.half.state(),
                SourceState::Absent | SourceState::Resumed | SourceState::Lost
            );
            !over || half.retry.is_some()
        })
    }

    /// One piece of work: an effect, or all events until there is one.
    pub(crate) fn source_works(&mut self, node: NodeNo, job: JobNo) {
        loop {
            let Some(half) = self.source(node, job) else {
                return;
            };
            if let Some(line) = half.writing.take() {
                self.hosts[node].disk.sources.insert(job, line);
                continue;
            }
            match half.work.next() {
                Next::Effect(effect) => {
                    if self.buggy_crash(node) {
                        return;
                    }
                    let takes = self.source_perform(node, job, effect);
                    self.agent_plan(node, AgentTimer::Works(job, Side::Source), takes);
                    return;
                }
                Next::Event(event, answer) => self.source_takes(node, job, event, answer),
                Next::Done(answer) => {
                    half.told = half.line.half.clone();
                    self.publish(node, job, Side::Source);
                    if let Some(to) = answer {
                        self.answer(node, (job, Side::Source), to, Reply::Done);
                    }
                }
                Next::Idle => return,
            }
        }
    }

    fn source_takes(
        &mut self,
        node: NodeNo,
        job: JobNo,
        event: SourceEvent,
        answer: Option<Answer>,
    ) {
        let now = self.clock(node);
        let fenced = self.options.removed != Some(Guard::HostFence);
        let Some(half) = self.source(node, job) else {
            return;
        };
        let before = half.line.half.clone();
        let given = order_epoch(&event).map(|epoch| epoch.0);
        let event = if fenced {
            event
        } else {
            with_epoch(event, before.epoch())
        };
        let taken = half.line.half.handle(event, now);
        let stale = given.is_some_and(|given| given < half.obeyed);
        match taken {
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
                    self.agent_plan(node, AgentTimer::Ticks(job, Side::Source), after);
                }
                if stale {
                    self.wrong("a source took the order of a replaced owner");
                }
            }
            Err(refusal) => self.refused(node, (job, Side::Source), answer, &refusal),
        }
    }

    /// Tells why not.
    pub(crate) fn refused(
        &mut self,
        node: NodeNo,
        (job, side): (JobNo, Side),
        answer: Option<Answer>,
        refusal: &Refusal,
    ) {
        let Some(to) = answer else { return };
        self.counts.refused_orders += u64::from(matches!(refusal, Refusal::Fenced { .. }));
        let reply = match refusal {
            Refusal::Fenced { .. } => Reply::Fenced,
            Refusal::NotNow { .. } | Refusal::Mismatch { .. } => Reply::NotNow,
        };
        self.answer(node, (job, side), to, reply);
    }

    /// Carries one effect out; answers how long that takes.
    fn source_perform(&mut self, node: NodeNo, job: JobNo, effect: SourceEffect) -> Time {
        let fsync = self.fsync(node);
        let Some(half) = self.source(node, job) else {
            return 0;
        };
        let pid = half.line.process;
        if !matches!(effect, SourceEffect::Journal | SourceEffect::SendProof) {
            half.retry = None;
        }
        let qmp = MS / 2;
        let done = match effect {
            SourceEffect::Journal => {
                half.writing = Some(half.line.clone());
                return fsync;
            }
            SourceEffect::SendProof => {
                if !std::mem::replace(&mut half.sending, true) {
                    self.agent_plan(node, AgentTimer::Proves(job, 5 * MS), 0);
                }
                return 0;
            }
            SourceEffect::BeginCopy => {
                self.source_begins(node, job);
                return qmp;
            }
            SourceEffect::ContinueSwitchover => pid.is_some_and(|pid| self.qemu_continue(pid)),
            SourceEffect::CancelCopy => pid.is_some_and(|pid| self.qemu_cancel(pid)),
            SourceEffect::ResumeGuest => pid.is_some_and(|pid| self.qemu_resume(pid)),
            // Post-copy, which no fleet does.
            SourceEffect::SwitchToPostcopy | SourceEffect::EndGuest => true,
            SourceEffect::EndQemu => true,
            SourceEffect::DropMachine => {
                self.source_drops(node, job);
                true
            }
        };
        if !done && let Some(half) = self.source(node, job) {
            half.retry = Some(effect);
            self.agent_plan(node, AgentTimer::Retries(job, Side::Source), RETRY);
        }
        qmp
    }

    fn source_begins(&mut self, node: NodeNo, job: JobNo) {
        let target = self.source(node, job).and_then(|half| half.line.target);
        let pid = self.source(node, job).and_then(|half| half.line.process);
        let peer = self.qemus.living().find_map(|(pid, qemu)| {
            (qemu.job == Some(job) && Some(qemu.node) == target).then_some(pid)
        });
        let linked = target.is_some_and(|to| self.linked(node, to) && self.linked(to, node));
        let begun = linked && pid.is_some_and(|pid| self.qemu_begin(pid, peer));
        let Some(half) = self.source(node, job) else {
            return;
        };
        if begun {
            half.begun = true;
            self.agent_plan(node, AgentTimer::Polls(job), POLL);
        } else {
            let failed = CopyStatus::Failed(String::new());
            half.work.outcome(Some(SourceEvent::Copy(failed)));
        }
    }

    fn source_drops(&mut self, node: NodeNo, job: JobNo) {
        let machine = self.ledger.jobs[job].machine;
        let Some(pid) = self.source(node, job).and_then(|half| half.line.process) else {
            return;
        };
        let record = self.hosts[node].disk.machines.get(&machine).copied();
        if record.is_some_and(|record| record.pid == pid) {
            if self.alive(pid, |qemu| !qemu.outdated) && !self.target_had(job) {
                self.wrong("a source was ended although its target never had the machine");
            }
            self.hosts[node].disk.machines.remove(&machine);
            self.qemu_end(pid);
        }
    }

    /// The process changed.
    pub(crate) fn source_sees(&mut self, node: NodeNo, job: JobNo, seen: Seen) {
        let copying = self.source_copies(node, job);
        let proven = self.options.removed != Some(Guard::CompletedProof);
        let Some(half) = self.source(node, job) else {
            return;
        };
        if !copying {
            return;
        }
        if half.begun && (copies(seen.out) || !seen.alive || seen.out != Outgoing::None) {
            if seen.out == Outgoing::Device && !proven && !half.sending {
                half.sending = true;
                self.agent_plan(node, AgentTimer::Proves(job, 5 * MS), 0);
            }
            let status = of_this_copy(seen);
            self.source_post(node, job, SourceEvent::Copy(status), None);
        }
        if !seen.alive {
            self.source_post(node, job, SourceEvent::Gone, None);
        }
    }

    fn source_copies(&mut self, node: NodeNo, job: JobNo) -> bool {
        self.source(node, job).is_some_and(|half| {
            matches!(
                half.line.half.state(),
                SourceState::Copying | SourceState::Switching
            )
        })
    }

    /// QEMU is asked, for what no event may have told.
    pub(crate) fn source_polls(&mut self, node: NodeNo, job: JobNo) {
        if !self.source_copies(node, job) {
            return;
        }
        let half = self.source(node, job);
        let pid = half.filter(|half| half.begun).and_then(|h| h.line.process);
        if let Some(seen) = pid.and_then(|pid| self.seen(pid)) {
            if seen.alive {
                let mut status = of_this_copy(seen);
                if status == CopyStatus::None {
                    status = CopyStatus::Failed(String::new());
                }
                self.source_post(node, job, SourceEvent::Copy(status), None);
            } else {
                self.source_post(node, job, SourceEvent::Gone, None);
            }
        }
        self.agent_plan(node, AgentTimer::Polls(job), POLL);
    }

    /// What failed is tried again, if it is still wanted.
    pub(crate) fn source_retries(&mut self, node: NodeNo, job: JobNo) {
        let Some(half) = self.source(node, job) else {
            return;
        };
        let Some(effect) = half.retry.take() else {
            return;
        };
        if retry_is_wanted(effect, half.line.half.state()) {
            self.source_perform(node, job, effect);
        }
    }

    /// The proof leaves, again and again until it is taken or refused for ever.
    pub(crate) fn source_proves(&mut self, node: NodeNo, job: JobNo, pause: Time) {
        let proven = self.options.removed != Some(Guard::CompletedProof);
        let Some(half) = self.source(node, job) else {
            return;
        };
        let completed = half.line.half.state() == SourceState::Completed;
        let (Some(to), true, true) = (half.line.target, half.sending, completed || !proven) else {
            half.sending = false;
            return;
        };
        let pid = half.line.process.unwrap_or(0);
        self.send(
            Addr::Agent(node),
            Addr::Agent(to),
            Msg::Proof(job, node, pid),
        );
        let next = (pause * 2).min(SEC);
        let after = pause + PROOF_ANSWER.min(pause * 4);
        self.agent_plan(node, AgentTimer::Proves(job, next), after);
    }

    /// The half's word, with the copy's numbers.
    pub(crate) fn source_fact(&self, half: &SourceHalf) -> Fact {
        let qemu = half.line.process.and_then(|pid| self.qemus.get(pid));
        let qemu = qemu.filter(|qemu| half.begun && copies(qemu.out));
        let elapsed = qemu.map_or(0, |qemu| self.now - qemu.began);
        let left = if qemu.is_some_and(|qemu| qemu.busy) {
            1_000
        } else {
            10 * SEC - elapsed.min(9 * SEC)
        };
        let word = (half.told.state(), half.told.allowed(), false);
        Fact::Source(word, left, elapsed / MS)
    }
}

/// The status, unless it is what an earlier copy left.
fn of_this_copy(seen: Seen) -> CopyStatus {
    if seen.out == Outgoing::Completed && seen.runs {
        CopyStatus::None
    } else {
        copy_status(seen.out)
    }
}

/// As in `node-agent/src/source/effects.rs`: what was tried before may be overtaken.
pub(crate) const fn retry_is_wanted(effect: SourceEffect, state: SourceState) -> bool {
    matches!(
        (effect, state),
        (
            SourceEffect::CancelCopy
                | SourceEffect::ContinueSwitchover
                | SourceEffect::SwitchToPostcopy,
            SourceState::Copying | SourceState::Switching,
        ) | (SourceEffect::EndGuest, SourceState::Lost)
            | (SourceEffect::ResumeGuest, SourceState::Resumed)
            | (SourceEffect::DropMachine, SourceState::Retired)
    )
}

fn order_epoch(event: &SourceEvent) -> Option<godwit_model::Epoch> {
    match event {
        SourceEvent::Start { epoch }
        | SourceEvent::Allow { epoch }
        | SourceEvent::Postcopy { epoch }
        | SourceEvent::Cancel { epoch }
        | SourceEvent::Revert { epoch }
        | SourceEvent::Retire { epoch } => Some(*epoch),
        SourceEvent::Copy(_)
        | SourceEvent::Adopted(_)
        | SourceEvent::Gone
        | SourceEvent::ProofTaken
        | SourceEvent::Tick => None,
    }
}

/// The order as if it were of an owner that is new enough: the fence is taken away.
fn with_epoch(event: SourceEvent, seen: godwit_model::Epoch) -> SourceEvent {
    let newest = |epoch: godwit_model::Epoch| epoch.max(seen);
    match event {
        SourceEvent::Start { epoch } => SourceEvent::Start {
            epoch: newest(epoch),
        },
        SourceEvent::Allow { epoch } => SourceEvent::Allow {
            epoch: newest(epoch),
        },
        SourceEvent::Postcopy { epoch } => SourceEvent::Postcopy {
            epoch: newest(epoch),
        },
        SourceEvent::Cancel { epoch } => SourceEvent::Cancel {
            epoch: newest(epoch),
        },
        SourceEvent::Revert { epoch } => SourceEvent::Revert {
            epoch: newest(epoch),
        },
        SourceEvent::Retire { epoch } => SourceEvent::Retire {
            epoch: newest(epoch),
        },
        other @ (SourceEvent::Copy(_)
        | SourceEvent::Adopted(_)
        | SourceEvent::Gone
        | SourceEvent::ProofTaken
        | SourceEvent::Tick) => other,
    }
}
