//! The godwit command, also installed as kubectl-godwit.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use godwit_cli::audit::{Audit, Outcome, audit};
use godwit_cli::history::{History, history};
use godwit_cli::kubeconfig::Kubeconfig;
use godwit_cli::migrate::{Migrate, migrate};
use godwit_cli::output::Output;
use godwit_cli::pki::{Pki, pki};
use godwit_cli::plan::{Plan, plan};
use godwit_cli::project;
use godwit_cli::version::{ServerVersion, of_server};
use godwit_runtime::build;
use serde_json::json;

/// Live migration of QEMU machines between plain Linux hosts.
///
/// The API is Kubernetes': use kubectl, oc or virtctl for machines, migrations and maintenance.
/// This command is for what they can't do.
///
/// Under the name kubectl-godwit anywhere on the PATH it is also a plugin of kubectl:
///
///     ln -s "$(command -v godwit)" /usr/local/bin/kubectl-godwit
///     kubectl godwit version
#[derive(Debug, Parser)]
#[command(name = "godwit", version = build::FULL, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show which build this is, and which one serves the API.
    Version(Version),
    /// Issue and renew certificates for services, hosts and users.
    ///
    /// For whoever has no certificate authority of their own. Everything is in one directory:
    /// ca.crt, a NAME.crt and a NAME.key for each service, node and `admin`, and a kubeconfig.
    #[command(subcommand)]
    Pki(Pki),
    /// Bring the ledger's schema up to this build, and end.
    ///
    /// Every service does that at its start, one at a time. This is for a database in which the
    /// services may not change the schema. Ends well when nothing is missing.
    Migrate(Migrate),
    /// Check that everything that must hold does hold; read only.
    ///
    /// Reads the ledger, asks every agent what is really on its host, and compares. Ends with 0
    /// when nothing is broken, with 1 when something is, with 2 when something could not be
    /// checked. Only what two looks in a row show is told: what is gone after a tenth of a second
    /// was a step on its way.
    #[command(after_help = "Example:\n  godwit audit --database \
        'postgres:///godwit?host=/var/lib/godwit-lab/pg&user=godwit_auditor' \\\n      \
        --cert admin.crt --key admin.key --ca ca.crt")]
    Audit(Audit),
    /// Show all that became of a migration, also when it is long deleted.
    ///
    /// One line a step, with the time since the request, who recorded it, under which epoch, and
    /// why; then what was measured. `kubectl get migrationhistory NAME -o yaml` has the same.
    History(History),
    /// Show how nodes would be emptied: who moves where and when, and what is in the way.
    ///
    /// Makes a DrainPlan, shows what came of it, and deletes it. Nothing is moved. With --keep the
    /// plan stays: `kubectl patch drainplan NAME --type=merge -p '{"spec":{"execute":true}}'`
    /// carries it out.
    #[command(after_help = "Example:\n  godwit plan worker1 worker2 --max-unavailable 1")]
    Plan(Plan),
    /// Work in another project (namespace) from now on, as `oc project` does.
    ///
    /// Under the name kubectl-project on the PATH, `kubectl project NAME` does the same.
    Project {
        /// The project.
        name: String,
    },
}

#[derive(Debug, Args)]
struct Version {
    /// This build only; ask no server.
    #[arg(long)]
    client: bool,
    /// File that says where the API is [default: KUBECONFIG, then ~/.kube/config].
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: the current one].
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Form of the output.
    #[arg(long, short, default_value = "text")]
    output: Output,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse_from(arguments()).command {
        Command::Version(wanted) => version(&wanted),
        Command::Pki(wanted) => runtime()
            .and_then(|runtime| runtime.block_on(pki(&wanted)))
            .map(|text| print(&text)),
        Command::Migrate(wanted) => runtime()
            .and_then(|runtime| runtime.block_on(migrate(&wanted)))
            .map(|()| print("the schema is up to date")),
        Command::Audit(wanted) => return check(&wanted),
        Command::History(wanted) => runtime()
            .and_then(|runtime| runtime.block_on(history(&wanted)))
            .map(|text| print(&text)),
        Command::Plan(wanted) => runtime()
            .and_then(|runtime| runtime.block_on(plan(&wanted)))
            .map(|text| print(&text)),
        Command::Project { name } => project::switch(&name).map(|text| print(&text)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Everything that keeps an audit from its end is "could not be checked", never "broken".
fn check(wanted: &Audit) -> ExitCode {
    let report = runtime().and_then(|runtime| runtime.block_on(audit(wanted)));
    let code = match report {
        Ok(report) => {
            print(&match wanted.output {
                Output::Text => report.text(),
                Output::Json => format!("{:#}", report.json()),
            });
            report.outcome()
        }
        Err(error) => {
            complain(&error);
            Outcome::Unknown
        }
    };
    ExitCode::from(code.exit_code())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?)
}

/// The arguments, with the subcommand that a plugin's name stands for.
fn arguments() -> Vec<OsString> {
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let name = arguments.first().map(Path::new).and_then(Path::file_name);
    if name == Some(OsStr::new(project::PLUGIN)) {
        arguments.insert(1, "project".into());
    }
    arguments
}

fn version(wanted: &Version) -> anyhow::Result<()> {
    let server = if wanted.client {
        None
    } else {
        Some(server_version(wanted).context("ask the server"))
    };
    // What is known is shown, even when the server can't be asked.
    let known = server.as_ref().and_then(|server| server.as_ref().ok());
    match wanted.output {
        Output::Json => {
            let client = json!({"version": build::VERSION, "commit": build::COMMIT});
            let mut all = json!({"clientVersion": client});
            if let Some(server) = known {
                all["serverVersion"] = serde_json::to_value(server)?;
            }
            print(&serde_json::to_string_pretty(&all)?);
        }
        Output::Text => {
            print(&format!("Client Version: {}", build::FULL));
            if let Some(server) = known {
                print(&format!("Server Version: {}", server.git_version));
            }
        }
    }
    server.transpose().map(drop)
}

fn server_version(wanted: &Version) -> anyhow::Result<ServerVersion> {
    let config = Kubeconfig::load(wanted.kubeconfig.as_deref())?;
    let access = config.access(wanted.context.as_deref())?;
    runtime()?.block_on(of_server(&access))
}

#[expect(clippy::print_stdout, reason = "what the user asked for")]
fn print(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "for the shell")]
fn complain(error: &anyhow::Error) {
    eprintln!("godwit: {error:#}");
}
