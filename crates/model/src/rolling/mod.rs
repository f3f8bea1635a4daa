//! Maintenance of many nodes, one wave after another: from what was ordered, what is recorded and
//! what is true to the next steps.
//!
//! Never waits, never reads a clock, never talks. Driven by `maintenance-service/src/rolling`. Asked
//! again after a crash it answers the same, so nothing is done twice and nothing is left out.

mod begin;
mod budget;
mod decide;
mod facts;
mod hooks;
mod order;
mod record;
mod room;
#[cfg(test)]
mod tests;
mod time;

pub use budget::{Mover, over_budget};
pub use decide::{decide, needs_fleet};
pub use facts::{Action, Call, Facts, Maintenance, NodeFact, Place, Step};
pub use hooks::{Heard, call_key};
pub use order::{Approval, Budget, Flaw, Hook, Hooks, OnFailure, Order, Share, Webhook, Window};
pub use record::{HookRecord, NodeRecord, NodeState, Outcome, Phase, Record, Stage, Wave};
pub use time::Moment;
