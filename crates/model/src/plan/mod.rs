//! Plans: where the machines of nodes that are to be emptied go, in which order, and which nodes
//! can be emptied together. Nothing is moved here; a plan and its execution are made by the same
//! code, on a [`Fleet`](crate::placement::Fleet) that is as it was afterwards.

mod carrying_out;
mod drain;
mod evacuation;
mod schedule;
#[cfg(test)]
mod tests;
mod timetable;
mod underway;
mod waves;

pub use carrying_out::{Maintained, Next, NodeState, next};
pub use drain::{Departure, DrainPlan, Order, Stage, drain};
pub use evacuation::{Evacuation, Move, Stuck, evacuate, keep};
pub use schedule::{Leg, Slot, schedule, whole};
pub use timetable::{Pace, Span, Timetable, timetable};
pub use underway::{Copied, rest};
pub use waves::{Rules, Wave, Waves, Why, waves};
