//! Wakes up the other services after a change. A hint: they also listen and poll.
//!
//! Bursts are merged: while one poke is on its way, any number of changes make one more.

use std::sync::Arc;
use std::time::Duration;

use godwit_rpc::maintenance::v1::maintenance_client::MaintenanceClient;
use godwit_rpc::migration::v1::migration_client::MigrationClient;
use godwit_rpc::placement::v1::placement_client::PlacementClient;
use godwit_rpc::{Channel, Code, Request, Status, maintenance, migration, placement};
use tokio::sync::Notify;
use tracing::debug;

use crate::kinds::resource;

/// A poke that takes longer is forgotten; the service polls anyway.
const DEADLINE: Duration = Duration::from_secs(2);
/// Longest wait for a host to stop a machine's CPUs.
const PAUSE_MAX: Duration = Duration::from_secs(12);

/// The services to wake up, and to ask.
#[derive(Clone, Default)]
pub(crate) struct Peers {
    scheduler: Wake,
    coordinator: Wake,
    maintenance: Wake,
    placement: Arc<[Channel]>,
}

/// Where the services listen; one channel for each replica.
#[derive(Default)]
pub(crate) struct Channels {
    pub(crate) scheduler: Vec<Channel>,
    pub(crate) coordinator: Vec<Channel>,
    pub(crate) maintenance: Vec<Channel>,
}

type Wake = Arc<[Arc<Notify>]>;

impl Peers {
    /// Starts one task for each replica; they end with the runtime.
    pub(crate) fn start(channels: Channels) -> Self {
        let placement = channels.scheduler.clone().into();
        let scheduler = spawn_all(channels.scheduler, poke_scheduler);
        let coordinator = spawn_all(channels.coordinator, poke_coordinator);
        let maintenance = spawn_all(channels.maintenance, poke_maintenance);
        Self {
            scheduler,
            coordinator,
            maintenance,
            placement,
        }
    }

    /// An object of this resource changed: wakes up who works on it.
    pub(crate) fn changed(&self, resource: &str) {
        let wakes: &[&Wake] = match resource {
            resource::MIGRATIONS => &[&self.coordinator],
            resource::MACHINES => &[&self.scheduler],
            resource::INSTANCES => &[&self.scheduler, &self.coordinator],
            resource::NODES => &[&self.scheduler, &self.maintenance],
            resource::NODE_MAINTENANCES => &[&self.maintenance],
            resource::KUBEVIRTS | resource::CONFIG_MAPS => &[&self.coordinator],
            _ => &[],
        };
        for wake in wakes.iter().flat_map(|wake| wake.iter()) {
            wake.notify_one();
        }
    }
}

impl Peers {
    /// Stops a machine's CPUs, or lets them go on, by the first scheduler that can be reached.
    ///
    /// # Errors
    /// The scheduler's, which are mostly those of the machine's host.
    pub(crate) async fn pause(&self, machine: &str, paused: bool) -> Result<(), Status> {
        let mut last = Status::unavailable("no scheduler can be reached");
        for channel in self.placement.iter() {
            let mut request = Request::new(placement::v1::PauseRequest {
                machine: machine.to_owned(),
                paused,
            });
            request.set_timeout(PAUSE_MAX);
            match PlacementClient::new(channel.clone()).pause(request).await {
                Ok(_) => return Ok(()),
                Err(status) if status.code() == Code::Unavailable => last = status,
                Err(status) => return Err(status),
            }
        }
        Err(last)
    }

    /// A machine was marked to leave its node.
    pub(crate) fn evicted(&self) {
        for wake in self.maintenance.iter() {
            wake.notify_one();
        }
    }
}

fn spawn_all<F, O>(channels: Vec<Channel>, poke: F) -> Wake
where
    F: Fn(Channel) -> O + Copy + Send + Sync + 'static,
    O: Future<Output = Result<(), Status>> + Send,
{
    let wakes = channels.into_iter().map(|channel| {
        let wake = Arc::new(Notify::new());
        let woken = wake.clone();
        tokio::spawn(async move {
            loop {
                woken.notified().await;
                if let Err(status) = poke(channel.clone()).await {
                    debug!(code = %status.code(), "poke was not taken");
                }
            }
        });
        wake
    });
    wakes.collect()
}

async fn poke_scheduler(channel: Channel) -> Result<(), Status> {
    let request = with_deadline(placement::v1::PokeRequest {});
    PlacementClient::new(channel).poke(request).await.map(drop)
}

async fn poke_coordinator(channel: Channel) -> Result<(), Status> {
    let request = with_deadline(migration::v1::PokeRequest::default());
    MigrationClient::new(channel).poke(request).await.map(drop)
}

async fn poke_maintenance(channel: Channel) -> Result<(), Status> {
    let request = with_deadline(maintenance::v1::PokeRequest::default());
    MaintenanceClient::new(channel)
        .poke(request)
        .await
        .map(drop)
}

fn with_deadline<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}
