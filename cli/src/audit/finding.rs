//! What is checked, and what was found broken.

use serde::{Serialize, Serializer};

/// Something that must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// At most one copy runs.
    OneRuns,
    /// A running machine is where the ledger says.
    InPlace,
    /// Every QEMU is of a known machine.
    Known,
    /// Reservations fit.
    Capacity,
    /// Each reservation has a reason, and each machine one.
    Reserved,
    /// Histories are whole.
    History,
    /// One open migration a machine.
    OneOpen,
    /// Limits are kept.
    Limits,
    /// Closed nodes get nothing new.
    Cordon,
    /// No host is ahead of the ledger.
    Epochs,
    /// Nothing is left behind.
    Leftovers,
    /// What users see of machines is true.
    InstanceShown,
    /// What users see of migrations is true.
    MigrationShown,
    /// Everything could be asked.
    Asked,
}

impl Check {
    /// All checks, in the order in which they are told.
    pub const ALL: [Self; 14] = [
        Self::OneRuns,
        Self::InPlace,
        Self::Known,
        Self::Capacity,
        Self::Reserved,
        Self::History,
        Self::OneOpen,
        Self::Limits,
        Self::Cordon,
        Self::Epochs,
        Self::Leftovers,
        Self::InstanceShown,
        Self::MigrationShown,
        Self::Asked,
    ];

    /// Its name for programs.
    pub const fn id(self) -> &'static str {
        match self {
            Self::OneRuns => "one-runs",
            Self::InPlace => "in-place",
            Self::Known => "known",
            Self::Capacity => "capacity",
            Self::Reserved => "reserved",
            Self::History => "history",
            Self::OneOpen => "one-open",
            Self::Limits => "limits",
            Self::Cordon => "cordon",
            Self::Epochs => "epochs",
            Self::Leftovers => "leftovers",
            Self::InstanceShown => "instance-shown",
            Self::MigrationShown => "migration-shown",
            Self::Asked => "asked",
        }
    }

    /// What must hold.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::OneRuns => "over all hosts, at most one QEMU of a machine runs its CPUs",
            Self::InPlace => {
                "a running machine has exactly one QEMU on its node under its epoch, beside an \
                 open migration's"
            }
            Self::Known => "every QEMU is of a machine that the ledger knows",
            Self::Capacity => "reservations on a node stay within its capacity",
            Self::Reserved => {
                "room is held for open migrations and for machines where they are bound, and for \
                 each of these"
            }
            Self::History => {
                "a history has no gap and only legal steps, each with actor and reason, under \
                 epochs that never shrink, and it leads to the present state"
            }
            Self::OneOpen => "a machine has at most one open migration",
            Self::Limits => "open migrations stay within the limits of cluster, source and target",
            Self::Cordon => "no migration that got its turn after a cordon is given that node",
            Self::Epochs => "no host has obeyed an epoch that the ledger has not handed out",
            Self::Leftovers => {
                "no QEMU, tap, directory, listening port, record or unfinished half of a migration \
                 is left where nothing needs it"
            }
            Self::InstanceShown => {
                "node and phase of a VirtualMachineInstance are those of its machine"
            }
            Self::MigrationShown => {
                "the phase of a VirtualMachineInstanceMigration is that of its state"
            }
            Self::Asked => "every host, monitor and file could be asked",
        }
    }
}

impl Serialize for Check {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}

/// Something that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// What should.
    pub check: Check,
    /// Of which machine, migration, node or host; the same at every look.
    pub subject: String,
    /// What is seen instead; may differ from look to look.
    pub seen: String,
}

/// Findings while they are gathered.
#[derive(Debug, Default)]
pub(crate) struct Findings(pub(crate) Vec<Finding>);

impl Findings {
    /// Adds one.
    pub(crate) fn add(
        &mut self,
        check: Check,
        subject: impl Into<String>,
        seen: impl Into<String>,
    ) {
        self.0.push(Finding {
            check,
            subject: subject.into(),
            seen: seen.into(),
        });
    }

    /// Adds one for several faults of the same subject, unless there are none.
    pub(crate) fn add_all(&mut self, check: Check, subject: impl Into<String>, faults: &[String]) {
        if !faults.is_empty() {
            self.add(check, subject, faults.join("; "));
        }
    }
}
