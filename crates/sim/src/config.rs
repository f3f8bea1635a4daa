//! What a check goes through: how many faults of each kind, and which guard is taken away.

/// How far a check goes. Messages are lost, repeated, reordered and delayed without any limit;
/// what is counted here are the faults that would make the space of states endless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// How often another coordinator takes the job over; every former owner goes on acting.
    pub takeovers: u8,
    /// Crashes of agents, of both hosts together.
    pub crashes: u8,
    /// Deaths of QEMU, of both hosts together.
    pub deaths: u8,
    /// Hosts that die for good, with all that is on them.
    pub losses: u8,
    /// Whether a host may be declared dead that lives: the promise that a fence is, broken.
    pub lies: bool,
    /// Whether a commit may happen although its writer doesn't learn of it.
    pub unknown_commits: bool,
    /// Whether owners remember what they heard. Without, each hears what is true when it acts: as
    /// what it does may arrive at any later time, that leaves nothing out.
    pub memory: bool,
    /// Whether the machine leaves by another job after this one failed.
    pub later_job: bool,
    /// Whether the copy may end by post-copy, at any time from its permission on.
    pub post_copy: bool,
    /// The guard that a control run takes away.
    pub removed: Option<Guard>,
}

impl Config {
    /// Every kind of fault, each once, in any order and at any time: about two minutes.
    #[must_use]
    pub const fn usual() -> Self {
        Self {
            takeovers: 1,
            crashes: 1,
            deaths: 1,
            losses: 1,
            lies: false,
            unknown_commits: true,
            memory: false,
            later_job: true,
            post_copy: false,
            removed: None,
        }
    }

    /// Small enough for every test run: no QEMU dies alone, and every commit is answered.
    #[must_use]
    pub const fn quick() -> Self {
        Self {
            deaths: 0,
            unknown_commits: false,
            ..Self::usual()
        }
    }

    /// The copy may end by post-copy. Not every kind of fault in one run, but any two: what happens to
    /// coordinators and to QEMU, to both hosts alone, to coordinators and to agents.
    #[must_use]
    pub const fn post_copies() -> [Self; 3] {
        let all = Self {
            unknown_commits: false,
            later_job: false,
            post_copy: true,
            ..Self::usual()
        };
        [
            Self { crashes: 0, ..all },
            Self {
                takeovers: 0,
                ..all
            },
            Self {
                deaths: 0,
                losses: 0,
                ..all
            },
        ]
    }

    /// Post-copy, small enough for every test run: one owner, and only an agent crashes.
    #[must_use]
    pub const fn quick_post_copy() -> Self {
        let [_, alone, _] = Self::post_copies();
        Self {
            deaths: 0,
            losses: 0,
            ..alone
        }
    }

    /// Both hosts die for good, and nothing else does.
    #[must_use]
    pub const fn both_hosts() -> Self {
        Self {
            losses: 2,
            crashes: 0,
            deaths: 0,
            ..Self::usual()
        }
    }

    /// A host is declared dead that lives, and nothing dies: what a fence promises is needed.
    #[must_use]
    pub const fn lie() -> Self {
        Self {
            lies: true,
            losses: 0,
            crashes: 0,
            ..Self::quick()
        }
    }

    /// Both agents crash in one run, or one twice.
    #[must_use]
    pub const fn large() -> Self {
        Self {
            crashes: 2,
            losses: 0,
            ..Self::usual()
        }
    }

    /// The smallest in which the guard is needed.
    #[must_use]
    pub const fn control(guard: Guard) -> Self {
        let crashes = match guard {
            Guard::LastJob | Guard::ServingIsWritten => 1,
            Guard::HostFence
            | Guard::LedgerEpoch
            | Guard::PausedTarget
            | Guard::Tombstone
            | Guard::CompletedProof
            | Guard::StoppedGuest
            | Guard::NeededServer => 0,
        };
        let post_copy = guard.is_of_post_copy();
        Self {
            takeovers: if matches!(guard, Guard::ServingIsWritten) {
                0
            } else {
                1
            },
            crashes,
            losses: 0,
            post_copy,
            ..Self::quick()
        }
        .without(guard)
    }

    /// Without the guard.
    #[must_use]
    pub const fn without(self, guard: Guard) -> Self {
        Self {
            removed: Some(guard),
            ..self
        }
    }

    /// Whether the guard is in force.
    #[must_use]
    pub fn keeps(&self, guard: Guard) -> bool {
        self.removed != Some(guard)
    }
}

/// Something the protocol's safety rests on. Without it, a check has to find a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Hosts refuse orders of replaced owners.
    HostFence,
    /// The ledger refuses transitions of replaced owners.
    LedgerEpoch,
    /// The target's QEMU starts paused.
    PausedTarget,
    /// A source that stopped complete goes on only after the target's tombstone.
    Tombstone,
    /// The proof is sent only when the source's QEMU says `completed`.
    CompletedProof,
    /// Only the last job that held a machine acts on its QEMU.
    LastJob,
    /// The guest is stopped by its agent before QEMU switches to post-copy.
    StoppedGuest,
    /// A source that serves pages is kept until its target has them all.
    NeededServer,
    /// That a source serves pages is on its disk before the proof leaves.
    ServingIsWritten,
}

impl Guard {
    /// For people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HostFence => "epoch check in the agents",
            Self::LedgerEpoch => "epoch check in the ledger",
            Self::PausedTarget => "the target starts paused (-S)",
            Self::Tombstone => "tombstone before revert",
            Self::CompletedProof => "proof of `completed`",
            Self::LastJob => "only the last job acts on a machine",
            Self::StoppedGuest => "post-copy of a stopped guest",
            Self::NeededServer => "a server of pages is kept",
            Self::ServingIsWritten => "serving is written before the proof",
        }
    }

    /// Whether only post-copy needs it.
    #[must_use]
    pub const fn is_of_post_copy(self) -> bool {
        matches!(
            self,
            Self::StoppedGuest | Self::NeededServer | Self::ServingIsWritten
        )
    }

    /// All guards.
    pub const ALL: [Self; 9] = [
        Self::HostFence,
        Self::LedgerEpoch,
        Self::PausedTarget,
        Self::Tombstone,
        Self::CompletedProof,
        Self::LastJob,
        Self::StoppedGuest,
        Self::NeededServer,
        Self::ServingIsWritten,
    ];
}
