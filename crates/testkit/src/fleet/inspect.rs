//! What an auditor would find on a host that pretends.

use godwit_rpc::agent::v1::{self as wire, MachineState};
use godwit_rpc::agent::v1::{SourceFact, TargetFact};

use super::host::{Host, Machine};
use super::target::TargetHalf;

impl Host {
    /// Its QEMUs, records, halves and fences.
    pub(crate) fn inspect(&self) -> wire::HostInspection {
        let state = self.state();
        let machines = state.machines.values();
        let here = machines.clone().filter(|machine| has_qemu(machine));
        let arriving = state.targets.values();
        let arriving = arriving.filter(|half| half.is_arriving()).map(incoming);
        let sources = state.sources.iter().map(|(job, half)| {
            let fact: SourceFact = (&half.fact()).into();
            found_half(
                job,
                half.machine.as_str(),
                (fact.state, 0),
                half.half.epoch().0,
            )
        });
        let targets = state.targets.iter().map(|(job, half)| {
            let fact: TargetFact = (&half.fact()).into();
            let epoch = half.half.epoch().0;
            found_half(job, half.spec.id.as_str(), (0, fact.state), epoch)
        });
        wire::HostInspection {
            node: self.name.to_string(),
            qemus: here.map(qemu).chain(arriving).collect(),
            records: machines.map(record).collect(),
            halves: sources.chain(targets).collect(),
            fences: state
                .fences
                .iter()
                .map(|(machine, epoch)| wire::FoundFence {
                    machine: machine.to_string(),
                    epoch: epoch.0,
                })
                .collect(),
            ..wire::HostInspection::default()
        }
    }
}

const fn has_qemu(machine: &Machine) -> bool {
    match machine.state {
        MachineState::Running
        | MachineState::Paused
        | MachineState::Stopping
        | MachineState::Migrated => true,
        MachineState::Unspecified
        | MachineState::Starting
        | MachineState::Stopped
        | MachineState::Crashed
        | MachineState::Incoming => false,
    }
}

fn qemu(machine: &Machine) -> wire::FoundQemu {
    let running = machine.state == MachineState::Running;
    let state = match machine.state {
        MachineState::Migrated => "postmigrate",
        MachineState::Paused => "paused",
        MachineState::Running
        | MachineState::Unspecified
        | MachineState::Starting
        | MachineState::Stopping
        | MachineState::Stopped
        | MachineState::Crashed
        | MachineState::Incoming => "running",
    };
    wire::FoundQemu {
        pid: machine.pid,
        start_ticks: 1,
        machine: machine.spec.id.to_string(),
        run_state: state.to_owned(),
        running,
        ..wire::FoundQemu::default()
    }
}

fn incoming(half: &TargetHalf) -> wire::FoundQemu {
    wire::FoundQemu {
        pid: half.pid,
        start_ticks: 1,
        machine: half.spec.id.to_string(),
        incoming: true,
        run_state: "inmigrate".to_owned(),
        ..wire::FoundQemu::default()
    }
}

fn record(machine: &Machine) -> wire::FoundRecord {
    wire::FoundRecord {
        machine: machine.spec.id.to_string(),
        epoch: machine.epoch.0,
        pid: machine.pid,
        ended: !has_qemu(machine),
    }
}

fn found_half(
    job: &godwit_model::JobId,
    machine: &str,
    (source, target): (i32, i32),
    epoch: u64,
) -> wire::FoundHalf {
    wire::FoundHalf {
        machine: machine.to_owned(),
        job: job.to_string(),
        source,
        target,
        epoch,
    }
}
