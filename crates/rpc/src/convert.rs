//! Conversions between the wire and the domain. What the wire leaves open is refused here.

use godwit_model::machine::{Disk, ImageFormat, Kernel, MachineSpec, Nic, PageSize};
use godwit_model::migration::fact::{Progress, SourceFact, TargetAddress, TargetFact};
use godwit_model::migration::grant::{ProcessIdentity, Proof, Refusal};
use godwit_model::migration::source::SourceState;
use godwit_model::migration::target::TargetState;
use godwit_model::seed::{Content, Seed, SeedSource};
use godwit_model::{Bytes, Epoch, JobId, MachineId, NodeName};
use tonic::Status;

use crate::agent::v1 as wire;

/// A job reference with its parts parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRef {
    /// The machine.
    pub machine: MachineId,
    /// The job.
    pub job: JobId,
    /// The commanding owner's epoch.
    pub epoch: Epoch,
}

impl TryFrom<wire::JobRef> for JobRef {
    type Error = Status;

    fn try_from(wire: wire::JobRef) -> Result<Self, Status> {
        Ok(Self {
            machine: parsed("machine", MachineId::parse(wire.machine))?,
            job: parsed("job", JobId::parse(wire.job))?,
            epoch: Epoch(wire.epoch),
        })
    }
}

impl From<&JobRef> for wire::JobRef {
    fn from(job: &JobRef) -> Self {
        Self {
            machine: job.machine.to_string(),
            job: job.job.to_string(),
            epoch: job.epoch.0,
        }
    }
}

/// The job reference of a message; one without it is refused.
///
/// # Errors
/// `InvalidArgument` naming what is wrong.
pub fn job_ref(wire: Option<wire::JobRef>) -> Result<JobRef, Status> {
    wire.ok_or_else(|| missing("job"))?.try_into()
}

impl From<MachineSpec> for wire::MachineSpec {
    fn from(spec: MachineSpec) -> Self {
        Self {
            id: spec.id.to_string(),
            namespace: spec.namespace,
            name: spec.name,
            cpus: spec.cpus,
            memory_bytes: spec.memory.0,
            machine_type: spec.machine_type,
            cpu_model: spec.cpu_model,
            disks: spec.disks.into_iter().map(wire::Disk::from).collect(),
            nics: spec.nics.into_iter().map(wire::Nic::from).collect(),
            kernel: spec.kernel.map(wire::Kernel::from),
            hugepage_bytes: spec.hugepages.map_or(0, |size| size.bytes().0),
        }
    }
}

impl TryFrom<wire::MachineSpec> for MachineSpec {
    type Error = Status;

    fn try_from(wire: wire::MachineSpec) -> Result<Self, Status> {
        let disks: Result<Vec<Disk>, Status> = wire.disks.into_iter().map(Disk::try_from).collect();
        if wire.cpus == 0 || wire.memory_bytes == 0 {
            return Err(missing("spec.cpus or spec.memory_bytes"));
        }
        Ok(Self {
            id: parsed("spec.id", MachineId::parse(wire.id))?,
            namespace: wire.namespace,
            name: wire.name,
            cpus: wire.cpus,
            memory: Bytes(wire.memory_bytes),
            machine_type: wire.machine_type,
            cpu_model: wire.cpu_model,
            disks: disks?,
            nics: wire.nics.into_iter().map(Nic::from).collect(),
            kernel: wire.kernel.map(Kernel::from),
            hugepages: parsed("spec.hugepage_bytes", PageSize::maybe(wire.hugepage_bytes))?,
        })
    }
}

impl From<Disk> for wire::Disk {
    fn from(disk: Disk) -> Self {
        let format = match disk.format {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
        };
        Self {
            name: disk.name,
            path: disk.path,
            format: format.to_owned(),
            shared: disk.shared,
            read_only: disk.read_only,
            create_bytes: disk.create.map_or(0, |size| size.0),
            boot: disk.boot,
            seed: disk.seed.map(wire::Seed::from),
        }
    }
}

impl From<Seed> for wire::Seed {
    fn from(seed: Seed) -> Self {
        let source = match seed.source {
            SeedSource::NoCloud => "NoCloud",
            SeedSource::ConfigDrive => "ConfigDrive",
        };
        Self {
            source: source.to_owned(),
            instance_id: seed.instance_id,
            hostname: seed.hostname,
            user_data: Some(seed.user_data.into()),
            network_data: seed.network_data.map(Into::into),
        }
    }
}

impl TryFrom<wire::Seed> for Seed {
    type Error = Status;

    fn try_from(wire: wire::Seed) -> Result<Self, Status> {
        let source = match wire.source.as_str() {
            "NoCloud" => SeedSource::NoCloud,
            "ConfigDrive" => SeedSource::ConfigDrive,
            other => {
                let text = format!("spec.disks.seed.source {other:?} is none of cloud-init's");
                return Err(Status::invalid_argument(text));
            }
        };
        Ok(Self {
            source,
            instance_id: wire.instance_id,
            hostname: wire.hostname,
            user_data: wire.user_data.unwrap_or_default().into(),
            network_data: wire.network_data.map(Into::into),
        })
    }
}

impl From<Content> for wire::SeedContent {
    fn from(content: Content) -> Self {
        let content = match content {
            Content::Text(text) => wire::seed_content::Content::Text(text),
            Content::Base64(text) => wire::seed_content::Content::Base64(text),
        };
        Self {
            content: Some(content),
        }
    }
}

impl From<wire::SeedContent> for Content {
    fn from(wire: wire::SeedContent) -> Self {
        match wire.content {
            Some(wire::seed_content::Content::Base64(text)) => Self::Base64(text),
            Some(wire::seed_content::Content::Text(text)) => Self::Text(text),
            None => Self::Text(String::new()),
        }
    }
}

impl std::fmt::Debug for wire::SeedContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Content::from(self.clone()).fmt(f)
    }
}

/// Nobody has to see a key.
impl std::fmt::Debug for wire::CopyKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CopyKey(..)")
    }
}

impl TryFrom<wire::Disk> for Disk {
    type Error = Status;

    fn try_from(wire: wire::Disk) -> Result<Self, Status> {
        let format = match wire.format.as_str() {
            "raw" => ImageFormat::Raw,
            "qcow2" => ImageFormat::Qcow2,
            other => {
                let text = format!("spec.disks.format {other:?} is neither raw nor qcow2");
                return Err(Status::invalid_argument(text));
            }
        };
        Ok(Self {
            name: wire.name,
            path: wire.path,
            format,
            shared: wire.shared,
            read_only: wire.read_only,
            create: (wire.create_bytes > 0).then_some(Bytes(wire.create_bytes)),
            boot: wire.boot,
            seed: wire.seed.map(Seed::try_from).transpose()?,
        })
    }
}

impl From<Nic> for wire::Nic {
    fn from(nic: Nic) -> Self {
        Self {
            name: nic.name,
            mac: nic.mac,
            network: nic.network,
        }
    }
}

impl From<wire::Nic> for Nic {
    fn from(wire: wire::Nic) -> Self {
        Self {
            name: wire.name,
            mac: wire.mac,
            network: wire.network,
        }
    }
}

impl From<Kernel> for wire::Kernel {
    fn from(kernel: Kernel) -> Self {
        Self {
            image: kernel.image,
            kernel_path: kernel.kernel_path,
            initrd_path: kernel.initrd_path,
            arguments: kernel.arguments,
        }
    }
}

impl From<wire::Kernel> for Kernel {
    fn from(wire: wire::Kernel) -> Self {
        Self {
            image: wire.image,
            kernel_path: wire.kernel_path,
            initrd_path: wire.initrd_path,
            arguments: wire.arguments,
        }
    }
}

impl From<SourceState> for wire::SourceState {
    fn from(state: SourceState) -> Self {
        match state {
            SourceState::Absent => Self::Absent,
            SourceState::Copying => Self::Copying,
            SourceState::Switching => Self::Switching,
            SourceState::Completed => Self::Completed,
            SourceState::Resumed => Self::Resumed,
            SourceState::Retired => Self::Retired,
            SourceState::Lost => Self::Lost,
        }
    }
}

impl From<&SourceFact> for wire::SourceFact {
    fn from(fact: &SourceFact) -> Self {
        Self {
            state: wire::SourceState::from(fact.state).into(),
            allowed: fact.allowed,
            reason: fact.reason.clone(),
            progress: Some(fact.progress.into()),
            stopped_at_us: fact.stopped_at_us.unwrap_or(0),
            completed_at_us: fact.completed_at_us.unwrap_or(0),
        }
    }
}

impl TryFrom<wire::SourceFact> for SourceFact {
    type Error = Status;

    fn try_from(wire: wire::SourceFact) -> Result<Self, Status> {
        let state = match wire.state() {
            wire::SourceState::Unspecified => return Err(missing("source.state")),
            wire::SourceState::Absent => SourceState::Absent,
            wire::SourceState::Copying => SourceState::Copying,
            wire::SourceState::Switching => SourceState::Switching,
            wire::SourceState::Completed => SourceState::Completed,
            wire::SourceState::Resumed => SourceState::Resumed,
            wire::SourceState::Retired => SourceState::Retired,
            wire::SourceState::Lost => SourceState::Lost,
        };
        Ok(Self {
            state,
            allowed: wire.allowed,
            reason: wire.reason,
            progress: wire.progress.map(Progress::from).unwrap_or_default(),
            stopped_at_us: given(wire.stopped_at_us),
            completed_at_us: given(wire.completed_at_us),
        })
    }
}

impl From<Progress> for wire::Progress {
    fn from(progress: Progress) -> Self {
        Self {
            transferred_bytes: progress.transferred.0,
            remaining_bytes: progress.remaining.0,
            total_bytes: progress.total.0,
            throughput: progress.throughput,
            dirty_rate: progress.dirty_rate,
            passes: progress.passes,
            throttle_percent: progress.throttle_percent,
            expected_downtime_ms: progress.expected_downtime_ms,
            elapsed_ms: progress.elapsed_ms,
            downtime_ms: progress.downtime_ms,
        }
    }
}

impl From<wire::Progress> for Progress {
    fn from(wire: wire::Progress) -> Self {
        Self {
            transferred: Bytes(wire.transferred_bytes),
            remaining: Bytes(wire.remaining_bytes),
            total: Bytes(wire.total_bytes),
            throughput: wire.throughput,
            dirty_rate: wire.dirty_rate,
            passes: wire.passes,
            throttle_percent: wire.throttle_percent,
            expected_downtime_ms: wire.expected_downtime_ms,
            downtime_ms: wire.downtime_ms,
            elapsed_ms: wire.elapsed_ms,
        }
    }
}

impl From<TargetState> for wire::TargetState {
    fn from(state: TargetState) -> Self {
        match state {
            TargetState::Absent => Self::Absent,
            TargetState::Preparing => Self::Preparing,
            TargetState::Prepared => Self::Prepared,
            TargetState::Loaded => Self::Loaded,
            TargetState::Continuing => Self::Continuing,
            TargetState::Running => Self::Running,
            TargetState::Discarded => Self::Discarded,
            TargetState::Lost { .. } => Self::Lost,
        }
    }
}

impl From<&TargetFact> for wire::TargetFact {
    fn from(fact: &TargetFact) -> Self {
        let continued = match fact.state {
            TargetState::Continuing | TargetState::Running => true,
            TargetState::Lost { continued } => continued,
            TargetState::Absent
            | TargetState::Preparing
            | TargetState::Prepared
            | TargetState::Loaded
            | TargetState::Discarded => false,
        };
        let address = fact.address.clone();
        Self {
            state: wire::TargetState::from(fact.state).into(),
            reason: fact.reason.clone(),
            uri: address.as_ref().map(|a| a.uri.clone()).unwrap_or_default(),
            address: address
                .as_ref()
                .map(|a| a.address.clone())
                .unwrap_or_default(),
            ports: address
                .iter()
                .flat_map(|a| a.ports.iter().map(|port| (*port).into()))
                .collect(),
            continued,
            running_at_us: fact.running_at_us.unwrap_or(0),
        }
    }
}

impl TryFrom<wire::TargetFact> for TargetFact {
    type Error = Status;

    fn try_from(wire: wire::TargetFact) -> Result<Self, Status> {
        let state = match wire.state() {
            wire::TargetState::Unspecified => return Err(missing("target.state")),
            wire::TargetState::Absent => TargetState::Absent,
            wire::TargetState::Preparing => TargetState::Preparing,
            wire::TargetState::Prepared => TargetState::Prepared,
            wire::TargetState::Loaded => TargetState::Loaded,
            wire::TargetState::Continuing => TargetState::Continuing,
            wire::TargetState::Running => TargetState::Running,
            wire::TargetState::Discarded => TargetState::Discarded,
            wire::TargetState::Lost => TargetState::Lost {
                continued: wire.continued,
            },
        };
        Ok(Self {
            state,
            address: address(&wire)?,
            reason: wire.reason,
            running_at_us: given(wire.running_at_us),
        })
    }
}

fn address(wire: &wire::TargetFact) -> Result<Option<TargetAddress>, Status> {
    if wire.uri.is_empty() {
        return Ok(None);
    }
    let ports: Result<Vec<u16>, _> = wire.ports.iter().map(|port| u16::try_from(*port)).collect();
    let ports = ports.map_err(|_| Status::invalid_argument("target.ports is no TCP port"))?;
    Ok(Some(TargetAddress {
        uri: wire.uri.clone(),
        address: wire.address.clone(),
        ports,
    }))
}

/// A proof as it travels, under the epoch of the job's owner that started the copy.
pub fn proof_to_wire(proof: &Proof, epoch: Epoch) -> wire::Proof {
    wire::Proof {
        job: Some(wire::JobRef {
            machine: proof.machine.to_string(),
            job: proof.job.to_string(),
            epoch: epoch.0,
        }),
        source_node: proof.source.to_string(),
        pid: proof.process.pid,
        boot_id: proof.process.boot_id.clone(),
        start_ticks: proof.process.start_ticks,
        // No part of the evidence: the source's host adds it.
        machine_epoch: 0,
    }
}

impl TryFrom<wire::Proof> for Proof {
    type Error = Status;

    fn try_from(wire: wire::Proof) -> Result<Self, Status> {
        let job = job_ref(wire.job)?;
        if wire.pid == 0 || wire.boot_id.is_empty() {
            return Err(missing("pid or boot_id"));
        }
        Ok(Self {
            machine: job.machine,
            job: job.job,
            source: parsed("source_node", NodeName::parse(wire.source_node))?,
            process: ProcessIdentity {
                pid: wire.pid,
                start_ticks: wire.start_ticks,
                boot_id: wire.boot_id,
            },
        })
    }
}

/// How a host's refusal travels: `Aborted` for a replaced owner, who must stop.
pub fn refused(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::Fenced { .. } => Status::aborted(refusal.to_string()),
        Refusal::NotNow { .. } => Status::failed_precondition(refusal.to_string()),
        Refusal::Mismatch { .. } => Status::invalid_argument(refusal.to_string()),
    }
}

/// The state of a report; one that says none is refused.
///
/// # Errors
/// `InvalidArgument`.
pub fn machine_state(report: &wire::MachineReport) -> Result<wire::MachineState, Status> {
    let state = report.state();
    if state == wire::MachineState::Unspecified {
        return Err(missing("machines.state"));
    }
    Ok(state)
}

/// A field's value, or a refusal that names the field.
///
/// # Errors
/// `InvalidArgument` with the field's name and what is wrong with it.
pub fn parsed<T, E: std::fmt::Display>(field: &str, value: Result<T, E>) -> Result<T, Status> {
    value.map_err(|error| Status::invalid_argument(format!("{field}: {error}")))
}

fn missing(field: &str) -> Status {
    Status::invalid_argument(format!("{field} is missing"))
}

const fn given(value: u64) -> Option<u64> {
    if value == 0 { None } else { Some(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unspecified_state_is_refused_by_name() {
        let refused = TargetFact::try_from(wire::TargetFact::default()).expect_err("state 0");
        assert!(refused.message().contains("target.state"), "{refused:?}");
        let refused = SourceFact::try_from(wire::SourceFact::default()).expect_err("state 0");
        assert!(refused.message().contains("source.state"), "{refused:?}");
    }

    #[test]
    fn a_target_fact_survives_the_wire() {
        for state in [
            TargetState::Prepared,
            TargetState::Lost { continued: true },
            TargetState::Lost { continued: false },
        ] {
            let fact = TargetFact {
                state,
                reason: "why".into(),
                address: Some(TargetAddress {
                    uri: "tcp:10.77.0.12:39037".into(),
                    address: "10.77.0.12".into(),
                    ports: vec![39037],
                }),
                running_at_us: Some(7),
            };
            assert_eq!(
                TargetFact::try_from(wire::TargetFact::from(&fact)).ok(),
                Some(fact)
            );
        }
    }
}
