//! The migration protocol under every order of faults. Development only.
//!
//! Two tools over one thing: the coordinator's decision, both hosts' halves, their fences, the
//! ledger's edges, the queue and the convergence rules are the code that production runs, from
//! `godwit-model`. What surrounds them is modelled here. No service may depend on this crate.
//!
//! # The model check: one migration, everything that can happen to it
//!
//! `cargo run --release -p godwit-sim --example check`, [`check`](fn@check) and [`ends`]. Every state
//! that can be reached is visited, each once, by `stateright`, breadth first.
//!
//! What can happen, in any order and at any time: another coordinator takes the job over and the
//! former one goes on acting for ever; a commit is applied and its writer isn't told; a user
//! cancels; any order that was ever given arrives, late, again, or never; an agent crashes before
//! or between any two effects and comes back with what was on its disk; a QEMU dies; a copy
//! converges, completes, or breaks, also after the target loaded all of it; a timer fires; the
//! target refuses; a copy is given up; after a failure another job moves the machine away; a host
//! dies for good, and a person declares it dead, at any moment after that, which an owner sees or
//! doesn't yet. When the job is over, a machine that was on a fenced host, or that a fenced target
//! may have run, starts again from its disk.
//!
//! What must hold in every state: never two running copies; a source never runs after its target
//! ran; the target runs only what its source completed; a machine is never ended by the protocol
//! unless the other side has it; nothing of a replaced owner is followed or recorded; every
//! recorded edge is legal; handed over and succeeded mean that the target has it; failed means
//! that the target never ran and the machine runs on its source, or that a host is fenced; what a
//! fenced target may have run never goes on at its source. And from every state, without another
//! fault, there is a way to a final one; where a host died for good, that way is by a fence.
//!
//! The bounds: messages are lost, repeated, delayed and reordered without any limit. Counted are
//! only takeovers (1), crashes of agents (1; `--large` 2), deaths of QEMU (1), hosts that die for good
//! (1; then once more 2, without crashes and deaths). Within them the search is complete; a fault
//! that needs more of them is not covered. A fence is taken for true: of a host that was declared dead
//! and lives, a second copy runs after four steps, and no code can stand in for that promise
//! (`--lies 1`, and the last line of `--mutants`). That a host which was fenced comes back is not
//! covered either.
//! Owners hear what is true
//! when they act instead of remembering it. That leaves out nothing that matters, since hosts know
//! nothing of the ledger and an order may arrive at any time after it was given; `--memory 1` checks
//! it the long way. Orders that can't change a host any more are forgotten; a test follows all halves
//! to see that they never could.
//!
//! Measured on one core: 6,864,013 distinct states (57,725,351 generated, depth 44) in 59 s, and as
//! long again for the ways to an end; when both hosts die, 337,006 states in 3 s; `--memory 1` without
//! crashes, deaths and losses 6,532,085 states in 66 s.
//!
//! Post-copy ([`Config::post_copies`]), where a copy may turn to it at any time from its permission on:
//! the package with which the guest goes over is loaded or lost, the link breaks and is mended, QEMU
//! gives up, a source or a target dies while pages are missing. Then must hold, too: a source is not
//! ended while its target needs pages of it, nor a target that can still get them; and memory is lost
//! only where something died, a link broke for good, or broke in the moment of the switch. Faults of
//! three kinds at once (owners, agents, QEMU) would take too long with it; any two are searched whole.
//!
//! # The simulator: fleets by seed
//!
//! `cargo run --release -p godwit-sim --example simulate -- --seeds 2000`, and [`simulate`]. One
//! thread, virtual time, one dice: the same seed is the same run to the last event. A seed that
//! breaks something is printed with the line that replays it.
//!
//! 3 to 5 nodes, 4 to 12 machines, up to 60 requests, 20 cancels and a drain, 2 or 3 coordinators
//! with leases by the ledger's clock. The ledger: one writer at a time, transactions whole or not at
//! all, guards by epoch and state, rooms within capacity, hand-over with the machine's epoch. Hosts:
//! one event after another, each effect takes its time, a line that is being written when the agent
//! dies is there or isn't; processes outlive agents. QEMU: resumes by itself on a failed or
//! cancelled copy, waits without end for a silent peer, ends on a broken incoming copy, doesn't notice
//! a dead target in pre-switchover. Faults, of which each seed draws some: messages lost, repeated,
//! reordered, late by seconds; partitions one way and both ways; isolated hosts; streams cut and
//! stalled; coordinators that die, or sleep past their lease and wake; agents that die at any effect,
//! or sleep; QEMUs and whole hosts that die; a ledger that is away; its clock an hour ahead; slow
//! disks; failing starts. They end, and then every job has to end within 120 s.
//!
//! Looked at whenever it could change: at most one copy runs (I1); none is lost but by a death (I2);
//! reservations fit, and at the end belong to somebody (I5); histories without gap, each edge legal,
//! epochs never falling, and the state is what they say (I7); the limits (I8); nothing new on a
//! cordoned node (I9); orders and writes of replaced owners are refused (I11); a failed or cancelled
//! job leaves the machine where it was, a succeeded one moved it (I17).
//!
//! Measured on one core: 2,000 seeds in 7 s: 42 million events, 105 hours of virtual time, 29,000
//! jobs, 32,000 takeovers, 9,200 crashes of agents, 6,500 of coordinators, 3,300 deaths of QEMU,
//! 3,300 commits that nobody was told of, 2,600 refusals of replaced owners. 20,000 seeds without a
//! violation. Nothing ends a machine of an old epoch here but its job, although a host's report would:
//! so a source that a job forgets is seen.
//!
//! # The bite
//!
//! `check -- --mutants` and `simulate -- --mutants` take one guard away at a time ([`Guard`]), in the
//! model run alone: the epoch check of the agents, that of the ledger, `-S`, the tombstone before a
//! revert, the proof of `completed`, that only the last job acts on a machine; and of post-copy that the
//! guest is stopped before QEMU switches, that a server of pages is kept, and that it is written before
//! the proof leaves. Each has to break a
//! property: the check finds every one in 20 s, the simulator within 96 seeds. Honestly: without one
//! of the two epoch checks, a replaced owner is followed, but within these bounds no second copy
//! runs; states, tombstones and proofs stand in for it.
//!
//! # What is not modelled
//!
//! In the simulator: fences, hosts that never come back, post-copy. Time in the model check: a timer may fire whenever it is set. What memory and disks hold
//! (I3, I4): that a copy is whole is QEMU's word. Several connections to one QEMU, its command line, its
//! refusals. Machines that are started, stopped or restarted. Disks that fail or are full. A ledger that
//! loses what it committed. gRPC, SQL, TLS: they are tested with the real parts. Wall clocks of hosts
//! decide nothing, so that their jumps have nothing to act on here; the ledger's does, see
//! [`Options::clock_back`]. The node-agent's and the coordinator's own loops are written anew here,
//! after theirs: what they do otherwise than said here is not covered.

mod check;
mod config;
mod fence;
mod fleet;
mod halves;
mod liveness;
mod owner;
mod properties;
mod source;
mod state;
mod step;
mod target;

pub use check::{Finding, Report, Verdict, check, way};
pub use config::{Config, Guard};
pub use fleet::{Counts, Options, Outcome, simulate};
pub use halves::{HalfId, Incoming, Outgoing};
pub use liveness::{Ends, ends};
pub use owner::{Ears, OwnerStep, Side};
pub use source::{Cut, SourceStep};
pub use state::{
    Ledger, Orders, Owner, SourceAgent, SourceHost, SourceQemu, SourceWord, State, TargetAgent,
    TargetHost, TargetQemu, View, Wrongs,
};
pub use step::Step;
pub use target::TargetStep;

use godwit_model::migration::source::Source;
use godwit_model::migration::target::Target;
use stateright::{Model, Property};

use crate::halves::Halves;

/// One migration of one machine, and everything that can happen to it.
pub struct Migration {
    pub(crate) config: Config,
    pub(crate) sources: Halves<Source>,
    pub(crate) targets: Halves<Target>,
}

impl Migration {
    /// A migration under these faults.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            sources: Halves::default(),
            targets: Halves::default(),
        }
    }

    /// One line about a state, for people.
    #[must_use]
    pub fn describe(&self, state: &State) -> String {
        let source = |half| {
            let (at, allowed, _) = self.source_word(half);
            format!("{}{}", at.as_str(), if allowed { "+allowed" } else { "" })
        };
        let target = |half| self.target_word(half).as_str().to_owned();
        let (s, t) = (&state.source, &state.target);
        let source_agent = s.agent.as_ref().map(|agent| source(agent.half));
        let target_agent = t.agent.as_ref().map(|agent| target(agent.half));
        format!(
            "job {} epoch {} | source {} disk {} {:?} | target {} disk {} {:?}",
            state.ledger.state,
            state.ledger.epoch,
            source_agent.unwrap_or_else(|| "down".to_owned()),
            s.disk
                .map_or_else(|| "-".to_owned(), |(half, _)| source(half)),
            s.qemu,
            target_agent.unwrap_or_else(|| "down".to_owned()),
            t.disk
                .map_or_else(|| "-".to_owned(), |(half, _)| target(half)),
            t.qemu,
        )
    }
}

impl Model for Migration {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let mut state = State::first(&self.config);
        state.source.agent = Some(self.source_agent(None));
        state.target.agent = Some(self.target_agent(None));
        vec![state]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        step::possible(&self.config, state, steps);
    }

    fn next_state(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        self.take(&mut state, step)?;
        self.settle(&mut state);
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(&self.config)
    }
}
