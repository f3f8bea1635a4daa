//! The gRPC doors of the scheduler, and what runs behind them.

use std::sync::Arc;

use godwit_ledger::{FloorKeeper, Ledger, LedgerConfig};
use godwit_model::{JobId, MachineId, NodeName};
use godwit_rpc::inventory::v1::inventory_server::{Inventory as InventoryApi, InventoryServer};
use godwit_rpc::inventory::v1::{HostReport, HostReportResponse};
use godwit_rpc::peer::{self, Role};
use godwit_rpc::placement::v1::placement_server::{Placement as PlacementApi, PlacementServer};
use godwit_rpc::placement::v1::{
    PauseRequest, PauseResponse, PokeRequest, PokeResponse, ReserveRequest, ReserveResponse,
};
use godwit_rpc::server::{self, ServerParts};
use godwit_rpc::{Credentials, Request, Response, Routes, Status};
use godwit_runtime::Context;

use crate::config::Config;
use crate::fence_command;
use crate::floor_log;
use crate::inventory::{Inventory, watch_silence};
use crate::launch::Agents;
use crate::machines::{self, Machines};
use crate::observe::Seen;
use crate::orders::Orders;
use crate::place::{self, unavailable};
use crate::stale::{self, Epochs};
use crate::telemetry::Telemetry;
use crate::world::World;

/// What the doors lead to.
#[derive(Clone)]
struct Doors {
    ledger: Ledger,
    floor: Arc<FloorKeeper>,
    inventory: Arc<Inventory>,
    epochs: Arc<Epochs>,
    agents: Arc<Agents>,
}

impl Doors {
    async fn pause_machine(&self, machine: &MachineId, paused: bool) -> Result<(), Status> {
        let row = self.ledger.instance(machine).await.map_err(unavailable)?;
        let node = row.and_then(|row| row.node);
        let node = node.ok_or_else(|| Status::not_found("no host has the machine"))?;
        let host = self.ledger.node(&node).await.map_err(unavailable)?;
        let host = host.filter(|host| host.ready);
        let silent = || Status::unavailable(format!("node {node} does not answer"));
        let host = host.ok_or_else(silent)?;
        self.agents
            .pause(&host.agent_address, machine, paused)
            .await
    }
}

#[godwit_rpc::async_trait]
impl InventoryApi for Doors {
    async fn report(
        &self,
        request: Request<HostReport>,
    ) -> Result<Response<HostReportResponse>, Status> {
        let peer = peer::require(&request, &[Role::NodeAgent])?;
        let report = request.into_inner();
        let node = NodeName::parse(report.node.clone())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if peer.role != Role::Insecure && peer.name != node.as_str() {
            let text = format!("the agent of {} may not speak for {node}", peer.name);
            return Err(Status::permission_denied(text));
        }
        let stale = stale::find((&self.ledger, &self.epochs), &report.machines);
        let stale = stale.await.map_err(unavailable)?;
        self.inventory
            .report(&self.ledger, node, report)
            .await
            .map_err(unavailable)?;
        Ok(Response::new(HostReportResponse { stale }))
    }
}

#[godwit_rpc::async_trait]
impl PlacementApi for Doors {
    async fn reserve(
        &self,
        request: Request<ReserveRequest>,
    ) -> Result<Response<ReserveResponse>, Status> {
        peer::require(&request, &[Role::MigrationCoordinator])?;
        let request = request.into_inner();
        let invalid = |error: godwit_model::InvalidId| Status::invalid_argument(error.to_string());
        let machine = MachineId::parse(request.machine.clone()).map_err(invalid)?;
        let job = JobId::parse(request.job.clone()).map_err(invalid)?;
        place::reserve((&self.ledger, &self.floor), (&machine, &job), request)
            .await
            .map(Response::new)
    }

    async fn poke(&self, request: Request<PokeRequest>) -> Result<Response<PokeResponse>, Status> {
        let callers = [
            Role::ApiGateway,
            Role::MigrationCoordinator,
            Role::MaintenanceService,
        ];
        peer::require(&request, &callers)?;
        self.inventory.machines_changed.notify_one();
        Ok(Response::new(PokeResponse {}))
    }

    async fn pause(
        &self,
        request: Request<PauseRequest>,
    ) -> Result<Response<PauseResponse>, Status> {
        peer::require(&request, &[Role::ApiGateway])?;
        let PauseRequest { machine, paused } = request.into_inner();
        let machine = MachineId::parse(machine)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.pause_machine(&machine, paused).await?;
        Ok(Response::new(PauseResponse {}))
    }
}

/// Runs the scheduler: the doors, the rounds over the machines, the watch for silent hosts.
///
/// # Errors
/// When the ledger, the certificates or the port can't be used.
pub(crate) async fn run(context: Context<Config>) -> anyhow::Result<()> {
    let Context {
        config,
        shutdown,
        metrics,
        readiness,
        ..
    } = context;
    readiness.set("ledger", false);
    let credentials = Credentials::of(&config.common, (&metrics, &shutdown))?;
    let database = LedgerConfig {
        url: config.database_url.clone(),
        connections_max: config.database_connections_max,
    };
    let ledger = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        opened = Ledger::open(database) => opened?,
    };
    readiness.set("ledger", true);
    metrics.registry(|registry| ledger.register(registry));
    let inventory = Arc::new(Inventory::new(config.node_silence()));
    let agents = Arc::new(Agents::new(credentials.clone()));
    let floor = Arc::new(FloorKeeper::default());
    let epochs = Arc::new(Epochs::default());
    let doors = Doors {
        ledger: ledger.clone(),
        floor: Arc::clone(&floor),
        inventory: Arc::clone(&inventory),
        epochs: Arc::clone(&epochs),
        agents: Arc::clone(&agents),
    };
    let mut routes = Routes::builder();
    routes.add_service(InventoryServer::new(doors.clone()));
    routes.add_service(PlacementServer::new(doors));
    let parts = ServerParts {
        metrics: metrics.clone(),
        bind: config.bind,
        credentials,
        routes: routes.routes(),
        shutdown: shutdown.clone(),
    };
    let prune = floor_log::prune(ledger.clone(), shutdown.clone());
    let watch = watch_silence(Arc::clone(&inventory), ledger.clone(), shutdown.clone());
    let machines = Arc::new(Machines {
        agents,
        config,
        ledger,
        floor,
        inventory,
        telemetry: Telemetry::new(&metrics),
        shutdown,
        orders: Orders::default(),
        keeper: World::keeper().into(),
        seen: Seen::default(),
        epochs,
    });
    let fencing = fence_command::run(Arc::clone(&machines));
    let machines = machines::run(machines);
    let (served, (), (), (), ()) =
        tokio::join!(server::serve(parts), watch, machines, fencing, prune);
    Ok(served?)
}
