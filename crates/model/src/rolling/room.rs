//! Whether a node can be taken out now: its machines, and those of the nodes that are out already,
//! have a place elsewhere, and any one other node could still fail.

use crate::placement::{Fleet, Placement};
use crate::plan::{Evacuation, evacuate};
use crate::{MachineId, NodeName};

/// So many nodes that can't be taken out end the search for more in one look.
const MISFITS_MAX: usize = 8;

/// What is known of machines.
pub(super) struct Machines<'a> {
    /// Whether one may be counted on to leave.
    pub(super) moves: &'a dyn Fn(&MachineId) -> bool,
    /// Its name for people.
    pub(super) name: &'a dyn Fn(&MachineId) -> String,
}

/// Takes nodes out of a fleet on trial; [`Trial::end`] puts everything back.
pub(super) struct Trial<'a> {
    fleet: &'a mut Fleet,
    machines: Machines<'a>,
    spare_node: bool,
    taken: Vec<(NodeName, Evacuation)>,
    /// Why nothing more can be taken out, whatever it is.
    full: Option<String>,
    misfits: usize,
}

impl<'a> Trial<'a> {
    /// With `out` taken out already.
    pub(super) fn new(
        fleet: &'a mut Fleet,
        machines: Machines<'a>,
        (out, spare_node): (&[NodeName], bool),
    ) -> Self {
        // All of them are closed before the first is emptied, so that none is a place to go to.
        for node in out {
            fleet.close(node);
        }
        let mut trial = Self {
            fleet,
            machines,
            spare_node,
            taken: vec![],
            full: None,
            misfits: 0,
        };
        for node in out {
            let tried = evacuate(
                trial.fleet,
                std::slice::from_ref(node),
                trial.machines.moves,
                false,
            );
            if let Some(why) = stuck(&tried, trial.machines.name) {
                trial.full.get_or_insert(why);
            }
            trial.taken.push((node.clone(), tried));
        }
        trial
    }

    /// Takes `node` out, too, if that is safe.
    ///
    /// # Errors
    /// Why it isn't, in words.
    pub(super) fn admit(&mut self, node: &NodeName) -> Result<(), String> {
        if let Some(why) = &self.full {
            return Err(why.clone());
        }
        if self.misfits == MISFITS_MAX {
            return Err("other nodes of its wave could not be emptied either".to_owned());
        }
        self.fleet.close(node);
        let tried = evacuate(
            self.fleet,
            std::slice::from_ref(node),
            self.machines.moves,
            false,
        );
        let refusal = stuck(&tried, self.machines.name).or_else(|| {
            let alone = self.spare_node && !self.fleet.bears_a_loss();
            alone.then(|| {
                "with it closed the rest could not bear the loss of a node: too little room \
                 (spec.spareNode)"
                    .to_owned()
            })
        });
        match refusal {
            None => {
                self.taken.push((node.clone(), tried));
                Ok(())
            }
            Some(why) => {
                tried.undo(self.fleet);
                self.fleet.reopen(node);
                self.misfits += 1;
                Err(why)
            }
        }
    }

    /// Puts everything back.
    pub(super) fn end(self) {
        for (node, tried) in self.taken.iter().rev() {
            tried.undo(self.fleet);
            self.fleet.reopen(node);
        }
    }
}

fn stuck(tried: &Evacuation, name: &dyn Fn(&MachineId) -> String) -> Option<String> {
    let stuck = tried.stuck.first()?;
    let why = Placement {
        chosen: None,
        verdicts: stuck.verdicts.clone(),
    };
    Some(format!(
        "machine {} on node {} has nowhere to go: {}",
        name(&stuck.machine),
        stuck.source,
        why.summary()
    ))
}
