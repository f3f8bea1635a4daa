//! Sees every guest start and stop, and remembers what must never be.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use godwit_model::{MachineId, NodeName};

/// Where each guest's CPUs run.
#[derive(Debug, Default)]
pub(crate) struct Oracle(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    running: HashMap<MachineId, NodeName>,
    violations: Vec<String>,
}

impl Oracle {
    /// The guest's CPUs run on `node` from now on.
    pub(crate) fn starts(&self, machine: &MachineId, node: &NodeName) {
        let mut seen = self.seen();
        let before = seen.running.insert(machine.clone(), node.clone());
        if let Some(other) = before.filter(|other| other != node) {
            let text = format!("machine {machine} was started on {node} while it ran on {other}");
            seen.violations.push(text);
        }
    }

    /// They stand still there.
    pub(crate) fn stops(&self, machine: &MachineId, node: &NodeName) {
        let mut seen = self.seen();
        if seen.running.get(machine) == Some(node) {
            seen.running.remove(machine);
        }
    }

    /// A host was ordered to do what would break a rule, and did not.
    pub(crate) fn refused(&self, node: &NodeName, why: &str) {
        self.seen().violations.push(format!("{node}: {why}"));
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.seen().violations.clone()
    }

    pub(crate) fn running(&self) -> usize {
        self.seen().running.len()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
