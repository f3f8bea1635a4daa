//! The gRPC door: somebody says that a job changed. And what runs behind it.

use std::sync::{Arc, RwLock};

use godwit_ledger::{Experience, Ledger, LedgerConfig};
use godwit_model::JobId;
use godwit_model::limits::MigrationLimits;
use godwit_rpc::migration::v1::migration_server::{Migration, MigrationServer};
use godwit_rpc::migration::v1::{PokeRequest, PokeResponse};
use godwit_rpc::peer::{self, Role};
use godwit_rpc::placement::v1::placement_client::PlacementClient;
use godwit_rpc::server::{self, ServerParts};
use godwit_rpc::{Credentials, Request, Response, Routes, Status, client};
use godwit_runtime::Context;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::claim::claim_all;
use crate::config::Config;
use crate::counts;
use crate::drives::{Drives, keep_leases};
use crate::hosts::Hosts;
use crate::queue::{self, Queue};
use crate::shared::{Limits, Shared, follow_limits, follow_passages};
use crate::telemetry::Telemetry;

/// Pokes that may wait: more than one for each job that can be open says nothing new.
const POKES_MAX: usize = 1024;
/// Who may wake the coordinator.
const CALLERS: &[Role] = &[Role::ApiGateway, Role::MaintenanceService, Role::Scheduler];

/// Passes pokes on to the claim loop.
pub(crate) struct Door {
    /// `None` pokes every job.
    pub(crate) pokes: mpsc::Sender<Option<JobId>>,
}

#[godwit_rpc::async_trait]
impl Migration for Door {
    async fn poke(&self, request: Request<PokeRequest>) -> Result<Response<PokeResponse>, Status> {
        peer::require(&request, CALLERS)?;
        let job = request.into_inner().job;
        let job = if job.is_empty() {
            None
        } else {
            Some(JobId::parse(job).map_err(|error| Status::invalid_argument(error.to_string()))?)
        };
        // A full queue means that the loop is about to look anyway.
        let _ = self.pokes.try_send(job);
        Ok(Response::new(PokeResponse {}))
    }
}

/// Runs the coordinator: the door, the claim loop, and the limits that all jobs follow.
///
/// # Errors
/// When the ledger, the certificates or the port can't be used.
pub(crate) async fn run(context: Context<Config>) -> anyhow::Result<()> {
    let Context {
        config,
        shutdown,
        metrics,
        readiness,
        steps,
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
    let scheduler = PlacementClient::new(client::connect(&config.scheduler, credentials.as_ref())?);
    let bind = config.bind;
    let shared = Arc::new(Shared {
        owner: format!("migration-coordinator-{}", Uuid::now_v7()),
        hosts: Hosts::new(credentials.clone()),
        telemetry: Telemetry::new(&metrics, steps),
        drives: Drives::default(),
        queue: Queue::default(),
        shutdown: shutdown.clone(),
        limits: RwLock::new(Arc::new(Limits::from(MigrationLimits::default()))),
        policies: RwLock::default(),
        reading_limits: tokio::sync::Mutex::default(),
        experience: Experience::default(),
        config,
        ledger,
        scheduler,
    });
    let (pokes, poked) = mpsc::channel(POKES_MAX);
    let mut routes = Routes::builder();
    routes.add_service(MigrationServer::new(Door { pokes }));
    let parts = ServerParts {
        metrics: metrics.clone(),
        bind,
        credentials,
        routes: routes.routes(),
        shutdown,
    };
    let limits = tokio::spawn(follow_limits(Arc::clone(&shared)));
    let counting = tokio::spawn(counts::follow(Arc::clone(&shared)));
    let passages = tokio::spawn(follow_passages(Arc::clone(&shared)));
    let queue = tokio::spawn(queue::follow(Arc::clone(&shared)));
    let leases = tokio::spawn(keep_leases(Arc::clone(&shared)));
    let (served, ()) = tokio::join!(server::serve(parts), claim_all(shared, poked));
    queue.await?;
    leases.await?;
    limits.await?;
    passages.await?;
    counting.await?;
    Ok(served?)
}
