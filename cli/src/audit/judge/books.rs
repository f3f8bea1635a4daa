//! The ledger against itself: reservations, limits, what users are shown.

use std::collections::BTreeMap;

use godwit_ledger::{InstanceRow, InstanceState, JobRow, ReservationRow};
use godwit_model::migration::{queue::QueueLimits, view};
use godwit_model::placement::Room;
use godwit_model::{MachineId, NodeName};
use serde_json::Value;

use crate::audit::finding::{Check, Findings};
use crate::audit::world::{World, job_name};

pub(super) fn capacity(world: &World, found: &mut Findings) {
    for node in &world.nodes {
        let here = world
            .reservations
            .iter()
            .filter(|row| row.node == node.name);
        // What is held is what was booked: overcommitted when it was, it is no more than there is.
        let mut held = Room::default();
        here.for_each(|row| held += row.room);
        let (memory, cpu) = (held.memory.0, held.cpu_milli);
        let (has_memory, has_cpu) = (node.capacity.memory.0, node.capacity.cpu_milli);
        let subject = || format!("node {}", node.name);
        if memory > has_memory || cpu > has_cpu {
            let seen = format!(
                "{memory} of {has_memory} bytes and {cpu} of {has_cpu} thousandths of a CPU are \
                 held"
            );
            found.add(Check::Capacity, subject(), seen);
        }
        for (size, held) in held.hugepages.each() {
            let has = node.capacity.hugepages.get(size);
            if held > has {
                let seen = format!("{held} of {has} in pages of {size} are held");
                found.add(Check::Capacity, subject(), seen);
            }
        }
    }
}

pub(super) fn reserved(world: &World, found: &mut Findings) {
    for row in &world.reservations {
        let subject = format!(
            "{} on {}",
            world.machine_name(row.machine.as_str()),
            row.node
        );
        if let Some(fault) = needless(world, row) {
            found.add(Check::Reserved, subject, fault);
        }
    }
    for instance in world.instances.values() {
        let Some(node) = instance.node.as_ref().filter(|_| World::is_bound(instance)) else {
            continue;
        };
        let holds = |row: &ReservationRow| {
            row.machine == instance.uid && row.node == *node && row.job.is_none()
        };
        if !world.reservations.iter().any(holds) {
            let subject = format!("{} on {node}", world.machine_name(instance.uid.as_str()));
            let seen = format!("{} there without room", instance.state.as_str());
            found.add(Check::Reserved, subject, seen);
        }
    }
}

/// Why nobody needs this room; `None` when somebody does.
fn needless(world: &World, row: &ReservationRow) -> Option<String> {
    let Some(id) = &row.job else {
        let instance = world.instances.get(&row.machine);
        let bound = |instance: &InstanceRow| {
            World::is_bound(instance) && instance.node.as_ref() == Some(&row.node)
        };
        let needed = instance.is_some_and(bound);
        return (!needed).then(|| "held for a machine that isn't there".to_owned());
    };
    let Some(job) = world.jobs.get(id) else {
        return Some(format!("held for {id}, which is no migration"));
    };
    let name = job_name(job);
    if job.state.is_final() {
        return Some(format!("held for {name}, which is over"));
    }
    let elsewhere = job
        .target
        .as_ref()
        .is_some_and(|target| *target != row.node);
    if elsewhere || job.machine != row.machine {
        return Some(format!("held for {name}, which moves something else"));
    }
    None
}

pub(super) fn one_open(world: &World, found: &mut Findings) {
    let mut by_machine: BTreeMap<&MachineId, Vec<String>> = BTreeMap::new();
    for job in world.open() {
        by_machine
            .entry(&job.machine)
            .or_default()
            .push(job_name(job));
    }
    for (machine, jobs) in by_machine.iter().filter(|(_, jobs)| jobs.len() > 1) {
        let subject = world.machine_name(machine.as_str());
        found.add(Check::OneOpen, subject, jobs.join(", "));
    }
}

pub(super) fn limits(world: &World, found: &mut Findings) {
    let Ok(QueueLimits {
        per_cluster,
        outbound_per_node,
        inbound_per_node,
    }) = world.limits
    else {
        return;
    };
    let under_way: Vec<&JobRow> = world.open().filter(|job| job.state.holds_slot()).collect();
    let mut check = |subject: String, count: usize, limit: u32| {
        if count > limit as usize {
            let seen = format!("{count} are under way, {limit} may be");
            found.add(Check::Limits, subject, seen);
        }
    };
    check("cluster".to_owned(), under_way.len(), per_cluster);
    let sources = under_way.iter().filter_map(|job| job.source.as_ref());
    for (node, count) in counted(sources) {
        check(format!("away from {node}"), count, outbound_per_node);
    }
    let targets = under_way.iter().filter_map(|job| job.target.as_ref());
    for (node, count) in counted(targets) {
        check(format!("towards {node}"), count, inbound_per_node);
    }
}

fn counted<'a>(nodes: impl Iterator<Item = &'a NodeName>) -> BTreeMap<&'a NodeName, usize> {
    let mut counts = BTreeMap::new();
    for node in nodes {
        *counts.entry(node).or_default() += 1;
    }
    counts
}

pub(super) fn instances_shown(world: &World, found: &mut Findings) {
    for row in world.instances.values() {
        let subject = world.machine_name(row.uid.as_str());
        let Some(object) = world.instance_objects.get(row.uid.as_str()) else {
            found.add(Check::InstanceShown, subject, "has no object");
            continue;
        };
        let mut faults = Vec::new();
        let status = object.status.as_ref().unwrap_or(&Value::Null);
        let phase = status["phase"].as_str().unwrap_or_default();
        if !phases(row.state).contains(&phase) {
            let state = row.state.as_str();
            faults.push(format!(
                "phase {phase:?} is shown of a machine that is {state}"
            ));
        }
        let node = row.node.as_ref().map(NodeName::as_str);
        let shown = status["nodeName"].as_str();
        if row.state != InstanceState::Unplaced && shown != node {
            faults.push(format!("node {shown:?} is shown, not {node:?}"));
        }
        found.add_all(Check::InstanceShown, subject, &faults);
    }
}

/// The phases under which a machine in this state is shown. `Unknown` is KubeVirt's word for one
/// whose node does not answer.
fn phases(state: InstanceState) -> &'static [&'static str] {
    match state {
        InstanceState::Unplaced => &["", "Pending", "Scheduling"],
        InstanceState::Starting => &["Scheduled", "Unknown"],
        InstanceState::Running => &["Running", "Unknown"],
        // Asked to stop whatever it did.
        InstanceState::Stopping => &["Scheduling", "Scheduled", "Running", "Unknown"],
        InstanceState::Stopped => &["Succeeded"],
        InstanceState::Failed => &["Failed"],
    }
}

pub(super) fn migrations_shown(world: &World, found: &mut Findings) {
    for (uid, object) in &world.migration_objects {
        let job = world.jobs.values().find(|job| job.id.as_str() == uid);
        let Some(job) = job else {
            let (namespace, name) = (&object.key.namespace, &object.key.name);
            let subject = format!("migration {namespace}/{name} ({uid})");
            found.add(Check::MigrationShown, subject, "has no job");
            continue;
        };
        let phase = object
            .status
            .as_ref()
            .and_then(|status| status["phase"].as_str());
        let phase = phase.unwrap_or_default();
        let fits = match view::phase(job.state) {
            Some(wanted) => phase == wanted,
            // Keeps the one before, which was no end.
            None => !["", "Succeeded", "Failed"].contains(&phase),
        };
        if !fits {
            let seen = format!("phase {phase:?} is shown of {}", job.state);
            found.add(Check::MigrationShown, job_name(job), seen);
        }
    }
    for job in world.open() {
        if !world.migration_objects.contains_key(job.id.as_str()) {
            let seen = format!("is {} and has no object", job.state);
            found.add(Check::MigrationShown, job_name(job), seen);
        }
    }
}
