//! One state of the whole system: the ledger, the coordinators, both hosts, and what travels.

use godwit_model::migration::decide::Command;
use godwit_model::migration::job::JobState;
use godwit_model::migration::source::{SourceEffect, SourceState};
use godwit_model::migration::target::{TargetEffect, TargetState};

use crate::config::Config;
use crate::halves::HalfId;

/// What a source's host says of its half: how far it is, whether it holds the permission, and whether
/// the guest went over by post-copy.
pub type SourceWord = (SourceState, bool, bool);

/// The whole system.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// The job's row and the machine's.
    pub ledger: Ledger,
    /// The owners so far, by epoch from 1; each may act for ever.
    pub owners: Vec<Owner>,
    /// Orders that were ever given. Any of them may arrive, at any time, any number of times.
    pub orders: Orders,
    /// Whether the proof was ever sent; it may arrive like an order.
    pub proof: bool,
    /// Whether the target ever answered that it took the proof.
    pub proof_taken: bool,
    /// Where the machine was.
    pub source: SourceHost,
    /// Where it goes.
    pub target: TargetHost,
    /// Crashes of agents that may still happen.
    pub crashes: u8,
    /// Deaths of QEMU that may still happen.
    pub deaths: u8,
    /// Hosts that may still die for good.
    pub losses: u8,
    /// Whether the target's guest ever ran.
    pub ran: bool,
    /// Whether the machine runs elsewhere: it left by another job, or was started again from its
    /// disk after a fence.
    pub left: bool,
    /// Whether the link broke during post-copy, or QEMU gave it up, or the target lost patience.
    pub broke: bool,
    /// What was done that must never be done.
    pub wrongs: Wrongs,
}

impl State {
    /// A machine that runs, and a job to move it.
    pub(crate) fn first(config: &Config) -> Self {
        Self {
            ledger: Ledger::default(),
            owners: vec![],
            orders: Orders::default(),
            proof: false,
            proof_taken: false,
            source: SourceHost::default(),
            target: TargetHost::default(),
            crashes: config.crashes,
            deaths: config.deaths,
            losses: config.losses,
            ran: false,
            left: false,
            broke: false,
            wrongs: Wrongs::default(),
        }
    }
}

/// What the ledger holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ledger {
    /// The job's state.
    pub state: JobState,
    /// Of the newest owner; 0 before the first.
    pub epoch: u8,
    /// Whether a user wants it undone.
    pub cancel: bool,
    /// Whether the permission was ever recorded.
    pub switch_allowed: bool,
    /// Whether the machine is the target's.
    pub handed_over: bool,
    /// Whether the source's host was declared dead.
    pub source_fenced: bool,
    /// Whether the target's host was declared dead.
    pub target_fenced: bool,
    /// Whether the machine was taken from its source, to start again from its disk.
    pub released: bool,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            state: JobState::Pending,
            epoch: 0,
            cancel: false,
            switch_allowed: false,
            handed_over: false,
            source_fenced: false,
            target_fenced: false,
            released: false,
        }
    }
}

/// What must never be done, kept once it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Wrongs {
    /// A host followed an order of a replaced owner.
    pub old_order: bool,
    /// The ledger took a transition of a replaced owner.
    pub old_write: bool,
    /// The ledger took a transition that is none.
    pub edge: bool,
    /// The source's QEMU was ended although the machine was not the target's.
    pub ended_source: bool,
    /// The target's QEMU was ended after it ran.
    pub ended_target: bool,
    /// The source's QEMU was ended although its target needed pages of it.
    pub ended_server: bool,
    /// The target's guest ran although the source's QEMU never was complete.
    pub unproven: bool,
}

/// A process that drives the job under one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Acts, whether it still owns the job or not.
    Acting(View),
    /// Learned that the job is over, or somebody else's.
    Done,
}

/// What an owner knows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct View {
    /// The job's state as it was read or written last.
    pub state: JobState,
    /// The wish to cancel as it was read last.
    pub cancel: bool,
    /// The permission as it was read or written last.
    pub switch_allowed: bool,
    /// What the source's host said last; `None` while it is silent.
    pub source: Option<SourceWord>,
    /// What the target's host said last; `None` while it is silent.
    pub target: Option<TargetState>,
}

/// A set of orders.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Orders(u64);

impl Orders {
    /// All orders there are, to either host.
    pub(crate) const COMMANDS: [Command; 8] = [
        Command::PrepareTarget,
        Command::StartCopy,
        Command::AllowSwitchover,
        Command::CancelCopy,
        Command::DiscardTarget,
        Command::RevertSource,
        Command::RetireSource,
        Command::AbandonTarget,
    ];

    /// Adds one; `false` when it was there.
    pub(crate) fn give(&mut self, command: Command, epoch: u8) -> bool {
        let before = self.0;
        self.0 |= Self::bit(command, epoch);
        self.0 != before
    }

    /// Whether it was ever given.
    pub(crate) const fn holds(self, command: Command, epoch: u8) -> bool {
        self.0 & Self::bit(command, epoch) != 0
    }

    /// Forgets those for which `dead` says that they can't matter any more.
    pub(crate) fn forget(&mut self, newest: u8, dead: impl Fn(Command, u8) -> bool) {
        for epoch in 1..=newest {
            for command in Self::COMMANDS {
                if self.holds(command, epoch) && dead(command, epoch) {
                    self.0 &= !Self::bit(command, epoch);
                }
            }
        }
    }

    const fn bit(command: Command, epoch: u8) -> u64 {
        let place = match command {
            Command::PrepareTarget => 0,
            Command::StartCopy => 1,
            Command::AllowSwitchover => 2,
            Command::CancelCopy => 3,
            Command::DiscardTarget => 4,
            Command::RevertSource => 5,
            Command::RetireSource => 6,
            Command::AbandonTarget => 7,
        };
        1 << (place + 8 * (epoch as u64 - 1))
    }
}

/// The source's QEMU and what became of its copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceQemu {
    /// No copy, the guest runs.
    Running,
    /// Copying, the guest runs.
    Active,
    /// The guest is stopped and QEMU waits.
    PreSwitchover,
    /// The guest is stopped, the last pages travel.
    Device,
    /// The guest went over by post-copy, and its pages are served.
    Serving,
    /// As `Serving`, with a broken link.
    Parted,
    /// The guest is stopped for good.
    Completed,
    /// Failed by itself, the guest runs.
    Failed,
    /// Cancelled, the guest runs.
    Cancelled,
    /// Was complete, and the guest was continued.
    Resumed,
    /// The process ended.
    Gone,
}

impl SourceQemu {
    /// Whether the guest's CPUs run, if nobody stopped them.
    const fn runs(self) -> bool {
        matches!(
            self,
            Self::Running | Self::Active | Self::Failed | Self::Cancelled | Self::Resumed
        )
    }

    /// Whether a copy is under way.
    pub(crate) const fn copies(self) -> bool {
        matches!(self, Self::Active | Self::PreSwitchover | Self::Device)
    }

    /// Whether it holds pages that its target may lack.
    pub(crate) const fn serves(self) -> bool {
        matches!(self, Self::Serving | Self::Parted)
    }
}

/// The source's host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceHost {
    /// The agent; `None` while it is down.
    pub agent: Option<SourceAgent>,
    /// The newest line of the job's log: the half, and whether it knows the process.
    pub disk: Option<(HalfId, bool)>,
    /// Whether the machine's record is here.
    pub machine: bool,
    /// Whether the record says that this job held the machine last.
    pub held: bool,
    /// The machine's process.
    pub qemu: SourceQemu,
    /// Whether the agent stopped the guest, for a post-copy.
    pub stopped: bool,
    /// Whether QEMU is to end the copy by post-copy.
    pub postcopy: bool,
    /// Whether what the guest needs to go on at the target travels, its memory following.
    pub package: bool,
    /// Whether all that the target needs was sent, so that it can load although the copy fails.
    pub sent: bool,
    /// Whether the target's QEMU told that it loaded everything.
    pub confirmed: bool,
    /// Whether QEMU ever was complete, or served pages.
    pub completed: bool,
    /// Highest epoch whose order was carried out.
    pub spoken: u8,
    /// Whether the host died for good.
    pub lost: bool,
}

impl Default for SourceHost {
    fn default() -> Self {
        Self {
            agent: None,
            disk: None,
            machine: true,
            held: false,
            qemu: SourceQemu::Running,
            stopped: false,
            postcopy: false,
            package: false,
            sent: false,
            confirmed: false,
            completed: false,
            spoken: 0,
            lost: false,
        }
    }
}

impl SourceHost {
    /// Whether the guest's CPUs run.
    pub(crate) const fn runs(&self) -> bool {
        self.qemu.runs() && !self.stopped
    }
}

/// What the source's agent has in memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceAgent {
    /// The job's half.
    pub half: HalfId,
    /// Whether it has not asked QEMU yet since it was started.
    pub adopting: bool,
    /// Whether it knows the process that is copied.
    pub process: bool,
    /// Whether it listens to QEMU for this job.
    pub begun: bool,
    /// What QEMU said meanwhile; any of it may arrive late, again, or in another order.
    pub shown: u8,
    /// What failed and is tried again.
    pub retry: Option<SourceEffect>,
}

/// The target's QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TargetQemu {
    /// There is none, or none any more.
    None,
    /// Started, doesn't listen yet.
    Starting,
    /// Listens, or loads.
    Incoming,
    /// Loaded but for memory that follows from the source, the guest is paused.
    Partial,
    /// Loaded, the guest is paused.
    Loaded,
    /// The guest runs, and memory follows from the source.
    Fetching,
    /// The guest runs.
    Running,
}

impl TargetQemu {
    /// Whether the guest's CPUs run.
    pub(crate) const fn runs(self) -> bool {
        matches!(self, Self::Fetching | Self::Running)
    }

    /// Whether it needs pages of the source.
    pub(crate) const fn lacks(self) -> bool {
        matches!(self, Self::Partial | Self::Fetching)
    }
}

/// The target's host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TargetHost {
    /// The agent; `None` while it is down.
    pub agent: Option<TargetAgent>,
    /// The newest line of the job's log: the half, and whether it knows the process.
    pub disk: Option<(HalfId, bool)>,
    /// The process.
    pub qemu: TargetQemu,
    /// Highest epoch whose order was carried out.
    pub spoken: u8,
    /// Whether the host died for good.
    pub lost: bool,
}

impl Default for TargetHost {
    fn default() -> Self {
        Self {
            agent: None,
            disk: None,
            qemu: TargetQemu::None,
            spoken: 0,
            lost: false,
        }
    }
}

/// What the target's agent has in memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TargetAgent {
    /// The job's half.
    pub half: HalfId,
    /// Whether it has not asked QEMU yet since it was started.
    pub adopting: bool,
    /// Whether its line knows the process.
    pub process: bool,
    /// Whether it started a QEMU and waits until it listens.
    pub launching: bool,
    /// Whether it holds the process.
    pub attached: bool,
    /// Whether it found a QEMU that waits or loads, so that it takes the copy for one in use.
    pub loading: bool,
    /// Whether QEMU told that it is loaded; that may be read late.
    pub shown: bool,
    /// What failed and is tried again.
    pub retry: Option<TargetEffect>,
}
