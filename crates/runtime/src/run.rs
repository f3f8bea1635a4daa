//! The life of a service: arguments, configuration, telemetry, work, bounded end.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::{CommandFactory, FromArgMatches};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::{self, Readiness};
use crate::config::{self, Common, ConfigArgs, ConfigError};
use crate::metrics::Metrics;
use crate::telemetry::{self, StepSpans};
use crate::{build, tasks};

/// Exit code for a configuration that can't be used (`EX_USAGE`).
const EXIT_USAGE: u8 = 64;
/// How long a service may take to end after a signal.
const SHUTDOWN_MAX: Duration = Duration::from_secs(5);
/// How long its tasks may take after that.
const TASKS_MAX: Duration = Duration::from_secs(1);
/// How long calls that block may take after that.
const BLOCKING_MAX: Duration = Duration::from_millis(200);
/// Threads for asynchronous work: the services wait far more than they compute, and each thread
/// has an arena of the allocator.
const WORKERS: usize = 2;
/// Threads for calls that block, for example fsync.
const BLOCKING_THREADS_MAX: usize = 8;

/// A configuration with the part that every service has.
pub trait ServiceConfig: Default + Serialize + DeserializeOwned + Send + 'static {
    /// The common part.
    fn common(&self) -> &Common;

    /// Whether the values go together; asked before anything is started.
    ///
    /// # Errors
    /// With a text that names the key and what is wrong with it.
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }
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
/// `work` ends when `shutdown` is cancelled; it is cut off after 5 s, or at a second signal.
pub fn run<T, F>(name: &'static str, work: fn(Context<T>) -> F) -> ExitCode
where
    T: ServiceConfig,
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let (args, config) = match configured::<T>(name) {
        Ok(both) => both,
        Err(error) => return unusable(name, error),
    };
    if args.print_config {
        print(&config::printable(&config));
        return ExitCode::SUCCESS;
    }
    if let Err(error) = validated(&config) {
        return unusable(name, error);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(name, &error.into());
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(live(name, config, work));
    runtime.shutdown_timeout(BLOCKING_MAX);
    outcome
}

fn configured<T: ServiceConfig>(name: &'static str) -> Result<(ConfigArgs, T), ConfigError> {
    let keys = config::printable(&T::default());
    let command = ConfigArgs::command()
        .name(name)
        .version(build::VERSION)
        .long_version(build::FULL)
        .about("A service of Godwit, live migration of QEMU machines")
        .after_help(format!(
            "Each key can stand in the file, in the environment (GODWIT_COMMON__LOG=json), or after \
             --set;\na later one wins in this order. An unknown key is an error (exit code 64).\n\n\
             Keys and their defaults:\n{keys}"
        ));
    let args = ConfigArgs::from_arg_matches(&command.get_matches()).unwrap_or_else(|e| e.exit());
    let config = config::load(&args)?;
    Ok((args, config))
}

fn validated<T: ServiceConfig>(config: &T) -> Result<(), ConfigError> {
    config.common().validate()?;
    config.validate().map_err(ConfigError::Invalid)
}

async fn live<T, F>(name: &'static str, config: T, work: fn(Context<T>) -> F) -> ExitCode
where
    T: ServiceConfig,
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let (_guard, steps) = match telemetry::init(name, config.common()) {
        Ok(both) => both,
        Err(error) => {
            complain(name, &error.into());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    std::panic::set_hook(Box::new(log_panic));
    // Two libraries bring rustls in; the first to ask would otherwise have to choose.
    let _ = rustls::crypto::ring::default_provider().install_default();
    info!(version = build::VERSION, commit = build::COMMIT, "starting");
    match worked(name, config, steps, work).await {
        Ok(()) => {
            info!("ended");
            ExitCode::SUCCESS
        }
        Err(error) => {
            error!(error = format!("{error:#}"), "failed");
            ExitCode::FAILURE
        }
    }
}

async fn worked<T, F>(
    name: &'static str,
    config: T,
    steps: StepSpans,
    work: fn(Context<T>) -> F,
) -> anyhow::Result<()>
where
    T: ServiceConfig,
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let shutdown = CancellationToken::new();
    let context = Context {
        shutdown: shutdown.clone(),
        metrics: Metrics::of_process(name),
        readiness: Readiness::default(),
        steps,
        config,
    };
    let admin = admin::serve(
        context.config.common().admin_bind,
        context.metrics.clone(),
        context.readiness.clone(),
        shutdown.clone(),
    );
    let admin = tokio::spawn(admin);
    let mut work = tokio::spawn(work(context));
    let mut signals = Signals::new()?;
    let cause = tokio::select! {
        ended = &mut work => Cause::Ended(ended),
        ended = admin => Cause::Failed(admin_failure(ended)),
        task = tasks::panicked() => Cause::Failed(anyhow!("task {task} panicked")),
        () = signals.next() => Cause::Signal,
    };
    info!("stopping");
    shutdown.cancel();
    let outcome = match cause {
        Cause::Ended(ended) => ended.context("run the service")?,
        Cause::Failed(error) => finished(work, &mut signals).await.and(Err(error)),
        Cause::Signal => finished(work, &mut signals).await,
    };
    if tokio::time::timeout(TASKS_MAX, tasks::ended())
        .await
        .is_err()
    {
        warn!(tasks = ?tasks::running(), "tasks are cut off");
    }
    outcome
}

/// Why a service stops.
enum Cause {
    Ended(Result<anyhow::Result<()>, tokio::task::JoinError>),
    Failed(anyhow::Error),
    Signal,
}

fn admin_failure(ended: Result<std::io::Result<()>, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow!("health and metrics are no longer served"),
        Ok(Err(error)) => anyhow::Error::new(error).context("serve health and metrics"),
        Err(error) => anyhow::Error::new(error).context("serve health and metrics"),
    }
}

/// Waits for `work` after the shutdown was asked for.
async fn finished(
    work: JoinHandle<anyhow::Result<()>>,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    tokio::select! {
        ended = work => ended.context("run the service")?,
        () = tokio::time::sleep(SHUTDOWN_MAX) => {
            Err(anyhow!("did not end within {} s", SHUTDOWN_MAX.as_secs()))
        }
        () = signals.next() => Err(anyhow!("ended at once, by a second signal")),
    }
}

struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string);
    let message = panic.payload_as_str().unwrap_or("no message");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        error!(location, message, %backtrace, "panic");
    } else {
        error!(location, message, "panic");
    }
}

fn unusable(name: &str, error: ConfigError) -> ExitCode {
    complain(name, &error.into());
    ExitCode::from(EXIT_USAGE)
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
    print!("{text}");
}
