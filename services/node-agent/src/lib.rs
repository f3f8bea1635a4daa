//! One per host: runs QEMU, keeps its machines through restarts, and carries out both halves of a
//! migration. The only code that touches a host.
//!
//! ```text
//! server ──► machines ──► machine_task ──► vm ──► QEMU
//!    │                        ▲            ▲
//!    └─────► source, target ──┴────────────┘      rules: godwit-model
//! ```

mod addresses;
mod adopt;
mod cgroup;
mod check;
mod confine;
mod half;
mod hooks;
mod host;
mod hugepages;
mod inspect;
mod journal;
mod machines;
mod metrics;
mod network;
mod proof;
mod report;
mod server;
mod source;
mod target;
mod text;
mod vm;
mod watch;

pub mod config;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use rustix::fs::Mode;
use tracing::{info, warn};

use godwit_qemu::Accelerator;
use godwit_qemu::probe::{self, Wish};
use godwit_rpc::Credentials;
use godwit_rpc::server::{ServerParts, serve};
use godwit_runtime::Context;
use godwit_runtime::metrics::Metrics;

use crate::cgroup::Groups;
use crate::config::Config;
use crate::host::{Host, Parts};

/// Runs the agent until shutdown. The machines go on without it.
///
/// # Errors
/// When the configuration, the state directory, QEMU or the port can't be used.
pub async fn run(context: Context<Config>) -> anyhow::Result<()> {
    let Context {
        config,
        shutdown,
        metrics,
        readiness,
        steps,
    } = context;
    readiness.set("adopted", false);
    let probe = probe::Request {
        binary: Some(config.qemu.clone()).filter(|path| *path != PathBuf::new()),
        wish: config.accel,
        kernel: config.kvm_test.clone(),
        directory: config.run_dir.clone(),
    };
    let credentials = Credentials::of(&config.common, (&metrics, &shutdown))?;
    let accel = config.accel;
    let settings = config.settings()?;
    // Sockets, logs and disks that QEMU and this process make are nobody else's.
    rustix::process::umask(Mode::from_raw_mode(0o077));
    confine::run_dir(&settings).context("make run_dir")?;
    let store = journal::Store::open(&settings.state_dir).context("open state_dir")?;
    let facts = probe::probe(&probe).await.context("probe qemu")?;
    info!(
        node = %settings.node,
        qemu = %facts.version,
        accelerator = facts.accelerator.as_str(),
        why = facts.reason,
        "host probed"
    );
    if accel == Wish::Auto && facts.accelerator == Accelerator::Tcg {
        warn!(why = facts.reason, "guests are translated, which is slow");
    }
    if !settings.encrypt_copies {
        warn!("memory of machines travels in the clear: encrypt_copies is false");
    }
    let parts = Parts {
        groups: Groups::find(&settings, facts.accelerator)?,
        facts,
        credentials,
        metrics: metrics.registry(metrics::Metrics::new),
        steps,
        shutdown,
    };
    let host = Host::new(settings, store, parts);
    adopt::adopt(&host).await.context("adopt machines")?;
    readiness.set("adopted", true);
    learn_addresses(&host);
    for scheduler in host.config.schedulers.clone() {
        godwit_runtime::spawn("report", report::report(Arc::clone(&host), scheduler));
    }
    listen(host, metrics).await
}

async fn listen(host: Arc<Host>, metrics: Metrics) -> anyhow::Result<()> {
    let parts = ServerParts {
        metrics,
        bind: host.config.bind,
        credentials: host.credentials.clone(),
        shutdown: host.shutdown.clone(),
        routes: server::Server::routes(host),
    };
    Ok(serve(parts).await?)
}

fn learn_addresses(host: &Arc<Host>) {
    if host.config.networks.is_empty() {
        return;
    }
    let host = Arc::clone(host);
    godwit_runtime::spawn("addresses", async move {
        let changed = || host.changed();
        tokio::select! {
            () = host.shutdown.cancelled() => {}
            ended = addresses::listen(host.addresses.clone(), changed) => {
                if let Err(error) = ended {
                    warn!(%error, "guests' addresses are not learned");
                }
            }
        }
    });
}
