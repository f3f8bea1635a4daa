//! The domain: types and pure decisions. No I/O, no clock, no async, no SQL, no proto.
//!
//! The same code drives production, simulation and the model checker. Time is an argument.

pub mod affinity;
mod ids;
mod units;

pub mod forecast;
pub mod instance;
pub mod limits;
pub mod machine;
pub mod maintenance;
pub mod migration;
pub mod placement;
pub mod plan;
pub mod policy;
pub mod quantity;
pub mod rolling;
pub mod run_strategy;
pub mod seed;
pub mod vmi;

pub use ids::{Epoch, InvalidId, JobId, MachineId, NAME_LENGTH_MAX, NodeName, Revision};
pub use units::{Bytes, BytesPerSecond};
