//! The domain: types and pure decisions. No I/O, no clock, no async, no SQL, no proto.
//!
//! The same code drives production, simulation and the model checker. Time is an argument.

mod ids;
mod units;

pub mod instance;
pub mod limits;
pub mod machine;
pub mod maintenance;
pub mod migration;
pub mod placement;
pub mod quantity;
pub mod run_strategy;
pub mod vmi;

pub use ids::{Epoch, InvalidId, JobId, MachineId, NAME_LENGTH_MAX, NodeName, Revision};
pub use units::{Bytes, BytesPerSecond};
