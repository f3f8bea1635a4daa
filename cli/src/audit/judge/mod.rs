//! From all that was seen to what is broken. Pure: no reading, no clock.
//!
//! What is legal on the way of an open migration is no finding. The rest may still be the shadow
//! of a step between two readings, so `audit` believes only what two looks show.

mod books;
mod hosts;
mod past;
#[cfg(test)]
mod tests;

pub(crate) use past::judge_history;

use super::finding::{Check, Finding, Findings};
use super::world::World;

/// Everything but the histories.
pub(crate) fn judge(world: &World) -> Vec<Finding> {
    let mut found = Findings::default();
    asked(world, &mut found);
    hosts::one_runs(world, &mut found);
    hosts::in_place(world, &mut found);
    hosts::qemus(world, &mut found);
    hosts::epochs(world, &mut found);
    hosts::leftovers(world, &mut found);
    books::capacity(world, &mut found);
    books::reserved(world, &mut found);
    books::one_open(world, &mut found);
    books::limits(world, &mut found);
    books::instances_shown(world, &mut found);
    books::migrations_shown(world, &mut found);
    found.0
}

/// What could not be looked at.
fn asked(world: &World, found: &mut Findings) {
    if let Err(why) = &world.limits {
        found.add(Check::Asked, "limits of migrations", why);
    }
    for node in &world.nodes {
        let subject = format!("host {}", node.name);
        match world.hosts.get(&node.name) {
            None => found.add(Check::Asked, subject, "registered while we looked"),
            Some(Err(why)) => found.add(Check::Asked, subject, why),
            Some(Ok(host)) if host.node != node.name.as_str() => {
                found.add(Check::Asked, subject, format!("answers as {:?}", host.node));
            }
            Some(Ok(host)) => found.add_all(Check::Asked, subject, &host.unreadable),
        }
    }
    for (node, host) in world.answers() {
        for qemu in host.qemus.iter().filter(|qemu| !qemu.error.is_empty()) {
            let subject = format!("QEMU {} on {node}", qemu.pid);
            let seen = format!("does not say whether its CPUs run: {}", qemu.error);
            found.add(Check::Asked, subject, seen);
        }
    }
}
