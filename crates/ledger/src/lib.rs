//! The job ledger in Postgres: the only crate with SQL.
//!
//! Everything that changes goes through one [`Tx`], which holds the cluster-wide revision lock, so
//! revisions are commit-ordered and a read-modify-write inside a transaction cannot race. Leases
//! alone are claimed and renewed outside it. The ledger decides nothing about migrations: it
//! records what `model` decided, and constraints refuse what must never be.

mod about;
mod audit;
mod audit_log;
mod change;
mod convert;
mod error;
mod event;
mod fence;
mod floor;
mod follow;
mod history;
mod instance;
mod job;
mod keeper;
mod lease;
mod ledger;
mod node;
mod numbers;
mod object;
mod passage;
mod queue;
mod reservation;
mod session;
mod settings;
mod trail;
mod transition;
mod tx;
mod wakeup;

pub use about::{JobFound, MachineFound, MachinesWanted};
pub use audit::{Audit, Cordon};
pub use audit_log::AuditRecord;
pub use change::{Change, ChangeKind, Changes, Mark};
pub use error::{LedgerError, retry};
pub use event::{EventKind, EventRecord, ObjectRef};
pub use fence::{FenceRow, JobFences, Outdated};
pub use floor::{Floor, facts, labels};
pub use follow::{KeptMachines, MachineKeeper};
pub use history::JobHistory;
pub use instance::{InstanceRow, InstanceState};
pub use job::{JobRow, MigrationRequest, TraceContext};
pub use keeper::{FloorKeeper, KeptFloor};
pub use lease::Lease;
pub use ledger::{Ledger, LedgerConfig, schema_fingerprint};
pub use node::{Capacity, NodeRow};
pub use numbers::TableSize;
pub use object::{NewObject, Object, ObjectKey};
pub use passage::{Experience, PassageMark, PassageRow};
pub use queue::QueueRow;
pub use reservation::{NewReservation, ReservationRow, Reserved};
pub use settings::{SettingsFound, overcommit};
pub use transition::{JobChange, JobStep, Recorded, TransitionRow};
pub use tx::Tx;
pub use wakeup::Wakeups;
