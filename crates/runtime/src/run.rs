//! The life of a service: arguments, configuration, telemetry, work, bounded end.

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::admin::{self, Readiness};
use crate::config::{self, Common, ConfigArgs};
use crate::metrics::Metrics;
use crate::telemetry::{self, StepSpans};
use crate::{build, config::ConfigError};

/// Exit code for a configuration that can't be used (`EX_USAGE`).
const EXIT_USAGE: u8 = 64;
/// How long a service may take to end after a signal.
const SHUTDOWN_MAX: Duration = Duration::from_secs(5);
/// Threads for asynchronous work: the services wait far more than they compute.
const WORKERS: usize = 2;

/// A configuration with the part that every service has.
pub trait ServiceConfig: Default + Serialize + DeserializeOwned + Send + 'static {
    /// The common part.
    fn common(&self) -> &Common;
}

/// What a service gets to work with.
#[derive(Debug)]
pub struct Context<T> {
    /// Its configuration.
    pub config: T,
    /// Cancelled when it must end.
    pub shutdown: CancellationToken,
    /// Its metrics.
    pub metrics: Metrics,
    /// What must be true before it is ready.
    pub readiness: Readiness,
    /// Spans of job steps.
    pub steps: StepSpans,
}

/// Runs a service until it ends or a signal asks it to.
///
/// `work` ends when `shutdown` is cancelled; it is cut off after 5 s.
pub fn run<T, F>(name: &'static str, work: fn(Context<T>) -> F) -> ExitCode
where
    T: ServiceConfig,
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let (args, config) = match configured::<T>(name) {
        Ok(both) => both,
        Err(error) => {
            complain(name, &error.into());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if args.print_config {
        print(&config::printable(&config));
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(8)
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(live(name, config, work));
            runtime.shutdown_timeout(Duration::from_millis(200));
            outcome
        }
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(name, &error);
            ExitCode::FAILURE
        }
    }
}

fn configured<T: ServiceConfig>(name: &'static str) -> Result<(ConfigArgs, T), ConfigError> {
    let keys = config::printable(&T::default());
    let command = ConfigArgs::command()
        .name(name)
        .version(build::VERSION)
        .after_help(format!("Keys and their defaults:\n{keys}"));
    let args = ConfigArgs::from_arg_matches(&command.get_matches()).unwrap_or_else(|e| e.exit());
    let config = config::load(&args)?;
    Ok((args, config))
}

async fn live<T, F>(name: &'static str, config: T, work: fn(Context<T>) -> F) -> anyhow::Result<()>
where
    T: ServiceConfig,
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let common = config.common().clone();
    let (_guard, steps) = telemetry::init(name, &common)?;
    // Two libraries bring rustls in; the first to ask would otherwise have to choose.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let shutdown = CancellationToken::new();
    let (metrics, readiness) = (Metrics::default(), Readiness::default());
    let admin = admin::serve(
        common.admin_bind,
        metrics.clone(),
        readiness.clone(),
        shutdown.clone(),
    );
    let mut admin = tokio::spawn(admin);
    info!(
        service = name,
        version = build::VERSION,
        commit = build::COMMIT,
        "starting"
    );
    let context = Context {
        config,
        shutdown: shutdown.clone(),
        metrics,
        readiness,
        steps,
    };
    let mut work = tokio::spawn(work(context));
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::select! {
        ended = &mut work => return ended?,
        ended = &mut admin => ended??,
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    info!(service = name, "stopping");
    shutdown.cancel();
    match tokio::time::timeout(SHUTDOWN_MAX, work).await {
        Ok(ended) => ended?,
        Err(_) => {
            error!(
                service = name,
                "did not end within {} s",
                SHUTDOWN_MAX.as_secs()
            );
            Ok(())
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "before the log is set up, and for the shell"
)]
fn complain(name: &str, error: &anyhow::Error) {
    eprintln!("{name}: {error:#}");
}

#[expect(
    clippy::print_stdout,
    reason = "--print-config is asked for on standard output"
)]
fn print(text: &str) {
    println!("{text}");
}
