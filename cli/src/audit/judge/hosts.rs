//! The hosts against the ledger: what runs, what is left.

use std::collections::BTreeMap;

use godwit_ledger::{InstanceRow, InstanceState, JobRow};
use godwit_model::{JobId, MachineId, NodeName};
use godwit_rpc::agent::v1::{FoundHalf, HostInspection, SourceState, TargetState};

use crate::audit::finding::{Check, Findings};
use crate::audit::world::{World, job_name};

/// QEMU's words for a copy that only a migration can set going again.
const HELD: [&str; 3] = ["inmigrate", "finish-migrate", "postmigrate"];

pub(super) fn one_runs(world: &World, found: &mut Findings) {
    let mut running: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (node, host) in world.answers() {
        for qemu in host.qemus.iter().filter(|qemu| qemu.running) {
            let at = format!("{node} (process {})", qemu.pid);
            running.entry(&qemu.machine).or_default().push(at);
        }
    }
    for (machine, at) in running.iter().filter(|(_, at)| at.len() > 1) {
        let seen = format!("runs on {}", at.join(" and on "));
        found.add(Check::OneRuns, world.machine_name(machine), seen);
    }
}

pub(super) fn in_place(world: &World, found: &mut Findings) {
    for instance in world.instances.values() {
        let Some(node) = instance.node.as_ref().filter(|_| World::is_bound(instance)) else {
            continue;
        };
        let open = world.open_of(&instance.uid);
        let mut faults = Vec::new();
        match open.filter(|job| job.switch_allowed) {
            Some(job) => nowhere(world, job, &mut faults),
            None => at_home(world, (instance, node), open.is_some(), &mut faults),
        }
        let subject = world.machine_name(instance.uid.as_str());
        found.add_all(Check::InPlace, subject, &faults);
    }
}

/// A machine that may have changed hands: it is on one of the two.
fn nowhere(world: &World, job: &JobRow, faults: &mut Vec<String>) {
    let (Some(source), Some(target)) = (&job.source, &job.target) else {
        return;
    };
    let found = |node| world.qemus(node, &job.machine);
    // A host without answer may have it.
    if let (Some(left), Some(right)) = (found(source), found(target))
        && left.is_empty()
        && right.is_empty()
    {
        let name = job_name(job);
        faults.push(format!(
            "no QEMU on {source} nor on {target}, while {name} is open"
        ));
    }
}

/// A machine that is where it was started, or handed over to.
fn at_home(
    world: &World,
    (instance, node): (&InstanceRow, &NodeName),
    moving: bool,
    faults: &mut Vec<String>,
) {
    let (Some(host), Some(qemus)) = (world.host(node), world.qemus(node, &instance.uid)) else {
        return;
    };
    if qemus.len() > 1 {
        let processes: Vec<String> = qemus.iter().map(|qemu| qemu.pid.to_string()).collect();
        let processes = processes.join(" and ");
        faults.push(format!(
            "more than one QEMU on {node}: processes {processes}"
        ));
    }
    if instance.state != InstanceState::Running {
        return;
    }
    let Some(qemu) = qemus.first() else {
        faults.push(format!("no QEMU on {node}"));
        return;
    };
    if !moving && HELD.contains(&qemu.run_state.as_str()) {
        let state = &qemu.run_state;
        faults.push(format!(
            "its QEMU on {node} is {state}, and no migration is open"
        ));
    }
    let records = host.records.iter();
    match records
        .clone()
        .find(|record| record.machine == instance.uid.as_str())
    {
        None => faults.push(format!("{node} keeps no record of it")),
        Some(record) if record.epoch != instance.epoch.0 => {
            let (there, here) = (record.epoch, instance.epoch.0);
            faults.push(format!("it runs on {node} under epoch {there}, not {here}"));
        }
        Some(_) => {}
    }
}

/// QEMUs of nobody, and where their machine isn't.
pub(super) fn qemus(world: &World, found: &mut Findings) {
    for (node, host) in world.answers() {
        for qemu in &host.qemus {
            let subject = format!("QEMU {} on {node}", qemu.pid);
            let name = world.machine_name(&qemu.machine);
            let Some(instance) = world.instance(&qemu.machine) else {
                found.add(Check::Known, subject, format!("is of {name}"));
                continue;
            };
            let home = World::is_bound(instance) && instance.node.as_ref() == Some(node);
            let moving = world.is_moving_at(&instance.uid, node);
            if !home && !moving {
                let state = instance.state.as_str();
                let at = instance.node.as_ref().map_or("no node", NodeName::as_str);
                let seen = format!("is of {name}, which is {state} on {at}");
                found.add(Check::Leftovers, &subject, seen);
            }
            if !qemu.listening.is_empty() && !moving {
                let ports: Vec<String> = qemu.listening.iter().map(u32::to_string).collect();
                let seen = format!("listens on {}, and no migration is open", ports.join(", "));
                found.add(Check::Leftovers, format!("port of {subject}"), seen);
            }
        }
    }
}

/// What was seen on a host was read before the ledger, whose epochs only grow.
pub(super) fn epochs(world: &World, found: &mut Findings) {
    for (node, host) in world.answers() {
        for half in &host.halves {
            let Some(job) = job_of(world, half) else {
                continue;
            };
            if half.epoch > job.epoch.0 {
                let (there, here) = (half.epoch, job.epoch.0);
                let seen = format!("journaled under epoch {there}, the newest is {here}");
                found.add(Check::Epochs, format!("{} on {node}", job_name(job)), seen);
            }
        }
        let records = host.records.iter();
        let records = records.map(|record| ("runs", &record.machine, record.epoch));
        let fences = host.fences.iter();
        let fences = fences.map(|fence| ("is refused below", &fence.machine, fence.epoch));
        for (does, machine, epoch) in records.chain(fences) {
            let Some(instance) = world.instance(machine) else {
                continue;
            };
            // A hand-over is the hosts' before it is the ledger's.
            let moving = world.open_of(&instance.uid);
            let ahead = u64::from(moving.is_some_and(|job| job.switch_allowed));
            if epoch > instance.epoch.0 + ahead {
                let seen = format!("{does} epoch {epoch}, the newest is {}", instance.epoch.0);
                let subject = format!("{} on {node}", world.machine_name(machine));
                found.add(Check::Epochs, subject, seen);
            }
        }
    }
}

pub(super) fn leftovers(world: &World, found: &mut Findings) {
    for (node, host) in world.answers() {
        devices(node, host, found);
        for half in &host.halves {
            if let Some(seen) = unfinished(world, half) {
                let subject = format!("half of migration {} on {node}", half.job);
                found.add(Check::Leftovers, subject, seen);
            }
        }
        for record in &host.records {
            let instance = world.instance(&record.machine);
            let needed = |instance: &InstanceRow| {
                instance.node.as_ref() == Some(node) || world.is_moving_at(&instance.uid, node)
            };
            if !instance.is_some_and(needed) {
                let name = world.machine_name(&record.machine);
                let subject = format!("record of {name} on {node}");
                found.add(Check::Leftovers, subject, "the machine isn't there");
            }
        }
        for stray in &host.strays {
            let subject = format!("file {stray} on {node}");
            found.add(Check::Leftovers, subject, "belongs to nothing");
        }
    }
}

fn devices(node: &NodeName, host: &HostInspection, found: &mut Findings) {
    for tap in host.taps.iter().filter(|tap| tap.pid == 0) {
        let subject = format!("tap {} on {node}", tap.device);
        found.add(Check::Leftovers, subject, "no QEMU uses it");
    }
    for directory in host
        .directories
        .iter()
        .filter(|directory| directory.pid == 0)
    {
        let subject = format!("run directory {} on {node}", directory.name);
        let seen = format!("no QEMU uses it; holds {}", directory.files.join(", "));
        found.add(Check::Leftovers, subject, seen);
    }
}

/// What a half still has to do although its job is over; `None` when all is well.
fn unfinished(world: &World, half: &FoundHalf) -> Option<String> {
    let (source, target) = (half.source(), half.target());
    if !is_source_open(source) && !is_target_open(target) {
        return None;
    }
    let state = match source {
        SourceState::Unspecified => target.as_str_name(),
        SourceState::Absent
        | SourceState::Copying
        | SourceState::Switching
        | SourceState::Serving
        | SourceState::ServerLost
        | SourceState::Completed
        | SourceState::Resumed
        | SourceState::Retired
        | SourceState::Lost => source.as_str_name(),
    };
    let name = world.machine_name(&half.machine);
    match job_of(world, half) {
        None => Some(format!(
            "{state} of {name}, and the ledger knows no such job"
        )),
        Some(job) if job.state.is_final() => {
            Some(format!("{state} of {name}, and it {}", job.state))
        }
        Some(_) => None,
    }
}

fn job_of<'a>(world: &'a World, half: &FoundHalf) -> Option<&'a JobRow> {
    let (job, machine) = (
        JobId::parse(half.job.as_str()),
        MachineId::parse(half.machine.as_str()),
    );
    let job = world.jobs.get(&job.ok()?)?;
    (job.machine == machine.ok()?).then_some(job)
}

const fn is_source_open(state: SourceState) -> bool {
    match state {
        SourceState::Copying
        | SourceState::Switching
        | SourceState::Serving
        | SourceState::ServerLost
        | SourceState::Completed => true,
        SourceState::Unspecified
        | SourceState::Absent
        | SourceState::Resumed
        | SourceState::Retired
        | SourceState::Lost => false,
    }
}

const fn is_target_open(state: TargetState) -> bool {
    match state {
        TargetState::Preparing
        | TargetState::Prepared
        | TargetState::Loaded
        | TargetState::Continuing
        | TargetState::Fetching => true,
        TargetState::Unspecified
        | TargetState::Absent
        | TargetState::Running
        | TargetState::Discarded
        | TargetState::Lost
        | TargetState::MemoryLost => false,
    }
}
