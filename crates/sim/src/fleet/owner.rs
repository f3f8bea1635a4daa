//! A coordinator: claims jobs, keeps their leases, and drives each by the real decision.
//!
//! As in `migration-coordinator/src/{claim,drive,step}.rs`. One that was asleep past its lease
//! wakes with all it knew, and goes on until somebody refuses it.

use std::collections::BTreeMap;

use godwit_model::migration::convergence::Convergence;
use godwit_model::migration::decide::{Action, Command};
use godwit_model::migration::job::JobState;

use super::drive::{Drive, Heard};
use super::net::{Addr, Ask, Fact, Msg, Reply, Row, Told, Version};
use super::time::{MS, SEC, Time};
use super::{Event, Fleet, JobNo, NodeNo};
use crate::owner::Side;

/// How often a lease is renewed.
const RENEW: Time = 300 * MS;
/// How often the ledger is asked for jobs, and hosts for facts.
const POLL: Time = 500 * MS;
const FOLLOW: Time = 400 * MS;
/// Longest wait for the ledger's answer, and for a host's.
const LEDGER_ANSWER: Time = 2 * SEC;
const HOST_ANSWER: Time = 15 * SEC;
/// Pause before something is tried again.
const PAUSE: Time = 200 * MS;
/// How long a job without a fitting node waits before it fails; minutes in production.
const UNSCHEDULABLE: Time = 10 * SEC;

/// A coordinator's process.
#[derive(Debug, Default)]
pub(crate) struct Owner {
    pub(crate) up: bool,
    /// Counts its starts.
    pub(crate) starts: u32,
    /// Until when nothing of it moves.
    pub(crate) asleep: Time,
    drives: BTreeMap<JobNo, Drive>,
    /// Calls without an answer yet.
    calls: BTreeMap<u64, Call>,
    claiming: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Claim,
    /// Of a drive, which waits for it, under this epoch.
    Ledger(JobNo, u64, Wish),
    Order(JobNo, u64, Command),
    /// Nobody waits for it.
    Renew(JobNo, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Turn,
    Room,
    Write(JobState),
    Read,
}

/// What a coordinator is woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum OwnerTimer {
    /// Asks for jobs.
    Claims,
    /// Keeps a lease.
    Renews(JobNo, u64),
    /// Follows the hosts of a job.
    Follows(JobNo, u64),
    /// Decides anew.
    Turns(JobNo, u64),
    /// Waits no longer for this call.
    GivesUp(u64),
}

impl Fleet {
    pub(crate) fn owner_start(&mut self, owner: usize) {
        let process = &mut self.owners[owner];
        if process.up {
            return;
        }
        *process = Owner {
            up: true,
            starts: process.starts + 1,
            ..Owner::default()
        };
        self.owner_plan(owner, OwnerTimer::Claims, 0);
    }

    pub(crate) fn owner_crash(&mut self, owner: usize) {
        self.counts.owner_crashes += u64::from(self.owners[owner].up);
        self.owners[owner].up = false;
        self.owners_restart(owner);
    }

    fn owner_plan(&mut self, owner: usize, timer: OwnerTimer, after: Time) {
        let starts = self.owners[owner].starts;
        let event = Event::Owner(owner, starts, timer);
        self.queue.push(self.now + after, event);
    }

    pub(crate) fn owner_timer(&mut self, owner: usize, starts: u32, timer: OwnerTimer) {
        let process = &self.owners[owner];
        if !process.up || process.starts != starts {
            return;
        }
        if process.asleep > self.now {
            let event = Event::Owner(owner, starts, timer);
            self.queue.push(process.asleep, event);
            return;
        }
        match timer {
            OwnerTimer::Claims => {
                if !self.owners[owner].claiming {
                    self.owners[owner].claiming = true;
                    self.ask(owner, Call::Claim, Ask::Claim);
                }
                self.owner_plan(owner, OwnerTimer::Claims, POLL);
            }
            OwnerTimer::Renews(job, epoch) => {
                if self.drive(owner, job, epoch).is_some() {
                    self.ask(owner, Call::Renew(job, epoch), Ask::Renew(job, epoch));
                    self.owner_plan(owner, timer, RENEW);
                }
            }
            OwnerTimer::Follows(job, epoch) => self.follow(owner, job, epoch),
            OwnerTimer::Turns(job, epoch) => {
                if self.drive(owner, job, epoch).is_some() {
                    self.turn(owner, job);
                }
            }
            OwnerTimer::GivesUp(call) => {
                if self.owners[owner].calls.contains_key(&call) {
                    self.owner_told(owner, call, Told::Unavailable);
                    self.owner_answered(owner, call, Reply::Down, None);
                }
            }
        }
    }

    fn drive(&mut self, owner: usize, job: JobNo, epoch: u64) -> Option<&mut Drive> {
        let drive = self.owners[owner].drives.get_mut(&job)?;
        (drive.epoch == epoch).then_some(drive)
    }

    fn ask(&mut self, owner: usize, call: Call, ask: Ask) -> u64 {
        self.calls += 1;
        let number = self.calls;
        self.owners[owner].calls.insert(number, call);
        self.send(
            Addr::Owner(owner),
            Addr::Ledger,
            Msg::Ask(owner, number, ask),
        );
        self.owner_plan(owner, OwnerTimer::GivesUp(number), LEDGER_ANSWER);
        number
    }

    /// Follows the hosts that the job's state makes relevant.
    fn follow(&mut self, owner: usize, job: JobNo, epoch: u64) {
        let Some(drive) = self.drive(owner, job, epoch) else {
            return;
        };
        let row = drive.row;
        let known = !matches!(row.state, JobState::Pending | JobState::Placing);
        if known {
            let hosts = [(Some(row.source), Side::Source), (row.target, Side::Target)];
            for (node, side) in hosts {
                if let Some(node) = node {
                    let message = Msg::Follow(owner, (job, epoch), side);
                    self.send(Addr::Owner(owner), Addr::Agent(node), message);
                }
            }
        }
        self.owner_plan(owner, OwnerTimer::Follows(job, epoch), FOLLOW);
        self.owner_plan(owner, OwnerTimer::Turns(job, epoch), 0);
    }

    pub(crate) fn owner_hears(
        &mut self,
        owner: usize,
        (job, epoch): (JobNo, u64),
        version: Version,
        fact: Fact,
    ) {
        let now = self.now;
        let Some(drive) = self.drive(owner, job, epoch) else {
            return;
        };
        let heard = match fact {
            Fact::Source(..) => &mut drive.source,
            Fact::Target(_) => &mut drive.target,
        };
        if version < heard.version {
            return;
        }
        *heard = Heard {
            version,
            fact: Some(fact),
            at: now,
        };
        self.turn(owner, job);
    }

    /// An answer of the ledger, or none within the time.
    pub(crate) fn owner_told(&mut self, owner: usize, call: u64, told: Told) {
        let waiting = self.owners[owner].calls.get(&call).copied();
        match waiting {
            Some(Call::Claim) => {
                self.owners[owner].calls.remove(&call);
                self.owners[owner].claiming = false;
                if let Told::Job(job, row) = told {
                    self.take(owner, job, row);
                    self.owner_plan(owner, OwnerTimer::Claims, MS);
                }
            }
            Some(Call::Renew(job, epoch)) => {
                self.owners[owner].calls.remove(&call);
                if told == Told::No && self.drive(owner, job, epoch).is_some() {
                    self.owners[owner].drives.remove(&job);
                }
            }
            Some(Call::Ledger(job, epoch, wish)) => {
                self.owners[owner].calls.remove(&call);
                self.drive_told(owner, (job, epoch), wish, told);
            }
            Some(Call::Order(..)) | None => {}
        }
    }

    fn take(&mut self, owner: usize, job: JobNo, row: Row) {
        let drive = Drive {
            row,
            epoch: row.epoch,
            source: Heard::default(),
            target: Heard::default(),
            convergence: Convergence::default(),
            waits: None,
            not_before: 0,
            read_at: self.now.max(1),
            unplaced: None,
        };
        self.owners[owner].drives.insert(job, drive);
        self.owner_plan(owner, OwnerTimer::Renews(job, row.epoch), RENEW);
        self.owner_plan(owner, OwnerTimer::Follows(job, row.epoch), 0);
    }

    fn drive_told(&mut self, owner: usize, (job, epoch): (JobNo, u64), wish: Wish, told: Told) {
        let now = self.now;
        let Some(drive) = self.drive(owner, job, epoch) else {
            return;
        };
        drive.waits = None;
        match (wish, told) {
            (_, Told::Stale) => return self.lose(owner, job, epoch),
            (_, Told::Unavailable) => {
                drive.not_before = now + PAUSE;
                let state = drive.row.state;
                let written = matches!(wish, Wish::Write(to) if self.ledger.jobs[job].row.state == to && to != state);
                self.counts.unanswered += u64::from(written);
            }
            (Wish::Read, Told::Job(_, row)) if row.epoch == epoch => drive.row = row,
            (Wish::Read, _) => return self.lose(owner, job, epoch),
            (Wish::Turn, Told::Yes) => drive.row.state = JobState::Placing,
            (Wish::Room, Told::Job(_, row)) => {
                drive.row.target = row.target;
                return self.write(owner, job, vec![JobState::Placing, JobState::Reserved]);
            }
            (Wish::Write(to), _) => {
                drive.row.state = to;
                drive.row.switch_allowed |= matches!(
                    to,
                    JobState::SwitchAllowed | JobState::HandedOver | JobState::Succeeded
                );
                if to.is_final() {
                    self.owners[owner].drives.remove(&job);
                    return;
                }
            }
            (Wish::Room, _) if *drive.unplaced.get_or_insert(now) + UNSCHEDULABLE <= now => {
                return self.write(owner, job, vec![JobState::Placing, JobState::Failed]);
            }
            (Wish::Turn | Wish::Room, _) => drive.not_before = now + PAUSE,
        }
        let drive = self.drive(owner, job, epoch);
        let pause = drive.map_or(0, |drive| drive.not_before.saturating_sub(now));
        if pause > 0 {
            // What happened meanwhile is read before anything else is done.
            if let Some(drive) = self.drive(owner, job, epoch) {
                drive.read_at = 0;
            }
            self.owner_plan(owner, OwnerTimer::Turns(job, epoch), pause);
        } else {
            self.turn(owner, job);
        }
    }

    /// The job is somebody else's, or has to be claimed anew.
    fn lose(&mut self, owner: usize, job: JobNo, epoch: u64) {
        self.owners[owner].drives.remove(&job);
        self.ask(owner, Call::Renew(job, epoch), Ask::Release(job, epoch));
    }

    /// A host's answer to an order, or none within the time.
    pub(crate) fn owner_answered(
        &mut self,
        owner: usize,
        call: u64,
        reply: Reply,
        fact: Option<(Version, Fact)>,
    ) {
        let Some(Call::Order(job, epoch, command)) = self.owners[owner].calls.get(&call).copied()
        else {
            return;
        };
        self.owners[owner].calls.remove(&call);
        let now = self.now;
        let Some(drive) = self.drive(owner, job, epoch) else {
            return;
        };
        drive.waits = None;
        match reply {
            Reply::Fenced => return self.lose(owner, job, epoch),
            Reply::Done => {}
            Reply::NotNow | Reply::Down => {
                if command == Command::PrepareTarget && reply == Reply::NotNow {
                    let states = vec![drive.row.state, JobState::Aborting];
                    return self.write(owner, job, states);
                }
                drive.not_before = now + PAUSE;
                self.owner_plan(owner, OwnerTimer::Turns(job, epoch), PAUSE);
            }
        }
        match fact {
            Some((version, fact)) => self.owner_hears(owner, (job, epoch), version, fact),
            None => self.turn(owner, job),
        }
    }

    /// Facts, decision, one action.
    fn turn(&mut self, owner: usize, job: JobNo) {
        let now = self.now;
        let removed = self.options.removed;
        let Some(drive) = self.owners[owner].drives.get_mut(&job) else {
            return;
        };
        if drive.waits.is_some() || drive.not_before > now {
            return;
        }
        let epoch = drive.epoch;
        if drive.read_at == 0 {
            drive.read_at = now.max(1);
            return self.wish(owner, job, Wish::Read, Ask::Read(job));
        }
        let facts = drive.facts(now);
        let action = drive.decide(&facts, removed);
        match action {
            Action::TakeTurn => self.wish(owner, job, Wish::Turn, Ask::TakeTurn(job, epoch)),
            Action::Reserve => self.wish(owner, job, Wish::Room, Ask::Reserve(job, epoch)),
            Action::Record { to, .. } => {
                let states = drive.chapters(to, &facts, removed);
                if to == JobState::HandedOver {
                    // Beside the writing: the target runs, whatever is recorded.
                    self.order(owner, job, Command::RetireSource);
                }
                if self.buggy_owner(owner) {
                    return;
                }
                self.write(owner, job, states);
            }
            Action::Command(command) => {
                if self.buggy_owner(owner) {
                    return;
                }
                let call = self.order(owner, job, command);
                if let Some(drive) = self.drive(owner, job, epoch) {
                    drive.waits = call;
                }
            }
            Action::Wait(_) => {
                // Somebody may have cancelled.
                if drive.read_at + POLL <= now {
                    drive.read_at = now;
                    self.wish(owner, job, Wish::Read, Ask::Read(job));
                }
            }
            Action::Done => {
                self.owners[owner].drives.remove(&job);
            }
        }
    }

    fn wish(&mut self, owner: usize, job: JobNo, wish: Wish, ask: Ask) {
        let Some(epoch) = self.owners[owner].drives.get(&job).map(|drive| drive.epoch) else {
            return;
        };
        let call = self.ask(owner, Call::Ledger(job, epoch, wish), ask);
        if let Some(drive) = self.drive(owner, job, epoch) {
            drive.waits = Some(call);
        }
    }

    fn write(&mut self, owner: usize, job: JobNo, states: Vec<JobState>) {
        let Some(epoch) = self.owners[owner].drives.get(&job).map(|drive| drive.epoch) else {
            return;
        };
        let Some(last) = states.last().copied() else {
            return;
        };
        self.wish(
            owner,
            job,
            Wish::Write(last),
            Ask::Record(job, epoch, states),
        );
    }

    fn order(&mut self, owner: usize, job: JobNo, command: Command) -> Option<u64> {
        let drive = self.owners[owner].drives.get(&job)?;
        let (row, epoch) = (drive.row, drive.epoch);
        let node: NodeNo = match Side::of(command) {
            Side::Source => row.source,
            Side::Target => row.target?,
        };
        let copy_to = row.target.filter(|_| command == Command::StartCopy);
        self.calls += 1;
        let call = self.calls;
        self.owners[owner]
            .calls
            .insert(call, Call::Order(job, epoch, command));
        let message = Msg::Order(owner, call, (job, epoch), command, copy_to);
        self.send(Addr::Owner(owner), Addr::Agent(node), message);
        self.owner_plan(owner, OwnerTimer::GivesUp(call), HOST_ANSWER);
        Some(call)
    }
}
