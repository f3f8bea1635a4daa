//! The migration protocol under every order of faults, checked exhaustively. Development only.
//!
//! The coordinator's decision, both hosts' halves, the fence and the ledger's edges are the code
//! that production runs, from `godwit-model`. What surrounds them is modelled here for one
//! migration of one machine: the ledger's row, coordinators that lose their lease without knowing
//! it, agents that crash between any two effects, QEMU as measured, and a network that loses,
//! repeats, reorders and delays. No service may depend on this crate.

mod check;
mod config;
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
pub use fleet::{Options, Outcome, simulate};
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
            let (at, allowed) = self.source_word(half);
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
        properties::all()
    }
}
