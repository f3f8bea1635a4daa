//! QEMU: QMP, command line, process, migration.
//!
//! The only code that knows how QEMU is started, spoken to and moved. It keeps no state between
//! calls and decides nothing about ownership: whether a guest may run is decided in
//! `godwit-model` and carried out by node-agent, which is the only service that uses this crate.

pub mod command_line;
pub mod image;
pub mod migrate;
mod outgoing;
pub mod probe;
pub mod process;
pub mod qmp;
pub mod secret;
pub mod seed;

pub use command_line::{Accelerator, CommandLine, HostLayout, LineError, NicBackend, Role};
pub use migrate::{Continued, Incoming, Limits, MigrateError};
pub use process::{Identity, Launch, Process, ProcessError, StartError};
pub use qmp::{Event, Events, Qmp, QmpError, Stamped};
