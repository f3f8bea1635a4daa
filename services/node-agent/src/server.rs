//! The agent's gRPC door: convert, check who asks, call one thing, convert back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_stream::wrappers::ReceiverStream;

use godwit_model::machine::MachineSpec;
use godwit_model::migration::fact::{SourceFact, TargetFact};
use godwit_model::migration::source::{SourceEvent, SourceState};
use godwit_model::migration::target::TargetState;
use godwit_model::{Epoch, MachineId, NodeName};
use godwit_rpc::agent::v1 as wire;
use godwit_rpc::agent::v1::agent_server::{Agent, AgentServer};
use godwit_rpc::agent::v1::hooks_server::HooksServer;
use godwit_rpc::convert::{self, JobRef};
use godwit_rpc::peer::{self, Role};
use godwit_rpc::{Request, Response, Routes, Status, async_trait};

use godwit_runtime::failpoint;
use godwit_runtime::telemetry::trace_context;

use crate::half::HalfError;
use crate::hooks;
use crate::host::Host;
use crate::machines::{Machine, MachineError};
use crate::report::{is_arriving, machine_report, machines};
use crate::source::{self, CopyOrder};
use crate::text::chain;
use crate::vm::LaunchError;
use crate::{check, inspect, target, watch};

/// Longest wait for a QEMU to listen.
const PREPARE_LIMIT: Duration = Duration::from_secs(20);

/// Longest wait for a cancelled copy to end.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);

/// Longest wait of a proof for a copy that isn't completely loaded yet.
const LOAD_LIMIT: Duration = Duration::from_secs(2);

/// Longest grace of a stop.
const GRACE_MAX: Duration = Duration::from_secs(3600);

/// The agent's service.
#[derive(Debug)]
pub(crate) struct Server {
    host: Arc<Host>,
}

impl Server {
    /// The service as routes. Streams end with the agent.
    pub(crate) fn routes(host: Arc<Host>) -> Routes {
        let hooks = hooks::Server::new(Arc::clone(&host));
        Routes::new(AgentServer::new(Self { host })).add_service(HooksServer::new(hooks))
    }

    fn machine(&self, id: &MachineId) -> Result<Machine, Status> {
        self.host
            .machine(id)
            .ok_or_else(|| refused_machine(MachineError::Absent(id.clone())))
    }

    fn report(&self, machine: &Machine) -> Response<wire::MachineReport> {
        Response::new(machine_report(&self.host, &machine.view()))
    }

    async fn source(&self, job: &JobRef, event: SourceEvent) -> Result<SourceFact, Status> {
        let half = self
            .host
            .source(&job.machine, &job.job)
            .await
            .map_err(refused_half)?;
        half.command(source::Order::Event(event))
            .await
            .map_err(refused_half)
    }
}

#[async_trait]
impl Agent for Server {
    type WatchJobStream = ReceiverStream<Result<wire::JobFacts, Status>>;

    async fn start_machine(
        &self,
        request: Request<wire::StartMachineRequest>,
    ) -> Result<Response<wire::MachineReport>, Status> {
        peer::require(&request, &[Role::Scheduler])?;
        let request = request.into_inner();
        let spec: MachineSpec = request.spec.ok_or_else(|| missing("spec"))?.try_into()?;
        let epoch = Epoch(request.epoch);
        let arriving = |(id, half): &(MachineId, target::Handle)| {
            *id == spec.id && is_arriving(half.fact().state)
        };
        if self.host.targets().iter().any(arriving) {
            return Err(Status::failed_precondition(
                "a migration brings this machine here",
            ));
        }
        let machine = self
            .host
            .machine_to_start(&spec, epoch)
            .map_err(refused_machine)?;
        machine
            .start(spec, epoch, request.paused)
            .await
            .map_err(refused_machine)?;
        Ok(self.report(&machine))
    }

    async fn stop_machine(
        &self,
        request: Request<wire::StopMachineRequest>,
    ) -> Result<Response<wire::MachineReport>, Status> {
        peer::require(&request, &[Role::Scheduler])?;
        let request = request.into_inner();
        let machine = self.machine(&machine_id(request.machine)?)?;
        let grace = Duration::from_secs(request.grace_seconds.into()).min(GRACE_MAX);
        machine
            .stop(grace, Epoch(request.epoch))
            .await
            .map_err(refused_machine)?;
        Ok(self.report(&machine))
    }

    async fn pause_machine(
        &self,
        request: Request<wire::MachineRef>,
    ) -> Result<Response<wire::MachineReport>, Status> {
        peer::require(&request, &[Role::Scheduler])?;
        let machine = self.machine(&machine_id(request.into_inner().machine)?)?;
        machine.pause().await.map_err(refused_machine)?;
        Ok(self.report(&machine))
    }

    async fn unpause_machine(
        &self,
        request: Request<wire::MachineRef>,
    ) -> Result<Response<wire::MachineReport>, Status> {
        peer::require(&request, &[Role::Scheduler])?;
        let machine = self.machine(&machine_id(request.into_inner().machine)?)?;
        machine.unpause().await.map_err(refused_machine)?;
        Ok(self.report(&machine))
    }

    async fn forget_machine(
        &self,
        request: Request<wire::MachineRef>,
    ) -> Result<Response<wire::ForgetMachineResponse>, Status> {
        peer::require(&request, &[Role::Scheduler])?;
        let id = machine_id(request.into_inner().machine)?;
        if let Some(machine) = self.host.machine(&id) {
            machine.forget().await.map_err(refused_machine)?;
        }
        Ok(Response::new(wire::ForgetMachineResponse {}))
    }

    async fn list_machines(
        &self,
        request: Request<wire::ListMachinesRequest>,
    ) -> Result<Response<wire::ListMachinesResponse>, Status> {
        peer::require(
            &request,
            &[Role::Scheduler, Role::MigrationCoordinator, Role::Admin],
        )?;
        let machines = machines(&self.host);
        Ok(Response::new(wire::ListMachinesResponse { machines }))
    }

    async fn inspect_host(
        &self,
        request: Request<wire::InspectHostRequest>,
    ) -> Result<Response<wire::HostInspection>, Status> {
        peer::require(&request, &[Role::Admin])?;
        Ok(Response::new(inspect::inspect(&self.host).await))
    }

    async fn prepare_target(
        &self,
        request: Request<wire::PrepareTargetRequest>,
    ) -> Result<Response<wire::TargetFact>, Status> {
        peer::require(&request, &[Role::MigrationCoordinator])?;
        let request = request.into_inner();
        let job = convert::job_ref(request.job)?;
        let spec: MachineSpec = request.spec.ok_or_else(|| missing("spec"))?.try_into()?;
        if spec.id != job.machine {
            return Err(Status::invalid_argument("spec.id is not job.machine"));
        }
        let source = source_node(&request.source_node)?;
        let half = self
            .host
            .target(&job.machine, &job.job)
            .await
            .map_err(refused_half)?;
        if half.fact().state == TargetState::Absent {
            check::incoming(&self.host, &spec)
                .await
                .map_err(refused_half)?;
        }
        let order = target::Order::Prepare(job.epoch, Box::new(spec), source);
        half.command(order).await.map_err(refused_half)?;
        let fact = half
            .settled(PREPARE_LIMIT, |fact| fact.state != TargetState::Preparing)
            .await;
        Ok(target_response(&fact))
    }

    async fn discard_target(
        &self,
        request: Request<wire::JobRef>,
    ) -> Result<Response<wire::TargetFact>, Status> {
        peer::require(&request, &[Role::MigrationCoordinator])?;
        let job = JobRef::try_from(request.into_inner())?;
        let half = self
            .host
            .target(&job.machine, &job.job)
            .await
            .map_err(refused_half)?;
        let fact = half.command(target::Order::Discard(job.epoch)).await;
        Ok(target_response(&fact.map_err(refused_half)?))
    }

    async fn give_copy_key(
        &self,
        request: Request<wire::CopyKeyRequest>,
    ) -> Result<Response<wire::CopyKey>, Status> {
        let peer = peer::require(&request, &[Role::NodeAgent])?;
        let request = request.into_inner();
        peer.speaks_for(&request.source_node)?;
        let job = convert::job_ref(request.job)?;
        let source = source_node(&request.source_node)?;
        let half = self.host.target_known(&job.machine, &job.job).await;
        let half = half.map_err(refused_half)?;
        let half = half.ok_or_else(|| Status::not_found("the job is not known on this host"))?;
        let (give, given) = oneshot::channel();
        let asked = target::KeyAsked {
            epoch: job.epoch,
            source,
            give,
        };
        half.command(target::Order::GiveKey(asked))
            .await
            .map_err(refused_half)?;
        let key = given.await.map_err(|_| refused_half(HalfError::Closed))?;
        let key = key.map_or_else(Vec::new, |key| key.as_bytes().to_vec());
        Ok(Response::new(wire::CopyKey { key }))
    }

    async fn deliver_proof(
        &self,
        request: Request<wire::Proof>,
    ) -> Result<Response<wire::TargetFact>, Status> {
        let peer = peer::require(&request, &[Role::NodeAgent])?;
        let wire = request.into_inner();
        peer.speaks_for(&wire.source_node)?;
        let epoch = Epoch(wire.machine_epoch);
        let proof: godwit_model::migration::grant::Proof = wire.try_into()?;
        let half = self.host.target_known(&proof.machine, &proof.job).await;
        let half = half.map_err(refused_half)?;
        let half = half.ok_or_else(|| Status::not_found("the job is not known on this host"))?;
        half.command(target::Order::Proof(proof, epoch))
            .await
            .map_err(refused_half)?;
        let waiting = |state| matches!(state, TargetState::Prepared | TargetState::Loaded);
        let fact = half.settled(LOAD_LIMIT, |fact| !waiting(fact.state)).await;
        failpoint!("proof.answered.before");
        Ok(target_response(&fact))
    }

    async fn start_copy(
        &self,
        request: Request<wire::StartCopyRequest>,
    ) -> Result<Response<wire::SourceFact>, Status> {
        peer::require(&request, &[Role::MigrationCoordinator])?;
        let request = request.into_inner();
        let job = convert::job_ref(request.job.clone())?;
        let order = source::Order::Start(job.epoch, copy_order(request)?);
        let half = self
            .host
            .source(&job.machine, &job.job)
            .await
            .map_err(refused_half)?;
        Ok(source_response(
            &half.command(order).await.map_err(refused_half)?,
        ))
    }

    async fn allow_switchover(
        &self,
        request: Request<wire::JobRef>,
    ) -> Result<Response<wire::SourceFact>, Status> {
        peer::require(&request, &[Role::MigrationCoordinator])?;
        let job = JobRef::try_from(request.into_inner())?;
        let fact = self
            .source(&job, SourceEvent::Allow { epoch: job.epoch })
            .await?;
        Ok(source_response(&fact))
    }

    async fn raise_downtime_limit(
        &self,
        request: Request<wire::RaiseDowntimeLimitRequest>,
    ) -> Result<Response<wire::SourceFact>, Status> {
        peer::require(&request, &[Role::MigrationCoordinator])?;
        let request = request.into_inner();
        let job = convert::job_ref(request.job)?;
        let half = self
            .host
            .source(&job.machine, &job.job)
            .await
            .map_err(refused_half)?;
        let limit = Duration::from_millis(request.downtime_limit_ms.into());
        let order = source::Order::RaiseDowntime(job.epoch, limit);
        Ok(source_response(
            &half.command(order).await.map_err(refused_half)?,
        ))
    }

    async fn cancel_copy(
        &self,
        request: Request<wire::JobRef>,
    ) -> Result<Response<wire::SourceFact>, Status> {
        peer::require(&request, &[Role::MigrationCoordinator])?;
        let job = JobRef::try_from(request.into_inner())?;
        self.source(&job, SourceEvent::Cancel { epoch: job.epoch })
            .await?;
        let half = self
            .host
            .source(&job.machine, &job.job)
            .await
            .map_err(refused_half)?;
        let going = |state| matches!(state, SourceState::Copying | SourceState::Switching);
        Ok(source_response(
            &half.settled(CANCEL_LIMIT, |fact| !going(fact.state)).await,
        ))
    }

    async fn revert_source(
        &self,
        request: Request<wire::JobRef>,
    ) -> Result<Response<wire::SourceFact>, Status> {
        peer::require(&request, &[Role::MigrationCoordinator])?;
        let job = JobRef::try_from(request.into_inner())?;
        let fact = self
            .source(&job, SourceEvent::Revert { epoch: job.epoch })
            .await?;
        Ok(source_response(&fact))
    }

    async fn retire_source(
        &self,
        request: Request<wire::JobRef>,
    ) -> Result<Response<wire::SourceFact>, Status> {
        peer::require(&request, &[Role::MigrationCoordinator])?;
        let job = JobRef::try_from(request.into_inner())?;
        let fact = self
            .source(&job, SourceEvent::Retire { epoch: job.epoch })
            .await?;
        Ok(source_response(&fact))
    }

    async fn watch_job(
        &self,
        request: Request<wire::JobRef>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        peer::require(&request, &[Role::MigrationCoordinator, Role::Admin])?;
        let job = JobRef::try_from(request.into_inner())?;
        let facts = watch::watch(Arc::clone(&self.host), job);
        Ok(Response::new(ReceiverStream::new(facts)))
    }
}

fn copy_order(request: wire::StartCopyRequest) -> Result<CopyOrder, Status> {
    let node = NodeName::parse(request.target_node);
    let node = node.map_err(|e| Status::invalid_argument(format!("target_node: {e}")))?;
    if request.target_agent.is_empty() {
        return Err(missing("target_agent"));
    }
    // QEMU would take a command or a file there, too.
    let target = request.target_uri.strip_prefix("tcp:");
    let target = target.and_then(|target| target.parse::<SocketAddr>().ok());
    if target.is_none() {
        return Err(Status::invalid_argument(
            "target_uri must be tcp:ADDRESS:PORT",
        ));
    }
    let limits = request.limits.unwrap_or_default();
    Ok(CopyOrder {
        node,
        uri: request.target_uri,
        agent: request.target_agent,
        bandwidth: limits.bandwidth,
        downtime: match limits.downtime_limit_ms {
            // QEMU's own default.
            0 => Duration::from_millis(300),
            given => Duration::from_millis(given.into()),
        },
        auto_converge: limits.auto_converge,
        at_once: false,
        trace: trace_context(),
    })
}

fn source_response(fact: &SourceFact) -> Response<wire::SourceFact> {
    Response::new(fact.into())
}

fn target_response(fact: &TargetFact) -> Response<wire::TargetFact> {
    Response::new(fact.into())
}

fn source_node(text: &str) -> Result<NodeName, Status> {
    if text.is_empty() {
        return Err(Status::failed_precondition(
            "source_node is missing: who asks is older than this agent, and has to be upgraded first",
        ));
    }
    convert::parsed("source_node", NodeName::parse(text))
}

fn machine_id(text: String) -> Result<MachineId, Status> {
    MachineId::parse(text).map_err(|error| Status::invalid_argument(format!("machine: {error}")))
}

fn missing(field: &str) -> Status {
    Status::invalid_argument(format!("{field} is missing"))
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
pub(crate) fn refused_half(error: HalfError) -> Status {
    match &error {
        HalfError::Refused(refusal) => convert::refused(refusal),
        HalfError::NotNow(why) => Status::failed_precondition(why.clone()),
        HalfError::Denied(why) => Status::permission_denied(why.clone()),
        HalfError::NoRoom(why) => Status::resource_exhausted(why.clone()),
        HalfError::Log(_) | HalfError::Closed => Status::unavailable(chain(&error)),
    }
}

fn refused_machine(error: MachineError) -> Status {
    let text = chain(&error);
    match error {
        MachineError::Absent(_) => Status::not_found(text),
        MachineError::Fenced { .. } => Status::aborted(text),
        MachineError::NotNow(_) => Status::failed_precondition(text),
        MachineError::Launch(launch) => match launch {
            LaunchError::Network(_)
            | LaunchError::Image(_)
            | LaunchError::Path(_)
            | LaunchError::Disk(_)
            | LaunchError::Confine(_)
            | LaunchError::Pages(_)
            | LaunchError::Seed(_)
            | LaunchError::Line(_)
            | LaunchError::Occupied(_) => Status::failed_precondition(text),
            LaunchError::Tap(_)
            | LaunchError::Directory(_)
            | LaunchError::Process(_)
            | LaunchError::Start(_) => Status::internal(text),
        },
        MachineError::Qemu(_) | MachineError::Process(_) | MachineError::Record(_) => {
            Status::internal(text)
        }
    }
}
