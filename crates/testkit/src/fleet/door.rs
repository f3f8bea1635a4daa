//! The gRPC door of a host that pretends: convert, call one thing, convert back.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use godwit_model::machine::MachineSpec;
use godwit_model::migration::fact::{SourceFact, TargetFact};
use godwit_model::migration::source::SourceEvent;
use godwit_model::migration::target::TargetEvent;
use godwit_model::{Epoch, MachineId, NodeName};
use godwit_rpc::agent::v1 as wire;
use godwit_rpc::agent::v1::agent_server::Agent;
use godwit_rpc::agent::v1::{MachineState, SourceState, TargetState};
use godwit_rpc::convert::{self, JobRef, refused};
use godwit_rpc::{Request, Response, Status, async_trait};
use tokio_stream::wrappers::WatchStream;

use super::host::{Host, Machine};
use super::source::CopyOrder;

/// Longest wait for a half to come to rest, in real time.
const SETTLE_MAX: Duration = Duration::from_secs(10);

/// The agent of one host.
#[derive(Debug)]
pub(crate) struct Door(pub(crate) Arc<Host>);

impl Door {
    /// Waits until the facts of a job are as they should be, and answers them.
    async fn settled(
        &self,
        job: &JobRef,
        done: impl FnMut(&wire::JobFacts) -> bool,
    ) -> Result<wire::JobFacts, Status> {
        let mut facts = self.0.watch(&job.job);
        let settled = tokio::time::timeout(SETTLE_MAX, facts.wait_for(done)).await;
        let late = |_| Status::deadline_exceeded("the half does not come to rest");
        let gone = |_| Status::unavailable("the half is gone");
        Ok(settled.map_err(late)?.map_err(gone)?.clone())
    }

    fn source(
        &self,
        request: Request<wire::JobRef>,
        event: impl FnOnce(Epoch) -> SourceEvent,
    ) -> Result<Response<wire::SourceFact>, Status> {
        let job = JobRef::try_from(request.into_inner())?;
        let fact = self.0.command_source(&job, (event(job.epoch), None));
        let fact: SourceFact = fact.map_err(|refusal| refused(&refusal))?;
        Ok(Response::new((&fact).into()))
    }

    fn change_machine(
        &self,
        id: String,
        change: impl FnOnce(&mut Machine),
    ) -> Result<Response<wire::MachineReport>, Status> {
        let id = machine_id(id)?;
        let mut state = self.0.state();
        let machine = state.machines.get_mut(&id);
        let machine = machine.ok_or_else(|| Status::not_found("no such machine here"))?;
        change(machine);
        let report = machine.report();
        drop(state);
        self.0.tell();
        Ok(Response::new(report))
    }
}

#[async_trait]
impl Agent for Door {
    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<wire::JobFacts, Status>> + Send>>;

    async fn start_machine(
        &self,
        request: Request<wire::StartMachineRequest>,
    ) -> Result<Response<wire::MachineReport>, Status> {
        let request = request.into_inner();
        let spec = request.spec.ok_or_else(|| missing("spec"))?;
        let spec = MachineSpec::try_from(spec)?;
        let epoch = Epoch(request.epoch);
        let mut state = self.0.state();
        let arriving =
            |half: &&super::target::TargetHalf| half.spec.id == spec.id && half.is_arriving();
        if state.targets.values().find(arriving).is_some() {
            return Err(Status::failed_precondition("a migration brings it here"));
        }
        let before = state.machines.get(&spec.id).map(|machine| machine.epoch);
        let seen = before.max(state.fences.get(&spec.id).copied());
        if seen.is_some_and(|seen| epoch < seen) {
            return Err(Status::aborted("the epoch is older than one that was seen"));
        }
        let pid = self.0.pid();
        let machine = state.machines.entry(spec.id.clone());
        let machine = machine.or_insert_with(|| Machine {
            spec,
            epoch,
            state: MachineState::Running,
            pid,
        });
        machine.epoch = epoch;
        machine.state = match request.paused {
            true => MachineState::Paused,
            false => MachineState::Running,
        };
        if !request.paused {
            self.0.world.oracle.starts(&machine.spec.id, &self.0.name);
        }
        let report = machine.report();
        drop(state);
        self.0.tell();
        Ok(Response::new(report))
    }

    async fn stop_machine(
        &self,
        request: Request<wire::StopMachineRequest>,
    ) -> Result<Response<wire::MachineReport>, Status> {
        self.change_machine(request.into_inner().machine, |machine| {
            machine.state = MachineState::Stopped;
            self.0.world.oracle.stops(&machine.spec.id, &self.0.name);
        })
    }

    async fn pause_machine(
        &self,
        request: Request<wire::MachineRef>,
    ) -> Result<Response<wire::MachineReport>, Status> {
        self.change_machine(request.into_inner().machine, |machine| {
            machine.state = MachineState::Paused;
            self.0.world.oracle.stops(&machine.spec.id, &self.0.name);
        })
    }

    async fn unpause_machine(
        &self,
        request: Request<wire::MachineRef>,
    ) -> Result<Response<wire::MachineReport>, Status> {
        self.change_machine(request.into_inner().machine, |machine| {
            machine.state = MachineState::Running;
            self.0.world.oracle.starts(&machine.spec.id, &self.0.name);
        })
    }

    async fn forget_machine(
        &self,
        request: Request<wire::MachineRef>,
    ) -> Result<Response<wire::ForgetMachineResponse>, Status> {
        let id = machine_id(request.into_inner().machine)?;
        self.0.state().machines.remove(&id);
        self.0.world.oracle.stops(&id, &self.0.name);
        self.0.tell();
        Ok(Response::new(wire::ForgetMachineResponse {}))
    }

    async fn list_machines(
        &self,
        _: Request<wire::ListMachinesRequest>,
    ) -> Result<Response<wire::ListMachinesResponse>, Status> {
        let machines = self.0.reports();
        Ok(Response::new(wire::ListMachinesResponse { machines }))
    }

    async fn inspect_host(
        &self,
        _: Request<wire::InspectHostRequest>,
    ) -> Result<Response<wire::HostInspection>, Status> {
        Ok(Response::new(self.0.inspect()))
    }

    async fn prepare_target(
        &self,
        request: Request<wire::PrepareTargetRequest>,
    ) -> Result<Response<wire::TargetFact>, Status> {
        let request = request.into_inner();
        let job = convert::job_ref(request.job)?;
        let spec = MachineSpec::try_from(request.spec.ok_or_else(|| missing("spec"))?)?;
        let event = TargetEvent::Prepare { epoch: job.epoch };
        let taken = self.0.command_target(&job, (event, spec));
        taken.map_err(|refusal| refused(&refusal))?;
        let starting = TargetState::Preparing;
        let facts = self.settled(&job, |facts| {
            facts
                .target
                .as_ref()
                .is_some_and(|fact| fact.state() != starting)
        });
        Ok(Response::new(facts.await?.target.unwrap_or_default()))
    }

    async fn discard_target(
        &self,
        request: Request<wire::JobRef>,
    ) -> Result<Response<wire::TargetFact>, Status> {
        let job = JobRef::try_from(request.into_inner())?;
        let event = TargetEvent::Discard { epoch: job.epoch };
        // A half that was never prepared has no machine to describe.
        let spec = nothing(job.machine.clone());
        let fact = self.0.command_target(&job, (event, spec));
        let fact: TargetFact = fact.map_err(|refusal| refused(&refusal))?;
        Ok(Response::new((&fact).into()))
    }

    async fn give_copy_key(
        &self,
        _: Request<wire::CopyKeyRequest>,
    ) -> Result<Response<wire::CopyKey>, Status> {
        // Nothing travels between hosts that pretend.
        Ok(Response::new(wire::CopyKey::default()))
    }

    async fn deliver_proof(
        &self,
        request: Request<wire::Proof>,
    ) -> Result<Response<wire::TargetFact>, Status> {
        let request = request.into_inner();
        let epoch = Epoch(request.machine_epoch);
        let fact = self.0.take_proof(request.try_into()?, epoch);
        let fact = fact.map_err(|refusal| refused(&refusal))?;
        let fact = fact.ok_or_else(|| Status::not_found("the job is not known here"))?;
        Ok(Response::new((&fact).into()))
    }

    async fn start_copy(
        &self,
        request: Request<wire::StartCopyRequest>,
    ) -> Result<Response<wire::SourceFact>, Status> {
        let request = request.into_inner();
        let job = convert::job_ref(request.job)?;
        let limits = request.limits.unwrap_or_default();
        let order = CopyOrder {
            target: convert::parsed("target_node", NodeName::parse(request.target_node))?,
            agent: request.target_agent,
            bandwidth: limits.bandwidth,
            downtime: Duration::from_millis(limits.downtime_limit_ms.into()),
        };
        let event = SourceEvent::Start { epoch: job.epoch };
        let fact = self.0.command_source(&job, (event, Some(order)));
        let fact: SourceFact = fact.map_err(|refusal| refused(&refusal))?;
        Ok(Response::new((&fact).into()))
    }

    async fn allow_switchover(
        &self,
        request: Request<wire::JobRef>,
    ) -> Result<Response<wire::SourceFact>, Status> {
        self.source(request, |epoch| SourceEvent::Allow { epoch })
    }

    async fn raise_downtime_limit(
        &self,
        request: Request<wire::RaiseDowntimeLimitRequest>,
    ) -> Result<Response<wire::SourceFact>, Status> {
        let request = request.into_inner();
        let job = convert::job_ref(request.job)?;
        let limit = Duration::from_millis(request.downtime_limit_ms.into());
        let fact = self.0.raise_downtime(&job, limit);
        let fact: SourceFact = fact.map_err(|refusal| refused(&refusal))?;
        Ok(Response::new((&fact).into()))
    }

    async fn cancel_copy(
        &self,
        request: Request<wire::JobRef>,
    ) -> Result<Response<wire::SourceFact>, Status> {
        let job = JobRef::try_from(request.get_ref().clone())?;
        self.source(request, |epoch| SourceEvent::Cancel { epoch })?;
        let going = [SourceState::Copying, SourceState::Switching];
        let facts = self.settled(&job, |facts| {
            facts
                .source
                .as_ref()
                .is_some_and(|fact| !going.contains(&fact.state()))
        });
        Ok(Response::new(facts.await?.source.unwrap_or_default()))
    }

    async fn revert_source(
        &self,
        request: Request<wire::JobRef>,
    ) -> Result<Response<wire::SourceFact>, Status> {
        self.source(request, |epoch| SourceEvent::Revert { epoch })
    }

    async fn retire_source(
        &self,
        request: Request<wire::JobRef>,
    ) -> Result<Response<wire::SourceFact>, Status> {
        self.source(request, |epoch| SourceEvent::Retire { epoch })
    }

    async fn watch_job(
        &self,
        request: Request<wire::JobRef>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let job = JobRef::try_from(request.into_inner())?;
        let facts = WatchStream::new(self.0.watch(&job.job)).map(Ok);
        let ended = self.0.world.shutdown.clone().cancelled_owned();
        Ok(Response::new(Box::pin(facts.take_until(ended))))
    }
}

/// A machine of which nothing is known but its name.
fn nothing(id: MachineId) -> MachineSpec {
    MachineSpec {
        id,
        namespace: String::new(),
        name: String::new(),
        cpus: 1,
        memory: godwit_model::Bytes(1),
        machine_type: String::new(),
        cpu_model: String::new(),
        disks: vec![],
        nics: vec![],
        kernel: None,
        hugepages: None,
    }
}

fn machine_id(text: String) -> Result<MachineId, Status> {
    convert::parsed("machine", MachineId::parse(text))
}

fn missing(field: &str) -> Status {
    Status::invalid_argument(format!("{field} is missing"))
}
