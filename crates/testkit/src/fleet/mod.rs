//! Thousands of hosts that only pretend, in one process: the whole contract of an agent over real
//! gRPC, with machines that are numbers.
//!
//! Both halves of a migration are those of `model`, so the hosts keep the rules of safety as real
//! agents do. What QEMU, disks and links would do is modelled: links are shared, guests write to
//! their memory, and all of that takes virtual time, of which a second passes in a millisecond or
//! so. An [`Oracle`] watches every guest, and remembers when two copies of one ran.

mod copying;
mod door;
mod driver;
mod history;
mod host;
mod inspect;
mod links;
mod oracle;
mod plane;
mod report;
mod source;
mod target;
mod time;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use godwit_model::{Bytes, NodeName};
use godwit_rpc::agent::v1::agent_server::AgentServer;
use godwit_rpc::server::{self, ServerParts};
use godwit_rpc::{Channel, Routes, Status, client};
use godwit_runtime::metrics::Metrics;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::door::Door;
use self::host::Host;
use self::links::Links;
use self::oracle::Oracle;
use self::time::VirtualTime;

pub use self::driver::{Driver, Filled, Rolled, Size};
pub use self::history::{Limits, Steps, read as read_history};
pub use self::plane::{Plane, ServiceUse};

/// What the hosts are like.
#[derive(Debug, Clone)]
pub struct FleetOptions {
    /// How many hosts.
    pub hosts: usize,
    /// Memory of each host for machines.
    pub memory: Bytes,
    /// Thousandths of CPUs of each host.
    pub cpu_milli: u64,
    /// Bytes that each host's link carries in a second, each way.
    pub link: u64,
    /// Failure domains that the hosts are spread over.
    pub zones: usize,
    /// Virtual seconds in a second.
    pub speed: f64,
    /// The scheduler that hosts report to: `http://HOST:PORT`.
    pub scheduler: String,
}

impl FleetOptions {
    /// Hosts of 256 GiB and 32 CPUs with 25 Gbit/s, a thousand times as fast as real ones.
    pub fn standard(hosts: usize, scheduler: String) -> Self {
        Self {
            hosts,
            memory: Bytes(256 << 30),
            cpu_milli: 32_000,
            link: 3_125_000_000,
            zones: 10,
            speed: 1000.0,
            scheduler,
        }
    }
}

/// Running hosts; they end when this is dropped.
#[derive(Debug)]
pub struct Fleet {
    world: Arc<World>,
}

/// What all hosts share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) options: FleetOptions,
    pub(crate) time: VirtualTime,
    pub(crate) links: Links,
    pub(crate) oracle: Oracle,
    pub(crate) shutdown: CancellationToken,
    hosts: Mutex<HashMap<NodeName, Arc<Host>>>,
    /// Warm channels to agents, by address: proofs go over them.
    channels: Mutex<HashMap<String, Channel>>,
}

impl World {
    pub(crate) fn host(&self, name: &NodeName) -> Option<Arc<Host>> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.get(name).cloned()
    }

    /// A channel to the agent at `address`.
    ///
    /// # Errors
    /// `InvalidArgument` when the address can't be used.
    pub(crate) fn channel(&self, address: &str) -> Result<Channel, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let channel = client::connect(address, None)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

impl Fleet {
    /// Lets all hosts listen, each on a loopback port of its own, and report to the scheduler.
    ///
    /// # Errors
    /// When there are no ports or files left.
    pub async fn start(options: FleetOptions) -> Result<Self> {
        let world = Arc::new(World {
            time: VirtualTime::new(options.speed),
            links: Links::new(options.link),
            oracle: Oracle::default(),
            shutdown: CancellationToken::new(),
            hosts: Mutex::default(),
            channels: Mutex::default(),
            options,
        });
        let fleet = Self { world };
        for number in 1..=fleet.world.options.hosts {
            fleet.open(number).await.context("start a host")?;
        }
        Ok(fleet)
    }

    async fn open(&self, number: usize) -> Result<()> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let bind = listener.local_addr()?;
        let name = NodeName::parse(format!("node{number:05}"))?;
        let zone = number % self.world.options.zones.max(1);
        let host = Arc::new(Host::new(
            name.clone(),
            (format!("http://{bind}"), format!("zone{zone}")),
            Arc::clone(&self.world),
        ));
        let parts = ServerParts {
            metrics: Metrics::default(),
            bind,
            identity: None,
            routes: Routes::new(AgentServer::new(Door(Arc::clone(&host)))),
            shutdown: self.world.shutdown.clone(),
        };
        tokio::spawn(server::serve_on(listener, parts));
        tokio::spawn(report::report(Arc::clone(&host), number));
        let hosts = &self.world.hosts;
        let mut hosts = hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.insert(name, host);
        Ok(())
    }

    /// What must never be and was: two copies of a machine that ran.
    pub fn violations(&self) -> Vec<String> {
        self.world.oracle.violations()
    }

    /// Guests that run.
    pub fn running(&self) -> usize {
        self.world.oracle.running()
    }

    /// Virtual seconds since the start.
    pub fn virtual_seconds(&self) -> f64 {
        self.world.time.now().as_secs_f64()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.world.shutdown.cancel();
    }
}
