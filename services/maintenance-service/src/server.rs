//! The gRPC door: somebody says that a node changed. And what runs behind it.

use std::sync::Arc;
use std::time::Duration;

use godwit_ledger::{Experience, FloorKeeper, Ledger, LedgerConfig};
use godwit_rpc::maintenance::v1::maintenance_server::{Maintenance, MaintenanceServer};
use godwit_rpc::maintenance::v1::{PokeRequest, PokeResponse};
use godwit_rpc::migration;
use godwit_rpc::migration::v1::migration_client::MigrationClient;
use godwit_rpc::peer::{self, Role};
use godwit_rpc::server::{self, ServerParts};
use godwit_rpc::{Channel, Credentials, Request, Response, Routes, Status, client};
use godwit_runtime::Context;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::config::Config;
use crate::drain::{self, Drains};
use crate::drain_plan::{self, Plans};
use crate::rolling::{self, Rollings};
use crate::telemetry::{RollingTelemetry, Telemetry};

/// Who may wake the maintenance-service.
const CALLERS: &[Role] = &[
    Role::ApiGateway,
    Role::Scheduler,
    Role::MigrationCoordinator,
];
/// A poke that takes longer is forgotten; the coordinator polls anyway.
const POKE_MAX: Duration = Duration::from_secs(2);

/// Passes pokes on to the rounds.
struct Door {
    changed: Arc<Notify>,
}

#[godwit_rpc::async_trait]
impl Maintenance for Door {
    async fn poke(&self, request: Request<PokeRequest>) -> Result<Response<PokeResponse>, Status> {
        peer::require(&request, CALLERS)?;
        self.changed.notify_one();
        Ok(Response::new(PokeResponse {}))
    }
}

/// Runs the maintenance-service: the door, the rounds, the pokes to the coordinator.
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
    let coordinator = client::connect(&config.coordinator, credentials.as_ref())?;
    let (changed, requested) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let rollings = Rollings::new(
        ledger.clone(),
        credentials.clone(),
        (Arc::clone(&changed), Arc::clone(&requested)),
        (RollingTelemetry::new(&metrics), steps.clone()),
        shutdown.clone(),
    );
    let mut routes = Routes::builder();
    routes.add_service(MaintenanceServer::new(Door {
        changed: Arc::clone(&changed),
    }));
    let parts = ServerParts {
        metrics: metrics.clone(),
        bind: config.bind,
        credentials,
        routes: routes.routes(),
        shutdown: shutdown.clone(),
    };
    let pokes = poke_all(coordinator, Arc::clone(&requested), shutdown.clone());
    let plans = drain_plan::run(Plans::new(
        ledger.clone(),
        Arc::clone(&changed),
        shutdown.clone(),
    ));
    let rounds = drain::run(Drains {
        ledger,
        changed,
        requested,
        telemetry: Telemetry::new(&metrics),
        spans: steps,
        shutdown,
        experience: Experience::default(),
        floor: FloorKeeper::default(),
    });
    let rolling = rolling::run(rollings);
    let (served, (), (), (), ()) =
        tokio::join!(server::serve(parts), pokes, rounds, plans, rolling);
    Ok(served?)
}

/// Wakes the coordinator after each request; while one poke is under way, any number make one.
async fn poke_all(coordinator: Channel, requested: Arc<Notify>, shutdown: CancellationToken) {
    let mut coordinator = MigrationClient::new(coordinator);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = requested.notified() => {}
        }
        let poke = client::within(POKE_MAX, migration::v1::PokeRequest::default());
        tokio::select! {
            () = shutdown.cancelled() => return,
            poked = coordinator.poke(poke) => if let Err(status) = poked {
                debug!(code = %status.code(), "poke was not taken");
            },
        }
    }
}
